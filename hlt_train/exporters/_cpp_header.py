"""`net.hpp` as text: the file's frame, the description of inputs and outputs, the paths, and the entry points."""

from __future__ import annotations

import hashlib

import numpy as np

from hlt_train.exporters._cpp_neon import Neon
from hlt_train.exporters._cpp_plain import Plain
from hlt_train.exporters._cpp_plan import Plan
from hlt_train.exporters._cpp_sse2 import Sse2
from hlt_train.exporters._cpp_text import array, comment, int_literal, lines, string_literal
from hlt_train.exporters._cpp_wide import KERNELS, Avx2, Avx512, Vnni, inlined
from hlt_train.exporters._templates import template

__all__ = ["header"]


def header(plan: Plan, namespace: str) -> str:
    """The whole of `net.hpp`.

    Its contents sit in an inline namespace called after their hash, and the include guard is too: two networks, or two versions of one, may be linked into
    the same program from different translation units.
    """
    paths = [Plain(plan), *((path(plan) for path in (Sse2, Avx2, Avx512, Vnni, Neon)) if plan.exact and not plan.minifloats else ())]
    body = "\n".join([_description(plan), _runtime(plan), *(_path(plan, path) for path in paths), _entries(plan, paths)])
    digest = hashlib.sha256(body.encode()).hexdigest()[:16]
    guard = f"HLT_TRAIN_NET_{digest.upper()}"
    return f"""// {namespace}::evaluate: a network in one C++17 header without dependencies, written by hlt-train. Do not edit it.
//
{_usage(plan, namespace)}
//
// Thread-safe, no allocation; the one thing it remembers is which path this processor takes. {_promise(plan)}
// Functions have internal linkage: each translation unit runs the code that it was itself compiled to, whatever the flags of the others.
#ifndef {guard}
#define {guard}

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>
#if defined(__x86_64__) || defined(_M_X64)
#include <emmintrin.h>
#if defined(__GNUC__)
#include <cpuid.h>
#include <immintrin.h>
#endif
#elif defined(__aarch64__) && defined(__GNUC__)
#include <arm_neon.h>
#endif

namespace {namespace} {{
inline namespace n{digest} {{

{body}
}}  // namespace n{digest}
}}  // namespace {namespace}

#endif  // {guard}
"""


def _usage(plan: Plan, namespace: str) -> str:
    rows = [f"//   {namespace}::Logit logits[{plan.output.n}];", f"//   {namespace}::evaluate({', '.join(_arguments(plan, types=False))}, logits);"]
    for node in plan.inputs:
        shape = "" if node.length is None else f"[{plan.counts[node.group]}, at most {node.length}]"
        rows.append(f"//   {plan.pointers[node.group]}: float32 {shape}[{len(node.variables)}], unnormalised: {comment(', '.join(node.variables))}")
    if plan.score is not None:
        rows.append(f"//   {namespace}::score(logits): the discriminant that thresholds cut on")
    return "\n".join(rows)


def _promise(plan: Plan) -> str:
    if plan.exact:
        return "The same integers from every compiler, optimisation level, -ffast-math and -ffp-contract, in round-to-nearest mode."
    return "float32: compilers and flags may differ in the last bits."


def _description(plan: Plan) -> str:
    """Types and names of what goes in and comes out."""
    node = plan.output.node
    out = [
        f"using Logit = {plan.logit};",
        f"inline constexpr bool exact = {'true' if plan.exact else 'false'};",
        f"inline constexpr int n_outputs = {plan.output.n};",
    ]
    out.append(array("const char*", "outputs", (plan.output.n,), [string_literal(name) for name in plan.names], aligned=False))
    out.append("// The value of output o is logits[o] * 2^-exponents[o].")
    out.append(array("int", "exponents", (plan.output.n,), [int_literal(f) for f in plan.output.f.tolist()], aligned=False))
    out.append(f"inline constexpr const char* link = {string_literal(getattr(node, 'link', 'none'))};")
    out.append("\n// length: the most constituents that are read, 0 for a group of scalars.")
    out.append("struct Group {\n  const char* name;\n  int variables;\n  int length;\n};")
    rows = [f"{{{string_literal(i.group)}, {len(i.variables)}, {i.length or 0}}}" for i in plan.inputs]
    out.append(array("Group", "groups", (len(rows),), rows, aligned=False))
    out.append(f"inline constexpr int n_groups = {len(rows)};")
    members = "\n".join(f"  {argument} = {'nullptr' if '*' in argument else '0'};" for argument in _arguments(plan))
    out.append(f"\nstruct Input {{\n{members}\n}};\n")
    return "\n".join(out)


def _runtime(plan: Plan) -> str:
    text = template("net_runtime.hpp") + "\n"
    if plan.minifloats:
        text += template("net_minifloat.hpp") + "\n"
    elif plan.exact:
        text += _guarded(Sse2.guard, template("net_sse2.hpp")) + "\n"
        for guard in dict.fromkeys(kernels.guard for kernels in KERNELS.values()):
            text += _guarded(guard, "\n".join(_kernels(name) for name, kernels in KERNELS.items() if kernels.guard == guard)) + "\n"
    else:
        text += template("net_float.hpp") + "\n"
    text += template("net_dispatch.hpp")
    return f"namespace detail {{\n\n{text}\n}}  // namespace detail\n"


def _kernels(name: str) -> str:
    """One namespace of kernels: its templates, every function with the target attribute of the namespace."""
    kernels = KERNELS[name]
    inline = f"{inlined(kernels)} static inline"
    body = "\n".join(template(file) for file in kernels.files)
    return f"namespace {name} {{\n\n{body.replace('INLINE', inline)}\n}}  // namespace {name}\n"


def _guarded(condition: str, text: str) -> str:
    return f"#if {condition}\n{text}#endif\n" if condition else text


def _path(plan: Plan, path: Plain) -> str:
    """One path: its constants, `evaluate`, and the same by position."""
    statements = []
    for loop in plan.loops:
        if loop.depth:
            statements.append(f"const int {loop.count} = positions({plan.counts[loop.group]}, {loop.stride}, {loop.length});")
        else:
            statements.append(f"{loop.count} = limit({loop.count}, {loop.length});")
    statements += path.before
    for loop in plan.loops:
        statements += path.loop(loop)
    statements += path.after
    body = lines("\n".join(statements), 2)
    constants = "\n".join(path.constants)
    by_position = []
    for k, node in enumerate(plan.inputs):
        by_position += [f"x[{k}]"] if node.length is None else [f"x[{k}]", f"count[{k}]"]
    unused = "" if plan.counts else "  static_cast<void>(count);\n"
    text = f"""namespace {path.name} {{

using namespace detail;

{constants}

{path.functions()}
{path.target}static inline void evaluate({", ".join(_arguments(plan))}, Logit* logits) noexcept {{
{body}
}}

static inline void evaluate_groups(const float* const* x, const std::int32_t* count, Logit* logits) noexcept {{
{unused}  evaluate({", ".join(by_position)}, logits);
}}

}}  // namespace {path.name}
"""
    return _guarded(path.guard, text)


def _entries(plan: Plan, paths: list[Plain]) -> str:
    """What is called, and which path it takes: the last one that this processor has, unless one is asked for."""
    names = _arguments(plan, types=False)
    table = "".join(_row(path) for path in paths)
    text = template("net_entries.hpp")
    for word, value in (
        ("TYPED_PARAMETERS", ", ".join(_arguments(plan))),
        ("INPUT_ARGUMENTS", ", ".join("input." + name for name in names)),
        ("ARGUMENTS", ", ".join(names)),
        ("    PATHS\n", table),
    ):
        text = text.replace(word, value)
    return f"{text}\n{_score(plan.score)}"


def _row(path: Plain) -> str:
    """A path in the table of paths; another architecture's is in it too, and never available."""
    row = f'    {{"{path.name}", {path.name}::evaluate, {path.name}::evaluate_groups, detail::{path.available}}},\n'
    if not path.guard:
        return row
    return f'#if {path.guard}\n{row}#else\n    {{"{path.name}", nullptr, nullptr, detail::has_not}},\n#endif\n'


def _score(weights: np.ndarray | None) -> str:
    if weights is None:
        return "inline constexpr bool has_score = false;\nstatic inline std::int64_t score(const Logit*) noexcept { return 0; }\n"
    terms = [f"std::int64_t{{logits[{o}]}}" + ("" if w == 1 else f" * {int_literal(w)}") for o, w in enumerate(weights.tolist()) if w]
    total = " + ".join(terms) or "0"
    unnamed = "logits" if terms else ""
    return f"""inline constexpr bool has_score = true;

// The discriminant, an integer: an event passes a working point when its score is at least the threshold.
static inline std::int64_t score(const Logit* {unnamed}) noexcept {{
  return {total};
}}
"""


def _arguments(plan: Plan, *, types: bool = True) -> list[str]:
    """The groups as parameters of `evaluate`, in order: a pointer each, followed by a count for constituents."""
    made = []
    for node in plan.inputs:
        made.append(("const float* " if types else "") + plan.pointers[node.group])
        if node.length is not None:
            made.append(("int " if types else "") + plan.counts[node.group])
    return made

"""`features.hpp`: from branch values to the float32 features that `net.hpp` takes, written from the program in `features.json`.

A program is data that may come from anybody: its operations and types are looked up here, its names become identifiers or string constants.

Values per event are computed once, in order. Values per constituent are computed where somebody loops over them: for a reduction, for the leading elements of a
sorted list, for a group of inputs. Nothing is stored but those leading elements, so nothing needs memory of a size that an event decides.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hlt_train.errors import RunFailed
from hlt_train.exporters._cpp_plan import arguments
from hlt_train.exporters._cpp_text import array, comment, identifiers, int_literal, lines, string_literal
from hlt_train.exporters._templates import template

__all__ = ["JUMPS", "RELATIVE", "ULP", "features_header"]

ULP = 8  # of float32, where a variable uses libm
JUMPS = 10  # one value in so many may lie beyond that where libm decides a jump
RELATIVE = 20  # or 2^-20 of the largest magnitude of the variable among the golden vectors
_TYPES = {
    "bool": "bool",
    **{f"{sign}int{bits}": f"std::{sign}int{bits}_t" for sign in ("", "u") for bits in (8, 16, 32, 64)},
    "float32": "float",
    "float64": "double",
}
_LIBM = frozenset(
    "arccos arcsin arctan arctan2 arctanh cos cosh exp expm1 hypot log log10 log1p log2 power sin sinh tan tanh".split()  # noqa: SIM905
)
_ELEMENTWISE = _LIBM | frozenset(
    """
    absolute add bitwise_and bitwise_or bitwise_xor ceil divide equal floor floor_divide greater greater_equal invert isfinite isinf isnan less less_equal
    maximum minimum multiply negative not_equal positive reciprocal remainder rint sign sqrt square subtract
    """.split()  # noqa: SIM905
)
# Where they meet a value of libm, its last bit may decide between distant results.
_JUMPS = frozenset(
    """
    any all bitwise_and bitwise_or bitwise_xor ceil divide equal filter floor floor_divide greater greater_equal invert isfinite isinf isnan less less_equal
    not_equal power reciprocal remainder rint sign where
    """.split()  # noqa: SIM905
)
_RESERVED = frozenset("Branch Branches Features List b branches derive derives derived features_t gather i j k lists n object p std x".split())  # noqa: SIM905


class _Group(NamedTuple):
    """A group of the network: its identifiers are those of net.hpp."""

    name: str
    length: int | None
    variables: Sequence[str]
    pointer: str
    counter: str


def features_header(groups: Sequence[tuple[str, int | None, Sequence[str]]], program: Any, net: str) -> str:
    """The header's text.

    Args:
        groups: name, length (None for scalars) and variables of each group of the network, in its order.
        program: that of features.json, or None: the caller then gives every variable.
        net: the namespace of net.hpp.

    Raises:
        RunFailed: the program is damaged, or of other groups.
    """
    pointers, counts = arguments([(name, length) for name, length, _ in groups])
    described = [_Group(name, length, variables, pointers[name], counts.get(name, "")) for name, length, variables in groups]
    empty: dict[str, Any] = {"branches": [], "lists": [], "steps": [], "object": None, "given": {}}
    content = program or {**empty, "groups": [{"name": name, "list": None, "values": [None] * len(variables)} for name, _, variables in groups]}
    try:
        body, promise = _Writer(described, content).text()
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise RunFailed(f"the program of features.json is damaged: {error!r}", where="features.json", then="export the run again") from error
    digest = hashlib.sha256(body.encode()).hexdigest()[:16]
    guard = f"HLT_TRAIN_FEATURES_{digest.upper()}"
    return f"""// {net}::derive: from branch values to the float32 features that {net}::evaluate takes, without dependencies. Written by hlt-train from
// features.json; do not edit.
//
{promise}
//
// Thread-safe, no state, no allocation. Needs IEEE arithmetic: not -ffast-math.
#ifndef {guard}
#define {guard}

#if defined(__FAST_MATH__)
#error "features.hpp computes with NaN and infinities as NumPy does: compile without -ffast-math"
#endif

#include <cfloat>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>

namespace {net} {{
inline namespace f{digest} {{

static_assert(FLT_EVAL_METHOD == 0 || FLT_EVAL_METHOD == 16, "float and double are computed as such: on x86 this needs SSE2");

{body}
}}  // namespace f{digest}
}}  // namespace {net}

#endif  // {guard}
"""


class _Writer:
    def __init__(self, groups: Sequence[_Group], program: Any) -> None:
        self.groups, self.program = groups, program
        self.steps: list[dict[str, Any]] = program["steps"]
        self.lists: list[dict[str, Any]] = program["lists"]
        self._check()
        self.origins, self.alive = self._classify(), self._alive()
        shared = [self._shared(one) for one in self.lists]
        taken = [*_RESERVED, *(one.pointer for one in groups), *(one.counter for one in groups)]
        self.branch_words = _distinct([branch["name"] for branch in program["branches"]], taken)
        self.count_words = _distinct(shared, [*taken, *self.branch_words])
        given = [(g, k) for g, one in enumerate(groups) for k in range(len(one.variables)) if one.length is None and self._value(g, k) is None]
        words_given = _distinct([groups[g].variables[k] for g, k in given], [*taken, *self.branch_words, *self.count_words])
        self.given = dict(zip(given, words_given, strict=True))

    # the document -----------------------------------------------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        """Numbers in their ranges, words from the lists of this module: what is not is a damaged document."""
        lists, branches = self.lists, self.program["branches"]
        for k, one in enumerate(lists):
            if "where" in one and not (0 <= one["of"] < k and 0 <= one["where"] < len(self.steps) and self.steps[one["where"]]["type"] == "bool"):
                raise ValueError(f"list {k}")
        for branch in branches:
            self._known(branch["type"])
            self._listed(branch["list"])
            if not isinstance(branch["name"], str) or (branch["list"] is not None and "where" in lists[branch["list"]]):
                raise ValueError(f"branch {branch['name']}")
        for k, step in enumerate(self.steps):
            self._known(step["type"])
            self._listed(step["list"])
            self._listed(step.get("over"))
            for type in step.get("as", ()):
                self._known(type)
            if not all(isinstance(source, int) and 0 <= source < k for source in step["of"]):
                raise ValueError(f"step {k}")
        if [(one["name"], len(one["values"])) for one in self.program["groups"]] != [(one.name, len(one.variables)) for one in self.groups]:
            raise ValueError("its groups are not those of the graph")
        for group, one in zip(self.groups, self.program["groups"], strict=True):
            self._listed(one["list"])
            for value in one["values"]:
                if value is not None and (not 0 <= value < len(self.steps) or (self.steps[value]["list"] is None) != (group.length is None)):
                    raise ValueError(f"group {group.name}")
        self._listed(self.program["object"])

    @staticmethod
    def _known(type: str) -> None:
        if type not in _TYPES:
            raise ValueError(f"type {type}")

    def _listed(self, number: int | None) -> None:
        if number is not None and not 0 <= number < len(self.lists):
            raise ValueError(f"list {number}")

    def _value(self, group: int, k: int) -> int | None:
        found: int | None = self.program["groups"][group]["values"][k]
        return found

    def _origin(self, group: int, k: int) -> str:
        value = self._value(group, k)
        return "given" if value is None else self.origins[value]

    def _shared(self, one: Mapping[str, Any]) -> str:
        """What the count of a list is called: by what the names of its branches begin with, if they do."""
        names = [str(name) for name in one.get("branches", ())]
        heads = {name.replace(".", "_").partition("_")[0] for name in names}
        return f"n_{heads.pop() if len(heads) == 1 else names[0] if names else 'objects'}"

    def _sources(self, number: int) -> list[int]:
        """The steps that enter a value, masks of its list included; what is counted does not enter a count."""
        step = self.steps[number]
        found = [] if step["op"] == "count" else [*step["of"]]
        own = step["over"] if step["op"] == "count" else step["list"]
        while own is not None and "where" in self.lists[own]:
            found.append(self.lists[own]["where"])
            own = self.lists[own]["of"]
        return found

    def _classify(self) -> list[str]:
        """The origin of each step: exact, libm, or jumps, where a last bit of libm decides between distant values."""
        found: list[str] = []
        for number, step in enumerate(self.steps):
            # A mask of its own list is an earlier step.
            origins = {found[source] for source in self._sources(number)}
            masked = any(found[source] != "exact" for source in self._sources(number) if source not in step["of"]) and step["op"] != "constant"
            if "jumps" in origins or masked or ("libm" in origins and step["op"] in _JUMPS):
                found.append("jumps")
            else:
                found.append("libm" if "libm" in origins or (step["op"] in _LIBM and step["as"][0].startswith("float")) else "exact")
        return found

    def _alive(self) -> set[int]:
        """The steps that enter a feature."""
        alive: set[int] = set()
        waiting = [value for one in self.program["groups"] for value in one["values"] if value is not None]
        while waiting:
            number = waiting.pop()
            if number not in alive:
                alive.add(number)
                waiting += self._sources(number)
        return alive

    # the text ---------------------------------------------------------------------------------------------------------------------------------------------

    def text(self) -> tuple[str, str]:
        """(the body of the header, the promise in its first lines)."""
        runtime = f"namespace derived {{\n\n{template('features_runtime.hpp')}\n}}  // namespace derived\n"
        return f"{self._structs()}\n{self._tables()}\n{runtime}\n{self._derive()}\n{self._gather()}", self._promise()

    @property
    def _object(self) -> bool:
        return self.program["object"] is not None

    def _promise(self) -> str:
        of: dict[str, list[str]] = {"exact": [], "libm": [], "jumps": [], "given": []}
        for g, one in enumerate(self.groups):
            for k, name in enumerate(one.variables):
                of[self._origin(g, k)].append(name)
        names = {origin: comment(", ".join(found) or "none") for origin, found in of.items()}
        out = [
            "// The bits that the network's contract is about begin at the features. How near these are to what NumPy computes:",
            f"//   exact, NaN for NaN and -0 taken for 0: {names['exact']}",
            f"//   libm, whose functions differ between platforms: within {ULP} units in the last place of float32, or 2^-{RELATIVE} of the largest",
            f"//   magnitude that the variable has among the golden vectors: {names['libm']}",
            "//   jumps, where the last bit of such a function decides a comparison, a remainder or a pole: within the same, but for one value in",
            f"//   {JUMPS}: {names['jumps']}",
            "// golden_features.bin holds branch values and what NumPy gave for them; main.cpp compares.",
        ]
        if of["given"]:
            out.append("// The caller gives these itself, as float32:")
            reasons = self.program.get("given", {})
            out += [f"//   {comment(name)}: {comment(str(reasons.get(name, 'this export has no program of its variables')))}" for name in of["given"]]
        return "\n".join(out)

    def _structs(self) -> str:
        rows = []
        for k, (one, count) in enumerate(zip(self.lists, self.count_words, strict=True)):
            members = [(branch, word) for branch, word in zip(self.program["branches"], self.branch_words, strict=True) if branch["list"] == k]
            if "where" not in one:
                rows += [f"  int {count} = 0;  // elements of each of these lists; none where it is negative"] if members else [f"  int {count} = 0;"]
                rows += [f"  const {_TYPES[branch['type']]}* {word} = nullptr;  // {comment(branch['name'])}" for branch, word in members]
        for branch, word in zip(self.program["branches"], self.branch_words, strict=True):
            if branch["list"] is None:
                rows.append(f"  {_TYPES[branch['type']]} {word} = {{}};  // {comment(branch['name'])}")
        rows += [f"  float {word} = 0;  // {comment(self.groups[g].variables[k])}, given" for (g, k), word in self.given.items()]
        made = []
        for group, one in zip(self.groups, self.program["groups"], strict=True):
            n, names = len(group.variables), comment(", ".join(group.variables))
            if group.length is None:
                made.append(f"  float {group.pointer}[{n}];  // {names}")
                continue
            made += [f"  float {group.pointer}[{group.length * n}];  // [{group.counter}][{n}]: {names}", f"  int {group.counter};  // at most {group.length}"]
            if one["list"] is None:
                rows += [
                    f"  int {group.counter} = 0;",
                    f"  const float* {group.pointer} = nullptr;  // group {comment(group.name)}, given: [{group.counter}][{n}]",
                ]
        content = "\n".join(rows) or "  // nothing: there is no input"
        return (
            f"// What the framework has.\nstruct Branches {{\n{content}\n}};\n\n"
            "// What the network takes; constituents at index >= count are not set and not read.\nstruct Features {\n" + "\n".join(made) + "\n};\n"
        )

    def _tables(self) -> str:
        """What a program that reads golden_features.bin needs to know."""
        branches = [f"{{{string_literal(b['name'])}, sizeof({_TYPES[b['type']]}), {-1 if b['list'] is None else b['list']}}}" for b in self.program["branches"]]
        lists = [f"{{{string_literal(word)}, {'false' if 'where' in one else 'true'}}}" for word, one in zip(self.count_words, self.lists, strict=True)]
        derived = []
        for g, one in enumerate(self.groups):
            for k, name in enumerate(one.variables):
                derived.append(f"{{{string_literal(name)}, {g}, {k}, Origin::{self._origin(g, k)}}}")
        out = [
            "// By position, for whoever reads a file. list: -1 for one value per event; stored: a collection, not what a mask leaves of one.",
            "struct Branch {\n  const char* name;\n  std::size_t bytes;\n  int list;\n};",
            "struct List {\n  const char* name;\n  bool stored;\n};",
            "// How a variable comes about (the first lines of this file say it), and from the caller.",
            "enum class Origin { exact, libm, jumps, given };",
            "struct Derived {\n  const char* name;\n  int group;\n  int variable;\n  Origin origin;\n};",
            f"inline constexpr int n_branches = {len(branches)};",
            array("Branch", "branches", (max(len(branches), 1),), branches or ['{"", 0, -1}'], aligned=False),
            f"inline constexpr int n_lists = {len(lists)};",
            array("List", "lists", (max(len(lists), 1),), lists or ['{"", false}'], aligned=False),
            f"inline constexpr int n_derived = {len(derived)};",
            array("Derived", "derived_variables", (max(len(derived), 1),), derived or ['{"", 0, 0, Origin::given}'], aligned=False),
            f"inline constexpr int n_feature_groups = {len(self.groups)};",
            f"inline constexpr bool derives = {'true' if any(v is not None for one in self.program['groups'] for v in one['values']) else 'false'};",
            f"inline constexpr bool of_object = {'true' if self._object else 'false'};",
            f"inline constexpr int tolerance_ulp = {ULP};",
            f"inline constexpr int tolerance_jumps = {JUMPS};",
            f"inline constexpr double tolerance_relative = {math.ldexp(1, -RELATIVE).hex()};",
        ]
        return "\n".join(out) + "\n"

    def _derive(self) -> str:
        """The function that computes everything."""
        body: list[str] = []
        for k, (one, count) in enumerate(zip(self.lists, self.count_words, strict=True)):
            if "where" not in one:
                body.append(f"const int m{k} = b.{count} < 0 ? 0 : b.{count};")
                body.append(f"static_cast<void>(m{k});")
        for number, step in enumerate(self.steps):
            if number not in self.alive:
                continue
            if step["list"] is None:
                if step["op"] != "constant":
                    body += self._scalar(number, step)
            elif step["op"] in ("sort", "sort_desc"):
                body += self._sorted(number, step)
        for g, (_, length, variables, pointer, count) in enumerate(self.groups):
            values = self.program["groups"][g]["values"]
            if length is None:
                for k, value in enumerate(values):
                    source = f"b.{self.given[g, k]}" if value is None else self._as(value, "float32", {})
                    body.append(f"x.{pointer}[{k}] = {source};")
            elif self.program["groups"][g]["list"] is None:
                n = len(variables)
                body += [
                    f"x.{count} = b.{count} < 0 ? 0 : (b.{count} > {length} ? {length} : b.{count});",
                    f"for (int i = 0; i < x.{count} * {n}; ++i) x.{pointer}[i] = b.{pointer}[i];",
                ]
            else:
                body += self._constituents(values, self.program["groups"][g]["list"], length, pointer, count)
        object = "int object, " if self._object else ""
        said = "// The features of an event."
        if self._object:
            said = f"// The features of object number `object` of an event, 0 <= object < {self.count_words[self.program['object']]}."
        unused = "" if any("b." in line for line in body) else "  static_cast<void>(b);\n"
        unused += "  static_cast<void>(object);\n" if self._object else ""
        return f"{said}\nstatic inline void derive(const Branches& b, {object}Features& x) noexcept {{\n{unused}" + lines("\n".join(body), 2) + "\n}\n"

    def _type(self, number: int) -> str:
        return _TYPES[self.steps[number]["type"]]

    def _as(self, number: int, type: str, scope: Mapping[int, str]) -> str:
        """The value of a step in a type; a constant is written out."""
        step = self.steps[number]
        if step["op"] == "constant":
            return _literal(step["value"], type)
        word = scope.get(number, f"s{number}")
        return word if step["type"] == type else f"static_cast<{_TYPES[type]}>({word})"

    def _call(self, step: Mapping[str, Any], scope: Mapping[int, str]) -> str:
        op, types = step["op"], step["as"]
        values = [self._as(source, type, scope) for source, type in zip(step["of"], types, strict=True)]
        if op == "where":
            return f"derived::where<{_TYPES[types[0]]}, {_TYPES[types[1]]}>({', '.join(values)})"
        if op not in _ELEMENTWISE:
            raise ValueError(f"operation {op}")
        return f"derived::{op}<{_TYPES[types[0]]}>({', '.join(values)})"

    def _scalar(self, number: int, step: Mapping[str, Any]) -> list[str]:
        op, word, type = step["op"], f"s{number}", self._type(number)
        if op == "branch":
            return [f"const {type} {word} = b.{self.branch_words[step['branch']]};"]
        if op == "count":
            own = step["over"]
            if "where" not in self.lists[own]:
                return [f"const {type} {word} = m{own};"]
            return [f"{type} {word} = 0;", *self._loop(own, [], lambda _: [f"++{word};"])]
        source = step["of"][0]
        own = self.steps[source]["list"]
        if op == "object":
            inside, scope = self._elements([source], own, {}, at="object")
            return [f"{type} {word};", "{", *lines("\n".join([*inside, f"{word} = {scope[source]};"]), 2).splitlines(), "}"]
        if op == "nth":
            k, default = int(step["k"]), _literal(step["default"], step["type"])
            out = [f"{type} {word} = {default};"]
            if "where" not in self.lists[own]:
                inside, scope = self._elements([source], own, {}, at=str(k))
                return [*out, f"if (m{own} > {k}) {{", *_in([*inside, f"{word} = {self._as(source, step['type'], scope)};"]), "}"]
            inner = lambda scope: [f"if ({self._position(own)} == {k}) {word} = {self._as(source, step['type'], scope)};"]  # noqa: E731
            return [*out, *self._loop(own, [source], inner)]
        if op == "sum":
            kind = _TYPES[step["as"][0]]
            inner = lambda scope: [f"{word} = derived::add<{kind}>({word}, {self._as(source, step['as'][0], scope)});"]  # noqa: E731
            return [f"{type} {word} = 0;", *self._loop(own, [source], inner)]
        if op in ("any", "all"):
            kind, sign = _TYPES[step["as"][0]], "" if op == "any" else "!"
            value = "true" if op == "any" else "false"
            inner = lambda scope: [f"if ({sign}derived::truth<{kind}>({self._as(source, step['as'][0], scope)})) {word} = {value};"]  # noqa: E731
            return [f"bool {word} = {'false' if op == 'any' else 'true'};", *self._loop(own, [source], inner)]
        if op in ("min", "max"):
            kind = _TYPES[step["as"][0]]
            first, sign = ("highest", "<") if op == "min" else ("lowest", ">")
            body = lambda scope: [f"some{number} = true;", f"if ({scope[source]} {sign} best{number}) best{number} = {scope[source]};"]  # noqa: E731
            return [
                f"bool some{number} = false;",
                f"{kind} best{number} = derived::{first}<{kind}>();",
                *self._loop(own, [source], body),
                f"const {type} {word} = some{number} ? static_cast<{type}>(best{number}) : {_literal(step['default'], step['type'])};",
            ]
        return [f"const {type} {word} = {self._call(step, {})};"]

    def _sorted(self, number: int, step: Mapping[str, Any]) -> list[str]:
        type, source, most = self._type(number), step["of"][0], int(step["most"])
        if not 0 < most <= 1 << 20:
            raise ValueError(f"step {number}")
        down = "true" if step["op"] == "sort_desc" else "false"
        inner = lambda scope: [f"derived::insert<{down}>(kept{number}, n_kept{number}, {scope[source]});"]  # noqa: E731
        return [f"{type} kept{number}[{most}] = {{}};", f"std::size_t n_kept{number} = 0;", *self._loop(step["list"], [source], inner)]

    def _constituents(self, values: Sequence[int], own: int, length: int, pointer: str, count: str) -> list[str]:
        n = len(values)

        def inner(scope: Mapping[int, str]) -> list[str]:
            place = self._position(own)
            rows = [f"x.{pointer}[{place} * {n} + {k}] = {self._as(value, 'float32', scope)};" for k, value in enumerate(values)]
            return [*rows, f"x.{count} = {place} + 1;"]

        return [f"x.{count} = 0;", *self._loop(own, values, inner, most=length)]

    # loops ------------------------------------------------------------------------------------------------------------------------------------------------

    def _chain(self, own: int) -> list[int]:
        """A list and those that masks cut it from, the collection first."""
        found = [own]
        while "where" in self.lists[found[0]]:
            found.insert(0, self.lists[found[0]]["of"])
        return found

    def _position(self, own: int) -> str:
        return f"p{own}" if "where" in self.lists[own] else "j"

    def _loop(self, own: int, wanted: Sequence[int], inner: Callable[[Mapping[int, str]], list[str]], most: int | None = None) -> list[str]:
        """A loop over the elements of a list in their order, the first `most` of them, with the values of the steps `wanted` of each."""
        chain = self._chain(own)
        body: list[str] = []
        scope: dict[int, str] = {}
        counted = chain[1:]
        for number in counted:
            mask = self.lists[number]["where"]
            more, scope = self._elements([mask], number, scope)
            # Positions in the list that is cut go on whether an element stays or not.
            body += [*more, f"if (!{scope[mask]}) continue;", f"const int p{number} = next{number}++;", f"static_cast<void>(p{number});"]
        if most is not None:
            body.append(f"if ({self._position(own)} == {most}) break;")
        more, scope = self._elements(wanted, own, scope)
        body += [*more, *inner(scope)]
        head = [f"int next{number} = 0;" for number in counted]
        looped = [*head, f"for (int j = 0; j < m{chain[0]}; ++j) {{", *_in(body), "}"]
        return ["{", *_in(looped), "}"] if head else looped

    def _elements(self, wanted: Sequence[int], own: int, scope: Mapping[int, str], at: str | None = None) -> tuple[list[str], dict[int, str]]:
        """Statements that compute steps for one element (`at` a position, or that of the loop), and the words of the values known after them."""
        known, out = dict(scope), [] if at is None else [f"const int j = {at};", "static_cast<void>(j);"]

        def need(number: int) -> None:
            step = self.steps[number]
            if number in known or step["list"] is None:
                return
            op, type = step["op"], self._type(number)
            if op in ("sort", "sort_desc"):
                known[number] = f"kept{number}[{self._position(step['list'])}]"
                return
            if op == "filter":
                need(step["of"][0])
                known[number] = known[step["of"][0]]
                return
            if op == "branch":
                value = f"b.{self.branch_words[step['branch']]}[{self._position(step['list'])}]"
            else:
                for source in step["of"]:
                    need(source)
                value = self._call(step, known)
            out.append(f"const {type} e{number} = {value};")
            known[number] = f"e{number}"

        for number in wanted:
            need(number)
        return out, known

    # by position --------------------------------------------------------------------------------------------------------------------------------------------

    def _gather(self) -> str:
        """`Branches` and `Features` by position."""
        body = []
        for k, (branch, word) in enumerate(zip(self.program["branches"], self.branch_words, strict=True)):
            pointer = f"static_cast<const {_TYPES[branch['type']]}*>(branch[{k}])"
            body.append(f"b.{word} = {'*' if branch['list'] is None else ''}{pointer};")
        body += [f"b.{count} = counts[{k}];" for k, (one, count) in enumerate(zip(self.lists, self.count_words, strict=True)) if "where" not in one]
        unused = [f"static_cast<void>({name});" for name in ("branch", "counts") if not any(f"{name}[" in line for line in body)]
        views = []
        for g, one in enumerate(self.groups):
            views += [f"values[{g}] = x.{one.pointer};", f"counts[{g}] = {f'x.{one.counter}' if one.counter else '0'};"]
        return (
            "// branch[k] points to the value or the list of `branches[k]`; counts[l] is the number of elements of `lists[l]`.\n"
            "static inline Branches gather(const void* const* branch, const std::int32_t* counts) noexcept {\n  Branches b;\n"
            + lines("\n".join([*unused, *body, "return b;"]), 2)
            + "\n}\n\n// The groups by position, as net::evaluate_groups takes them.\n"
            "static inline void view(const Features& x, const float** values, std::int32_t* counts) noexcept {\n" + lines("\n".join(views), 2) + "\n}\n"
        )


def _in(text: Sequence[str]) -> list[str]:
    return ["  " + line for line in text]


def _distinct(names: Sequence[str], taken: Sequence[str] | frozenset[str]) -> list[str]:
    """An identifier for each name, also where two names are the same."""
    made: list[str] = []
    for name in names:
        made.append(identifiers([name], [*taken, *made])[name])
    return made


def _literal(value: Any, type: str) -> str:
    """A constant in a type."""
    kind = _TYPES[type]
    if type == "bool":
        return "true" if value else "false"
    if type.startswith("float"):
        number = float(value)
        if math.isnan(number):
            return f"std::numeric_limits<{kind}>::quiet_NaN()"
        if math.isinf(number):
            return f"{'-' if number < 0 else ''}std::numeric_limits<{kind}>::infinity()"
        return number.hex() if type == "float64" else f"{float(np.float32(number)).hex()}f"
    number = int(value)
    if type == "uint64":
        return f"std::uint64_t{{{number}ULL}}"
    return f"static_cast<{kind}>({int_literal(number)})"

"""The C interface to hls4ml's firmware, and the emulator of CMS Level-1: text from a graph and the ports of the top function."""

from __future__ import annotations

import numpy as np

from hlt_train.exporters._cpp_text import comment, int_literal
from hlt_train.exporters._hls4ml_project import Port, Project
from hlt_train.graph import Graph

__all__ = ["c_interface", "emulator", "makefile"]


def _table(name: str, values: np.ndarray) -> str:
    return f"constexpr int {name}[{len(values)}] = {{{', '.join(int_literal(int(v)) for v in values)}}};"


def _exponents(graph: Graph, name: str) -> np.ndarray:
    f = graph.structure[name].f
    assert f is not None
    return f


def c_interface(graph: Graph, project: Project, name: str, masked: list[str]) -> str:
    """net_c.cpp: integers of the input step in, integer logits out. `masked`: groups that have a mask, in the order of the top function."""
    tables, fills, ports = [], [], list(project.inputs)
    for g, node in enumerate(graph.inputs):
        port = ports[g]
        tables.append(f"{_table(f'shift{g}', port.type.f - _exponents(graph, node.name))}  // {comment(node.group)}")
        n = len(node.variables)
        fills.append(f"    for (int i = 0; i < {port.size}; ++i) in{g}[i] = from_integer<{port.cpp}>(x[{g}][k * {port.size} + i], shift{g}[i % {n}]);")
    for m, group in enumerate(masked):
        g = next(index for index, node in enumerate(graph.inputs) if node.group == group)
        port = ports[len(graph.inputs) + m]
        fills.append(f"    for (int i = 0; i < {port.size}; ++i) in{len(graph.inputs) + m}[i] = i < count[{g}][k] ? 1 : 0;  // valid: {comment(group)}")
    out = project.output
    tables.append(_table("shift_out", out.type.f - _exponents(graph, graph.output.name)))
    declare = [f"  {port.cpp} in{g}[{port.size}];" for g, port in enumerate(ports)]
    arguments = ", ".join([*(f"in{g}" for g in range(len(ports))), "out"])
    function = f"{project.namespace}::{name}" if project.namespace else f"::{name}"
    using = f"using namespace {project.namespace};\n" if project.namespace else ""
    return f"""// A C interface to the network in firmware/: integers of the input step in, integer logits out.
//
//   c++ -std=c++17 -O2 -shared -fPIC -w -Ifirmware/ap_types net_c.cpp -o libnet.so
#include <cstdint>

#include "firmware/{name}.cpp"

{using}
namespace {{

// value = n * 2**-f: the integer n at the exponent of its variable becomes the bits of the array's type, {"{"}shift{"}"} places to the left.
template <class T> T from_integer(std::int64_t n, int shift) {{
  T value;
  value.V = static_cast<std::int64_t>(static_cast<std::uint64_t>(n) << shift);
  return value;
}}

template <class T> std::int64_t to_integer(const T& value, int shift) {{
  return static_cast<std::int64_t>(value.V.to_int64()) >> shift;
}}

{chr(10).join(tables)}

}}  // namespace

// x[g]: [n, variables] or [n, length, variables] of group g; count[g]: [n], read for constituents only; logits: [n, {out.size}].
extern "C" void net_evaluate(const std::int64_t* const* x, const std::int32_t* const* count, std::int64_t n, std::int64_t* logits) {{
{chr(10).join(declare)}
  {out.cpp} out[{out.size}];
  (void)count;
  for (std::int64_t k = 0; k < n; ++k) {{
{chr(10).join(fills)}
    {function}({arguments});
    for (int o = 0; o < {out.size}; ++o) logits[k * {out.size} + o] = to_integer(out[o], shift_out[o]);
  }}
}}
"""


def _arguments(ports: tuple[Port, ...]) -> str:
    return ", ".join(f"in{g}_" for g in range(len(ports)))


def emulator(project: Project, name: str) -> str:
    """The class that CMS's emulator loads. One input: a pointer to its first element; several: a std::tuple of such pointers."""
    ports, out = project.inputs, project.output
    types = [f"{port.type.cpp}*" for port in ports]
    handed = types[0] if len(ports) == 1 else f"std::tuple<{', '.join(types)}>"
    copies = []
    for g, port in enumerate(ports):
        source = "given" if len(ports) == 1 else f"std::get<{g}>(given)"
        copies.append(f"    std::copy_n({source}, {port.size}, in{g}_);")
    members = [f"  {port.type.cpp} in{g}_[{port.size}] = {{}};" for g, port in enumerate(ports)]
    checks = [f'static_assert(std::is_same_v<{project.namespace}::{p.cpp}, {p.type.cpp}>, "the input type is part of the interface");' for p in ports]
    return f"""// The network as an emulator of the CMS Level-1 trigger: {name}.so, loaded by hls4mlEmulator::ModelLoader.
//
//   prepare_input takes a {handed}, exactly: pointers to the first elements{" (" + ", ".join(str(p.size) for p in ports) + ")"}.
//   read_result takes a {out.type.cpp}*, exactly: a pointer to the first of {out.size} elements.
#include <algorithm>
#include <any>
#include <tuple>
#include <type_traits>

#include "../firmware/{name}.h"
#include "hls4ml/emulator.h"

namespace {{

{chr(10).join(checks)}
static_assert(std::is_same_v<{project.namespace}::{out.cpp}, {out.type.cpp}>, "the result type is part of the interface");

class {name}_emulator final : public hls4mlEmulator::Model {{
 public:
  void prepare_input(std::any input) override {{
    const auto given = std::any_cast<{handed}>(input);
{chr(10).join(copies)}
  }}

  void predict() override {{ {project.namespace}::{name}({_arguments(ports)}, out_); }}

  void read_result(std::any result) override {{ std::copy_n(out_, {out.size}, std::any_cast<{out.type.cpp}*>(result)); }}

 private:
{chr(10).join(members)}
  {out.type.cpp} out_[{out.size}] = {{}};
}};

}}  // namespace

extern "C" hls4mlEmulator::Model* create_model() {{ return new {name}_emulator; }}

extern "C" void destroy_model(hls4mlEmulator::Model* model) {{ delete model; }}
"""


def makefile(name: str) -> str:
    """Builds `<name>.so`; EMULATOR_EXTRAS is where hls4ml/emulator.h lies, AP_TYPES where ap_fixed.h does."""
    return f"""# make EMULATOR_EXTRAS=/path/to/hls4mlEmulatorExtras/include [AP_TYPES=/path/to/ap_types]
CXX ?= g++
CXXFLAGS ?= -O3
AP_TYPES ?= ../firmware/ap_types
EMULATOR_EXTRAS ?= $(error set EMULATOR_EXTRAS to the folder that holds hls4ml/emulator.h)

{name}.so: emulator.cpp ../firmware/{name}.cpp
	$(CXX) -std=c++17 -fPIC -shared -w $(CXXFLAGS) -I$(EMULATOR_EXTRAS) -I$(AP_TYPES) $^ -o $@

.PHONY: clean
clean:
	rm -f {name}.so
"""

"""Many graphs in one shared library, each in its own namespace: one compilation per set of flags."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from hlt_train.exporters._compiler import compile_cpp, find_compiler
from hlt_train.exporters._cpp_header import header
from hlt_train.exporters._cpp_library import Library
from hlt_train.exporters._cpp_plan import Plan
from hlt_train.exporters._templates import template
from hlt_train.graph import Graph

WARNINGS = ("-Wall", "-Wextra", "-Wconversion", "-Wpedantic")


def libraries(directory: Path, graphs: Sequence[Graph], flags: Sequence[str]) -> list[Library]:
    """Write, compile with every warning an error, load."""
    units = []
    for k, graph in enumerate(graphs):
        (directory / f"g{k}.hpp").write_text(header(Plan(graph), f"g{k}"))
        units.append(re.sub(r"\bnet_(?!c\.h)", f"g{k}_", template("net_c.cpp").replace("net.hpp", f"g{k}.hpp").replace("net::", f"g{k}::")))
    for name in ("timing.hpp", "net_c.h"):
        (directory / name).write_text(template(name))
    (directory / "all.cpp").write_text("".join(units))
    said = compile_cpp(find_compiler(), [directory / "all.cpp"], directory / "all.so", [*flags, *WARNINGS, "-Werror", "-shared", "-fPIC"])
    assert said == ""
    return [Library(directory / "all.so", f"g{k}") for k in range(len(graphs))]


def available(library: Library) -> list[str]:
    """The paths that this processor has; the plain one is always among them."""
    found = [name for name, there in library.paths.items() if there]
    assert found[0] == "plain"
    return found

"""Target `cpp`: one self-contained C++17 header, a C interface to it, and a program that checks golden vectors and times itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hlt_train import files
from hlt_train.exporters import Exporter
from hlt_train.exporters._compiler import find_compiler, version
from hlt_train.exporters._cpp_features import features_header
from hlt_train.exporters._cpp_header import header
from hlt_train.exporters._cpp_library import build
from hlt_train.exporters._cpp_plan import Plan
from hlt_train.exporters._cpp_points import working_points_header
from hlt_train.exporters._templates import template
from hlt_train.graph import Graph
from hlt_train.types import Features

__all__ = ["cpp"]

_TEMPLATES = {
    "net_c.h": "net_c.h",
    "net_c.cpp": "net_c.cpp",
    "CMakeLists.txt": "CMakeLists.txt",
    "timing.hpp": "timing.hpp",
    "main.cpp": "main.cpp",
    "selftest.py": "selftest_cpp.py",
}
_ARTEFACTS = ("net.hpp", "features.hpp", "working_points.hpp", *_TEMPLATES)
_NAMESPACE = "net"
_TIMED = 1000  # distinct events


def cpp(*, compiler: str = "") -> Exporter:
    """One self-contained C++17 header: exact in integers, input step inside, no dependency.

    Args:
        compiler: the command that compiles the artefact on this machine; "" takes CXX, c++, g++, clang++, or the ziglang package.
    """

    def write(graph: Graph, directory: Path) -> dict[str, Any]:
        plan = Plan(graph)
        files.write_text(directory / "net.hpp", header(plan, _NAMESPACE))
        for name, source in _TEMPLATES.items():
            files.write_text(directory / name, template(source))
        _features([(node.group, node.length, node.variables) for node in plan.inputs], None, directory)
        complete(directory)
        words = find_compiler(compiler)
        facts = {"target": "cpp", "bit_exact": plan.exact, "starts_at": "float", "compiler": version(words)}
        if plan.minifloats:
            facts["vector_paths"] = f"none: '{plan.minifloats[0]}' rounds to a minifloat, which the plain path alone does"
        return facts

    def complete(directory: Path) -> None:
        path = directory / "working_points.json"
        points = files.read_document(path, "hlt-train/working-points", 1)["points"] if path.exists() else []
        files.write_text(directory / "working_points.hpp", working_points_header(points, _NAMESPACE))

        if (directory / "features.json").exists():
            document = files.read_document(directory / "features.json", "hlt-train/features", 2)
            groups = [(g["name"], g["length"], [v["name"] for v in g["variables"]]) for g in document["groups"]]
            _features(groups, document.get("program"), directory)

    def load(directory: Path) -> Any:
        return build(directory, find_compiler(compiler)).evaluate

    def latency(directory: Path, x: Features) -> dict[str, Any]:
        words = find_compiler(compiler)
        library = build(directory, words)
        some = x.take(slice(_TIMED))
        times = library.time(some)
        others = [name for name, available in library.paths.items() if available and name != library.path]
        return {
            "median_ns": times["chain_median"],
            "p99_ns": times["chain_p99"],
            "cold_p50_ns": times["cold_median"],
            **{f"{name}_ns": times[name] for name in ("single_median", "single_p99", "cold_p99", "clock")},
            "blocks": int(times["blocks"]),
            "calls": int(times["calls"]),
            "method": "mean of a block of dependent calls; median and 99th percentile over blocks",
            "compiler": version(words),
            "flags": "-std=c++17 -O2",
            "isa": library.path,
            "path_median_ns": {library.path: times["chain_median"], **{name: library.time(some, name)["chain_median"] for name in others}},
            # The selftest compares every path that the processor has.
            "paths": {name: "compared" if available else "not run" for name, available in library.paths.items()},
        }

    return Exporter(write, load, latency, _ARTEFACTS, complete, local=("compiler",), derives=True)


def _features(groups: Sequence[tuple[str, int | None, Sequence[str]]], program: Any, directory: Path) -> None:
    """Write features.hpp."""
    files.write_text(directory / "features.hpp", features_header(groups, program, _NAMESPACE))

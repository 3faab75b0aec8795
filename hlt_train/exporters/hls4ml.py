"""Target `hls4ml`: a Vitis or Vivado HLS project whose compiled fixed-point emulator gives the golden integers; optionally the emulator of CMS Level-1.

The project starts at the integers of the input step (`docs/numbers.md`, section 2). See `docs/fpga.md` for the way from the files to a device.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from hlt_train import files
from hlt_train.errors import RunFailed, UsageError, nearest
from hlt_train.exporters import Exporter, _hls4ml_run
from hlt_train.exporters._compiler import find_compiler, version
from hlt_train.exporters._convolutions import masked_groups
from hlt_train.exporters._cpp_text import identifiers
from hlt_train.exporters._grid import Evaluate, input_integers, only_exact, read_graph, timed, write_graph
from hlt_train.exporters._hls4ml_bridge import c_interface, emulator, makefile
from hlt_train.exporters._hls4ml_layers import Layers
from hlt_train.exporters._hls4ml_project import BACKENDS, Project, write_project
from hlt_train.exporters._hls4ml_testbench import write_testbench
from hlt_train.exporters._templates import selftest, source
from hlt_train.graph import Graph
from hlt_train.types import Features

__all__ = ["hls4ml"]

_INTERFACE = ("hlt-train/hls4ml-interface", 1)
_CALLS = 1000


def hls4ml(
    *,
    backend: str = "vitis",
    part: str = "xcvu13p-flga2577-2-e",
    clock_ns: float = 5.0,
    name: str = "net",
    emulator: bool = False,
    compiler: str = "",
) -> Exporter:
    """HLS project of hls4ml, compared by its compiled emulator; starts at the integers of the input step.

    Args:
        backend: vitis or vivado.
        part: the device that the project names.
        clock_ns: clock period in nanoseconds.
        name: of the top function.
        emulator: write the wrapper of the CMS Level-1 emulator too; the top function is then in the namespace hls4ml_<name>.
        compiler: the command that compiles the emulator on this machine; "" takes CXX, c++, g++, clang++, or the ziglang package.
    """
    if backend not in BACKENDS:
        raise UsageError(f"no backend is called '{backend}'", near=nearest(backend, BACKENDS) or tuple(BACKENDS), then=f"one of: {', '.join(BACKENDS)}")
    if identifiers([name], ["net_c"])[name] != name:
        raise UsageError(f"'{name}' is no name of a C++ function", near=(identifiers([name], ["net_c"])[name],))
    if clock_ns <= 0:
        raise UsageError(f"clock_ns must be positive, got {clock_ns}")

    def write(graph: Graph, directory: Path) -> dict[str, Any]:
        words = find_compiler(compiler)
        only_exact(graph, "hls4ml")
        layers = Layers(graph)
        project = write_project(layers, directory, name, backend=backend, part=part, clock_ns=clock_ns, namespace=f"hls4ml_{name}" if emulator else "")
        _write_interface(graph, project, directory, name, emulator=emulator)
        return {
            "target": "hls4ml",
            "bit_exact": True,
            "starts_at": "grid",
            "hls4ml": project.version,
            "backend": backend,
            "part": part,
            "clock_ns": clock_ns,
            "synthesised": False,
            "input_types": {port.cpp: str(port.type) for port in project.inputs},
            "output_type": str(project.output.type),
            "compiler": version(words),
        }

    def load(directory: Path) -> Any:
        graph, evaluate = _open(directory, compiler)
        return lambda x: evaluate(input_integers(graph, x), x.counts)

    def latency(directory: Path, x: Features) -> dict[str, Any]:
        graph, evaluate = _open(directory, compiler)
        return {
            **timed(graph, evaluate, x, calls=_CALLS),
            "method": "single calls of the compiled fixed-point emulator through its C interface from Python, batch 1; no latency of a device",
            "compiler": version(find_compiler(compiler)),
            "flags": " ".join(_hls4ml_run.FLAGS),
        }

    own: tuple[str, ...] = ("interface.json", "net_c.cpp", "run.py", "selftest.py")
    theirs: tuple[str, ...] = (
        "build_lib.sh",
        "build_opt.tcl",
        "build_prj.tcl",
        "hls4ml_config.yml",
        "project.tcl",
        "vivado_synth.tcl",
        f"{name}_bridge.cpp",
        f"{name}_test.cpp",
    )
    if backend == "vivado":
        theirs = tuple(file for file in theirs if file != "build_opt.tcl")
    artefacts = (*own, *theirs, "firmware/", "tb_data/", *(("emulator/",) if emulator else ()))
    return Exporter(write, load, latency, artefacts, write_testbench, local=("compiler",), data=("tb_data/",))


def _write_interface(graph: Graph, project: Project, directory: Path, name: str, *, emulator: bool) -> None:
    write_graph(graph, directory)
    masked = masked_groups(graph)
    groups = [{"name": node.group, "variables": list(node.variables), "length": node.length} for node in graph.inputs]
    arguments = [{"type": port.type.cpp, "size": port.size, "reads": what} for port, what in zip(project.inputs, _reads(graph, masked), strict=True)]
    content = {
        "top": f"{project.namespace}::{name}" if project.namespace else name,
        "groups": groups,
        "outputs": list(graph.output.names),
        "arguments": [*arguments, {"type": project.output.type.cpp, "size": project.output.size, "reads": "logits"}],
    }
    files.write_document(directory / "interface.json", *_INTERFACE, content)
    files.write_text(directory / "net_c.cpp", c_interface(graph, project, name, masked))
    files.write_text(directory / "run.py", source("_hls4ml_run.py"))
    files.write_text(directory / "selftest.py", selftest("selftest_grid.py"))
    if emulator:
        _write_emulator(project, directory / "emulator", name)


def _reads(graph: Graph, masked: list[str]) -> list[str]:
    return [*(node.group for node in graph.inputs), *(f"1 for each constituent of {group} below the count" for group in masked)]


def _write_emulator(project: Project, directory: Path, name: str) -> None:
    directory.mkdir()
    files.write_text(directory / "emulator.cpp", emulator(project, name))
    files.write_text(directory / "Makefile", makefile(name))


def _open(directory: Path, compiler: str) -> tuple[Graph, Evaluate]:
    if not (directory / "net_c.cpp").is_file():
        raise UsageError("this is not an export of the target hls4ml: net_c.cpp is missing", where=str(directory))
    read = [directory / "interface.json", directory / "net_c.cpp", *sorted(path for path in (directory / "firmware").rglob("*") if path.is_file())]
    key = "".join(f"{path.relative_to(directory)} {files.sha256(path)}\n" for path in read)
    try:
        return read_graph(directory), _compiled(key, directory, find_compiler(compiler))
    except RuntimeError as error:
        raise RunFailed(str(error), where=str(directory)) from error


@functools.lru_cache(maxsize=8)
def _compiled(key: str, directory: Path, words: tuple[str, ...]) -> Evaluate:
    """The emulator; `key` names every byte that it is compiled from, so that the same files are compiled once."""
    del key
    return _hls4ml_run.load(directory, words)

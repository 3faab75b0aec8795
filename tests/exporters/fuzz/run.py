"""Fuzz the C++ export, guided by coverage: `make fuzz`, or `python -m tests.exporters.fuzz.run --seconds 60 [--only NAME]`.

libFuzzer comes from the wheel of atheris (Apache-2.0), whose `asan_with_fuzzer.so` holds it together with the run-time libraries of AddressSanitizer and
UndefinedBehaviorSanitizer; the clang of the ziglang wheel compiles the export with their instrumentation. Nothing else is needed, and no Python runs meanwhile.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hlt_train.errors import UsageError
from hlt_train.exporters.cpp import cpp
from hlt_train.graph import Fixed, FloatAffine, Graph, Output, Pool, Quant, Requant, float_input_node, input_node
from tests import graphs

__all__ = ["STUDENTS", "Found", "compile_target", "fuzz", "runtime"]

TARGET = Path(__file__).with_name("target.cpp")
COMPILER = (sys.executable, "-m", "ziglang", "c++")
# zig's own driver drops -fsanitize=address, which its clang knows; and it would link a library of its own for undefined behaviour.
INSTRUMENTED = (
    *("-std=c++17", "-O1", "-g", "-fno-omit-frame-pointer", "-w"),
    *("-Xclang", "-fsanitize=address", "-fsanitize=undefined", "-fno-sanitize-recover=all"),
    "-fsanitize-coverage=inline-8bit-counters,pc-table,trace-cmp",
)
LARGEST = 4096  # bytes of an input


class Found(NamedTuple):
    """What a run says of itself.

    Attributes:
        executions: inputs that were run.
        first: edges covered by the corpus that it began with, or by the empty input.
        edges: edges covered at its end.
        counters: all edges of the program, those of functions that the target does not call and of the sanitizers' reports included.
        corpus: inputs kept because each reached something new.
        report: of a fault; "" if there is none.
    """

    executions: int
    first: int
    edges: int
    counters: int
    corpus: int
    report: str


def dense(*, collection: bool) -> Graph:
    """Layers of the kernels for wide registers: bytes and pairs, every rounding, a wrap, scalars or constituents."""
    rng = np.random.default_rng(4)
    affine = lambda name, source, n_in, n_out: graphs.affine(rng, name, source, n_in, n_out, bits=7)  # noqa: E731
    quants = {
        "q0": Quant(Fixed(False, 3, 5), "half_even", "sat"),
        "q1": Quant(Fixed(True, 5, 6), "half_up", "sat_sym"),
        "q2": Quant(Fixed(False, 1, 5), "floor", "wrap"),
    }
    length = 9 if collection else None
    nodes: list[Any] = [input_node("in", graphs.group(rng, "jets" if collection else "event", 7, length), Fixed(True, 3, 4))]
    nodes += [affine("d0", "in", 7, 20), Requant("q0", ("d0",), quants["q0"]), affine("d1", "q0", 20, 18), Requant("q1", ("d1",), quants["q1"])]
    source = "q1"
    if collection:
        nodes.append(Pool("pool", ("q1",), "sum", "jets"))
        source = "pool"
    nodes += [affine("d2", source, 18, 12), Requant("q2", ("d2",), quants["q2"]), affine("logits", "q2", 12, 3)]
    return Graph((*nodes, Output("out", ("logits",), ("a", "b", "c"), "none", np.array([1, 0, -1]))))


def float_chain() -> Graph:
    """A float network of scalars."""
    rng = np.random.default_rng(5)
    draw = lambda *shape: rng.normal(0, 0.6, shape).astype(np.float32)  # noqa: E731
    nodes = (
        float_input_node("in", graphs.group(rng, "event", 6)),
        FloatAffine("dense", ("in",), draw(6, 9), draw(9), "silu"),
        FloatAffine("logits", ("dense",), draw(9, 2), draw(2), "none"),
        Output("out", ("logits",), ("a", "b"), "softmax"),
    )
    return Graph(nodes)


STUDENTS: dict[str, Callable[[], Graph]] = {
    "mlp": lambda: dense(collection=False),
    "deepsets": lambda: dense(collection=True),
    "deepsets mean": lambda: graphs.deepsets(8, kind="mean"),
    "float mlp": float_chain,
    "float deepsets": lambda: graphs.float_mlp(2),
}


def runtime() -> Path:
    """The library of libFuzzer and the sanitizers."""
    missing = UsageError("libFuzzer is taken from the package atheris, which is not installed", then="pip install 'atheris>=3'")
    if importlib.util.find_spec("ziglang") is None:
        raise UsageError("the fuzzer is compiled by the package ziglang, which is not installed", then="pip install ziglang")
    try:
        files = importlib.metadata.files("atheris") or []
    except importlib.metadata.PackageNotFoundError as error:
        raise missing from error
    found = [Path(str(file.locate())) for file in files if file.name == "asan_with_fuzzer.so"]
    if not found:
        raise missing
    return found[0]


def _typed(graph: Graph) -> str:
    """The arguments of `net::evaluate` for one event, before the logits."""
    parts = []
    for g, node in enumerate(graph.inputs):
        parts += [f"at[{g}]"] + ([f"counts[{g}]"] if node.length is not None else [])
    return ", ".join(parts)


def compile_target(graph: Graph, directory: Path, *definitions: str, change: Callable[[Path], None] = lambda header: None) -> Path:
    """The export of a graph in `directory`, compiled with the target under both sanitizers; the program. `change` edits the header before."""
    library = runtime()
    cpp().write(graph, directory)
    change(directory / "net.hpp")
    program = directory / "fuzz"
    source = ["-I", str(directory), f"-DTYPED={_typed(graph)}", *definitions, "-c", str(TARGET), "-o", str(directory / "fuzz.o")]
    link = [str(directory / "fuzz.o"), str(library), f"-Wl,-rpath,{library.parent}", "-fno-sanitize=all", "-o", str(program)]
    for arguments in ([*INSTRUMENTED, *source], link):
        done = subprocess.run([*COMPILER, *arguments], cwd=directory, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return program


def fuzz(program: Path, corpus: Path, *options: str) -> Found:
    """One run of libFuzzer; `corpus` is read and added to."""
    corpus.mkdir(exist_ok=True)
    guided = "-use_value_profile=1"  # the header hardly branches: how near a comparison comes to being true says more than which edge was taken
    always = [guided, f"-max_len={LARGEST}", "-print_final_stats=1", "-timeout=20", f"-artifact_prefix={corpus.parent}/"]
    command = [str(program), str(corpus), *always, *options]
    done = subprocess.run(command, cwd=corpus.parent, capture_output=True, text=True, errors="replace", check=False)
    said = done.stderr
    edges = [int(v) for v in re.findall(r"\bcov: (\d+)", said)]
    executions = re.search(r"stat::number_of_executed_units: (\d+)", said)
    size = re.search(r"\((\d+) inline 8-bit counters\)", said)
    assert edges, said[-3000:]
    assert executions is not None, said[-3000:]
    assert size is not None, said[-3000:]
    return Found(int(executions[1]), edges[0], edges[-1], int(size[1]), len(list(corpus.iterdir())), "" if done.returncode == 0 else said[-6000:])


def main() -> int:
    """Fuzz every student for the same time; exit code 1 at the first fault."""
    parser = argparse.ArgumentParser(description="Fuzz the C++ export with libFuzzer under address and undefined-behaviour sanitizers.")
    parser.add_argument("--seconds", type=int, default=60, help="per student (default 60)")
    parser.add_argument("--only", choices=list(STUDENTS), help="one student")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="a folder for the corpus and the inputs that make faults; read again by the next run")
    arguments = parser.parse_args()
    try:
        runtime()
    except UsageError as error:
        sys.exit(str(error))
    for name in [arguments.only] if arguments.only else STUDENTS:
        with tempfile.TemporaryDirectory() as scratch:
            kept = Path(scratch) if arguments.keep is None else arguments.keep / name.replace(" ", "-")
            kept.mkdir(parents=True, exist_ok=True)
            build = Path(scratch) / "build"
            build.mkdir()
            program = compile_target(STUDENTS[name](), build)
            found = fuzz(program, kept.resolve() / "corpus", f"-max_total_time={arguments.seconds}", f"-seed={arguments.seed}")
        print(json.dumps({"student": name, "seconds": arguments.seconds, **found._asdict()}), flush=True)
        if found.report:
            print(found.report, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

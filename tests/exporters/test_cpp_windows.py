"""Convolutions in the C++ header: kernels that read windows where neighbours lie, rows that are carried from one loop to the next, and mistakes in either."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from hlt_train.exporters._compiler import compile_cpp, find_compiler
from hlt_train.exporters._cpp_header import header
from hlt_train.exporters._cpp_plan import Plan
from hlt_train.graph import Add, Affine, Concat, Fixed, Flatten, Graph, Node, Output, Pool, Quant, Requant, Window, evaluate, input_node
from hlt_train.vectors import vectors
from tests import graphs
from tests.exporters.cpp_nets import available, libraries
from tests.exporters.test_cpp_selftest import export, replace

BYTE = Quant(Fixed(False, 3, 5), "half_even", "sat")
SIGNED = Quant(Fixed(True, 2, 5), "half_even", "sat")
PAIR = Quant(Fixed(True, 5, 6), "half_up", "sat_sym")
X86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="these paths exist on x86-64 only")


def network(seed: int, quant: Quant, *, variables: int = 5, width: int = 16, length: int = 13, first: Fixed | None = None) -> Graph:
    """Convolution -> one with a residual -> one that strides -> a window of windows, pooled -> logits. Windows are read by kernels, by others, by both."""
    rng = np.random.default_rng(seed)

    def dense(name: str, source: str, n_in: int, n_out: int, *, relu: bool = True) -> Affine:
        w = rng.integers(-100, 101, (n_in, n_out))
        return Affine(name, (source,), w, rng.integers(-500, 500, n_out), np.full(n_out, 11, np.int64), relu)

    eight = Quant(Fixed(True, 2, 5), "half_even", "sat")
    nodes: list[Node] = [
        input_node("in", graphs.group(rng, "jets", variables, length), first or Fixed(True, 3, 4)),
        Window("near", ("in",), 3, 1, 1, 1, "jets"),
        dense("conv0", "near", 3 * variables, width),
        Requant("act0", ("conv0",), quant),
        Window("next", ("act0",), 3, 1, 1, 1, "jets"),
        dense("conv1", "next", 3 * width, width),
        Requant("act1", ("conv1",), quant),
        Add("residual", ("act0", "act1")),
        Requant("act2", ("residual",), quant),
        dense("one", "act2", width, width),
        Requant("act3", ("one",), quant),
        Window("wide", ("act3",), 4, 2, 1, 2, "jets"),
        dense("conv2", "wide", 4 * width, 9, relu=False),
        Requant("act4", ("conv2",), eight),
        Window("both", ("act4",), 2, 1, 0, 1, "jets"),
        dense("conv3", "both", 18, 9),
        Requant("act5", ("conv3",), eight),
        Pool("pool", ("act5",), "sum", "jets"),
        Pool("seen", ("both",), "max", "jets"),
        Window("again", ("both",), 2, 3, 1, 0, "jets"),
        Pool("mean", ("again",), "mean", "jets", eight),
        Flatten("flat", ("again",), "jets"),
        Concat("all", ("pool", "seen", "mean", "flat")),
    ]
    positions = ((length - 1) // 2) // 3 + 1
    nodes.append(dense("logits", "all", 63 + 36 * positions, 3, relu=False))
    return Graph((*nodes, Output("out", ("logits",), ("a", "b", "c"), "none", np.array([1, 0, -1]))))


def cases() -> dict[str, tuple[Graph, tuple[str, ...]]]:
    """A graph for each way of reading windows, and expressions that its header must match: otherwise the plain text would be compared with itself."""
    return {
        "bytes": (
            network(1, BYTE),
            (
                r"vnni256::dense<act1_rule_, P, 48, 16, 2, 16, 32>\(act0_bytes_all_ \+ first \* 16",
                r"dense<act4_rule_, P, 64, 16, 2, 32, 32>\(act3_all_ \+ \(first \* 2\) \* 16",
                r"positions\(n_jets, 6, 3\)",
                r"memcpy\(act0_rows_\[p\], act0_all_",
                "const auto& next = part<48>",
            ),
        ),
        "signed bytes": (network(3, SIGNED, width=64), (r"memset\(in_bytes_all_, 128", r"vnni512::dense<act1_rule_, P, 192, 64, \d, 64, 64>\(act0_bytes_all_")),
        "pairs": (
            network(4, PAIR, width=11, first=Fixed(True, 4, 8)),
            (r"madd256::dense<act1_rule_, P, 40, 16, 2, 11, 32>\(act0_all_", r"alignas\(64\) std::int16_t next\[40\] = \{\};"),
        ),
        "means": (graphs.convolution(4, kind="mean", stride=3), ()),
    }


@X86
def test_every_path_gives_the_golden_integers(tmp_path: Path) -> None:
    made = cases()
    for name, (graph, signs) in made.items():
        text = header(Plan(graph), "net")
        for sign in signs:
            assert re.search(sign, text), f"{name}: {sign} is not in the header"
    for k, ((name, (graph, _)), library) in enumerate(zip(made.items(), libraries(tmp_path, [graph for graph, _ in made.values()], ["-O1"]), strict=True)):
        x = vectors(graph, n=3000, seed=k).x
        expected = evaluate(graph, x)
        assert (np.ptp(expected, axis=0) > 0).any(), f"{name} is constant: this compares nothing"
        for path in available(library):
            np.testing.assert_array_equal(library.evaluate(x, path), expected, err_msg=f"{name}, path {path}")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("cpp") / "net", network(7, BYTE, width=20), n=1500)


def check(directory: Path, program: Path, flags: list[str]) -> subprocess.CompletedProcess[str]:
    """main.cpp compares every path with the golden vectors."""
    compile_cpp(find_compiler(), [directory / "main.cpp"], program, flags)
    return subprocess.run([program, "--no-time"], cwd=directory, capture_output=True, text=True, check=False)


MUTATIONS = {
    "a neighbour further": (r"(namespace avx2 .*?dense<[^;]*?act0_all_ \+ )first", r"\1 20 + first"),
    "a row further": (r"(namespace avx2 .*?memcpy\(act0_all_ \+ \(first \+ p \+ )(\d+)", r"\1 1 + \2"),
    "a position less": (r"(namespace avx2 .*?positions\(n_jets, 2, 7\))", r"\1 - 1"),
    "zeros that are none": (r"(namespace plain .*?)(act0_all_\[\d+\] = \{)", r"\1\2 1"),
}


@X86
@pytest.mark.parametrize("mutation", [pytest.param(name, marks=[] if k == 0 else [pytest.mark.slow]) for k, name in enumerate(MUTATIONS)])
def test_a_mistake_in_a_window_makes_its_path_fail(mutation: str, exported: Path, tmp_path: Path) -> None:
    copy = tmp_path / "net"
    shutil.copytree(exported, copy)
    pattern, by = MUTATIONS[mutation]
    replace(copy, pattern, by)
    path = re.search(r"namespace (\w+)", pattern)
    assert path
    done = check(copy, tmp_path / "check", ["-O1"])
    if f"{path[1]}(not run)" in done.stdout:
        pytest.skip(f"this processor lacks {path[1]}: not run")
    assert done.returncode == 1, done.stdout
    assert f"{path[1]}(differs)" in done.stdout
    assert done.stdout.count("(differs)") == 1


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["address", "undefined"])
def test_windows_are_clean_under_sanitizers(sanitizer: str, exported: Path, tmp_path: Path) -> None:
    others = [graphs.convolution(1), graphs.wild_windows(2), graphs.wild_windows(5)]
    for directory in (exported, *(export(tmp_path / str(k), graph, n=500) for k, graph in enumerate(others))):
        done = check(directory, tmp_path / "check", ["-O1", "-g", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"])
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_wild_windows_on_every_path(seed: int, tmp_path: Path) -> None:
    nets = [graphs.wild_windows(100 * seed + k) for k in range(12)]
    for k, (graph, library) in enumerate(zip(nets, libraries(tmp_path, nets, ["-O2"]), strict=True)):
        x = vectors(graph, n=2000, seed=k).x
        for path in available(library):
            np.testing.assert_array_equal(library.evaluate(x, path), evaluate(graph, x), err_msg=f"graph {k} of {seed}, path {path}")

"""The paths of the header for wide registers: their kernels, how one is chosen, and what flags and other translation units must not change."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cmake import CMAKE_BIN_DIR

from hlt_train.errors import RunFailed, UsageError
from hlt_train.exporters._compiler import compile_cpp, find_compiler
from hlt_train.exporters._cpp_header import header
from hlt_train.exporters._cpp_library import Library, build
from hlt_train.exporters._cpp_plan import Plan
from hlt_train.exporters.cpp import cpp
from hlt_train.graph import Add, Affine, Fixed, Graph, Node, Output, Pool, Quant, Requant, evaluate, input_node
from hlt_train.vectors import vectors
from tests import graphs
from tests.exporters.covering import Row, covering, graph_of
from tests.exporters.cpp_nets import WARNINGS, available, libraries
from tests.exporters.test_cpp_selftest import export, replace

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="these paths exist on x86-64 only")

ZIG = (sys.executable, "-m", "ziglang", "c++")
X86_PATHS = ["plain", "sse2", "avx2", "avx512", "vnni"]
PATHS = [*X86_PATHS, "neon"]
AARCH64 = (*ZIG, "-target", "aarch64-linux-musl")


def dense(rng: np.random.Generator, name: str, source: str, shape: tuple[int, int], *, top: int = 127, relu: bool = True) -> Affine:
    return Affine(name, (source,), rng.integers(-top, top + 1, shape), rng.integers(-500, 500, shape[1]), np.full(shape[1], 12), relu)


def chain(seed: int, quants: list[Quant], widths: tuple[int, ...], *, first: Fixed, top: int = 127, relu: bool = True) -> Graph:
    """Scalars of 19 variables -> Affine, Requant, ... -> three logits."""
    rng = np.random.default_rng(seed)
    nodes: list[Node] = [input_node("in", graphs.group(rng, "event", 19), first)]
    source, n = "in", 19
    for k, (quant, width) in enumerate(zip(quants, widths, strict=True)):
        nodes += [dense(rng, f"d{k}", source, (n, width), top=top, relu=relu), Requant(f"q{k}", (f"d{k}",), quant)]
        source, n = f"q{k}", width
    return finish(rng, nodes, source, n)


def finish(rng: np.random.Generator, nodes: list[Node], source: str, n: int) -> Graph:
    return Graph((*nodes, dense(rng, "logits", source, (n, 3), relu=False), Output("out", ("logits",), ("a", "b", "c"), "none", np.array([1, 0, -1]))))


def mixed(rng: np.random.Generator, n: int, *, signed: bool, over: str, round: str, width: int = 8, middle: int = 9, spread: int = 3) -> Quant:
    """One exponent per feature, shifts in both directions where `spread` is large."""
    f = rng.integers(middle - spread, middle + spread + 1, n).astype(np.int64)
    return Quant(Fixed(signed, width - int(signed) - f, f), round, over)  # type: ignore[arg-type]


def set_graph(
    seed: int, kind: str, *, quant: Quant, length: int = 11, variables: int = 5, widths: tuple[int, int] = (70, 33), first: Fixed | None = None
) -> Graph:
    """Constituents -> two layers with a residual and a node that no kernel has -> pool -> logits."""
    rng = np.random.default_rng(seed)
    nodes: list[Node] = [input_node("in", graphs.group(rng, "jets", variables, length), first or Fixed(True, 3, 4))]
    nodes += [dense(rng, "phi0", "in", (variables, widths[0])), Requant("act0", ("phi0",), quant)]
    nodes += [dense(rng, "phi1", "act0", widths), Requant("act1", ("phi1",), quant)]
    nodes += [dense(rng, "wide", "act1", (widths[1], widths[1]), top=2**20), Requant("act2", ("wide",), Quant(Fixed(True, 20, -12), "half_even", "sat"))]
    nodes += [Add("both", ("act1", "act2")), dense(rng, "phi2", "act1", (widths[1], widths[1]), relu=False)]
    nodes += [Requant("act3", ("phi2",), Quant(Fixed(True, 3, 4), "half_up", "sat_sym")), Add("all", ("both", "act3"))]
    of = Quant(Fixed(True, 6, 3), "half_even", "sat") if kind == "mean" else None
    nodes += [Pool("pool", ("act3",), kind, "jets", of), Pool("sum", ("all",), "sum", "jets")]  # type: ignore[arg-type]
    nodes += [
        Requant("pooled", ("pool",), Quant(Fixed(False, 7, 0), "half_even", "sat")),
        Requant("summed", ("sum",), Quant(Fixed(True, 9, -2), "floor", "wrap")),
    ]
    nodes += [Add("end", ("pooled", "summed"))]
    return finish(rng, nodes, "end", widths[1])


BYTE = Quant(Fixed(False, 3, 5), "half_even", "sat")
SIGNED = Quant(Fixed(True, 2, 5), "half_even", "sat")


def kernels() -> dict[str, tuple[Graph, tuple[str, ...]]]:
    """A graph for each kernel, and expressions that its header must match: otherwise the test would compare the plain text with itself."""
    rng = np.random.default_rng(0)
    byte, pair = Fixed(True, 3, 4), Fixed(True, 4, 8)
    return {
        "bytes of 512 bits": (chain(1, [BYTE, BYTE], (64, 128), first=byte), ("vnni512::dense<q1_rule_, 1, 64, 128, 4",)),
        "bytes of 256 bits": (chain(2, [BYTE, BYTE], (32, 90), first=byte), ("vnni256::dense<q0",)),
        "signed bytes": (chain(3, [SIGNED, SIGNED], (40, 64), first=byte, relu=False), ("offset = 128", "quantise_rows<128")),
        "pairs": (
            chain(4, [Quant(Fixed(True, 5, 6), "half_up", "sat_sym"), Quant(Fixed(False, 5, 7), "floor", "sat")], (33, 64), first=pair),
            ("vnni512::dense<q1",),
        ),
        "pairs of bytes proved": (
            chain(5, [BYTE, BYTE], (64, 40), first=byte, top=31),
            (r"namespace avx2 \{((?!namespace avx512).)*int8_t d1_w_", "madd256::dense<q1"),
        ),
        "one exponent per feature": (
            chain(
                6, [mixed(rng, 50, signed=False, over="sat", round="half_even"), mixed(rng, 64, signed=True, over="sat", round="half_up")], (50, 64), first=byte
            ),
            ("q0_shift_", "q0_odd_", "q1_shift_"),
        ),
        "shifts to the left": (
            chain(
                7, [mixed(rng, 34, signed=True, over="sat", round="half_even", width=16, middle=5, spread=9), BYTE], (34, 64), first=Fixed(True, 2, 1), top=3
            ),
            ("q0_left_", r"::left\(v"),
        ),
        "wrap": (
            chain(8, [mixed(rng, 47, signed=True, over="wrap", round="half_even"), Quant(Fixed(False, 1, 5), "half_up", "wrap")], (47, 64), first=byte),
            (r"::both\(madd256::add\(v",),
        ),
        **{
            f"{kind} of constituents": (set_graph(9 + k, kind, quant=BYTE), (f"{'max' if kind == 'max' else 'sum'}_rows<",))
            for k, kind in enumerate(("sum", "max", "mean"))
        },
        "mean": (set_graph(20, "mean", quant=SIGNED, length=6, widths=(16, 17)), ("madd256::mean<Round::half_even>",)),
        "pairs of constituents": (
            set_graph(21, "max", quant=Quant(Fixed(True, 5, 6), "floor", "sat"), variables=18, first=pair),
            ("vnni256::dense<act0_rule_, P, 24",),
        ),
        "one constituent": (set_graph(22, "sum", quant=BYTE, length=1, variables=16), ("quantise_rows<",)),
    }


def test_every_kernel_gives_the_golden_integers(tmp_path: Path) -> None:
    cases = kernels()
    for name, (graph, signs) in cases.items():
        text = header(Plan(graph), "net")
        for sign in signs:
            assert re.search(sign, text, re.DOTALL), f"{name}: {sign} is not in the header"
    made = libraries(tmp_path, [graph for graph, _ in cases.values()], ["-O1"])
    for k, ((name, (graph, _)), library) in enumerate(zip(cases.items(), made, strict=True)):
        x = vectors(graph, n=3000, seed=k).x
        expected = evaluate(graph, x)
        assert (np.ptp(expected, axis=0) > 0).any(), f"{name} is constant: this compares nothing"
        for path in available(library):
            np.testing.assert_array_equal(library.evaluate(x, path), expected, err_msg=f"{name}, path {path}")
        rows = [evaluate(graph, graphs.features(graph, n, n)) for n in (1, 2, 5)]
        for n, wanted in zip((1, 2, 5), rows, strict=True):  # batches of a few events
            np.testing.assert_array_equal(library.evaluate(graphs.features(graph, n, n)), wanted)


def test_packs_of_which_a_plain_loop_reads_the_first_half(tmp_path: Path) -> None:
    """Eight features and an addition that the compiler vectorises: g++ 12.2 at -O2 packed other lanes here where it knew AVX-512."""
    graph = graph_of(Row("half_up", "wrap", "signed", "per tensor", "power of two", "residual"))
    (library,) = libraries(tmp_path, [graph], ["-O2"])
    x = vectors(graph, n=3000).x
    for path in available(library):
        np.testing.assert_array_equal(library.evaluate(x, path), evaluate(graph, x), err_msg=path)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("-O2", "-march=native"), ("-O3",), ("-O3", "-march=native")], ids=" ".join)
def test_every_format_on_every_path_under_flags(flags: tuple[str, ...], tmp_path: Path) -> None:
    rows = covering()
    for k, (row, library) in enumerate(zip(rows, libraries(tmp_path, [graph_of(row) for row in rows], flags), strict=True)):
        x = vectors(graph_of(row), n=5000, seed=k).x
        for path in available(library):
            np.testing.assert_array_equal(library.evaluate(x, path), evaluate(graph_of(row), x), err_msg=f"{row}: {path}")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_wild_graphs_on_every_path(seed: int, tmp_path: Path) -> None:
    nets = [graphs.wild(100 * seed + k) for k in range(10)]
    kept = []
    for graph in nets:
        try:
            Plan(graph)
            header(Plan(graph), "net")
        except UsageError:
            continue
        kept.append(graph)
    assert len(kept) > 5
    for k, (graph, library) in enumerate(zip(kept, libraries(tmp_path, kept, ["-O2"]), strict=True)):
        x = vectors(graph, n=2000, seed=k).x
        for path in available(library):
            np.testing.assert_array_equal(library.evaluate(x, path), evaluate(graph, x), err_msg=f"graph {k} of {seed}, path {path}")


# ------------------------------------------------------------------------------------------------------------------------ mutations of each path

MUTATIONS = {
    "avx2": [r"(namespace avx2 .*?d1_w_\[\d+\] = \{)(-?\d+)", r"(namespace avx2 .*?in_scale_\[32\] = \{)(\S+f)", r"(namespace avx2 .*?right<)(\d+)"],
    "avx512": [r"(namespace avx512 .*?d1_b_\[\d+\] = \{)(-?\d+)", r"(namespace avx512 .*?add_odd<)(\d+)"],
    "vnni": [
        r"(namespace vnni .*?d1_w_\[\d+\] = \{)(-?\d+)",
        r"(namespace vnni .*?in_nan_\[32\] = \{)(-?\d+)",
        r"(namespace vnni .*?least_short\(v, vnni512::set1_short\()(\d+)",
    ],
}


@pytest.fixture(scope="module")
def chained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    limited = Quant(Fixed(False, 2, 5), "half_even", "sat")
    return export(tmp_path_factory.mktemp("cpp") / "net", chain(30, [limited, limited], (64, 64), first=Fixed(True, 3, 4)))


@pytest.mark.parametrize(
    ("path", "pattern"),
    [pytest.param(path, p, marks=[] if k == 0 else [pytest.mark.slow], id=f"{path} {k}") for path, all in MUTATIONS.items() for k, p in enumerate(all)],
)
def test_a_mutation_of_a_wide_path_makes_it_fail(path: str, pattern: str, chained: Path, tmp_path: Path) -> None:
    copy = tmp_path / "net"
    shutil.copytree(chained, copy)
    replace(copy, pattern, r"\1 1 + \2")
    compile_cpp(find_compiler(), [copy / "main.cpp"], tmp_path / "check", ["-O1"])
    done = subprocess.run([tmp_path / "check", "--no-time"], cwd=copy, capture_output=True, text=True, check=False)
    if f"{path}(not run)" in done.stdout:
        pytest.skip(f"this processor lacks {path}: not run")
    assert done.returncode == 1, done.stdout
    assert f"{path}(differs)" in done.stdout
    assert done.stdout.count("(differs)") == 1


# ------------------------------------------------------------------------------------------------------------------------------ choosing a path


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The header and everything beside it, of a network with constituents and scalars."""
    return export(tmp_path_factory.mktemp("cpp") / "net", graphs.deepsets(8), n=1500)


def test_the_fastest_path_is_taken_and_the_environment_forces_another(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NET_ISA", raising=False)
    compile_cpp(find_compiler(), [written / "net_c.cpp"], tmp_path / "net.so", ["-O1", "-shared", "-fPIC"])

    def load(name: str) -> Library:
        """A library of its own: the choice is made once in each."""
        return Library(Path(shutil.copy(tmp_path / "net.so", tmp_path / f"{name}.so")))

    library = load("free")
    assert list(library.paths) == PATHS
    here = available(library)
    assert library.path == here[-1]
    graph = graphs.deepsets(8)
    x = graphs.features(graph, 300)
    for name in here:
        monkeypatch.setenv("NET_ISA", name)
        forced = load(name)
        assert forced.path == name
        np.testing.assert_array_equal(forced.evaluate(x), evaluate(graph, x))
    monkeypatch.setenv("NET_ISA", "itanium")
    with pytest.raises(UsageError, match="names no path") as error:
        load("itanium")
    assert "NET_ISA=itanium" in error.value.where
    assert "vnni" in error.value.then or "vnni" not in here


def without(written: Path, tmp_path: Path, feature: str) -> Path:
    """A copy whose header finds that the processor lacks the bits of `feature`."""
    copy = tmp_path / "net"
    shutil.copytree(written, copy)
    replace(copy, rf"return has\(0x\S\S, {feature}, \S+\)", "return false")
    return copy


def test_what_the_processor_lacks_is_not_run_and_forcing_it_is_an_error(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NET_ISA", raising=False)
    copy = without(written, tmp_path, "bits_avx512")
    compile_cpp(find_compiler(), [copy / "net_c.cpp"], tmp_path / "net.so", ["-O1", "-shared", "-fPIC"])
    library = Library(tmp_path / "net.so")
    assert not library.paths["avx512"]
    assert not library.paths["vnni"]
    x = graphs.features(graphs.deepsets(8), 10)
    with pytest.raises(UsageError, match="lacks what the path 'vnni' needs"):
        library.evaluate(x, "vnni")
    with pytest.raises(UsageError, match="lacks what the path 'neon' needs"):
        library.evaluate(x, "neon")
    with pytest.raises(UsageError, match="no path 'itanium'"):
        library.evaluate(x, "itanium")
    compile_cpp(find_compiler(), [copy / "main.cpp"], tmp_path / "check", ["-O1"])
    check = lambda: subprocess.run([tmp_path / "check", "--no-time"], cwd=copy, capture_output=True, text=True, check=False)  # noqa: E731
    done = check()
    assert "avx512(not run) vnni(not run) neon(not run)" in done.stdout
    assert done.returncode == 0, done.stderr
    statement = cpp().latency(copy, x)
    assert statement["paths"] == {**dict.fromkeys(PATHS, "compared"), "avx512": "not run", "vnni": "not run", "neon": "not run"}
    monkeypatch.setenv("NET_ISA", "vnni")
    with pytest.raises(UsageError, match="processor or its operating system lacks"):
        Library(Path(shutil.copy(tmp_path / "net.so", tmp_path / "again.so")))
    done = check()
    assert done.returncode == 1
    assert "NET_ISA asks for a path" in done.stderr


CALL = """
#include "net.hpp"
#include <cstdio>
int main() {
  const float jets[7 * 3] = {}, event[2] = {};
  net::Logit logits[net::n_outputs];
  net::evaluate(jets, 3, event, logits);
  std::puts(net::path().name);
}
"""


def run_call(directory: Path, flags: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    (directory / "call.cpp").write_text(CALL)
    compile_cpp(find_compiler(), [directory / "call.cpp"], directory / "call", ["-O0", *flags])
    return subprocess.run(["./call"], cwd=directory, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


def test_a_compile_definition_forces_a_path(written: Path, tmp_path: Path) -> None:
    copy = tmp_path / "net"
    shutil.copytree(written, copy)
    assert run_call(copy, ["-DNET_ISA=sse2"], {"NET_ISA": "plain"}).stdout == "sse2\n"
    with pytest.raises(RunFailed, match="names no path of this header"):
        run_call(copy, ["-DNET_ISA=itanium"], {})
    (tmp_path / "less").mkdir()
    lacking = without(written, tmp_path / "less", "bit_avx2")
    done = run_call(lacking, ["-DNET_ISA=avx2"], {})
    assert done.returncode == -6
    assert "processor or its operating system lacks" in done.stderr


# ------------------------------------------------------------------------------------------------- translation units, static initialisers, threads

UNIT = """
#include "net.hpp"
// Evaluated before main, in whatever order the linker gives the units.
static int before_main(int k) {
  const float jets[7 * 3] = {1.5f, -2.0f, 30.0f, 7.0f}, event[2] = {-3.0f, 12.0f};
  net::Logit logits[net::n_outputs];
  net::evaluate(jets, 5, event, logits);
  return static_cast<int>(logits[k]);
}
int early_UNIT[2] = {before_main(0), before_main(1)};
const char* name_UNIT() { return net::path().name; }
int late_UNIT(int k) { return before_main(k); }
"""
MAIN = """
#include <cstdio>
#include <cstring>
extern int early_a[2], early_b[2];
int late_a(int), late_b(int);
const char *name_a(), *name_b();
int main() {
  for (int k = 0; k < 2; ++k)
    if (early_a[k] != early_b[k] || late_a(k) != early_a[k] || late_b(k) != early_a[k]) return 1;
  std::printf("%s %d %d\\n", name_a(), early_a[0], early_a[1]);
  return std::strcmp(name_a(), name_b()) == 0 ? 0 : 2;
}
"""


def linked(directory: Path, compilers: tuple[tuple[str, ...], ...], flags: tuple[list[str], ...]) -> str:
    """Two units of different compilers or flags and a main, linked; what the program prints."""
    objects = []
    for unit, compiler, options in zip("ab", compilers, flags, strict=True):
        source = directory / f"{unit}.cpp"
        source.write_text(UNIT.replace("UNIT", unit))
        compile_cpp(compiler, [source], directory / f"{unit}.o", [*options, "-c"])
        objects.append(directory / f"{unit}.o")
    (directory / "main_.cpp").write_text(MAIN)
    compile_cpp(compilers[0], [directory / "main_.cpp", *objects], directory / "program")
    environment = {name: value for name, value in os.environ.items() if name != "NET_ISA"}
    return subprocess.run(["./program"], cwd=directory, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_units_of_different_flags_take_one_path_before_and_after_main(written: Path, tmp_path: Path) -> None:
    copy = tmp_path / "net"
    shutil.copytree(written, copy)
    compiler = find_compiler()
    said = {
        linked(copy, (compiler, compiler), flags)
        for flags in (
            (["-O0", "-march=x86-64"], ["-O3", "-march=native", "-ffast-math"]),
            (["-O2", "-march=native", "-ffp-contract=fast"], ["-O1", "-march=x86-64"]),
        )
    }
    assert len(said) == 1
    assert said.pop().split()[0] == available(build(copy, compiler))[-1]


@pytest.mark.slow
def test_units_of_two_compilers_take_one_path(written: Path, tmp_path: Path) -> None:
    copy = tmp_path / "net"
    shutil.copytree(written, copy)
    said = linked(copy, (find_compiler(), ZIG), (["-O2", "-march=native"], ["-O2", "-march=x86_64"]))
    assert said.split()[0] == available(build(copy, find_compiler()))[-1]


THREADS = """
#include <atomic>
#include <cstdio>
#include <thread>
#include <vector>
#include "net_c.h"
#include "net.hpp"
int main() {
  std::atomic<int> ready{0}, wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::vector<float> jets(20 * 7 * 3), event(20 * 2);
      std::vector<std::int32_t> count(20);
      for (std::size_t i = 0; i < jets.size(); ++i) jets[i] = static_cast<float>((i * 37) % 101) - 50.0f;
      for (std::size_t i = 0; i < event.size(); ++i) event[i] = static_cast<float>(i % 13);
      for (std::size_t i = 0; i < count.size(); ++i) count[i] = static_cast<std::int32_t>(i % 9);
      const float* x[] = {jets.data(), event.data()};
      const std::int32_t* counts[] = {count.data(), nullptr};
      std::vector<net::Logit> first(20 * net::n_outputs), again(first.size());
      ++ready;
      while (ready < 4) {}
      net::evaluate_batch(x, counts, 20, first.data());  // the choice of the path is part of the race
      for (int k = 0; k < 50; ++k) {
        if (net_evaluate(x, counts, 20, again.data()) != 0 || again != first) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::puts(net::path().name);
  return wrong;
}
"""


@pytest.mark.parametrize("sanitizer", [pytest.param("thread", marks=pytest.mark.slow), ""])
def test_threads_share_the_header_and_the_library(sanitizer: str, written: Path, tmp_path: Path) -> None:
    copy = tmp_path / "net"
    shutil.copytree(written, copy)
    (copy / "threads.cpp").write_text(THREADS)
    flags = ["-O1", "-pthread", *([f"-fsanitize={sanitizer}"] if sanitizer else [])]
    compile_cpp(find_compiler(), [copy / "threads.cpp", copy / "net_c.cpp"], copy / "threads", flags)
    done = subprocess.run(["./threads"], cwd=copy, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# ---------------------------------------------------------------------------------------------------------------------- compilers, flags, sanitizers

LEVELS = ("-O0", "-O1", "-O2", "-O3")
MATHS = {
    "plain": [],
    "fast": ["-ffast-math"],
    "contract off": ["-ffp-contract=off"],
    "contract on": ["-ffp-contract=on"],
    "contract fast": ["-ffp-contract=fast", "-march=native"],
}


@pytest.mark.slow
@pytest.mark.parametrize("clang", [False, True], ids=["the compiler", "clang"])
@pytest.mark.parametrize("level", LEVELS)
def test_the_same_bits_from_every_compiler_level_and_floating_point_flag(level: str, clang: bool, written: Path, chained: Path, tmp_path: Path) -> None:
    """main.cpp compares every path with the golden vectors, in a process of its own."""
    compiler = ZIG if clang else find_compiler()
    for name, flags in MATHS.items():
        if level in {"-O0", "-O1"} and name.startswith("contract o"):
            continue  # nothing is contracted there
        for directory in (written, chained):
            compile_cpp(compiler, [directory / "main.cpp"], tmp_path / "check", [level, *flags])
            done = subprocess.run([tmp_path / "check", "--no-time"], cwd=directory, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
            assert "(differs)" not in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["address", "undefined"])
def test_every_path_is_clean_under_sanitizers(sanitizer: str, chained: Path, written: Path, tmp_path: Path) -> None:
    for directory in (chained, written):
        flags = ["-O1", "-g", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
        compile_cpp(find_compiler(), [directory / "main.cpp"], tmp_path / "check", flags)
        done = subprocess.run([tmp_path / "check", "--no-time"], cwd=directory, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_clang_has_no_warning_either(written: Path, chained: Path, tmp_path: Path) -> None:
    for directory in (written, chained):
        assert compile_cpp(ZIG, [directory / "net_c.cpp"], tmp_path / "net.so", ["-O2", *WARNINGS, "-shared", "-fPIC"]) == ""


def test_64_bit_arm_compiles_without_a_warning(tmp_path: Path) -> None:
    """By clang for another processor: the NEON path of networks that use its kernels, the C interface, the self-test, no header of x86."""
    nets = {
        name: graph
        for name, (graph, _) in kernels().items()
        if name in {"one exponent per feature", "shifts to the left", "wrap", "mean", "max of constituents"}
    }
    assert len(nets) == 5
    units = []
    for k, graph in enumerate(nets.values()):
        text = header(Plan(graph), f"g{k}")
        assert "madd128::dense<" in text
        (tmp_path / f"g{k}.hpp").write_text(text)
        units.append(f'#include "g{k}.hpp"\nconst void* path_{k}() {{ return &g{k}::path(); }}\n')
    (tmp_path / "all.cpp").write_text("".join(units))
    assert compile_cpp(AARCH64, [tmp_path / "all.cpp"], tmp_path / "all.o", ["-O1", *WARNINGS, "-Werror", "-c"]) == ""
    words = (tmp_path / "all.o").read_bytes()[:20]
    assert (words[:4], words[18]) == (b"\x7fELF", 183)  # AArch64


@pytest.mark.slow
def test_the_self_test_is_built_for_64_bit_arm(written: Path, tmp_path: Path) -> None:
    """It runs only there; NET_ISA chooses its paths when compiling."""
    for flags in ([], ["-DNET_ISA=neon"], ["-DNET_ISA=plain", "-ffast-math"]):
        said = compile_cpp(AARCH64, [written / "main.cpp", written / "net_c.cpp"], tmp_path / "check", ["-O2", *WARNINGS, "-Werror", *flags])
        assert said == ""


# -------------------------------------------------------------------------------------------------------------------------- CMake, C, the documentation


def test_cmake_builds_the_targets_and_runs_the_selftest(written: Path, tmp_path: Path) -> None:
    cmake = str(Path(CMAKE_BIN_DIR) / "cmake")
    run = lambda *command: subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, env=environment)  # noqa: E731
    environment = {**os.environ, "CXX": " ".join(find_compiler())}
    run(cmake, "-S", str(written), "-B", "alone", "-DBUILD_SHARED_LIBS=ON")
    run(cmake, "--build", "alone")
    assert re.search(r"^100% tests passed.* out of 1$", run(str(Path(cmake).with_name("ctest")), "--test-dir", "alone").stdout, re.MULTILINE)
    assert Library(tmp_path / "alone" / "libnet_c.so").outputs == ("class0", "class1")
    # As a part of another project, with the path fixed.
    (tmp_path / "exports" / "v1").mkdir(parents=True)
    shutil.copytree(written, tmp_path / "exports" / "v1" / "cpp")
    (tmp_path / "CMakeLists.txt").write_text(snippets("cmake")[0])
    (tmp_path / "trigger.cpp").write_text(CALL)
    run(cmake, "-S", ".", "-B", "inside", "-DNET_ISA=sse2")
    run(cmake, "--build", "inside", "--target", "trigger")
    assert run("inside/trigger").stdout == "sse2\n"


def snippets(language: str) -> list[str]:
    """The pieces of code of docs/cpp-header.md."""
    text = (Path(__file__).parents[2] / "docs" / "cpp-header.md").read_text()
    found = re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert found
    return found


def test_the_documentation_compiles(written: Path, tmp_path: Path) -> None:
    flags: Callable[[Path], list[str]] = lambda directory: ["-fsyntax-only", f"-I{directory}", *WARNINGS, "-Werror"]  # noqa: E731
    for k, text in enumerate(snippets("cpp")):
        if "features.hpp" in text:
            continue  # test_cpp_features.py compiles it with the export of a card
        source = tmp_path / f"snippet{k}.cpp"
        source.write_text(text)
        compile_cpp(find_compiler(), [source], tmp_path / f"snippet{k}.o", flags(written))
    c = shutil.which("cc")
    for text in snippets("c"):
        if c is None:
            pytest.skip("no C compiler on this machine")
        (tmp_path / "snippet.c").write_text(text)
        subprocess.run([c, "-std=c99", *flags(written), "snippet.c", "-o", "snippet.o"], cwd=tmp_path, check=True)

"""Latency of an exported network at batch 1, features in, integer logits out: the C++ header beside ONNX Runtime called from Python, and the arithmetic floor.

The two networks are those that published figures use. Measured elsewhere, for orientation: ONNX Runtime from C takes 2.9 us and lwtnn 0.44 us for the MLP,
ONNX Runtime from C 23 us for the DeepSets. The floor is the time of the multiplications alone: the same int16 products on data that is in registers or the
first-level cache, by the same compiler. The header's figure is the median over blocks of dependent calls; ONNX Runtime's the median of single calls.

    taskset -c 1 python benchmarks/latency.py
"""

from __future__ import annotations

import ctypes
import itertools
import sys
import tempfile
from pathlib import Path

import numpy as np

from hlt_train import plugins
from hlt_train.exporters._compiler import compile_cpp, find_compiler, version
from hlt_train.graph import Affine, Fixed, Graph, Node, Output, Pool, Quant, Requant, evaluate, input_node
from hlt_train.report.table import table
from hlt_train.types import Features, Group

ACTIVATION = Quant(Fixed(False, 3, 5), "half_even", "sat")  # 8 bits
FLOOR = """
#include <chrono>
#include <emmintrin.h>
alignas(64) static short w[4096];
extern "C" double floor_ns(long products) {
  const long steps = products / 64;  // eight products per instruction, eight sums in flight
  double best = 1e30;
  for (int repeat = 0; repeat < 200; ++repeat) {
    const auto start = std::chrono::steady_clock::now();
    for (int k = 0; k < 100; ++k) {
      __m128i a[8] = {}, x = _mm_set1_epi32(k);
      for (long s = 0; s < steps; ++s) {
        const __m128i* p = reinterpret_cast<const __m128i*>(w + (s % 64) * 64);
#define STEP(i) a[i] = _mm_add_epi32(a[i], _mm_madd_epi16(x, _mm_load_si128(p + i)));
        STEP(0) STEP(1) STEP(2) STEP(3) STEP(4) STEP(5) STEP(6) STEP(7)
      }
      for (int i = 0; i < 8; ++i) __asm__ volatile("" : : "x"(a[i]));
    }
    const double ns = std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - start).count() / 100;
    best = ns < best ? ns : best;
  }
  return best;
}
"""


def group(name: str, variables: int, length: int | None) -> Group:
    """A group of unit normal variables."""
    ones = np.ones(variables, np.float32)
    return Group(name, tuple(f"x{i}" for i in range(variables)), length, 0 * ones, ones, -8 * ones, 8 * ones, 0 * ones)


def layers(rng: np.random.Generator, source: str, sizes: tuple[int, ...], prefix: str) -> list[Node]:
    """Affine, ReLU, Requant for every pair of sizes, 8-bit weights."""
    nodes: list[Node] = []
    for k, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
        w = rng.integers(-127, 128, (n_in, n_out))
        nodes.append(Affine(f"{prefix}{k}", (source,), w, rng.integers(-500, 500, n_out), np.full(n_out, 12), True))
        nodes.append(Requant(f"{prefix}{k}_act", (f"{prefix}{k}",), ACTIVATION))
        source = f"{prefix}{k}_act"
    return nodes


def mlp() -> Graph:
    rng = np.random.default_rng(0)
    nodes = [input_node("in", group("event", 16, None), Fixed(True, 3, 4)), *layers(rng, "in", (16, 64, 32, 32), "dense")]
    return finish(rng, nodes, nodes[-1].name, 32)


def deepsets() -> Graph:
    rng = np.random.default_rng(0)
    nodes = [input_node("in", group("jets", 16, 64), Fixed(True, 3, 4)), *layers(rng, "in", (16, 64, 64, 64), "phi")]
    nodes += [Pool("pool", (nodes[-1].name,), "sum", "jets"), Requant("pool_act", ("pool",), Quant(Fixed(False, 9, -1), "half_even", "sat"))]
    nodes += layers(rng, "pool_act", (64, 64), "rho")
    return finish(rng, nodes, nodes[-1].name, 64)


def finish(rng: np.random.Generator, nodes: list[Node], source: str, n: int) -> Graph:
    last = Affine("logits", (source,), rng.integers(-127, 128, (n, 5)), rng.integers(-500, 500, 5), np.full(5, 12), False)
    return Graph((*nodes, last, Output("out", ("logits",), ("g", "q", "W", "Z", "t"), "softmax", np.array([-1, 0, 0, 0, 1]))))


def products(graph: Graph) -> int:
    """Multiplications of one full event."""
    lengths = [graph.structure[node.name].length or 1 for node in graph.nodes]
    return sum(length * node.w.size for node, length in zip(graph.nodes, lengths, strict=True) if isinstance(node, Affine))


def floor_ns(graph: Graph) -> float:
    """The multiplications alone."""
    with tempfile.TemporaryDirectory() as scratch:
        source, library = Path(scratch) / "floor.cpp", Path(scratch) / "floor.so"
        source.write_text(FLOOR)
        compile_cpp(find_compiler(), [source], library, ["-O2", "-shared", "-fPIC"])
        function = ctypes.CDLL(str(library)).floor_ns
        function.restype = ctypes.c_double
        return float(function(ctypes.c_long(products(graph))))


def main() -> None:
    rng = np.random.default_rng(1)
    rows = []
    for name, graph in (("MLP 16-64-32-32-5", mlp()), ("DeepSets 64x16, phi 64-64-64, rho 64-5", deepsets())):
        (node,) = graph.inputs
        shape = (256, 16) if node.length is None else (256, node.length, 16)
        counts = {} if node.length is None else {node.group: np.full(256, node.length, np.int32)}
        x = Features({node.group: rng.normal(0, 2, shape).astype(np.float32)}, counts)
        found = {}
        for target in ("cpp", "onnx"):
            exporter = plugins.factory("exporters", target)()
            with tempfile.TemporaryDirectory() as scratch:
                exporter.write(graph, Path(scratch))
                assert np.array_equal(exporter.load(Path(scratch))(x), evaluate(graph, x)), f"{target} differs from the golden model"
                found[target] = exporter.latency(Path(scratch), x)
        floor, header, runtime = floor_ns(graph), found["cpp"]["median_ns"], found["onnx"]["median_ns"]
        cold = found["cpp"]["cold_p50_ns"]
        rows.append(
            [name, f"{header:.0f}", f"{cold:.0f}", f"{runtime:.0f}", f"{floor:.0f}", f"{runtime / header:.1f}", f"{header / floor:.2f}", found["cpp"]["isa"]]
        )
    header_row = ["network", "header ns", "cold ns", "ONNX Runtime ns", "floor ns", "ONNX Runtime / header", "header / floor", "path"]
    print(table(rows, header_row, title=f"batch 1, {version(find_compiler())}, -O2"))


if __name__ == "__main__":
    sys.exit(main())

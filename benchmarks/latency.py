"""Latency of an exported network at batch 1, features in, integer logits out: every path of the C++ header beside its peers and the floor of its arithmetic.

The two networks are those that published figures use: an MLP 16-64-32-32-5 and a DeepSets of up to 64 constituents with 16 variables, phi 64-64-64, rho 64-5,
8 bits. All figures but those of Python are the median over blocks of dependent calls, one thread: the first input of a call moves by an output of the call
before. Peers: the same integer network in ONNX Runtime through its C interface (tensors made beforehand) and from Python, hls4ml's emulator of it (where hls4ml
is installed; always all constituents, and without the input step), and a float network of the same shape as plain C++ by the same compiler.

The floor of a path is its multiplications alone at the throughput that this processor reaches with them: `pmaddwd` with its addition, eight, sixteen or 32
products; `vpdpbusd`, 64 products; operands in registers, eight or more sums in flight. What a network needs beside them (input step, requantisation, loads,
one layer waiting for the other) is what the ratio shows.

    taskset -c 1 python benchmarks/latency.py
"""

from __future__ import annotations

import ctypes
import importlib.util
import itertools
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from hlt_train import plugins
from hlt_train.exporters import _hls4ml_run
from hlt_train.exporters._compiler import compile_cpp, find_compiler, version
from hlt_train.exporters._cpp_library import Library, build
from hlt_train.exporters._grid import input_integers
from hlt_train.graph import (
    Affine,
    Fixed,
    FloatAffine,
    FloatPool,
    Graph,
    Node,
    Output,
    Pool,
    Quant,
    Requant,
    evaluate,
    float_input_node,
    input_node,
)
from hlt_train.report.table import table
from hlt_train.types import Features, Group

ACTIVATION = Quant(Fixed(False, 3, 5), "half_even", "sat")  # 8 bits
COUNTS = (4, 16, 24, 64)
EVENTS = 256
EMULATED, REPEATS = 16, 9  # events of one call of hls4ml's emulator, and calls
NAMES = ("g", "q", "W", "Z", "t")
PRODUCTS = {"sse2": 8, "avx2": 16, "avx512": 32, "vnni": 64}  # of one instruction
FLOOR = """
#include <chrono>
#include <immintrin.h>
// Ten sums, each of which the compiler must think different, of products whose factors it must think new.
#define FLOOR(NAME, TARGET, VEC, MAKE, STEP, LIVE)                                                          \\
  extern "C" __attribute__((target(TARGET))) double floor_##NAME() {                                        \\
    double best = 1e30;                                                                                     \\
    for (int repeat = 0; repeat < 300; ++repeat) {                                                          \\
      VEC x = MAKE(repeat), w = MAKE(3), a0 = x, a1 = x, a2 = x, a3 = x, a4 = x, a5 = x, a6 = x, a7 = x, a8 = x, a9 = x; \\
      const auto start = std::chrono::steady_clock::now();                                                  \\
      for (int k = 0; k < 1000; ++k) {                                                                      \\
        ONE(a0, STEP, LIVE) ONE(a1, STEP, LIVE) ONE(a2, STEP, LIVE) ONE(a3, STEP, LIVE) ONE(a4, STEP, LIVE)  \\
        ONE(a5, STEP, LIVE) ONE(a6, STEP, LIVE) ONE(a7, STEP, LIVE) ONE(a8, STEP, LIVE) ONE(a9, STEP, LIVE)  \\
      }                                                                                                     \\
      const double ns = std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - start).count() / 10000; \\
      best = ns < best ? ns : best;                                                                         \\
    }                                                                                                       \\
    return best;                                                                                            \\
  }
#define ONE(a, STEP, LIVE) a = STEP(a); __asm__ volatile("" : LIVE(a), LIVE(x), LIVE(w));
#define STEP128(a) _mm_add_epi32(a, _mm_madd_epi16(x, w))
#define STEP256(a) _mm256_add_epi32(a, _mm256_madd_epi16(x, w))
#define STEP512(a) _mm512_add_epi32(a, _mm512_madd_epi16(x, w))
#define STEPVNNI(a) _mm512_dpbusd_epi32(a, x, w)
FLOOR(sse2, "sse2", __m128i, _mm_set1_epi32, STEP128, "+x")
FLOOR(avx2, "avx2", __m256i, _mm256_set1_epi32, STEP256, "+x")
FLOOR(avx512, "avx512f,avx512bw", __m512i, _mm512_set1_epi32, STEP512, "+v")
FLOOR(vnni, "avx512f,avx512bw,avx512vnni", __m512i, _mm512_set1_epi32, STEPVNNI, "+v")
"""
# The functions of ONNX Runtime's C interface are a table that only ever grows at its end, so their places need no header.
RUNTIME = """
#include <dlfcn.h>
#include <cstdio>
#include <string>
#include "timing.hpp"
namespace {
enum { GetErrorMessage = 2, CreateEnv = 3, CreateSession = 7, Run = 9, CreateSessionOptions = 10, SetIntraOpNumThreads = 24, SetInterOpNumThreads = 25,
       CreateTensorWithData = 49, CreateCpuMemoryInfo = 69 };
struct Base { void* const* (*get)(std::uint32_t version); const char* (*version)(); };
void* const* api;
template <class... A>
bool call(int place, A... arguments) {
  void* status = reinterpret_cast<void* (*)(A...)>(api[place])(arguments...);
  if (status != nullptr) std::fprintf(stderr, "ONNX Runtime: %s\\n", reinterpret_cast<const char* (*)(void*)>(api[GetErrorMessage])(status));
  return status == nullptr;
}
}
// inputs: m tensors of n events each, sizes[i] float32 per event, shapes as rank and dimensions one after the other; logits: float32 [n, outputs].
extern "C" int runtime_time(const char* library, const char* model, int m, const char* const* names, float* const* data, const std::int64_t* sizes,
                            const std::int64_t* const* shapes, const std::int64_t* ranks, std::int64_t n, int outputs, float* logits, double* result) {
  void* handle = dlopen(library, RTLD_NOW);
  if (handle == nullptr) return 1;
  api = reinterpret_cast<const Base* (*)()>(dlsym(handle, "OrtGetApiBase"))()->get(1);
  void *env = nullptr, *options = nullptr, *session = nullptr, *info = nullptr;
  if (!call(CreateEnv, 3, "bench", &env) || !call(CreateSessionOptions, &options) || !call(SetIntraOpNumThreads, options, 1) ||
      !call(SetInterOpNumThreads, options, 1) || !call(CreateSession, env, model, static_cast<const void*>(options), &session) ||
      !call(CreateCpuMemoryInfo, 0, 0, &info)) return 2;
  std::vector<std::vector<void*>> in(static_cast<std::size_t>(n));
  std::vector<void*> out(static_cast<std::size_t>(n));
  const std::int64_t shape[] = {1, outputs};
  for (std::int64_t k = 0; k < n; ++k) {
    for (int i = 0; i < m; ++i) {
      void* value = nullptr;
      if (!call(CreateTensorWithData, info, static_cast<void*>(data[i] + k * sizes[i]), static_cast<std::size_t>(sizes[i]) * 4, shapes[i],
                static_cast<std::size_t>(ranks[i]), 1, &value)) return 3;
      in[static_cast<std::size_t>(k)].push_back(value);
    }
    if (!call(CreateTensorWithData, info, static_cast<void*>(logits + k * outputs), static_cast<std::size_t>(outputs) * 4, shape, std::size_t{2}, 1,
              &out[static_cast<std::size_t>(k)])) return 3;
  }
  const char* wanted[] = {"logits"};
  const auto one = [&](std::int64_t k, float perturb) {
    data[0][k * sizes[0]] += perturb;
    call(Run, session, static_cast<const void*>(nullptr), names, in[static_cast<std::size_t>(k)].data(), static_cast<std::size_t>(m),
         static_cast<const char* const*>(wanted), std::size_t{1}, &out[static_cast<std::size_t>(k)]);
    return logits[k * outputs];
  };
  for (std::int64_t k = 0; k < n; ++k) one(k, 0.0f);
  const hlt_train_timing::Result r = hlt_train_timing::measure(one, n);
  result[0] = r.chain_median;
  result[1] = r.cold_median;
  return 0;
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
    return Graph((*nodes, last, Output("out", ("logits",), NAMES, "softmax", np.array([-1, 0, 0, 0, 1]))))


def float_twin(graph: Graph) -> Graph:
    """A float network of the same shape."""
    rng, nodes = np.random.default_rng(0), []
    made: list[Node] = nodes
    place: dict[str, str] = {}
    for node in graph.nodes:
        source = place.get(node.sources[0], "") if node.sources else ""
        if isinstance(node, Affine):
            n_in, n_out = node.w.shape
            w = rng.normal(0, n_in**-0.5, (n_in, n_out)).astype(np.float32)
            made.append(FloatAffine(node.name, (source,), w, np.zeros(n_out, np.float32), "relu" if node.relu else "none"))
        elif isinstance(node, Pool):
            made.append(FloatPool(node.name, (source,), node.kind, node.group))
        elif isinstance(node, Requant):
            place[node.name] = source
            continue
        elif isinstance(node, Output):
            made.append(Output(node.name, (source,), NAMES, "none"))
        else:
            (one,) = graph.inputs
            made.append(float_input_node(node.name, group(one.group, len(one.variables), one.length)))
        place[node.name] = node.name
    return Graph(tuple(made))


def products(graph: Graph, constituents: int) -> int:
    """Multiplications of one event."""
    each = [constituents if graph.structure[node.name].length else 1 for node in graph.nodes]
    return sum(times * node.w.size for node, times in zip(graph.nodes, each, strict=True) if isinstance(node, Affine))


def features(graph: Graph, constituents: int) -> Features:
    (node,) = graph.inputs
    shape = (EVENTS, 16) if node.length is None else (EVENTS, node.length, 16)
    counts = {} if node.length is None else {node.group: np.full(EVENTS, constituents, np.int32)}
    return Features({node.group: np.random.default_rng(1).normal(0, 2, shape).astype(np.float32)}, counts)


def floors(library: Library) -> dict[str, float]:
    """Nanoseconds of one product at the throughput of each path's multiplication."""
    with tempfile.TemporaryDirectory() as scratch:
        source, made = Path(scratch) / "floor.cpp", Path(scratch) / "floor.so"
        source.write_text(FLOOR)
        compile_cpp(find_compiler(), [source], made, ["-O2", "-shared", "-fPIC"])
        loaded, found = ctypes.CDLL(str(made)), {}
        for name, each in PRODUCTS.items():
            if library.paths.get(name):
                function = loaded[f"floor_{name}"]
                function.restype = ctypes.c_double
                found[name] = float(function()) / each
        return found


def runtime_c(graph: Graph, x: Features) -> float:
    """Median of dependent calls of ONNX Runtime's C interface, in nanoseconds; the logits must be the golden ones."""
    package = importlib.util.find_spec("onnxruntime")
    assert package is not None
    assert package.submodule_search_locations
    (library,) = Path(package.submodule_search_locations[0]).glob("capi/libonnxruntime.so.*")
    (node,) = graph.inputs
    feeds = {node.group: np.ascontiguousarray(x.groups[node.group])}
    if node.length is not None:
        feeds[f"{node.group}_count"] = x.counts[node.group].astype(np.float32)[:, None]
    shapes = [(ctypes.c_int64 * array.ndim)(1, *array.shape[1:]) for array in feeds.values()]
    outputs = len(graph.output.names)
    logits, result = np.zeros((EVENTS, outputs), np.float32), np.zeros(2)
    with tempfile.TemporaryDirectory() as scratch:
        exporter = plugins.factory("exporters", "onnx")()
        exporter.write(graph, Path(scratch))
        source, made = Path(scratch) / "runtime.cpp", Path(scratch) / "runtime.so"
        source.write_text(RUNTIME)
        plugins.factory("exporters", "cpp")().write(graph, Path(scratch))  # for timing.hpp
        compile_cpp(find_compiler(), [source], made, ["-O2", "-shared", "-fPIC"])
        before = evaluate(graph, x)
        m = len(feeds)
        failed = ctypes.CDLL(str(made)).runtime_time(
            str(library).encode(),
            str(Path(scratch) / "model.onnx").encode(),
            m,
            (ctypes.c_char_p * m)(*(name.encode() for name in feeds)),
            (ctypes.c_void_p * m)(*(array.ctypes.data for array in feeds.values())),
            (ctypes.c_int64 * m)(*(array[0].size for array in feeds.values())),
            (ctypes.c_void_p * m)(*(ctypes.addressof(shape) for shape in shapes)),
            (ctypes.c_int64 * m)(*(len(shape) for shape in shapes)),
            ctypes.c_int64(EVENTS),
            outputs,
            logits.ctypes.data_as(ctypes.c_void_p),
            result.ctypes.data_as(ctypes.c_void_p),
        )
    assert not failed, f"ONNX Runtime's C interface cannot be used ({failed})"
    exponents = graph.structure[graph.output.name].f
    assert np.array_equal(logits.astype(np.float64) * 2.0**exponents, before), "ONNX Runtime differs from the golden model"
    return float(result[0])


def emulated(graph: Graph, inputs: list[Features]) -> list[float]:
    """Nanoseconds of one event in hls4ml's compiled fixed-point emulator, called with many events at a time: medians over calls, without the input step."""
    with tempfile.TemporaryDirectory() as scratch:
        exporter = plugins.factory("exporters", "hls4ml")()
        exporter.write(graph, Path(scratch))
        evaluate_emulator = _hls4ml_run.load(Path(scratch), find_compiler())
    found = []
    for x in inputs:
        few = x.take(slice(EMULATED))
        integers = input_integers(graph, few)
        assert np.array_equal(evaluate_emulator(integers, few.counts), evaluate(graph, few)), "hls4ml's emulator differs from the golden model"
        times = []
        for _ in range(REPEATS):
            start = time.perf_counter_ns()
            evaluate_emulator(integers, few.counts)
            times.append((time.perf_counter_ns() - start) / EMULATED)
        found.append(float(np.median(times)))
    return found


def float_plain(graph: Graph, inputs: list[Features]) -> list[float]:
    """Medians of dependent calls of a float network of the same shape in plain C++."""
    with tempfile.TemporaryDirectory() as scratch:
        plugins.factory("exporters", "cpp")().write(float_twin(graph), Path(scratch))
        library = build(Path(scratch), find_compiler())
    return [library.time(x)["chain_median"] for x in inputs]


def rows(graph: Graph, counts: tuple[int, ...]) -> list[list[str]]:
    """One row per implementation: medians for each number of constituents, the single call and the cold one for the last, its floor, and their ratio."""
    inputs = [features(graph, n) for n in counts]
    with tempfile.TemporaryDirectory() as scratch:
        plugins.factory("exporters", "cpp")().write(graph, Path(scratch))
        library = build(Path(scratch), find_compiler())
    floor, made = floors(library), []
    for path, available in library.paths.items():
        if not available:
            made.append([f"header, {path}", *("not run" for _ in counts), "", "", "", ""])
            continue
        for x in inputs:
            assert np.array_equal(library.evaluate(x, path), evaluate(graph, x)), f"{path} differs from the golden model"
        times = [library.time(x, path) for x in inputs]
        last, bound = times[-1], floor.get(path, float("nan")) * products(graph, counts[-1])
        ratio = ["", ""] if path not in floor else [f"{bound:,.0f}", f"{last['chain_median'] / bound:.2f}"]
        medians = [f"{t['chain_median']:,.0f}" for t in times]
        made.append([f"header, {path}", *medians, f"{last['single_median']:,.0f} / {last['single_p99']:,.0f}", f"{last['cold_median']:,.0f}", *ratio])
    made.append(["float, plain C++", *(f"{ns:,.0f}" for ns in float_plain(graph, inputs)), "", "", "", ""])
    made.append(["ONNX Runtime, C", *(f"{runtime_c(graph, x):,.0f}" for x in inputs), "", "", "", ""])
    if importlib.util.find_spec("hls4ml") is None:
        made.append(["hls4ml emulator", *("not run" for _ in counts), "", "", "", ""])
    else:
        made.append(["hls4ml emulator", *(f"{ns:,.0f}" for ns in emulated(graph, inputs)), "", "", "", ""])
    with tempfile.TemporaryDirectory() as scratch:
        onnx = plugins.factory("exporters", "onnx")()
        onnx.write(graph, Path(scratch))
        found = [onnx.latency(Path(scratch), x) for x in inputs]
    last = found[-1]
    medians = [f"{t['median_ns']:,.0f}" for t in found]
    made.append(["ONNX Runtime, Python", *medians, f"{last['median_ns']:,.0f} / {last['p99_ns']:,.0f}", f"{last['cold_p50_ns']:,.0f}", "", ""])
    return made


def main() -> None:
    if len(os.sched_getaffinity(0)) > 1:
        print("not pinned to one core: start it with `taskset -c 1`", file=sys.stderr)
    end = ["single p50 / p99", "cold p50", "floor", "to the floor"]
    compiler = f"batch 1, nanoseconds, {version(find_compiler())}, -O2"
    print(table(rows(mlp(), (1,)), ["MLP 16-64-32-32-5", "chain", *end], title=compiler))
    print()
    head = ["DeepSets 64x16, phi 64-64-64, rho 64-5", *(f"n = {n}" for n in COUNTS), *end]
    print(table(rows(deepsets(), COUNTS), head, title=f"{compiler}; single, cold and floor at n = {COUNTS[-1]}"))


if __name__ == "__main__":
    main()

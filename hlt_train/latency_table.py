"""What the kernels of the C++ header cost on this machine: a table of nanoseconds per kernel and code path, fitted to measured networks.

A search over students needs a cost that is the same whenever it is asked, and does not compile a candidate. The time of a call is taken as a sum over kernels,
each with a constant per code path: the call itself, variables that are quantised, layers (one waits for the other), tiles of products, numbers that are
requantised, pooled, or put side by side; behind a collection, once per constituent. The constants are fitted, never below 0, to the median of dependent calls
(`docs/numbers.md`) of generated networks; networks that took no part in the fit tell how far to trust it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls

from hlt_train import plugins
from hlt_train.errors import UsageError, nearest
from hlt_train.files import read_document, write_document
from hlt_train.graph import Graph, input_node
from hlt_train.machine import machine
from hlt_train.nodes import Affine, Fixed, Flatten, Input, Node, Output, Pool, Quant, Requant, Window
from hlt_train.progress import Progress
from hlt_train.structure import Structure
from hlt_train.types import Features, Group

__all__ = ["FORMAT", "KERNELS", "calibrate", "check_path", "check_table", "kernels", "predict", "read_table", "repeats", "tiny"]

FORMAT = ("hlt-train/latency-table", 2)  # version 1 knew no `gather`
KERNELS = ("call", "input", "layer", "tile", "requant", "pool", "gather")
TILE = {"plain": (1, 1), "sse2": (2, 4), "avx2": (2, 8), "avx512": (2, 16), "vnni": (4, 16)}  # (inputs, outputs) of one product
LANES = {"plain": 1, "sse2": 8, "avx2": 16, "avx512": 32, "vnni": 32}  # numbers that are quantised, requantised or pooled together
ACTIVATION = Quant(Fixed(False, 3, 5), "half_even", "sat")  # 8 bits
EVENTS = 256
MLPS = ((16, 64, 32, 32, 5), (6, 32, 5), (8, 16, 16, 2), (24, 48, 24, 3), (16, 16, 8, 2), (32, 64, 64, 5), (10, 96, 32, 1), (16, 32, 32, 32, 2))
SETS = ((16, 64, 5, (64, 64, 64), (64,)), (16, 16, 2, (32, 16), (16,)), (8, 32, 3, (24, 24), (32,)), (6, 12, 5, (16, 16, 16), (16, 16)))
FLATS = ((4, 10, (16, 8, 2)), (5, 32, (32, 16, 5)), (4, 4, (24, 2)))  # constituents in an MLP: variables, length, widths
CONVS = ((4, 10, 2, (8, 16), (16,)), (8, 16, 5, (16, 16), (32,)), (4, 4, 2, (24,), (32,)))
HELD_OUT = ((12, 40, 20, 4), (16, 48, 48, 5)), ((12, 24, 3, (32, 32), (24,)),), ((6, 8, (12, 12, 2)),), ((4, 6, 2, (16,), (16,)),)


def kernels(graph: Graph, path: str, counts: Mapping[str, float] | None = None) -> dict[str, float]:
    """How often each kernel runs in one call.

    Args:
        graph: the network.
        path: code path of the header.
        counts: group -> constituents of an event; default: the full length of each.
    """
    inputs, outputs = TILE[path]
    lanes = LANES[path]
    found = dict.fromkeys(KERNELS, 0.0)
    found["call"] = 1.0
    for node in graph.nodes:
        structure = graph.structure[node.name if isinstance(node, Input) or not node.sources else node.sources[0]]
        times = repeats(structure, counts or {})
        if isinstance(node, Input):
            found["input"] += times * -(-structure.n // lanes)
        elif isinstance(node, Affine):
            found["layer"] += times
            found["tile"] += times * -(-node.w.shape[0] // inputs) * -(-node.w.shape[1] // outputs)
        elif isinstance(node, Window | Flatten):
            found["gather"] += times * -(-structure.n * (node.kernel if isinstance(node, Window) else 1) // lanes)
        elif isinstance(node, Requant):
            found["requant"] += times * -(-structure.n // lanes)
        elif isinstance(node, Pool):
            found["pool"] += times * -(-structure.n // lanes)
    return found


def repeats(structure: Structure, counts: Mapping[str, float]) -> float:
    """How often in a call something is done at every constituent; counts: group -> constituents."""
    if structure.length is None or structure.group is None:
        return 1.0
    return float(min(np.ceil(counts.get(structure.group, np.inf) / structure.stride), structure.length))


def predict(table: Mapping[str, Any], graph: Graph, path: str, counts: Mapping[str, float] | None = None) -> float:
    """Nanoseconds of a call, by a table of `calibrate`.

    Raises:
        UsageError: the table has no such path.
    """
    check_path(table, path, then="hlt-train bench --calibrate FILE on a machine that has it")
    constants = table["paths"][path]["ns"]
    return float(sum(constants.get(name, 0.0) * count for name, count in kernels(graph, path, counts).items()))


def check_path(table: Mapping[str, Any], path: str, *, where: str = "", then: str) -> None:
    """Refuse a table that does not have a code path. where, then: of the refusal."""
    if path not in table["paths"]:
        raise UsageError(f"the latency table has no path '{path}'", where=where, near=nearest(path, table["paths"]) or tuple(table["paths"]), then=then)


def check_table(given: str | None, isa: str | None) -> None:
    """Refuse, before anything is opened, a file that is no latency table or knows nothing of the code path `isa`; None: there is none, or no path is named."""
    if given is not None:
        table = read_table(Path(given))
        if isa is not None:
            check_path(table, isa, where=given, then="leave the latency table out to make one")


def read_table(path: Path) -> dict[str, Any]:
    """A table that `calibrate` wrote."""
    return read_document(path, *FORMAT)


def calibrate(out: Path, *, seed: int = 0, progress: Progress) -> dict[str, Any]:
    """Measure generated networks, fit the table and write it to `out`.

    Args:
        out: the file to make; it must not exist.
        seed: of weights and events.
        progress: where to say how far it is.

    Returns:
        The document: compiler, flags, machine, and for each code path that this processor has `ns` per kernel, `networks` that were fitted, relative errors
        (median, worst) of the `fit`, and those of the networks that were `held_out`.
    """
    if out.exists():
        raise UsageError("it exists already, and nothing is ever overwritten", where=str(out), then="choose another file, or remove it yourself")
    rng = np.random.default_rng(seed)
    fitted, kept = _cases(rng, MLPS, SETS, FLATS, CONVS), _cases(rng, *HELD_OUT)
    cases, held = [*fitted, *kept], len(kept)
    exporter = plugins.factory("exporters", "cpp")()
    measured: list[dict[str, float]] = []
    facts: dict[str, Any] = {}
    for k, (graph, counts) in enumerate(cases):
        progress.update(k, len(cases), "networks")
        with tempfile.TemporaryDirectory(prefix="hlt-train-") as folder:
            exporter.write(graph, Path(folder))
            facts = exporter.latency(Path(folder), _events(graph, counts, rng))
        measured.append(facts["path_median_ns"])
    paths = {name: _fit(cases, measured, name, held) for name in measured[0]}
    content = {"compiler": facts["compiler"], "flags": facts["flags"], "method": facts["method"], "machine": machine(), "seed": seed, "paths": paths}
    write_document(out, *FORMAT, content)
    return {"out": str(out), **content}


def _fit(cases: list[tuple[Graph, dict[str, float]]], measured: list[dict[str, float]], path: str, held: int) -> dict[str, Any]:
    """Least squares of relative errors; the last `held` cases take no part."""
    rows = np.array([[kernels(graph, path, counts)[name] for name in KERNELS] for graph, counts in cases])
    times = np.array([found[path] for found in measured])
    fitted = len(cases) - held
    constants, _ = nnls(rows[:fitted] / times[:fitted, None], np.ones(fitted))
    errors = np.abs(rows @ constants / times - 1)
    told = {name: {"median": float(np.median(part)), "worst": float(part.max())} for name, part in (("fit", errors[:fitted]), ("held_out", errors[fitted:]))}
    return {"ns": dict(zip(KERNELS, constants.tolist(), strict=True)), "networks": fitted, **told}


def _counts(length: int) -> tuple[int, ...]:
    return tuple(sorted({length // 4, length // 2, length} - {0}))


def _cases(rng: np.random.Generator, mlps: Any, sets: Any, flats: Any = (), convs: Any = ()) -> list[tuple[Graph, dict[str, float]]]:
    """Networks with the constituents of their events."""
    found: list[tuple[Graph, dict[str, float]]] = [(_mlp(rng, widths), {}) for widths in mlps]
    for variables, length, outputs, phi, rho in sets:
        graph = _deepsets(rng, variables, length, outputs, phi, rho)
        found += [(graph, {"jets": float(count)}) for count in _counts(length)]
    for variables, length, widths in flats:
        nodes: list[Node] = [_input(rng, "jets", variables, length), Flatten("flat", ("in_jets",), "jets")]
        found.append((_end(rng, nodes, "flat", (variables * length, *widths)), {"jets": float(length)}))
    for variables, length, outputs, filters, rho in convs:
        found.append((_conv(rng, variables, length, outputs, filters, rho), {"jets": float(length)}))
    return found


def _input(rng: np.random.Generator, name: str, n: int, length: int | None) -> Node:
    f32 = np.float32
    centre, scale = rng.normal(0, 1, n).astype(f32), rng.uniform(0.2, 2, n).astype(f32)
    names = tuple(f"{name}_{i}" for i in range(n))
    group = Group(name, names, length, centre, scale, np.full(n, -4, f32), np.full(n, 4, f32), np.zeros(n, f32))
    return input_node(f"in_{name}", group, Fixed(True, 2, 5))


def _dense(rng: np.random.Generator, name: str, source: str, n: int, width: int, *, last: bool = False) -> list[Node]:
    w, b = rng.integers(-127, 128, (n, width)).astype(np.int64), rng.integers(-999, 1000, width).astype(np.int64)
    # The weights' exponent keeps activations of about the size of their format.
    layer = Affine(name, (source,), w, b, np.full(width, 5 + 7 + int(np.ceil(np.log2(n) / 2)), np.int64), relu=not last)
    return [layer] if last else [layer, Requant(f"{name}_act", (name,), ACTIVATION)]


def tiny() -> Graph:
    """The smallest network with all kinds of layers of an MLP, to ask what a header can do here."""
    return _mlp(np.random.default_rng(0), (2, 2, 2))


def _mlp(rng: np.random.Generator, widths: tuple[int, ...]) -> Graph:
    nodes: list[Node] = [_input(rng, "event", widths[0], None)]
    return _end(rng, nodes, nodes[-1].name, widths)


def _deepsets(rng: np.random.Generator, variables: int, length: int, outputs: int, phi: tuple[int, ...], rho: tuple[int, ...]) -> Graph:
    nodes: list[Node] = [_input(rng, "jets", variables, length)]
    source, n = nodes[-1].name, variables
    for k, width in enumerate(phi):
        nodes += _dense(rng, f"phi{k}", source, n, width)
        source, n = nodes[-1].name, width
    return _end(rng, [*nodes, *_pooled(source)], "pool_act", (n, *rho, outputs))


def _conv(rng: np.random.Generator, variables: int, length: int, outputs: int, filters: tuple[int, ...], rho: tuple[int, ...]) -> Graph:
    nodes: list[Node] = [_input(rng, "jets", variables, length)]
    source, n = nodes[-1].name, variables
    for k, width in enumerate(filters):
        nodes.append(Window(f"window{k}", (source,), 3, 1, 1, 1, "jets"))
        nodes += _dense(rng, f"conv{k}", f"window{k}", 3 * n, width)
        source, n = nodes[-1].name, width
    return _end(rng, [*nodes, *_pooled(source)], "pool_act", (n, *rho, outputs))


def _pooled(source: str) -> list[Node]:
    return [Pool("pool", (source,), "sum", "jets"), Requant("pool_act", ("pool",), Quant(Fixed(False, 8, 0), "half_even", "sat"))]


def _end(rng: np.random.Generator, nodes: list[Node], source: str, widths: tuple[int, ...]) -> Graph:
    n = widths[0]
    for k, width in enumerate(widths[1:-1]):
        nodes += _dense(rng, f"dense{k}", source, n, width)
        source, n = nodes[-1].name, width
    nodes += _dense(rng, "logits", source, n, widths[-1], last=True)
    return Graph((*nodes, Output("out", ("logits",), tuple(f"class{k}" for k in range(widths[-1])), "none")))


def _events(graph: Graph, counts: Mapping[str, float], rng: np.random.Generator) -> Features:
    groups, found = {}, {}
    for node in graph.inputs:
        shape = (EVENTS, len(node.variables)) if node.length is None else (EVENTS, node.length, len(node.variables))
        groups[node.group] = (node.centre + rng.normal(0, 1, shape) / node.scale).astype(np.float32)
        if node.length is not None:
            found[node.group] = np.full(EVENTS, int(counts[node.group]), np.int32)
    return Features(groups, found)

"""A graph traced by alkaid: integers in, integers out, as one list of exact operations on bits (ALIR), with an estimate of its LUTs and delay.

Inputs are the integers of the input step at their own exponent, flat: for each input group its variables (constituent by constituent), then, for a collection,
one bit per constituent that says whether it exists. Absent constituents are masked by that bit, so their content never matters.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np

from hlt_train.arithmetic import requantise
from hlt_train.errors import RunFailed, UsageError
from hlt_train.graph import Add, Affine, Concat, Fixed, Flatten, Graph, Input, Node, Output, Pool, Quant, Requant, Window
from hlt_train.proof import prove

__all__ = ["INSTALL", "LARGE", "costs", "estimate", "fused", "library", "operations", "refuse", "trace"]

INSTALL = "pip install 'hlt-train[alkaid]'"
LARGE = 1500  # multiplications by weights other than 0 beyond which `estimate` does not trace: about two seconds of one core
EXPONENT = 100  # |f| of any value: an exponent is one byte in ALIR
ROUND = {"floor": "TRN", "half_up": "RND", "half_even": "TRN"}  # half even: `_half_even` comes before
OVERFLOW = {"wrap": "WRAP", "sat": "SAT", "sat_sym": "SAT_SYM"}


def library() -> Any:
    """The package alkaid."""
    try:
        import alkaid
        import alkaid.codegen.rtl
        import alkaid.trace.passes
        import alkaid.types
    except ImportError as error:
        raise UsageError("alkaid is not installed", then=INSTALL) from error
    return alkaid


def _refusal(node: Node, what: str, near: tuple[str, ...], then: str) -> UsageError:
    return UsageError(f"{type(node).__name__} '{node.name}' {what}", where=f"node '{node.name}'", near=near, then=then)


def refuse(graph: Graph) -> None:
    """Refuse, by the name of the first such node, what alkaid cannot compute exactly."""
    for node in graph.nodes:
        if not graph.structure[node.name].exact:
            raise _refusal(node, "computes in float32, and alkaid holds fixed point only", ("onnx", "cpp"), "export a student with a precision")
    proofs = prove(graph)
    for node in graph.nodes:
        f = graph.structure[node.name].f
        assert f is not None
        near = ("cpp",)
        if isinstance(node, Requant | Pool) and node.quant is not None and node.quant.mantissa is not None:
            raise _refusal(
                node, "rounds to a minifloat: alkaid holds fixed point only", ("cpp", "onnx"), "train with activations ufixed, or export with cpp or onnx"
            )
        if isinstance(node, Pool) and node.kind == "mean":
            raise _refusal(node, "is a mean: alkaid has no division by a number of constituents", ("sum",), "train with pool sum, or export with cpp or onnx")
        if np.abs(f).max(initial=0) > EXPONENT:
            raise _refusal(node, f"has values of 2**-{int(np.abs(f).max())}: alkaid's exponents reach {EXPONENT}", near, "choose another format")
        if not proofs[node.name].f24:  # its constants and weights pass through float32
            what = f"needs {proofs[node.name].acc_bits} bits, and alkaid is exact up to 24"
            raise _refusal(node, what, near, "choose fewer bits, or another target")


def operations(graph: Graph) -> int:
    """Multiplications by weights other than 0 at the full length of every collection: what the time of a trace grows with."""
    return sum(int(np.count_nonzero(node.w)) * (graph.structure[node.name].length or 1) for node in graph.nodes if isinstance(node, Affine))


def trace(graph: Graph) -> Any:
    """The graph as alkaid's `CombLogic`, optimised and with its estimates: the program from which the Verilog is printed."""
    refuse(graph)
    alkaid = library()
    try:
        return fused(_trace(alkaid.trace, graph))
    except (AssertionError, ArithmeticError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        what = f"alkaid {version('alkaid')} fails to trace the network: {type(error).__name__}: {error}"
        raise RunFailed(what, then="report it to https://github.com/calad0i/alkaid with graph.json; other targets are not touched by it") from error


def fused(logic: Any) -> Any:
    """Additions of three terms, which one carry chain computes, and the estimates renewed."""
    passes = library().trace.passes
    return passes.add_surrogate(passes.dead_code_elimin(passes.fuse_ternary_adders(logic), keep_dead_inputs=True))


def costs(logic: Any, clock_ns: float) -> dict[str, Any]:
    """What alkaid estimates of a traced network: LUTs, flip-flops, delay in ns; cycles from input to output at a clock period, registers at both ends."""
    delay = float(logic.latency[1])
    model = pipeline(logic, clock_ns)
    registers = sum(signal.width for signal in model.signals.values() if signal.reg)
    latest = max(signal.schedule.bias - signal.reg for signal in model.out_signals)
    return {
        "luts": round(logic.cost),
        "flip_flops": int(registers),
        "dsps": 0,
        "delay_ns": round(delay, 3),
        "clock_ns": clock_ns,
        "cycles": int(latest),
        "by": f"alkaid {version('alkaid')}, before synthesis",
    }


def pipeline(logic: Any, clock_ns: float) -> Any:
    """The program cut into stages of at most about one clock period, as alkaid's `FSM`."""
    return library().trace.to_pipeline(logic, latency_cutoff=clock_ns, verbose=False)


def estimate(graph: Graph, clock_ns: float = 5.0) -> dict[str, Any] | str:
    """`costs` of a graph, or why there are none; what is too large to trace in about two seconds is left out."""
    many = operations(graph)
    try:
        refuse(graph)
        library()
        if many > LARGE:
            return f"not estimated: {many:,} multiplications take long to trace (limit {LARGE:,}); export to alkaid estimates them"
        return costs(trace(graph), clock_ns)
    except UsageError as error:
        return f"not estimated: {error.what}" + (f": {error.then}" if error.then == INSTALL else "")
    except RunFailed as error:
        return f"not estimated: {error.what}"


def _trace(tracing: Any, graph: Graph) -> Any:
    hardware = tracing.HWConfig(1, 1, -1)  # alkaid's own defaults
    values: dict[str, Any] = {}
    valid: dict[str, Any] = {}
    ports: list[Any] = []
    for node in graph.nodes:
        if isinstance(node, Input):
            values[node.name] = _input(tracing, hardware, graph, node)
            ports.append(values[node.name])
            if node.length is not None:
                one = np.ones(node.length, np.int64)
                valid[node.group] = tracing.FVArray.from_kif(0 * one, one, 0 * one, hwconf=hardware)
                ports.append(valid[node.group])
        else:
            values[node.name] = _value(tracing, hardware, graph, node, [values[s] for s in node.sources], valid)
    inputs = [variable for port in ports for variable in np.asarray(port).ravel()]
    outputs = list(np.asarray(values[graph.output.name]).ravel())
    # What no output depends on keeps its place in the port. Tracing it again is left out: in alkaid 0.8.2 that changes some saturations.
    logic = tracing.trace(inputs, outputs, optimize=False)
    return tracing.passes.optimize(logic, keep_dead_inputs=True, retrace=False)


def _input(tracing: Any, hardware: Any, graph: Graph, node: Input) -> Any:
    """Variables of the whole format, whatever the card's clip: the input step may change without the logic."""
    f = graph.structure[node.name].f
    assert f is not None
    shape = (len(f),) if node.length is None else (node.length, len(f))
    i = np.broadcast_to(np.asarray(node.quant.to.i, np.int64), shape)
    k = np.full(shape, int(node.quant.to.signed))
    return tracing.FVArray.from_kif(k, i, np.broadcast_to(f, shape), hwconf=hardware)


def _value(tracing: Any, hardware: Any, graph: Graph, node: Node, sources: list[Any], valid: dict[str, Any]) -> Any:
    def wrap(array: Any) -> Any:
        return tracing.FVArray(array, hwconf=hardware)

    first = sources[0]
    f = graph.structure[node.sources[0]].f
    assert f is not None
    if isinstance(node, Affine):
        w = node.w.astype(np.float64) * 2.0 ** (f[:, None] - node.f).astype(np.float64)
        rows = np.atleast_2d(np.asarray(first))
        done = np.array([np.asarray(_row(tracing, hardware, row, w, node)) for row in rows], dtype=object)
        return wrap(done if first.ndim == 2 else done[0])
    if isinstance(node, Requant):
        return wrap(_requantised(np.asarray(first), node.quant))
    if isinstance(node, Add):
        total = first
        for other in sources[1:]:
            total = total + other
        return total
    if isinstance(node, Concat):
        return wrap(np.concatenate([np.asarray(s) for s in sources], axis=-1))
    if isinstance(node, Flatten | Pool | Window):
        source = graph.structure[node.sources[0]]
        exists = np.asarray(valid[node.group])[:: source.stride][: source.length]  # that of the constituent at which a position starts
        if isinstance(node, Flatten):
            return wrap(_masked(first, exists, 0.0).ravel())
        if isinstance(node, Pool):
            return wrap(_pool(first, exists, node))
        zero = tracing.FVArray(np.zeros((1, source.n), dtype=object), hwconf=hardware)
        return wrap(_window(_masked(first, exists, 0.0), np.asarray(zero), node))
    assert isinstance(node, Output)
    return first


def _row(tracing: Any, hardware: Any, row: np.ndarray, w: np.ndarray, node: Affine) -> Any:
    """One constituent, or the scalars, through an Affine."""
    if not w.any():
        found = tracing.FVArray(np.zeros(w.shape[1], dtype=object), hwconf=hardware)
    else:
        # Sums of single bits become tables, which alkaid makes for the bits 0 and 1 only: those of a signed bit are 0 and -1.
        negative = any(sum(variable.kif) == 1 and variable.low < 0 for variable in row)
        found = tracing.FVArray(row, {"binary_lut": False} if negative else None, hwconf=hardware) @ w
    found = found + node.b.astype(np.float64) * 2.0 ** -node.f.astype(np.float64)
    return found.relu() if node.relu else found


def _requantised(values: np.ndarray, quant: Quant) -> np.ndarray:
    n = values.shape[-1]
    i, f = (np.broadcast_to(np.asarray(part, np.int64), n) for part in (quant.to.i, quant.to.f))
    found = np.empty(values.shape, dtype=object)
    for place in np.ndindex(*values.shape):
        k = place[-1]
        variable: Any = values[place]
        if variable.low == variable.high:
            found[place] = _constant(variable, Quant(Fixed(quant.to.signed, int(i[k]), int(f[k])), quant.round, quant.over))
            continue
        if quant.round == "half_even":
            variable = _half_even(variable, int(f[k]))
        found[place] = variable.quantize(int(quant.to.signed), int(i[k]), int(f[k]), OVERFLOW[quant.over], ROUND[quant.round])
    return found


def _constant(variable: Any, quant: Quant) -> Any:
    """A value that no input moves, in the arithmetic of the golden model: alkaid 0.8.2 rounds some of them otherwise."""
    n, denominator = float(variable.low).as_integer_ratio()
    f = denominator.bit_length() - 1
    rounded = requantise(np.array([n], np.int64), np.array([f], np.int64), quant)
    return type(variable).from_const(float(rounded[0]) * 2.0 ** -int(quant.to.f), variable.hwconf)


def _half_even(variable: Any, f: int) -> Any:
    """To the grid of 2**-f, ties to the even multiple: half up, less one where a tie gave an odd one. alkaid 0.8.2's own RND_CONV gives other bits at times."""
    if variable.kif[2] <= f:
        return variable
    up = variable + 2.0 ** (-f - 1)
    signed, i, fine = up.kif
    rounded = up.quantize(signed, i, f)
    no_tie = up.quantize(0, -f, fine).unary_bit_op("any") * 2.0**-f
    return rounded.quantize(signed, i, f - 1) + (rounded.quantize(0, 1 - f, f) & no_tie)


def _masked(values: Any, valid: Any, absent: float | np.ndarray) -> np.ndarray:
    """Values `[length, n]` where the constituent exists, `absent` elsewhere."""
    array = np.asarray(values)
    absent = np.broadcast_to(absent, array.shape)
    found = np.empty(array.shape, dtype=object)
    for j, k in np.ndindex(*array.shape):
        found[j, k] = valid[j].msb_mux(array[j, k], float(absent[j, k]))
    return found


def _window(values: np.ndarray, zero: np.ndarray, node: Window) -> np.ndarray:
    """Masked values `[length, n]` -> the neighbours of every position, `[positions, kernel * n]`. zero: `[1, n]`, what lies outside."""
    padded = np.concatenate([*[zero] * node.before, values, *[zero] * node.after])
    starts = range(0, len(padded) - node.kernel + 1, node.stride)
    return np.array([padded[start : start + node.kernel].ravel() for start in starts], dtype=object)


def _pool(values: Any, valid: Any, node: Pool) -> np.ndarray:
    if node.kind == "sum":
        return _tree(_masked(values, valid, 0.0), lambda a, b: a + b)
    # Where nothing is below 0, absent constituents are 0, and so is the maximum of none.
    least = np.array([min(0.0, *(variable.low for variable in column)) for column in np.asarray(values).T])
    top = _tree(_masked(values, valid, least), lambda a, b: a.max_of(b))
    return np.array([t if low == 0 else valid[0].msb_mux(t, 0.0) for t, low in zip(top, least, strict=True)], dtype=object)


def _tree(rows: np.ndarray, combine: Any) -> np.ndarray:
    """Rows combined pairwise: the depth is the logarithm of their number."""
    while len(rows) > 1:
        pairs = [np.array([combine(a, b) for a, b in zip(x, y, strict=True)], dtype=object) for x, y in zip(rows[0::2], rows[1::2], strict=False)]
        rows = np.array(pairs + ([rows[-1]] if len(rows) % 2 else []), dtype=object)
    found: np.ndarray = rows[0]
    return found

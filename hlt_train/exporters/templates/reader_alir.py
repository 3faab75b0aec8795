"""The network of this directory in NumPy: the input step of graph.json, then the operations of program.alir.json, in int64. Needs Python and numpy only.

    from reader import run
    logits = run(directory, groups, counts)     # int64 [n, outputs]

An ALIR program (version 4) is a list of operations, each of which yields one fixed-point number from earlier ones: [sources, code, data, [least, greatest,
step], delay, cost]. Every number is held here as an integer in units of its step.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

ROWS = 1 << 11  # vectors at a time: one number of every operation is held for each
TAKE, NEGATE, ADD, SUBTRACT, RELU, WRAP, ADD_CONSTANT, CONSTANT, CHOOSE, TABLE, UNARY, BINARY, SUM = -1, -2, 0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11


def array_of(content: dict[str, Any] | int) -> np.ndarray:
    """An array of graph.json."""
    return np.array(content) if isinstance(content, int) else np.array(content["data"], content["dtype"]).reshape(content["shape"])


def input_step(node: dict[str, Any], x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(integers, their exponents): t = fl32(fl32(x - centre) * fl32(scale * 2**f)), clamped, rounded half to even; NaN gives the declared integer."""
    centre, scale, lo, hi, nan = (array_of(node[name]) for name in ("centre", "scale", "lo", "hi", "nan"))
    f = np.broadcast_to(array_of(node["quant"]["to"]["f"]), x.shape[-1])
    factor = np.ldexp(scale.astype(np.float64), f.astype(np.int32)).astype(np.float32)
    missing = np.isnan(x)
    with np.errstate(over="ignore", invalid="ignore"):
        t = (x - centre) * factor
    t = np.clip(np.where(missing, np.float32(0), t), lo.astype(np.float32), hi.astype(np.float32))
    integers: np.ndarray = np.where(missing, nan, np.rint(t).astype(np.int64))
    return integers, f


def exponent(step: float) -> int:
    """Return f of step = 2**-f."""
    mantissa, power = math.frexp(step)
    if mantissa != 0.5:
        raise SystemExit(f"program.alir.json: {step} is no power of two")
    return 1 - power


def form(interval: list[float]) -> tuple[bool, int, int]:
    """(signed, integer bits, f) of the narrowest fixed-point format of an interval."""
    least, greatest, step = interval
    if least == 0 and greatest == 0:
        return False, 0, 0
    f = exponent(step)
    magnitude = max(round(greatest / step), -round(least / step) - 1)
    return least < 0, magnitude.bit_length() - f, f


def shifted(n: np.ndarray, by: int) -> np.ndarray:
    """N * 2**by, rounded down."""
    return n << by if by >= 0 else n >> min(-by, 63)


def wrapped(n: np.ndarray, signed: bool, bits: int) -> np.ndarray:
    """The lowest bits of n, read as signed or not."""
    low = -(1 << (bits - 1)) if signed else 0
    return ((n - low) & ((1 << bits) - 1)) + low


def run(directory: Path, groups: dict[str, np.ndarray], counts: dict[str, np.ndarray]) -> np.ndarray:
    """Int64 logits `[n, outputs]` of raw float32 features."""
    document = json.loads((directory / "program.alir.json").read_text())
    if document.get("meta") != "ALIRModel" or document.get("spec_version") != 4:
        raise SystemExit("program.alir.json is not an ALIR program of version 4")
    graph = json.loads((directory / "graph.json").read_text())
    inputs = [node for node in graph["nodes"] if node["node"] == "Input"]
    outputs = [output["f"] for output in json.loads((directory / "alkaid.json").read_text())["outputs"]]
    n = len(next(iter(groups.values())))
    found = []
    for start in range(0, n, ROWS):
        rows = slice(start, start + ROWS)
        ports: list[np.ndarray] = []
        exponents: list[int] = []
        for node in inputs:
            integers, f = input_step(node, groups[node["group"]][rows])
            exponents += np.broadcast_to(f, integers.shape[1:]).ravel().tolist()
            ports += list(integers.reshape(len(integers), -1).T)
            if node["length"] is not None:
                ports += list((np.arange(node["length"])[:, None] < counts[node["group"]][rows]).astype(np.int64))
                exponents += [0] * node["length"]
        found.append(evaluate(document["model"], ports, exponents, outputs))
    return np.concatenate(found) if found else np.zeros((0, len(outputs)), np.int64)


def evaluate(model: list[Any], ports: list[np.ndarray], exponents: list[int], outputs: list[int]) -> np.ndarray:
    """The outputs, int64 `[n, outputs]` at their exponents, of input integers `[n]` at theirs."""
    _, input_shifts, places, output_shifts, negated, operations, *rest = model
    tables = rest[2] if len(rest) > 2 and rest[2] is not None else []
    forms = [form(interval) for _, _, _, interval, *_ in operations]
    values: list[np.ndarray] = []
    for (sources, code, data, _, *_), (signed, i, f) in zip(operations, forms, strict=True):
        if code == TAKE:
            n = shifted(ports[data[0]], f - exponents[data[0]] + input_shifts[data[0]])
        elif code == CONSTANT:
            n = np.full(len(ports[0]), data[0], np.int64)
        elif code == TABLE:  # one entry per value of the source, the least one first
            least, _, step = operations[sources[0]][3]
            entries = np.array(tables[data[0]]["table"], np.int64)
            n = wrapped(entries[values[sources[0]] - round(least / step)], signed, signed + i + f)
        else:
            read = [(values[s], forms[s]) for s in sources]
            n = operation(code, data, read, (signed, i, f))
        values.append(n)
    columns = []
    for place, shift, negative, f in zip(places, output_shifts, negated, outputs, strict=True):
        n = np.zeros(len(ports[0]), np.int64) if place < 0 else shifted(values[place], f - forms[place][2] + shift)
        columns.append(-n if negative else n)
    return np.stack(columns, axis=1)


def operation(code: int, data: list[int], read: list[tuple[np.ndarray, tuple[bool, int, int]]], to: tuple[bool, int, int]) -> np.ndarray:
    """One operation on integers, in units of the step of its result `to` (signed, integer bits, f)."""
    signed, i, f = to
    first, (first_signed, first_i, first_f) = read[0]
    if code == NEGATE:
        return shifted(-first, f - first_f)
    if code in (ADD, SUBTRACT, SUM):
        terms = [(bool(data[2 * k]), data[2 * k + 1]) for k in range(len(read))] if code == SUM else [(True, 0), (code == ADD, data[0])]
        fine = max([f, *(form[2] - shift for (_, form), (_, shift) in zip(read, terms, strict=True))])
        total = np.zeros_like(first)
        for (n, form_), (plus, shift) in zip(read, terms, strict=True):
            aligned = shifted(n, fine - form_[2] + shift)
            total = total + aligned if plus else total - aligned
        return shifted(total, f - fine)
    if code == RELU:
        return wrapped(shifted(np.maximum(first, 0), f - first_f), signed=False, bits=i + f)
    if code == WRAP:
        return wrapped(shifted(first, f - first_f + data[0]), signed, signed + i + f)
    if code == ADD_CONSTANT:
        fine = max(f, first_f, data[1])
        return shifted(shifted(first, fine - first_f) + (data[0] << (fine - data[1])), f - fine)
    if code == CHOOSE:
        (no, (_, _, no_f)), (key, (key_signed, key_i, key_f)) = read[1], read[2]
        top = key < 0 if key_signed else key >= 1 << (key_i + key_f - 1)
        return wrapped(np.where(top, shifted(first, f - first_f), shifted(no, f - no_f + data[0])), signed, signed + i + f)
    if code == UNARY and data[0] == 0:
        return wrapped(wrapped(~first, signed=False, bits=first_signed + first_i + first_f), signed, signed + i + f)
    if code == UNARY and data[0] == 1:
        any_bit: np.ndarray = first != 0
        return shifted(any_bit.astype(np.int64), f)
    if code == BINARY:
        second, (_, _, second_f) = read[1]
        fine = max(first_f, second_f - data[0])
        a, b = shifted(first, fine - first_f), shifted(second, fine - second_f + data[0])
        both: np.ndarray = (a & b, a | b, a ^ b)[data[1]]
        return shifted(both, f - fine)
    raise SystemExit(f"program.alir.json: this reader does not know operation {code} {data}")

"""What every node of an exact graph can reach, whatever the inputs: intervals, accumulator bits, and the flags by which exporters choose kernels.

Bounds hold for every partial sum in every order, so a float32 or int16 kernel that sums in its own order is covered too. Exporters choose only by these flags
and refuse otherwise (`docs/numbers.md`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hlt_train.arithmetic import dropped, limits, overflow, rounded, rounded_rational
from hlt_train.errors import UsageError
from hlt_train.graph import Add, Affine, Concat, Flatten, Graph, Input, Node, Output, Pool, Quant, Requant, Window, score_weights

__all__ = ["Proof", "prove", "summary"]

Int64 = npt.NDArray[np.int64]


class Proof(NamedTuple):
    """The proof of one node.

    Attributes:
        lo, hi: int64 `[n]`, least and greatest value of each feature, zeros of absent constituents included.
        bound: magnitude that no partial sum, shifted value, or value with its rounding constant exceeds.
        acc_bits: bits of a signed accumulator that holds `bound`.
        f24: every step is exact in float32, whatever the order of summation (bound < 2**24; a mean, whose quotient is rounded, needs 2**23).
        i32, i63: signed integers of 32 bits, of 63 bits. A node beyond i63 is refused.
        madd_i16: an Affine whose inputs and weights fit int16 and whose sums fit int32.
        u8s8: an Affine whose inputs fit uint8 and weights int8, with sums in int32 (`vpdpbusd`).
        maddubs: u8s8, and each pair |w[2k]| a[2k] + |w[2k+1]| a[2k+1] is at most 32767.
    """

    lo: Int64
    hi: Int64
    bound: int
    acc_bits: int
    f24: bool
    i32: bool
    i63: bool
    madd_i16: bool = False
    u8s8: bool = False
    maddubs: bool = False


def prove(graph: Graph) -> dict[str, Proof]:
    """The proof of every integer node, by name; float nodes have none. A node that can leave 63 bits is refused by name."""
    proofs: dict[str, Proof] = {}
    for node in graph.nodes:
        if graph.structure[node.name].exact:
            proofs[node.name] = _prove(graph, node, [proofs[source] for source in node.sources])
    return proofs


def summary(proofs: dict[str, Proof]) -> dict[str, dict[str, int | bool]]:
    """The proofs as the certificate states them."""
    return {
        name: {"lo": int(p.lo.min()), "hi": int(p.hi.max()), **{k: v for k, v in p._asdict().items() if k not in ("lo", "hi")}} for name, p in proofs.items()
    }


def _magnitude(proof: Proof) -> Int64:
    return np.maximum(np.abs(proof.lo), np.abs(proof.hi))


def _check(node: Node, bound: float) -> None:
    """Refuse in float64 before int64 could overflow: 2**62 leaves a factor of two for the rounding of the bound itself."""
    if bound >= 2.0**62:
        raise UsageError(
            f"{type(node).__name__} '{node.name}' can reach 2**{np.log2(bound):.1f}: more than 63 bits",
            where=f"node '{node.name}'",
            then="use fewer bits in this layer's weights or activations, or closer exponents",
        )


def _proof(lo: Int64, hi: Int64, bound: int, *, f24: int = 1 << 24) -> Proof:
    return Proof(lo, hi, bound, bound.bit_length() + 1, bound < f24, bound < 1 << 31, bound < 1 << 62)


def _left(n: Int64, shift: Int64) -> npt.NDArray[np.float64]:
    return np.abs(n).astype(np.float64) * 2.0 ** np.maximum(shift, 0).astype(np.float64)


def _fits(w: Int64, bits: int) -> bool:
    return bool(w.min(initial=0) >= -(1 << (bits - 1)) and w.max(initial=0) < 1 << (bits - 1))


def _affine(node: Affine, source: Proof) -> Proof:
    size, most, bias = np.abs(node.w), _magnitude(source), np.abs(node.b)
    # A weight whose input is always zero must still be representable by the kernel: every input counts as at least 1.
    _check(node, float((np.maximum(most, 1).astype(np.float64) @ size.astype(np.float64) + bias).max()))
    bound = int((np.maximum(most, 1) @ size + bias).max())
    up, down = np.maximum(node.w, 0), np.minimum(node.w, 0)
    lo, hi = source.lo @ up + source.hi @ down + node.b, source.hi @ up + source.lo @ down + node.b
    if node.relu:
        lo, hi = np.maximum(lo, 0), np.maximum(hi, 0)
    plain = _proof(lo, hi, bound)
    u8s8 = bool(plain.i32 and source.lo.min() >= 0 and source.hi.max() <= 255 and _fits(node.w, 8))
    pairs = size * source.hi[:, None] if u8s8 else np.zeros((0, 1), np.int64)
    pairs = np.pad(pairs, ((0, len(pairs) % 2), (0, 0)))
    return plain._replace(
        madd_i16=bool(plain.i32 and source.lo.min() >= -32768 and source.hi.max() <= 32767 and _fits(node.w, 16)),
        u8s8=u8s8,
        maddubs=u8s8 and bool((pairs[0::2] + pairs[1::2]).max(initial=0) <= 32767),
    )


def _quantised(node: Node, lo: Int64, hi: Int64, shift: Int64, quant: Quant) -> Proof:
    """The interval after shift, rounding and overflow; monotonic steps, so the ends suffice."""
    # Bits that are rounded away of a number that was shifted to the left first.
    bits = np.maximum(shift, 0) + np.maximum(dropped(lo, shift, quant.mantissa), dropped(hi, shift, quant.mantissa))
    half = np.where(bits > 0, 2.0 ** np.maximum(bits - 1, 0).astype(np.float64), 0.0) if quant.round != "floor" else np.zeros(shift.shape)
    least, most = limits(quant, len(lo))
    wrap = (most - least + 1).astype(np.float64) if quant.over == "wrap" else np.float64(0)
    ends = np.maximum(_left(lo, -shift), _left(hi, -shift))
    _check(node, float((ends + half + wrap).max()))
    lo, hi = rounded(lo, shift, quant), rounded(hi, shift, quant)
    bound = int((ends + half).max())
    if quant.over == "wrap":
        inside = (lo >= least) & (hi <= most)
        # A kernel may form n - least before the modulus, and the quotient times 2**W after it.
        wrapped = np.maximum(np.abs(lo), np.abs(hi)) + (most - least + 1)
        bound = max(bound, int(wrapped.max(where=~inside, initial=0)))
        return _proof(np.where(inside, lo, least), np.where(inside, hi, most), bound)
    return _proof(overflow(lo, least, most, quant.over), overflow(hi, least, most, quant.over), bound)


def _mean(node: Pool, source: Proof, length: int, f: Int64, quant: Quant) -> Proof:
    gain = np.broadcast_to(np.asarray(quant.to.f, np.int64), f.shape) - f
    up, down = np.maximum(gain, 0), np.maximum(-gain, 0)
    # Twice the numerator plus twice the denominator covers every rounding rule; a denominator shifted to a mantissa is not above the numerator or itself.
    times = 2 if quant.mantissa is None else 4
    _check(node, float((times * length * _left(_magnitude(source), gain) + 2 * length * 2.0 ** down.astype(np.float64)).max()))
    bound = int((times * length * (_magnitude(source) << up) + (2 * length << down)).max())
    one = np.int64(1)
    # The mean of count values lies within their interval; count 0 gives 0.
    lo = rounded_rational(np.minimum(source.lo, 0) << up, one << down, quant)
    hi = rounded_rational(np.maximum(source.hi, 0) << up, one << down, quant)
    last = _quantised(node, lo, hi, np.zeros_like(gain), quant)
    bound = max(bound, last.bound)
    return _proof(last.lo, last.hi, bound, f24=1 << 23)


def _pool(graph: Graph, node: Pool, source: Proof) -> Proof:
    before = graph.structure[node.sources[0]]
    assert before.length is not None
    assert before.f is not None
    if node.kind == "mean":
        assert node.quant is not None
        return _mean(node, source, before.length, before.f, node.quant)
    many = before.length if node.kind == "sum" else 1
    _check(node, float(many) * float(_magnitude(source).max()))
    return _proof(np.minimum(many * source.lo, 0), np.maximum(many * source.hi, 0), int(many * _magnitude(source).max()))


def _add(graph: Graph, node: Add, sources: list[Proof]) -> Proof:
    top = graph.structure[node.name].f
    assert top is not None
    shifts = [top - f for f in (graph.structure[name].f for name in node.sources) if f is not None]
    _check(node, float(np.sum([_left(_magnitude(p), s) for p, s in zip(sources, shifts, strict=True)], axis=0).max()))
    aligned = [(p.lo << s, p.hi << s, _magnitude(p) << s) for p, s in zip(sources, shifts, strict=True)]
    lo, hi, bound = (np.sum(part, axis=0) for part in zip(*aligned, strict=True))
    return _proof(lo, hi, int(bound.max()))


def _output(graph: Graph, node: Output, source: Proof) -> Proof:
    bound = int(_magnitude(source).max())
    if node.score is not None:
        weights, _ = score_weights(graph)
        _check(node, float(np.abs(weights).astype(np.float64) @ _magnitude(source)))
        bound = max(bound, int(np.abs(weights) @ _magnitude(source)))
    return _proof(source.lo, source.hi, bound)


def _prove(graph: Graph, node: Node, sources: list[Proof]) -> Proof:
    if isinstance(node, Input):
        lo, hi = np.minimum(node.lo, node.nan), np.maximum(node.hi, node.nan)
        return _proof(lo, hi, int(np.maximum(np.abs(lo), np.abs(hi)).max()))
    first = sources[0]
    if isinstance(node, Affine):
        return _affine(node, first)
    if isinstance(node, Requant):
        f = graph.structure[node.sources[0]].f
        assert f is not None
        return _quantised(node, first.lo, first.hi, f - np.broadcast_to(np.asarray(node.quant.to.f, np.int64), f.shape), node.quant)
    if isinstance(node, Add):
        return _add(graph, node, sources)
    if isinstance(node, Concat):
        return _proof(np.concatenate([p.lo for p in sources]), np.concatenate([p.hi for p in sources]), max(int(_magnitude(p).max()) for p in sources))
    if isinstance(node, Flatten):
        length = graph.structure[node.sources[0]].length
        assert length is not None
        return _proof(np.tile(np.minimum(first.lo, 0), length), np.tile(np.maximum(first.hi, 0), length), int(_magnitude(first).max()))
    if isinstance(node, Window):
        # Neighbour `before` of a position that exists is the constituent at which it starts: the only one that is never absent.
        zero = np.repeat(np.arange(node.kernel) != node.before, len(first.lo))
        lo, hi = np.tile(first.lo, node.kernel), np.tile(first.hi, node.kernel)
        return _proof(np.where(zero, np.minimum(lo, 0), lo), np.where(zero, np.maximum(hi, 0), hi), int(_magnitude(first).max()))
    if isinstance(node, Pool):
        return _pool(graph, node, first)
    assert isinstance(node, Output)
    return _output(graph, node, first)

"""The nodes of the IR as plain ONNX operators. Integers travel as float32, which is exact below 2**24: `check_f24` refuses the rest (`docs/numbers.md`)."""

from __future__ import annotations

import numpy as np

from hlt_train.arithmetic import dropped, limits, rounded
from hlt_train.errors import UsageError
from hlt_train.exporters._onnx_builder import Builder
from hlt_train.exporters._onnx_profiles import Profile
from hlt_train.graph import (
    Add,
    Affine,
    Concat,
    Flatten,
    FloatAffine,
    FloatInput,
    FloatPool,
    Graph,
    Input,
    Node,
    Output,
    Pool,
    Quant,
    Requant,
    Window,
    score_weights,
)
from hlt_train.proof import Proof, prove
from hlt_train.structure import scaled

__all__ = ["Emitter", "build", "powers"]


def build(graph: Graph, builder: Builder, profile: Profile, emitter_class: type[Emitter] | None = None) -> dict[str, Proof]:
    """Emit the whole graph between the inputs and outputs of the profile; `emitter_class` chooses the arithmetic (default: `Emitter`)."""
    proofs = prove(graph)
    for node in graph.nodes:
        _check_f24(node, proofs)
    emitter = (emitter_class or Emitter)(graph, builder, proofs, profile)
    for node in graph.nodes:
        builder.begin(node.name)
        emitter.values[node.name] = emitter.emit(node)
    return proofs


def _check_f24(node: Node, proofs: dict[str, Proof]) -> None:
    proof = proofs.get(node.name)
    if proof is not None and not proof.f24:
        raise UsageError(
            f"{type(node).__name__} '{node.name}' needs {proof.acc_bits} bits, and ONNX computes in float32, which is exact to 24",
            where=f"node '{node.name}'",
            near=("cpp",),
            then="export it with --to cpp, or give this layer narrower weights or activations",
        )


def powers(exponent: np.ndarray) -> np.ndarray:
    """2**exponent as float32."""
    return np.ldexp(np.ones(exponent.shape), exponent.astype(np.int32)).astype(np.float32)


class Emitter:
    """Emits one node after the other; `values` maps the nodes so far to their tensors, which hold integers in float32.

    Args:
        graph: what is emitted.
        builder: where to.
        proofs: of the graph.
        profile: declares the inputs and outputs.
    """

    def __init__(self, graph: Graph, builder: Builder, proofs: dict[str, Proof], profile: Profile) -> None:
        self.graph, self.to, self.proofs, self.profile = graph, builder, proofs, profile
        self.values: dict[str, str] = {}
        self.counts: dict[tuple[str, int, int], str] = {}  # group, stride and length -> float32 [batch, 1]
        self.masks: dict[tuple[str, int, int], str | None] = {}  # the same -> bool [batch, constituents, 1]; None where all of them exist
        self.numbers: dict[str, str] = {}  # group -> the count of the collection
        self.windowed = {node.group for node in graph.nodes if isinstance(node, Window)}

    def emit(self, node: Node) -> str:
        """The tensor of `node`."""
        sources = [self.values[name] for name in node.sources]
        if isinstance(node, Input | FloatInput):
            return self._input(node)
        if isinstance(node, Affine | FloatAffine):
            return self._affine(node, sources[0])
        if isinstance(node, Requant):
            return self._requant(node, sources[0])
        if isinstance(node, Add):
            return self._add(node, sources)
        if isinstance(node, Concat):
            return self.to.op("Concat", *sources, axis=-1)
        if isinstance(node, Flatten):
            return self._flatten(node, sources[0])
        if isinstance(node, Window):
            return self._window(node, sources[0])
        if isinstance(node, Pool | FloatPool):
            return self._pool(node, sources[0])
        assert isinstance(node, Output)
        return self._output(node, sources[0])

    def _input(self, node: Input | FloatInput) -> str:
        to, found = self.to, self.profile.read(self.to, node)
        if found.number is not None and node.length is not None:
            place = (node.group, 1, node.length)
            self.counts[place], self.masks[place], self.numbers[node.group] = found.number, found.mask, found.number
        f = self.graph.structure[node.name].f
        factor = node.scale if f is None else scaled(node.scale, f)
        t = to.op("Mul", to.op("Sub", found.x, to.constant(node.centre, "centre")), to.constant(factor, "scale"))
        t = to.op("Min", to.op("Max", t, to.constant(node.lo, "lo")), to.constant(node.hi, "hi"))
        if isinstance(node, Input):
            t = to.op("Round", t)
        # A NaN may leave Max, Min and Round as anything: it is replaced last, by its own bits.
        t = to.op("Where", found.missing, to.constant(node.nan, "nan"), t)
        if not self.profile.dynamic or node.length is None or node.group not in self.windowed:
            return t
        # Windows end where the longest collection does, so every collection is made as long.
        self.masks[node.group, 1, node.length] = self._below(node.length, 1, self.numbers[node.group])
        return self._lengthened(t, node.length)

    def _lengthened(self, x: str, length: int) -> str:
        """Constituents of 0 up to `length` of them."""
        to = self.to
        absent = to.op("Sub", to.constant(np.array([length]), "length", np.int64), to.size(x, 1))
        none, nowhere = (to.constant(np.zeros(k), "pads", np.int64) for k in (1, 4))
        return to.op("Pad", x, to.op("Concat", nowhere, absent, none, axis=0), to.constant(0.0))

    def _below(self, length: int, stride: int, count: str) -> str:
        """Which positions start at a constituent that exists: bool [batch, length, 1]."""
        starts = self.to.constant((np.arange(length) * stride).reshape(1, -1, 1), "starts")
        return self.to.op("Less", starts, self.to.op("Unsqueeze", count, self.to.constant(np.array([2]), "axes", np.int64)))

    def _place(self, name: str) -> tuple[str, int, int]:
        """Group, stride and length of a node, for which a count and a mask are held."""
        found = self.graph.structure[name]
        assert found.group is not None
        assert found.length is not None
        return found.group, found.stride, found.length

    def _affine(self, node: Affine | FloatAffine, x: str) -> str:
        to = self.to
        y = to.op("Add", to.op("MatMul", x, to.constant(node.w, "weight")), to.constant(node.b, "bias"))
        activation = ("relu" if node.relu else "none") if isinstance(node, Affine) else node.activation
        match activation:
            case "relu":
                return to.op("Relu", y)
            case "tanh":
                return to.op("Tanh", y)
            case "silu":
                return to.op("Mul", y, to.op("Sigmoid", y))
            case "gelu":
                cube = to.op("Mul", to.op("Mul", y, y), y)
                inner = to.op("Mul", to.op("Add", y, to.op("Mul", cube, to.constant(0.044715))), to.constant(np.sqrt(2 / np.pi)))
                return to.op("Mul", to.op("Mul", y, to.constant(0.5)), to.op("Add", to.op("Tanh", inner), to.constant(1.0)))
            case _:
                return y

    def _requant(self, node: Requant, n: str) -> str:
        f, target = self.graph.structure[node.sources[0]].f, self.graph.structure[node.name].f
        assert f is not None
        assert target is not None
        if (f != target).any():
            n = self.to.op("Mul", n, self.to.constant(powers(target - f), "shift"))
        return self._rounded(node, n)

    def _rounded(self, node: Requant, n: str) -> str:
        """Numbers in units of the new grid -> its integers: rounding, then overflow."""
        f, target, before = self.graph.structure[node.sources[0]].f, self.graph.structure[node.name].f, self.proofs[node.sources[0]]
        assert f is not None
        assert target is not None
        most = max(int(dropped(end, f - target, node.quant.mantissa).max()) for end in (before.lo, before.hi))
        if most:
            step = self._step(self.to.op("Abs", n), node.quant, most)
            n = self.to.op("Mul", self._round(self.to.op("Div", n, step), node.quant), step)
        elif (f > target).any():
            n = self._round(n, node.quant)
        lo, hi = (rounded(end, f - target, node.quant) for end in (before.lo, before.hi))
        return self._overflow(n, lo, hi, node.quant)

    def _step(self, size: str, quant: Quant, most: int) -> str:
        """The step of a minifloat at each size >= 0, from 1 to 2**most, exactly: 2**k is one more than the sum of the powers of two below it.

        Dividing by a power of two is exact, and so is multiplying by it again.
        """
        assert quant.mantissa is not None
        to, powers_below = self.to, powers(np.arange(most))
        reached = to.op("GreaterOrEqual", self._last(size), to.constant(powers_below * np.float32(2.0 ** (quant.mantissa + 1)), "binades"))
        return to.op("Add", to.op("MatMul", to.op("Cast", reached, to=1), to.constant(powers_below, "steps")), to.constant(1.0))

    def _last(self, x: str) -> str:
        """With one more axis behind the others."""
        return self.to.op("Unsqueeze", x, self.to.constant(np.array([-1]), "axes", np.int64))

    def _round(self, n: str, quant: Quant) -> str:
        if quant.round == "half_even":
            return self.to.op("Round", n)
        return self.to.op("Floor", n if quant.round == "floor" else self.to.op("Add", n, self.to.constant(0.5, "half")))

    def _overflow(self, n: str, lo: np.ndarray, hi: np.ndarray, quant: Quant) -> str:
        """Integers proved to lie in [lo, hi] -> the format. A limit that no input can pass is not emitted."""
        to = self.to
        least, most = limits(quant, len(lo))
        inside = (lo >= least) & (hi <= most)
        if inside.all():
            return n
        if quant.over == "wrap":
            span = np.where(inside, 0, most - least + 1)
            per_turn = np.where(inside, 1.0, 1.0 / (most - least + 1))
            turns = to.op("Floor", to.op("Mul", to.op("Sub", n, to.constant(np.where(inside, 0, least), "lo")), to.constant(per_turn, "per_turn")))
            return to.op("Sub", n, to.op("Mul", turns, to.constant(span, "span")))
        if (lo < least).any():
            n = to.op("Max", n, to.constant(np.clip(lo, least, most), "lo"))
        if (hi > most).any():
            n = to.op("Min", n, to.constant(np.clip(hi, least, most), "hi"))
        return n

    def _add(self, node: Add, sources: list[str]) -> str:
        top = self.graph.structure[node.name].f
        total = ""
        for name, value in zip(node.sources, sources, strict=True):
            f = self.graph.structure[name].f
            if top is not None and f is not None and (top != f).any():
                value = self.to.op("Mul", value, self.to.constant(powers(top - f), "align"))
            total = self.to.op("Add", total, value) if total else value
        return total

    def _kept(self, source: str, x: str, other: str) -> str:
        """The constituents of node `source` that exist, and `other` in place of the rest."""
        mask = self.masks[self._place(source)]
        return x if mask is None else self.to.op("Where", mask, x, other)

    def _least(self) -> float:
        return -(2.0**25)

    def _dynamic(self, group: str) -> bool:
        """Whether the axis of its constituents is as long as the collection."""
        return self.profile.dynamic and group not in self.windowed

    def _flatten(self, node: Flatten, x: str) -> str:
        to, length = self.to, self.graph.structure[node.sources[0]].length
        assert length is not None
        kept = self._kept(node.sources[0], x, to.constant(0.0))
        if self._dynamic(node.group):
            kept = self._lengthened(kept, length)
        return to.op("Reshape", kept, to.constant(np.array([0, self.graph.structure[node.name].n]), "shape", np.int64))

    def _window(self, node: Window, x: str) -> str:
        to, (group, stride, length) = self.to, self._place(node.name)
        kept = self._kept(node.sources[0], x, to.constant(0.0))
        if node.before or node.after:
            kept = to.op("Pad", kept, to.constant(np.array([0, node.before, 0, 0, node.after, 0]), "pads", np.int64), to.constant(0.0))
        neighbours = np.arange(length)[:, None] * node.stride + np.arange(node.kernel)
        gathered = to.op("Gather", kept, to.constant(neighbours, "neighbours", np.int64), axis=1)
        if (group, stride, length) not in self.masks:
            mask = self.masks[group, stride, length] = self._below(length, stride, self.numbers[group])
            self.counts[group, stride, length] = to.reduce("ReduceSum", to.op("Cast", mask, to=1))
        return to.op("Reshape", gathered, to.constant(np.array([0, length, self.graph.structure[node.name].n]), "shape", np.int64))

    def _pool(self, node: Pool | FloatPool, x: str) -> str:
        to, source = self.to, node.sources[0]
        count = self.counts[self._place(source)]
        zero = to.constant(0.0)
        if node.kind == "max":
            # Lower than any value; -2**25 is below every integer that passed check_f24.
            least = to.constant(-np.inf if isinstance(node, FloatPool) else self._least())
            kept = self._kept(source, x, least)
            if self._dynamic(node.group):  # one more, so that the maximum of an empty collection exists
                kept = to.op("Pad", kept, to.constant(np.array([0, 0, 0, 0, 1, 0]), "pads", np.int64), least)
            return to.op("Where", to.op("Greater", count, zero), to.reduce("ReduceMax", kept), zero)
        total = to.reduce("ReduceSum", self._kept(source, x, zero))
        if node.kind == "sum":
            return total
        length = self.graph.structure[node.sources[0]].length
        assert length is not None
        many = to.op("Min", to.op("Max", count, to.constant(1.0)), to.constant(float(length)))
        return to.op("Div", total, many) if isinstance(node, FloatPool) else self._mean(node, total, many)

    def _mean(self, node: Pool, total: str, many: str) -> str:
        """Floor((2 N + D) / (2 D)), or Floor(N / D): float32 division is exact enough for the floor below 2**23, which the proof has checked."""
        to, quant = self.to, node.quant
        f, target = self.graph.structure[node.sources[0]].f, self.graph.structure[node.name].f
        assert quant is not None
        assert f is not None
        assert target is not None
        gain, source = target - f, self.proofs[node.sources[0]]
        numerator = to.op("Mul", total, to.constant(powers(np.maximum(gain, 0)), "gain"))
        denominator = to.op("Mul", many, to.constant(powers(np.maximum(-gain, 0)), "loss"))
        ends = np.minimum(source.lo, 0), np.maximum(source.hi, 0)
        step = None
        most = max(int(dropped(np.abs(end) << np.maximum(gain, 0), np.maximum(-gain, 0), quant.mantissa).max()) for end in ends)
        if most:
            step = self._step(to.op("Floor", to.op("Div", to.op("Abs", numerator), denominator)), quant, most)
            denominator = to.op("Mul", denominator, step)
        if quant.round == "floor":
            n = to.op("Floor", to.op("Div", numerator, denominator))
        else:
            two = to.constant(2.0)
            doubled, upper = to.op("Mul", denominator, two), to.op("Add", to.op("Mul", numerator, two), denominator)
            n = to.op("Floor", to.op("Div", upper, doubled))
            if quant.round == "half_even":
                odd = to.op("Sub", n, to.op("Mul", to.op("Floor", to.op("Mul", n, to.constant(0.5))), two))
                tie = to.op("Equal", upper, to.op("Mul", n, doubled))
                n = to.op("Sub", n, to.op("Where", tie, odd, to.constant(0.0)))
        n = n if step is None else to.op("Mul", n, step)
        lo, hi = (rounded(end, -gain, quant) for end in ends)
        return self._overflow(n, lo, hi, quant)

    def _output(self, node: Output, x: str) -> str:
        to, f = self.to, self.graph.structure[node.name].f
        if f is None:
            self.profile.finish(to, self.graph, x, None)
            return x
        score = None
        if node.score is not None:
            weights, _ = score_weights(self.graph)
            score = self._canonical(to.op("MatMul", self._as_integers(x, f), to.constant(weights[:, None], "score_weight")))
        self.profile.finish(to, self.graph, self._canonical(self._as_values(x, f)), score)
        return x

    def _as_values(self, x: str, f: np.ndarray) -> str:
        """A tensor of a node as the numbers that its integers stand for."""
        return self.to.op("Mul", x, self.to.constant(powers(-f), "step")) if f.any() else x

    def _as_integers(self, x: str, f: np.ndarray) -> str:
        """A tensor of a node with exponents f as its integers."""
        return x

    def _canonical(self, x: str) -> str:
        """-0.0 becomes 0.0; the bits of every other number stay."""
        zero = self.to.constant(0.0)
        return self.to.op("Where", self.to.op("Equal", x, zero), zero, x)

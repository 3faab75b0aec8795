"""What the C++ generator knows of a graph before it writes a line: per node its identifier, exponents, proved bounds and C++ type; per group its arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from hlt_train.errors import UsageError
from hlt_train.exporters._cpp_text import identifiers, int_type
from hlt_train.graph import Graph, score_weights
from hlt_train.nodes import Affine, FloatInput, FloatPool, Input, Node, Pool, Window
from hlt_train.proof import Proof, prove
from hlt_train.structure import Structure, scaled

__all__ = ["Loop", "Plan", "Value", "arguments"]

_SCALE = 2.0**100  # of scale * 2**f: up to it, flushing subnormals to zero (which -ffast-math turns on for the whole process) moves no rounded input
_RESERVED = frozenset(  # what the header declares or uses
    """
    affine affine_float affine_madd avx2 avx512 Branches chosen clamp count derive derived detail dispatch_error divide_floor divide_half_even
    divide_half_up evaluate evaluate_batch evaluate_groups exact exponents Features first gelu Group groups has has_avx2 has_avx512 has_baseline has_not
    has_score has_vnni highest i in_order4 Input input is_nan j least limit link load4 load_bits Logit logits madd128 madd256 madd512 madd_block magnitude
    minifloat_divide minifloat_shift n_groups n_outputs
    n_paths nearest neon normalise opaque opaque4 outputs P p part passes Path path paths plain positions quantise quantise4 quantise_all relu
    requantise_sat Round same score shift4 shift_floor shift_half_even shift_half_up silu sse2 standardise std tanh v vnni vnni256 vnni512 working_points
    WorkingPoint wrap x
    """.split()  # noqa: SIM905
)


def arguments(groups: Sequence[tuple[str, int | None]]) -> tuple[dict[str, str], dict[str, str]]:
    """The identifiers of groups (name, length): of the pointer of each, and of the count of each that has a length."""
    pointers = identifiers([name for name, _ in groups], _RESERVED)
    lengthy = [name for name, length in groups if length is not None]
    made = identifiers([f"n_{name}" for name in lengthy], [*_RESERVED, *pointers.values()])
    return pointers, {name: made[f"n_{name}"] for name in lengthy}


@dataclass(frozen=True)
class Loop:
    """A loop of the generated code over the constituents of a group, or over the positions of windows; each runs when those before it are done.

    Attributes:
        depth: windows between the input and it.
        length, stride: most positions, and constituents of the input from one to the next.
        count: name of how many there are.
    """

    group: str
    depth: int
    length: int
    stride: int
    count: str


@dataclass(frozen=True, eq=False)
class Value:
    """A node's value as an array of the generated code.

    Attributes:
        node: the node.
        word: its identifier.
        n: features.
        f: exponents, int64 `[n]`; zeros for float nodes.
        lo, hi: proved bounds, int64 `[n]`; zeros for float nodes.
        loop: the loop that computes it, None outside of loops.
        type: element type of the array.
        length: constituents, None for scalars.
        madd: proved to fit int16 products summed in int32, in every order.
        proof: all that is proved of it; None for float nodes.
    """

    node: Node
    word: str
    n: int
    f: np.ndarray
    lo: np.ndarray
    hi: np.ndarray
    loop: Loop | None
    type: str
    length: int | None = None
    madd: bool = False
    proof: Proof | None = None

    @property
    def exact(self) -> bool:
        """Whether it is an integer."""
        return self.type != "float"


@dataclass(eq=False)
class Plan:
    """A graph, checked, proved and named.

    Attributes:
        graph: what is exported.
        values: one per node, in the order of evaluation.
        pointers, counts: group -> name of its `const float*` and of its count.
        loops: in the order in which they run.
    """

    graph: Graph
    values: list[Value] = field(default_factory=list)
    pointers: dict[str, str] = field(default_factory=dict)
    counts: dict[str, str] = field(default_factory=dict)
    loops: list[Loop] = field(default_factory=list)

    def __post_init__(self) -> None:
        structure, proofs = self.graph.structure, prove(self.graph)
        self._by_name: dict[str, Value] = {}
        self._readers: dict[str, list[Value]] = {}
        self.pointers, self.counts = arguments([(node.group, node.length) for node in self.inputs])
        words = identifiers([node.name for node in self.graph.nodes], [*_RESERVED, *self.pointers.values(), *self.counts.values()])
        for node in self.graph.nodes:
            form = structure[node.name]
            if isinstance(node, Input):
                self._check_scale(node)
            zeros = np.zeros(form.n, np.int64)
            lo, hi, kind, madd, proof = zeros, zeros, "float", False, None
            if form.exact:
                proof = proofs[node.name]
                lo, hi = (np.broadcast_to(np.asarray(bound, np.int64), form.n) for bound in (proof.lo, proof.hi))
                madd = proof.madd_i16
                if isinstance(node, Affine):
                    kind = "std::int32_t" if proof.i32 else "std::int64_t"
                else:
                    kind = int_type(int(lo.min()), int(hi.max()), least=16)
            f = zeros if form.f is None else form.f
            value = Value(node, words[node.name], form.n, f, lo, hi, self._loop(node, form), kind, form.length, madd, proof)
            self.values.append(value)
            self._by_name[node.name] = value
            for name in node.sources:
                self._readers.setdefault(name, []).append(value)
        self.loops.sort(key=lambda loop: loop.depth)

    def __getitem__(self, name: str) -> Value:
        return self._by_name[name]

    @property
    def inputs(self) -> tuple[Input | FloatInput, ...]:
        """The input nodes in the order of the graph, one per group: the order of the arguments."""
        return self.graph.inputs

    @property
    def output(self) -> Value:
        """The last node."""
        return self.values[-1]

    @property
    def exact(self) -> bool:
        """Whether the outputs are integers."""
        return self.output.exact

    @property
    def minifloats(self) -> list[str]:
        """Names of the nodes that round to a minifloat, which only the plain path does."""
        quants = [(value.node.name, getattr(value.node, "quant", None)) for value in self.values]
        return [name for name, quant in quants if quant is not None and quant.mantissa is not None]

    @property
    def logit(self) -> str:
        """The C++ type of an output."""
        return int_type(int(self.output.lo.min()), int(self.output.hi.max()), least=32) if self.exact else "float"

    @property
    def names(self) -> Sequence[str]:
        """Names of the outputs."""
        return self.graph.output.names

    @property
    def score(self) -> np.ndarray | None:
        """Weights of the integer score on the logits as they leave, alignment of their exponents included: int64 `[n_outputs]`."""
        return None if self.graph.output.score is None else score_weights(self.graph)[0]

    def scale(self, node: Input) -> np.ndarray:
        """The factor s' of the input step, float32 `[n]`."""
        return scaled(node.scale, self[node.name].f)

    def pooled(self, node: Pool | FloatPool, source: Value) -> tuple[int, int]:
        """Bounds of the raw sum or maximum over constituents, 0 (no constituent) included."""
        times = 1 if node.kind == "max" else int(source.length or 1)
        return min(0, int(source.lo.min()) * times), max(0, int(source.hi.max()) * times)

    def readers(self, value: Value) -> Sequence[Value]:
        """The values whose nodes read it."""
        return self._readers.get(value.node.name, [])

    def carried(self, value: Value) -> bool:
        """Whether a later loop than its own reads it, so that all of its rows are kept."""
        return value.loop is not None and any(reader.loop not in (None, value.loop) for reader in self.readers(value))

    def rows(self, value: Value) -> tuple[int, int]:
        """(rows of zeros before the first, rows in all) of a value that is carried: whatever a window reads is there."""
        windows = [(reader.node, reader) for reader in self.readers(value) if isinstance(reader.node, Window)]
        length = int(value.length or 0)
        before = max((node.before for node, _ in windows), default=0)
        ends = [(int(reader.length or 0) - 1) * node.stride - node.before + node.kernel for node, reader in windows]
        return before, before + max([length, *ends])

    def _loop(self, node: Node, form: Structure) -> Loop | None:
        """Where a node is computed: behind the loops of all that it reads, and after the one whose neighbours it gathers."""
        if form.length is None or form.group is None:
            return None
        depth = max([loop.depth for name in node.sources if (loop := self[name].loop) is not None], default=0) + isinstance(node, Window)
        for loop in self.loops:
            if (loop.group, loop.depth, loop.length, loop.stride) == (form.group, depth, form.length, form.stride):
                return loop
        count = self.counts[form.group]
        others = sum(loop.group == form.group for loop in self.loops)
        self.loops.append(Loop(form.group, depth, form.length, form.stride, f"{count}_{others}_" if depth else count))
        return self.loops[-1]

    def _check_scale(self, node: Input) -> None:
        factor = np.abs(scaled(node.scale, np.broadcast_to(np.asarray(node.quant.to.f, np.int64), len(node.variables))))
        if (factor > _SCALE).any():
            raise UsageError(
                f"the C++ header cannot hold node '{node.name}': scale * 2**f of {node.variables[int(factor.argmax())]} exceeds 2**100",
                where=f"graph, node {node.name}",
                then="express the variable in a larger unit",
            )

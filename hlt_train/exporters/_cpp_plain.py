"""The plain path of the C++ header: one statement block per node, loops that a compiler vectorises for the instruction set it is told.

A path is a namespace of the header with its constants and one `evaluate`. It takes every kernel decision from the proved bounds in `Value`, none from the
compiler's predefined macros: the same text must mean the same integers in every translation unit.
"""

from __future__ import annotations

import numpy as np

from hlt_train.arithmetic import limits, rounded, shift_round
from hlt_train.errors import UsageError
from hlt_train.exporters._cpp_plan import Loop, Plan, Value
from hlt_train.exporters._cpp_text import array, comment, float_literal, int_literal, int_type
from hlt_train.nodes import Add, Affine, Concat, Flatten, FloatAffine, FloatInput, FloatPool, Input, Node, Output, Pool, Quant, Window

__all__ = ["Plain", "each", "narrow"]

_STEP = 8  # int16 lanes of the narrowest vector register: rows of int16 weights and their inputs are padded to it with zeros
_SLACK = 64  # elements behind rows that are read in whole registers
_LARGEST = 2**61  # beyond it a rounding constant or a numerator could leave int64


class Plain:
    """Writes the plain path of one graph.

    Attributes:
        name: of the path: its namespace.
        guard: preprocessor condition on the architecture (never on -march) under which it exists; "" for everywhere.
        available: the function of `detail` that says whether this processor has it.
        target: attribute of its functions, "" for none.
        constants: C++ definitions of weights and tables, in the order of the nodes.
        loops: statements of each loop over constituents.
        before, after: statements before the loops (declarations of pools) and after them.
    """

    name = "plain"
    guard = ""
    available = "has_baseline"
    target = ""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.constants: list[str] = []
        self.before: list[str] = []
        self.loops: dict[Loop, list[str]] = {loop: [] for loop in plan.loops}
        self.after: list[str] = []
        self._fetched: set[tuple[Loop, str]] = set()
        for value in plan.values:
            self._emit(value)

    def functions(self) -> str:
        """C++ before `evaluate`."""
        return ""

    def loop(self, loop: Loop) -> list[str]:
        """The statements that take constituents through the nodes of a loop; its count is limited already."""
        return [f"for (int j = 0; j < {loop.count}; ++j) {{", *("  " + line for line in self.loops[loop]), "}"]

    # one method per kind of node -------------------------------------------------------------------------------------------------------------------------

    def _emit(self, value: Value) -> None:
        target = self._statements(value.loop)
        target.extend(self._fetch(value))
        self._text(value)
        if self.plan.carried(value):
            before, _ = self.plan.rows(value)
            self.before.append(f"alignas(64) {value.type} {self._all(value)}[{self._elements(value)}] = {{}};")
            target.append(each(value.n, f"{self._all(value)}[{self._row('j', before)} * {value.n} + i] = {value.word}[i];"))

    def _text(self, value: Value) -> None:
        """The statements of one node."""
        node = value.node
        if isinstance(node, Pool | FloatPool):
            self._pool(value, node)
            return
        if isinstance(node, Flatten):
            self._flatten(value)
            return
        target = self._statements(value.loop)
        target.append(f"// {self.describe(value)}")
        if isinstance(node, Input):
            target.extend([self._declare(value), *self._input(value, node)])
        elif isinstance(node, FloatInput):
            target.extend([self._declare(value), *self._float_input(value, node)])
        elif isinstance(node, Affine):
            target.extend([self._declare(value), *self._affine(value, node)])
        elif isinstance(node, FloatAffine):
            target.extend([self._declare(value), *self._float_affine(value, node)])
        elif isinstance(node, Concat):
            target.extend([self._declare(value), *self._concat(value)])
        elif isinstance(node, Add):
            target.extend([self._declare(value), *self._add(value)])
        elif isinstance(node, Window):
            target.extend(self._window(value, node))
        elif isinstance(node, Output):
            target.append(each(value.n, f"logits[i] = static_cast<Logit>({self._sources(value)[0].word}[i]);"))
        else:
            target.extend([self._declare(value), *self._requant(value)])

    def _input(self, value: Value, node: Input) -> list[str]:
        centre = self._floats(f"{value.word}_centre_", node.centre)
        scale = self._floats(f"{value.word}_scale_", self.plan.scale(node))
        lo, hi = (self._floats(f"{value.word}_{side}_", limit.astype(np.float32)) for side, limit in (("lo", node.lo), ("hi", node.hi)))
        nan = self._ints(f"{value.word}_nan_", node.nan, "std::int32_t")
        return [each(value.n, f"{value.word}[i] = static_cast<{value.type}>(quantise({self._x(node)} + i, {centre}, {scale}, {lo}, {hi}, {nan}));")]

    def _float_input(self, value: Value, node: FloatInput) -> list[str]:
        centre, scale, lo, hi, nan = (self._floats(f"{value.word}_{name}_", getattr(node, name)) for name in ("centre", "scale", "lo", "hi", "nan"))
        return [each(value.n, f"{value.word}[i] = standardise({self._x(node)} + i, {centre}, {scale}, {lo}, {hi}, {nan});")]

    def _affine(self, value: Value, node: Affine) -> list[str]:
        source = self._sources(value)[0]
        lo, hi = int(node.w.min(initial=0)), int(node.w.max(initial=0))
        short = source.type == "std::int16_t" and value.type == "std::int32_t" and lo >= -(2**15) and hi < 2**15
        # The dot product of two int16 vectors into int32 is one instruction on every SIMD machine, hence no narrower weights beside int16 inputs.
        kind = int_type(lo, hi, least=16 if short else 8)
        weights = np.zeros((value.n, self.padded(source)), np.int64)
        weights[:, : source.n] = node.w.T
        self.constants.append(array(kind, f"{value.word}_w_", weights.shape, [int_literal(w) for w in weights.ravel().tolist()]))
        self.constants.append(array(value.type, f"{value.word}_b_", (value.n,), [int_literal(b) for b in node.b.tolist()]))
        return [f"affine<{'true' if node.relu else 'false'}>({source.word}, {value.word}_w_, {value.word}_b_, {value.word});"]

    def _float_affine(self, value: Value, node: FloatAffine) -> list[str]:
        source = self._sources(value)[0]
        self.constants.append(array("float", f"{value.word}_w_", node.w.shape, [float_literal(w) for w in node.w.ravel().tolist()]))
        self.constants.append(array("float", f"{value.word}_b_", (value.n,), [float_literal(b) for b in node.b]))
        lines = [f"affine_float({source.word}, {value.word}_w_, {value.word}_b_, {value.word});"]
        if node.activation != "none":
            lines.append(each(value.n, f"{value.word}[i] = {node.activation}({value.word}[i]);"))
        return lines

    def _requant(self, value: Value) -> list[str]:
        source = self._sources(value)[0]
        quant: Quant = value.node.quant  # type: ignore[attr-defined]
        return [self._requantise(value, quant, source)]

    def _add(self, value: Value) -> list[str]:
        if not value.exact:
            return [each(value.n, f"{value.word}[i] = {' + '.join(f'{s.word}[i]' for s in self._sources(value))};")]
        kind = int_type(int(value.lo.min()), int(value.hi.max()), least=32)
        terms = []
        for k, source in enumerate(self._sources(value)):
            factor = self._ints(f"{value.word}_align{k}_", np.left_shift(np.int64(1), value.f - source.f), kind)
            terms.append(f"static_cast<{kind}>({source.word}[i])" + ("" if factor == "1" else f" * {factor}"))
        return [each(value.n, f"{value.word}[i] = static_cast<{value.type}>({' + '.join(terms)});")]

    def _concat(self, value: Value) -> list[str]:
        lines, at = [], 0
        for source in self._sources(value):
            to = f"{value.word}[i + {at}]" if at else f"{value.word}[i]"
            item = f"{source.word}[i]" if source.type == value.type else f"static_cast<{value.type}>({source.word}[i])"
            lines.append(each(source.n, f"{to} = {item};"))
            at += source.n
        return lines

    def _window(self, value: Value, node: Window) -> list[str]:
        """Neighbours lie one after the other, so a window is a part of them."""
        if not self.plan.readers(value):
            return []
        return self._read(value, self._sources(value)[0], self._start(value, node, "j"))

    def _start(self, value: Value, node: Window, position: str) -> str:
        """The first element of the window at `position`."""
        source = self._sources(value)[0]
        return f"{self._row(position, self.plan.rows(source)[0] - node.before, node.stride)} * {source.n}"

    def _fetch(self, value: Value) -> list[str]:
        """The rows of an earlier loop that a node reads, once in each loop."""
        made: list[str] = []
        for source in self._sources(value):
            if value.loop is None or isinstance(value.node, Window) or source.loop == value.loop or (value.loop, source.word) in self._fetched:
                continue
            self._fetched.add((value.loop, source.word))
            made += [f"// {comment(source.node.name)}", *self._read(source, source, f"{self._row('j', self.plan.rows(source)[0])} * {source.n}")]
        return made

    def _read(self, value: Value, source: Value, start: str) -> list[str]:
        """`value` as what lies in the rows of `source` from element `start` on: in place, or as a copy where its kernels need aligned rows."""
        if value.type == source.type and self._in_place(source):
            return [f"const auto& {value.word} = part<{self.padded(value)}>({self._all(source)} + {start});"]
        item = f"{self._all(source)}[{start} + i]"
        return [self._declare(value), each(value.n, f"{value.word}[i] = {item if value.type == source.type else f'static_cast<{value.type}>({item})'};")]

    def _in_place(self, source: Value) -> bool:
        """Whether its rows may be read wherever one begins."""
        return True

    @staticmethod
    def _row(position: str, by: int, stride: int = 1) -> str:
        """The row position * stride + by, as a factor."""
        at = f"({position})" if stride != 1 and not position.isidentifier() else position
        at += (f" * {stride}" if stride != 1 else "") + (f" + {by}" if by else "")
        return at if at.isidentifier() else f"({at})"

    @staticmethod
    def _all(value: Value) -> str:
        """All rows of a value that is carried, one after the other without gaps."""
        return f"{value.word}_all_"

    def _elements(self, value: Value) -> int:
        """Of all its rows, and so many zeros that a kernel that reads whole registers stays inside."""
        return self.plan.rows(value)[1] * value.n + _SLACK

    def _flatten(self, value: Value) -> None:
        source = self._sources(value)[0]
        self.before.append(self._declare(value, zero=True))
        item = f"{source.word}[i]" if source.type == value.type else f"static_cast<{value.type}>({source.word}[i])"
        self._statements(source.loop).extend([f"// {self.describe(value)}", each(source.n, f"{value.word}[j * {source.n} + i] = {item};")])

    def _pool(self, value: Value, node: Pool | FloatPool) -> None:
        """Sum and mean start from 0, max from the first constituent: no lower bound is assumed."""
        source = self._sources(value)[0]
        span = self.plan.pooled(node, source)
        kind, raw, _ = self.raw(value, node)
        assert source.loop is not None
        count = source.loop.count
        self.before.append(f"alignas(64) {kind} {raw}[{value.n}] = {{}};")
        item = f"{source.word}[i]" if source.type == kind else f"static_cast<{kind}>({source.word}[i])"
        if node.kind == "max":
            line = f"{raw}[i] = j == 0 || {item} > {raw}[i] ? {item} : {raw}[i];"
        else:
            line = f"{raw}[i] += {item};"
        self.loops[source.loop] += [f"// {self.describe(value)}: over the constituents", each(value.n, line)]
        self.after.append(self._declare(value))
        if isinstance(node, FloatPool):
            end = f"{raw}[i] / static_cast<float>({count} > 0 ? {count} : 1)" if node.kind == "mean" else f"{raw}[i]"
            self.after.append(each(value.n, f"{value.word}[i] = {end};"))
        elif node.kind == "mean":
            assert node.quant is not None
            self.after.append(self._mean(value, node.quant, raw, span, source, count))
        elif node.quant is not None:
            bound = Value(node=node, word=raw, n=value.n, f=source.f, lo=np.full(value.n, span[0]), hi=np.full(value.n, span[1]), loop=None, type=kind)
            self.after.append(self._requantise(value, node.quant, bound))
        else:
            self.after.append(each(value.n, f"{value.word}[i] = static_cast<{value.type}>({raw}[i]);"))

    def raw(self, value: Value, node: Pool | FloatPool) -> tuple[str, str, int]:
        """(type, name, elements) of what a pool collects over the constituents."""
        kind = int_type(*self.plan.pooled(node, self._sources(value)[0]), least=32) if isinstance(node, Pool) else "float"
        return kind, f"{value.word}_{node.kind}_", value.n

    # arithmetic shared by the nodes ----------------------------------------------------------------------------------------------------------------------

    def _mean(self, value: Value, quant: Quant, raw: str, span: tuple[int, int], source: Value, count: str) -> str:
        up = value.f - source.f  # mean = S 2^up / n on the new grid
        times, over = np.left_shift(np.int64(1), np.maximum(up, 0)), np.left_shift(np.int64(1), np.maximum(-up, 0))
        if max(abs(span[0]), abs(span[1])) * int(times.max()) >= _LARGEST:
            raise self.refusal(value.node, "the numerator of its mean needs more than 61 bits")
        numerator = f"std::int64_t{{{raw}[i]}}" + _times(self._ints(f"{value.word}_times_", times, "std::int64_t"))
        denominator = f"std::int64_t{{{count} > 0 ? {count} : 1}}" + _times(self._ints(f"{value.word}_over_", over, "std::int64_t"))
        lo = shift_round(np.minimum(source.lo, 0) * times, np.zeros(value.n, np.int64), "floor")
        hi = np.maximum(source.hi, 0) * times
        if quant.mantissa is None:
            quotient = f"divide_{quant.round}({numerator}, {denominator})"
        else:
            quotient, lo, hi = f"minifloat_divide<Round::{quant.round}>({numerator}, {denominator}, {quant.mantissa})", 2 * lo, 2 * hi
        result = self._overflow(value, quant, quotient, "std::int64_t", lo - 1, hi + 1)
        return each(value.n, f"{value.word}[i] = static_cast<{value.type}>({result});")

    def _requantise(self, value: Value, quant: Quant, source: Value) -> str:
        """Shift from the source's exponents to the format's, round, overflow."""
        shift = source.f - value.f
        if int(shift.min()) < -61:
            raise self.refusal(value.node, f"it shifts left by {-int(shift.min())} bits")
        left, right = np.left_shift(np.int64(1), np.maximum(-shift, 0)), np.minimum(np.maximum(shift, 0), 62)
        magnitude = max(max(abs(int(lo)), abs(int(hi))) * int(m) for lo, hi, m in zip(source.lo, source.hi, left, strict=True))
        if magnitude >= _LARGEST:
            raise self.refusal(value.node, "it needs more than 61 bits")
        lo, hi = self._shifted(quant, source, value)
        # The rounding constant of a minifloat is up to half of the number.
        kind = "std::int32_t" if narrow(value, quant, source) and (quant.mantissa is None or magnitude < 2**30) else "std::int64_t"
        item = f"{source.word}[i]" if source.type == kind else f"static_cast<{kind}>({source.word}[i])"
        scaled = item + _times(self._ints(f"{value.word}_left_", left, kind))
        if quant.mantissa is not None:
            by = self._ints(f"{value.word}_shift_", right, "int")
            scaled = f"minifloat_shift<Round::{quant.round}, {kind}>({scaled}, {by}, {quant.mantissa})"
        elif right.any():
            by = self._ints(f"{value.word}_shift_", right, "int")
            shifted = f"shift_{quant.round}<{kind}>({scaled}, {by})"
            scaled = shifted if right.all() else f"({by} > 0 ? {shifted} : {scaled})"
        return each(value.n, f"{value.word}[i] = static_cast<{value.type}>({self._overflow(value, quant, scaled, kind, lo, hi)});")

    @staticmethod
    def _shifted(quant: Quant, source: Value, value: Value) -> tuple[np.ndarray, np.ndarray]:
        """Bounds after shift and rounding, before overflow."""
        shift = source.f - value.f
        lo, hi = (rounded(bound, np.minimum(shift, 62), quant) for bound in (source.lo, source.hi))
        return lo, hi

    def _inside(self, value: Value, quant: Quant, source: Value) -> bool:
        """Whether the overflow rule has nothing to do."""
        (lo, hi), (least, most) = self._shifted(quant, source, value), limits(quant, value.n)
        return bool((lo >= least).all() and (hi <= most).all())

    def _overflow(self, value: Value, quant: Quant, expression: str, kind: str, lo: np.ndarray, hi: np.ndarray) -> str:
        """`expression`, proved to lie in [lo, hi], brought into the format; nothing is emitted where it cannot leave it."""
        least, most = limits(quant, value.n)
        if bool((lo >= least).all() and (hi <= most).all()):
            return expression
        if quant.over == "wrap":
            mask, sign = self._ints(f"{value.word}_mask_", most - least, kind), self._ints(f"{value.word}_sign_", -least, kind)
            return f"wrap<{kind}>({expression}, {mask}, {sign})"
        return f"clamp<{kind}>({expression}, {self._ints(f'{value.word}_lo_', least, kind)}, {self._ints(f'{value.word}_hi_', most, kind)})"

    # constants: one literal where all features agree, a table otherwise ----------------------------------------------------------------------------------

    def _ints(self, name: str, values: np.ndarray, kind: str) -> str:
        return self._table(name, [int_literal(v) for v in values.tolist()], kind)

    def _floats(self, name: str, values: np.ndarray) -> str:
        return self._table(name, [float_literal(v) for v in values], "float")

    def _table(self, name: str, literals: list[str], kind: str) -> str:
        if len(set(literals)) == 1:
            return literals[0]
        self.constants.append(array(kind, name, (len(literals),), literals))
        return f"{name}[i]"

    def _statements(self, loop: Loop | None) -> list[str]:
        return self.after if loop is None else self.loops[loop]

    # names -----------------------------------------------------------------------------------------------------------------------------------------------

    def _sources(self, value: Value) -> tuple[Value, ...]:
        return tuple(self.plan[name] for name in value.node.sources)

    def _x(self, node: Input | FloatInput) -> str:
        pointer = self.plan.pointers[node.group]
        return pointer if node.length is None else f"{pointer} + j * {len(node.variables)}"

    @staticmethod
    def describe(value: Value) -> str:
        """The comment above a node: name, kind, size, proved bounds."""
        kind = type(value.node).__name__
        bounds = f", [{int(value.lo.min())}, {int(value.hi.max())}]" if value.exact else ""
        return f"{comment(value.node.name)}: {kind} [{value.n}]{bounds}"

    def padded(self, value: Value) -> int:
        """Elements of its array: rows of int16 weights, and so their inputs, are filled up with zeros."""
        return -(-value.n // _STEP) * _STEP if value.type == "std::int16_t" else value.n

    def _declare(self, value: Value, *, zero: bool = False) -> str:
        size = self.padded(value)
        return f"alignas(64) {value.type} {value.word}[{size}]{' = {}' if zero or size != value.n else ''};"

    @staticmethod
    def refusal(node: Node, why: str) -> UsageError:
        """What the cpp exporter cannot represent, by the node's name."""
        return UsageError(f"the C++ header cannot hold node '{node.name}': {why}", where=f"graph, node {node.name}", then="choose narrower formats")


def _times(factor: str) -> str:
    return "" if factor in {"1", "1LL"} else f" * {factor}"


def each(n: int, statement: str) -> str:
    return f"for (int i = 0; i < {n}; ++i) {statement}"


def narrow(value: Value, quant: Quant, source: Value) -> bool:
    """Whether a Requant of `source` into `value` works in int32: the value shifted to the left, its rounding constant, and the limits fit."""
    shift = source.f - value.f
    if int(shift.min()) < -30 or int(shift.max()) > 30:
        return False
    left, right = np.left_shift(np.int64(1), np.maximum(-shift, 0)), np.maximum(shift, 0)
    magnitude = max(max(abs(int(lo)), abs(int(hi))) * int(m) for lo, hi, m in zip(source.lo, source.hi, left, strict=True))
    return magnitude + 2 ** max(int(right.max()) - 1, 0) < 2**31 and _fits32(quant, value.n)


def _fits32(quant: Quant, n: int) -> bool:
    """Whether the format's limits, and for wrap the sum with the weight of the sign bit, fit an int32."""
    lo, hi = limits(quant, n)
    return int(lo.min()) >= -(2**30) and int(hi.max()) < 2**30

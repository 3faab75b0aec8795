"""The paths of the C++ header for 256 and 512-bit registers: AVX2, AVX-512 and AVX-512 VNNI, written by one class from what `Kernels` says of each.

Four constituents go through the network at a time, so that every weight is loaded once for all of them; what is left over goes as a block of one to three. A
dense kernel reads the windows of a convolution where the neighbours lie. An Affine whose only reader is a Requant is one kernel with it. Values lie as int16,
or as bytes where every reader multiplies bytes. A node that no kernel is proved for is the plain path's text, constituent by constituent: the same integers,
more slowly.

Kernels live in namespaces of `detail`, named after their instruction and the bits of a register; every function carries its own target attribute, because what
a translation unit is compiled for must change nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from hlt_train.arithmetic import limits, shift_round
from hlt_train.exporters._cpp_plain import Plain, each, narrow
from hlt_train.exporters._cpp_plan import Loop, Plan, Value
from hlt_train.exporters._cpp_text import array, comment, float_literal, int_literal, lines
from hlt_train.nodes import Affine, Flatten, FloatPool, Input, Pool, Quant, Requant, Window

__all__ = ["KERNELS", "X86", "Avx2", "Avx512", "Kernels", "Vnni", "Wide", "inlined"]

ROWS = 4  # constituents at a time


X86 = "defined(__x86_64__) && defined(__GNUC__)"
ARM = "defined(__aarch64__) && defined(__GNUC__) && !defined(__AARCH64EB__)"  # little-endian


@dataclass(frozen=True)
class Kernels:
    """One namespace of kernels.

    Attributes:
        lanes: int32 in a register.
        target: of its functions.
        files: the templates it consists of.
        rows: the namespace with the kernels that multiply nothing.
        guard: the architectures that compile it.
    """

    lanes: int
    target: str
    files: tuple[str, ...]
    rows: str
    guard: str = X86

    @property
    def attribute(self) -> str:
        """Of each function, what a translation unit is compiled for aside; the attribute of what an architecture always has is empty."""
        return f'gnu::target("{self.target}")' if self.target else ""


_AVX512 = "avx512f,avx512bw,avx512vl"
KERNELS = {
    "madd256": Kernels(8, "avx2", ("net_avx2.hpp", "net_dense.hpp", "net_rows.hpp"), "madd256"),
    "madd512": Kernels(16, _AVX512, ("net_avx512.hpp", "net_dense.hpp", "net_rows.hpp"), "madd512"),
    "vnni256": Kernels(8, _AVX512 + ",avx512vnni", ("net_vnni256.hpp", "net_dense.hpp"), "madd256"),
    "vnni512": Kernels(16, _AVX512 + ",avx512vnni", ("net_vnni512.hpp", "net_dense.hpp"), "madd512"),
    "madd128": Kernels(
        4, "", ("net_neon.hpp", "net_dense.hpp", "net_rows.hpp"), "madd128", "defined(__aarch64__) && defined(__GNUC__) && !defined(__AARCH64EB__)"
    ),
}


class Wide(Plain):
    """Writes one path for wide registers.

    Attributes:
        kernels: namespaces of dense kernels that it may use, the widest first.
        bytes: whether bytes are multiplied without a proof of every pair (`vpdpbusd`).
    """

    guard = X86
    kernels: tuple[str, ...] = ()
    bytes = False

    def __init__(self, plan: Plan) -> None:
        attribute = KERNELS[self.kernels[0]].attribute
        self.target = f"[[{attribute}]] " if attribute else ""
        self._shared: dict[Loop, list[tuple[str, str, int]]] = {}  # (type, name, elements) of what a loop shares with what comes before or after it
        super().__init__(plan)

    @property
    def _rows(self) -> str:
        """The widest namespace of kernels that multiply nothing."""
        return KERNELS[self.kernels[0]].rows

    # how a value lies ------------------------------------------------------------------------------------------------------------------------------------

    def _kind(self, value: Value) -> str:
        """The products of an Affine: "bytes", "pairs" of int16, or "" for the plain text."""
        if not isinstance(value.node, Affine) or value.proof is None or self._sources(value)[0].type != "std::int16_t":
            return ""
        proof, source, w = value.proof, self._sources(value)[0], value.node.w
        if proof.maddubs or (self.bytes and proof.u8s8):
            return "bytes"
        # Signed bytes are shifted by 128: sum w (x + 128) + (b - 128 sum w) is the same integer modulo 2**32, and the proof has it in int32.
        signed = source.lo.min() >= -128 and source.hi.max() <= 127 and w.min(initial=0) >= -128 and w.max(initial=0) <= 127
        if self.bytes and proof.i32 and signed:
            return "bytes"
        return "pairs" if proof.madd_i16 else ""

    @staticmethod
    def _offset(value: Value) -> int:
        """What is added to its integers where they are stored as bytes."""
        return 0 if int(value.lo.min()) >= 0 else 128

    def _uses(self, value: Value) -> set[str]:
        """How it is read: as "bytes", as "pairs", or "" in any other way."""
        found = set()
        for reader in self.plan.readers(value):
            if isinstance(reader.node, Window) and self._in_windows(reader):
                found |= self._uses(reader)
            else:  # a later loop fetches int16
                found.add("" if value.loop is not None and reader.loop not in (None, value.loop) else self._kind(reader))
        return found

    def _in_windows(self, value: Value) -> bool:
        """Whether a Window is read by dense kernels alone, which read every position where its neighbours lie."""
        return value.type == self._sources(value)[0].type and all(self._kind(reader) for reader in self.plan.readers(value))

    def _as_bytes(self, value: Value) -> bool:
        """Whether somebody reads it as bytes."""
        return "bytes" in self._uses(value)

    def _only_bytes(self, value: Value) -> bool:
        return self._uses(value) == {"bytes"}

    def padded(self, value: Value) -> int:
        """Elements from one row to the next: whole registers of 64 bytes where a kernel may write or read them."""
        if value.type == "std::int16_t":
            return _up(value.n, 32)
        if value.type == "std::int32_t" and not (isinstance(value.node, Affine) and not self._kind(value)):
            return _up(value.n, 16)
        return value.n

    def _place(self, value: Value, *, bytes: bool = False) -> tuple[str, int]:
        """(expression of its first row, elements from one row to the next)."""
        if isinstance(value.node, Window) and self._in_windows(value):
            source = self._sources(value)[0]
            return f"{self._all(source, bytes=bytes)} + {self._start(value, value.node, 'first')}", value.node.stride * source.n
        stride = _up(value.n, 64) if bytes else self.padded(value)
        if value.loop is None:
            return (f"{value.word}_bytes_" if bytes else value.word), stride
        return (f"{value.word}_bytes_[0]" if bytes else f"{value.word}_rows_[0]"), stride

    def _own(self, value: Value, *, bytes: bool = False, zero: bool = False) -> str:
        """The declaration of its array; what no kernel may write is zero."""
        kind, stride = ("std::uint8_t", _up(value.n, 64)) if bytes else (value.type, self.padded(value))
        zero = zero or (not bytes and _up(value.n, 16 if value.type == "std::int16_t" else 8) < stride)
        name = f"{value.word}_bytes_" if bytes else (value.word if value.loop is None else f"{value.word}_rows_")
        rows = "" if value.loop is None else "[P]"
        return f"alignas(64) {kind} {name}{rows}[{stride}]{' = {}' if zero else ''};"

    @staticmethod
    def _p(value: Value) -> str:
        return "1" if value.loop is None else "P"

    # the nodes -------------------------------------------------------------------------------------------------------------------------------------------

    def _emit(self, value: Value) -> None:
        node = value.node
        if isinstance(node, Window) and self._in_windows(value):
            return  # its readers know where it lies
        self._to(value, self._fetch(value))
        if isinstance(node, Affine) and self._kind(value) and self._fused(value):
            return  # written with its Requant
        if isinstance(node, Window):
            self._to(value, [f"// {self.describe(value)}", *self._copied(value, self._sources(value)[0], self._start(value, node, "first + p"))])
        elif isinstance(node, Pool) and not isinstance(node, FloatPool) and self._pools(value, node):
            self._wide_pool(value, node)
        elif isinstance(node, Input) and value.type == "std::int16_t":
            self._to(value, self._wide_input(value, node))
        elif isinstance(node, Affine) and self._kind(value):
            self._to(value, [f"// {self.describe(value)}", self._own(value), *self._dense(value, value, None)])
        elif isinstance(node, Requant) and self._narrow(value, node.quant):
            self._to(value, self._wide_requant(value, node))
        else:
            self._plain_text(value)
        if self._as_bytes(value) and not self._written_as_bytes(value):
            self._to(value, self._narrowed(value))
        if self.plan.carried(value):
            self._to(value, self._carry(value))

    def _to(self, value: Value, text: list[str]) -> None:
        self._statements(value.loop).extend(text)

    def _narrowed(self, value: Value) -> list[str]:
        """Its rows of int16 as bytes too."""
        (x, xs), (y, ys) = self._place(value), self._place(value, bytes=True)
        n = _up(value.n, 4 * 8)  # of the narrower registers: no more is read than there is
        return [self._own(value, bytes=True), f"madd256::narrow<{self._offset(value)}, {self._p(value)}, {n}, {xs}, {ys}>({x}, {y});"]

    # rows of a loop that a later one reads ---------------------------------------------------------------------------------------------------------------

    @staticmethod
    def _all(value: Value, *, bytes: bool = False) -> str:
        return f"{value.word}_bytes_all_" if bytes else f"{value.word}_all_"

    def _carry(self, value: Value) -> list[str]:
        """Keep its rows for later loops, in the forms in which they are read; zeros before, behind and between."""
        assert value.loop is not None
        before, elements, made = self.plan.rows(value)[0], _up(self._elements(value), 64), []
        for bytes in (False, True):
            loops = [reader.loop for reader in self.plan.readers(value) if reader.loop not in (None, value.loop) and bytes in self._forms(reader)]
            if not loops:
                continue
            kind, name, offset = "std::uint8_t" if bytes else value.type, self._all(value, bytes=bytes), self._offset(value) if bytes else 0
            self.before.append(f"alignas(64) {kind} {name}[{elements}]{'' if offset else ' = {}'};")
            if offset:
                self.before.append(f"std::memset({name}, {offset}, sizeof {name});")
            for loop in (value.loop, *loops):
                assert loop is not None
                self._share(loop, kind, name, elements)
            row = f"{value.word}_{'bytes' if bytes else 'rows'}_[p]"
            made.append(f"for (int p = 0; p < P; ++p) std::memcpy({name} + {self._row('first + p', before)} * {value.n}, {row}, {value.n} * sizeof({kind}));")
        return made

    def _forms(self, reader: Value) -> set[bool]:
        """The forms of all rows of its source that a later reader takes: True for bytes, False for numbers as they are."""
        if isinstance(reader.node, Window) and self._in_windows(reader):
            return {use == "bytes" for use in self._uses(reader)}
        return {False}

    def _share(self, loop: Loop, kind: str, name: str, elements: int) -> None:
        shared = self._shared.setdefault(loop, [])
        if (kind, name, elements) not in shared:
            shared.append((kind, name, elements))

    def _fetch(self, value: Value) -> list[str]:
        made: list[str] = []
        for source in self._sources(value):
            if value.loop is None or isinstance(value.node, Window) or source.loop == value.loop or (value.loop, source.word) in self._fetched:
                continue
            self._fetched.add((value.loop, source.word))
            start = f"{self._row('first + p', self.plan.rows(source)[0])} * {source.n}"
            made += [f"// {comment(source.node.name)}", *self._copied(source, source, start)]
            if any(self._kind(reader) == "bytes" for reader in self.plan.readers(source) if reader.loop == value.loop):
                made += self._narrowed(source)
        return made

    def _copied(self, value: Value, source: Value, start: str) -> list[str]:
        """Rows of `value` in this loop: what lies among all rows of `source` from element `start` on."""
        assert value.loop is not None
        row = f"{value.word}_rows_[p]"
        if value.type == source.type:
            copy = f"std::memcpy({row}, {self._all(source)} + {start}, {value.n} * sizeof({value.type}));"
        else:
            copy = each(value.n, f"{row}[i] = static_cast<{value.type}>({self._all(source)}[{start} + i]);")
        return [self._own(value, zero=True), f"for (int p = 0; p < P; ++p) {copy}"]

    def _written_as_bytes(self, value: Value) -> bool:
        """Whether the kernel that computes it writes bytes and nothing else."""
        node = value.node
        kernel = (isinstance(node, Input) and value.type == "std::int16_t") or (isinstance(node, Requant) and self._narrow(value, node.quant))
        return kernel and self._only_bytes(value)

    def _plain_text(self, value: Value) -> None:
        """The plain path's statements, for one constituent after the other where there are constituents."""
        loop = value.loop
        if isinstance(value.node, Flatten):
            loop = self._sources(value)[0].loop
            assert loop is not None
            self._share(loop, value.type, value.word, self.padded(value))
        elif isinstance(value.node, Pool | FloatPool):
            loop = self._sources(value)[0].loop
            assert loop is not None
            self._share(loop, *self.raw(value, value.node))
        if loop is None:
            self._text(value)
            return
        ready = len(self.loops[loop])
        self._text(value)
        text = self.loops[loop][ready:]
        del self.loops[loop][ready:]
        body = []
        for line in text:
            if line.startswith("alignas(64)"):
                self.loops[loop].append(self._own(value, zero=True))
            else:
                body.append(line)
        used = "\n".join(body)
        rows = [v for v in (value, *self._sources(value)) if v.loop is not None]
        inner = [f"auto& {v.word} = {v.word}_rows_[p];" for v in dict.fromkeys(rows) if re.search(rf"\b{v.word}\b", used)]
        if re.search(r"\bj\b", used):
            inner.insert(0, "const int j = first + p;")
        self.loops[loop] += ["for (int p = 0; p < P; ++p) {", *("  " + line for line in [*inner, *body]), "}"]

    def _wide_input(self, value: Value, node: Input) -> list[str]:
        names = []
        for name, values in (("centre", node.centre), ("scale", self.plan.scale(node)), ("lo", node.lo), ("hi", node.hi), ("nan", node.nan)):
            padded = np.zeros(_up(value.n, 16), np.int64 if name == "nan" else np.float32)
            padded[: value.n] = values
            names.append(f"{value.word}_{name}_")
            literals = [int_literal(v) for v in padded.tolist()] if name == "nan" else [float_literal(v) for v in padded.tolist()]
            self.constants.append(array("std::int32_t" if name == "nan" else "float", names[-1], padded.shape, literals))
        bytes = self._only_bytes(value)
        y, ys = self._place(value, bytes=bytes)
        x = self.plan.pointers[node.group] + ("" if node.length is None else f" + first * {value.n}")
        offset = self._offset(value) if bytes else 0
        call = f"{self._rows}::quantise_rows<{offset}, {self._p(value)}, {value.n}, {ys}>({x}, {', '.join(names)}, {y});"
        return [f"// {self.describe(value)}", self._own(value, bytes=bytes), call]

    def _wide_requant(self, value: Value, node: Requant) -> list[str]:
        source = self._sources(value)[0]
        bytes = self._only_bytes(value)
        head = [f"// {self.describe(value)}", self._own(value, bytes=bytes)]
        if isinstance(source.node, Affine) and self._kind(source) and self._fused(source):
            return [f"// {self.describe(source)}", *head, *self._dense(source, value, node.quant)]
        kernels = self._rows
        unit = KERNELS[kernels].lanes * (4 if bytes else 2)
        if _up(value.n, unit) > min(self.padded(source), self._place(value, bytes=bytes)[1]):
            kernels, unit = "madd256", 8 * (4 if bytes else 2)
        n = _up(value.n, unit)
        natural = np.arange(n)
        rule = self._rule(kernels, value, node.quant, source, natural, natural, folded=False)
        (x, xs), (y, ys) = self._place(source), self._place(value, bytes=bytes)
        return [*head, f"{kernels}::requantise<{rule}, {self._p(value)}, {n}, {xs}, {ys}>({x}, {y});"]

    def _fused(self, value: Value) -> bool:
        """Whether the only reader of an Affine is a Requant that its kernel applies."""
        readers = self.plan.readers(value)
        return len(readers) == 1 and isinstance(readers[0].node, Requant) and self._narrow(readers[0], readers[0].node.quant)

    def _narrow(self, value: Value, quant: Quant) -> bool:
        """Whether a Requant works in lanes of int32 and leaves int16, and its source lies in whole registers."""
        source = self._sources(value)[0]
        whole = source.type == "std::int16_t" or (source.type == "std::int32_t" and self.padded(source) % 16 == 0)
        return whole and value.type == "std::int16_t" and narrow(value, quant, source)

    # an Affine with what follows it ----------------------------------------------------------------------------------------------------------------------

    def _dense(self, value: Value, result: Value, quant: Quant | None) -> list[str]:
        """The call of the kernel of the Affine `value`, which writes `result`: itself as int32, or the Requant behind it as int16 or bytes."""
        assert isinstance(value.node, Affine)
        source = self._sources(value)[0]
        bytes, kind = self._only_bytes(result) and quant is not None, self._kind(value)
        units = 1 if quant is None else (4 if bytes else 2)
        kernels = min(self.kernels, key=lambda name: (_up(value.n, units * KERNELS[name].lanes), -KERNELS[name].lanes))
        lanes = KERNELS[kernels].lanes
        outputs, unit = _up(value.n, units * lanes), units * lanes
        per_group = 4 if kind == "bytes" else 2
        inputs = _up(source.n, 4 * per_group)
        place = np.concatenate([start + _order(units, lanes, 4) for start in range(0, outputs, unit)])
        weights = np.zeros((inputs, outputs), np.int64)
        weights[: source.n, : value.n] = value.node.w
        bias = np.zeros(outputs, np.int64)
        bias[: value.n] = value.node.b
        if kind == "bytes" and (offset := self._offset(source)):
            bias -= offset * weights.sum(axis=0)
        shorts = np.concatenate([start + _order(units // 2, 2 * lanes, 8) for start in range(0, outputs, unit)]) if units > 1 else place
        rule = self._rule(kernels, result, quant, value, place, shorts, folded=True)
        if quant is not None:
            bias[: value.n] += self._constant(value, result, quant)
        bias = ((bias + 2**31) % 2**32) - 2**31  # int32 as the registers add it
        laid = self._laid(weights[:, place].reshape(inputs // per_group, per_group, outputs // unit, unit))
        word = value.word
        self.constants.append(array("std::int8_t" if kind == "bytes" else "std::int16_t", f"{word}_w_", laid.shape, [int_literal(w) for w in laid.tolist()]))
        self.constants.append(array("std::int32_t", f"{word}_b_", bias.shape, [int_literal(b) for b in bias[place].tolist()]))
        (x, xs), (y, ys) = self._place(source, bytes=kind == "bytes"), self._place(result, bytes=bytes)
        return [f"{kernels}::dense<{rule}, {self._p(value)}, {inputs}, {outputs}, {units}, {xs}, {ys}>({x}, {word}_w_, {word}_b_, {y});"]

    @staticmethod
    def _laid(weights: np.ndarray) -> np.ndarray:
        """The weights as the kernels read them: [groups, group of four bytes, units, unit] -> [unit, group, output, input of the group]."""
        return np.asarray(weights.transpose(2, 0, 3, 1).ravel())

    @staticmethod
    def _constant(source: Value, value: Value, quant: Quant) -> np.ndarray:
        """The rounding constant of each feature where a bias can carry it: nothing is shifted to the left."""
        shift = source.f - value.f
        if shift.min() < 0 or quant.round == "floor":
            return np.zeros(value.n, np.int64)
        half: np.ndarray = np.left_shift(np.int64(1), shift) >> 1
        return half if quant.round == "half_up" else np.maximum(half - 1, 0)

    def _rule(self, kernels: str, value: Value, quant: Quant | None, source: Value, place: np.ndarray, shorts: np.ndarray, *, folded: bool) -> str:
        """Write what happens to the int32 of `source` on their way into `value`; returns the name of the type.

        `place` and `shorts` say which feature is where among the int32 and among the int16; `folded`: the source is an Affine whose bias carries the rounding
        constant and whose ReLU is still to be done.
        """
        relu = folded and isinstance(source.node, Affine) and source.node.relu
        write = _Rule(kernels, value.word, value.n, self.constants)
        if quant is None:
            round = [f"v = {kernels}::most(v, {kernels}::set1(0));"] if relu else []
            return write.struct(round, [], 0)
        shift = source.f - value.f
        constant = self._constant(source, value, quant) if folded else np.zeros(value.n, np.int64)
        least, most = limits(quant, value.n)
        saturates = quant.over != "wrap"
        lo, hi = (shift_round(bound, shift, quant.round) for bound in (source.lo, source.hi))
        round = []
        if relu and saturates and bool((least >= 0).all()):
            lo = np.full(value.n, -(2**31))  # the lower limit does it
        elif relu:
            round.append(f"v = {kernels}::most(v, {write.ints('relu', constant, place)});")
        round += self._shift(write, shift, quant, place, folded=folded)
        below, above = bool((lo < least).any()), bool((hi > most).any())
        if not saturates and (below or above):
            mask, sign = write.ints("mask", most - least, place), write.ints("sign", -least, place)
            round.append(f"v = {kernels}::sub({kernels}::both({kernels}::add(v, {sign}), {mask}), {sign});")
        offset = self._offset(value) if self._only_bytes(value) else -1
        # The packs saturate too: to int16, to unsigned bytes, or to signed ones.
        ends = {-1: (-(2**15), 2**15 - 1), 0: (0, 255), 128: (-128, 127)}[offset]
        clamp = []
        if saturates and below and not bool((least == ends[0]).all()):
            clamp.append(f"v = {kernels}::most_short(v, {write.shorts('lo', least, shorts)});")
        if saturates and above and not bool((most == ends[1]).all()):
            clamp.append(f"v = {kernels}::least_short(v, {write.shorts('hi', most, shorts)});")
        return write.struct(round, clamp, max(offset, 0))

    @staticmethod
    def _shift(write: _Rule, shift: np.ndarray, quant: Quant, place: np.ndarray, *, folded: bool) -> list[str]:
        kernels, made = write.kernels, []
        right = np.maximum(shift, 0)
        if shift.min() < 0:
            made.append(f"v = {kernels}::left(v, {write.ints('left', np.maximum(-shift, 0), place)});")
        half = np.left_shift(np.int64(1), right) >> 1
        if quant.round != "floor" and right.any() and not (folded and shift.min() >= 0):
            constant = half if quant.round == "half_up" else np.maximum(half - 1, 0)
            made.append(f"v = {kernels}::add(v, {write.ints('half', constant, place)});")
        alike = int(right[0]) if np.ptp(right) == 0 else -1
        if quant.round == "half_even" and right.any():
            # On a tie v is all ones below the quotient, whose last bit then carries; elsewhere one more changes nothing.
            if alike > 0:
                made.append(f"v = {kernels}::add_odd<{alike}>(v);")
            else:
                odd = f"{kernels}::both({kernels}::right(v, {write.ints('shift', right, place)}), {write.ints('odd', (right > 0).astype(np.int64), place)})"
                made.append(f"v = {kernels}::add(v, {odd});")
        if alike > 0:
            made.append(f"v = {kernels}::right<{alike}>(v);")
        elif right.any():
            made.append(f"v = {kernels}::right(v, {write.ints('shift', right, place)});")
        return made

    # pools -----------------------------------------------------------------------------------------------------------------------------------------------

    def _pools(self, value: Value, node: Pool) -> bool:
        """Whether a pool works in lanes of int32."""
        source = self._sources(value)[0]
        span = self.plan.pooled(node, source)
        whole = source.type == "std::int16_t" or (source.type == "std::int32_t" and self.padded(source) % 16 == 0)
        if not whole or max(-span[0], span[1]) >= 2**31 - 1:
            return False
        if node.quant is None:
            return True
        times, over = self._ratio(value, source)
        numerator, denominator = max(-span[0], span[1]) * int(times.max()), int(source.length or 1) * int(over.max())
        return numerator + 2 * denominator < 2**31 and narrow(value, node.quant, self._mean_source(value, source)) and value.type == "std::int16_t"

    @staticmethod
    def _ratio(value: Value, source: Value) -> tuple[np.ndarray, np.ndarray]:
        """The factors of the mean on the new grid: total * times / (count * over)."""
        up = np.clip(value.f - source.f, -40, 40)
        return np.left_shift(np.int64(1), np.maximum(up, 0)), np.left_shift(np.int64(1), np.maximum(-up, 0))

    @staticmethod
    def _mean_source(value: Value, source: Value) -> Value:
        """The rational as a value that is only left to be brought into the format: bounds with one to spare for its rounding."""
        up = np.maximum(value.f - source.f, 0)
        lo, hi = (np.minimum(source.lo, 0) << up) - 1, (np.maximum(source.hi, 0) << up) + 1
        return Value(value.node, f"{value.word}_mean_", value.n, value.f, lo, hi, None, "std::int32_t")

    def _wide_pool(self, value: Value, node: Pool) -> None:
        source = self._sources(value)[0]
        total, size = f"{value.word}_{node.kind}_", _up(value.n, 16)
        assert source.loop is not None
        count, kernels = source.loop.count, self._rows
        first = " = {};" if node.kind != "max" else ";"
        self.before.append(f"alignas(64) std::int32_t {total}[{size}]{first}")
        if node.kind == "max":
            self.before.append(f"for (std::int32_t& least : {total}) least = {count} > 0 ? std::numeric_limits<std::int32_t>::min() : 0;")
        self._share(source.loop, "std::int32_t", total, size)
        x, xs = self._place(source)
        kernel = "max_rows" if node.kind == "max" else "sum_rows"
        self.loops[source.loop] += [
            f"// {self.describe(value)}: over the constituents",
            f"{kernels}::{kernel}<{xs}>({x}, {total}, std::make_index_sequence<P>{{}});",
        ]
        if node.kind != "mean":
            self.after += [self._own(value, zero=True), each(value.n, f"{value.word}[i] = static_cast<{value.type}>({total}[i]);")]
            return
        assert node.quant is not None
        names = []
        for name, factors in zip(("times", "over"), self._ratio(value, source), strict=True):
            padded = np.ones(size, np.int64)
            padded[: value.n] = factors
            names.append(f"{value.word}_{name}_")
            self.constants.append(array("std::int32_t", names[-1], padded.shape, [int_literal(v) for v in padded.tolist()]))
        unit = np.arange(size)
        rational = self._mean_source(value, source)
        narrowest = KERNELS[self.kernels[-1]].rows
        rule = self._rule(narrowest, value, node.quant, rational, unit, unit, folded=False)
        self.after += [
            f"{narrowest}::mean<Round::{node.quant.round}>({total}, {names[0]}, {names[1]}, {count});",
            self._own(value),
            f"{narrowest}::requantise<{rule}, 1, {size}, {size}, {self.padded(value)}>({total}, {value.word});",
        ]

    # the path ---------------------------------------------------------------------------------------------------------------------------------------------

    def functions(self) -> str:
        """One function template per loop: P constituents, or positions of windows, from number `first` on."""
        made = []
        for loop in self.plan.loops:
            statements = self.loops[loop]
            parameters = [f"const float* {pointer}" for pointer in self._pointer(loop)] + ["int first"]
            parameters += [f"{kind} (&{name})[{size}]" for kind, name, size in self._shared.get(loop, [])]
            unused = [] if any(re.search(r"\bfirst\b", line) for line in statements) else ["static_cast<void>(first);"]
            made.append(
                f"template <int P>\n{self.target}static inline void {self._block(loop)}({', '.join(parameters)}) noexcept {{\n"
                + lines("\n".join([*unused, *statements]), 2)
                + "\n}\n"
            )
        return "\n".join(made)

    def loop(self, loop: Loop) -> list[str]:
        """Blocks of four constituents, then one of what is left."""
        count = loop.count
        shared = [name for _, name, _ in self._shared.get(loop, [])]

        def call(p: int, first: str) -> str:
            return f"{self._block(loop)}<{p}>({', '.join([*self._pointer(loop), first, *shared])})"

        whole = f"{count} - {count} % {ROWS}"
        rest = [f"  case {k}: {call(k, whole)}; break;" for k in range(1, ROWS)]
        return [
            f"for (int first = 0; first + {ROWS} <= {count}; first += {ROWS}) {call(ROWS, 'first')};",
            f"switch ({count} % {ROWS}) {{",
            *rest,
            "  default: break;",
            "}",
        ]

    def _pointer(self, loop: Loop) -> list[str]:
        """The argument with the group's numbers, which only the loop of its input reads."""
        return [] if loop.depth else [self.plan.pointers[loop.group]]

    def _block(self, loop: Loop) -> str:
        return f"{loop.count}block_" if loop.depth else f"{self.plan.pointers[loop.group]}_block_"


class _Rule:
    """Writes the type that takes int32 to their place: `round` in lanes of int32, `clamp` in lanes of int16, and the offset of bytes."""

    def __init__(self, kernels: str, word: str, n: int, constants: list[str]) -> None:
        self.kernels, self._word, self._n, self._constants = kernels, word, n, constants
        self._named: set[str] = set()

    def ints(self, name: str, values: np.ndarray, place: np.ndarray) -> str:
        """A register of int32 constants at position i: one for all, or a table."""
        return self._table(name, values, place, "std::int32_t", "set1")

    def shorts(self, name: str, values: np.ndarray, place: np.ndarray) -> str:
        """A register of int16 constants, clipped to int16: the pack before it saturates there."""
        return self._table(name, np.clip(values, -(2**15), 2**15 - 1), place, "std::int16_t", "set1_short")

    def _table(self, name: str, values: np.ndarray, place: np.ndarray, kind: str, alike: str) -> str:
        if np.ptp(values) == 0:
            return f"{self.kernels}::{alike}({int_literal(int(values[0]))})"
        if name not in self._named:
            self._named.add(name)
            padded = np.zeros(len(place), np.int64)
            padded[: self._n] = values
            self._constants.append(array(kind, f"{self._word}_{name}_", padded.shape, [int_literal(v) for v in padded[place].tolist()]))
        return f"{self.kernels}::load({self._word}_{name}_ + i)"

    def struct(self, round: list[str], clamp: list[str], offset: int) -> str:
        """Define the type and return its name."""
        name, out = f"{self._word}_rule_", []
        head = f"  {inlined(KERNELS[self.kernels])} static inline {self.kernels}::Vec"
        for function, body in (("round", round), ("clamp", clamp)):
            index = "std::size_t i" if any("+ i)" in line for line in body) else "std::size_t"
            out.append(f"{head} {function}({self.kernels}::Vec v, {index}) noexcept {{\n" + lines("\n".join([*body, "return v;"]), 4) + "\n  }")
        self._constants.append(f"struct {name} {{\n  static constexpr int offset = {offset};\n" + "\n".join(out) + "\n};")
        return name


class Avx2(Wide):
    """256 bits: `vpmaddwd`, or `vpmaddubsw` where every pair is proved."""

    name = "avx2"
    available = "has_avx2"
    kernels = ("madd256",)


class Avx512(Wide):
    """512 bits: the same instructions."""

    name = "avx512"
    available = "has_avx512"
    kernels = ("madd512", "madd256")


class Vnni(Wide):
    """512 bits: `vpdpbusd` and `vpdpwssd`, which multiply and add at once."""

    name = "vnni"
    available = "has_vnni"
    kernels = ("vnni512", "vnni256")
    bytes = True


def inlined(kernels: Kernels) -> str:
    """The attributes of a function that is merged into its caller."""
    return f"[[{', '.join(filter(None, ('gnu::always_inline', kernels.attribute)))}]]"


def _up(n: int, unit: int) -> int:
    return -(-n // unit) * unit


def _order(units: int, lanes: int, step: int) -> np.ndarray:
    """Which output each lane of a unit of `units` registers holds, so that the packs, which work on 128 bits at a time, leave outputs in order.

    `step` lanes make 128 bits.
    """
    blocks = np.arange(lanes // step)[None, :, None] * units * step
    return np.asarray((blocks + np.arange(units)[:, None, None] * step + np.arange(step)).ravel())

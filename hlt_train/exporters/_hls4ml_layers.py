"""A graph as hls4ml's own list of layers, every type of every layer stated: no type is left to a default or to inference.

Widths come from the proof (`hlt_train.proof`), so nothing inside overflows or rounds except the `FixedPointQuantizer` layers, one per `Requant`, whose widths
are per element. hls4ml's own derivation of widths is switched off: it narrows a saturating quantiser to its source's fraction bits, and a value that saturates
then stops short of the format's largest.

Constituents beyond the count are masked by a second input per collection, one bit per constituent: the bit is copied to every feature and multiplied into
what a `Pool`, `Flatten` or `Window` reads; behind a stride, a position has the bit of the constituent that it starts at. A sum is a 1x1 convolution with
weights 1 over the transposed constituents. An `Affine` behind a `Window` is a Conv1D with the window's kernel, stride and padding; a `Window` that anything
else reads is one whose weights are 0 and 1.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from hlt_train.arithmetic import limits
from hlt_train.errors import UsageError
from hlt_train.exporters._convolutions import Span, bits_of_positions, masked_groups
from hlt_train.exporters._hls4ml_types import Type, reduced, spanning, union
from hlt_train.graph import Add, Affine, Concat, Flatten, Graph, Input, Node, Output, Pool, Requant, Window
from hlt_train.proof import Proof, prove

__all__ = ["Array", "Layers"]

ROUNDING = {"floor": "TRN", "half_up": "RND", "half_even": "RND_CONV"}
OVERFLOW = {"wrap": "WRAP", "sat": "SAT", "sat_sym": "SAT_SYM"}
WIDEST = 128  # bits of a type; far below what ap_types holds, far above what a trigger uses
PORT = 62  # bits of an input or output in one type: the C interface hands int64 over
FLOAT64 = 53  # bits of a constant: hls4ml keeps weights in float64
BIT = Type(False, 1, 1)  # of a mask, and of the weights that copy or add


class Array(NamedTuple):
    """A value of the network as hls4ml holds it: layer, type, features, length (None for scalars), exponents per feature."""

    layer: str
    type: Type
    n: int
    length: int | None

    @property
    def shape(self) -> list[int]:
        """Without the batch."""
        return [self.n] if self.length is None else [self.length, self.n]


def refuse(node: Node, what: str, *, near: tuple[str, ...] = ("cpp",), then: str = "") -> UsageError:
    """A refusal that names the node."""
    return UsageError(f"{type(node).__name__} '{node.name}': {what}", where=f"node '{node.name}'", near=near, then=then)


class Layers:
    """The layers of a graph.

    Attributes:
        layers: dictionaries for `ModelGraph.from_layer_list`.
        precisions: layer name -> variable -> type.
        inputs: names of the input layers in the order of the top function: every input of the graph, then the mask of every collection that is masked.
        arrays: node name -> its value.
        output: the value of the Output.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.layers: list[dict[str, Any]] = []
        self.precisions: dict[str, dict[str, Type]] = {}
        self._masks: dict[str, Array] = {}
        self.arrays: dict[str, Array] = {}
        self._before: dict[str, tuple[Array, Span]] = {}  # what a window reads, and how
        self._masked: dict[str, Array] = {}
        self.proofs = prove(graph)
        self._read_inputs()
        for node in graph.nodes:
            if not isinstance(node, Input):
                self.arrays[node.name] = self._node(node, [self.arrays[name] for name in node.sources])
        self.output = self.arrays[graph.output.name]
        self._port(graph.output)

    @property
    def inputs(self) -> list[str]:
        """Names of the input layers."""
        return [*(self.arrays[node.name].layer for node in self.graph.inputs), *(mask.layer for mask in self._masks.values())]

    def _read_inputs(self) -> None:
        masked = masked_groups(self.graph)
        for node in self.graph.inputs:
            self.arrays[node.name] = self._input(node, self._type(node), len(node.variables), node.length)
            self._port(node)
        for node in self.graph.inputs:
            if node.group in masked:
                self._masks[node.group] = self._input(node, BIT, 1, node.length, "valid")

    def _port(self, node: Node) -> None:
        width = self.arrays[node.name].type.width
        if width > PORT:
            raise refuse(node, f"needs {width} bits in one type, more than {PORT}", then="use closer exponents")

    def _input(self, node: Node, type_: Type, n: int, length: int | None, suffix: str = "") -> Array:
        shape = [n] if length is None else [length, n]
        return self._layer(node, "InputLayer", [], type_, n, length, suffix, input_shape=shape, data_format="channels_last")

    def _layer(self, node: Node, kind: str, sources: list[str], type_: Type, n: int, length: int | None, suffix: str = "", **attributes: Any) -> Array:
        if type_.width > WIDEST:
            raise refuse(node, f"needs a type of {type_.width} bits, more than {WIDEST}", then="use closer exponents")
        plain = "".join(c if c.isascii() and c.isalnum() else "_" for c in node.name.lower())
        name = f"n{len(self.layers)}_{plain}{'_' + suffix if suffix else ''}"
        self.layers.append({"class_name": kind, "name": name, "inputs": sources, "outputs": [name], **attributes})
        self.precisions[name] = {"result": type_}
        return Array(name, type_, n, length)

    def _type(self, node: Node) -> Type:
        """The type that holds what the node yields."""
        f = self.graph.structure[node.name].f
        assert f is not None
        proof = self.proofs[node.name]
        return spanning(proof.lo, proof.hi, f)

    def _node(self, node: Node, sources: list[Array]) -> Array:
        if isinstance(node, Affine):
            return self._affine(node, sources[0])
        if isinstance(node, Requant):
            return self._requant(node, sources[0])
        if isinstance(node, Add | Concat):
            return self._merge(node, sources)
        if isinstance(node, Flatten):
            masked = self._mask(node, node.group, sources[0], node.sources[0])
            assert masked.length is not None
            return self._reshape(node, masked, masked.length * masked.n)
        if isinstance(node, Pool):
            return self._pool(node, sources[0])
        if isinstance(node, Window):
            return self._window(node, sources[0])
        assert isinstance(node, Output)
        return sources[0]

    def _affine(self, node: Affine, source: Array) -> Array:
        f_in = self.graph.structure[node.sources[0]].f
        assert f_in is not None
        exponent = np.asarray(node.f[None, :] - f_in[:, None])
        types = {"weight": reduced(node.w, exponent), "bias": reduced(node.b, node.f)}
        for what, found in types.items():
            if found.width > FLOAT64:
                raise refuse(node, f"its {what} needs {found.width} bits in one type, more than {FLOAT64}", then="use closer exponents")
        sums = self._sums(node, self.proofs[node.sources[0]])
        w, b = np.ldexp(node.w.astype(np.float64), -exponent.astype(np.int32)), np.ldexp(node.b.astype(np.float64), -node.f.astype(np.int32))
        outputs = node.w.shape[1]
        if source.length is None:
            acc = self._dense(node, source, w, b, sums)
        else:
            read, span = self._before.get(node.sources[0], (source, Span()))
            acc = self._conv(node, read, w.reshape(span.kernel, read.n, outputs), b, sums, span)
        self.precisions[acc.layer] |= types
        if not node.relu:
            return acc
        return self._layer(node, "Activation", [acc.layer], self._type(node), outputs, acc.length, "relu", activation="relu", n_in=outputs * (acc.length or 1))

    def _window(self, node: Window, source: Array) -> Array:
        """Left to the Affines that read it; where something else does, a convolution that copies every neighbour."""
        span = Span(node.kernel, node.stride, node.before, node.after)
        masked = self._mask(node, node.group, source, node.sources[0])
        self._before[node.name] = masked, span
        n, form = span.kernel * source.n, self.graph.structure[node.name]
        if all(isinstance(reader, Affine) for reader in self.graph.nodes if node.name in reader.sources):
            return Array("", source.type, n, form.length)
        return self._copy(node, masked, np.eye(n).reshape(span.kernel, source.n, n), span, "")

    def _sums(self, node: Affine, source: Proof) -> Type:
        """The type of every partial sum, in any order."""
        most = np.maximum(np.maximum(np.abs(source.lo), np.abs(source.hi)), 1)
        bound = most @ np.abs(node.w) + np.abs(node.b)
        return spanning(-bound, bound, node.f)

    def _dense(self, node: Node, source: Array, w: np.ndarray, b: np.ndarray, sums: Type) -> Array:
        """Scalars. w: `[n, outputs]`."""
        n_in, n_out = w.shape
        return self._linear(node, "Dense", source, sums, n_out, None, "", n_in=n_in, n_out=n_out, weight_data=w, bias_data=b)

    def _conv(self, node: Node, source: Array, w: np.ndarray, b: np.ndarray, sums: Type, span: Span, suffix: str = "") -> Array:
        """Constituents. w: `[kernel, n, outputs]`."""
        assert source.length is not None
        width, outputs = span.positions(source.length), w.shape[2]
        shape = {"in_width": source.length, "out_width": width, "n_chan": source.n, "n_filt": outputs, "filt_width": span.kernel, "stride_width": span.stride}
        padding = {"pad_left": span.before, "pad_right": span.after, "padding": "valid", "data_format": "channels_last"}
        return self._linear(node, "Conv1D", source, sums, outputs, width, suffix, weight_data=w, bias_data=b, **shape, **padding)

    def _linear(self, node: Node, kind: str, source: Array, sums: Type, n: int, length: int | None, suffix: str, **attributes: Any) -> Array:
        acc = self._layer(node, kind, [source.layer], sums, n, length, suffix, use_bias=True, activation="linear", trace=False, **attributes)
        self.precisions[acc.layer]["accum"] = sums
        return acc

    def _copy(self, node: Node, source: Array, w: np.ndarray, span: Span, suffix: str, sums: Type | None = None) -> Array:
        """A convolution whose weights are 0 and 1."""
        found = self._conv(node, source, w, np.zeros(w.shape[2]), sums or source.type, span, suffix)
        self.precisions[found.layer] |= {"weight": BIT, "bias": BIT}
        return found

    def _requant(self, node: Requant, source: Array) -> Array:
        quant = node.quant
        if quant.mantissa is not None:
            raise refuse(node, "rounds to a minifloat, and a type of hls4ml is fixed point", near=("cpp", "onnx"), then="train with activations ufixed")
        if quant.round not in ROUNDING or quant.over not in OVERFLOW:
            raise refuse(node, f"{quant.round} with {quant.over} is not a mode of ap_fixed")
        lo, hi = limits(quant, source.n)
        width = np.where((lo == 0) & (hi == 0), 0, np.broadcast_to(quant.to.width, source.n))
        integer = width - np.broadcast_to(np.asarray(quant.to.f, np.int64), source.n)
        source = self._reaching(node, source, int((integer - width)[width > 0].max(initial=source.type.integer - 2)))
        # An array of any of the three must be one of all of them, or hls4ml takes the largest for every element.
        keep = np.full(source.n, int(quant.to.signed))
        mask = tuple(np.broadcast_to(value, (1, *source.shape)).astype(np.int16) for value in (keep, width, np.where(width > 0, integer, 0)))
        over = "SAT" if quant.over == "sat_sym" and not quant.to.signed else OVERFLOW[quant.over]
        attributes: dict[str, Any] = {"mask_kbi": mask, "RND": ROUNDING[quant.round], "SAT": over, "overrides": {}, "fusible": False}
        return self._layer(node, "FixedPointQuantizer", [source.layer], self._type(node), source.n, source.length, **attributes)

    def _reaching(self, node: Requant, source: Array, lowest: int) -> Array:
        """The source in a type that has the bits about 2**lowest, the coarsest last bit of a quantiser: ap_types reads them whether they exist or not."""
        missing = lowest + 2 - source.type.integer
        if missing <= 0:
            return source
        old = source.type
        mask = tuple(np.full((1, *source.shape), value, np.int16) for value in (int(old.signed), old.width, old.integer))
        wide = Type(old.signed, old.width + missing, old.integer + missing)
        same: dict[str, Any] = {"mask_kbi": mask, "RND": "TRN", "SAT": "WRAP", "overrides": {}, "fusible": False}
        return self._layer(node, "FixedPointQuantizer", [source.layer], wide, source.n, source.length, "wide", **same)

    def _merge(self, node: Add | Concat, sources: list[Array]) -> Array:
        """Two at a time; every intermediate type holds all that can arise."""
        total, attributes = sources[0], dict[str, Any]()
        for k, source in enumerate(sources[1:]):
            suffix = f"part{k}" if k < len(sources) - 2 else ""
            if isinstance(node, Add):
                wide = union((total.type, source.type))
                kind, n, attributes = "Merge", total.n, {"op": "add"}
                type_ = Type(wide.signed, wide.width + 1, wide.integer + 1)
            else:
                axis = 1 if total.length is None else 2
                kind, n, attributes = "Concatenate", total.n + source.n, {"axis": axis, "op": f"concatenate{axis}d"}
                type_ = union((total.type, source.type))
            total = self._layer(node, kind, [total.layer, source.layer], type_, n, total.length, suffix, **attributes)
        return total

    def _reshape(self, node: Node, source: Array, n: int) -> Array:
        return self._layer(node, "Reshape", [source.layer], source.type, n, None, "flat", target_shape=[n])

    def _mask(self, node: Node, group: str, source: Array, name: str) -> Array:
        """The source with zeros at positions that do not exist."""
        if name not in self._masked:
            copied = self._valid(node, group, name)
            self._masked[name] = self._layer(node, "Merge", [source.layer, copied.layer], source.type, source.n, source.length, "masked", op="multiply")
        return self._masked[name]

    def _valid(self, node: Node, group: str, name: str) -> Array:
        """A bit for every feature of every position of node `name`."""
        valid, form = self._masks[group], self.graph.structure[name]
        assert valid.length is not None
        if (form.n, form.length) == (1, valid.length):
            return valid
        span, w = bits_of_positions(valid.length, form)
        return self._copy(node, valid, w[:, None, :].astype(np.float64), span, "copy")

    def _pool(self, node: Pool, source: Array) -> Array:
        if node.kind == "mean":
            raise refuse(node, "a mean over a variable number of constituents is no exact hls4ml layer", near=("sum", "cpp"), then="train with pool 'sum'")
        assert source.length is not None
        if node.kind == "max":
            if self.proofs[node.sources[0]].lo.min() < 0:
                what = f"'{node.sources[0]}' can be negative, and an absent constituent, which is 0, would win the maximum"
                raise refuse(node, what, near=("sum", "cpp"), then="put a ReLU or an unsigned format before the pool, or train with pool 'sum'")
            masked = self._mask(node, node.group, source, node.sources[0])
            top = self._layer(node, "GlobalPooling1D", [masked.layer], source.type, source.n, None, n_in=source.length, n_filt=source.n, pool_op="Max")
            self.layers[-1]["class_name"] = "GlobalMaxPooling1D"
            self.layers[-1]["data_format"] = "channels_last"
            self.precisions[top.layer]["accum"] = source.type
            return top
        masked = self._mask(node, node.group, source, node.sources[0])
        turned = self._layer(node, "Transpose", [masked.layer], source.type, source.length, source.n, "turned", perm=[1, 0])
        sums = Type(source.type.signed, source.type.width + source.length.bit_length(), source.type.integer + source.length.bit_length())
        total = self._copy(node, turned, np.ones((1, source.length, 1)), Span(), "sum", sums)
        return self._reshape(node, total, source.n)

"""A graph as QONNX: standard operators and `Quant` nodes with one power-of-two scale and one width per tensor, as hls4ml and FINN read them.

Constituents are `[1, features, 1, length]`: an `Affine` on them is a `Conv` of kernel 1, behind a `Window` one of the window's kernel, stride and padding, with
its bias inside, since a reader that moves channels last does not move a bias that is added. Constituents beyond the count are masked by a second input per
collection, `[1, 1, 1, length]`: a `Conv` with weights 1 copies its bit to every feature, and what a `Pool`, `Flatten` or `Window` reads is multiplied by it. A
maximum is a `MaxPool` over all positions, a sum a `Conv` over all positions with weights 0 and 1: global pooling and reductions are read wrongly or not at all.

Every condition on what the readers take exactly is enforced here, by the name of the node that breaks it; `hls4ml` is the target that takes more.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from hlt_train.errors import UsageError
from hlt_train.exporters._convolutions import Span, bits_of_positions, masked_groups
from hlt_train.exporters._hls4ml_types import Type, reduced, spanning
from hlt_train.graph import Add, Affine, Fixed, Flatten, Graph, Input, Node, Output, Pool, Requant, Window
from hlt_train.proof import prove
from hlt_train.structure import Structure

__all__ = ["DOMAIN", "Model"]

DOMAIN = "qonnx.custom_op.general"
OPSET, IR = 13, 8
ROUNDING = {"floor": "FLOOR", "half_even": "ROUND"}  # spelt as hls4ml reads them; QONNX's HALF_UP is half away from zero
FLOAT32 = 24  # bits of a constant
BIT = Type(False, 1, 1)  # of a mask


def refuse(node: Node, what: str, *, near: tuple[str, ...] = ("hls4ml",), then: str = "hlt-train export RUN --to hls4ml --out DIR") -> UsageError:
    """A refusal that names the node."""
    return UsageError(f"{type(node).__name__} '{node.name}': {what}", where=f"node '{node.name}'", near=near, then=then)


class Model:
    """The operators of a graph.

    Attributes:
        inputs: group -> name of the model's input.
        masks: group -> name of the input that says which constituents exist, 1 or 0 for each.
        input_types: name of the model's input -> type of its Quant, which a reader must give to its own input.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.inputs: dict[str, str] = {}
        self.masks: dict[str, str] = {}
        self.input_types: dict[str, Type] = {}
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._shapes: dict[str, list[int]] = {}
        self._stem = ""
        self._valid: dict[str, str] = {}  # group -> its mask behind the Quant
        self._windows: dict[str, tuple[str, Span]] = {}  # what a window reads, and how
        self._masked: dict[str, str] = {}
        self._proofs = prove(graph)
        tensors: dict[str, str] = {}
        for index, node in enumerate(graph.nodes):
            self._stem = f"n{index}_" + "".join(c if c.isascii() and c.isalnum() else "_" for c in node.name)
            self._check(node)
            tensors[node.name] = self._node(node, [tensors[name] for name in node.sources])
        self._output = tensors[graph.output.name]

    def proto(self) -> Any:
        """The model, batch 1, with the shape of every tensor."""
        inputs = [*self.inputs.values(), *self.masks.values()]
        inner = [name for name in self._shapes if name not in (*inputs, self._output)]
        values, outputs, between = ([self._value(name) for name in names] for names in (inputs, [self._output], inner))
        graph = helper.make_graph(self._nodes, "hlt_train", values, outputs, self._constants, value_info=between)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR, producer_name="hlt-train")

    def _value(self, name: str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, self._shapes[name])

    def _op(self, kind: str, suffix: str, inputs: list[str], shape: list[int], **attributes: Any) -> str:
        name = f"{self._stem}_{suffix}"
        domain = DOMAIN if kind == "Quant" else ""
        self._nodes.append(helper.make_node(kind, inputs, [name], name=f"{name}_{kind}", domain=domain, **attributes))
        self._shapes[name] = shape
        return name

    def _constant(self, suffix: str, value: np.ndarray | float | int) -> str:  # noqa: PYI041 - run-time checks tell them apart
        name = f"{self._stem}_{suffix}"
        self._constants.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
        return name

    def _quant(self, suffix: str, source: str, type_: Type, shape: list[int], *, narrow: bool = False, rounding: str = "ROUND") -> str:
        if type_.signed and type_.width == 1:
            type_ = Type(True, 2, type_.integer + 1)  # one signed bit means -1 and +1 in QONNX
        scale = self._constant(f"{suffix}_scale", 2.0**-type_.f)
        zero = self._constant(f"{suffix}_zero", 0.0)
        width = self._constant(f"{suffix}_bits", float(type_.width))
        return self._op("Quant", suffix, [source, scale, zero, width], shape, signed=int(type_.signed), narrow=int(narrow), rounding_mode=rounding)

    def _fixed_constant(self, node: Node, suffix: str, n: np.ndarray, exponent: np.ndarray) -> str:
        """A constant on its own grid, behind the Quant that states the grid."""
        type_ = reduced(n, exponent)
        if type_.width > FLOAT32:
            raise refuse(node, f"its {suffix} needs {type_.width} bits in one type, more than float32's {FLOAT32}")
        values = np.ldexp(n.astype(np.float64), -exponent.astype(np.int32))
        return self._quant(f"{suffix}_quant", self._constant(suffix, values), type_, list(n.shape))

    def _check(self, node: Node) -> None:
        if node.name in self._proofs and not self._proofs[node.name].f24:
            raise refuse(node, f"needs {self._proofs[node.name].acc_bits} bits, more than qonnx's float32 executor adds exactly")

    def _node(self, node: Node, sources: list[str]) -> str:
        shape = _shape(self.graph.structure[node.name])
        if isinstance(node, Input):
            return self._input(node)
        if isinstance(node, Affine):
            return self._affine(node, sources[0], shape)
        if isinstance(node, Requant):
            return self._requant(node, sources[0], shape)
        if isinstance(node, Add):
            terms = [self._stated(node, k, source) for k, source in enumerate(sources)]
            total = terms[0]
            for k, term in enumerate(terms[1:]):
                total = self._op("Add", f"sum{k}", [total, term], shape)
            return total
        if isinstance(node, Window):
            return self._window(node, sources[0])
        if isinstance(node, Flatten):
            return self._flat(self._mask(node, sources[0]), self.graph.structure[node.sources[0]])
        if isinstance(node, Pool):
            return self._pool(node, sources[0])
        if isinstance(node, Output):
            return sources[0]
        raise refuse(node, "has no counterpart that QONNX's readers take exactly")

    def _input(self, node: Input) -> str:
        """The integers of the input step as real values; the Quant states their grid and changes nothing."""
        f = self.graph.structure[node.name].f
        assert f is not None
        proof = self._proofs[node.name]
        type_ = spanning(proof.lo, proof.hi, f)
        if type_.width > FLOAT32:
            raise refuse(node, f"needs {type_.width} bits in one type, more than float32's {FLOAT32}")
        name = self.inputs[node.group] = self._stem
        shape = _shape(self.graph.structure[node.name])
        self._shapes[name] = shape
        self.input_types[name] = type_
        if node.group in masked_groups(self.graph):
            valid = self.masks[node.group] = f"{name}_valid"
            self._shapes[valid] = [1, 1, 1, shape[3]]
            self.input_types[valid] = BIT
            self._valid[node.group] = self._first(node, "valid_", valid, BIT)
        return self._first(node, "", name, type_)

    def _first(self, node: Input, prefix: str, name: str, type_: Type) -> str:
        """An input behind its Quant. One of a single channel has a single reader, a Conv of weight 1: hls4ml turns it once for every reader that it has."""
        shape = self._shapes[name]
        found = self._quant(f"{prefix}quant", name, type_, shape)
        if len(shape) == 2 or shape[1] > 1:
            return found
        return self._quant(f"{prefix}one", self._copy(node, f"{prefix}same", found, np.ones((1, 1), np.int64), Span(), shape), type_, shape)

    def _affine(self, node: Affine, source: str, shape: list[int]) -> str:
        before = self.graph.structure[node.sources[0]]
        assert before.f is not None
        exponent = np.asarray(node.f[None, :] - before.f[:, None])
        if before.length is None:
            found = self._op("MatMul", "matmul", [source, self._fixed_constant(node, "weight", node.w, exponent)], shape)
            if node.b.any():
                found = self._op("Add", "biased", [found, self._fixed_constant(node, "bias", node.b, node.f)], shape)
        else:
            read, span = self._windows.get(node.sources[0], (source, Span()))
            found = self._conv(node, "conv", read, (node.w, exponent), (node.b, node.f), span, shape)
        return self._op("Relu", "relu", [found], shape) if node.relu else found

    def _stated(self, node: Add, k: int, source: str) -> str:
        """A source of a sum; a bias that was added to it stays apart behind a Quant of its own grid, since hls4ml fails where two such sources meet."""
        name = node.sources[k]
        before = next(found for found in self.graph.nodes if found.name == name)
        form = self.graph.structure[name]
        if not isinstance(before, Affine) or before.relu or form.length is not None or not before.b.any():
            return source
        assert form.f is not None
        proof = self._proofs[name]
        type_ = spanning(proof.lo, proof.hi, form.f)
        if type_.width > FLOAT32:
            raise refuse(node, f"reads '{name}', which needs {type_.width} bits in one type, more than float32's {FLOAT32}")
        return self._quant(f"term{k}", source, type_, _shape(form))

    def _conv(
        self, node: Node, suffix: str, source: str, w: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray], span: Span, shape: list[int]
    ) -> str:
        """Weights `[kernel * n, outputs]` and biases `[outputs]`, each as integers and their exponents."""
        n, exponent = (part.reshape(span.kernel, -1, part.shape[1]).transpose(2, 1, 0)[:, :, None, :] for part in w)
        inputs = [source, self._fixed_constant(node, f"{suffix}_weight", n, exponent), self._fixed_constant(node, f"{suffix}_bias", *b)]
        kernel, pads = [1, span.kernel], [0, span.before, 0, span.after]
        return self._op("Conv", suffix, inputs, shape, kernel_shape=kernel, strides=[1, span.stride], pads=pads, dilations=[1, 1], group=1)

    def _copy(self, node: Node, suffix: str, source: str, w: np.ndarray, span: Span, shape: list[int]) -> str:
        """A Conv whose weights `[kernel * n, outputs]` are 0 and 1."""
        none = np.zeros(w.shape[1], np.int64)
        return self._conv(node, suffix, source, (w, np.zeros_like(w)), (none, none), span, shape)

    def _mask(self, node: Flatten | Pool | Window, source: str) -> str:
        """What the node reads, 0 at positions that do not exist."""
        name = node.sources[0]
        if name not in self._masked:
            form = self.graph.structure[name]
            span, w = bits_of_positions(self._shapes[self.masks[node.group]][3], form)
            copied = self._copy(node, "copied", self._valid[node.group], w, span, _shape(form))
            bits = self._quant("bits", copied, BIT, _shape(form))
            self._masked[name] = self._op("Mul", "masked", [source, bits], _shape(form))
        return self._masked[name]

    def _window(self, node: Window, source: str) -> str:
        """Left to the Affines that read it; where something else does, a Conv that copies every neighbour."""
        span = Span(node.kernel, node.stride, node.before, node.after)
        masked = self._mask(node, source)
        self._windows[node.name] = masked, span
        if all(isinstance(reader, Affine) for reader in self.graph.nodes if node.name in reader.sources):
            return ""
        form = self.graph.structure[node.name]
        return self._copy(node, "copy", masked, np.eye(form.n, dtype=np.int64), span, _shape(form))

    def _flat(self, source: str, form: Structure) -> str:
        """Constituent by constituent, the order of the integers. form: of the source."""
        assert form.length is not None
        turned = self._op("Transpose", "turned", [source], [1, 1, form.length, form.n], perm=[0, 2, 3, 1])
        return self._op("Flatten", "flat", [turned], [1, form.length * form.n], axis=1)

    def _pool(self, node: Pool, source: str) -> str:
        form = self.graph.structure[node.sources[0]]
        assert form.length is not None
        if node.kind == "mean":
            what = "a mean divides by the number of constituents that exist, and an AveragePool by the length"
            raise refuse(node, what, near=("sum", "cpp"), then="train with pool 'sum'")
        if node.kind == "max" and self._proofs[node.sources[0]].lo.min() < 0:
            what = f"'{node.sources[0]}' can be negative, and an absent constituent, which is 0, would win the maximum"
            raise refuse(node, what, near=("sum", "cpp"), then="put a ReLU or an unsigned format before the pool, or train with pool 'sum'")
        masked, shape = self._mask(node, source), [1, form.n, 1, 1]
        if node.kind == "max":
            top = self._op("MaxPool", "top", [masked], shape, kernel_shape=[1, form.length], strides=[1, 1], pads=[0, 0, 0, 0], dilations=[1, 1])
        else:
            top = self._copy(node, "total", masked, np.tile(np.eye(form.n, dtype=np.int64), (form.length, 1)), Span(form.length), shape)
        return self._op("Flatten", "flat", [top], [1, form.n], axis=1)

    def _requant(self, node: Requant, source: str, shape: list[int]) -> str:
        quant, n = node.quant, self.graph.structure[node.name].n
        if quant.mantissa is not None:
            raise refuse(node, "rounds to a minifloat, and a Quant is fixed point", near=("cpp", "onnx"), then="train with activations ufixed")
        if quant.round not in ROUNDING:
            raise refuse(node, f"rounds {quant.round}, which QONNX has no word for that hls4ml reads", near=("half_even", "floor", "hls4ml"))
        if quant.over == "wrap":
            raise refuse(node, "wraps, and a Quant saturates", near=("sat", "hls4ml"))
        widths, exponents = np.unique(np.broadcast_to(quant.to.width, n)), np.unique(np.broadcast_to(np.asarray(quant.to.f), n))
        if len(widths) > 1 or len(exponents) > 1:
            raise refuse(node, "has a format per feature, and a Quant is read with one width and one scale")
        width, f = int(widths[0]), int(exponents[0])
        if width < 1 + int(quant.to.signed):
            raise refuse(node, f"has a format of {width} bits{' with a sign' if quant.to.signed else ''}, which QONNX reads otherwise")
        return self._quant(
            "quant", source, _type(quant.to, width, f), shape, narrow=quant.over == "sat_sym" and quant.to.signed, rounding=ROUNDING[quant.round]
        )


def _shape(form: Structure) -> list[int]:
    """Batch 1; constituents with the features first, as ONNX has its channels."""
    return [1, form.n] if form.length is None else [1, form.n, 1, form.length]


def _type(to: Fixed, width: int, f: int) -> Type:
    return Type(to.signed, width, width - f)

"""A graph as QONNX: standard operators and `Quant` nodes with one power-of-two scale and one width per tensor, as hls4ml and FINN read them.

Every condition on what the readers take exactly is enforced here, by the name of the node that breaks it; `hls4ml` is the target that takes more.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from hlt_train.errors import UsageError
from hlt_train.exporters._hls4ml_types import Type, reduced, spanning
from hlt_train.graph import Add, Affine, Fixed, Graph, Input, Node, Output, Requant
from hlt_train.proof import prove

__all__ = ["DOMAIN", "Model"]

DOMAIN = "qonnx.custom_op.general"
OPSET, IR = 13, 8
ROUNDING = {"floor": "FLOOR", "half_even": "ROUND"}  # spelt as hls4ml reads them; QONNX's HALF_UP is half away from zero
FLOAT32 = 24  # bits of a constant


def refuse(node: Node, what: str, *, near: tuple[str, ...] = ("hls4ml",), then: str = "hlt-train export RUN --to hls4ml --out DIR") -> UsageError:
    """A refusal that names the node."""
    return UsageError(f"{type(node).__name__} '{node.name}': {what}", where=f"node '{node.name}'", near=near, then=then)


class Model:
    """The operators of a graph.

    Attributes:
        inputs: group -> name of the model's input.
        input_types: name of the model's input -> type of its Quant, which a reader must give to its own input.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.inputs: dict[str, str] = {}
        self.input_types: dict[str, Type] = {}
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._shapes: dict[str, list[int]] = {}
        self._stem = ""
        self._proofs = prove(graph)
        tensors: dict[str, str] = {}
        for index, node in enumerate(graph.nodes):
            self._stem = f"n{index}_" + "".join(c if c.isascii() and c.isalnum() else "_" for c in node.name)
            tensors[node.name] = self._node(node, [tensors[name] for name in node.sources])
        self._output = tensors[graph.output.name]

    def proto(self) -> Any:
        """The model, batch 1, with the shape of every tensor."""
        inputs = list(self.inputs.values())
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

    def _node(self, node: Node, sources: list[str]) -> str:
        structure = self.graph.structure[node.name]
        if structure.length is not None:
            raise refuse(node, f"yields constituents of '{structure.group}': a network over constituents is not read exactly from QONNX")
        if node.name in self._proofs and not self._proofs[node.name].f24:
            raise refuse(node, f"needs {self._proofs[node.name].acc_bits} bits, more than qonnx's float32 executor adds exactly")
        if isinstance(node, Input):
            return self._input(node)
        if isinstance(node, Affine):
            return self._affine(node, sources[0])
        if isinstance(node, Requant):
            return self._requant(node, sources[0])
        if isinstance(node, Add):
            total = sources[0]
            for k, source in enumerate(sources[1:]):
                total = self._op("Add", f"sum{k}", [total, source], [1, structure.n])
            return total
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
        shape = [1, len(node.variables)]
        self._shapes[name] = shape
        self.input_types[name] = type_
        return self._quant("quant", name, type_, shape)

    def _affine(self, node: Affine, source: str) -> str:
        f_in = self.graph.structure[node.sources[0]].f
        assert f_in is not None
        shape = [1, node.w.shape[1]]
        weight = self._fixed_constant(node, "weight", node.w, np.asarray(node.f[None, :] - f_in[:, None]))
        found = self._op("MatMul", "matmul", [source, weight], shape)
        if node.b.any():
            found = self._op("Add", "biased", [found, self._fixed_constant(node, "bias", node.b, node.f)], shape)
        return self._op("Relu", "relu", [found], shape) if node.relu else found

    def _requant(self, node: Requant, source: str) -> str:
        quant, n = node.quant, self.graph.structure[node.name].n
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
            "quant", source, _type(quant.to, width, f), [1, n], narrow=quant.over == "sat_sym" and quant.to.signed, rounding=ROUNDING[quant.round]
        )


def _type(to: Fixed, width: int, f: int) -> Type:
    return Type(to.signed, width, width - f)

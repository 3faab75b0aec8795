"""ONNX graphs, one operator at a time: names are unique, constants are stored once, and every tensor is float32 unless it says otherwise."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hlt_train.errors import UsageError

__all__ = ["Builder"]


class Builder:
    """Collects the parts of a model; every method returns the name of the tensor it makes.

    Args:
        opset: of the default domain.
    """

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self._nodes: list[Any] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._initialisers: list[Any] = []
        self._prefix = ""
        self._names: set[str] = set()
        self._ports: set[str] = set()

    def begin(self, node: str) -> None:
        """What follows belongs to node `node` of the IR."""
        self._prefix = node

    def _name(self, kind: str) -> str:
        number, name = 0, f"{self._prefix}/{kind}"
        while name in self._names:
            number += 1
            name = f"{self._prefix}/{kind}_{number}"
        self._names.add(name)
        return name

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """One operator with one output."""
        name = self._name(kind)
        self._nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, value: np.ndarray | float, kind: str = "constant", dtype: type = np.float32) -> str:
        """An initialiser; equal ones are shared, except weights, which keep the name of their node."""
        array: np.ndarray = np.asarray(value, dtype)
        key = (f"{array.dtype}{self._prefix if kind != 'constant' else ''}{kind}", array.shape, array.tobytes())
        if key not in self._constants:
            name = self._constants[key] = self._name(kind)
            self._initialisers.append(numpy_helper.from_array(array, name))
        return self._constants[key]

    def _port(self, name: str) -> str:
        """`name`, which no other input or output has."""
        if name in self._ports:
            raise UsageError(f"an input or output of the model is called '{name}' already", then="rename the group or the class in the card")
        self._ports.add(name)
        return name

    def input(self, name: str, *shape: int | str) -> str:
        """A float32 input."""
        self._port(name)
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)))
        return name

    def output(self, name: str, tensor: str, *shape: int | str) -> None:
        """Name `tensor` as a float32 output; no shape makes it a scalar of rank 0."""
        self._port(name)
        self._nodes.append(helper.make_node("Identity", [tensor], [name], name=name))
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)))

    def reduce(self, kind: str, tensor: str) -> str:
        """ReduceSum or ReduceMax over the constituents, axis 1. The axes became an input in opset 13 (sum) and 18 (max)."""
        if kind == "ReduceSum" or self.opset >= 18:
            return self.op(kind, tensor, self.constant(np.array([1]), "axes", np.int64), keepdims=0)
        return self.op(kind, tensor, axes=[1], keepdims=0)

    def size(self, tensor: str, axis: int) -> str:
        """The length of one axis, int64 `[1]`."""
        ends = (self.constant(np.array([k]), "axes", np.int64) for k in (axis, axis + 1))
        return self.op("Slice", self.op("Shape", tensor), *ends)

    def first(self, tensor: str, most: int | str, axis: int) -> str:
        """The first `most` (a number, or an int64 tensor `[1]`) entries along an axis; all of them where there are fewer."""
        zero, along = (self.constant(np.array([k]), "axes", np.int64) for k in (0, axis))
        end = most if isinstance(most, str) else self.constant(np.array([most]), "axes", np.int64)
        return self.op("Slice", tensor, zero, end, along)

    def model(self, name: str, metadata: dict[str, str], doc: str = "") -> Any:
        """The checked model; `doc` is its doc_string."""
        graph = helper.make_graph(self._nodes, name, self.inputs, self.outputs, self._initialisers)
        opsets = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(graph, opset_imports=opsets, producer_name="hlt-train", ir_version=helper.find_min_ir_version_for(opsets))
        model.doc_string = doc
        helper.set_model_props(model, metadata)
        onnx.checker.check_model(model, full_check=True)
        return model

"""A graph as a JSON document, exact in both directions: `hlt-train/graph` version 1 or, where a node rounds to a mantissa, version 2.

Every array keeps its dtype. Integers are JSON integers; float32 are the shortest decimal that reads back to the same bits, infinities the strings "inf" and
"-inf"; large arrays are base64 of little-endian bytes. Nodes are objects with their class's name under "node".
"""

from __future__ import annotations

import base64
import dataclasses
import math
from typing import Any

import numpy as np

from hlt_train import nodes
from hlt_train.errors import UsageError, nearest
from hlt_train.graph import Graph
from hlt_train.nodes import Fixed, Node, Quant

__all__ = ["FORMAT", "VERSION", "from_document", "to_document"]

FORMAT = "hlt-train/graph"
VERSION = 2  # the newest that is read; a graph is written as the oldest that can say it
LARGE = 1 << 16  # elements beyond which an array is base64
DTYPES = ("int64", "float32")
NODES = {c.__name__: c for c in vars(nodes).values() if isinstance(c, type) and issubclass(c, Node) and c is not Node}


def to_document(graph: Graph) -> dict[str, Any]:
    """The graph as JSON-able content, format and version included."""
    quants = [getattr(node, "quant", None) for node in graph.nodes]
    version = 2 if any(quant is not None and quant.mantissa is not None for quant in quants) else 1
    return {"format": FORMAT, "version": version, "nodes": [{"node": type(node).__name__, **_fields(node)} for node in graph.nodes]}


def from_document(document: dict[str, Any]) -> Graph:
    """The graph that `to_document` wrote; anything else is refused by format, version, node or field."""
    if document.get("format") != FORMAT:
        raise UsageError(f"expected a document of format '{FORMAT}', found {document.get('format')!r}")
    version = document.get("version")
    if not isinstance(version, int) or not 1 <= version <= VERSION:
        raise UsageError(f"'{FORMAT}' version {version!r} is not one that this program reads (1 to {VERSION})", then="pip install -U hlt-train")
    return Graph(tuple(_node(item, index) for index, item in enumerate(document.get("nodes", []))))


def _fields(value: Any) -> dict[str, Any]:
    return {field.name: _encode(getattr(value, field.name)) for field in dataclasses.fields(value)}


def _encode(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return _encode_array(value)
    if isinstance(value, Quant) and value.mantissa is None:  # what version 1 says of a format
        return {name: content for name, content in _fields(value).items() if name != "mantissa"}
    if isinstance(value, Quant | Fixed):
        return _fields(value)
    if isinstance(value, tuple):
        return list(value)
    return value


def _encode_array(array: np.ndarray) -> dict[str, Any]:
    dtype = array.dtype.name
    assert dtype in DTYPES, dtype
    head = {"dtype": dtype, "shape": list(array.shape)}
    if array.size > LARGE:
        return {**head, "base64": base64.b64encode(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()).decode()}
    # repr of the double is the shortest text that gives the double, and so the float32, back.
    return {**head, "data": [v if math.isfinite(v) else str(v) for v in array.ravel().tolist()]}


def _decode_array(content: dict[str, Any]) -> np.ndarray:
    dtype = np.dtype(content["dtype"])
    if dtype.name not in DTYPES:
        raise ValueError(f"dtype {dtype.name}")
    if "base64" in content:
        flat = np.frombuffer(base64.b64decode(content["base64"], validate=True), dtype.newbyteorder("<")).astype(dtype)
    elif dtype.name == "int64":
        if not all(type(v) is int for v in content["data"]):
            raise ValueError("integers expected")
        flat = np.array(content["data"], np.int64)
    else:
        flat = np.array([float(v) for v in content["data"]], np.float32)
    return flat.reshape(content["shape"])


def _decode(name: str, value: Any) -> Any:
    if isinstance(value, dict):
        if name == "quant":
            return Quant(_decode("to", value["to"]), value["round"], value["over"], value.get("mantissa"))
        if name == "to":
            return Fixed(value["signed"], _decode("i", value["i"]), _decode("f", value["f"]))
        return _decode_array(value)
    return tuple(value) if isinstance(value, list) else value


def _node(item: dict[str, Any], index: int) -> Node:
    where = f"nodes[{index}] ({item.get('name', '?')})"
    kind = str(item.get("node"))
    if kind not in NODES:
        raise UsageError(f"no node is called '{kind}'", where=where, near=nearest(kind, NODES), then="pip install -U hlt-train")
    known = {field.name for field in dataclasses.fields(NODES[kind])}
    given = item.keys() - {"node"}
    if given != known:
        wrong = sorted(given ^ known)
        raise UsageError(f"{kind} has fields {', '.join(sorted(known))}; found or missing: {', '.join(wrong)}", where=where)
    for field in dataclasses.fields(NODES[kind]):
        if field.type == "int" and type(item[field.name]) is not int:
            raise UsageError(f"damaged {kind}: {field.name} must be an integer, found {item[field.name]!r}", where=where)
    try:
        return NODES[kind](**{name: _decode(name, item[name]) for name in given})
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"damaged {kind}: {error}", where=where) from error

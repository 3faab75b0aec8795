"""States as a JSON document and named arrays, for checkpoints: nested lists, tuples, dictionaries and the messages of this room, without pickle."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hlt_train.transports.actors import Reply
from hlt_train.transports.program import Message

__all__ = ["freeze", "thaw"]

KINDS: dict[str, Any] = {"message": Message, "reply": Reply}


def freeze(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """`value` as JSON; copies of its arrays go into `arrays`, by number.

    Raises:
        TypeError: it holds something else.
    """
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        name = f"a{len(arrays)}"
        array = np.array(value)  # a copy: its owner may go on counting in it
        if array.dtype.kind == "V":  # bfloat16 and its like: an npz holds them without their name
            arrays[name] = array.view(f"u{array.dtype.itemsize}")
            return {"bits": [name, array.dtype.name]}
        arrays[name] = array
        return {"array": name}
    for kind, of in KINDS.items():
        if isinstance(value, of):
            return {kind: [freeze(item, arrays) for item in value]}
    if isinstance(value, tuple):
        return {"tuple": [freeze(item, arrays) for item in value]}
    if isinstance(value, (set, frozenset)):
        return [freeze(item, arrays) for item in sorted(value)]
    if isinstance(value, list):
        return [freeze(item, arrays) for item in value]
    if isinstance(value, dict):
        return {"dict": [[freeze(k, arrays), freeze(v, arrays)] for k, v in value.items()]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"cannot freeze {type(value).__name__}")


def thaw(content: Any, arrays: dict[str, np.ndarray]) -> Any:
    """The inverse of `freeze`; sets come back as lists."""
    if isinstance(content, list):
        return [thaw(item, arrays) for item in content]
    if not isinstance(content, dict):
        return content
    ((kind, value),) = content.items()
    if kind == "array":
        return arrays[value]
    if kind == "bits":
        return arrays[value[0]].view(jnp.dtype(value[1]))
    if kind == "tuple":
        return tuple(thaw(item, arrays) for item in value)
    if kind == "dict":
        return {thaw(k, arrays): thaw(v, arrays) for k, v in value}
    return KINDS[kind](*(thaw(item, arrays) for item in value))

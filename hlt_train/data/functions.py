"""The functions of the expression language (`expressions.py`): NumPy's element by element, and reductions over the elements of an entry (axis 1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import awkward as ak
import numpy as np

__all__ = ["CONSTANTS", "FUNCTIONS", "Function"]

CONSTANTS: dict[str, float] = {"pi": float(np.pi), "nan": float("nan"), "inf": float("inf")}


class Function(NamedTuple):
    """A function of the language: its call, numbers of positional arguments, options with their types, and whether it works element by element."""

    call: Callable[..., Any]
    least: int
    most: int
    options: Mapping[str, type[int | float]] = MappingProxyType({})
    elementwise: bool = True


def _jagged(x: Any, name: str) -> ak.Array:
    if not isinstance(x, ak.Array) or x.ndim < 2:
        raise TypeError(f"{name}() works on jagged arrays: it needs a list per entry, not one value")
    return x


def _filled(x: Any, default: float) -> Any:
    """Option-type result of a reduction -> plain numbers, `default` where a list was empty."""
    x = ak.fill_none(x, default, axis=-1)
    return ak.to_numpy(x) if x.ndim == 1 else x


def _extreme(reduce: Callable[..., Any], pairwise: Callable[[Any, Any], Any], name: str) -> Callable[..., Any]:
    def call(x: Any, y: Any = None, *, axis: int = 1, default: float = float("nan")) -> Any:
        if y is not None:
            return pairwise(x, y)
        return _filled(reduce(_jagged(x, name), axis=axis), default)

    return call


def _reduce(reduce: Callable[..., Any], name: str) -> Callable[..., Any]:
    def call(x: Any, *, axis: int = 1) -> Any:
        found = reduce(_jagged(x, name), axis=axis)
        return ak.to_numpy(found) if found.ndim == 1 else found

    return call


def _mean(x: Any, *, axis: int = 1, default: float = float("nan")) -> Any:
    x = _jagged(x, "mean")
    number = ak.num(x, axis=axis)
    mean = ak.where(number > 0, ak.sum(x, axis=axis) / ak.where(number > 0, number, 1), default)
    return ak.to_numpy(mean) if mean.ndim == 1 else mean


def _nth(x: Any, k: Any, *, default: float = float("nan")) -> Any:
    """The k-th element of each entry, counted from 0; `default` where the entry has fewer."""
    x = _jagged(x, "nth")
    if not isinstance(k, int) or k < 0:
        raise TypeError("nth(x, k): k must be a whole number, 0 for the first element")
    return _filled(ak.firsts(x[:, k:], axis=1), default)


def _sort(ascending: bool, name: str) -> Callable[[Any], Any]:
    return lambda x: ak.sort(_jagged(x, name), axis=1, ascending=ascending)


def _where(condition: Any, x: Any, y: Any) -> Any:
    if any(isinstance(v, ak.Array) for v in (condition, x, y)):
        return ak.where(condition, x, y)
    return np.where(condition, x, y)


def _clip(x: Any, lo: Any, hi: Any) -> Any:
    return np.minimum(np.maximum(x, lo), hi)


_UNARY = (
    "abs", "arccos", "arcsin", "arctan", "arctanh", "ceil", "cos", "cosh", "exp", "expm1", "floor", "isfinite", "isinf", "isnan", "log", "log10", "log1p",
    "log2", "rint", "sign", "sin", "sinh", "sqrt", "square", "tan", "tanh",
)  # fmt: skip

_BOTH: dict[str, type[int | float]] = {"axis": int, "default": float}

FUNCTIONS: dict[str, Function] = {
    **{name: Function(getattr(np, name), 1, 1) for name in _UNARY},
    **{name: Function(getattr(np, name), 2, 2) for name in ("arctan2", "hypot", "maximum", "minimum")},
    "where": Function(_where, 3, 3),
    "clip": Function(_clip, 3, 3),
    "min": Function(_extreme(ak.min, np.minimum, "min"), 1, 2, _BOTH, elementwise=False),
    "max": Function(_extreme(ak.max, np.maximum, "max"), 1, 2, _BOTH, elementwise=False),
    "sum": Function(_reduce(ak.sum, "sum"), 1, 1, {"axis": int}, elementwise=False),
    "any": Function(_reduce(ak.any, "any"), 1, 1, {"axis": int}, elementwise=False),
    "all": Function(_reduce(ak.all, "all"), 1, 1, {"axis": int}, elementwise=False),
    "count": Function(_reduce(ak.num, "count"), 1, 1, {"axis": int}, elementwise=False),
    "mean": Function(_mean, 1, 1, _BOTH, elementwise=False),
    "nth": Function(_nth, 2, 2, {"default": float}, elementwise=False),
    "sort": Function(_sort(True, "sort"), 1, 1, elementwise=False),
    "sort_desc": Function(_sort(False, "sort_desc"), 1, 1, elementwise=False),
}

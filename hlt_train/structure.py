"""Does a list of nodes make a graph? Shapes, exponents and exactness of every node, and a refusal by node name of what `docs/numbers.md` excludes."""

from __future__ import annotations

import typing
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hlt_train.errors import UsageError, nearest
from hlt_train.nodes import (
    Add,
    Affine,
    Concat,
    Fixed,
    Flatten,
    FloatAffine,
    FloatInput,
    FloatPool,
    Input,
    Node,
    Output,
    Overflow,
    Pool,
    PoolKind,
    Quant,
    Requant,
    Round,
    Window,
)

__all__ = ["EXPONENT", "SHIFT", "WIDTH", "Structure", "check", "check_format", "scaled"]

EXPONENT = 126  # |f|: 2**-126 is the smallest normal float32
WIDTH = 62  # bits of a format: its integers and their sums with a rounding constant fit int64
SHIFT = 62  # bits between two exponents
GRID = 1 << 24  # integers of the input step: float32 holds every one of them
SCALE = 2.0**120  # of scale * 2**f: with a larger one a flushed subnormal would move an input


class Structure(NamedTuple):
    """What a node yields per event: `[n]`, or `[length, n]` for the constituents of `group`; f: int64 `[n]`, or None for float32.

    stride: constituents of the input from one position to the next, the product of the strides of all windows before.
    """

    length: int | None
    group: str | None
    n: int
    f: np.ndarray | None
    stride: int = 1

    @property
    def exact(self) -> bool:
        """Whether the values are integers."""
        return self.f is not None

    def present(self, counts: np.ndarray) -> npt.NDArray[np.int64]:
        """How many positions exist per event, int64 of the shape of counts: `ceil(count / stride)`, limited to 0 and the length."""
        assert self.length is not None
        found: npt.NDArray[np.int64] = np.clip(-(-np.asarray(counts).astype(np.int64) // self.stride), 0, self.length)
        return found


def _refuse(node: Node, what: str, *, near: tuple[str, ...] = (), then: str = "") -> UsageError:
    return UsageError(f"{type(node).__name__} '{node.name}': {what}", where=f"node '{node.name}'", near=near, then=then)


def _array(node: Node, what: str, value: object, dtype: type, shape: tuple[int, ...]) -> None:
    if not isinstance(value, np.ndarray) or value.dtype != dtype or value.shape != shape:
        found = f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
        raise _refuse(node, f"{what} must be {np.dtype(dtype)} {list(shape)}, found {found}")
    if dtype is np.float32 and what in ("w", "b", "centre", "scale") and not np.isfinite(value).all():
        raise _refuse(node, f"{what} is not finite")


def check_format(fmt: Fixed, n: int, refuse: Callable[[str], Exception]) -> None:
    """A format for n features: shapes, |f| <= 126, width <= 62; `refuse` makes the error."""
    for what, value in (("i", fmt.i), ("f", fmt.f)):
        array = np.asarray(value)
        if not np.issubdtype(array.dtype, np.integer) or array.shape not in ((), (n,)):
            raise refuse(f"{what} of the format must be an integer or integers [{n}], found {array.dtype} {list(array.shape)}")
    if np.abs(np.asarray(fmt.f)).max(initial=0) > EXPONENT:
        raise refuse(f"a format finer than 2**-{EXPONENT} (or coarser than 2**{EXPONENT}) has no float32 values")
    if fmt.width.max(initial=0) > WIDTH:
        raise refuse(f"a format of {int(fmt.width.max())} bits is wider than {WIDTH}")


def _quant(node: Node, quant: Quant, source: Structure) -> np.ndarray:
    check_format(quant.to, source.n, lambda what: _refuse(node, what))
    for value, kind in ((quant.round, Round), (quant.over, Overflow)):
        if value not in typing.get_args(kind):
            raise _refuse(node, f"no such mode: '{value}'", near=nearest(str(value), typing.get_args(kind)), then=f"one of: {', '.join(typing.get_args(kind))}")
    if quant.mantissa is not None and (type(quant.mantissa) is not int or quant.mantissa < 0):
        raise _refuse(node, f"a mantissa has 0 bits or more, found {quant.mantissa!r}")
    if quant.mantissa is not None and quant.over != "sat_sym":
        raise _refuse(node, f"a minifloat saturates at its largest number of either sign, not by {quant.over}", near=("sat_sym",))
    f = np.array(np.broadcast_to(np.asarray(quant.to.f, np.int64), source.n))
    if source.f is not None and np.abs(source.f - f).max(initial=0) > SHIFT:
        raise _refuse(node, f"shifts by {int(np.abs(source.f - f).max())} bits, more than {SHIFT}")
    return f


def scaled(scale: np.ndarray, f: np.ndarray) -> np.ndarray:
    """fl32(scale * 2**f) per feature, the factor of the input step. Exact wherever `check` accepted the input."""
    with np.errstate(over="ignore", under="ignore"):
        return np.ldexp(scale.astype(np.float64), f.astype(np.int32)).astype(np.float32)


def _input(node: Input | FloatInput) -> Structure:
    n = len(node.variables)
    if not n or len(set(node.variables)) != n:
        raise _refuse(node, "its variables must be one or more different names")
    if node.length is not None and node.length < 1:
        raise _refuse(node, f"length must be at least 1, found {node.length}")
    for what in ("centre", "scale"):
        _array(node, what, getattr(node, what), np.float32, (n,))
    group = node.group if node.length is not None else None
    if isinstance(node, FloatInput):
        for what in ("lo", "hi", "nan"):
            _array(node, what, getattr(node, what), np.float32, (n,))
        if not (node.lo <= node.hi).all():
            raise _refuse(node, "lo must not exceed hi")
        return Structure(node.length, group, n, None)
    for what in ("lo", "hi", "nan"):
        _array(node, what, getattr(node, what), np.int64, (n,))
    f = _quant(node, node.quant, Structure(node.length, group, n, None))
    if (node.quant.round, node.quant.over) != ("half_even", "sat"):
        raise _refuse(node, f"the first grid is half_even and sat, not {node.quant.round} and {node.quant.over}")
    from hlt_train.arithmetic import limits

    least, most = limits(node.quant, n)
    if (node.lo > node.hi).any() or (node.lo < least).any() or (node.hi > most).any() or (node.nan < least).any() or (node.nan > most).any():
        raise _refuse(node, "lo <= hi and nan must lie within the format")
    if max(np.abs(node.lo).max(), np.abs(node.hi).max()) > GRID:
        raise _refuse(node, "its integers exceed 2**24, which float32 does not hold", then="choose an input format of at most 24 bits")
    factor = np.abs(scaled(node.scale, f))
    tiny = np.finfo(np.float32).tiny
    if (np.abs(node.scale) < tiny).any() or (factor < tiny).any() or (factor > SCALE).any():
        raise _refuse(node, "scale * 2**f must be a normal float32 of at most 2**120", then="a constant variable has no scale: drop it, or give its scale")
    return Structure(node.length, group, n, f)


def _affine(node: Affine | FloatAffine, source: Structure) -> Structure:
    if node.w.ndim != 2 or node.w.shape[0] != source.n:
        raise _refuse(node, f"w has shape {list(node.w.shape)}, but '{node.sources[0]}' has {source.n} features")
    outputs = node.w.shape[1]
    dtype = np.int64 if isinstance(node, Affine) else np.float32
    _array(node, "w", node.w, dtype, (source.n, outputs))
    _array(node, "b", node.b, dtype, (outputs,))
    if isinstance(node, FloatAffine):
        if node.activation not in ("none", "relu", "tanh", "gelu", "silu"):
            raise _refuse(node, f"no such activation: '{node.activation}'", then="one of: none, relu, tanh, gelu, silu")
        return source._replace(n=outputs)
    _array(node, "f", node.f, np.int64, (outputs,))
    return source._replace(n=outputs, f=node.f)


def _aligned(node: Node, sources: Sequence[Structure]) -> Structure:
    first = sources[0]
    if any((s.length, s.group, s.exact, s.stride) != (first.length, first.group, first.exact, first.stride) for s in sources):
        what = "scalars with scalars, one collection with itself (of one length and stride), integers with integers"
        raise _refuse(node, f"cannot combine {', '.join(node.sources)}: {what}")
    if isinstance(node, Concat):
        f = np.concatenate([s.f for s in sources if s.f is not None]) if first.exact else None
        return first._replace(n=sum(s.n for s in sources), f=f)
    if any(s.n != first.n for s in sources):
        raise _refuse(node, f"its sources have {', '.join(str(s.n) for s in sources)} features")
    if not first.exact:
        return first
    f = np.max([s.f for s in sources if s.f is not None], axis=0)
    if max(int((f - s.f).max(initial=0)) for s in sources if s.f is not None) > SHIFT:
        raise _refuse(node, f"its sources' exponents differ by more than {SHIFT}")
    return first._replace(f=f)


def _window(node: Window, source: Structure, length: int) -> Structure:
    for what, least in (("kernel", 1), ("stride", 1), ("before", 0), ("after", 0)):
        value = getattr(node, what)
        if type(value) is not int or value < least:
            raise _refuse(node, f"{what} must be an integer of at least {least}, found {value!r}")
    kernel, stride, most = node.kernel, node.stride, max(node.before, node.after)
    if stride > length:
        raise _refuse(node, f"stride {stride} is more than the length, {length}", then=f"stride={length} gives the same single position")
    if most >= kernel or most > length:
        raise _refuse(node, f"before and after must be less than the kernel, {kernel}, and not more than the length, {length}; found {most}")
    span = length + node.before + node.after - kernel
    if span < 0:
        raise _refuse(node, f"{length} constituents, {node.before} before and {node.after} after them hold no window of {kernel}")
    positions, real = span // stride + 1, -(-length // stride)
    if positions > real:
        what = f"yields {positions} positions, but those from {real} on start beyond the last constituent and never exist"
        raise _refuse(node, what, then=f"take {span + 1 - real * stride} off before or after")
    return Structure(positions, source.group, kernel * source.n, None if source.f is None else np.tile(source.f, kernel), source.stride * stride)


def _collected(node: Pool | FloatPool | Flatten | Window, source: Structure) -> Structure:
    if source.length is None or source.group != node.group:
        raise _refuse(node, f"reads constituents of '{node.group}', but '{node.sources[0]}' has {source.group or 'scalars'}")
    if isinstance(node, Window):
        return _window(node, source, source.length)
    if isinstance(node, Flatten):
        return Structure(None, None, source.length * source.n, None if source.f is None else np.tile(source.f, source.length))
    if node.kind not in typing.get_args(PoolKind):
        raise _refuse(node, f"no such pool: '{node.kind}'", then="one of: sum, max, mean")
    if isinstance(node, FloatPool):
        return Structure(None, None, source.n, None)
    if (node.kind == "mean") != (node.quant is not None):
        raise _refuse(node, "a mean needs a quant, and nothing else takes one")
    return Structure(None, None, source.n, source.f if node.quant is None else _quant(node, node.quant, source))


def _output(node: Output, source: Structure) -> Structure:
    if source.length is not None or len(node.names) != source.n or len(set(node.names)) != source.n:
        raise _refuse(node, f"needs one different name for each of {source.n} scalars, found {list(node.names)}")
    if node.link not in ("none", "softmax", "argmax"):
        raise _refuse(node, f"no such link: '{node.link}'", then="one of: none, softmax, argmax")
    if node.score is not None:
        if source.f is None:
            raise _refuse(node, "a float graph has no integer score")
        _array(node, "score", node.score, np.int64, (source.n,))
        if int(source.f.max() - source.f.min()) > SHIFT:
            raise _refuse(node, f"its logits' exponents differ by more than {SHIFT}")
    return source


def _one(node: Node, sources: list[Structure]) -> Structure:
    many = isinstance(node, Add | Concat)
    wanted = 0 if isinstance(node, Input | FloatInput) else 1
    if (many and not sources) or (not many and len(sources) != wanted):
        raise _refuse(node, f"takes {'at least 1' if many else wanted} source(s), found {len(sources)}")
    if isinstance(node, Input | FloatInput):
        return _input(node)
    source = sources[0]
    if source.exact and isinstance(node, FloatAffine | FloatPool):
        raise _refuse(node, f"'{node.sources[0]}' is integer: float nodes read float nodes")
    if not source.exact and isinstance(node, Affine | Requant | Pool):
        raise _refuse(node, f"'{node.sources[0]}' is float: integers come from an Input")
    if isinstance(node, Affine | FloatAffine):
        return _affine(node, source)
    if isinstance(node, Requant):
        return source._replace(f=_quant(node, node.quant, source))
    if isinstance(node, Add | Concat):
        return _aligned(node, sources)
    if isinstance(node, Pool | FloatPool | Flatten | Window):
        return _collected(node, source)
    if isinstance(node, Output):
        return _output(node, source)
    raise _refuse(node, "is a node that the IR does not know")


def check(nodes: Sequence[Node]) -> dict[str, Structure]:
    """The structure of every node, by name, in the order of evaluation; a graph that breaks a rule is refused with the node's name."""
    found: dict[str, Structure] = {}
    groups: dict[str, Any] = {}
    for node in nodes:
        if not node.name or node.name in found:
            raise UsageError(f"every node needs a name of its own, found '{node.name}' twice" if node.name else "a node has no name", where="graph")
        for source in node.sources:
            if source not in found:
                raise _refuse(node, f"reads '{source}', which no earlier node is called", near=nearest(source, found))
        if isinstance(node, Input | FloatInput):
            if node.group in groups:
                raise _refuse(node, f"group '{node.group}' has an input already")
            groups[node.group] = node
        found[node.name] = _one(node, [found[s] for s in node.sources])
    if not nodes or not isinstance(nodes[-1], Output) or sum(isinstance(node, Output) for node in nodes) != 1:
        raise UsageError("the last node of a graph, and no other, is its Output", where="graph")
    return found

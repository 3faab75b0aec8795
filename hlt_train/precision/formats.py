"""Every number format of a student, their texts, and the one quantiser.

    fixed<8,2>,half_even,sat          ufixed<8,3>,floor,wrap        fixed<8,auto>,half_even,sat,per_channel
    minifloat<4,3>,half_even          minifloat<3,2,auto>,half_even
    dynamic<8>,half_even              udynamic<8,3>,stochastic
    pow2<4,1>      ternary<0>      binary<auto>

A format without `auto` has values n * 2**-f with integers n from `lo` to `hi`, and `nearest`, which takes a float32 to one of them. A quantiser returns that
value itself (never `x + stop_gradient(q - x)`, which leaves the grid where x is large): on a grid whose sums stay below 2**24, float32 then computes what the
integers compute (`docs/numbers.md`).
"""

from __future__ import annotations

import json
import re
from functools import partial
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from hlt_train.errors import UsageError, nearest
from hlt_train.precision.dynamic import REACH
from hlt_train.precision.fixed import MAX_WIDTH, MIN_EXPONENT, FixedFormat, Per, bits_of, numbers
from hlt_train.precision.grid import OVERFLOWS, ROUNDINGS, Overflow, Round, power
from hlt_train.precision.minifloat import MiniFormat
from hlt_train.precision.weights import WeightFormat

__all__ = ["Format", "NumberFormat", "brief", "parse_format", "quantise"]

NumberFormat = FixedFormat | MiniFormat  # of activations; weights have few values too
Format = NumberFormat | WeightFormat
EXAMPLES = ("fixed<8,2>", "ufixed<8,3>", "dynamic<8>", "udynamic<8>", "minifloat<4,3>", "pow2<4,1>", "ternary<1>", "binary<1>")
KINDS = ("fixed", "ufixed", "dynamic", "udynamic", "minifloat", "pow2", "ternary", "binary")
GRANULARITIES: dict[str, Per] = {f"per_{per}": per for per in get_args(Per)}
_TEXT = re.compile(r"\s*(?P<kind>\w+)\s*<(?P<numbers>[^<>]*)>\s*(?P<modes>(?:,\s*\w+\s*)*)")


def parse_format(text: str, *, round: Round | None = None, over: Overflow | None = None) -> Format:
    """Read a format. `round` and `over` stand for modes that the text leaves out; without them a missing mode is refused: none is assumed."""
    found = _TEXT.fullmatch(text)
    if found is None or found["kind"] not in KINDS:
        raise UsageError(f"'{text}' is not a number format", near=nearest(text, EXAMPLES), then="write fixed<W,I>,half_even,sat")
    kind, given = found["kind"], _numbers(text, found["numbers"])
    modes = _modes(text, found["modes"])
    if kind == "minifloat":
        _only(text, modes, ("round",))
        return _minifloat(text, given, modes.get("round", round))
    if kind in ("pow2", "ternary", "binary"):
        _only(text, modes, ())
        return _weights(text, kind, given)
    if kind in ("dynamic", "udynamic"):
        _only(text, modes, ("round",))
        return _dynamic(text, kind == "dynamic", given, modes.get("round", round))
    chosen = {"round": round, "over": over} | modes
    for what, choices in (("round", ROUNDINGS), ("over", OVERFLOWS)):
        if chosen[what] is None:
            name = {"round": "rounding", "over": "overflow"}[what]
            raise UsageError(f"the {name} of '{text}' is not given, and none is assumed", near=choices, then=f"for instance {text.strip()},half_even,sat")
    return _fixed(text, kind == "fixed", given, chosen)


def brief(text: str) -> str:
    """A format's text for a table: without its modes, and a list as its range, `ufixed<8,-3..2 (32)>`."""

    def ranged(found: re.Match[str]) -> str:
        each = [int(number) for number in re.findall(r"-?\d+", found[0])]
        return f"{min(each)}..{max(each)} ({len(each)})"

    return re.sub(r"\[\[.*?\]\]|\[[^\[\]]*\]", ranged, text.partition(">")[0] + ">")


def _numbers(text: str, inside: str) -> list[Any]:
    """The list between the angle brackets: integers, nested lists of them, or None for `auto`."""
    try:
        given = json.loads(f"[{inside.replace('+', '').replace('auto', 'null')}]")
        arrays = [None if g is None else np.array(g) for g in given]  # a ragged list is a ValueError
    except ValueError:
        arrays = [np.array(0.5)]
    if any(a is not None and not np.issubdtype(a.dtype, np.integer) for a in arrays):
        raise UsageError(f"'{text}' is not a number format: between < and > belong integers, or auto", then="for instance fixed<8,2>,half_even,sat")
    return [None if a is None else bits_of(a) for a in arrays]


def _modes(text: str, modes: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for mode in (part.strip() for part in modes.split(",") if part.strip()):
        if mode in ROUNDINGS:
            found["round"] = mode
        elif mode in OVERFLOWS:
            found["over"] = mode
        elif mode in GRANULARITIES:
            found["per"] = GRANULARITIES[mode]
        else:
            known = ROUNDINGS + OVERFLOWS + tuple(GRANULARITIES)
            raise UsageError(f"'{mode}' is neither a rounding nor an overflow mode", where=text, near=nearest(mode, known) or known)
    return found


def _only(text: str, modes: dict[str, Any], taken: tuple[str, ...]) -> None:
    for what, mode in modes.items():
        if what not in taken:
            raise UsageError(f"'{text}': this format takes no '{mode}'", then=text.split(">", maxsplit=1)[0] + ">")


def _fixed(text: str, signed: bool, given: list[Any], modes: dict[str, Any]) -> FixedFormat:
    if len(given) != 2 or given[0] is None:
        raise UsageError(f"'{text}' is not a number format: it takes its bits in all and those before the point", then="write fixed<W,I>,half_even,sat")
    width, integer = given
    widths = np.asarray(width)
    if widths.min(initial=MAX_WIDTH) < 0 or widths.max(initial=0) > MAX_WIDTH or width == 0:
        said = int(widths.max(initial=0)) if widths.min(initial=0) >= 0 else int(widths.min())
        raise UsageError(f"a format has 1 to {MAX_WIDTH} bits, '{text}' has {said}", then="float32 training cannot hold wider integers")
    if modes["over"] == "sat_sym" and not signed:
        raise UsageError(f"'{text}': an unsigned format has no symmetric saturation", near=("sat", "wrap"))
    if integer is not None:
        try:
            f = np.asarray(numbers(width) - numbers(integer))
        except ValueError as error:
            raise UsageError(f"'{text}': the two lists have different shapes") from error
        if f.max() > -MIN_EXPONENT:
            raise UsageError(f"the step of '{text}' is 2^{-int(f.max())}, below 2^{MIN_EXPONENT}", then="float32 flushes such values to zero")
        if np.asarray(integer).max() > -MIN_EXPONENT:
            raise UsageError(f"the largest value of '{text}' is beyond float32", then="use fewer integer bits")
    return FixedFormat(signed, width, integer, modes["round"], modes["over"], modes.get("per", "tensor"))


def _dynamic(text: str, signed: bool, given: list[Any], round: Round | None) -> FixedFormat:
    if round is None:
        raise UsageError(f"the rounding of '{text}' is not given, and none is assumed", near=ROUNDINGS, then=f"for instance {text.strip()},half_even")
    width, integer = _scalars(text, given, ("its bits", "those before the point at first")) if len(given) > 1 else (*_scalars(text, given, ("its bits",)), None)
    if width is None or not 2 <= width <= MAX_WIDTH or abs(integer or 0) > REACH:
        raise UsageError(f"'{text}' is not a number format: dynamic<W> takes 2 to {MAX_WIDTH} bits, and up to {REACH} before the point", then="dynamic<8>")
    return FixedFormat(signed, width, integer, round, "sat", dynamic=True)


def _scalars(text: str, given: list[Any], names: tuple[str, ...]) -> list[Any]:
    if len(given) != len(names) or any(isinstance(g, tuple) for g in given):
        raise UsageError(f"'{text}' is not a number format: it takes {' and '.join(names)}, single numbers")
    return given


def _minifloat(text: str, given: list[Any], round: Round | None) -> MiniFormat:
    if round is None:
        raise UsageError(f"the rounding of '{text}' is not given, and none is assumed", near=ROUNDINGS, then=f"for instance {text.strip()},half_even")
    names = ("exponent bits", "mantissa bits", "bias")[: max(2, len(given))]
    exponent, mantissa, *rest = _scalars(text, given, names)
    if exponent is None or mantissa is None or not 1 <= exponent <= 7 or not 0 <= mantissa <= MAX_WIDTH - 1:
        raise UsageError(f"'{text}': a minifloat has 1 to 7 exponent bits and 0 to {MAX_WIDTH - 1} mantissa bits")
    bias = rest[0] if rest else (1 << exponent - 1) - 1
    made = MiniFormat(exponent, mantissa, bias, round)
    if bias is not None and (made.f > -MIN_EXPONENT or (1 << exponent) - 1 - bias > 126):
        raise UsageError(f"'{text}' has values that float32 does not have", then="fewer exponent bits, or another bias")
    return made


def _weights(text: str, kind: Any, given: list[Any]) -> WeightFormat:
    if kind != "pow2":
        (integer,) = _scalars(text, given, ("the exponent of its value plus one",))
        return WeightFormat(kind, {"ternary": 2, "binary": 1}[kind], integer)
    width, integer = _scalars(text, given, ("its bits", "the exponent of its largest value plus one"))
    if width is None or not 2 <= width <= 5:
        raise UsageError(f"'{text}': a power of two takes 2 to 5 bits", then="more exponents do not fit the 24 bits of a float32 integer")
    return WeightFormat(kind, width, integer)


def quantise(x: jax.Array, to: Format, key: jax.Array | None = None) -> jax.Array:
    """The value of the format that stands for each `x`, float32; its gradient is 1 inside the range of the format and 0 outside (straight-through).

    Args:
        x: float32, any shape.
        to: a format without `auto`.
        key: for stochastic rounding; without one it is half_even.
    """
    return _quantised(x, key, to)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _quantised(x: jax.Array, key: jax.Array | None, to: Format) -> jax.Array:
    return to.nearest(x, key)


def _forward(x: jax.Array, key: jax.Array | None, to: Format) -> tuple[jax.Array, jax.Array]:
    step, (low, high) = power(-1 * to.f), to.reach
    return _quantised(x, key, to), (x >= low * step) & (x <= high * step)


def _backward(_to: Format, inside: jax.Array, gradient: jax.Array) -> tuple[jax.Array, None]:
    return jnp.where(inside, gradient, 0), None


_quantised.defvjp(_forward, _backward)

"""Efficiency against cost, as an SVG of its own: candidates with their errors, the front of those that nothing beats, the limit, and what is to be reached."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

__all__ = ["Point", "front", "front_svg"]

WIDTH, HEIGHT = 790.0, 480.0
LEFT, RIGHT, TOP, BOTTOM = 70.0, 160.0, 24.0, 56.0
INK, GREY, GOOD, LIMIT = "#1a1a1a", "#8a8a8a", "#0b6e99", "#b3261e"


class Point(NamedTuple):
    """A candidate. cost, value, error: of the axes, an error of 0 is not known; whole: trained to the end; number: its name.

    measured: whether the cost is, or was predicted.
    """

    cost: float
    value: float
    error: float
    whole: bool
    number: int
    measured: bool


def front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Per (cost, value): whether no other costs as little or less and is better, or costs less and is as good.

    >>> front([(1, 0.5), (2, 0.4), (3, 0.7)])
    [True, False, True]
    """
    return [not any((c <= cost and v > value) or (c < cost and v >= value) for c, v in points) for cost, value in points]


def front_svg(
    points: Sequence[Point], lines: Mapping[str, float], limit: float | None, chosen: int | None, cost_axis: str, value_axis: str, *, key: bool = True
) -> str:
    """The plot.

    Args:
        points: candidates; those that were trained to the end are filled, and the front is drawn through them.
        lines: name -> value, drawn across.
        limit: of the cost, drawn upwards; None: there is none.
        chosen: number of the point that gets a ring.
        cost_axis: with its unit.
        value_axis: in words.
        key: whether points differ in how far they were trained, which a key explains.
    """
    costs = [p.cost for p in points] + ([] if limit is None else [limit])
    values = [v for p in points for v in (p.value - p.error, p.value + p.error)] + list(lines.values())
    x_ticks, y_ticks = _ticks(0.0, max(costs) * 1.05), _ticks(min(values), max(values))
    x0, x1, y0, y1 = x_ticks[0], x_ticks[-1], y_ticks[0], y_ticks[-1]

    def x(cost: float) -> float:
        return LEFT + (cost - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<path d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}" fill="none" stroke="{INK}"/>',
    ]
    for tick in x_ticks:
        out += [_line(x(tick), HEIGHT - BOTTOM, x(tick), HEIGHT - BOTTOM + 5, INK), _text(x(tick), HEIGHT - BOTTOM + 20, f"{tick:g}", "middle")]
    for tick in y_ticks:
        out += [_line(LEFT - 5, y(tick), LEFT, y(tick), INK), _text(LEFT - 9, y(tick) + 4, f"{tick:g}", "end")]
    out.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, cost_axis, "middle"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    out.append(f'<text transform="translate(18 {middle:.1f}) rotate(-90)" text-anchor="middle" fill="{INK}">{escape(value_axis)}</text>')
    if limit is not None:
        out += [_line(x(limit), TOP, x(limit), HEIGHT - BOTTOM, LIMIT, "6 4"), _text(x(limit), TOP - 8, "limit", "middle", LIMIT)]
    places = _apart([(y(value), name) for name, value in lines.items()])
    for name, value in lines.items():
        out += [_line(LEFT, y(value), WIDTH - RIGHT, y(value), GREY, "2 3"), _text(WIDTH - RIGHT + 8, places[name] + 4, f"{name} {value:.3f}", "start")]
    whole = [p for p in points if p.whole]
    best = sorted(p for p, on in zip(whole, front([(p.cost, p.value) for p in whole]), strict=True) if on)
    if len(best) > 1:
        steps = [f"M{x(best[0].cost):.1f} {y(best[0].value):.1f}", *(f"H{x(p.cost):.1f}V{y(p.value):.1f}" for p in best[1:])]
        out.append(f'<path d="{"".join(steps)}" fill="none" stroke="{GOOD}" stroke-width="1.5"/>')
    for p in sorted(points, key=lambda point: point.whole):
        colour = GOOD if p.whole else GREY
        title = f"candidate {p.number}: {p.value:.4f}{f' +- {p.error:.4f}' if p.error else ''}, {p.cost:.4g} {'measured' if p.measured else 'predicted'}"
        out.append(_line(x(p.cost), y(p.value - p.error), x(p.cost), y(p.value + p.error), colour))
        fill = colour if p.whole else "white"
        out.append(f'<circle cx="{x(p.cost):.1f}" cy="{y(p.value):.1f}" r="4" fill="{fill}" stroke="{colour}"><title>{escape(title)}</title></circle>')
        if p.number == chosen:
            out.append(f'<circle cx="{x(p.cost):.1f}" cy="{y(p.value):.1f}" r="8" fill="none" stroke="{LIMIT}" stroke-width="1.5"/>')
        if p.whole:
            out.append(_text(x(p.cost) + 10, y(p.value) - 7, str(p.number), "start", GOOD))
    kinds = (("trained to the end", GOOD, GOOD), ("stopped earlier", "white", GREY)) if key else ()
    for row, (word, fill, colour) in enumerate(kinds):  # the key, below what is plotted
        height = HEIGHT - BOTTOM + 24 + 18 * row
        out.append(f'<circle cx="{WIDTH - RIGHT + 26}" cy="{height - 4}" r="4" fill="{fill}" stroke="{colour}"/>')
        out.append(_text(WIDTH - RIGHT + 36, height, word, "start", colour))
    return "\n".join([*out, "</svg>"]) + "\n"


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, dashes: str = "") -> str:
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="{colour}"{dashed}/>'


def _text(x: float, y: float, text: str, anchor: str, colour: str = INK) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers that enclose [low, high]."""
    span = max(high - low, 1e-9 * max(abs(high), 1.0))
    step = 10.0 ** math.floor(math.log10(span / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (factor * step) <= 6)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 12) for k in range(first, max(last, first + 1) + 1)]


def _apart(wanted: list[tuple[float, str]], distance: float = 16.0) -> dict[str, float]:
    """Heights of labels, none nearer to another than their size."""
    found: dict[str, float] = {}
    last = -math.inf
    for height, name in sorted(wanted):
        last = max(height, last + distance)
        found[name] = last
    return found

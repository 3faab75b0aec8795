"""Plain-text tables that survive a batch log and a narrow terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["plus_minus", "table"]


def table(rows: Sequence[Sequence[object]], header: Sequence[str], *, title: str = "") -> str:
    """Align columns: text to the left, everything that starts with a digit or a sign to the right.

    >>> print(table([["student", 0.81], ["teacher", 0.83]], ["network", "efficiency"]))
    network  efficiency
    -------  ----------
    student        0.81
    teacher        0.83
    """
    cells = [[str(cell) for cell in row] for row in rows]
    columns = list(zip(*([list(header), *cells] if cells else [list(header)]), strict=True))
    widths = [max(len(cell) for cell in column) for column in columns]
    numeric = [all(cell[:1].isdigit() or cell[:1] in "+-<>.n" or not cell for cell in column[1:]) and len(column) > 1 for column in columns]

    def line(row: Sequence[str]) -> str:
        return "  ".join(c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric, strict=True)).rstrip()

    lines = [*([title] if title else []), line(header), "  ".join("-" * w for w in widths), *(line(row) for row in cells)]
    return "\n".join(lines)


def plus_minus(value: float, low: float, high: float | None = None, *, unit: str = "") -> str:
    """A value with its error, to two digits of the error: symmetric (`low` alone) or asymmetric (errors `low`, `high`).

    >>> plus_minus(0.8123, 0.0041)
    '0.8123 +- 0.0041'
    >>> plus_minus(48.1, 3.2, 4.6, unit="Hz")
    '48.1 -3.2 +4.6 Hz'
    """
    tail = f" {unit}" if unit else ""
    if not all(math.isfinite(v) for v in (value, low, low if high is None else high)):
        return f"{value:.4g}{tail}"
    error = max(low, low if high is None else high)
    digits = 3 if error <= 0 else max(0, 1 - math.floor(math.log10(error)))
    if high is None or round(low, digits) == round(high, digits):
        return f"{value:.{digits}f} +- {low:.{digits}f}{tail}"
    return f"{value:.{digits}f} -{low:.{digits}f} +{high:.{digits}f}{tail}"

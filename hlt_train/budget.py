"""What a student may cost: limits, all of them hard, and how near a cost comes to them.

- `network`: ns of one call of the exported header, `docs/budget.md`
- `path`: ns per event from branch values to decision; `reached` only scales the printed share of a trigger's time
- `luts`, `cycles`: of an FPGA, by alkaid's estimate at `clock_ns`
- `macs`, `bits`: multiply-accumulates and bit operations of a call (`hlt_train.cost`)
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt, field_validator, model_validator

from hlt_train.data.trigger_card import parse_rate

__all__ = ["LIMITS", "WORDS", "Budget", "beside", "parse_time", "share", "spelt"]

TIMES = {"ns": 1.0, "us": 1e3, "µs": 1e3, "ms": 1e6, "s": 1e9}
LIMITS = ("network", "path", "luts", "cycles", "macs", "bits")
WORDS = {"luts": "LUTs", "cycles": "cycles", "macs": "multiply-accumulates", "bits": "bit operations"}


def parse_time(value: Any) -> float:
    """`"100ns"`, `"1.5 us"`, `"1ms"` or a number of ns -> ns."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value)
    else:
        match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([a-zA-Zµ]+)\s*", str(value))
        if match is None or match[2] not in TIMES:
            raise ValueError("expected a time such as 100ns, 2us or 1ms")
        number = float(match[1]) * TIMES[match[2]]
    if not 0 < number < math.inf:
        raise ValueError("a time must be above 0")
    return number


def spelt(name: str, value: float) -> str:
    """A cost in words.

    >>> spelt("network", 1234.5), spelt("luts", 4321)
    ('1.23 us', '4,321 LUTs')
    """
    if name not in ("network", "path"):
        return f"{round(value):,} {WORDS[name]}"
    unit = next(unit for unit in ("ms", "us", "ns") if value >= TIMES[unit] or unit == "ns")
    return f"{value / TIMES[unit]:.3g} {unit}"


def beside(name: str, value: float, limit: float) -> str:
    """A cost beside its limit.

    >>> beside("luts", 4321, 5000), beside("network", 87.31, 100)
    ('4,321 of 5,000 LUTs', '87.3 of 100 ns')
    """
    first, second = spelt(name, value), spelt(name, limit)
    number, _, unit = first.partition(" ")
    return f"{number} of {second}" if unit == second.partition(" ")[2] else f"{first} of {second}"


class Budget(BaseModel):
    """The `budget` section of a configuration; times in ns, or as text with their unit.

    Attributes:
        isa: code path of the C++ header that `network` and `path` are of; None: the one that the processor takes.
        reached: `8kHz/100kHz`: how often an event reaches the path, of how many that enter.
        latency_table: of `bench --calibrate`; None: one is made.
        clock_ns: clock period of the FPGA.
    """

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)

    network: PositiveFloat | None = None
    path: PositiveFloat | None = None
    luts: PositiveInt | None = None
    cycles: PositiveInt | None = None
    macs: PositiveInt | None = None
    bits: PositiveInt | None = None
    isa: str | None = None
    reached: str | None = None
    latency_table: str | None = None
    clock_ns: PositiveFloat = 5.0

    @field_validator("network", "path", mode="before")
    @classmethod
    def _time(cls, value: Any) -> Any:
        return None if value is None else parse_time(value)

    @field_validator("reached")
    @classmethod
    def _fraction(cls, value: str | None) -> str | None:
        if value is not None:
            share(value)
        return value

    @model_validator(mode="after")
    def _together(self) -> Budget:
        if not self.limits:
            raise ValueError(f"a budget needs a limit: {', '.join(LIMITS)}")
        if self.reached is not None and self.path is None:
            raise ValueError("'reached' scales the time of 'path', which has no limit here")
        if not self.timed and (self.isa is not None or self.latency_table is not None):
            raise ValueError("'isa' and 'latency_table' belong to 'network' and 'path', which have no limit here")
        return self

    @property
    def limits(self) -> dict[str, float]:
        """Name -> limit, of those that are given."""
        return {name: float(value) for name in LIMITS if (value := getattr(self, name)) is not None}

    @property
    def timed(self) -> bool:
        """Whether the C++ header's time is limited."""
        return self.network is not None or self.path is not None

    @property
    def logic(self) -> bool:
        """Whether alkaid's estimate is limited."""
        return self.luts is not None or self.cycles is not None

    def worst(self, costs: Mapping[str, float]) -> tuple[str, float]:
        """The limit that is most nearly reached, or most exceeded, and cost / limit there; of the costs that are known."""
        return max(((name, costs[name] / limit) for name, limit in self.limits.items() if name in costs), key=lambda pair: pair[1], default=("", 0.0))

    def fits(self, costs: Mapping[str, float]) -> bool:
        """Whether no known cost exceeds its limit."""
        return self.worst(costs)[1] <= 1

    def told(self, costs: Mapping[str, float]) -> str:
        """The known costs beside their limits."""
        return ", ".join(beside(name, costs[name], limit) for name, limit in self.limits.items() if name in costs)


def share(reached: str) -> float:
    """`8kHz/100kHz` -> 0.08."""
    part, slash, whole = reached.partition("/")
    if not slash:
        raise ValueError("expected two rates such as 8kHz/100kHz")
    found = parse_rate(part) / parse_rate(whole)
    if found > 1:
        raise ValueError("more events cannot reach the path than enter")
    return found

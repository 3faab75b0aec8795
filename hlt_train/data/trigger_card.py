"""The `trigger` section of a data card: discriminant, rate normalisation, working points, reference cut. Text such as `8 kHz` becomes numbers in Hz."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from hlt_train.data.expressions import parse
from hlt_train.errors import HltTrainError

__all__ = ["Discriminant", "Rate", "Reference", "Strict", "Text", "Trigger", "WorkingPoint", "parse_rate"]

_UNITS = {"hz": 1.0, "khz": 1e3, "mhz": 1e6}
_THRESHOLD = re.compile(r"\{\s*([A-Za-z_]\w*)\s*\}")


class Strict(BaseModel):
    """Base of every part of a card: unknown keys are errors, assignments are checked."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


def _expression(text: str) -> str:
    try:
        parse(text)
    except HltTrainError as error:
        near = f" (nearest: {', '.join(error.near)})" if error.near else ""
        then = f"; {error.then}" if error.then else ""
        raise ValueError(f"{error.what}{near}{then}") from error
    return text


def _number_as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int | float) else value


Text = Annotated[str, BeforeValidator(_number_as_text), AfterValidator(_expression)]
"""An expression: a string that `expressions.parse` accepts; a bare number is taken as one."""


def parse_rate(value: Any) -> float:
    """`"8 kHz"`, `"50Hz"`, `"0.1 MHz"` or a number of Hz -> Hz."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value)
    else:
        match = re.fullmatch(r"\s*([0-9.eE+-]+)\s*([A-Za-z]+)\s*", str(value))
        if match is None or match[2].lower() not in _UNITS:
            raise ValueError(f"expected a rate such as '8 kHz' or '50 Hz', got '{value}'")
        number = _float(match[1], str(value)) * _UNITS[match[2].lower()]
    if not 0 < number < float("inf"):
        raise ValueError(f"a rate must be above 0, got '{value}'")
    return number


def _float(text: str, whole: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"'{text}' is not a number, in '{whole}'") from error


class WorkingPoint(Strict):
    """A request for a threshold: `50 Hz` (rate, in Hz), `mistag 1%` or `eff 80%` (fractions)."""

    kind: Literal["rate", "mistag", "eff"]
    value: float = Field(gt=0)

    @model_validator(mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return {"kind": "rate", "value": parse_rate(value)}
        if not isinstance(value, str):
            return value
        match = re.fullmatch(r"\s*(mistag|eff)\s+([0-9.eE+-]+)\s*(%?)\s*", value)
        if match is None:
            return {"kind": "rate", "value": parse_rate(value)}
        number = _float(match[2], value) / (100.0 if match[3] else 1.0)
        return {"kind": match[1], "value": number}

    @model_validator(mode="after")
    def _fraction(self) -> WorkingPoint:
        if self.kind != "rate" and self.value >= 1:
            raise ValueError(f"'{self.kind}' is a fraction below 1 (or below 100 %), got {self.value:g}")
        return self

    def __str__(self) -> str:
        return f"{self.value:g} Hz" if self.kind == "rate" else f"{self.kind} {100 * self.value:g}%"


def _fractions(value: Any) -> Any:
    """A list of classes -> equal fractions; a single class -> itself."""
    if isinstance(value, str):
        return {value: 1.0}
    return {str(name): 1.0 for name in value} if isinstance(value, list) else value


Fractions = Annotated[dict[str, Annotated[float, Field(gt=0)]], BeforeValidator(_fractions), Field(min_length=1)]


class Discriminant(Strict):
    """Signal against background classes, with the fraction of each (normalised to 1 within signal and within background)."""

    signal: Fractions
    background: Fractions

    @model_validator(mode="after")
    def _normalised(self) -> Discriminant:
        both = self.signal.keys() & self.background.keys()
        if both:
            raise ValueError(f"class '{min(both)}' is both signal and background")
        for side in (self.signal, self.background):
            total = sum(side.values())
            for name in side:
                side[name] /= total
        return self


class Rate(Strict):
    """The normalisation of one sample: its input rate (accept rate of the seed or of L1), in Hz."""

    input_rate: Annotated[float, BeforeValidator(parse_rate)]


class Reference(Strict):
    """A cut with named thresholds in braces, for instance `(ht > {ht}) & (btag4 > {b})`; each threshold is a grid of values or `auto`."""

    cut: str
    thresholds: dict[str, list[float] | Literal["auto"]] = {}

    @model_validator(mode="after")
    def _consistent(self) -> Reference:
        _expression(self.expression(dict.fromkeys(self.names, 0.0)))
        for name in self.names:
            if name not in self.thresholds:
                raise ValueError(f"threshold '{{{name}}}' of the cut is not in 'thresholds'")
        for name, grid in self.thresholds.items():
            if name not in self.names:
                raise ValueError(f"threshold '{name}' does not occur as {{{name}}} in the cut")
            if grid == []:
                raise ValueError(f"threshold '{name}' has an empty grid")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the thresholds in the cut, in order of appearance."""
        return tuple(dict.fromkeys(_THRESHOLD.findall(self.cut)))

    @property
    def variables(self) -> frozenset[str]:
        """The columns that the cut needs."""
        return parse(self.expression(dict.fromkeys(self.names, 0.0))).names

    def expression(self, thresholds: dict[str, float]) -> str:
        """The cut with numbers for its thresholds, as an expression."""
        return _THRESHOLD.sub(lambda match: f"({thresholds[match[1]]!r})", self.cut)


class Trigger(Strict):
    """Everything that turns scores into rates, thresholds and baselines. `rate_weight` enters only rates, efficiencies and their errors."""

    discriminant: Discriminant | None = None
    rate: dict[str, Rate] = {}
    rate_weight: Text = "1"
    working_points: dict[str, WorkingPoint] = {}
    reference: Reference | None = None
    variables: list[str] = []
    event_score: str | None = None
    objects: Text | None = None

    @field_validator("event_score")
    @classmethod
    def _score(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"max|sum|nth\(\d+\)", value.replace(" ", "")):
            raise ValueError(f"event_score is max, sum or nth(k), got '{value}'")
        return value

    def check(self, classes: tuple[str, ...], samples: tuple[str, ...], *, per_object: bool) -> None:
        """Names against the rest of the card; raises ValueError."""
        if self.discriminant is not None:
            for name in (*self.discriminant.signal, *self.discriminant.background):
                if name not in classes:
                    raise ValueError(f"trigger.discriminant names '{name}', which is not in labels.classes ({', '.join(classes)})")
        for name in self.rate:
            if name not in samples:
                raise ValueError(f"trigger.rate names '{name}', which is not a sample ({', '.join(samples)})")
        if not per_object and (self.event_score is not None or self.objects is not None):
            raise ValueError("trigger.event_score and trigger.objects are for per-object examples, not for 'example: event'")
        for name, point in self.working_points.items():
            if point.kind == "rate" and per_object and self.event_score is None:
                raise ValueError(f"working point '{name}' asks for a rate, but objects have no rate without trigger.event_score")
            if point.kind == "rate" and not self.rate:
                raise ValueError(f"working point '{name}' asks for a rate, but trigger.rate gives no sample's input_rate")

    @property
    def columns(self) -> frozenset[str]:
        """The columns that the reference cut, the single variables and the object selection need (the weight is read apart)."""
        found = set(self.variables)
        if self.reference is not None:
            found |= self.reference.variables
        if self.objects is not None:
            found |= parse(self.objects).names
        return frozenset(found)

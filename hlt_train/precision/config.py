"""What the user says about number formats: defaults per role, and overrides per layer.

precision:
weights: fixed<8,auto>          # auto: the integer bits are chosen from the ranges that a float warm-up reached; also minifloat, pow2, ternary, binary
bias: fixed<8,auto>
activations: ufixed<8,auto>     # after ReLU and after pooling; also minifloat
inputs: fixed<10,4>             # the first grid, always half_even and sat
round: half_even                # for the formats that name no mode of their own
over: sat
overflow: 0.0001                # dynamic formats: the rate of numbers beyond a range above which it is doubled
every: 10000                    # and the examples between two changes
layers: {dense_0: {weights: "fixed<6,1>,half_up,sat"}, jets: {inputs: "fixed<12,4>"}}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

from hlt_train.errors import UsageError, nearest, refuse_unknown
from hlt_train.precision.fixed import FixedFormat
from hlt_train.precision.followed import follows
from hlt_train.precision.formats import Format, NumberFormat, parse_format
from hlt_train.precision.grid import OVERFLOWS, ROUNDINGS, Overflow, Round
from hlt_train.precision.minifloat import MiniFormat

__all__ = ["ROLES", "Precision", "mode"]

Mode = TypeVar("Mode", bound=str)
ROLES = ("weights", "bias", "activations", "inputs")


@dataclass(frozen=True)
class Precision:
    """Formats of a fixed-point student: one default per role, `layers[layer][role]` where a layer differs."""

    weights: str = "fixed<8,auto>"
    bias: str = "fixed<8,auto>"
    activations: str = "ufixed<8,auto>"
    inputs: str = "fixed<10,4>"
    round: Round = "half_even"
    over: Overflow = "sat"
    overflow: float = 1e-4
    every: int = 10_000
    layers: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Precision:
        """From the `precision:` section of a configuration; every format is parsed here, so that a mistake is found before anything runs."""
        refuse_unknown("precision", config, [f.name for f in fields(cls)])
        overflow, every = config.get("overflow", cls.overflow), config.get("every", cls.every)
        if not isinstance(overflow, float | int) or not isinstance(every, int) or not 0 <= overflow < 1 or every < 1:
            raise UsageError(f"overflow is a rate below 1 and every a number of examples, got {overflow!r} and {every!r}", where="precision")
        made = cls(
            **{role: str(config[role]) for role in ROLES if role in config},
            round=mode("precision.round", config.get("round", cls.round), ROUNDINGS),
            over=mode("precision.over", config.get("over", cls.over), OVERFLOWS),
            overflow=float(overflow),
            every=every,
            layers={name: dict(roles) for name, roles in _mapping(config.get("layers", {})).items()},
        )
        for role in ROLES:
            made.format("", role)
        for layer, roles in made.layers.items():
            for role in roles:
                if role not in ROLES:
                    raise UsageError(f"a layer has no '{role}'", where=f"precision.layers.{layer}", near=nearest(role, ROLES) or ROLES)
                made.format(layer, role)
        return made

    def to_config(self) -> dict[str, Any]:
        """The `precision:` section that gives this object again."""
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"layers": {n: dict(o) for n, o in self.layers.items()}}

    def format(self, layer: str, role: str) -> Format:
        """The format of one role of one layer (a group's name for `inputs`). Biases and inputs are fixed point, activations that or minifloat."""
        if role == "activations":
            return self.activation(layer)
        return self._parsed(layer, role) if role == "weights" else self.fixed(layer, role)

    def activation(self, layer: str) -> NumberFormat:
        """As `format`, of activations."""
        found = self._parsed(layer, "activations")
        if not isinstance(found, FixedFormat | MiniFormat):
            near = ("ufixed<8,auto>", "minifloat<4,3,auto>")
            raise UsageError(
                f"activations are fixed point or minifloat, '{found}' is not", where=f"precision {layer} activations".replace("  ", " "), near=near
            )
        return found

    def _parsed(self, layer: str, role: str) -> Format:
        return parse_format(str(self.layers.get(layer, {}).get(role, getattr(self, role))), round=self.round, over=self.over)

    @property
    def moves(self) -> bool:
        """Whether some format is dynamic."""
        every = [("", role) for role in ROLES] + [(layer, role) for layer, roles in self.layers.items() for role in roles]
        return any(follows(self.format(*one)) for one in every)

    def fixed(self, layer: str, role: str) -> FixedFormat:
        """As `format`, of a role that is fixed point."""
        text, where = str(self.layers.get(layer, {}).get(role, getattr(self, role))), f"precision {layer} {role}".replace("  ", " ")
        modes: tuple[Round, Overflow] = ("half_even", "sat") if role == "inputs" else (self.round, self.over)
        found = parse_format(text, round=modes[0], over=modes[1])
        if not isinstance(found, FixedFormat):
            raise UsageError(f"{role} are fixed point, '{text}' is not", where=where, near=("fixed<8,auto>", "ufixed<8,auto>"))
        if role == "inputs" and found.dynamic:
            raise UsageError(f"the first grid is the card's and does not move, '{text}' does", where=where, near=("fixed<10,auto>",))
        if role == "inputs" and (found.round, found.over) != ("half_even", "sat"):
            raise UsageError(f"inputs are rounded half_even and saturate, '{text}' asks for something else", where=where)
        return found

    def check(self, layers: Iterable[str]) -> None:
        """Refuse overrides of layers that the network does not have."""
        known = tuple(layers)
        for name in self.layers:
            if name not in known:
                raise UsageError(f"the network has no layer '{name}'", where=f"precision.layers.{name}", near=nearest(name, known) or known)

    def with_format(self, layer: str, role: str, to: Format) -> Precision:
        """A copy in which one role of one layer has the format `to`."""
        layers = {name: dict(roles) for name, roles in self.layers.items()}
        layers.setdefault(layer, {})[role] = str(to)
        return replace(self, layers=layers)


def _mapping(value: Any) -> Mapping[str, Mapping[str, str]]:
    if not isinstance(value, Mapping) or not all(isinstance(roles, Mapping) for roles in value.values()):
        raise UsageError("expected {layer: {role: format}}", where="precision.layers", then="for instance precision.layers.dense_0.weights=fixed<6,1>")
    return value


def mode(option: str, given: Any, known: tuple[Mode, ...]) -> Mode:
    """The mode that was given for an option, or a refusal with the nearest ones."""
    for one in known:
        if one == given:
            return one
    raise UsageError(f"no such mode: '{given}'", where=option, near=nearest(str(given), known) or known)

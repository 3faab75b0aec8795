"""Configurations of verbs: pydantic models filled from layers (defaults < configuration file < environment < flags), with errors that name the key."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from hlt_train.data.document import fields_at
from hlt_train.errors import UsageError, nearest

__all__ = ["Configuration", "check", "merge", "steps_of"]

UNITS = {"epoch": "epochs", "epochs": "epochs", "step": "steps", "steps": "steps", "event": "events", "events": "events", "row": "events", "rows": "events"}


class Configuration(BaseModel):
    """Base of the verbs' configurations: unknown keys are refused, keys are those of the YAML file."""

    model_config = ConfigDict(extra="forbid", validate_default=True)


C = TypeVar("C", bound=Configuration)


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Later layers win, key by key; where a later layer names another plugin (`name`), the options of the earlier one are dropped with it."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            old = merged.get(key)
            if isinstance(value, Mapping) and isinstance(old, Mapping) and value.get("name", old.get("name")) == old.get("name"):
                merged[key] = merge(old, value)
            else:
                merged[key] = merge(value) if isinstance(value, Mapping) else value
    return merged


def check(model: type[C], content: Mapping[str, Any], *, where: str = "") -> C:
    """`content` as a configuration; what does not fit is named by its path, unknown keys with the nearest ones."""
    try:
        return model.model_validate(dict(content))
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
            known = [field.alias or name for name, field in model.model_fields.items()]
            raise UsageError(f"no option is called '{path}'", where=where, near=nearest(path, known) or known) from error
        what, near = first["msg"].removeprefix("Value error, "), tuple[str, ...]()
        if first["type"] == "extra_forbidden":
            known = sorted(fields_at(model, first["loc"][:-1]))
            what, near = "unknown key", nearest(str(first["loc"][-1]), known) or tuple(known)
        what += "" if isinstance(first["input"], Mapping) else f", got {first['input']!r}"
        raise UsageError(f"{path}: {what}" if path else what, where=where, near=near) from error


def steps_of(length: str, *, rows: int, steps_per_epoch: int) -> int:
    """`20epochs`, `5000steps` or `3e6events` as a number of steps, rounded up."""
    found = re.fullmatch(r"\s*([0-9.]+(?:[eE][+-]?\d+)?)\s*([A-Za-z]+)\s*", length)
    unit = UNITS.get(found.group(2).lower()) if found else None
    if found is None or unit is None:
        near = nearest(found.group(2), UNITS) if found else ()
        raise UsageError(f"--for takes a number and a unit, got '{length}'", near=near, then="for instance --for 20epochs, --for 5000steps or --for 3e6events")
    try:
        value = float(found.group(1))
    except ValueError as error:
        raise UsageError(f"--for takes a number and a unit, got '{length}'", then="for instance --for 20epochs") from error
    steps = math.ceil({"epochs": value * steps_per_epoch, "steps": value, "events": value * steps_per_epoch / rows}[unit])
    if steps < 1:
        raise UsageError(f"--for {length} is less than one step", then="for instance --for 20epochs")
    return steps

"""Optimisers and learning-rate schedules by their names in optax; names and options are checked, with the nearest valid ones."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import optax

from hlt_train.errors import UsageError, nearest

__all__ = ["optimiser", "optimiser_names", "schedule", "schedule_names"]

# Parts of other rules; rules that need the loss in `update`, take no schedule, draw from a key of their own, or are deprecated by optax.
EXCLUDED = {"scale_by_learning_rate", "scale_by_rprop", "lbfgs", "rprop", "sm3", "noisy_sgd", "optimistic_adam"}
SCHEDULES = (
    "constant_schedule",
    "cosine_decay_schedule",
    "cosine_onecycle_schedule",
    "exponential_decay",
    "linear_onecycle_schedule",
    "linear_schedule",
    "polynomial_schedule",
    "warmup_constant_schedule",
    "warmup_cosine_decay_schedule",
    "warmup_exponential_decay_schedule",
)
# What a schedule gets from the run unless it is set: its rate (the first name present) and its length in steps.
RATE = ("value", "peak_value", "init_value")
LENGTH = ("decay_steps", "transition_steps")
DEFAULTS: dict[str, Any] = {"init_value": 0.0, "end_value": 0.0, "power": 1.0, "decay_rate": 0.1, "warmup_steps": None}


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function).parameters)


def optimiser_names() -> tuple[str, ...]:
    """The optimisers of optax: its public functions whose first parameter is the learning rate."""
    found = []
    for name in dir(optax):
        function = getattr(optax, name)
        if not name.startswith("_") and name not in EXCLUDED and inspect.isfunction(function) and next(iter(_parameters(function)), "") == "learning_rate":
            found.append(name)
    return tuple(found)


def schedule_names() -> tuple[str, ...]:
    """The schedules; each is also accepted without `_schedule`."""
    return SCHEDULES


def optimiser(name: str, learning_rate: optax.Schedule, options: Mapping[str, Any]) -> optax.GradientTransformation:
    """The optax optimiser `name` with a schedule; `options` are its other parameters."""
    if name not in optimiser_names():
        raise UsageError(f"no optimiser is called '{name}'", near=nearest(name, optimiser_names()), then=f"one of: {', '.join(optimiser_names())}")
    function: Callable[..., optax.GradientTransformation] = getattr(optax, name)
    _check(f"optimiser '{name}'", options, [p for p in _parameters(function) if p != "learning_rate"])
    return function(learning_rate, **options)


def schedule(name: str, learning_rate: float, steps: int, options: Mapping[str, Any]) -> optax.Schedule:
    """The optax schedule `name` over `steps` steps; its peak is the learning rate, a warm-up without `warmup_steps` takes 5 % of the steps."""
    full = name if name in SCHEDULES else f"{name}_schedule"
    if full not in SCHEDULES:
        raise UsageError(f"no schedule is called '{name}'", near=nearest(name, SCHEDULES), then=f"one of: {', '.join(SCHEDULES)}")
    function: Callable[..., optax.Schedule] = getattr(optax, full)
    parameters = _parameters(function)
    _check(f"schedule '{full}'", options, list(parameters))
    rate = next(p for p in RATE if p in parameters)
    filled: dict[str, Any] = {p: steps for p in LENGTH if p in parameters}
    for p, parameter in parameters.items():
        if p in DEFAULTS and parameter.default is inspect.Parameter.empty:
            filled[p] = max(1, steps // 20) if p == "warmup_steps" else DEFAULTS[p]
    return function(**{**filled, rate: learning_rate, **options})


def _check(what: str, options: Mapping[str, Any], known: list[str]) -> None:
    for key in options:
        if key not in known:
            raise UsageError(f"{what} has no option '{key}'", near=nearest(key, known), then=f"options: {', '.join(known)}")

"""Plugins: file name = plugin name = factory function name; options = the factory's keyword-only parameters.

The rooms (`ROOMS`) are listed with `pkgutil` without being imported, then third parties are found by the entry points
`hlt_train.strategies`, `hlt_train.models`, `hlt_train.exporters` and `hlt_train.augmentations`. A plugin that fails to import fails loudly, by name.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Callable
from importlib import metadata
from typing import Any

from hlt_train.errors import UsageError, nearest

__all__ = ["ROOMS", "factory", "names", "options", "parse_options", "summary"]

ROOMS = ("strategies", "models", "exporters", "augmentations")


@functools.cache
def _entry_points(room: str) -> dict[str, metadata.EntryPoint]:
    return {point.name: point for point in metadata.entry_points(group=f"hlt_train.{room}")}


def names(room: str) -> tuple[str, ...]:
    """The plugins of a room, sorted, without importing any of them. Files whose name starts with an underscore are helpers, not plugins."""
    import importlib.util

    spec = importlib.util.find_spec(f"hlt_train.{room}")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    own = {module.name for module in pkgutil.iter_modules(spec.submodule_search_locations) if not module.name.startswith("_")}
    return tuple(sorted(own | _entry_points(room).keys()))


def factory(room: str, name: str) -> Callable[..., Any]:
    """The factory function of plugin `name`; an unknown name is refused with the nearest ones."""
    known = names(room)
    if name not in known:
        kind = room.removesuffix("s") if room != "strategies" else "strategy"
        raise UsageError(f"no {kind} is called '{name}'", near=nearest(name, known) or known, then=f"one of: {', '.join(known)}")
    points = _entry_points(room)
    if name in points:
        found = points[name].load()
    else:
        found = getattr(importlib.import_module(f"hlt_train.{room}.{name}"), name)
    return typing.cast("Callable[..., Any]", found)


def options(room: str, name: str) -> dict[str, inspect.Parameter]:
    """The options of a plugin: the keyword-only parameters of its factory that have a default."""
    parameters = inspect.signature(factory(room, name), eval_str=True).parameters
    return {p.name: p for p in parameters.values() if p.kind is p.KEYWORD_ONLY and p.default is not p.empty}


def summary(room: str, name: str) -> str:
    """First line of the factory's docstring."""
    return (inspect.getdoc(factory(room, name)) or "").partition("\n")[0]


def parse_options(room: str, name: str, given: dict[str, Any]) -> dict[str, Any]:
    """Check `given` (from YAML or `--set`) against the plugin's options and convert each value to the parameter's annotated type."""
    from pydantic import TypeAdapter, ValidationError

    known = options(room, name)
    checked: dict[str, Any] = {}
    for key, value in given.items():
        if key not in known:
            raise UsageError(
                f"{name} has no option '{key}'", near=difflib.get_close_matches(key, known, cutoff=0.4) or tuple(known), then=f"options: {', '.join(known)}"
            )
        annotation = known[key].annotation
        try:
            checked[key] = TypeAdapter(Any if annotation is inspect.Parameter.empty else annotation).validate_python(value)
        except ValidationError as error:
            raise UsageError(f"option '{key}' of {name}: {error.errors()[0]['msg']}, got {value!r}") from error
    return checked

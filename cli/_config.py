"""The layers of a verb's configuration on the command line: `--config` file, environment and flags, `--set`, files of samples and splits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from hlt_train.cli._options import parse_assignments, parse_files
from hlt_train.errors import UsageError, nearest

__all__ = ["card_content", "given", "override_files"]

GIVEN = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)
PLUGINS = ("model", "optimizer", "schedule", "strategy", "transport")


def given(ctx: click.Context, keys: Mapping[str, str]) -> dict[str, Any]:
    """What the user set by flags and environment variables: parameter name -> key of the configuration; a plugin's name becomes its `name`."""
    found: dict[str, Any] = {}
    for parameter, key in keys.items():
        if ctx.get_parameter_source(parameter) in GIVEN:
            value = ctx.params[parameter]
            section, dot, option = key.partition(".")
            if dot:  # an option of a plugin with a flag of its own
                found[section] = {**found.get(section, {}), option: value}
            else:
                found[key] = {**found.get(key, {}), "name": value} if key in PLUGINS else value
    return found


def assignments(ctx: click.Context) -> dict[str, Any]:
    """The `--set` options as nested mappings."""
    return parse_assignments(ctx.params["assignments"])


def card_content(source: str | None, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The card that is named on the command line, else the one inside the configuration (a mapping, or the path of a card), as a JSON-able mapping."""
    from hlt_train.data.card import load_card

    if source is None and isinstance(config.get("card"), str):
        source = config["card"]
    if source is not None:
        return load_card(source).model_dump(mode="json")
    return config.get("card")


def _absolute(pattern: str) -> str:
    return pattern if "://" in pattern else str(Path(pattern).expanduser().absolute())


def override_files(card: dict[str, Any], files: tuple[str, ...], splits: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """The card with the files of `--files NAME=GLOB` and the split of `--train/--val/--test`; every path becomes absolute, so that the card can be stored."""
    samples = {name: dict(sample) for name, sample in card["samples"].items()}
    for name, patterns in parse_files(files).items():
        if name not in samples:
            raise UsageError(f"--files: the card has no sample '{name}'", near=nearest(name, samples) or tuple(samples))
        samples[name]["files"] = patterns
    for sample in samples.values():
        sample["files"] = [_absolute(pattern) for pattern in sample.get("files", [])]
    changed = {**card, "samples": samples}
    chosen = {name: [_absolute(pattern) for pattern in patterns] for name, patterns in splits.items() if patterns}
    if chosen:
        changed["splits"] = {"by": "files", **chosen}
    return changed

"""Options and output that several commands share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import yaml

from hlt_train.errors import UsageError, nearest

__all__ = ["CARD", "apply_config", "emit", "files_option", "json_option", "parse_assignments", "parse_files", "quiet_option", "set_option", "trust_option"]

CARD = "CARD"

json_option = click.option("--json", "as_json", is_flag=True, help="Print exactly one JSON object on stdout.")
quiet_option = click.option("-q", "--quiet", is_flag=True, help="No progress on stderr.")
files_option = click.option("--files", "files", metavar="NAME=GLOB", multiple=True, help="Files of a sample of the card (repeatable; replaces the card's own).")
trust_option = click.option("--trust", is_flag=True, help="Run an export as it is, even where its code is not what its graph.json gives.")
set_option = click.option("--set", "assignments", metavar="KEY=VALUE", multiple=True, help="Any option by its full name, for instance model.widths=[64,32,32].")


def parse_files(given: tuple[str, ...]) -> dict[str, list[str]]:
    """`NAME=GLOB` options -> sample name -> globs."""
    found: dict[str, list[str]] = {}
    for text in given:
        name, equals, pattern = text.partition("=")
        if not equals or not name or not pattern:
            raise UsageError(f"--files takes NAME=GLOB, got '{text}'", then="for instance --files 'signal=data/hh_*.root'")
        found.setdefault(name, []).append(pattern)
    return found


def parse_assignments(given: tuple[str, ...]) -> dict[str, Any]:
    """`a.b=VALUE` options (VALUE is YAML) -> nested dictionaries."""
    found: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"--set takes KEY=VALUE, got '{text}'", then="for instance --set model.widths=[64,32,32]")
        place = found
        *parents, last = key.split(".")
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = yaml.safe_load(value)
    return found


def apply_config(ctx: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    """Callback of an eager `--config FILE.yaml`: its keys become the defaults of the command's options (flag > environment > file > default)."""
    if value is None:
        return None
    path = Path(value)
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError as error:
        raise UsageError(f"no such file: {value}", then="give an existing YAML file to --config") from error
    except yaml.YAMLError as error:
        raise UsageError(f"not YAML: {error}", where=value) from error
    if not isinstance(content, dict):
        raise UsageError("expected a mapping of option names to values", where=value)
    names = {p.name for p in ctx.command.params if p.name is not None}
    for key in content:
        if str(key).replace("-", "_") not in names:
            raise UsageError(f"{path.name} has an option that '{ctx.info_name}' does not know: '{key}'", where=value, near=nearest(str(key), names))
    ctx.default_map = {str(k).replace("-", "_"): v for k, v in content.items()}
    return value


def emit(result: dict[str, Any], *, as_json: bool, text: Callable[[dict[str, Any]], str]) -> None:
    """The result on stdout: one JSON object, or the text that `text` makes of it."""
    click.echo(json.dumps(result, indent=1, allow_nan=False) if as_json else text(result))

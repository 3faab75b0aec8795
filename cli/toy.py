"""Write a ROOT file of toy jets or toy trigger events."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hlt_train.cli._options import emit, json_option, quiet_option
from hlt_train.errors import UsageError
from hlt_train.progress import Progress

__all__ = ["command", "parse_count"]

SUFFIXES = {"k": 1_000, "M": 1_000_000, "G": 1_000_000_000}


def parse_count(text: str) -> int:
    """Read a number of rows: '200000', '200k', '1e6', '2M', '1.5M'."""
    factor = SUFFIXES.get(text[-1:], 1)
    try:
        value = float(text[:-1] if factor > 1 else text) * factor
        if value == int(value):
            return int(value)
    except (ValueError, OverflowError):
        pass
    raise UsageError(f"not a whole number of rows: '{text}'", then="for instance -n 200k, -n 1e6 or -n 2M")


@click.command()
@click.argument("out", metavar="OUT.root", type=click.Path(path_type=Path))
@click.option("--kind", type=click.Choice(["jets", "events"]), required=True, help="jets: 5 classes with constituents. events: HH to 4b against QCD after L1.")
@click.option("-n", "count", metavar="N", default="200k", show_default=True, help="Rows to write: 200k, 1e6, 2M ...")
@click.option("--seed", type=int, default=1, show_default=True, help="The same (N, seed) gives the same content.")
@click.option("--drift", is_flag=True, help="events: from run 380010 on, 5 % less b-tag efficiency and a 2 % higher energy scale.")
@click.option("--all", "rejected", is_flag=True, help="events: write those that L1 rejects, too (L1_HTT280 = 0).")
@json_option
@quiet_option
def command(out: Path, kind: str, count: str, seed: int, drift: bool, rejected: bool, as_json: bool, quiet: bool) -> None:
    """Write OUT.root with toy jets (tree Jets) or toy trigger events (tree Events).

    The file says origin=toy: it is a reproducible exercise as hard as the real one, not validated physics. The embedded cards toy_jets and toy_events read it.
    """
    n = parse_count(count)
    if kind == "jets" and (drift or rejected):
        raise UsageError(f"{'--drift' if drift else '--all'} belongs to --kind events", then=f"hlt-train toy {out} --kind events ...")

    progress = Progress(quiet=quiet)
    report = lambda rows: progress.update(rows, n, f"{rows:,} of {n:,} {kind}")  # noqa: E731
    try:
        if kind == "jets":
            from hlt_train.datasets.jets import write_jets

            write_jets(out, n, seed, progress=report)
        else:
            from hlt_train.datasets.events import write_events

            write_events(out, n, seed, drift=drift, rejected=rejected, progress=report)
    finally:
        progress.close()
    tree = "Jets" if kind == "jets" else "Events"
    facts = {"file": str(out), "tree": tree, "origin": "toy", "entries": n, "seed": seed, "drift": drift, "all": rejected, "bytes": out.stat().st_size}
    emit(facts, as_json=as_json, text=summary)


def summary(facts: dict[str, Any]) -> str:
    """The result in one line."""
    return f"{facts['file']}: tree {facts['tree']}, {facts['entries']:,} entries, {facts['bytes'] / 1e6:.1f} MB, origin=toy, seed {facts['seed']}"

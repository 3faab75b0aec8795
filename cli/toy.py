"""Write a ROOT file of toy jets, trigger events, topologies or calorimeter cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hlt_train.cli._options import emit, json_option, quiet_option
from hlt_train.errors import UsageError
from hlt_train.progress import Progress

__all__ = ["command", "parse_count"]

TREES = {"jets": "Jets", "events": "Events", "topology": "Events", "cells": "Events"}
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
@click.option(
    "--kind",
    type=click.Choice(list(TREES)),
    required=True,
    help="jets: 5 classes with constituents. events: HH to 4b against QCD after L1. topology: QCD, ttbar, W + jets as lists of particles with an isolated "
    "lepton. cells: electron showers against background as hits in 100,000 cells.",
)
@click.option("-n", "count", metavar="N", default="200k", show_default=True, help="Rows to write: 200k, 1e6, 2M ...")
@click.option("--seed", type=int, default=1, show_default=True, help="The same (N, seed) gives the same content.")
@click.option("--drift", is_flag=True, help="events: from run 380010 on, 5 % less b-tag efficiency and a 2 % higher energy scale.")
@click.option("--all", "rejected", is_flag=True, help="events: write those that L1 rejects, too (L1_HTT280 = 0).")
@click.option("--particles", type=int, metavar="P", help="topology: write the P hardest particles of each event at most.  [default: 801]")
@json_option
@quiet_option
def command(out: Path, kind: str, count: str, seed: int, drift: bool, rejected: bool, particles: int | None, as_json: bool, quiet: bool) -> None:
    """Write OUT.root with toy jets (tree Jets), or toy trigger events, topologies or calorimeter cells (tree Events).

    The file says origin=toy: it is a reproducible exercise as hard as the real one, not validated physics. The embedded cards toy_jets, toy_events,
    toy_topology and toy_cells read it.
    """
    n = parse_count(count)
    for given, name, belongs in ((drift, "--drift", "events"), (rejected, "--all", "events"), (particles is not None, "--particles", "topology")):
        if given and kind != belongs:
            raise UsageError(f"{name} belongs to --kind {belongs}", then=f"hlt-train toy {out} --kind {belongs} ...")

    progress = Progress(quiet=quiet)
    report = lambda rows: progress.update(rows, n, f"{rows:,} of {n:,} {kind}")  # noqa: E731
    options: dict[str, Any] = {}
    try:
        if kind == "jets":
            from hlt_train.datasets.jets import write_jets

            write_jets(out, n, seed, progress=report)
        elif kind == "events":
            from hlt_train.datasets.events import write_events

            write_events(out, n, seed, drift=drift, rejected=rejected, progress=report)
        elif kind == "topology":
            from hlt_train.datasets.topology import PARTICLES, write_topology

            options = {"particles": PARTICLES if particles is None else particles}
            write_topology(out, n, seed, particles=options["particles"], progress=report)
        else:
            from hlt_train.datasets.cells import write_cells

            write_cells(out, n, seed, progress=report)
    finally:
        progress.close()
    facts = {"file": str(out), "tree": TREES[kind], "origin": "toy", "entries": n, "seed": seed, "drift": drift, "all": rejected, "bytes": out.stat().st_size}
    emit({**facts, **options}, as_json=as_json, text=summary)


def summary(facts: dict[str, Any]) -> str:
    """The result in one line."""
    return f"{facts['file']}: tree {facts['tree']}, {facts['entries']:,} entries, {facts['bytes'] / 1e6:.1f} MB, origin=toy, seed {facts['seed']}"

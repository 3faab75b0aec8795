"""`inspect CARD --sparsity`: Omega, Delta and rho of a card and a model, and whether lock-free training is justified.

The examples are those that `fit` would deal first, in its order, normalised as it would. Every example is an edge over the parameters that it touches
(`hlt_train.touched`), every batch the union of its examples (`hlt_train.sparsity` has the definitions).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hlt_train import devices
from hlt_train.data import normalise
from hlt_train.data.card import load_card
from hlt_train.data.dataset import Dataset, open_dataset
from hlt_train.data.stream import Stream
from hlt_train.report.table import table
from hlt_train.restore import ModelSpec, build_model
from hlt_train.sparsity import Edges, Sparsity, joined, measure, split_common
from hlt_train.touched import rows_at_most, touched
from hlt_train.types import Features, Inputs

__all__ = ["SAMPLE", "inspect_sparsity", "sparsity_text", "workers"]

SAMPLE = 1000  # edges whose neighbours are counted for rho
SPARE = 0.5  # examples in flight that may meet a given one, on average, at the worst
LARGE = 10  # an example's own parameters must outnumber those that every example touches this many times, for these to be called a few


def inspect_sparsity(
    source: str,
    files: Mapping[str, Sequence[str]] | None = None,
    *,
    model: str = "mlp",
    options: Mapping[str, Any] | None = None,
    batch: int = 512,
    entries: int = 10_000,
    seed: int = 1,
) -> dict[str, Any]:
    """Measure how sparse the problem is.

    Args:
        source: a card.
        files: sample name -> paths or globs, in place of the card's.
        model: name of the model.
        options: of the model.
        batch: examples of a batch.
        entries: examples of the training split, at most.
        seed: of the initial weights, the order of the rows and the sample.
    """
    card = load_card(source)
    spec = ModelSpec.of({"name": model, **(options or {})}, card.labels.classes)
    devices.prepare(1)
    with open_dataset(card, files) as dataset:
        inputs = normalise.fit_normalisation(dataset)
        network = build_model(spec, inputs, seed)
        wanted = min(entries, dataset.size("train"))
        x, label = _first(dataset, inputs, rows_at_most(network, wanted), batch, seed)
        warnings = list(dataset.warnings)
    if len(label) < wanted:
        warnings.append(f"{len(label):,} examples were looked at, not {wanted:,}: this model's gradients are too many for more")
    of = touched(network, x, label)
    rest, common = split_common(of)
    figures = {"example": of, "example_apart": rest, "batch": joined(of, batch), "batch_apart": joined(rest, batch)}
    found = {name: _measured(these, seed) for name, these in figures.items()}
    return {
        "kind": "sparsity",
        "card": card.name,
        "model": spec.name,
        "parameters": of.size,
        "touched_by_every_example": common,
        "examples": len(of),
        "batch_size": min(batch, len(of)),
        **found,
        **_verdict(found, common, min(batch, len(of))),
        "warnings": warnings,
    }


def workers(rho: float) -> int | None:
    """Workers whose other examples meet a given one at most `SPARE` times on average: 1 + SPARE / rho, rounded down; None: any number."""
    return None if rho == 0 else 1 + int(SPARE / rho)


def _first(dataset: Dataset, inputs: Inputs, wanted: int, batch: int, seed: int) -> tuple[Features, np.ndarray]:
    """The first examples that training would see."""
    parts: list[tuple[Features, np.ndarray]] = []
    have = 0
    for dealt, rows in Stream(dataset, "train", inputs, batch=batch, seed=seed, prefetch=False).epoch(0):
        take = np.flatnonzero(rows[0] >= 0)[: wanted - have]
        groups, counts = ({k: v[0][take] for k, v in part.items()} for part in dealt.x)
        parts.append((Features(groups, counts), dealt.label[0][take]))
        have += len(take)
        if have >= wanted:
            break
    first = parts[0][0]
    groups = {k: np.concatenate([x.groups[k] for x, _ in parts]) for k in first.groups}
    counts = {k: np.concatenate([x.counts[k] for x, _ in parts]) for k in first.counts}
    return Features(groups, counts), np.concatenate([label for _, label in parts])


def _measured(of: Edges, seed: int) -> dict[str, Any]:
    found: Sparsity = measure(of, sample=SAMPLE, seed=seed)
    return {
        "omega": found.omega,
        "omega_fraction": found.omega / found.size,
        "delta": found.delta,
        "rho": found.rho,
        "edges": found.edges,
        "sampled_for_rho": found.sampled,
    }


def _verdict(found: Mapping[str, Mapping[str, Any]], common: int, batch: int) -> dict[str, Any]:
    """`justified`: yes, partly (apart from a few parameters, or for smaller batches only), or no; with the number of workers, and in words."""
    apart, many = found["example_apart"], found["batch_apart"]
    limit = {"workers": workers(apart["rho"]), "workers_with_batches": workers(many["rho"])}
    if common * LARGE > apart["omega"] or (limit["workers"] is not None and limit["workers"] < 2):
        figures = f"Delta = {found['example']['delta']:.3g}, rho = {found['example']['rho']:.3g}"
        text = [f"No guarantee: {figures}. Lock-free training is not justified by sparsity: any two workers write the same parameters."]
        return {"justified": "no", "workers": 1, "workers_with_batches": 1, "verdict": text}
    small = limit["workers_with_batches"] is not None and limit["workers_with_batches"] < 2
    alone, together = _number(limit["workers"]), _number(limit["workers_with_batches"])
    text = [
        f"Lock-free training is justified with up to {alone} workers of single examples, {together} of batches of {batch:,}:",
        f"with as many, the other workers' examples (batches) meet a given one at most {SPARE} times on average.",
    ]
    if small:
        text.append("With such batches it is not justified: use smaller ones.")
    if common:
        text.append(f"Not for the {common:,} parameters that every example touches: they need a lock, an atomic sum or an owner.")
    return {"justified": "partly" if common or small else "yes", **limit, "verdict": text}


def _number(workers: int | None) -> str:
    return "any number" if workers is None else f"{workers:,}"


def sparsity_text(found: Mapping[str, Any]) -> str:
    """The figures for people."""
    common = found["touched_by_every_example"]
    batch = f"batch of {found['batch_size']:,}"
    names = {"example": "example", "batch": batch}
    if common:
        names = {"example": "example", "example_apart": "  apart from those of all", "batch": batch, "batch_apart": "  apart from those of all"}
    rows = []
    for key, name in names.items():
        f = found[key]
        rows.append([name, f"{f['omega']:,}", f"{100 * f['omega_fraction']:.3g} %", f"{f['delta']:.4g}", f"{f['rho']:.4g}", f["edges"], f["sampled_for_rho"]])
    lines = [
        f"card {found['card']}, model {found['model']}: {found['parameters']:,} parameters, {common:,} of them touched by every example",
        "",
        table(rows, ["one edge is a", "Omega", "of all", "Delta", "rho", "edges", "for rho"]),
        "",
        "Omega: most parameters that an edge touches. Delta: share of the edges that touch the most touched parameter.",
        "rho: share of the edges that share a parameter with the edge (of those looked at for rho) that meets most.",
        "",
        *found["verdict"],
    ]
    return "\n".join([*lines, *(f"Note: {warning}" for warning in found["warnings"])])

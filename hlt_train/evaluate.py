"""`evaluate`: any mix of runs and exports on the same rows, in the numbers of a trigger, beside the cuts that they have to beat.

Rows come from the test split of the card (of the first network's card where they differ; rows are then matched by identity). A run is taken at BEST, a
fixed-point run through the golden evaluator, an export by running its artefact. Features are dropped as soon as they are scored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hlt_train.baselines import Sight, baselines
from hlt_train.data.card import Card
from hlt_train.data.dataset import open_dataset
from hlt_train.errors import UsageError, nearest
from hlt_train.progress import Progress
from hlt_train.scorers import Scorer, scorer
from hlt_train.scoring import Scored, requests_of, score_split, setting_of, take
from hlt_train.trigger.comparison import Network, compare
from hlt_train.trigger.curves import auc
from hlt_train.trigger.discriminant import Discriminant, discriminant
from hlt_train.trigger.views import Setting, View, view
from hlt_train.trigger.working_points import Request, at_threshold, decisions

__all__ = ["evaluate", "input_rates"]

RATES = (10.0, 50.0, 100.0, 1000.0)  # Hz, where neither the card nor the user asks for any
MISTAGS = (0.001, 0.01, 0.05)
EFFICIENCIES = (0.5, 0.8, 0.95)
MOST, LEAST, CELLS = 400, 100, 30_000_000  # replicas: as many as CELLS / rows, within limits


def evaluate(
    sources: Sequence[Path],
    *,
    files: Mapping[str, Sequence[str]] | None = None,
    rates: Sequence[str] = (),
    requests: Sequence[Request] = (),
    split: str = "test",
    replicas: int | None = None,
    seed: int = 0,
    latency: bool = True,
    trust: bool = False,
    progress: Progress,
) -> dict[str, Any]:
    """Figures of every network in `sources`, as a JSON-able mapping.

    Args:
        sources: run and export directories.
        files: sample -> globs, in place of the cards'.
        rates: input rates, `100kHz` or `NAME=100kHz`.
        requests: rates, mistags and efficiencies to report; by default the card's working points.
        split: of the card.
        replicas: of the bootstrap; by default 100 to 400, by the number of rows.
        seed: of the bootstrap.
        latency: measure the time of a call at batch 1.
        trust: run exports as they are, whoever wrote their code.
        progress: where to say how far it is.
    """
    if not sources:
        raise UsageError("evaluate what?", then="hlt-train evaluate RUN|EXPORT...")
    networks = [scorer(path, trust=trust) for path in sources]
    for network in networks:
        progress(f"{network.name}: {network.kind} ({network.which})")
        if network.card.labels.classes != networks[0].card.labels.classes:
            raise UsageError(
                f"{network.name} distinguishes other classes than {networks[0].name}",
                where=f"{', '.join(network.card.labels.classes)} against {', '.join(networks[0].card.labels.classes)}",
            )
    card = networks[0].card
    setting = setting_of(card, input_rates(card, rates))
    scored, validation, notes = _score(networks, files, split, progress)
    replicas = replicas or int(np.clip(CELLS // len(scored.keys), LEAST, MOST))
    found: dict[str, Any] = {
        "card": card.name,
        "split": split,
        "rows": len(scored.keys),
        "hashes": scored.truth.hashes,
        "selection": card.selection,
        "replicas": replicas,
        "notes": notes,
        "networks": [_about(network, scored, k, latency) for k, network in enumerate(networks)],
        "sections": [],
    }
    if setting.discriminant is None or any(s.score is None for s in scored.scores):
        notes.append("no network is compared at a rate or mistag: the card has no trigger.discriminant, or a fixed-point network no integer score")
        return found
    for events, wanted, efficiencies in _sections(setting, requests or list(requests_of(card).values())):
        progress(f"bootstrap: {replicas} replicas of {len(scored.keys):,} rows")
        views = [_view(setting, scored, k, events) for k in range(len(networks))]
        references = [_reference(networks, k) for k in range(len(networks))]
        rows = [Network(n.name, v, n.exponent, r) for n, v, r in zip(networks, views, references, strict=True)]
        section: dict[str, Any] = {"unit": "Hz" if views[0].hertz is not None else "mistag", "of": views[0].unit, **_denominators(setting, views[0])}
        section |= compare(rows, wanted, efficiencies, setting.samples, replicas=replicas, seed=seed)
        if len(views[0].score) == len(scored.keys):
            test = Sight(views[0], scored.columns)
            train = test if validation is None else Sight(_blank(setting, validation, events), validation.columns)
            section["baselines"] = baselines(card, setting, wanted, train, test)
        for network, row, seen in zip(networks, section["networks"], views, strict=True):
            row["working_points"] = _recorded(network, seen, setting)
        found["sections"].append(section)
    return found


def input_rates(card: Card, given: Sequence[str]) -> dict[str, float]:
    """`100kHz` or `NAME=100kHz` -> sample -> Hz. Without a name: the one sample of the card's rate, or else the one sample that is background alone."""
    from hlt_train.data.trigger_card import parse_rate

    found: dict[str, float] = {}
    for text in given:
        name, equals, number = text.rpartition("=")
        if not equals:
            named = list(card.trigger.rate) if card.trigger is not None else []
            name = named[0] if len(named) == 1 else next(iter(card.samples)) if len(card.samples) == 1 else ""
        if name not in card.samples:
            what = f"no sample is called '{name}'" if name else f"which sample enters at {text}?"
            raise UsageError(what, where="--input-rate", near=nearest(name, card.samples) or tuple(card.samples), then="--input-rate NAME=100kHz")
        try:
            found[name] = parse_rate(number)
        except ValueError as error:
            raise UsageError(str(error), where="--input-rate") from error
    return found


def _score(networks: Sequence[Scorer], files: Mapping[str, Sequence[str]] | None, split: str, progress: Progress) -> tuple[Scored, Scored | None, list[str]]:
    """The split scored by every network on common rows; the validation split without networks (None where it is empty); notes."""
    groups: dict[str, list[int]] = {}
    for k, network in enumerate(networks):
        groups.setdefault(network.card.model_dump_json(), []).append(k)
    parts: list[tuple[list[int], Scored]] = []
    validation: Scored | None = None
    notes: list[str] = []
    for members in groups.values():
        card = networks[members[0]].card
        with open_dataset(card, files, training=False) as dataset:
            parts.append((members, score_split([networks[k] for k in members], dataset, split, progress=progress)))
            if not parts[1:] and card.trigger is not None and (card.trigger.reference is not None or card.trigger.variables):
                if split != "validation" and dataset.size("validation"):
                    validation = score_split([], dataset, "validation", progress=progress)
                else:
                    notes.append(f"the baselines' thresholds were found on the {split} split itself, to their advantage")
            notes += dataset.warnings
    first, samples = parts[0][1], tuple(networks[0].card.samples)
    if len(parts) == 1:
        return first, validation, notes
    scores = dict(zip(parts[0][0], first.scores, strict=True))
    common = first.keys
    for members, part in parts[1:]:
        if part.keys.dtype != common.dtype:
            raise UsageError("the cards identify events by different numbers of columns, so that their rows cannot be matched", where="identity")
        common = np.intersect1d(common, part.keys)
        notes.append(f"{networks[members[0]].name}: {len(part.keys) - len(np.intersect1d(first.keys, part.keys)):,} of its rows have no partner")
    if len(common) == 0:
        raise UsageError("the cards have no row in common", where="identity", then="evaluate them one by one")
    for members, part in parts:
        rows = np.intersect1d(part.keys, common, return_indices=True)[1]
        scores |= dict(zip(members, take(part, rows, samples).scores, strict=True))
    rows = np.intersect1d(first.keys, common, return_indices=True)[1]
    notes.append(f"{len(common):,} of {len(first.keys):,} rows are common to all cards")
    return take(first, rows, samples)._replace(scores=[scores[k] for k in range(len(networks))]), validation, notes


def _sections(setting: Setting, asked: Sequence[Request]) -> list[tuple[bool | None, list[Request], list[Request]]]:
    """(as events or objects; None: events without Hz), rates or mistags, efficiencies."""
    kinds: dict[str, list[Request]] = {kind: [r for r in asked if r.kind == kind] for kind in ("rate", "mistag", "eff")}
    efficiencies = kinds["eff"] or [Request("eff", e, f"eff {100 * e:g}%") for e in EFFICIENCIES]
    if kinds["rate"] and not setting.has_rates:
        raise UsageError(
            f"'{kinds['rate'][0].text}' is a rate, but these {'objects' if setting.per_object else 'events'} have none",
            then="--input-rate NAME=100kHz, or trigger.rate in the card; objects also need trigger.event_score",
        )
    found: list[tuple[bool | None, list[Request], list[Request]]] = []
    if setting.has_rates:
        most = sum(setting.input_rates.values())
        found.append((True, kinds["rate"] or [Request("rate", r, f"{r:g} Hz") for r in RATES if r < most], efficiencies))
    if kinds["mistag"] or not setting.has_rates or setting.per_object:
        mistags = kinds["mistag"] or [Request("mistag", m, f"mistag {100 * m:g}%") for m in MISTAGS]
        found.append((False if setting.per_object else None, mistags, efficiencies))
    return found


def _view(setting: Setting, scored: Scored, k: int, events: bool | None) -> View:
    score = scored.scores[k].score
    assert score is not None  # checked by the caller
    seen = view(setting, scored.truth, score, events=bool(events))
    return seen if events else seen._replace(hertz=None)


def _blank(setting: Setting, scored: Scored, events: bool | None) -> View:
    seen = view(setting, scored.truth, np.zeros(len(scored.keys)), events=bool(events))
    return seen if events else seen._replace(hertz=None)


def _denominators(setting: Setting, seen: View) -> dict[str, str]:
    spec = setting.discriminant
    assert spec is not None  # there is a view
    signal, background = f"{int(seen.signal.sum()):,} {seen.unit} of class", f"{int(seen.background.sum()):,} {seen.unit} of class"
    return {"efficiency_of": f"{signal} {', '.join(spec.signal)}", "mistag_of": f"{background} {', '.join(spec.background)}"}


def _reference(networks: Sequence[Scorer], k: int) -> int | None:
    """The first recorded teacher that is among the networks, else the first one; None for the first one itself."""
    for teacher in networks[k].teachers:
        for other, network in enumerate(networks):
            if other != k and Path(network.name).resolve() == teacher.resolve():
                return other
    return 0 if k else None


def _recorded(network: Scorer, seen: View, setting: Setting) -> list[dict[str, Any]]:
    """The network's own working points, at their recorded thresholds, on these rows."""
    points = [] if network.points is None else network.points["points"]
    mine = [p for p in points if p["unit"] == seen.unit and (p["kind"] != "rate" or seen.hertz is not None)]
    passed = decisions(seen.score, mine)
    keys = ("name", "request", "integer_threshold", "threshold")
    return [{**{key: point[key] for key in keys}, **at_threshold(passed[point["name"]], seen, setting)} for point in mine]


def _about(network: Scorer, scored: Scored, k: int, latency: bool) -> dict[str, Any]:
    """What is true of one network whatever the rate: its kind, accuracy, one-against-rest areas, latency."""
    classes, truth, logits = network.card.labels.classes, scored.truth, scored.scores[k].logits
    right = truth.weight[logits.argmax(axis=1) == truth.label].sum() / truth.weight.sum()
    areas = {}
    for j, name in enumerate(classes):
        others = [other for other in classes if other != name]
        one = discriminant(logits, classes, Discriminant.of([name], others, classes))
        area = auc(one, truth.label == j, truth.weight)
        areas[name] = area if np.isfinite(area) else None
    found = {"name": network.name, "kind": network.kind, "which": network.which, "parameters": network.parameters, "accuracy": float(right), "auc": areas}
    return {**found, "latency": network.latency(scored.examples) if latency else None}

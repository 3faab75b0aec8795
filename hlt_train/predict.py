"""`predict`: a network's scores and decisions for every entry that passes the card's selection, in the order of the files, as a ROOT file."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.special import softmax

from hlt_train import __version__
from hlt_train.data.card import Card, Sample, Splits, Weights
from hlt_train.data.dataset import open_dataset
from hlt_train.data.discover import sample_files
from hlt_train.data.expressions import parse
from hlt_train.data.read import Tree, open_tree
from hlt_train.data.write import check_new_file, new_tree
from hlt_train.errors import UsageError, nearest
from hlt_train.progress import Progress
from hlt_train.scorers import Scorer, scorer
from hlt_train.scoring import setting_of
from hlt_train.trigger.views import Setting, truth, view
from hlt_train.trigger.working_points import decisions
from hlt_train.types import Rows

__all__ = ["TREE", "predict"]

TREE = "Scores"
UNNAMED = "data"  # the sample of files that are given without a name


class Plan(NamedTuple):
    """What is read. card: the network's card, changed for prediction; labelled: whether rows have labels; missing: observers that the files lack."""

    card: Card
    labelled: bool
    missing: tuple[str, ...]


def predict(source: Path, files: Sequence[str], out: Path, *, trust: bool = False, progress: Progress) -> dict[str, Any]:
    """Score `files` with the run or export `source` and write `out`.

    Args:
        source: a run (at BEST) or an export directory.
        files: paths or globs; or `NAME=GLOB`, a sample of the card, whose selection and label then apply.
        out: the ROOT file to make, which must not exist.
        trust: run an export as it is, whoever wrote its code.
        progress: where to say how far it is.

    The tree `Scores` has a row per example: identity, `sample`, `object` (for object examples), `label` (where the card finds one), `score_<class>` (softmax),
    `discriminant`, `integer_score` (of a fixed-point network), `pass_<working point>`, and the card's observers.
    """
    check_new_file(out)
    network = scorer(source, trust=trust)
    plan = _plan(network.card, files)
    for name in plan.missing:
        progress(f"observer '{name}' is not in the files and is left out")
    setting = dataclasses.replace(setting_of(plan.card), input_rates={})  # decisions need no rates
    points = [] if network.points is None else network.points["points"]
    facts = {"network": network.name, "kind": network.kind, "which": network.which, "card": network.card.name, "hlt_train": __version__}
    passing = {str(point["name"]): 0 for point in points}
    done = 0
    with open_dataset(plan.card, training=False, labelled=plan.labelled) as dataset:
        strings = {"provenance": json.dumps({**facts, "samples": list(plan.card.samples), "points": points})}
        total = dataset.size("test")  # the one split of the plan's card
        with new_tree(out, TREE, title=f"hlt-train scores of {network.name}", strings=strings) as extend:
            for _, rows in dataset.decode(np.flatnonzero(dataset.counts["test"]).tolist(), "test"):
                columns = _columns(network, setting, plan, rows, points)
                for name in passing:
                    passing[name] += int(columns[f"pass_{_branch(name)}"].sum())
                extend(columns)
                done += len(rows.label)
                progress.update(done, total, "scoring")
        found = {"out": str(out), "tree": TREE, "rows": done, "labelled": plan.labelled, "passing": passing}
        return {**facts, **found, "nonfinite": dataset.nonfinite, "warnings": list(dataset.warnings)}


def _plan(card: Card, given: Sequence[str]) -> Plan:
    """The network's card for these files: all entries in one split, nothing that only training or rates need."""
    named, plain = _sort_files(card, given)
    if named:
        samples = {name: Sample(files=patterns, selection=card.samples[name].selection) for name, patterns in named.items()}
    else:
        samples = {UNNAMED: Sample(files=plain)}
    update: dict[str, Any] = {"samples": samples, "splits": Splits(by="hash", fractions={"test": 1.0}), "weights": Weights()}
    if card.trigger is not None:
        update["trigger"] = card.trigger.model_copy(update={"rate_weight": "1", "reference": None, "variables": []})
    card = card.model_copy(update=update)  # not checked again: samples may lack those that labels and rates name
    labelled = bool(named)
    missing: set[str] = set()
    for paths in sample_files(card, None).values():
        tree = open_tree(paths[0], card.tree)
        try:
            missing |= {name for name in card.observers if not _has(card, tree, name)}
            if card.labels.expression is not None:
                labelled = (labelled or bool(plain)) and all(_has(card, tree, name) for name in parse(card.labels.expression).names)
        finally:
            tree.close()
    card = card.model_copy(update={"observers": [name for name in card.observers if name not in missing]})
    return Plan(card, labelled, tuple(sorted(missing)))


def _sort_files(card: Card, given: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """(sample -> patterns, patterns without a sample): one of the two is empty."""
    named: dict[str, list[str]] = {}
    plain: list[str] = []
    for text in given:
        name, equals, pattern = text.partition("=")
        if not equals or "/" in name or Path(text).exists():
            plain.append(text)
        elif name not in card.samples:
            raise UsageError(f"the card has no sample '{name}'", where=text, near=nearest(name, card.samples) or tuple(card.samples))
        else:
            named.setdefault(name, []).append(pattern)
    if named and plain:
        raise UsageError("some files have a sample's name and some have none", where=", ".join(plain), then="write NAME=FILE for all of them, or for none")
    if not named and not plain:
        raise UsageError("predict what?", then="hlt-train predict RUN FILES... --out scores.root")
    return named, plain


def _has(card: Card, tree: Tree, name: str, chain: tuple[str, ...] = ()) -> bool:
    """Whether a name can be computed from the branches of a tree."""
    if name in card.new_variables and name not in chain:
        return all(_has(card, tree, inner, (*chain, name)) for inner in parse(card.new_variables[name]).names)
    return name in tree


def _branch(text: str) -> str:
    """A name that ROOT accepts."""
    return re.sub(r"\W", "_", text)


def _columns(network: Scorer, setting: Setting, plan: Plan, rows: Rows, points: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    scores = network.score(rows.x)
    columns = {_branch(text): rows.identity[:, k] for k, text in enumerate(plan.card.identity)}
    columns["sample"] = rows.sample
    if setting.per_object:
        columns["object"] = rows.object
    if plan.labelled:
        columns["label"] = rows.label
    for name, probability in zip(setting.classes, softmax(scores.logits, axis=1).T, strict=True):
        columns[f"score_{_branch(name)}"] = probability.astype(np.float32)
    if scores.score is not None:
        if scores.score.dtype.kind == "i":
            columns["integer_score"] = scores.score
        columns["discriminant"] = scores.score * 2.0 ** -(network.exponent or 0)
        for name, passed in _passed(setting, plan.card, rows, scores.score, points).items():
            columns[f"pass_{_branch(name)}"] = passed
    return columns | {name: values for name, values in rows.observers.items() if name not in columns}


def _passed(setting: Setting, card: Card, rows: Rows, score: np.ndarray, points: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Bool `[n]` per working point; the decision of an event stands on each of its objects."""
    own = [point for point in points if point["unit"] == ("objects" if setting.per_object else "events")]
    found = decisions(score, own)
    if shared := [point for point in points if point not in own]:
        objects = None if card.trigger is None or card.trigger.objects is None else parse(card.trigger.objects).evaluate(rows.reference)
        known = truth(rows.label, rows.sample, rows.rate_weight, rows.identity, rows.object, setting.samples, None if objects is None else np.asarray(objects))
        decided = decisions(view(setting, known, score, events=True).score, shared)
        found |= {name: passed[known.grouping.event] for name, passed in decided.items()}
    return {str(point["name"]): found[str(point["name"])] for point in points}

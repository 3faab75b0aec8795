"""Anything that gives a score: a float run, a fixed-point run, an ensemble, or an exported artefact, behind one function from raw features to scores.

A float run is scored by the JAX forward at one padded batch size and the discriminant in NumPy float64; a fixed-point run by the golden evaluator, in
integers; an ensemble by its generalist and its specialists in float; an export by running the artefact itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from hlt_train.artefact import is_export, no_such, open_export
from hlt_train.data.card import Card
from hlt_train.ensemble_document import is_ensemble
from hlt_train.errors import UsageError
from hlt_train.graph import Graph, evaluate, score_weights
from hlt_train.graph import score as integer_score
from hlt_train.trigger import working_points
from hlt_train.trigger.discriminant import Discriminant, discriminant
from hlt_train.types import Features, Inputs

__all__ = ["Scorer", "Scores", "discriminant_of", "row", "scorer"]

CALLS = 300  # of a latency measurement
WARM = 20


class Scores(NamedTuple):
    """What a network says of n rows.

    Attributes:
        logits: float64 `[n, n_classes]`, in the card's order of classes.
        score: what thresholds cut on: int64 `[n]` of a fixed-point network, float64 `[n]` otherwise; None where the card defines no discriminant.
    """

    logits: np.ndarray
    score: np.ndarray | None


@dataclass(frozen=True)
class Scorer:
    """One network, ready to score.

    Attributes:
        name: how the user called it.
        kind: what is run.
        which: the checkpoint of a run, the target of an export.
        card, inputs: what it was made for.
        exponent: an integer score of n means n * 2**-exponent; None for a float score.
        parameters: number of parameters.
        teachers: the runs and ensembles that it was distilled from, as recorded.
        points: its `working_points.json`, or None.
        score: raw features -> `Scores`.
        latency: features of at least one row -> `median_ns`, `p99_ns` and `what` was measured, at batch 1.
    """

    name: str
    kind: Literal["float run", "fixed-point run", "ensemble", "export"]
    which: str
    card: Card
    inputs: Inputs
    exponent: int | None
    parameters: int
    teachers: tuple[Path, ...]
    points: dict[str, Any] | None
    score: Callable[[Features], Scores]
    latency: Callable[[Features], dict[str, Any]]


def scorer(path: Path, *, which: str = "BEST", trust: bool = False) -> Scorer:
    """Open a run (at BEST), an ensemble or an export directory; trust: see `open_export`."""
    if is_ensemble(path):
        return _ensemble(path)
    if (path / "config.yaml").is_file():
        return _run(path, which)
    if is_export(path):
        return _export(path, trust=trust)
    if not path.exists():
        raise no_such(path)
    then = "give a directory that fit, distil, specialists or export wrote"
    raise UsageError("neither a run (config.yaml) nor an export (certificate.json)", where=str(path), then=then)


def discriminant_of(card: Card) -> Discriminant | None:
    """The card's discriminant; by default the second of two classes against the first; None where there are more and the card does not say."""
    classes = tuple(card.labels.classes)
    if card.trigger is not None and card.trigger.discriminant is not None:
        return Discriminant.of(card.trigger.discriminant.signal, card.trigger.discriminant.background, classes)
    return Discriminant.of([classes[1]], [classes[0]], classes) if len(classes) == 2 else None


def row(x: Features, index: int) -> Features:
    """One row as features of one row."""
    return x.take(slice(index, index + 1))


def of_graph(graph: Graph, card: Card) -> Callable[[np.ndarray], Scores]:
    """The function from the outputs of a graph (or of an artefact of it) to `Scores`."""
    classes = len(card.labels.classes)
    spec = discriminant_of(card)
    if not graph.exact:
        return lambda outputs: _float_scores(outputs, card, spec)
    exponents = graph.structure[graph.output.name].f
    assert exponents is not None  # the graph is exact
    scale = np.ldexp(1.0, -exponents[:classes])
    has_score = graph.output.score is not None
    return lambda outputs: Scores(outputs[:, :classes] * scale, integer_score(graph, outputs) if has_score else None)


def _float_scores(outputs: np.ndarray, card: Card, spec: Discriminant | None) -> Scores:
    logits = outputs[:, : len(card.labels.classes)].astype(np.float64)
    return Scores(logits, None if spec is None else discriminant(logits, card.labels.classes, spec))


def _run(path: Path, which: str) -> Scorer:
    import jax

    from hlt_train.restore import load_run, lowered, parameters, predict_rows

    loaded = load_run(path, which)
    card, spec = loaded.card, discriminant_of(loaded.card)
    if loaded.names[: len(card.labels.classes)] != tuple(card.labels.classes):
        what = f"it tells {', '.join(loaded.names)} apart, not the classes of its card: one specialist of an ensemble"
        raise UsageError(what, where=str(path), then="give the directory of the ensemble")
    exponent = None
    if loaded.spec.precision is None:

        def score(x: Features) -> Scores:
            return _float_scores(predict_rows(loaded, x), card, spec)

        def latency(x: Features) -> dict[str, Any]:
            return _timed(lambda one: predict_rows(loaded, one, batch=1), x, "the JAX call, normalisation included")
    else:
        graph = lowered(loaded)
        scores = of_graph(graph, card)
        exponent = None if loaded.spec.score is None else score_weights(graph)[1]

        def score(x: Features) -> Scores:
            return scores(evaluate(graph, x))

        def latency(x: Features) -> dict[str, Any]:
            return _timed(lambda one: evaluate(graph, one), x, "the golden evaluator in NumPy; an export has the network's own latency")

    recorded = loaded.config.get("teacher") or []
    points = path / working_points.FILE
    return Scorer(
        name=str(path),
        kind="float run" if loaded.spec.precision is None else "fixed-point run",
        which=f"{which}, step {loaded.step:,}",
        card=card,
        inputs=loaded.inputs,
        exponent=exponent,
        parameters=sum(int(leaf.size) for leaf in jax.tree.leaves(parameters(loaded.model))),
        teachers=tuple(Path(text) for text in ([recorded] if isinstance(recorded, str) else recorded)),
        points=working_points.read(points) if points.is_file() else None,
        score=score,
        latency=latency,
    )


def _ensemble(path: Path) -> Scorer:
    import jax

    from hlt_train.ensemble import log_probabilities, open_ensemble
    from hlt_train.restore import parameters

    ensemble = open_ensemble(path)
    card, spec = ensemble.card, discriminant_of(ensemble.card)
    runs = [ensemble.generalist, *(s.run for s in ensemble.specialists)]
    points = path / working_points.FILE

    def score(x: Features) -> Scores:
        return _float_scores(log_probabilities(ensemble, x), card, spec)

    return Scorer(
        name=str(path),
        kind="ensemble",
        which=f"generalist and {len(ensemble.specialists)} specialist{'s' * (len(ensemble.specialists) > 1)}",
        card=card,
        inputs=ensemble.generalist.inputs,
        exponent=None,
        parameters=sum(int(leaf.size) for run in runs for leaf in jax.tree.leaves(parameters(run.model))),
        teachers=(),
        points=working_points.read(points) if points.is_file() else None,
        score=score,
        latency=lambda x: _timed(score, x, "the JAX calls, normalisation and combination included"),
    )


def _export(path: Path, *, trust: bool) -> Scorer:
    artefact = open_export(path, trust=trust)
    scores = of_graph(artefact.graph, artefact.card)
    read = {node.group for node in artefact.graph.inputs}

    def chosen(x: Features) -> Features:
        return Features({k: v for k, v in x.groups.items() if k in read}, {k: v for k, v in x.counts.items() if k in read})

    def latency(x: Features) -> dict[str, Any]:
        return {**artefact.latency(chosen(x)), "what": f"the {artefact.target} artefact"}

    return Scorer(
        name=str(path),
        kind="export",
        which=f"{artefact.target}, {'fixed point' if artefact.exact else 'float'}",
        card=artefact.card,
        inputs=artefact.inputs,
        exponent=score_weights(artefact.graph)[1] if artefact.exact and artefact.graph.output.score is not None else None,
        parameters=int(artefact.certificate["cost"]["parameters"]),
        teachers=(),
        points=artefact.working_points,
        score=lambda x: scores(artefact.outputs(chosen(x))),
        latency=latency,
    )


def _timed(call: Callable[[Features], Any], x: Features, what: str) -> dict[str, Any]:
    rows = [row(x, k % len(next(iter(x.groups.values())))) for k in range(CALLS + WARM)]
    times = []
    for one in rows:
        start = time.perf_counter_ns()
        call(one)
        times.append(time.perf_counter_ns() - start)
    kept = np.array(times[WARM:])
    return {"median_ns": float(np.median(kept)), "p99_ns": float(np.quantile(kept, 0.99)), "what": what}

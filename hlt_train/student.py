"""A student looked at as the integers it is: golden figures, proof, and how much its formats saturate."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import numpy as np

from hlt_train.answers import weighted_answers
from hlt_train.calibration import dense_layers, traced
from hlt_train.cost import cost
from hlt_train.data import normalise
from hlt_train.data.dataset import Dataset
from hlt_train.errors import Hopeless, RunFailed, UsageError
from hlt_train.graph import evaluate
from hlt_train.models._refusal import NoGraph
from hlt_train.precision.formats import Format
from hlt_train.proof import prove
from hlt_train.restore import Loaded, lowered, predict_rows
from hlt_train.types import Features, Inputs

__all__ = ["golden_figures", "refuse_saturated", "saturation", "training_only"]

ROWS = 8192  # of the training split, for ranges and saturation
HOPELESS = {"weights": 0.5, "bias": 0.9, "activations": 0.5}  # fraction beyond the format above which training makes no sense


def training_only(model: eqx.Module, inputs: Inputs, names: tuple[str, ...]) -> str | None:
    """Why the number contract does not hold a fixed-point or minifloat network, which can only be trained then; None where it does."""
    try:
        prove(model.lower(inputs, names, None))  # type: ignore[attr-defined]
    except NoGraph:
        raise
    except UsageError as error:
        return error.what
    return None


def golden_figures(loaded: Loaded, dataset: Dataset) -> dict[str, Any]:
    """What the golden evaluator says on the validation split: cross-entropy and accuracy with training weights, and how often the training forward differs.

    Raises:
        RunFailed: the proof holds and yet the training forward differs: a fault of the program, never of the data.
    """
    graph = lowered(loaded)
    f = graph.structure[graph.output.name].f
    assert f is not None, "a fixed-point network"
    classes = len(loaded.card.labels.classes)
    answers = np.zeros(3)
    rows = differing = 0
    for part in dataset.iterate("validation", columns="training"):
        integers = evaluate(graph, part.x)
        values = np.ldexp(integers.astype(np.float64), -f.astype(np.int32))
        differing += int((values != predict_rows(loaded, part.x)).any(axis=1).sum())
        answers += weighted_answers(values[:, :classes], part.label, part.weight)
        rows += len(part)
    proofs = prove(graph)
    exact = all(proof.f24 for proof in proofs.values())
    if exact and differing:
        raise RunFailed(f"{differing:,} of {rows:,} rows differ between training and the golden evaluator although the proof holds", then="report this")
    loss, right, total = answers.tolist()
    figures = {"cross_entropy": loss / total, "accuracy": right / total, "rows": rows}
    return {**figures, "differing_rows": differing, "float32_exact": exact, "accumulator_bits": max(p.acc_bits for p in proofs.values()), "cost": cost(graph)}


def saturation(model: eqx.Module, inputs: Inputs, x: Features) -> dict[str, dict[str, float]]:
    """Layer -> role -> fraction of the values beyond the range of the format.

    Args:
        model: a fixed-point network.
        inputs: its normalisation.
        x: raw features of some thousand rows.
    """
    found: dict[str, dict[str, float]] = {}
    values = traced(model, normalise.apply(inputs, x))
    for layer in dense_layers(model):
        if layer.formats is None:
            continue
        found[layer.name] = {
            "weights": _beyond(np.asarray(layer.linear.weight), layer.formats.weights),
            "bias": _beyond(np.asarray(layer.linear.bias), layer.formats.bias),
        }
        if layer.formats.out is not None:
            found[layer.name]["activations"] = _beyond(np.asarray(values[layer.name]), layer.formats.out)
    return found


def _beyond(values: np.ndarray, to: Format) -> float:
    """What has no bits does not saturate: it was pruned."""
    step, (low, high) = np.ldexp(1.0, -np.asarray(to.f)), to.reach
    return float(np.mean(((values < low * step) | (values > high * step)) & (np.asarray(to.hi) > np.asarray(to.lo))))


def refuse_saturated(found: dict[str, dict[str, float]], formats: dict[str, dict[str, str]]) -> None:
    """Stop where most values of a layer lie beyond its format: whatever is learnt, such a student cannot hold it."""
    for layer, roles in found.items():
        for role, fraction in roles.items():
            if fraction > HOPELESS[role]:
                text = formats.get(layer, {}).get(role, "")
                raise Hopeless(
                    f"the {role} of '{layer}' saturate: {100 * fraction:.0f} % lie beyond their format {text}",
                    where=f"precision.layers.{layer}.{role}",
                    then=f"more integer bits, or auto: --set precision.layers.{layer}.{role}='{'u' if role == 'activations' else ''}fixed<8,auto>'",
                )

"""A rate-aware objective: the efficiency of the signal at the threshold that keeps the rate of a working point, as a term of a student's loss.

The working point asks for the rate R (or mistag) of what passes score >= t. The efficiency there is no mean over rows: t depends on all of them. With a soft
step s(x) = sigmoid((score - t) / width) for signal rows of weight u and background rows of weight r, a change of the network that keeps the rate moves t, and

    d eff = mean(u s' d score) - lambda mean(r s' d score),     lambda = mean(u s') / mean(r s')

the ratio of the two densities at the threshold: what the likelihood-ratio test of Neyman and Pearson pays for rate. So what a step minimises is

    weight * (lambda rate - eff),     t and lambda held fixed

as in Eban et al. (arXiv:1608.04802), where multipliers of a constrained problem are trained beside the network; here lambda has a closed form and is counted.

Few rows of a batch are anywhere near a small rate: 512 background rows at 50 Hz of 8 kHz are three above the threshold. A quantile of a batch would be noise,
and a biased one. So t and lambda belong to the run, not to a batch (companions of the network, `hlt_train.beside`): t follows the background by stochastic
approximation, t += gain (rate / R - 1), whose fixed point is the threshold at which the *mean* over batches passes R; the two densities are running means with
memory m. With a width of about one unit of the score, some tens of background rows take part in a step rather than three.

**Rate weights enter a loss here, and nowhere else.** They do so in a term of their own (`extra` of the batch), normalised over the training split; training
weights do not enter that term, and rate weights do not enter the other. Tests show both. Early stopping and BEST go by the other term alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hlt_train.beside import Companion, counted, reported
from hlt_train.data.dataset import Dataset
from hlt_train.errors import UsageError, nearest, refuse_unknown
from hlt_train.scoring import requests_of, setting_of
from hlt_train.trigger.views import truth, view
from hlt_train.types import Batch

__all__ = ["BACKGROUND", "ROWS", "SIGNAL", "THRESHOLD", "RateObjective", "discriminant_in", "rate_rows"]

SIGNAL, BACKGROUND, ROWS = "rate_signal", "rate_background", "rate_rows"  # names in Batch.extra, float32 [n]
THRESHOLD = "rate"  # name of the companion
MOST = 10.0  # how far beyond R a batch may pull the threshold, in units of R
TINY = 1e-12


@dataclass(frozen=True)
class RateObjective:
    """The section `objective` of a configuration, without its name.

    Attributes:
        working_point: of the card; a rate or a mistag.
        weight: of the term. A background row at the threshold counts weight * price * (rows / R) s' against at most 1 in cross-entropy: some units at 0.1. Far
            above, the few rows there outweigh all others, and their noise is all that the optimiser sees.
        width: of the soft step, in units of the score (log-odds).
        gain: of the threshold's steps, in units of the score.
        memory: share of the running densities that a step keeps.
    """

    working_point: str
    weight: float = 0.1
    width: float = 1.0
    gain: float = 0.05
    memory: float = 0.98

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> RateObjective:
        """From the section; refuses what does not exist with the nearest that does."""
        refuse_unknown("objective", config, ["name", *(f.name for f in fields(cls))])
        if config.get("name", "rate") != "rate":
            raise UsageError(f"no objective is called {config['name']!r}", where="objective.name", near=("rate",))
        if not isinstance(config.get("working_point"), str):
            raise UsageError("the objective needs a working point of the card", where="objective.working_point", then="--set objective.working_point=NAME")
        numbers = {f.name: config.get(f.name, f.default) for f in fields(cls) if f.name != "working_point"}
        for key, value in numbers.items():
            if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0 or (key == "memory" and value >= 1):
                raise UsageError(f"{key} is a number above 0{' and below 1' if key == 'memory' else ''}, got {value!r}", where=f"objective.{key}")
        return cls(config["working_point"], **{key: float(value) for key, value in numbers.items()})

    def companions(self) -> dict[str, Companion]:
        """The threshold, the two densities at it, and the share of real rows, which only normalises what a batch reports."""

        def moved(old: dict[str, jax.Array], seen: dict[str, jax.Array]) -> dict[str, jax.Array]:
            real = jnp.maximum(seen["rows"], TINY)
            pull = jnp.minimum(seen["threshold"] / real - 1, MOST)
            densities = {key: self.memory * old[key] + (1 - self.memory) * seen[key] / real for key in ("signal", "background")}
            return {"threshold": old["threshold"] + self.gain * pull, "rows": seen["rows"], **densities}

        return {THRESHOLD: counted(dict.fromkeys(("threshold", "signal", "background", "rows"), 0.0), moved)}

    def loss(self, score: jax.Array, batch: Batch, others: Mapping[str, Any]) -> jax.Array:
        """The term of a step, and what the batch reports to the companion.

        Args:
            score: `[n]`, what the working point cuts on.
            batch: with the arrays of `rate_rows`.
            others: companions.
        """
        now = jax.lax.stop_gradient(others[THRESHOLD])
        signal, background = batch.extra[SIGNAL], batch.extra[BACKGROUND]
        soft = jax.nn.sigmoid((score - now["threshold"]) * (1 / self.width))
        price = jnp.where(now["background"] > TINY, now["signal"] / jnp.maximum(now["background"], TINY), 0.0)
        slope = soft * (1 - soft)
        seen = {
            "threshold": jnp.mean(background * (score >= now["threshold"])),
            "signal": jnp.mean(signal * slope),
            "background": jnp.mean(background * slope),
            "rows": jnp.mean(batch.extra[ROWS]),
        }
        return self.weight * (price * jnp.mean(background * soft) - jnp.mean(signal * soft)) + reported(others[THRESHOLD], seen)


def rate_rows(dataset: Dataset, working_point: str) -> dict[str, np.ndarray]:
    """For the training split, by row number: rate weights such that a mean over rows is an efficiency, or a rate in units of the working point's.

    float32 `[n]` each: `SIGNAL`, u with mean 1 over the split; `BACKGROUND`, r whose mean over the rows that pass is their rate over R; `ROWS`, ones.

    Raises:
        UsageError: no such working point, one that asks for an efficiency, or rows whose scores alone do not decide.
    """
    card = dataset.card
    requests, setting = requests_of(card), setting_of(card)
    request = requests.get(working_point)
    where = "objective.working_point"
    if request is None:
        raise UsageError(f"the card has no working point '{working_point}'", where=where, near=nearest(working_point, requests) or tuple(requests))
    usable = [name for name, r in requests.items() if r.kind == "mistag" or (r.kind == "rate" and not setting.per_object)]
    if working_point not in usable:
        why = "asks for an efficiency, which leaves nothing to gain" if request.kind == "eff" else "decides on events, and a row is an object"
        raise UsageError(f"'{working_point}' ({request.text}) {why}", where=where, near=tuple(usable), then="a working point with a rate or a mistag")
    names = ("label", "sample", "rate_weight", "identity", "object")
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for rows in dataset.iterate("train"):
        for name in names:
            parts[name].append(getattr(rows, name))
    joined = {name: np.concatenate(found) for name, found in parts.items()}
    told = truth(joined["label"], joined["sample"], joined["rate_weight"], joined["identity"], joined["object"], tuple(card.samples))
    seen = view(setting, told, np.zeros(len(joined["label"])), events=False)
    if request.kind == "rate":
        assert seen.hertz is not None  # the card was checked: a rate needs input rates
        background = seen.hertz / request.value
    else:
        mistag = np.where(seen.background, seen.weight, 0.0)
        background = mistag / (_positive(mistag.sum(), "background") * request.value)
    efficiency = np.where(seen.signal, seen.weight, 0.0)
    n = len(efficiency)
    found = {SIGNAL: efficiency * (n / _positive(efficiency.sum(), "signal")), BACKGROUND: background * n, ROWS: np.ones(n)}
    return {name: values.astype(np.float32) for name, values in found.items()}


def _positive(total: float, side: str) -> float:
    if not total > 0:
        raise UsageError(f"the rate weights of the {side} in the training split sum to {total:g}", where="trigger.rate_weight")
    return float(total)


def discriminant_in(outputs: jax.Array, classes: int, signal: np.ndarray, background: np.ndarray, *, head: bool) -> jax.Array:
    """What a working point cuts on, `[n]`: the discriminant output after the classes, or D = logsumexp_s(l + log f) - logsumexp_b(l + log f).

    signal, background: float32 `[classes]`, the fraction of each class on its side, 0 on the other.
    """
    if head:
        return outputs[:, classes]
    logits = outputs[:, :classes]
    with np.errstate(divide="ignore"):
        sides = [jax.nn.logsumexp(logits + np.log(side), axis=-1) for side in (signal, background)]
    return sides[0] - sides[1]

"""Networks side by side on the same rows: efficiency at each rate, rate at each efficiency, area under the curve, and paired differences, with errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from hlt_train.trigger.bootstrap import Replicas, nominal, rank, replicate
from hlt_train.trigger.intervals import Interval, percentile
from hlt_train.trigger.rates import per_sample
from hlt_train.trigger.thresholds import distinct_rates
from hlt_train.trigger.views import View, population
from hlt_train.trigger.working_points import Request, physical, threshold_for

__all__ = ["Network", "compare"]

METHOD = "bootstrap over events, moving threshold"
PAIRED = "paired bootstrap over events, moving thresholds"
NEIGHBOURHOOD = 2.0  # distinct rates are counted between half and twice the rate


class Network(NamedTuple):
    """A network's name, its scores as a view of the common rows, the exponent of an integer score, and which network it is measured against."""

    name: str
    view: View
    exponent: int | None
    reference: int | None


def compare(
    networks: Sequence[Network], requests: Sequence[Request], efficiencies: Sequence[Request], samples: Sequence[str], *, replicas: int, seed: int
) -> dict[str, Any]:
    """Figures of every network, and of every pair of a network and its reference.

    Args:
        networks: their views hold the same rows, all with rates [Hz] or all without.
        requests: `rate` requests where the views have rates, otherwise `mistag`.
        efficiencies: `eff` requests.
        samples: names of the card's samples.
        replicas: of the bootstrap.
        seed: of the bootstrap.
    """
    people = population(networks[0].view)
    rankings = [rank(network.view.score) for network in networks]
    arguments = rankings, people, [r.value for r in requests], [e.value for e in efficiencies]
    value, spread = nominal(*arguments), replicate(*arguments, replicas=replicas, seed=seed)
    return {
        "networks": [_one(k, network, requests, efficiencies, samples, value, spread) for k, network in enumerate(networks)],
        "pairs": [_pair(k, network.reference, networks, requests, value, spread) for k, network in enumerate(networks) if network.reference is not None],
    }


def _interval(value: np.ndarray, replicas: np.ndarray, method: str = METHOD) -> Interval:
    low, high = percentile(replicas)
    return Interval(float(value[0]), low, high, method)


def _one(
    k: int, network: Network, requests: Sequence[Request], efficiencies: Sequence[Request], samples: Sequence[str], value: Replicas, spread: Replicas
) -> dict[str, Any]:
    seen = network.view
    at, rate_at = [], []
    for j, request in enumerate(requests):
        threshold, above = threshold_for(request, seen)
        row: dict[str, Any] = {
            "request": request.text,
            "efficiency": _interval(value.efficiency[k, j], spread.efficiency[k, j]).document(),
            "integer_threshold": int(threshold) if seen.score.dtype.kind in "iu" else None,
            "threshold": physical(threshold, network.exponent),
            "background_events": above,
        }
        weights = population(seen).background
        row["distinct_rates"] = distinct_rates(seen.score, weights, request.value / NEIGHBOURHOOD, request.value * NEIGHBOURHOOD)
        if seen.hertz is not None:
            row["samples"] = per_sample(seen.score >= threshold, seen.hertz, seen.sample, samples)
        at.append(row)
    unit = "mistag" if seen.hertz is None else "Hz"
    for j, wanted in enumerate(efficiencies):
        found = _interval(value.rate[k, j], spread.rate[k, j])
        rejection = {"rejection": 1 / found.value if found.value > 0 else None} if seen.hertz is None else {}
        rate_at.append({"request": wanted.text, "rate": found.document(unit=unit), **rejection})
    return {"name": network.name, "auc": _interval(value.auc[k], spread.auc[k], "bootstrap over events").document(), "at": at, "rate_at": rate_at}


def _pair(k: int, reference: int, networks: Sequence[Network], requests: Sequence[Request], value: Replicas, spread: Replicas) -> dict[str, Any]:
    rows = []
    for j, request in enumerate(requests):
        mine, other = value.efficiency[k, j], value.efficiency[reference, j]
        drawn, against = spread.efficiency[k, j], spread.efficiency[reference, j]
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio, ratios = mine / other, drawn / against
        row: dict[str, Any] = {"request": request.text}
        for name, number, replicas in (("ratio", ratio, ratios), ("difference", mine - other, drawn - against)):
            low, high = percentile(replicas, 0.95)
            limits = {"low_95": low if np.isfinite(low) else None, "high_95": high if np.isfinite(high) else None}
            row[name] = _interval(number, replicas, PAIRED).document(**limits)
        rows.append(row)
    return {"network": networks[k].name, "reference": networks[reference].name, "at": rows}

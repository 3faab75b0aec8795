"""Working points: the document, its thresholds, and decisions made with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hlt_train.errors import UsageError
from hlt_train.files import write_document
from hlt_train.trigger.discriminant import Discriminant
from hlt_train.trigger.views import Setting, Truth, truth, view
from hlt_train.trigger.working_points import FILE, FORMAT, Request, decisions, derive, read, threshold_for, write

SPEC = Discriminant({"hh": 1.0}, {"qcd": 1.0})
SETTING = Setting(("qcd", "hh"), ("qcd", "hh"), SPEC, {"qcd": 8000.0}, per_object=False, event_score=None)
REQUESTS = {"rate": Request("rate", 100.0, "100 Hz"), "mistag": Request("mistag", 0.05, "mistag 5%"), "eff": Request("eff", 0.8, "eff 80%")}


def rows(n: int, seed: int, *, integer: bool = True) -> tuple[Truth, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = (np.arange(n) % 2).astype(np.int32)
    score = rng.normal(1.5 * label, 1.0, n)
    known = truth(label, label, rng.uniform(0.5, 1.5, n), np.arange(n, dtype=np.int64)[:, None], np.zeros(n, np.int32), ("qcd", "hh"))
    return known, np.round(score * 8).astype(np.int64) if integer else score


@pytest.mark.parametrize("integer", [True, False])
def test_thresholds_keep_their_request_on_validation(integer: bool, tmp_path: Path) -> None:
    validation, test = rows(4000, 1, integer=integer), rows(6000, 2, integer=integer)
    content = derive(REQUESTS, SETTING, validation, test, exponent=3 if integer else None)
    write(tmp_path / FILE, content)
    stored = read(tmp_path / FILE)
    assert (stored["format"], stored["version"]) == (FORMAT, 1)
    assert {k: v for k, v in stored.items() if k not in ("format", "version")} == content
    seen, tested = (view(SETTING, known, score, events=True) for known, score in (validation, test))
    passed = decisions(seen.score, content["points"])
    assert seen.hertz is not None
    assert tested.hertz is not None
    assert 60 < seen.hertz[passed["rate"]].sum() <= 100
    weight = np.where(seen.background, seen.weight, 0)
    assert 0.03 < weight[passed["mistag"]].sum() / weight.sum() <= 0.05
    weight = np.where(seen.signal, seen.weight, 0)
    assert 0.8 <= weight[passed["eff"]].sum() / weight.sum() < 0.85
    for point in content["points"]:
        assert (point["integer_threshold"] is not None) == integer
        if integer:
            assert point["threshold"] == point["integer_threshold"] / 8
        accepted = decisions(tested.score, [point])[point["name"]]
        assert point["rate"]["value"] == pytest.approx(tested.hertz[accepted].sum())
        assert point["background_events"] == (passed[point["name"]] & seen.background).sum()
    assert content["table"]["distinct_rates"] >= len(content["table"]["rows"]) - 1
    assert content["splits"]["test"] == {"rows": 6000, "hashes": test[0].hashes}


def test_a_thin_threshold_is_flagged() -> None:
    content = derive({"thin": Request("rate", 20.0, "20 Hz")}, SETTING, rows(2000, 1), rows(3000, 2))
    (point,) = content["points"]
    assert point["flags"][0] == f"the threshold rests on {point['background_events']} background events"
    assert any(flag.startswith("qcd: only") for flag in point["flags"])


def test_hashes_name_the_rows() -> None:
    known = rows(100, 1)[0]
    assert rows(100, 7)[0].hashes == known.hashes  # other scores and weights, the same events
    assert rows(102, 1)[0].hashes != known.hashes


def test_objects_and_their_events() -> None:
    setting = Setting(("qcd", "hh"), ("qcd", "hh"), SPEC, {"qcd": 8000.0}, per_object=True, event_score="nth(1)")
    label = np.repeat([0, 1], 300).astype(np.int32)
    identity = (np.arange(600) // 3)[:, None].astype(np.int64)
    known = truth(label, label, np.ones(600), identity, (np.arange(600) % 3).astype(np.int32), ("qcd", "hh"), np.arange(600) % 3 != 2)
    score = np.random.default_rng(0).normal(label)
    seen = view(setting, known, score, events=True)
    assert (len(seen.score), int(seen.signal.sum()), seen.unit) == (200, 100, "events")
    assert np.array_equal(seen.score, score.reshape(200, 3)[:, :2].min(axis=1))  # the second of the two that take part
    assert seen.hertz is not None
    assert seen.hertz.sum() == pytest.approx(8000)
    objects = view(setting, known, score, events=False)
    assert (objects.hertz, objects.unit, len(objects.score)) == (None, "objects", 600)
    with pytest.raises(UsageError, match="'100 Hz' asks for a rate, but objects have none here"):
        threshold_for(REQUESTS["rate"], objects)


def test_decisions_need_the_threshold_of_their_kind() -> None:
    point: dict[str, Any] = {"name": "a", "integer_threshold": None, "threshold": 0.5}
    assert decisions(np.array([0.4, 0.5]), [point])["a"].tolist() == [False, True]
    with pytest.raises(UsageError, match="no integer threshold"):
        decisions(np.array([1, 2]), [point])


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    write_document(tmp_path / FILE, FORMAT, 2, {})
    with pytest.raises(UsageError, match="newer than this program reads"):
        read(tmp_path / FILE)


def test_no_signal_no_efficiency() -> None:
    known, score = rows(100, 1)
    seen = view(SETTING, known._replace(label=np.zeros(100, np.int32)), score, events=True)
    with pytest.raises(UsageError, match="there is no signal"):
        threshold_for(REQUESTS["eff"], seen)

"""`evaluate` end to end: values by hand, both weights apart, runs and exports on the same rows, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hlt_train import checkpoints
from hlt_train.baselines import Sight, baselines
from hlt_train.data.card import Card
from hlt_train.data.dataset import open_dataset
from hlt_train.errors import UsageError
from hlt_train.evaluate import _reference, evaluate, input_rates
from hlt_train.export import export
from hlt_train.files import sha256
from hlt_train.fit import fit
from hlt_train.report.evaluation import evaluation_text
from hlt_train.run import Run
from hlt_train.scorers import scorer
from hlt_train.scoring import requests_of, score_split, setting_of, write_working_points
from hlt_train.trigger.thresholds import at_rate
from hlt_train.trigger.views import view
from hlt_train.trigger.working_points import Request
from tests.networks import QUIET, columns, config, content, problem, train
from tests.rootfiles import write_tree
from tests.runs import steady

FEW = {"replicas": 40, "latency": False, "progress": QUIET}


def figures(result: dict[str, Any], network: int = 0, section: int = 0) -> dict[str, Any]:
    return result["sections"][section]["networks"][network]


@pytest.fixture(scope="module")
def both() -> dict[str, Any]:
    made = problem()
    return evaluate([made.float_run, made.fixed_run], replicas=100, progress=QUIET)


def test_values_are_those_of_the_definitions(both: dict[str, Any]) -> None:
    made = problem()
    network = scorer(made.fixed_run)
    with open_dataset(made.card) as dataset:
        scored = score_split([network], dataset, "test", progress=QUIET)
    score, label, weight = scored.scores[0].score, scored.truth.label, scored.truth.weight
    assert score is not None
    assert score.dtype == np.int64
    hertz = np.where(label == 0, weight * 8000 / weight[label == 0].sum(), 0)
    for row in figures(both, 1)["at"]:
        rate = {"200 Hz": 200.0, "1000 Hz": 1000.0}[row["request"]]
        threshold = int(at_rate(score, hertz, rate))
        assert row["integer_threshold"] == threshold
        assert row["threshold"] == threshold * 2.0 ** -(network.exponent or 0)
        passed = score >= threshold
        assert row["efficiency"]["value"] == pytest.approx(weight[passed & (label == 1)].sum() / weight[label == 1].sum())
        assert row["efficiency"]["low"] < row["efficiency"]["value"] < row["efficiency"]["high"]
        assert row["background_events"] == (passed & (label == 0)).sum()
        sample = row["samples"][0]
        assert sample["sample"] == "qcd"
        assert sample["events"] == (label == 0).sum()
        assert sample["rate_hz"] == pytest.approx(hertz[passed].sum())
    (row,) = figures(both, 1)["rate_at"]
    assert row["request"] == "eff 90%"
    assert 200 < row["rate"]["low"] < row["rate"]["value"] < row["rate"]["high"] < 8000


def test_working_points_take_thresholds_from_validation_and_rates_from_test() -> None:
    made = problem()
    network = scorer(made.float_run)
    assert network.points is not None
    splits = {}
    with open_dataset(made.card) as dataset:
        for split in ("validation", "test"):
            scored = score_split([network], dataset, split, progress=QUIET)
            assert scored.scores[0].score is not None
            splits[split] = view(setting_of(made.card), scored.truth, scored.scores[0].score, events=True)
            assert network.points["splits"][split] == {"rows": len(scored.keys), "hashes": scored.truth.hashes}
    tight = network.points["points"][0]
    assert (tight["name"], tight["request"], tight["integer_threshold"], tight["unit"]) == ("tight", "200 Hz", None, "events")
    validation, test = splits["validation"], splits["test"]
    assert validation.hertz is not None
    assert test.hertz is not None
    assert tight["threshold"] == float(at_rate(validation.score, validation.hertz, 200.0))
    passed = test.score >= tight["threshold"]
    assert tight["rate"]["value"] == pytest.approx(test.hertz[passed].sum())
    assert tight["efficiency"]["value"] == pytest.approx(test.weight[passed & test.signal].sum() / test.weight[test.signal].sum())
    assert tight["efficiency"]["denominator"] == f"{test.signal.sum()} events of class hh"
    table = network.points["table"]["rows"]
    rates = [row["rate"] for row in table]
    assert rates == sorted(rates)
    assert all(row["rate"] == pytest.approx(test.hertz[test.score >= row["threshold"]].sum()) for row in table)


def test_pairs_are_paired_with_the_first_network(both: dict[str, Any]) -> None:
    (pair,) = both["sections"][0]["pairs"]
    assert (pair["network"], pair["reference"]) == (str(problem().fixed_run), str(problem().float_run))
    for k, row in enumerate(pair["at"]):
        one, other = (figures(both, n)["at"][k]["efficiency"] for n in (1, 0))
        assert row["ratio"]["value"] == pytest.approx(one["value"] / other["value"])
        assert row["difference"]["value"] == pytest.approx(one["value"] - other["value"])
        unpaired = np.hypot(one["high"] - one["low"], other["high"] - other["low"])
        assert row["difference"]["high"] - row["difference"]["low"] < 0.8 * unpaired  # the same events: their fluctuation cancels
        assert row["ratio"]["low_95"] <= row["ratio"]["low"]


def test_baselines(both: dict[str, Any]) -> None:
    rows = both["sections"][0]["baselines"]
    assert [(row["name"], row["request"]) for row in rows] == [(n, r) for r in ("200 Hz", "1000 Hz") for n in ("reference cut", "best single variable")]
    made = problem()
    with open_dataset(made.card) as dataset:
        scored = score_split([], dataset, "validation", progress=QUIET)
    seen = view(setting_of(made.card), scored.truth, np.zeros(len(scored.keys)), events=True)
    assert seen.hertz is not None
    x, y = scored.columns["x"], scored.columns["y"]
    for row in rows:
        allowed = 200 if row["request"] == "200 Hz" else 1000
        if row["name"] == "reference cut":
            assert row["thresholds"]["y"] in (0.0, 1.0, 2.0, 4.0, 8.0)
            passed = (x > row["thresholds"]["x"]) & (y > row["thresholds"]["y"])
            assert seen.hertz[passed].sum() <= allowed
        network = figures(both)["at"][0 if allowed == 200 else 1]["efficiency"]["value"]
        assert 0 < row["efficiency"]["value"] < network + 0.05
        assert "class hh" in row["efficiency"]["denominator"]


def test_an_optimised_cut_is_the_best_of_its_grid() -> None:
    made = problem()
    grid = [6.0, 9.0, 12.0, 13.5, 15.0]
    trigger = {**content(made.folder)["trigger"], "reference": {"cut": "(x > {x}) & (y > {y})", "thresholds": {"x": grid, "y": grid}}}
    card = Card.model_validate(content(made.folder / "events.root", trigger=trigger))
    with open_dataset(card) as dataset:
        scored = score_split([], dataset, "validation", progress=QUIET)
    seen = view(setting_of(card), scored.truth, np.zeros(len(scored.keys)), events=True)
    assert seen.hertz is not None
    sight = Sight(seen, scored.columns)
    found = baselines(card, setting_of(card), [Request("rate", 500.0, "500 Hz")], sight, sight)[0]
    possible = []
    for a in grid:
        for b in grid:
            passed = (scored.columns["x"] > a) & (scored.columns["y"] > b)
            if seen.hertz[passed].sum() <= 500:
                possible.append((seen.weight[passed & seen.signal].sum() / seen.weight[seen.signal].sum(), a, b))
    best = max(possible)
    assert (found["thresholds"]["x"], found["thresholds"]["y"]) == best[1:]
    assert found["efficiency"]["value"] == pytest.approx(best[0])


def test_the_text_says_what_matters(both: dict[str, Any]) -> None:
    text = evaluation_text(both)
    expected = (
        "1,239 events of class hh",
        "reference cut at 200 Hz: (x > ",
        "best single variable",
        "BEST, step",
        "eff at 200 Hz",
        "rate at 90%",
        "95 % lower",
    )
    for part in expected:
        assert part in text
    assert "thresholds rest on so many background events" in text
    assert "distinct rates within a factor of two" in text
    json.dumps(both, allow_nan=False)


def test_every_latency_says_what_was_timed(both: dict[str, Any]) -> None:
    first, second = (network["latency"] for network in both["networks"])
    assert 0 < first["median_ns"] <= first["p99_ns"]
    assert "JAX" in first["what"]
    assert "golden evaluator" in second["what"]


def randomised(folder: Path, column: str) -> Path:
    """The problem's file with other numbers in one column."""
    changed = columns()
    changed[column] = (changed[column] * np.random.default_rng(9).uniform(0.1, 10, len(changed[column]))).astype(changed[column].dtype)
    return write_tree(folder / f"{column}.root", changed, basket=1000)


def test_the_training_weight_enters_no_rate_efficiency_or_error(tmp_path: Path) -> None:
    made = problem()
    file = str(randomised(tmp_path, "train_weight"))
    plain = evaluate([made.float_run, made.fixed_run], **FEW)
    other = evaluate([made.float_run, made.fixed_run], files={"hh": [file], "qcd": [file]}, **FEW)
    assert other == plain
    points = scorer(made.float_run).points
    assert points is not None
    with open_dataset(made.card, {"hh": [file], "qcd": [file]}) as dataset:
        again = write_working_points(made.float_run, dataset, progress=QUIET)
    assert again == {k: v for k, v in points.items() if k not in ("format", "version")}


@pytest.mark.usefixtures("compiled_anew")
def test_the_rate_weight_enters_no_loss(tmp_path: Path) -> None:
    made = problem()
    card = Card.model_validate(content(randomised(tmp_path, "rate_weight")))
    fit(config(card), tmp_path / "run", progress=QUIET)
    for pointer in ("BEST", "LAST"):
        step = checkpoints.pointed(made.float_run, pointer)
        assert checkpoints.pointed(tmp_path / "run", pointer) == step
        hashes = {sha256(run / "checkpoints" / str(step) / "weights.npz") for run in (made.float_run, tmp_path / "run")}
        assert len(hashes) == 1
    lines = []
    for path in (made.float_run, tmp_path / "run"):
        with Run.open(path) as run:
            lines.append(steady(run.metrics()))
    assert lines[0] == lines[1]


def test_a_rate_weight_does_change_the_rates(tmp_path: Path) -> None:
    made = problem()
    file = str(randomised(tmp_path, "rate_weight"))
    plain, other = (evaluate([made.float_run], files=files, **FEW) for files in (None, {"hh": [file], "qcd": [file]}))
    assert figures(plain)["at"] != figures(other)["at"]


def test_exports_are_run_themselves_and_agree(tmp_path: Path) -> None:
    made = problem()
    for run in (made.fixed_run, made.float_run):
        export(run, ["onnx"], tmp_path / run.name, n_vectors=2000, progress=QUIET)
    sources = [made.fixed_run, tmp_path / "fixed" / "onnx", made.float_run, tmp_path / "float"]
    result = evaluate(sources, replicas=40, progress=QUIET)
    fixed, artefact, floating, wrapped = result["sections"][0]["networks"]
    for key in ("auc", "at", "rate_at", "working_points"):
        assert artefact[key] == fixed[key]  # integers: nothing may differ
    for one, other in zip(floating["at"], wrapped["at"], strict=True):
        assert one["efficiency"]["value"] == pytest.approx(other["efficiency"]["value"], abs=2e-3)
    kinds = [(network["kind"], network["parameters"]) for network in result["networks"]]
    assert kinds == [("fixed-point run", 42), ("export", 42), ("float run", 42), ("export", 42)]
    assert result["networks"][1]["latency"]["what"] == "the onnx artefact"
    assert result["sections"][0]["pairs"][0]["at"][0]["difference"]["low"] == 0.0


def test_cards_that_differ_are_matched_by_identity(tmp_path: Path) -> None:
    made = problem()
    smaller = Card.model_validate(content(made.folder / "events.root", inputs={"only": ["y"]}, selection="event < 4000", name="smaller"))
    other = train(smaller, tmp_path / "other", length="2epochs")
    result = evaluate([made.float_run, other], **FEW)
    event = columns()["event"]
    alone = evaluate([made.float_run], **FEW)
    assert result["rows"] < 0.75 * alone["rows"]
    assert any(f"{result['rows']:,} of {alone['rows']:,} rows are common" in note for note in result["notes"])
    with open_dataset(made.card) as dataset:
        rows = [part.identity[:, 2] for part in dataset.iterate("test")]
    assert result["rows"] == (np.concatenate(rows) < 4000).sum() < len(event)
    assert figures(result, 0)["auc"]["value"] > figures(result, 1)["auc"]["value"] + 0.02  # one variable is worth less than two


def test_objects_have_rates_only_as_events(tmp_path: Path) -> None:
    made = problem()
    trigger = {k: v for k, v in content(made.folder)["trigger"].items() if k not in ("rate", "working_points")}
    objects = content(made.folder / "events.root", example="object", identity=["event // 4"], trigger={**trigger, "working_points": {"one": "mistag 5%"}})
    run = train(Card.model_validate(objects), tmp_path / "objects", length="1epochs")
    result = evaluate([run], **FEW)
    (section,) = result["sections"]
    assert (section["unit"], section["of"]) == ("mistag", "objects")
    for row in section["networks"][0]["rate_at"]:
        assert row["rate"]["unit"] == "mistag"
        assert row["rejection"] == pytest.approx(1 / row["rate"]["value"])
    assert section["networks"][0]["working_points"][0]["rate"] is None
    with pytest.raises(UsageError, match="'50 Hz' is a rate, but these objects have none"):
        evaluate([run], requests=[Request("rate", 50.0, "50 Hz")], rates=["qcd=8kHz"], **FEW)

    as_events = {"event_score": "max", "rate": {"qcd": {"input_rate": "8 kHz"}}, "working_points": {"all": "300 Hz"}}
    card = Card.model_validate({**objects, "trigger": {**objects["trigger"], **as_events}})
    run = train(card, tmp_path / "events", length="1epochs")
    result = evaluate([run], **FEW)
    assert [(s["unit"], s["of"]) for s in result["sections"]] == [("Hz", "events"), ("mistag", "objects")]
    (row,) = figures(result)["at"]
    with open_dataset(card) as dataset:
        parts = [(rows.sample, rows.identity[:, 0]) for rows in dataset.iterate("test")]
    sample, number = (np.concatenate(column) for column in zip(*parts, strict=True))
    assert row["samples"][0]["events"] == len(np.unique(number[sample == 1])) < (sample == 1).sum()
    assert row["samples"][0]["rate_hz"] <= 300
    assert figures(result)["working_points"][0]["name"] == "all"


def test_requests_and_input_rates() -> None:
    made = problem()
    wanted = [Request("rate", 400.0, "400 Hz"), Request("mistag", 0.05, "mistag 5%"), Request("eff", 0.7, "eff 70%")]
    result = evaluate([made.float_run], requests=wanted, rates=["16 kHz"], **FEW)
    hertz, mistag = result["sections"]
    assert [row["request"] for row in hertz["networks"][0]["at"]] == ["400 Hz"]
    assert [row["request"] for row in mistag["networks"][0]["at"]] == ["mistag 5%"]
    assert hertz["networks"][0]["rate_at"][0]["request"] == "eff 70%"
    # 400 Hz of 16 kHz is a mistag of 2.5 %, as 200 Hz of 8 kHz
    plain = evaluate([made.float_run], requests=[Request("rate", 200.0, "200 Hz")], **FEW)
    assert hertz["networks"][0]["at"][0]["efficiency"] == figures(plain)["at"][0]["efficiency"]


def test_refusals(tmp_path: Path) -> None:
    made = problem()
    with pytest.raises(UsageError, match="no sample is called 'qdc'") as caught:
        input_rates(made.card, ["qdc=8kHz"])
    assert caught.value.near == ("qcd",)
    with pytest.raises(UsageError, match="expected a rate"):
        input_rates(made.card, ["8"])
    with pytest.raises(UsageError, match="no such run or export") as caught:
        evaluate([made.folder / "flaot"], **FEW)
    assert str(made.float_run) in caught.value.near
    with pytest.raises(UsageError, match="neither a run"):
        evaluate([tmp_path], **FEW)
    with pytest.raises(UsageError, match="evaluate what"):
        evaluate([], **FEW)


def test_a_student_is_measured_against_its_recorded_teacher() -> None:
    made = problem()
    teacher, other = scorer(made.float_run), scorer(made.fixed_run)
    student = replace(other, name="student", teachers=(Path("elsewhere"), made.float_run))
    assert [_reference([other, teacher, student], k) for k in range(3)] == [None, 0, 1]
    assert _reference([student, teacher], 0) == 1
    assert _reference([other, student], 1) == 0  # the teacher is not among them


def test_requests_of_a_card() -> None:
    assert requests_of(problem().card)["tight"] == Request("rate", 200.0, "200 Hz")

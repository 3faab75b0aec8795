"""`specialists` end to end on small files: what it writes, what it repeats, what it refuses; the ensemble as a network and as a teacher."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import log_softmax

from hlt_train import checkpoints, devices
from hlt_train.configuration import check
from hlt_train.data.dataset import open_dataset
from hlt_train.distil import DistilConfig, distil, dry_run
from hlt_train.distil import resume as resume_student
from hlt_train.dustbin import correction
from hlt_train.errors import Interrupted, RunFailed, UsageError
from hlt_train.files import read_arrays, read_document, write_text
from hlt_train.progress import Progress
from hlt_train.restore import ModelSpec, load_run, outline, predict_rows, with_params
from hlt_train.run import Run, read_config
from hlt_train.scorers import scorer
from hlt_train.soft_targets import soft_targets
from hlt_train.specialist_training import Shared, SpecialistsConfig, output_axes, prepare_specialist
from hlt_train.specialists import dry_run as dry_specialists
from hlt_train.specialists import resume, specialists
from hlt_train.teachers import open_teacher
from hlt_train.types import Rows
from tests import runs
from tests.distillation import Stopper, change, config, train_teacher, weights_hash, write_card
from tests.students import inputs

QUIET = Progress(quiet=True)
OPTIONS: dict[str, Any] = {"batch": 64, "for": "2epochs", "lambda": 0.3, "learning_rate": 0.01, "log_every": 5, "scan": 4}


def options(generalist: Path, **more: Any) -> SpecialistsConfig:
    return check(SpecialistsConfig, {"generalist": str(generalist), **OPTIONS, **more})


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_card(tmp_path_factory.mktemp("jets"))


@pytest.fixture(scope="module")
def generalist(card: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_teacher(card, tmp_path_factory.mktemp("runs") / "generalist")


@pytest.fixture(scope="module")
def ensemble(generalist: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    path = tmp_path_factory.mktemp("runs") / "ensemble"
    return path, specialists(options(generalist, sets=[["g", "q"], ["W", "t", "Z"]]), path, progress=QUIET)


@pytest.fixture(scope="module")
def rows(generalist: Path) -> Rows:
    with open_dataset(load_run(generalist).card) as dataset:
        return dataset.rows(range(len(dataset.clusters)), "test")


def by_hand(path: Path, rows: Rows) -> np.ndarray:
    """q of disjoint sets with one active specialist, from the networks' logits: means of members, the dustbin's mass shared out as the generalist does."""
    p = np.exp(log_softmax(predict_rows(load_run(path / "generalist"), rows.x).astype(np.float64), axis=1))
    q = p.copy()
    document = read_document(path / "ensemble.json", "hlt-train/ensemble", 1)
    for part in document["specialists"]:
        members = [document["generalist"]["classes"].index(name) for name in part["classes"]]
        rest = [c for c in range(5) if c not in members]
        logits = predict_rows(load_run(path / part["run"]), rows.x).astype(np.float64)
        logits[:, -1] += part["correction"]
        own = np.exp(log_softmax(logits, axis=1))
        asked = np.isin(p.argmax(axis=1), members)
        q[np.ix_(asked, members)] = (p[np.ix_(asked, members)] + own[asked, :-1]) / 2
        total = p[asked][:, rest].sum(axis=1, keepdims=True)
        q[np.ix_(asked, rest)] = p[np.ix_(asked, rest)] / total * (total + own[asked, -1:]) / 2
    return q


def test_it_writes_all_there_is_to_know(generalist: Path, ensemble: tuple[Path, dict[str, Any]]) -> None:
    path, result = ensemble
    assert read_config(path)["generalist"] == str(generalist)
    sets = read_document(path / "sets.json", "hlt-train/specialist-sets", 1)["sets"]
    assert [each["classes"] for each in sets] == [["g", "q"], ["W", "Z", "t"]]  # in the card's order
    with open_dataset(load_run(generalist).card) as dataset:
        label = dataset.rows(range(len(dataset.clusters)), "train").label
    share = np.isin(label, [0, 1]).mean()
    assert sets[0]["share"] == pytest.approx(share)
    assert sets[0]["correction"] == pytest.approx(np.log((1 - share) / share))
    assert sets[1]["correction"] == pytest.approx(-sets[0]["correction"])
    for k, own in enumerate(sets):
        run = load_run(path / "specialists" / str(k + 1))
        assert run.names == (*own["classes"], "dustbin")
        assert run.config["seed"] == 1 + k
        assert read_document(run.path / "specialist.json", "hlt-train/specialist", 1)["steps"] == 2 * -(-len(label) // 64)
    assert result["parameters"] == sum(6 * 16 + 16 + outputs * 17 for outputs in (5, 3, 4))
    assert [point["name"] for point in result["working_points"]] == ["loose"]
    assert {network["kind"] for network in result["evaluation"]["networks"]} == {"float run", "ensemble"}


def test_the_ensemble_is_the_minimum(ensemble: tuple[Path, dict[str, Any]], rows: Rows) -> None:
    scores = scorer(ensemble[0]).score(rows.x)
    q = by_hand(ensemble[0], rows)
    np.testing.assert_allclose(np.exp(scores.logits), q, rtol=1e-9)
    assert scores.score is not None
    np.testing.assert_allclose(scores.score, np.log(q[:, 4] / (0.25 * q[:, 0] + 0.75 * q[:, 1])), rtol=1e-7)
    plain = np.exp(log_softmax(predict_rows(load_run(ensemble[0] / "generalist"), rows.x).astype(np.float64), axis=1))
    assert np.abs(q - plain).max() > 0.01  # the specialists learnt something


def test_reported_figures_are_those_of_the_rows(ensemble: tuple[Path, dict[str, Any]], rows: Rows) -> None:
    found, q = ensemble[1]["figures"], by_hand(ensemble[0], rows)
    assert found["rows"] == len(rows)
    assert found["all"]["accuracy"]["ensemble"]["value"] == pytest.approx((q.argmax(axis=1) == rows.label).mean())
    assert found["all"]["cross_entropy"]["ensemble"]["value"] == pytest.approx(-np.log(q[np.arange(len(rows)), rows.label]).mean())
    for part in (found["all"], *found["sets"]):
        for figure in ("accuracy", "cross_entropy"):
            of = part[figure]
            assert of["difference"]["value"] == pytest.approx(of["ensemble"]["value"] - of["generalist"]["value"])
    own = predict_rows(load_run(ensemble[0] / "specialists" / "1"), rows.x).astype(np.float64)
    own[:, -1] += ensemble[1]["sets"][0]["correction"]
    light = rows.label < 2
    assert found["sets"][0]["rows"] == light.sum()
    assert found["sets"][0]["accuracy"]["specialist"]["value"] == pytest.approx((own.argmax(axis=1) == rows.label)[light].mean())
    assert found["sets"][0]["active"] + found["sets"][1]["active"] == pytest.approx(1)  # the sets share the classes out


def test_a_specialist_begins_as_the_generalist(generalist: Path, rows: Rows) -> None:
    """Before the first step the differences within the set, and with one class left the dustbin's too, are the generalist's."""
    whole, given = load_run(generalist), options(generalist, sets=[["g", "W", "Z", "t"]], **{"lambda": 0.0})
    with open_dataset(whole.card) as dataset:
        shared = Shared(given, whole, dataset, [{"classes": ["g", "W", "Z", "t"], "share": 0.7}], np.full(5, 0.2), {}, devices.mesh(1))
        ready = prepare_specialist(shared, 0)
    mine = whole._replace(model=with_params(outline(ready.spec, whole.inputs), ready.task.params), names=ready.spec.outputs)
    found = predict_rows(mine, rows.x) + np.array([0, 0, 0, 0, correction(0.7)], np.float32)
    np.testing.assert_allclose(found, predict_rows(whole, rows.x)[:, [0, 2, 3, 4, 1]], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "groups", "axes"),
    [
        ("mlp", (("hlf", 3, None),), 2),
        ("deepsets", (("hlf", 3, None), ("parts", 4, 8)), 2),
        ("conv", (("parts", 4, 8),), 2),
        ("topology", (("parts", 4, 8),), 2),
    ],
)
def test_the_output_layer_is_found(name: str, groups: tuple[tuple[str, int, int | None], ...], axes: int) -> None:
    described = inputs(np.random.default_rng(0), *groups, classes=4)
    found = output_axes(ModelSpec.of({"name": name}, described.classes), described)
    assert sorted(found.values()) == [0, 0]  # a matrix and a bias


def weights(path: Path) -> list[str]:
    folders = [path / name for name in ("generalist", "specialists/1", "specialists/2")]
    return [weights_hash(folder, "BEST") for folder in folders]


def metrics(path: Path) -> list[dict[str, Any]]:
    with Run.open(path / "specialists" / "2") as run:
        return runs.steady(run.metrics())


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_anew")
def test_an_interrupted_ensemble_is_the_undisturbed_one(generalist: Path, ensemble: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """SIGTERM in the second specialist: resumed to the same bits, and the first is not trained again."""
    path = tmp_path / "e"
    given = options(generalist, sets=[["g", "q"], ["W", "t", "Z"]])
    with pytest.raises(Interrupted) as stopped:
        specialists(given, path, progress=Stopper(8))
    assert f"specialists --resume {path}" in str(stopped.value)
    assert (path / "specialists" / "1" / "specialist.json").is_file()
    assert (path / "specialists" / "2" / "config.yaml").is_file()
    assert not (path / "specialists" / "2" / "specialist.json").exists()
    assert checkpoints.pointed(path / "specialists" / "2", "LAST")
    with pytest.raises(UsageError) as unfinished:
        scorer(path)
    assert f"specialists --resume {path}" in str(unfinished.value)
    first = (path / "specialists" / "1" / "metrics.jsonl").stat().st_mtime_ns
    result = resume(path, progress=QUIET)
    assert weights(path) == weights(ensemble[0])
    assert metrics(path) == metrics(ensemble[0])  # trained once: a specialist begun anew would have some lines twice
    for name in ("figures", "sets", "working_points"):
        assert result[name] == ensemble[1][name]
    assert (path / "specialists" / "1" / "metrics.jsonl").stat().st_mtime_ns == first
    assert resume(path, progress=QUIET)["figures"] == result["figures"]  # nothing is left to do


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_anew")
def test_a_killed_ensemble_is_the_undisturbed_one(generalist: Path, ensemble: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """kill -9 while the first specialist trains; then the second dies after its folder was made and before it was a run."""
    path = tmp_path / "e"
    shutil.copytree(ensemble[0], path, ignore=shutil.ignore_patterns("specialists", "ensemble.json", "figures.json", "working_points.json"))
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "NPROC")}
    running = subprocess.Popen(runs.command("specialists", "--resume", path, "--inexact", "-q"), env=environment)
    metrics, until = path / "specialists" / "1" / "metrics.jsonl", time.monotonic() + 200
    while not (metrics.exists() and "steps" in metrics.read_text()):
        assert running.poll() is None
        assert time.monotonic() < until
        time.sleep(0.002)
    running.kill()
    assert running.wait() == -signal.SIGKILL
    assert not (path / "specialists" / "1" / "specialist.json").exists()
    (path / "specialists" / "2").mkdir()
    found = resume(path, inexact=True, progress=QUIET)
    assert weights(path) == weights(ensemble[0])
    assert found["figures"] == ensemble[1]["figures"]


def test_an_ensemble_can_be_moved(generalist: Path, ensemble: tuple[Path, dict[str, Any]], tmp_path: Path, rows: Rows) -> None:
    """It holds its generalist: that the run it came from is gone does not matter."""
    before = scorer(ensemble[0]).score(rows.x)
    shutil.copytree(ensemble[0], tmp_path / "elsewhere")
    generalist.rename(generalist.with_name("gone"))
    try:
        after = scorer(tmp_path / "elsewhere").score(rows.x)
        found = resume(tmp_path / "elsewhere", progress=QUIET)
    finally:
        generalist.with_name("gone").rename(generalist)
    np.testing.assert_array_equal(before.logits, after.logits)
    assert found["figures"] == ensemble[1]["figures"]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda d: d.pop("specialists"), "damaged ensemble: 'specialists'"),
        (lambda d: d["specialists"][0].update(correction="much"), "damaged ensemble"),
        (lambda d: d["specialists"][0].update(classes=["g", "g"]), "no set of the generalist's"),
        (lambda d: d["specialists"][0].update(classes=["g", "b"]), "no set of the generalist's"),
        (lambda d: d["specialists"][0].update(classes=["g", "W"]), "is not the network that the ensemble was made of"),
        (lambda d: d["specialists"][0].update(run="specialists/2"), "is not the network that the ensemble was made of"),
        (lambda d: d["generalist"].update(weights="0" * 64), "is not the network that the ensemble was made of"),
        (lambda d: d["specialists"][0].update(run="specialists/9"), "the ensemble has lost specialists/9"),
    ],
)
def test_a_damaged_ensemble(ensemble: tuple[Path, dict[str, Any]], tmp_path: Path, damage: Any, says: str) -> None:
    path = tmp_path / "e"
    shutil.copytree(ensemble[0], path)
    document = json.loads((path / "ensemble.json").read_text())
    damage(document)
    write_text(path / "ensemble.json", json.dumps(document))
    with pytest.raises(RunFailed) as caught:
        scorer(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)


def test_half_a_document(ensemble: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "e"
    shutil.copytree(ensemble[0], path)
    write_text(path / "ensemble.json", (path / "ensemble.json").read_text()[:200])
    with pytest.raises(RunFailed, match="not JSON"):
        scorer(path)


def test_damaged_sets(ensemble: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "e"
    shutil.copytree(ensemble[0], path)
    document = json.loads((path / "sets.json").read_text())
    del document["sets"][1]["share"]
    write_text(path / "sets.json", json.dumps(document))
    with pytest.raises(RunFailed, match="damaged sets"):
        resume(path, progress=QUIET)


def test_it_teaches(ensemble: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """The cached logits are the ensemble's, are used again, and are not used once the ensemble is another."""
    path = tmp_path / "e"
    shutil.copytree(ensemble[0], path)
    teacher = open_teacher(path)
    arguments: dict[str, Any] = {"weights": [1.0], "how": "geometric", "most_unmatched": 0.0, "progress": QUIET}
    with open_dataset(teacher.card) as dataset:
        found = soft_targets([teacher], dataset, tmp_path, **arguments)
        rows = dataset.rows(range(len(dataset.clusters)), "validation")
        q = by_hand(path, rows)
        np.testing.assert_allclose(found.extra["validation"]["teacher_logits"], np.log(q), rtol=1e-5, atol=1e-6)
        assert found.figures["accuracy"] == pytest.approx((q.argmax(axis=1) == rows.label).mean())
        assert found.figures["cross_entropy"] == pytest.approx(-np.log(q[np.arange(len(rows)), rows.label]).mean(), rel=1e-5)
        written = (tmp_path / "teacher_logits.npz").stat().st_mtime_ns
        soft_targets([open_teacher(path)], dataset, tmp_path, **arguments)
        assert (tmp_path / "teacher_logits.npz").stat().st_mtime_ns == written
        document = json.loads((path / "ensemble.json").read_text())
        document["specialists"][0]["correction"] += 1
        write_text(path / "ensemble.json", json.dumps(document))
        soft_targets([open_teacher(path)], dataset, tmp_path, **arguments)
        assert not np.array_equal(read_arrays(tmp_path / "teacher_logits.npz")["logits"][:9], found.extra["train"]["teacher_logits"][:9])
        assert (tmp_path / "teacher_logits.npz").stat().st_mtime_ns > written


def test_a_student_of_an_ensemble_and_a_run(generalist: Path, ensemble: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Several teachers from the configuration to `student.json`, and read back by a resume."""
    content = {**config(ensemble[0], precision=None, length="1epochs").stored(), "teacher": [str(ensemble[0]), str(generalist)]}
    result = distil(check(DistilConfig, {**content, "mean": "arithmetic", "teacher_weights": [2.0, 1.0]}), tmp_path / "s", progress=QUIET)
    found = result["teacher"]
    assert [(each["path"], each["weight"], each["unmatched"]) for each in found["teachers"]] == [(str(ensemble[0]), 2.0, 0), (str(generalist), 1.0, 0)]
    assert (found["mean"], found["unmatched"], found["teachers"][0]["step"]) == ("arithmetic", 0, None)
    stored = read_config(tmp_path / "s")
    assert (stored["teacher"], stored["teacher_weights"]) == ([str(ensemble[0]), str(generalist)], [2.0, 1.0])
    assert scorer(tmp_path / "s").teachers == (ensemble[0], generalist)
    assert resume_student(tmp_path / "s", progress=QUIET)["teacher"] == found


def test_sets_are_found_and_nothing_is_written(generalist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = dry_specialists(options(generalist, count=2), progress=QUIET)
    assert len(found["sets"]) == 2
    assert all(len(each["classes"]) > 1 for each in found["sets"])
    assert found["outputs"] == [*found["sets"][0]["classes"], "dustbin"]
    assert list(tmp_path.iterdir()) == []


def test_refusals(card: Path, generalist: Path, ensemble: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "e"

    def refused(said: str, given: SpecialistsConfig) -> None:
        with pytest.raises(UsageError) as caught:
            specialists(given, path, progress=QUIET)
        assert said in str(caught.value)
        assert not path.exists()

    refused("do not fall into 4 distinct sets", options(generalist, count=4))
    refused("nearest: g", options(generalist, sets=[["G", "q"]]))
    refused("is no specialist's set", options(generalist, sets=[["g"]]))
    refused("is no specialist's set", options(generalist, sets=[["g", "q", "W", "Z", "t"]]))
    refused("--count and --size have nothing to say", options(generalist, sets=[["g", "q"]], count=1))
    refused("--count N", options(generalist, size=2))
    refused("a float network with one output per class", options(ensemble[0] / "specialists" / "1"))
    refused("an ensemble is not one network", options(ensemble[0]))
    refused("not a run directory", options(tmp_path / "nothing"))
    other = change(card, "other.yaml", ("jet_tau32]", "jet_tau21]"), ("jet_tau21, jet_tau21", "jet_tau21"))
    refused("read the card of their generalist", options(generalist, card=runs.config(other).card.model_dump(mode="json")))  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="have the network of their generalist"):
        options(generalist, model={"name": "mlp"})
    with pytest.raises(UsageError, match="one specialist of an ensemble"):
        scorer(ensemble[0] / "specialists" / "1")
    with pytest.raises(UsageError) as caught:
        resume(ensemble[0] / "specialists" / "1", progress=QUIET)
    assert f"specialists --resume {ensemble[0]}" in str(caught.value)
    with pytest.raises(UsageError, match="one specialist of an ensemble"):
        dry_run(config(ensemble[0] / "specialists" / "1"), progress=QUIET)

"""A student that learns its bits, end to end on small files: the front, the point that is trained on, what stops it, and what it refuses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hlt_train import checkpoints
from hlt_train.checkpoints import Snapshot
from hlt_train.cost import cost
from hlt_train.data.dataset import open_dataset
from hlt_train.distil import distil, resume
from hlt_train.errors import Interrupted, RunFailed, UsageError
from hlt_train.files import read_document, sha256
from hlt_train.front import Judged, Point, chosen
from hlt_train.graph import evaluate
from hlt_train.progress import Progress
from hlt_train.restore import load_run, lowered
from hlt_train.width_candidates import Candidate, Candidates, pareto, thinned
from hlt_train.widths import _golden
from tests.distillation import Stopper, config, train_teacher, write_card

QUIET = Progress(quiet=True)
OPTIONS: dict[str, Any] = {
    "length": "10epochs",
    "learning_rate": 0.03,
    "warmup": 0.3,
    "widths": {"share": 0.5, "beta": [0.05, 20.0], "keep": 4, "learning_rate": 3.0},
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_teacher(write_card(tmp_path_factory.mktemp("jets")), tmp_path_factory.mktemp("runs") / "teacher")


@pytest.fixture(scope="module")
def student(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    path = tmp_path_factory.mktemp("runs") / "student"
    return path, distil(config(teacher, **OPTIONS), path, progress=QUIET)


def contents(path: Path) -> dict[str, Any]:
    """What must be the same in two runs: the front, its networks and formats, the student."""
    document = read_document(path / "front.json", "hlt-train/front", 1)
    files = [p for k in range(1, len(document["points"]) + 1) for p in sorted((path / "front" / str(k)).rglob("*")) if p.name in ("weights.npz", "model.json")]
    last = path / "checkpoints" / str(checkpoints.pointed(path, "LAST")) / "weights.npz"
    return {**document, **{str(p.relative_to(path)): sha256(p) for p in [*files, path / "model.json", last]}}


def test_the_front(student: tuple[Path, dict[str, Any]]) -> None:
    """Dearer is better, the bits shrink by much, and every point is a run whose golden figures are those of the table."""
    path, result = student
    document = read_document(path / "front.json", "hlt-train/front", 1)
    points = document["points"]
    assert result["front"] == {k: v for k, v in document.items() if k not in ("format", "version")}
    assert 2 <= len(points) <= 4
    assert (path / "front.svg").read_text().count("<title>candidate") == len(points)
    assert sorted(p.name for p in (path / "front").iterdir()) == [str(k) for k in range(1, len(points) + 1)]
    assert points == sorted(points, key=lambda p: p["cost"]) == sorted(points, key=lambda p: -p["cross_entropy"])
    assert points[0]["cost"] < 0.6 * points[-1]["cost"]
    for point in points:
        loaded = load_run(path / "front" / str(point["point"]))
        graph = lowered(loaded)
        assert cost(graph)["bit_operations"] == point["bit_operations"] == point["cost"]
        with open_dataset(loaded.card) as dataset:
            rows = dataset.rows(range(len(dataset.clusters)), "validation")
        f = graph.structure["output"].f
        assert f is not None
        logits = np.ldexp(evaluate(graph, rows.x).astype(np.float64), -f.astype(np.int32))[:, :5]
        assert point["accuracy"] == pytest.approx(float((logits.argmax(axis=1) == rows.label).mean()))
        assert read_document(path / "front" / str(point["point"]) / "working_points.json", "hlt-train/working-points", 1)["integer"]


def test_training_goes_on_from_the_chosen_point(student: tuple[Path, dict[str, Any]]) -> None:
    """With its formats, and never above their cost by more than a sign for each weight."""
    path, result = student
    document = read_document(path / "front.json", "hlt-train/front", 1)
    best = document["points"][document["chosen"] - 1]
    assert best["cross_entropy"] == min(p["cross_entropy"] for p in document["points"])
    point = load_run(path / "front" / str(document["chosen"]))
    assert load_run(path).spec == point.spec
    assert result["widths_steps"] == round(0.5 * 10 * -(-result["rows"]["train"] // 64))
    assert result["golden"]["differing_rows"] == 0
    assert result["post_training"]["accuracy"] == pytest.approx(best["accuracy"])


@pytest.mark.usefixtures("compiled_anew")
@pytest.mark.slow
@pytest.mark.parametrize("reports", [26, 5, 36])
def test_an_interrupted_student_comes_to_the_same_front(teacher: Path, student: tuple[Path, dict[str, Any]], tmp_path: Path, reports: int) -> None:
    """SIGTERM while the bits are learned (and before, and after)."""
    path = tmp_path / "r"
    with pytest.raises(Interrupted) as stopped:
        distil(config(teacher, **OPTIONS, scan=3), path, progress=Stopper(reports))
    assert f"distil --resume {path}" in str(stopped.value)
    if reports == 26:
        folder = path / "widths" / "candidates"
        assert checkpoints.steps(folder)
        assert not (path / "front.json").exists()
        # what a process that was killed may leave: half a candidate, one later than LAST, a front that was not finished
        for place in (folder / "checkpoints" / ".99.writing", path / "front" / "1", path / ".front.writing" / "1"):
            place.mkdir(parents=True)
        checkpoints.save(folder, Snapshot({}, {}, {"step": 10_000, "beta": 1.0, "cost": 1.0, "cross_entropy": 1e-9}))
    resume(path, progress=QUIET)
    assert contents(path) == contents(student[0])


@pytest.mark.slow
def test_a_budget(teacher: Path, student: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    points = read_document(student[0] / "front.json", "hlt-train/front", 1)["points"]
    budget = (points[0]["cost"] + points[1]["cost"]) / 2
    distil(config(teacher, **{**OPTIONS, "widths": {**OPTIONS["widths"], "budget": budget}}), tmp_path / "r", progress=QUIET)
    document = read_document(tmp_path / "r" / "front.json", "hlt-train/front", 1)
    assert document["points"][document["chosen"] - 1]["cost"] <= budget


def test_refusals(teacher: Path, student: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    for options, what in (
        ({"precision": None}, "no bits to learn"),
        ({"warmup": 0.8}, "leave no steps"),
        ({"strategy": {"name": "easgd"}}, "learned by sync in float32"),
        ({"precision": {"weights": "ternary<auto>"}}, "no width to learn"),
    ):
        with pytest.raises(UsageError, match=what):
            distil(config(teacher, **{**OPTIONS, "length": "3epochs", **options}), tmp_path / what.replace(" ", "-"), progress=QUIET)
    none = {**OPTIONS["widths"], "cost": "cpu", "isa": "plain", "latency_table": str(tmp_path / "none.json")}
    with pytest.raises(UsageError, match=r"no such file: none.json"):
        distil(config(teacher, **{**OPTIONS, "widths": none}), tmp_path / "r", progress=QUIET)
    assert not (tmp_path / "r").exists()
    for section, what in (
        ({"beta": [2, 1]}, "beta grows"),
        ({"granularity": "element"}, "unknown key"),
        ({"cost": "bits"}, "'bit_operations', 'luts' or 'cpu'"),
        ({"cost": "luts", "isa": "plain"}, "belong to the cost cpu"),
        ({"weights": "row"}, "'tensor', 'channel' or 'element'"),
    ):
        with pytest.raises(UsageError, match=what):
            config(teacher, widths=section)
    with pytest.raises(UsageError, match="point of a front is finished"):
        resume(student[0] / "front" / "1", progress=QUIET)


def test_what_is_published_is_the_front_of_the_golden_figures(tmp_path: Path) -> None:
    """By rising golden cost, whatever the training forward said of it; without what another beats, and with the next one for what cannot be a student."""
    candidates = Candidates(tmp_path, 0)
    for step, (price, loss) in enumerate([(1.0, 9.0), (2.0, 8.0), (3.0, 7.0), (4.0, 6.0), (5.0, 5.0)]):
        assert candidates.add(Candidate(step, 1.0, price, loss), {})
    assert not candidates.add(Candidate(9, 1.0, 3.5, 7.5), {})
    golden = {0: 3.0, 1: 2.0, 2: 2.5, 3: 2.25}

    def judge(one: Candidate, _: Candidates) -> Judged | None:
        cost = golden.get(one.step)
        return None if cost is None else Judged(Point(one.step, 1.0, cost, one.cross_entropy, 0.5, 1, 1), None, None)  # type: ignore[arg-type]

    assert [one.point.step for one in _golden(candidates, 8, None, judge)] == [1, 3]
    assert [candidate.step for candidate in Candidates(tmp_path, 2).all] == [0, 1, 2]


def test_which_points_make_a_front() -> None:
    def point(cost: float, loss: float, step: int = 0) -> Point:
        return Point(step, 0.0, float(cost), loss, 0.0, int(cost), 0)

    found = pareto([point(8, 1.0), point(4, 2.0), point(6, 2.5), point(4, 2.0, 1), point(16, 1.0, 2), point(1, 9.0)])
    assert found == [point(1, 9.0), point(4, 2.0), point(8, 1.0)]
    assert chosen(found, None) == point(8, 1.0)
    assert chosen(found, 7.9) == point(4, 2.0)
    with pytest.raises(RunFailed, match="the cheapest costs 1"):
        chosen(found, 0.5)
    many = [point(2.0**k, -float(k)) for k in range(9)]
    kept = thinned(many, 3, many[5])
    assert kept == [many[0], many[5], many[8]]
    assert thinned(many, 9, many[5]) == many
    places = np.array([math.log2(p.cost) for p in thinned(many, 5, many[8])])
    assert (places[0], places[-1], len(places)) == (0, 8, 5)
    assert np.diff(places).max() <= 3

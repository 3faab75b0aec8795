"""Several teachers: rows and classes joined by what they are called, one mean, figures of each and of all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp, softmax

from hlt_train.configuration import check
from hlt_train.data.card import load_card
from hlt_train.data.dataset import Dataset, open_dataset
from hlt_train.distil import DistilConfig
from hlt_train.errors import UsageError
from hlt_train.files import read_arrays, read_document
from hlt_train.fit import fit
from hlt_train.progress import Progress
from hlt_train.restore import load_run, predict_rows
from hlt_train.scorers import scorer
from hlt_train.soft_targets import SoftTargets, soft_targets
from hlt_train.teachers import joint, open_teacher
from tests import runs
from tests.distillation import change, write_card

QUIET = Progress(quiet=True)
ORDER = [4, 3, 2, 1, 0]  # of the second teacher's classes


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_card(tmp_path_factory.mktemp("jets"))


@pytest.fixture(scope="module")
def teachers(card: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The second one reads three inputs of three quarters of the files, has other splits, and its classes the other way round."""
    inputs = next(line for line in card.read_text().splitlines() if line.startswith("inputs:"))
    other = change(
        card,
        "other.yaml",
        (inputs, "inputs: {hlf: [jet_mass, jet_mult, jet_width]}"),
        ("classes: [g, q, W, Z, t], expression: label", 'classes: [t, Z, W, q, g], expression: "4 - label"'),
        ("train: 0.7, validation: 0.2", "train: 0.5, validation: 0.3"),
        ("jets_*.root", "jets_0[012].root"),
    )
    folder = tmp_path_factory.mktemp("runs")
    for name, mine in (("a", card), ("b", other)):
        fit(runs.config(mine, length="4epochs", learning_rate=0.02), folder / name, progress=QUIET)
    return folder / "a", folder / "b"


def targets(paths: tuple[Path, ...], dataset: Dataset, folder: Path | None = None, **options: Any) -> SoftTargets:
    given = {"weights": [1.0] * len(paths), "how": "geometric", "most_unmatched": 0.5, **options}
    return soft_targets([open_teacher(path) for path in paths], dataset, folder, **given, progress=QUIET)


@pytest.mark.parametrize("how", ["geometric", "arithmetic"])
def test_the_mean_of_those_who_know_a_row(card: Path, teachers: tuple[Path, Path], how: str) -> None:
    a, b = (load_run(path) for path in teachers)
    with open_dataset(load_card(card)) as dataset:
        found = targets(teachers, dataset, weights=[1.0, 3.0], how=how)
        rows = dataset.rows(range(len(dataset.clusters)), "validation")
        own = rows.x.groups["hlf"][:, [0, 1, 3]]
    logits = found.extra["validation"]["teacher_logits"]
    one = log_softmax(predict_rows(a, rows.x).astype(np.float64), axis=1)
    two = log_softmax(predict_rows(b, rows.x._replace(groups={"hlf": own})).astype(np.float64)[:, ORDER], axis=1)
    mean = (one + 3 * two) / 4 if how == "geometric" else logsumexp([one, two], axis=0, b=np.array([0.25, 0.75])[:, None, None])
    mean -= logsumexp(mean, axis=1, keepdims=True)
    matches = [np.isclose(logits, wanted, rtol=1e-5, atol=1e-6).all(axis=1) for wanted in (mean, one)]
    assert (matches[0] | matches[1]).all()
    unknown = found.figures["teachers"][1]["unmatched"]
    assert 0.2 < unknown / found.figures["rows"] < 0.3  # a quarter of the files
    assert matches[1].sum() == pytest.approx(unknown * len(rows) / found.figures["rows"], rel=0.3)
    assert (found.figures["unmatched"], found.figures["teachers"][0]["unmatched"]) == (0, 0)
    assert (found.extra["validation"]["teacher_matched"] == 1).all()
    # figures of all rows, and of each teacher's own
    p = softmax(logits.astype(np.float64), axis=1)
    assert found.figures["accuracy"] == pytest.approx((p.argmax(axis=1) == rows.label).mean())
    assert found.figures["cross_entropy"] == pytest.approx(-np.log(p[np.arange(len(rows)), rows.label]).mean(), rel=1e-5)
    assert found.figures["teachers"][0]["accuracy"] == pytest.approx((one.argmax(axis=1) == rows.label).mean())
    assert [each["weight"] for each in found.figures["teachers"]] == [1.0, 3.0]


def test_one_teacher_twice_is_that_teacher(card: Path, teachers: tuple[Path, Path]) -> None:
    with open_dataset(load_card(card)) as dataset:
        once, twice = targets(teachers[:1], dataset), targets((teachers[0], teachers[0]), dataset, how="arithmetic", weights=[2.0, 5.0])
    for split in ("train", "validation"):
        pair = (log_softmax(each.extra[split]["teacher_logits"].astype(np.float64), axis=1) for each in (once, twice))
        np.testing.assert_allclose(*pair, atol=1e-5)
    assert once.figures["cross_entropy"] == pytest.approx(twice.figures["cross_entropy"])


def test_a_row_that_nobody_knows(card: Path, teachers: tuple[Path, Path]) -> None:
    with open_dataset(load_card(card)) as dataset:
        found = targets(teachers[1:], dataset)
        assert (
            (found.extra["train"]["teacher_matched"] == 0).sum() + (found.extra["validation"]["teacher_matched"] == 0).sum() == found.figures["unmatched"] > 0
        )
        assert (found.extra["train"]["teacher_logits"][found.extra["train"]["teacher_matched"] == 0] == 0).all()
        with pytest.raises(UsageError) as caught:
            targets(teachers, dataset, most_unmatched=0.1)
    assert "are not in the teacher's card" in str(caught.value)
    assert str(teachers[1]) in str(caught.value)


def test_each_teacher_has_its_cache(card: Path, teachers: tuple[Path, Path], tmp_path: Path) -> None:
    with open_dataset(load_card(card)) as dataset:
        first = targets(teachers, dataset, tmp_path)
        files = sorted(tmp_path.glob("*.npz"))
        assert [file.name for file in files] == ["teacher_logits.npz", "teacher_logits_2.npz"]
        times = [file.stat().st_mtime_ns for file in files]
        again = targets(teachers, dataset, tmp_path, how="arithmetic")  # another mean asks nobody again
        assert [file.stat().st_mtime_ns for file in files] == times
        assert again.figures["teachers"] == first.figures["teachers"]
        assert read_document(tmp_path / "teacher_logits_2.json", "hlt-train/teacher-logits", 1)["teacher"] == str(teachers[1])
        assert np.isnan(read_arrays(files[1])["logits"]).any()
        targets(teachers[::-1], dataset, tmp_path)  # not theirs
    assert all(file.stat().st_mtime_ns > time for file, time in zip(files, times, strict=True))


def test_jointly_they_score(card: Path, teachers: tuple[Path, Path]) -> None:
    """As one network on rows that both can read, with the student's discriminant."""
    both = [open_teacher(teachers[0]), open_teacher(teachers[0])]
    with open_dataset(load_card(card)) as dataset:
        rows = dataset.rows(range(len(dataset.clusters)), "test")
    one = scorer(teachers[0]).score(rows.x)
    found = joint(both, [1.0, 2.0], "arithmetic", both[0].card).score(rows.x)
    np.testing.assert_allclose(found.logits, log_softmax(one.logits, axis=1), atol=1e-12)
    np.testing.assert_allclose(found.score, one.score, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"teacher": []}, "needs a teacher"),
        ({"teacher": ["a", "b"], "teacher_weights": [1.0]}, "teacher_weights has 1 entries for 2 teachers"),
        ({"teacher": ["a", "b"], "teacher_weights": [1.0, 0.0]}, "teacher_weights.1"),
        ({"teacher": ["a", "b"], "mean": "harmonic"}, "mean"),
        ({"teacher": "a", "teacher_card": [None, None]}, "teacher_card has 2 entries for 1 teachers"),
    ],
)
def test_configurations_that_make_no_sense(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        check(DistilConfig, options)
    assert says in str(caught.value)

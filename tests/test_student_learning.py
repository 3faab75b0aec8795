"""Students that learn more than the answers of a teacher: runs of `distil` with everything at once, resumed, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hlt_train import checkpoints, devices
from hlt_train.combination import Mean, mean_of
from hlt_train.data import normalise
from hlt_train.distil import distil, dry_run, resume
from hlt_train.distillation_loss import LOGITS
from hlt_train.errors import Interrupted, UsageError
from hlt_train.files import read_document
from hlt_train.hints import HINT
from hlt_train.late_normalisation import normalised, raw_inputs
from hlt_train.progress import Progress
from hlt_train.restore import build_model, load_run, outline, parameters, predict_rows
from hlt_train.run import read_config
from hlt_train.student_learning import student_learning
from hlt_train.study import open_study
from hlt_train.teacher_in_loop import frozen, joint_logits
from hlt_train.teachers import open_teacher
from hlt_train.types import Batch
from tests import runs, students
from tests.distillation import SUBSET, Stopper, change, config, train_teacher, weights_hash, write_card

QUIET = Progress(quiet=True)
EVERYTHING: dict[str, Any] = {
    "hints": {"weight": 0.3},
    "objective": {"name": "rate", "working_point": "loose", "weight": 0.5},
    "augment": {"scalar_smearing": {"relative": {"jet_mass": 0.05}}},
    "matching": "logits",
    "share": 0.8,
    "length": "5epochs",
    "precision": None,
    "learning_rate": 0.03,
    "scan": 10,
}


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_card(tmp_path_factory.mktemp("jets"))


@pytest.fixture(scope="module")
def teacher(card: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_teacher(card, tmp_path_factory.mktemp("runs") / "teacher")


@pytest.fixture(scope="module")
def student(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    path = tmp_path_factory.mktemp("runs") / "student"
    return path, distil(config(teacher, **EVERYTHING), path, progress=QUIET)


def test_a_student_learns_all_of_it_and_is_itself_alone(student: tuple[Path, dict[str, Any]]) -> None:
    path, result = student
    assert result["validation"]["accuracy"] > 0.35  # five classes
    loaded = load_run(path)
    stored = checkpoints.load(path, loaded.step, "weights")
    assert checkpoints.to_arrays(parameters(outline(loaded.spec, loaded.inputs))).keys() == stored.keys()
    document = read_document(path / "student.json", "hlt-train/student", 1)
    assert document["hints"] == {"student": None, "teacher": None, "weight": 0.3, "first": 0.0, "cached": True}
    assert document["objective"]["width"] == 1.0
    assert read_config(path)["augment"] == EVERYTHING["augment"]


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_anew")
def test_an_interrupted_student_is_the_undisturbed_one(teacher: Path, student: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Companions and the keys of the transforms come back with the state."""
    with pytest.raises(Interrupted):
        distil(config(teacher, **EVERYTHING), tmp_path / "r", progress=Stopper(4))
    resume(tmp_path / "r", progress=QUIET)
    assert weights_hash(tmp_path / "r") == weights_hash(student[0])


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_anew")
def test_a_fixed_point_student_has_hints_in_its_warm_up(teacher: Path, tmp_path: Path) -> None:
    """Interrupted in the warm-up, where the regressor is, and on the grid, where it is not any more."""
    options = {**EVERYTHING, "precision": {}, "length": "8epochs"}
    result = distil(config(teacher, **options), tmp_path / "whole", progress=QUIET)
    assert result["golden"]["accuracy"] > 0.35
    assert result["golden"]["differing_rows"] == 0
    for reports in (3, 9):
        path = tmp_path / str(reports)
        with pytest.raises(Interrupted):
            distil(config(teacher, **options), path, progress=Stopper(reports))
        resume(path, progress=QUIET)
        assert weights_hash(path) == weights_hash(tmp_path / "whole")
        assert weights_hash(path / "warmup") == weights_hash(tmp_path / "whole" / "warmup")


@pytest.mark.slow
def test_a_cached_hint_is_the_one_in_the_loop(teacher: Path, tmp_path: Path) -> None:
    """To the rounding of sums in batches of another size."""
    found = []
    for cached in (True, False):
        options = {"precision": None, "length": "1epochs", "hints": {"weight": 2.0, "cached": cached}, "share": 0.0}
        distil(config(teacher, **options), tmp_path / str(cached), progress=QUIET)
        found.append(checkpoints.load(tmp_path / str(cached), checkpoints.pointed(tmp_path / str(cached), "LAST") or 0, "weights"))
    for name, array in found[0].items():
        np.testing.assert_allclose(array, found[1][name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_the_arm_alone_of_a_comparison_has_nothing_of_the_teacher_and_all_the_rest(teacher: Path, tmp_path: Path) -> None:
    distil(config(teacher, **{**EVERYTHING, "seeds": 1, "length": "1epochs"}), tmp_path / "r", progress=QUIET)
    arms = {arm: read_config(tmp_path / "r" / "seeds" / "0" / arm) for arm in ("alone", "distilled")}
    assert (arms["alone"]["lambda"], arms["alone"]["hints"]) == (0.0, None)
    assert arms["distilled"]["hints"]["weight"] == 0.3
    for key in ("objective", "augment", "seed", "for"):
        assert arms["alone"][key] == arms["distilled"][key]


@pytest.mark.slow
def test_hints_in_low_precision(teacher: Path, tmp_path: Path) -> None:
    """The exponents and the regressor travel together; only the network is stored on a grid."""
    low = {"forward": "dynamic<12>", "backward": "dynamic<12>", "storage": "fixed<14,4>", "round": "stochastic"}
    distil(config(teacher, **{**EVERYTHING, "low_precision": low}), tmp_path / "r", progress=QUIET)
    stored = checkpoints.load(tmp_path / "r", checkpoints.pointed(tmp_path / "r", "LAST") or 0, "weights")
    assert all(np.array_equal(array * 1024, np.round(array * 1024)) for array in stored.values())


def test_what_is_normalised_on_the_device_is_what_is_normalised_in_the_stream() -> None:
    rng = np.random.default_rng(3)
    described = students.inputs(rng, ("hlf", 4, None), ("part", 3, 5))
    x = students.raw(rng, described, 500, garbage=7.0)
    with np.errstate(over="ignore"):
        want, found = normalise.apply(described, x), jax.jit(lambda rows: normalised(described, rows))(normalise.apply(raw_inputs(described), x))
    for name, values in want.groups.items():
        np.testing.assert_array_equal(np.asarray(found.groups[name]), values)


def test_the_teacher_in_the_loop_is_the_teacher(card: Path, teacher: Path) -> None:
    """Another order of variables and classes in the student's card: the same logits."""
    from hlt_train.data.card import load_card
    from hlt_train.data.dataset import open_dataset

    names = runs.CARD.partition("hlf: [")[2].partition("]")[0].split(", ")
    pairs = ((", ".join(names), ", ".join(reversed(names))), ("classes: [g, q, W, Z, t], expression: label", "classes: [t, Z, W, q, g], expression: 4 - label"))
    other = load_card(change(card, "other.yaml", *pairs))
    loaded = load_run(teacher)
    with open_dataset(other) as dataset, open_dataset(loaded.card) as theirs:
        inputs = normalise.fit_normalisation(dataset)
        ours, rows = (next(d.iterate("validation")) for d in (dataset, theirs))
    there = frozen(open_teacher(teacher), other, inputs, other.labels.classes, "a test")
    np.testing.assert_allclose(there.logits(ours.x), predict_rows(loaded, rows.x)[:, ::-1], rtol=1e-5, atol=1e-5)
    assert there.hidden(ours.x, "dense_0").shape == (len(rows), 16)
    second = dataclasses.replace(there, network=jax.tree.map(lambda leaf: 2 * leaf if eqx.is_inexact_array(leaf) else leaf, there.network))
    both = np.stack([np.asarray(each.logits(ours.x)) for each in (there, second)])
    means: tuple[Mean, ...] = ("geometric", "arithmetic")
    for how in means:
        want = mean_of(both, np.outer([1.0, 3.0], np.ones(len(rows))), how)
        np.testing.assert_allclose(joint_logits([there, second], [1.0, 3.0], how, ours.x), want, rtol=1e-4, atol=1e-4)


def test_the_teacher_sees_the_augmented_batch(teacher: Path) -> None:
    """Its answers and its hidden layer are those of the rows that the student gets, not the cached ones; the labels and weights stay."""
    study = open_study(config(teacher, **EVERYTHING), devices.mesh(1), None, QUIET)
    with study.dataset:
        learning = student_learning(study, build_model(study.spec, study.inputs, 1), steps=10, hinted=True)
        rows = next(study.dataset.iterate("train"))
        assert learning is not None
        assert learning.prepare is not None
        extra = {name: jnp.asarray(column[: len(rows)]) for name, column in study.extra["train"].items()}
        batch = Batch(normalise.apply(raw_inputs(study.inputs), rows.x), jnp.asarray(rows.label), jnp.asarray(rows.weight, jnp.float32), extra)
        ready = jax.jit(learning.prepare)(batch, jax.random.key(0))
    loaded = load_run(teacher)  # with the same card, so the same normalisation
    network: Any = loaded.model
    assert not np.array_equal(ready.x.groups["hlf"], normalise.apply(study.inputs, rows.x).groups["hlf"])
    np.testing.assert_allclose(ready.extra[LOGITS], network(ready.x), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ready.extra[HINT], network.trace(ready.x)["dense_0"], rtol=1e-5, atol=1e-5)
    assert np.abs(ready.extra[LOGITS] - extra[LOGITS]).max() > 1e-2
    np.testing.assert_array_equal(ready.label, rows.label)


@pytest.fixture(scope="module")
def subset(card: Path) -> Path:
    return change(card, "subset.yaml", (next(line for line in card.read_text().splitlines() if line.startswith("inputs:")), SUBSET))


def test_refusals(subset: Path, teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a hint needs the teacher on every batch, but 'jet_width' is not in the inputs"):
        distil(config(teacher, subset, hints={}), tmp_path / "r", progress=QUIET)
    with pytest.raises(UsageError, match="an augmented batch needs the teacher"):
        distil(config(teacher, subset, augment=EVERYTHING["augment"]), tmp_path / "r", progress=QUIET)
    with pytest.raises(UsageError, match="the teacher has no hidden layer 'dense_7'"):
        distil(config(teacher, hints={"teacher": "dense_7"}), tmp_path / "r", progress=QUIET)
    with pytest.raises(UsageError, match="no working point 'lose'"):
        distil(config(teacher, objective={"name": "rate", "working_point": "lose"}), tmp_path / "r", progress=QUIET)
    with pytest.raises(UsageError, match="no scalar input is called 'jet_mas'"):
        distil(config(teacher, augment={"scalar_smearing": {"absolute": {"jet_mas": 1.0}}}), tmp_path / "r", progress=QUIET)
    with pytest.raises(UsageError, match="learnt by sync") as caught:
        distil(config(teacher, hints={}, strategy={"name": "easgd"}), tmp_path / "r", progress=QUIET)
    assert "strategy.name=sync" in str(caught.value)
    with pytest.raises(UsageError, match="no augmentation is called 'rotate'"):
        config(teacher, augment={"rotate": {}})
    assert not (tmp_path / "r").exists()


def test_a_student_alone_is_augmented_and_cuts_too(subset: Path, teacher: Path) -> None:
    """Without the teacher nothing of it is asked for, though this card could not feed it."""
    options = {**EVERYTHING, "share": 0.0, "hints": None}
    assert dry_run(config(teacher, subset, **options), progress=QUIET)["inputs"] == {"hlf": [3]}

"""`distil` end to end on small files: what it writes, what it repeats, what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from hlt_train import checkpoints, graph
from hlt_train.data import normalise
from hlt_train.data.dataset import open_dataset
from hlt_train.distil import distil, dry_run, finished, resume
from hlt_train.errors import Interrupted, RunFailed, UsageError
from hlt_train.files import read_arrays, read_document
from hlt_train.graph import evaluate
from hlt_train.progress import Progress
from hlt_train.restore import load_run, lowered, parameters, predict_rows
from hlt_train.run import read_config
from tests.distillation import SUBSET, Stopper, change, config, train_teacher, weights_hash, write_card

QUIET = Progress(quiet=True)


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_card(tmp_path_factory.mktemp("jets"))


@pytest.fixture(scope="module")
def teacher(card: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_teacher(card, tmp_path_factory.mktemp("runs") / "teacher")


@pytest.fixture(scope="module")
def student(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    path = tmp_path_factory.mktemp("runs") / "student"
    return path, distil(config(teacher, length="16epochs", learning_rate=0.03, share=0.9, temperature=3.0), path, progress=QUIET)


def test_it_writes_all_there_is_to_know(teacher: Path, student: tuple[Path, dict[str, Any]]) -> None:
    path, result = student
    stored = read_config(path)
    assert (stored["verb"], stored["temperature"], stored["lambda"], stored["teacher"]) == ("distil", 3.0, 0.9, str(teacher))
    document = read_document(path / "student.json", "hlt-train/student", 1)
    assert document["teacher"]["unmatched"] == 0
    assert document["golden"] == result["golden"]
    assert result["warmup_steps"] + result["steps"] == 16 * -(-result["rows"]["train"] // 64)
    loaded = load_run(path)
    assert loaded.names == ("g", "q", "W", "Z", "t", "discriminant")
    assert loaded.spec.score == (0, 0, 0, 0, 0, 1)
    formats = loaded.spec.precision["layers"]
    assert set(formats) == {"dense_0", "logits"}
    assert not any("auto" in text for roles in formats.values() for text in roles.values())
    # the teacher is nowhere in the student's checkpoint
    sizes = {name: array.shape for name, array in checkpoints.load(path, loaded.step, "weights").items()}
    assert sorted(sizes.values()) == [(6,), (6,), (6, 6), (6, 6)]
    assert result["parameters"] == sum(int(leaf.size) for leaf in jax.tree.leaves(parameters(loaded.model))) == 84


def test_reported_figures_are_those_of_the_golden_evaluator(student: tuple[Path, dict[str, Any]]) -> None:
    path, result = student
    loaded = load_run(path)
    network = lowered(loaded)
    with open_dataset(loaded.card) as dataset:
        rows = dataset.rows(range(len(dataset.clusters)), "validation")
    integers = evaluate(network, rows.x)
    logits = np.ldexp(integers.astype(np.float64), -network.structure["output"].f.astype(np.int32))
    np.testing.assert_array_equal(predict_rows(loaded, rows.x), logits)
    assert result["golden"]["differing_rows"] == 0
    assert result["golden"]["float32_exact"]
    probability = np.exp(logits[:, :5] - logits[:, :5].max(axis=1, keepdims=True))
    probability /= probability.sum(axis=1, keepdims=True)
    chosen = probability[np.arange(len(rows)), rows.label]
    assert result["golden"]["cross_entropy"] == pytest.approx(float(-(rows.weight * np.log(chosen)).sum() / rows.weight.sum()))
    assert result["golden"]["accuracy"] == pytest.approx(float(((logits[:, :5].argmax(axis=1) == rows.label) * rows.weight).sum() / rows.weight.sum()))
    assert result["golden"]["accuracy"] > 0.35  # five classes
    points = read_document(path / "working_points.json", "hlt-train/working-points", 1)
    assert points["integer"]
    assert points["points"][0]["integer_threshold"] in np.unique(graph.score(network, evaluate(network, _test(loaded).x))) or points["points"]


def _test(loaded: Any) -> Any:
    with open_dataset(loaded.card) as dataset:
        return dataset.rows(range(len(dataset.clusters)), "test")


def test_the_discriminant_is_learnt(student: tuple[Path, dict[str, Any]]) -> None:
    """The extra output ranks tops above light jets, and agrees with what the class logits say."""
    loaded = load_run(student[0])
    rows = _test(loaded)
    logits = predict_rows(loaded, rows.x)
    score, top, light = logits[:, 5], rows.label == 4, rows.label < 2
    assert (score[top][:, None] > score[light]).mean() > 0.7
    derived = logits[:, 4] - np.log(0.25 * np.exp(logits[:, 0]) + 0.75 * np.exp(logits[:, 1]))
    assert np.corrcoef(score, derived)[0, 1] > 0.8


@pytest.mark.usefixtures("compiled_anew")
@pytest.mark.parametrize("reports", [3, pytest.param(18, marks=pytest.mark.slow)])
def test_an_interrupted_student_is_the_undisturbed_one(teacher: Path, student: tuple[Path, dict[str, Any]], tmp_path: Path, reports: int) -> None:
    """SIGTERM in the warm-up, and on the grid; resumed to the same bits."""
    path = tmp_path / "r"
    with pytest.raises(Interrupted) as stopped:
        distil(config(teacher, length="16epochs", learning_rate=0.03, share=0.9, temperature=3.0, scan=10), path, progress=Stopper(reports))
    assert f"distil --resume {path}" in str(stopped.value)
    assert not finished(path)
    result = resume(path, progress=QUIET)
    assert weights_hash(path) == weights_hash(student[0])
    assert weights_hash(path, "BEST") == weights_hash(student[0], "BEST")
    assert result["golden"] == student[1]["golden"]
    assert load_run(path).spec == load_run(student[0]).spec


@pytest.mark.slow
def test_a_longer_student(teacher: Path, tmp_path: Path) -> None:
    path = tmp_path / "r"
    first = distil(config(teacher, schedule={"name": "constant_schedule"}), path, progress=QUIET)
    longer = resume(path, length="3epochs", progress=QUIET)
    assert longer["warmup_steps"] == first["warmup_steps"]
    assert longer["steps"] == first["steps"] + -(-first["rows"]["train"] // 64)


def test_teacher_logits_are_cached_by_identity(teacher: Path, student: tuple[Path, dict[str, Any]]) -> None:
    arrays = read_arrays(student[0] / "teacher_logits.npz")
    document = read_document(student[0] / "teacher_logits.json", "hlt-train/teacher-logits", 1)
    loaded = load_run(teacher)
    with open_dataset(loaded.card) as dataset:
        rows = dataset.rows(range(len(dataset.clusters)), "validation")
        keys = dataset.identity_keys(rows)
    stored = {key.tobytes(): logits for key, logits in zip(arrays["keys"], arrays["logits"], strict=True)}
    assert len(stored) == document["identities"]
    found = np.stack([stored[key.tobytes()] for key in keys])
    np.testing.assert_array_equal(found, predict_rows(loaded, rows.x))


def test_another_card_is_joined_by_identity(card: Path, teacher: Path) -> None:
    """Fewer inputs, other splits, the files in another order: every row finds its teacher."""
    subset = change(card, "subset.yaml", (_inputs(card), SUBSET), ("train: 0.7, validation: 0.2", "train: 0.3, validation: 0.6"))
    result = dry_run(config(teacher, subset), progress=QUIET)
    assert result["teacher"]["unmatched"] == 0
    assert result["inputs"] == {"hlf": [3]}
    assert result["rows"]["validation"] > 500


def _inputs(card: Path) -> str:
    return next(line for line in card.read_text().splitlines() if line.startswith("inputs:"))


def test_unmatched_rows_are_counted_and_refused(card: Path, teacher: Path, tmp_path: Path) -> None:
    more = card.parent / "more"
    write_card(more, files=1, rows=400)
    both = change(card, "both.yaml", (f'["{card.parent}/jets_*.root"]', f'["{card.parent}/jets_*.root", "{more}/jets_*.root"]'))
    for file in more.glob("jets_*.root"):
        from hlt_train.datasets.jets import write_jets

        file.unlink()
        write_jets(file, 400, seed=99)
    with pytest.raises(UsageError, match="are not in the teacher's card"):
        distil(config(teacher, both), tmp_path / "r", progress=QUIET)
    assert not (tmp_path / "r").exists()
    result = dry_run(config(teacher, both, max_unmatched=0.5), progress=QUIET)
    assert 0 < result["teacher"]["unmatched"] <= 400


def test_offline_inputs_are_refused(card: Path, teacher: Path, tmp_path: Path) -> None:
    variables = _inputs(card).partition("[")[2].partition("]")[0]
    offline = change(card, "offline.yaml", (_inputs(card), f"inputs: {{hlf: {{available: offline, vars: [{variables}]}}}}"))
    with pytest.raises(UsageError) as caught:
        distil(config(teacher, offline), tmp_path / "r", progress=QUIET)
    assert "offline inputs hlf" in str(caught.value)
    assert "--allow-offline" in str(caught.value)
    assert dry_run(config(teacher, offline, allow_offline=True), progress=QUIET)["inputs"] == {"hlf": [6]}


@pytest.mark.parametrize("layer", [{"dense_0": {"weights": "fixed<8,-8>"}}, {"dense_0": {"activations": "ufixed<4,-9>"}}])
def test_a_format_that_overflows(teacher: Path, tmp_path: Path, layer: dict[str, Any]) -> None:
    with pytest.raises(RunFailed) as caught:
        distil(config(teacher, precision={"layers": layer}), tmp_path / "r", progress=QUIET)
    assert "saturate" in str(caught.value)
    assert "precision.layers.dense_0" in str(caught.value)


def test_other_refusals(card: Path, teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="auto need a float warm-up"):
        distil(config(teacher, warmup=0), tmp_path / "r", progress=QUIET)
    with pytest.raises(UsageError, match="no layer 'dens_0'"):
        distil(config(teacher, precision={"layers": {"dens_0": {"weights": "fixed<8,2>"}}}, length="1steps"), tmp_path / "r", progress=QUIET)
    other = change(card, "classes.yaml", ("classes: [g, q, W, Z, t]", "classes: [g, q, W, Z, top]"), ("[t]", "[top]"))
    with pytest.raises(UsageError, match="the card has g, q, W, Z, top"):
        distil(config(teacher, other), tmp_path / "r", progress=QUIET)
    with pytest.raises(UsageError, match="add --seeds"):
        distil(config(teacher, lr_scan=[0.1, 0.2]), tmp_path / "r", progress=QUIET)
    assert not (tmp_path / "r").exists()


def test_concrete_formats_need_no_warm_up(teacher: Path, tmp_path: Path) -> None:
    precision = {"weights": "fixed<6,1>,floor,sat_sym", "bias": "fixed<6,2>", "activations": "ufixed<5,2>,half_up,wrap", "inputs": "fixed<8,4>"}
    result = distil(config(teacher, warmup=0, precision=precision, model={"name": "mlp", "widths": [5, 4]}), tmp_path / "r", progress=QUIET)
    assert result["warmup_steps"] == 0
    assert not (tmp_path / "r" / "warmup").exists()
    assert result["golden"]["differing_rows"] == 0


def test_a_float_student(teacher: Path, tmp_path: Path) -> None:
    result = distil(config(teacher, precision=None), tmp_path / "r", progress=QUIET)
    assert result["golden"] is None
    assert load_run(tmp_path / "r").names == ("g", "q", "W", "Z", "t")


def test_dry_run(teacher: Path) -> None:
    assert dry_run(config(teacher), progress=QUIET)["outputs"] == ["g", "q", "W", "Z", "t", "discriminant"]


def test_padding_and_inputs_survive_the_run(student: tuple[Path, dict[str, Any]]) -> None:
    """The stored normalisation is the one that the graph's input step was built from."""
    loaded = load_run(student[0])
    node = lowered(loaded).nodes[0]
    again = normalise.load(student[0] / "normalisation.json")
    assert node.centre.tobytes() == again["hlf"].centre.tobytes()  # type: ignore[attr-defined]

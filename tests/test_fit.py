"""`fit` end to end on small files: what it writes, what it repeats, what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from hlt_train import checkpoints, devices
from hlt_train.configuration import check, merge, steps_of
from hlt_train.errors import RunFailed, UsageError
from hlt_train.files import read_document, sha256
from hlt_train.fit import FitConfig, dry_run, fit, resume
from hlt_train.progress import Progress
from hlt_train.restore import load_run, parameters, predict_rows
from hlt_train.run import Run, read_config
from hlt_train.types import Features
from tests.runs import config, steady, write_card

QUIET = Progress(quiet=True)


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_card(tmp_path_factory.mktemp("jets"))


@pytest.fixture(scope="module")
def trained(card: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    path = tmp_path_factory.mktemp("runs") / "first"
    return path, fit(config(card, length="6epochs", learning_rate=0.02), path, progress=QUIET)


def weights(path: Path, which: str = "LAST") -> str:
    step = checkpoints.pointed(path, which)
    return sha256(path / "checkpoints" / str(step) / "weights.npz")


def lines(path: Path) -> list[dict[str, Any]]:
    with Run.open(path) as run:
        return steady(run.metrics())


def test_it_learns_and_writes_all_there_is_to_know(trained: tuple[Path, dict[str, Any]]) -> None:
    path, result = trained
    assert result["validation"]["accuracy"] > 0.4  # five classes
    assert result["steps"] == 6 * -(-result["rows"]["train"] // 64)
    assert result["parameters"] == 6 * 8 + 8 + 8 * 5 + 5
    names = {"config.yaml", "model.json", "normalisation.json", "provenance.json", "metrics.jsonl", "log.txt", "constraints.txt", "LAST", "BEST", "checkpoints"}
    assert {p.name for p in path.iterdir()} == names | {".lock"}
    provenance = read_document(path / "provenance.json", "hlt-train/provenance", 1)
    files = provenance["data"]["samples"]["jets"]["files"]
    assert [file["entries"] for file in files] == [250] * 4
    assert all(len(file["uuid"]) == 36 for file in files)
    assert provenance["environment"]["nproc"]
    assert provenance["environment"]["versions"]["jax"] == jax.__version__
    epochs = [line for line in lines(path) if line["event"] == "epoch"]
    assert [line["epoch"] for line in epochs] == [1, 2, 3, 4, 5, 6]
    assert epochs[-1]["loss"] < epochs[0]["loss"]
    best = min(epochs, key=lambda line: line["validation"]["loss"])
    assert result["best"] == {"step": best["step"], "loss": best["validation"]["loss"]}
    assert checkpoints.pointed(path, "BEST") == best["step"]
    assert not [p for p in path.rglob("*") if p.suffix in (".pkl", ".pickle")]


@pytest.mark.usefixtures("compiled_anew")
def test_its_configuration_reruns_it(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    stored = read_config(trained[0])
    fit(check(FitConfig, stored), tmp_path / "again", progress=QUIET)
    assert weights(tmp_path / "again") == weights(trained[0])
    assert lines(tmp_path / "again") == lines(trained[0])
    assert read_config(tmp_path / "again") == stored


@pytest.mark.usefixtures("compiled_anew")
@pytest.mark.parametrize(
    "change",
    [
        *(pytest.param(one, marks=pytest.mark.slow) for one in ({"scan": 3}, {"resident": "never"}, {"checkpoint_every": 5})),
        {"resident": "never", "scan": 7, "checkpoint_every": 4},
    ],
)
def test_bits_do_not_depend_on_how_the_work_is_cut(change: dict[str, Any], trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    fit(check(FitConfig, {**read_config(trained[0]), **change}), tmp_path / "r", progress=QUIET)
    assert lines(tmp_path / "r") == lines(trained[0])
    assert weights(tmp_path / "r") == weights(trained[0])


def test_other_seeds_are_other_runs(card: Path, tmp_path: Path) -> None:
    for seed in (1, 2):
        fit(config(card, length="1epochs", seed=seed), tmp_path / str(seed), progress=QUIET)
    assert weights(tmp_path / "1") != weights(tmp_path / "2")


def test_two_devices_equal_one_to_rounding(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Partial last batches included: 12 steps an epoch, the last one not full."""
    result = fit(check(FitConfig, {**read_config(trained[0]), "devices": 2}), tmp_path / "two", progress=QUIET)
    one, two = load_run(trained[0], "LAST"), load_run(tmp_path / "two", "LAST")
    for a, b in zip(jax.tree.leaves(parameters(one.model)), jax.tree.leaves(parameters(two.model)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)
    assert result["validation"]["loss"] == pytest.approx(trained[1]["validation"]["loss"], rel=1e-4)


def test_restored_network_predicts_what_was_validated(trained: tuple[Path, dict[str, Any]]) -> None:
    from hlt_train.data.dataset import open_dataset

    loaded = load_run(trained[0])
    assert loaded.names == ("g", "q", "W", "Z", "t")
    with open_dataset(loaded.card) as dataset:
        rows = dataset.rows(range(len(dataset.clusters)), "validation")
    logits = predict_rows(loaded, rows.x)
    assert (logits.argmax(axis=1) == rows.label).mean() == pytest.approx(trained[1]["validation"]["accuracy"], abs=1e-6)
    some = Features({"hlf": rows.x.groups["hlf"][:7]}, {})
    assert predict_rows(loaded, some).tobytes() == logits[:7].tobytes()


@pytest.mark.usefixtures("compiled_anew")
def test_extension_and_completion(card: Path, tmp_path: Path) -> None:
    """With a constant rate, 2 epochs extended to 4 are 4 epochs."""
    schedule = {"schedule": {"name": "constant_schedule"}}
    fit(config(card, length="4epochs", **schedule), tmp_path / "long", progress=QUIET)
    fit(config(card, length="2epochs", **schedule), tmp_path / "short", progress=QUIET)
    done = resume(tmp_path / "short", progress=QUIET)
    assert done["stopped"] == "complete"
    assert done["rows_per_s"] is None
    resume(tmp_path / "short", length="4epochs", progress=QUIET)
    assert weights(tmp_path / "short") == weights(tmp_path / "long")
    assert lines(tmp_path / "short") == lines(tmp_path / "long")
    assert read_config(tmp_path / "short")["for"] == "4epochs"


def test_resume_refuses_another_machine(card: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r"
    fit(config(card, length="1epochs"), path, progress=QUIET)
    monkeypatch.setattr(devices, "_cpu", lambda: ("another processor", ["avx2"]))
    with pytest.raises(UsageError, match=r"not bit for bit: .*another processor"):
        resume(path, length="2epochs", progress=QUIET)
    assert read_config(path)["for"] == "1epochs"
    assert resume(path, length="2epochs", inexact=True, progress=QUIET)["epochs"] == 2
    assert "not bit for bit" in (path / "log.txt").read_text()


def test_resume_refuses_other_files(tmp_path: Path) -> None:
    card = write_card(tmp_path / "data", files=2, rows=200)
    fit(config(card, length="1epochs"), tmp_path / "r", progress=QUIET)
    (tmp_path / "data" / "jets_01.root").unlink()
    with pytest.raises(UsageError, match="the input files"):
        resume(tmp_path / "r", length="2epochs", progress=QUIET)


def test_weights_of_another_run(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    card = write_card(tmp_path / "data", files=1, rows=300)
    content = {**config(card).stored(), "init_from": str(trained[0]), "model": {}, "for": "1steps", "learning_rate": 1e-9}
    fit(check(FitConfig, content), tmp_path / "r", progress=QUIET)
    parent, child = load_run(trained[0]), load_run(tmp_path / "r", "LAST")
    for a, b in zip(jax.tree.leaves(parameters(parent.model)), jax.tree.leaves(parameters(child.model)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-7)
    assert child.inputs["hlf"].centre.tobytes() == parent.inputs["hlf"].centre.tobytes()
    found = read_document(tmp_path / "r" / "provenance.json", "hlt-train/provenance", 1)["parent"]
    assert found == {"path": str(trained[0]), "step": checkpoints.pointed(trained[0], "BEST"), "which": "BEST"}
    resume(tmp_path / "r", length="2steps", progress=QUIET)


def test_early_stopping(card: Path, tmp_path: Path) -> None:
    result = fit(config(card, length="50epochs", learning_rate=0.5, patience=2, schedule={"name": "constant_schedule"}), tmp_path / "r", progress=QUIET)
    losses = [line["validation"]["loss"] for line in lines(tmp_path / "r") if line["event"] == "epoch"]
    assert result["stopped"] == "patience"
    assert len(losses) < 50
    assert min(losses[-2:]) >= min(losses) == losses[-3]
    assert resume(tmp_path / "r", progress=QUIET)["stopped"] == "patience"


def test_divergence_names_the_step_and_keeps_the_last_good_checkpoint(card: Path, tmp_path: Path) -> None:
    content = config(
        card, length="30epochs", learning_rate=1e30, optimizer={"name": "sgd"}, schedule={"name": "warmup_constant_schedule", "warmup_steps": 10**6}
    )
    with pytest.raises(RunFailed, match=r"not finite at step (\d+) \(epoch"):
        fit(content, tmp_path / "r", progress=QUIET)
    last = checkpoints.pointed(tmp_path / "r", "LAST")
    if last is not None:
        assert all(np.isfinite(a).all() for a in checkpoints.load(tmp_path / "r", last, "weights").values())


def test_divergence_after_good_epochs(card: Path, tmp_path: Path) -> None:
    """The rate explodes in the third epoch; the best epoch had not been written yet, and is."""
    schedule = {"name": "exponential_decay", "decay_rate": 1e38, "transition_begin": 25, "transition_steps": 5, "staircase": True}
    with pytest.raises(RunFailed, match="the last good checkpoint is step"):
        fit(config(card, length="30epochs", optimizer={"name": "sgd"}, schedule=schedule), tmp_path / "r", progress=QUIET)
    last = checkpoints.pointed(tmp_path / "r", "LAST")
    assert last == checkpoints.pointed(tmp_path / "r", "BEST")
    assert last is not None
    assert load_run(tmp_path / "r").step == last


def test_dry_run_writes_nothing(card: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    found = dry_run(config(card), tmp_path, progress=QUIET)
    assert sorted(tmp_path.rglob("*")) == before
    assert found["inputs"] == {"hlf": [6]}
    assert found["outputs"] == ["g", "q", "W", "Z", "t"]
    assert found["parameters"][".layers[0].linear.weight"] == [8, 6]
    assert found["device_bytes"] > found["decoded_bytes"]
    assert found["first_loss"] == pytest.approx(np.log(5), abs=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 63, "devices": 2}, "--batch 63 cannot be shared equally by --devices 2"),
        ({"devices": 9}, "--devices 9"),
        ({"model": {"name": "mpl"}}, "mpl"),
        ({"model": {"name": "mlp", "width": 3}}, "width"),
        ({"optimizer": {"name": "adamm"}}, "adamm"),
        ({"optimizer": {"name": "adam", "b3": 1}}, "b3"),
        ({"schedule": {"name": "cosine_schedule"}}, "cosine_schedule"),
        ({"strategy": {"name": "sync", "period": 3}}, "period"),
        ({"for": "20 weeks"}, "20 weeks"),
    ],
)
def test_refusals_come_before_anything_is_written(change: dict[str, Any], message: str, card: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        fit(check(FitConfig, {**config(card).stored(), **change}), tmp_path / "r", progress=QUIET)
    assert message in str(caught.value)
    assert caught.value.near or caught.value.then
    assert not (tmp_path / "r").exists()


def test_configuration_errors_name_the_key(card: Path) -> None:
    with pytest.raises(UsageError, match="no option is called 'batchs'") as caught:
        check(FitConfig, {"batchs": 3})
    assert "batch" in caught.value.near
    with pytest.raises(UsageError, match="learning_rate"):
        check(FitConfig, {"learning_rate": -1})
    with pytest.raises(UsageError, match=r"card\.inputs"):
        check(FitConfig, merge(config(card).stored(), {"card": {"inputs": {"hlf": {"vars": {"jet_mass": {"centr": 1}}}}}}))


def test_merge_drops_the_options_of_another_plugin() -> None:
    low = {"model": {"name": "mlp", "widths": [3]}, "batch": 1}
    assert merge(low, {"model": {"name": "deepsets"}}) == {"model": {"name": "deepsets"}, "batch": 1}
    assert merge(low, {"model": {"widths": [4]}}, {"batch": 2}) == {"model": {"name": "mlp", "widths": [4]}, "batch": 2}
    assert low == {"model": {"name": "mlp", "widths": [3]}, "batch": 1}


@pytest.mark.parametrize(
    ("text", "steps"), [("20epochs", 200), ("1 epoch", 10), ("0.25epochs", 3), ("7steps", 7), ("3e2events", 4), ("950events", 10), ("1e3rows", 11)]
)
def test_lengths(text: str, steps: int) -> None:
    assert steps_of(text, rows=950, steps_per_epoch=10) == steps


@pytest.mark.parametrize("text", ["", "20", "epochs", "1.2.3epochs", "20 epoches", "0epochs"])
def test_lengths_that_are_none(text: str) -> None:
    with pytest.raises(UsageError):
        steps_of(text, rows=950, steps_per_epoch=10)

"""Comparisons over seeds: folders, resume, the choice of RUN, paired errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hlt_train import checkpoints
from hlt_train.comparison import paired
from hlt_train.distil import distil, finished, resume
from hlt_train.errors import Interrupted, UsageError
from hlt_train.files import read_document, sha256
from hlt_train.fit import fit
from hlt_train.progress import Progress
from hlt_train.restore import load_run
from hlt_train.run import read_config
from tests import runs
from tests.distillation import Stopper, config, write_card

QUIET = Progress(quiet=True)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jets")
    fit(runs.config(write_card(folder), length="4epochs", learning_rate=0.02), folder / "teacher", progress=QUIET)
    return folder / "teacher"


@pytest.mark.slow
def test_a_comparison_interrupted_and_resumed(teacher: Path, tmp_path: Path) -> None:
    path = tmp_path / "r"
    precision = {"weights": "fixed<8,2>", "bias": "fixed<8,2>", "activations": "ufixed<8,3>"}
    asked = config(
        teacher,
        seeds=2,
        lr_scan=[0.001, 0.03],
        length="1epochs",
        warmup=0.0,
        precision=precision,
    )
    with pytest.raises(Interrupted) as stopped:
        distil(asked, path, progress=Stopper(4))
    assert f"distil --resume {path}" in str(stopped.value)
    ready = list(path.rglob("student.json"))
    assert ready
    before = {p: p.stat().st_mtime_ns for p in ready}
    result = resume(path, progress=QUIET)
    assert {p: p.stat().st_mtime_ns for p in ready if p.exists()}.items() <= before.items()  # nothing finished is trained again
    arms = {k: [path / "seeds" / str(k) / arm for arm in ("alone", "distilled")] for k in (0, 1)}
    assert all(finished(folder) for folders in arms.values() for folder in folders)
    for k, (alone, distilled) in arms.items():
        assert [read_config(p)["lambda"] for p in (alone, distilled)] == [0.0, 1.0]
        assert [read_config(p)["seed"] for p in (alone, distilled)] == [1 + k, 1 + k]
        assert load_run(alone).spec == load_run(distilled).spec
    found = result["comparison"]
    assert read_document(path / "seeds.json", "hlt-train/seeds", 1)["difference"] == found["difference"]
    assert set(found["learning_rates"].values()) <= {0.001, 0.03}
    assert found["learning_rates"]["alone"] == read_config(arms[1][0])["learning_rate"]
    assert found["arms"]["distilled"]["value"] == pytest.approx(np.mean(found["arms"]["distilled"]["per_seed"]))
    assert found["teacher"] is not None
    if found["ratio"] is not None:  # with so few events the teacher may accept no signal in some replica
        assert found["ratio"]["distilled"]["low"] < found["ratio"]["distilled"]["value"]
    # RUN is the chosen student, and loads like any run
    chosen = path / found["chosen"]
    assert chosen.name == "distilled"
    weights = [sha256(p / "checkpoints" / str(checkpoints.pointed(p, "BEST")) / "weights.npz") for p in (path, chosen)]
    assert weights[0] == weights[1]
    assert load_run(path).spec == load_run(chosen).spec
    assert read_config(path)["seeds"] == 2


def test_refusals(teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not listen to the teacher"):
        distil(config(teacher, seeds=2, share=0.0), tmp_path / "a", progress=QUIET)


def test_paired_errors() -> None:
    """What seeds share cancels in the difference; what events share cancels in the replicas."""
    rng = np.random.default_rng(0)
    shared_seed, shared_event = rng.normal(0, 1, 500), rng.normal(0, 1, 400)
    gain = 0.1 + 0.01 * rng.normal(0, 1, 500)
    replicas = [shared_event + 0.02 * rng.normal(0, 1, (500, 400)) for _ in range(2)]
    alone, both = paired(shared_seed, replicas[0]), paired(gain, replicas[1] - replicas[0])
    assert alone["seeds_error"] == pytest.approx(1 / np.sqrt(500), rel=0.15)
    assert alone["events_error"] == pytest.approx(1, rel=0.15)
    assert both["seeds_error"] == pytest.approx(0.01 / np.sqrt(500), rel=0.15)
    assert both["events_error"] == pytest.approx(np.sqrt(2) * 0.02 / np.sqrt(500), rel=0.2)
    assert both["value"] == pytest.approx(0.1, abs=5 * both["seeds_error"])
    assert both["significance"] > 3
    assert paired(np.array([1.0]), replicas[0][:1])["seeds_error"] is None

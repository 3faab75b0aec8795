"""Students in formats of which a run must find or give up something: minifloat activations, lowered or for training only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hlt_train.distil import distil
from hlt_train.errors import UsageError
from hlt_train.files import read_document
from hlt_train.fit import fit
from hlt_train.graph import Requant
from hlt_train.progress import Progress
from hlt_train.restore import load_run
from hlt_train.student import lowered
from tests import runs
from tests.distillation import config

QUIET = Progress(quiet=True)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    path = folder / "teacher"
    fit(
        runs.config(runs.write_card(folder, files=4, rows=250), length="2epochs", learning_rate=0.02, model={"name": "mlp", "widths": [8]}),
        path,
        progress=QUIET,
    )
    return path


def trained(teacher: Path, path: Path, precision: dict[str, Any], **options: Any) -> dict[str, Any]:
    return distil(config(teacher, precision=precision, **{"length": "6epochs", "learning_rate": 0.03, **options}), path, progress=QUIET)


def test_minifloat_activations_are_chosen_trained_and_lowered(teacher: Path, tmp_path: Path) -> None:
    path = tmp_path / "student"
    result = trained(teacher, path, {"activations": "minifloat<4,3,auto>", "weights": "fixed<6,auto>"})
    assert result["golden"]["differing_rows"] == 0
    assert result["golden"]["accuracy"] > 0.3  # five classes
    text = result["formats"]["layers"]["dense_0"]["activations"]
    assert text.startswith("minifloat<4,3,")
    assert "auto" not in text
    (act,) = [node for node in lowered(load_run(path)).nodes if isinstance(node, Requant)]
    assert (act.quant.mantissa, act.quant.over) == (3, "sat_sym")


@pytest.mark.slow
def test_what_no_contract_holds_is_trained_and_says_so(teacher: Path, tmp_path: Path) -> None:
    path = tmp_path / "student"
    wide = {"activations": "minifloat<5,2,auto>", "weights": "minifloat<5,2,auto>"}
    result = trained(teacher, path, wide, length="2epochs")
    assert "for training only" in result["training_only"]
    assert result["golden"] is result["post_training"] is None
    assert result["working_points"] == []
    assert read_document(path / "student.json", "hlt-train/student", 1)["training_only"] == result["training_only"]
    with pytest.raises(UsageError, match="layer 'logits' is for training only"):
        lowered(load_run(path))
    with pytest.raises(UsageError, match="compared as the integers they are") as caught:
        trained(teacher, tmp_path / "arms", wide, seeds=2)
    assert caught.value.where == "precision"
    assert not (tmp_path / "arms").exists()

"""Students in formats of which a run must find or give up something: minifloat activations, lowered or for training only; dynamic exponents."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import pytest

from hlt_train import checkpoints
from hlt_train.distil import distil, resume
from hlt_train.errors import Interrupted, UsageError
from hlt_train.files import read_document, sha256
from hlt_train.fit import fit
from hlt_train.graph import Requant, evaluate
from hlt_train.progress import Progress
from hlt_train.restore import load_run, lowered, parameters
from tests import graphs, runs
from tests.distillation import Stopper, config

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


@pytest.mark.slow
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


# Exponents that follow, beside a layer of minifloats.
DYNAMIC = {"weights": "dynamic<6>", "bias": "dynamic<6>", "activations": "udynamic<6>", "every": 64, "overflow": 0.01}
DYNAMIC |= {"layers": {"dense_1": {"activations": "minifloat<4,3,auto>"}}}
WIDTHS = {"name": "mlp", "widths": [6, 5]}


@pytest.fixture(scope="module")
def dynamic(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    path = tmp_path_factory.mktemp("dynamic") / "student"
    return path, trained(teacher, path, DYNAMIC, scan=4, model=WIDTHS)


def exponents(path: Path, which: str) -> dict[str, list[float]]:
    """By name, the integer bits in a checkpoint."""
    step = checkpoints.pointed(path, which)
    assert step is not None
    return {name: array[:, 0].tolist() for name, array in checkpoints.load(path, step, "weights").items() if "exponents" in name}


def integer(text: str) -> int:
    """I of `fixed<W,I>`."""
    return int(text.partition("<")[2].partition(">")[0].split(",")[1])


def test_dynamic_formats_follow_and_are_static_when_lowered(dynamic: tuple[Path, dict[str, Any]]) -> None:
    path, result = dynamic
    document = read_document(path / "model.json", "hlt-train/model", 2)
    first, last = document["moving"]["layers"], document["precision"]["layers"]
    assert {text.partition("<")[0] for roles in first.values() for text in roles.values()} == {"dynamic", "udynamic", "minifloat"}
    assert {text.partition("<")[0] for roles in last.values() for text in roles.values()} == {"fixed", "ufixed", "minifloat"}
    told = list(exponents(path, "BEST").values())
    moving = {"dense_0": ("weights", "bias", "activations"), "dense_1": ("weights", "bias"), "logits": ("weights", "bias")}
    assert told == [[integer(last[name][role]) for role in roles] for name, roles in moving.items()]
    assert told != [[integer(first[name][role]) for role in roles] for name, roles in moving.items()]
    assert result["formats"]["layers"] == last
    assert result["golden"]["differing_rows"] == 0
    loaded = load_run(path)
    assert result["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(parameters(loaded.model)))  # exponents are none
    (mini,) = [node for node in lowered(loaded).nodes if isinstance(node, Requant) and node.quant.mantissa is not None]
    assert (mini.name, mini.quant.mantissa) == ("dense_1_out", 3)
    assert loaded.spec.moving == document["moving"]
    assert evaluate(lowered(loaded), graphs.features(lowered(loaded), 10)).shape == (10, 5)


def test_a_checkpoint_is_lowered_with_its_own_exponents(dynamic: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Whatever model.json says of BEST."""
    path = tmp_path / "copy"
    shutil.copytree(dynamic[0], path)
    content = (path / "model.json").read_text()
    document = json.loads(content)
    text = document["precision"]["layers"]["dense_0"]["weights"]
    (path / "model.json").write_text(content.replace(text, "fixed<6,7>,half_even,sat"))
    assert load_run(path).spec.precision["layers"]["dense_0"]["weights"] == text  # type: ignore[index]


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_anew")
def test_an_interrupted_dynamic_student_is_the_undisturbed_one(teacher: Path, dynamic: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "student"
    with pytest.raises(Interrupted):
        distil(config(teacher, precision=DYNAMIC, length="6epochs", learning_rate=0.03, scan=4, model=WIDTHS), path, progress=Stopper(12))
    assert checkpoints.pointed(path, "LAST") is not None  # in the middle of the training on the grid
    assert load_run(path, "LAST").spec.moving is not None  # and it can be looked at
    result = resume(path, progress=QUIET)
    assert result["golden"] == dynamic[1]["golden"]
    assert exponents(path, "LAST") == exponents(dynamic[0], "LAST")
    same = [sha256(run / "checkpoints" / str(checkpoints.pointed(run, "LAST")) / "weights.npz") for run in (path, dynamic[0])]
    assert same[0] == same[1]
    assert (path / "model.json").read_text() == (dynamic[0] / "model.json").read_text()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"warmup": 0.0}, "need a float warm-up"),
        ({"low_precision": {}}, "not with low_precision"),
        ({"strategy": {"name": "easgd"}}, "not with strategy 'easgd'"),
        ({"transport": {"name": "lockstep", "wire": "int8"}}, "not with messages in int8"),
    ],
)
def test_dynamic_formats_refuse(teacher: Path, tmp_path: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        trained(teacher, tmp_path / "student", DYNAMIC, **options)
    assert not (tmp_path / "student").exists()

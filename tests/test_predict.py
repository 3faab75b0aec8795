"""`predict` end to end: the same scores and decisions as evaluation, in the order of the files, whole files or none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import uproot

from hlt_train.data.card import Card
from hlt_train.data.dataset import open_dataset
from hlt_train.errors import RunFailed, UsageError
from hlt_train.export import export
from hlt_train.predict import predict
from hlt_train.scorers import scorer
from tests.networks import QUIET, columns, content, problem, train
from tests.rootfiles import write_tree


def read(path: Path) -> dict[str, np.ndarray]:
    with uproot.open(path) as file:
        return {name: branch.array(library="np") for name, branch in file["Scores"].items()}


@pytest.mark.parametrize("which", ["float", "fixed"])
def test_scores_bits_and_identity(which: str, tmp_path: Path) -> None:
    made = problem()
    run = made.float_run if which == "float" else made.fixed_run
    result = predict(run, [str(made.folder / "events.root")], tmp_path / "s.root", progress=QUIET)
    found, written = read(tmp_path / "s.root"), columns()
    assert result["rows"] == len(found["run"]) == len(written["run"])
    for name in ("run", "luminosityBlock", "event", "nPU"):
        assert np.array_equal(found[name], written[name])
    network = scorer(run)
    assert network.points is not None
    with open_dataset(made.card) as dataset:
        for split in ("train", "validation", "test"):
            for rows in dataset.iterate(split):
                scores = network.score(rows.x)
                place = rows.identity[:, 2]
                assert scores.score is not None
                assert np.array_equal(found["discriminant"][place], scores.score * 2.0 ** -(network.exponent or 0))
                if which == "fixed":
                    assert np.array_equal(found["integer_score"][place], scores.score)
    np.testing.assert_allclose(found["score_qcd"] + found["score_hh"], 1, rtol=1e-6)
    for point in network.points["points"]:
        threshold = point["threshold"] if which == "float" else point["integer_threshold"]
        expected = found["discriminant" if which == "float" else "integer_score"] >= threshold
        assert np.array_equal(found[f"pass_{point['name']}"], expected)
        assert result["passing"][point["name"]] == expected.sum() > 0
    assert ("integer_score" in found) == (which == "fixed")
    assert "label" not in found  # the classes are samples, and the file was given without one
    with uproot.open(tmp_path / "s.root") as file:
        assert json.loads(str(file["provenance"]))["which"] == network.which


def test_samples_of_the_card_bring_selection_and_label(tmp_path: Path) -> None:
    made = problem()
    file = made.folder / "events.root"
    result = predict(made.float_run, [f"qcd={file}"], tmp_path / "s.root", progress=QUIET)
    found = read(tmp_path / "s.root")
    assert result["labelled"]
    assert np.array_equal(found["event"], columns()["event"][columns()["label"] == 0])
    assert (found["label"] == 0).all()


def test_an_export_without_its_run(tmp_path: Path) -> None:
    made = problem()
    export(made.fixed_run, ["onnx"], tmp_path / "out", n_vectors=1000, progress=QUIET)
    file = str(made.folder / "events.root")
    predict(made.fixed_run, [file], tmp_path / "run.root", progress=QUIET)
    predict(tmp_path / "out" / "onnx", [file], tmp_path / "export.root", progress=QUIET)
    run, artefact = read(tmp_path / "run.root"), read(tmp_path / "export.root")
    assert run.keys() == artefact.keys()
    assert all(np.array_equal(run[name], artefact[name]) for name in run)


def test_files_without_labels_weights_and_observers(tmp_path: Path) -> None:
    made = problem()
    data = columns(700, seed=5, label=False)
    del data["nPU"]
    files = [str(write_tree(tmp_path / f"data_{k}.root", {n: v[k::2] for n, v in data.items()}, basket=100)) for k in range(2)]
    lines: list[str] = []
    quiet = type("Lines", (type(QUIET),), {"__call__": lambda self, text: lines.append(text)})(quiet=True)
    result = predict(made.float_run, [str(tmp_path / "data_*.root")], tmp_path / "s.root", progress=quiet)
    assert result["rows"] == 700
    assert not result["labelled"]
    assert any("observer 'nPU' is not in the files" in line for line in lines)
    assert np.array_equal(read(tmp_path / "s.root")["event"], np.concatenate([data["event"][0::2], data["event"][1::2]]))
    assert len(files) == 2


def test_labels_by_expression_are_written_where_the_file_has_them(tmp_path: Path) -> None:
    made = problem()
    file = made.folder / "events.root"
    labels = {"classes": ["a", "b"], "expression": "label"}
    objects = {"example": "object", "identity": ["event // 4"], "trigger": {"working_points": {"one": "mistag 5%"}}}
    card = Card.model_validate(content(file, samples={"all": {"files": [str(file)]}}, labels=labels) | objects)
    run = train(card, tmp_path / "run", length="1epochs")
    predict(run, [str(made.folder / "events.root")], tmp_path / "s.root", progress=QUIET)
    found = read(tmp_path / "s.root")
    assert np.array_equal(found["label"], columns()["label"])
    assert np.array_equal(found["event____4"], columns()["event"] // 4)
    assert "object" in found
    other = write_tree(tmp_path / "nolabel.root", columns(50, label=False))
    assert not predict(run, [str(other)], tmp_path / "t.root", progress=QUIET)["labelled"]


def test_nothing_is_overwritten_and_nothing_half_written(tmp_path: Path) -> None:
    made = problem()
    out = tmp_path / "s.root"
    out.write_bytes(b"mine")
    with pytest.raises(UsageError, match="exists already"):
        predict(made.float_run, [str(made.folder / "events.root")], out, progress=QUIET)
    assert out.read_bytes() == b"mine"
    bad = columns(3000)
    bad["x"][2500] = np.nan
    file = write_tree(tmp_path / "bad.root", bad, basket=500)
    with pytest.raises(RunFailed, match="'x' has 1 values that are NaN"):
        predict(made.float_run, [str(file)], tmp_path / "new.root", progress=QUIET)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.root", "s.root"]


def test_refusals(tmp_path: Path) -> None:
    made = problem()
    file = made.folder / "events.root"
    with pytest.raises(UsageError, match="no sample 'qdc'") as caught:
        predict(made.float_run, [f"qdc={file}"], tmp_path / "s.root", progress=QUIET)
    assert caught.value.near == ("qcd",)
    with pytest.raises(UsageError, match="some files have a sample's name"):
        predict(made.float_run, [f"qcd={file}", str(file)], tmp_path / "s.root", progress=QUIET)
    with pytest.raises(UsageError):
        predict(made.float_run, [str(tmp_path / "absent.root")], tmp_path / "s.root", progress=QUIET)
    assert not list(tmp_path.iterdir())

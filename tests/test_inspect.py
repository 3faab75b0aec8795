"""`inspect`: what it says of files and cards, and drafts that load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uproot
import yaml
from rootfiles import card_content, event_columns, write_tree

from hlt_train.data.card import load_card
from hlt_train.data.dataset import open_dataset
from hlt_train.data.draft import draft
from hlt_train.data.survey import survey
from hlt_train.errors import HltTrainError, UsageError
from hlt_train.inspect import card_text, draft_card, file_text, inspect_card, inspect_file, inspect_run, is_card
from hlt_train.run import Run


@pytest.fixture
def path(tmp_path: Path) -> Path:
    columns = event_columns(500)
    columns["x"][:3] = [np.nan, np.inf, np.nan]
    columns["constant"] = np.full(500, 3.5, np.float32)
    return write_tree(tmp_path / "data.root", columns, compression=uproot.LZ4(4))


def branch(found: dict[str, Any], name: str) -> dict[str, Any]:
    return next(b for b in found["branches"] if b["name"] == name)


def test_a_file_is_described(path: Path) -> None:
    found = inspect_file(str(path))
    columns = event_columns(500)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["trees"] == [{"name": "Events", "kind": "TTree", "title": "", "entries": 500, "branches": 11}]
    assert found["codecs"] == {"LZ4": 11} or set(found["codecs"]) == {"LZ4", "none"}
    y = branch(found, "y")
    assert (y["type"], y["depth"], y["dtype"]) == ("double", 0, "float64")
    assert (y["min"], y["max"]) == (columns["y"].min(), columns["y"].max())
    assert (branch(found, "x")["nan"], branch(found, "x")["inf"]) == (2, 1)
    assert branch(found, "constant")["constant"]
    assert not branch(found, "x")["constant"]
    assert branch(found, "part_pt")["multiplicity"]["max"] == 6
    assert any("x (2 NaN, 1 infinite)" in warning for warning in found["warnings"])
    assert any("constant in these entries" in warning and "constant" in warning for warning in found["warnings"])
    text = file_text(found)
    assert "LZ4" in text
    assert "Note: " in text


def test_only_the_first_entries_are_looked_at(path: Path) -> None:
    found = inspect_file(str(path), entries=10)
    assert found["inspected_entries"] == 10
    assert branch(found, "event")["max"] == 9


@pytest.mark.parametrize(
    ("codec", "name"), [(uproot.ZLIB(1), "ZLIB"), (uproot.ZSTD(1), "ZSTD"), (uproot.LZMA(1), "LZMA"), (uproot.LZ4(1), "LZ4"), (None, "none")]
)
def test_codecs_are_read_from_the_baskets(tmp_path: Path, codec: Any, name: str) -> None:
    path = tmp_path / "x.root"
    with uproot.recreate(path, compression=codec) as file:
        file.mktree("Events", {"x": np.dtype("f4")}).extend({"x": np.zeros(5000, np.float32)})
    assert survey(str(path))["codecs"] == {name: 1}


def test_a_header_that_says_otherwise_is_noted(tmp_path: Path) -> None:
    path = tmp_path / "x.root"
    with uproot.recreate(path, compression=uproot.ZLIB(1)) as file:
        file.mktree("Events", {"x": np.dtype("f4")}).extend({"x": np.zeros(5000, np.float32)})
        file.compression = uproot.ZSTD(3)
    found = inspect_file(str(path))
    assert found["codecs"] == {"ZLIB": 1}
    assert found["compression"].startswith("ZSTD")
    assert any("the file says ZSTD(3), its baskets are 1 x ZLIB" in warning for warning in found["warnings"])


def test_rntuples_are_described(tmp_path: Path) -> None:
    path = tmp_path / "x.root"
    with uproot.recreate(path, compression=uproot.ZSTD(3)) as file:
        file.mkrntuple("Events", {"x": np.zeros(5000, np.float32), "event": np.arange(5000)})
    found = inspect_file(str(path))
    assert found["trees"][0]["kind"] == "RNTuple"
    assert "ZSTD" in found["codecs"]
    assert branch(found, "event")["max"] == 4999


def test_origin_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "x.root"
    with uproot.recreate(path) as file:
        file["origin"] = "toy"
        file.mktree("Events", {"x": np.dtype("f4")}).extend({"x": np.zeros(5, np.float32)})
    found = inspect_file(str(path))
    assert found["origin"] == "toy"
    assert "not validated physics" in file_text(found)


def test_an_open_choice_of_trees_lists_them(tmp_path: Path) -> None:
    path = tmp_path / "x.root"
    with uproot.recreate(path) as file:
        for name in ("a", "b"):
            file.mktree(name, {"x": np.dtype("f4")}).extend({"x": np.zeros(5, np.float32)})
    found = inspect_file(str(path))
    assert found["tree"] is None
    assert "choose one with --tree" in file_text(found)
    assert inspect_file(str(path), "b")["tree"] == "b"
    with pytest.raises(UsageError, match="no tree 'c'"):
        inspect_file(str(path), "c")
    with pytest.raises(UsageError, match="choice of the tree is open"):
        draft_card(str(path))


def test_an_empty_tree_is_described(tmp_path: Path) -> None:
    found = inspect_file(str(write_tree(tmp_path / "x.root", event_columns(0))))
    assert found["trees"][0]["entries"] == 0
    assert "0 entries" in file_text(found)


def test_a_drafted_card_loads_opens_and_trains(tmp_path: Path) -> None:
    path = write_tree(tmp_path / "data.root", event_columns(300))
    text = draft_card(str(path))
    (tmp_path / "card.yaml").write_text(text)
    card = load_card(tmp_path / "card.yaml")
    assert card.identity == ["run", "luminosityBlock", "event"]
    assert list(card.inputs["scalars"].vars) == ["x", "y"]
    assert list(card.inputs["part"].vars) == ["part_pt", "part_eta"]
    assert card.labels.expression == "label"
    with open_dataset(card) as dataset:
        assert sum(dataset.size(split) for split in dataset.counts) == 300


def test_a_draft_without_labels_asks_for_the_other_sample(tmp_path: Path) -> None:
    columns = event_columns(50)
    del columns["label"]
    columns["GenMET_pt"] = columns["x"]
    columns["a/b"] = columns["x"]
    columns["y"][0] = np.nan
    path = write_tree(tmp_path / "data.root", {name: value for name, value in columns.items() if name != "a/b"})
    (tmp_path / "card.yaml").write_text(draft_card(str(path)))
    card = load_card(tmp_path / "card.yaml")
    assert card.nan == 0.0
    assert card.labels.by == "sample"
    assert "GenMET_pt" not in card.inputs["scalars"].vars
    assert card.inputs["scalars"].available == "offline"
    with pytest.raises(UsageError, match="sample 'background' has no files"):
        open_dataset(card)


def test_nothing_to_draft(tmp_path: Path) -> None:
    path = write_tree(tmp_path / "x.root", {"n": np.arange(5)})
    with pytest.raises(UsageError, match="no branch of the tree could be an input"):
        draft_card(str(path))
    facts = survey(str(write_tree(tmp_path / "y.root", {"x": np.arange(5.0)})))
    with pytest.raises(UsageError, match="no integer branch could identify"):
        draft(facts)


def write_card(tmp_path: Path, path: Path, **changes: Any) -> Path:
    card = tmp_path / "card.yaml"
    card.write_text(yaml.safe_dump(card_content(str(path), **changes)))
    return card


def test_a_card_is_described(tmp_path: Path, path: Path) -> None:
    card = write_card(tmp_path, path)
    found = inspect_card(str(card))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert sum(found["rows"].values()) == 500
    assert not found["checked"]
    text = card_text(found)
    for word in ("sample", "all", "training weight", "up to 4", "part_pt, part_eta"):
        assert word in text


def test_check_counts_what_is_not_finite(tmp_path: Path, path: Path) -> None:
    found = inspect_card(str(write_card(tmp_path, path)), check=True)
    assert found["nonfinite"] == {"x": 3}
    assert "NaN or infinite values: x: 3" in card_text(found)


def test_files_of_a_card_can_be_replaced(tmp_path: Path, path: Path) -> None:
    card = write_card(tmp_path, tmp_path / "absent.root")
    with pytest.raises(HltTrainError, match=r"no such file: absent\.root"):
        inspect_card(str(card))
    assert inspect_card(str(card), {"all": [str(path)]})["samples"]["all"]["entries"] == 500


@pytest.mark.parametrize(
    ("source", "card"), [("card.yaml", True), ("toy_jets", True), ("absent.root", False), ("there", False), ("root://server//file", False), ("x.yml", True)]
)
def test_what_is_a_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, card: bool) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there").write_text("text")
    assert is_card(source) is card


@pytest.mark.parametrize("verb", ["fit", "distil"])
def test_a_run_without_messages_is_finished_by_its_own_verb(tmp_path: Path, verb: str) -> None:
    with Run.create(tmp_path / "r") as run:
        run.write_config({"verb": verb})
    with pytest.raises(UsageError, match="sent no messages") as refused:
        inspect_run(tmp_path / "r")
    assert f"hlt-train {verb} --resume" in str(refused.value.then)

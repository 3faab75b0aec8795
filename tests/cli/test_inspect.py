"""`hlt-train inspect`: text, JSON, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rootfiles import card_content, event_columns, write_tree

from hlt_train.cli import main
from hlt_train.data.card import load_card


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["inspect", *(str(a) for a in arguments)])
    return int(caught.value.code or 0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "data.root", event_columns(60))


@pytest.fixture
def card(tmp_path: Path, path: Path) -> Path:
    card = tmp_path / "card.yaml"
    card.write_text(json.dumps(card_content("data.root")))
    return card


def test_file_text_and_json(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(path) == 0
    assert "part_eta" in capsys.readouterr().out
    assert call(path, "--json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["tree"] == "Events"
    assert err == ""


def test_card_text_and_json(card: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(card, "--check") == 0
    assert "Every row was read" in capsys.readouterr().out
    assert call(card, "--json") == 0
    assert json.loads(capsys.readouterr().out)["samples"]["all"]["entries"] == 60


def test_draft_is_yaml_that_loads(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(path, "--draft") == 0
    draft = tmp_path / "draft.yaml"
    draft.write_text(capsys.readouterr().out)
    assert load_card(draft).tree == "Events"
    assert call(path, "--draft", "--json") == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "draft"


def test_exit_codes(path: Path, card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(tmp_path / "absent.root") == 2
    assert "no such file: absent.root" in capsys.readouterr().err
    cut = tmp_path / "cut.root"
    cut.write_bytes(path.read_bytes()[:1000])
    assert call(cut) == 1
    assert "truncated" in capsys.readouterr().err
    assert call(card, "--files", "al=data.root") == 2
    assert "nearest: all" in capsys.readouterr().err
    assert call(path, "--check") == 2
    assert "--check is for a card" in capsys.readouterr().err
    assert call(card, "--draft") == 2
    assert call(card, "--tree", "x") == 2
    card.write_text(card.read_text().replace('"labels"', '"lables"'))
    assert call(card) == 2
    error = capsys.readouterr().err
    assert "unknown key 'lables'" in error
    assert "nearest: labels" in error


def test_sparsity_text_json_and_usage(path: Path, card: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ("--sparsity", "--batch", "4", "--entries", "12", "--set", "model.widths=[3]")
    assert call(card, *small) == 0
    assert "No guarantee: Delta = 1, rho = 1" in capsys.readouterr().out
    assert call(card, *small, "--model", "mlp", "--json") == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert err == ""
    assert (found["kind"], found["model"], found["examples"], found["batch_size"], found["justified"]) == ("sparsity", "mlp", 12, 4, "no")
    for arguments, message in (
        ((path, "--sparsity"), "--sparsity is for a card"),
        ((card, "--model", "mlp"), "--model belongs to --sparsity"),
        ((card, "--batch", "4"), "--batch belongs to --sparsity"),
        ((card, "--sparsity", "--check"), "two questions"),
        ((card, "--sparsity", "--set", "batch=4"), "--set takes model.OPTION=VALUE"),
        ((card, "--sparsity", "--model", "spars_linear"), "nearest: sparse_linear"),
        ((card, "--sparsity", "--model", "sparse_linear"), "are scalars"),
    ):
        assert call(*arguments) == 2
        assert message in capsys.readouterr().err

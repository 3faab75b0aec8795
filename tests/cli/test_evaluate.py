"""`hlt-train evaluate` and `hlt-train predict` as a person types them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from hlt_train.cli import main
from tests.networks import problem


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    return int(caught.value.code or 0)


def test_text(capsys: pytest.CaptureFixture[str]) -> None:
    made = problem()
    assert call("evaluate", made.float_run, made.fixed_run, "--rate", "100Hz,500 Hz", "--eff", "50%", "--replicas", 20, "--no-latency") == 0
    out, err = capsys.readouterr()
    assert "eff at 100 Hz" in out
    assert "eff at 500 Hz" in out
    assert "rate at 50%" in out
    assert "BEST" in err  # which checkpoint is used is said, also where only progress is read


def test_brief_is_a_line_per_network_and_baseline(capsys: pytest.CaptureFixture[str]) -> None:
    made = problem()
    assert call("evaluate", made.float_run, made.fixed_run, "--brief", "-q", "--replicas", 20, "--no-latency") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert [re.split(r"  +", line)[1] for line in out.splitlines()[2:]][-2:] == ["reference cut", "best single variable"]
    assert len(out.splitlines()) == 6


def test_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("evaluate", problem().float_run, "--json", "-q", "--replicas", 20, "--no-latency", "--input-rate", "qcd=16kHz", "--mistag", "1%") == 0
    out, err = capsys.readouterr()
    assert err == ""
    found = json.loads(out)
    assert found["sections"][0]["networks"][0]["at"][0]["samples"][0]["sample"] == "qcd"
    assert [section["unit"] for section in found["sections"]] == ["Hz", "mistag"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rate", "50"], "--rate"),
        (["--rate", "1%"], "--rate"),
        (["--mistag", "200%"], "--mistag"),
        (["--input-rate", "qdc=8kHz"], "qcd"),
        (["--splt", "test"], "--split"),
        (["--files", "qcd"], "NAME=GLOB"),
    ],
)
def test_refusals(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("evaluate", problem().float_run, *arguments) == 2
    assert words in capsys.readouterr().err


def test_predict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = problem()
    arguments = ["predict", made.fixed_run, made.folder / "events.root", "--out", tmp_path / "scores.root"]
    assert call(*arguments) == 0
    assert "pass tight" in capsys.readouterr().out
    assert call(*arguments) == 2
    assert "exists already" in capsys.readouterr().err
    assert call(*arguments[:-1], tmp_path / "more.root", "--json", "-q") == 0
    out, err = capsys.readouterr()
    assert (json.loads(out)["rows"], err) == (6000, "")

"""`hlt-train toy`: numbers as people write them, results on stdout, refusals with exit code 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import uproot

from hlt_train.cli import main
from hlt_train.cli.toy import parse_count
from hlt_train.errors import UsageError


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    return int(caught.value.code or 0)


@pytest.mark.parametrize(("text", "n"), [("200k", 200_000), ("1e6", 1_000_000), ("2M", 2_000_000), ("1.5k", 1500), ("7", 7), ("1G", 10**9)])
def test_counts(text: str, n: int) -> None:
    assert parse_count(text) == n


@pytest.mark.parametrize("text", ["", "k", "ten", "1.5", "nan", "inf", "200K9", "2 thousand"])
def test_not_a_count(text: str) -> None:
    with pytest.raises(UsageError, match="not a whole number of rows"):
        parse_count(text)


@pytest.mark.parametrize(("kind", "tree"), [("jets", "Jets"), ("events", "Events"), ("topology", "Events"), ("cells", "Events")])
def test_json_is_one_object_and_true(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, tree: str) -> None:
    path = tmp_path / "x.root"
    assert call("toy", path, "--kind", kind, "-n", "13", "--seed", "4", "--json", "-q") == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert err == ""
    assert found.items() >= {"file": str(path), "tree": tree, "entries": 13, "origin": "toy", "seed": 4, "bytes": path.stat().st_size}.items()
    with uproot.open(path) as file:
        assert file[tree].num_entries == 13


def test_text_and_progress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.root"
    assert call("toy", path, "--kind", "events", "-n", "0.02k", "--drift", "--all") == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    assert "20 entries" in out
    assert "origin=toy" in out
    assert "20 of 20 events" in err
    with uproot.open(path) as file:
        assert json.loads(file["provenance"]).items() >= {"drift": True, "all": True}.items()


def test_particles_of_topologies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.root"
    assert call("toy", path, "--kind", "topology", "-n", "20", "--particles", "32", "--json", "-q") == 0
    assert json.loads(capsys.readouterr().out)["particles"] == 32
    with uproot.open(path) as file:
        assert file["Events"]["nParticle"].array(library="np").max() == 32


def test_refuses_to_overwrite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.root"
    path.write_bytes(b"precious")
    assert call("toy", path, "--kind", "jets", "-n", 5) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "nothing is ever overwritten" in err
    assert str(path) in err
    assert path.read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--kind", "jets", "-n", "0"), "cannot write 0 rows"),
        (("--kind", "events", "-n", "-5"), "cannot write -5 rows"),
        (("--kind", "jets", "-n", "many"), "not a whole number of rows: 'many'"),
        (("--kind", "jets", "-n", "5", "--seed", "-1"), "seeds start at 0"),
        (("--kind", "jets", "-n", "5", "--drift"), "--drift belongs to --kind events"),
        (("--kind", "jets", "-n", "5", "--all"), "--all belongs to --kind events"),
        (("--kind", "cells", "-n", "5", "--particles", "32"), "--particles belongs to --kind topology"),
        (("--kind", "topology", "-n", "5", "--particles", "0"), "cannot write 0 particles per event"),
        (("--kind", "muons"), "'jets', 'events', 'topology', 'cells'"),
        (("-n", "5"), "Missing option '--kind'"),
    ],
)
def test_usage_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str) -> None:
    assert call("toy", tmp_path / "x.root", *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())

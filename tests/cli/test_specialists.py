"""`hlt-train specialists`, and several teachers of `distil`: what goes to stdout, refusals with their exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hlt_train.cli import main
from hlt_train.cli.distil import _replaced, _teachers
from hlt_train.errors import UsageError
from hlt_train.fit import fit
from hlt_train.progress import Progress
from hlt_train.run import read_config
from tests import runs
from tests.distillation import write_card

SMALL = ("--batch", "64", "--for", "4steps", "-q")


@pytest.fixture(scope="module")
def generalist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jets")
    fit(runs.config(write_card(folder, files=2, rows=400), length="1epochs"), folder / "generalist", progress=Progress(quiet=True))
    return folder / "generalist"


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of the program in this process."""
    with pytest.raises(SystemExit) as ended:
        main([str(text) for text in arguments])
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def test_from_sets_to_a_teacher(generalist: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ensemble = tmp_path / "e"
    code, out, err = run(capsys, "specialists", generalist, "--run", ensemble, "--set", "sets=[[g,q],[W,Z]]", "--top", "2", *SMALL)
    assert (code, err) == (0, "")
    for text in ("1: g, q", "2: W, Z", "confused within", "specialist alone", "ensemble - generalist", "mistag 20%"):
        assert text in out
    assert read_config(ensemble)["top"] == 2
    code, out, err = run(capsys, "specialists", "--resume", ensemble, "--json", "-q")
    assert (code, err) == (0, "")
    assert json.loads(out)["figures"]["all"]["accuracy"].keys() == {"generalist", "ensemble", "difference"}
    code, _, err = run(capsys, "specialists", "--resume", ensemble, "--count", "2")
    assert (code, "does not take 'count'" in err) == (2, True)
    code, _, err = run(capsys, "export", ensemble, "--to", "onnx", "--out", tmp_path / "x")
    assert (code, "an ensemble is not one network" in err) == (2, True)
    code, out, err = run(capsys, "predict", ensemble, generalist.parent / "jets_00.root", "--out", tmp_path / "scores.root", "-q", "--json")
    assert (code, err, json.loads(out)["kind"]) == (0, "", "ensemble")


def test_files_of_several_teachers() -> None:
    """A sample's files are replaced in every card that has it; a name that no card knows is refused with the nearest."""
    one, two = ({"samples": {name: {"files": ["/old"]} for name in names}} for names in (("qcd", "hh"), ("qcd",)))
    first, second = _replaced([one, two], ("qcd=/new", "hh=/more"))
    assert [first["samples"][name]["files"] for name in ("qcd", "hh")] == [["/new"], ["/more"]]
    assert second["samples"] == {"qcd": {"files": ["/new"]}}
    assert _replaced([two], ("qcd=/new",)) == second
    with pytest.raises(UsageError) as caught:
        _replaced([one, two], ("qdc=/new",))
    assert "nearest: qcd" in str(caught.value)


def test_a_line_per_teacher() -> None:
    figures = {"cross_entropy": 0.5, "accuracy": 0.75}
    one = {"path": "a", "step": 1200, "which": "BEST", "weight": 2.0, "unmatched": 3, **figures}
    two = {"path": "b", "step": None, "which": "generalist and 2 specialists", "weight": 1.0, "unmatched": 0, "cross_entropy": None, "accuracy": None}
    says = "; on the student's validation rows cross-entropy 0.5, accuracy 0.75"
    lines = [f"a, step 1,200, weight 2, 3 rows unmatched{says}", "b, generalist and 2 specialists, weight 1"]
    found = _teachers({"mean": "geometric", **figures, "teachers": [one, two]})
    assert found == [["teacher", lines[0]], ["teacher", lines[1]], ["geometric mean", says.removeprefix("; ")]]
    assert _teachers({"path": "a", "step": 7, "which": "BEST"}) == [["teacher", "a, step 7"]]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("specialists", "GENERALIST"), "--run DIR"),
        (("specialists", "--run", "r"), "needs a generalist"),
        (("specialists", "nothing", "--run", "r"), "not a run directory"),
        (("specialists", "GENERALIST", "--run", "r", "--count", "3"), "--size N for sets that overlap"),
        (("specialists", "GENERALIST", "--run", "r", "--count", "2", "--size", "9"), "between 2 and 4"),
        (("specialists", "GENERALIST", "--run", "r", "--set", "sets=[[g,p]]"), "g, q, W, Z, t"),
        (("specialists", "GENERALIST", "--run", "r", "--set", "model.widths=[4]"), "have the network of their generalist"),
        (("specialists", "GENERALIST", "--run", "r", "--set", "cuont=2"), "nearest: count"),
        (("distil", "GENERALIST", "GENERALIST", "--run", "r", "--teacher-weights", "1,x"), "--teacher-weights takes numbers"),
        (("distil", "GENERALIST", "GENERALIST", "--run", "r", "--teacher-weights", "1"), "1 entries for 2 teachers"),
        (("distil", "GENERALIST", "nothing", "--run", "r"), "no such file"),
    ],
)
def test_refusals(
    generalist: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *(str(generalist) if text == "GENERALIST" else text for text in arguments), "-q")
    assert (code, out) == (2, "")
    assert says in err
    assert "Traceback" not in err
    assert not (tmp_path / "r").exists()

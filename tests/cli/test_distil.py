"""`hlt-train distil`: layers of configuration, what goes to stdout, refusals with their exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hlt_train.cli import main
from hlt_train.fit import fit
from hlt_train.progress import Progress
from hlt_train.run import read_config
from tests import runs
from tests.distillation import write_card

SMALL = ("--set", "model.widths=[4]", "--batch", "64", "--for", "1epochs")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jets")
    fit(runs.config(write_card(folder, files=2, rows=200), length="1epochs"), folder / "teacher", progress=Progress(quiet=True))
    return folder / "teacher"


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of the command in this process."""
    with pytest.raises(SystemExit) as ended:
        main(["distil", *map(str, arguments)])
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def test_json_is_one_object_and_the_configuration_is_kept(teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layers = ("--set", "precision.layers.dense_0.weights=fixed<6,1>", "--temperature", "4", "--lambda", "0.8")
    code, out, err = run(capsys, teacher, "--run", tmp_path / "r", "--json", "-q", *SMALL, *layers)
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["golden"]["differing_rows"] == 0
    assert found["formats"]["layers"]["dense_0"]["weights"] == "fixed<6,1>"
    stored = read_config(tmp_path / "r")
    assert (stored["temperature"], stored["lambda"], stored["model"]) == (4.0, 0.8, {"name": "mlp", "widths": [4]})
    # the stored configuration reruns it, and flags win over it
    code, out, _ = run(capsys, "--config", tmp_path / "r" / "config.yaml", "--run", tmp_path / "again", "--lambda", "0.5", "-q")
    assert code == 0
    assert "golden evaluator" in out
    assert (read_config(tmp_path / "again")["temperature"], read_config(tmp_path / "again")["lambda"]) == (4.0, 0.5)


def test_what_a_student_learns_has_flags(teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
    section = ("--set", "augment.scalar_smearing.relative={jet_mass: 0.1}")
    code, out, err = run(capsys, teacher, "--dry-run", "-q", "--hints", "0.5", "--rate-aware", "loose", "--matching", "logits", *SMALL, *section)
    assert (code, err) == (0, "")
    assert "discriminant" in out
    for arguments, says in ((("--rate-aware", "lose"), "no working point 'lose'"), (("--hints", "-1"), "at least 0")):
        code, _, err = run(capsys, teacher, "--dry-run", "-q", *arguments, *SMALL)
        assert code == 2
        assert says in err


def test_the_comparison_is_a_table(teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, teacher, "--run", tmp_path / "r", "-q", "--seeds", "1", *SMALL, "--set", "precision=null")
    assert code == 0
    assert "signal efficiency at mistag 20%" in out
    assert "distilled - alone" in out
    assert "the run is seeds/0/distilled" in out


def test_nothing_fits_is_exit_code_3(teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(
        capsys, teacher, "--run", tmp_path / "r", "-q", "--for", "9steps", "--budget-macs", "10", "--trials", "1", "--set", "search.widths=[4]"
    )
    assert (code, out) == (3, "")
    assert "the nearest miss, candidate 0 (mlp" in err
    assert "of 10 multiply-accumulates" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--run", "r", "--set", "precision.weigths=fixed<8,2>"), "nearest: weights"),
        (("--run", "r", "--set", "precision.weights=fixed<8;2>"), "is not a number format"),
        (("--run", "r", "--set", "temprature=3"), "nearest: temperature"),
        (("--run", "r", "--lambda", "1.5"), "lambda"),
        (("--run", "r", "--lr-scan", "0.1,x"), "separated by commas"),
        (("--run", "r", "--model", "deepsets"), "--model mlp"),
        (("--run", "r", "--model", "dps"), "nearest: deepsets"),
        (("--run", "r", "--budget-network", "100parsec"), "expected a time such as 100ns"),
        (("--run", "r", "--budget-network", "100ns", "--reached", "8kHz/100kHz"), "'reached' scales the time of 'path'"),
        (("--run", "r", "--budget-luts", "100", "--isa", "avx2"), "belong to 'network' and 'path'"),
        (("--run", "r", "--budget-macs", "100", "--trials", "2", "--model", "mlp"), "nearest: --set search.families=[mlp]"),
        (("--run", "r", "--trials", "2"), "a search needs a budget"),
        (("--run", "r", "--budget-macs", "100", "--set", "search.widhts=[4]"), "search.widhts: unknown key"),
        (("--run", "r", "--set", "widths.shar=0.3"), "nearest: share"),
        (("--run", "r", "--budget-network", "100"), "budget.network: expected a time such as 100ns, 2us or 1ms, got '100'\n"),
        (("--run", "r", "--budget-macs", "100", "--set", "search.families=[deepset]"), "nearest: deepsets"),
        (("--run", "r", "--budget-network", "100ns", "--latency-table", "none.json"), "no such file: none.json"),
        ((), "--run DIR"),
    ],
)
def test_refusals(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, teacher, "-q", *arguments)
    assert (code, out) == (2, "")
    assert says in err
    assert "Traceback" not in err
    assert not (tmp_path / "r").exists()


def test_a_teacher_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, tmp_path, "--run", tmp_path / "r")
    assert code == 2
    assert "not a run directory" in err or "no such file" in err
    code, _, err = run(capsys, "--run", tmp_path / "r")
    assert code == 2
    assert "needs a teacher" in err


def test_dry_run_writes_nothing(teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(capsys, teacher, "--dry-run", "-q", *SMALL)
    assert code == 0
    assert "discriminant" in out
    assert list(tmp_path.iterdir()) == []

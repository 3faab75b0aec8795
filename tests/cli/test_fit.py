"""`hlt-train fit`: exit codes, what goes to stdout and what to stderr, layers of configuration, refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from hlt_train.cli import main
from tests.runs import process, write_card

SMALL = ("--set", "model.widths=[8]", "--batch", "64", "--for", "1epochs")


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_card(tmp_path_factory.mktemp("jets"), files=2, rows=200)


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of the command in this process."""
    with pytest.raises(SystemExit) as ended:
        main(["fit", *map(str, arguments)])
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def stored(path: Path) -> dict[str, Any]:
    return yaml.safe_load((path / "config.yaml").read_text())


def test_results_on_stdout_progress_on_stderr(card: Path, tmp_path: Path) -> None:
    """A real process, as a user starts it; then the same directory is refused and untouched."""
    done = process("fit", card, "--run", "r", *SMALL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "validation loss" in done.stdout
    assert "opening the files" in done.stderr
    assert "\r" not in done.stderr
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "r").rglob("*")}
    again = process("fit", card, "--run", "r", *SMALL, cwd=tmp_path)
    assert again.returncode == 2
    assert again.stdout == ""
    assert "nothing is ever overwritten" in again.stderr
    assert "Traceback" not in again.stderr
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "r").rglob("*")} == before


def test_json_is_one_object(card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, card, "--run", tmp_path / "r", "--json", "-q", *SMALL)
    assert code == 0
    assert err == ""
    found = json.loads(out)
    assert found["run"] == str(tmp_path / "r")
    assert set(found) >= {"steps", "epochs", "best", "validation", "parameters", "rows", "rows_per_s", "stopped"}


def test_layers(card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Flag > environment > file > default; the merged configuration reruns the run without anything else."""
    (tmp_path / "c.yaml").write_text("batch: 32\nseed: 5\nlearning_rate: 0.01\nfor: 2steps\nmodel: {name: mlp, widths: [4]}\n")
    monkeypatch.setenv("HLT_TRAIN_FIT_SEED", "6")
    monkeypatch.setenv("HLT_TRAIN_FIT_BATCH", "16")
    code, _, err = run(capsys, card, "--config", tmp_path / "c.yaml", "--run", tmp_path / "r", "--batch", "8", "--set", "optimizer.b1=0.8", "-q")
    assert code == 0, err
    found = stored(tmp_path / "r")
    assert (found["batch"], found["seed"], found["learning_rate"], found["for"]) == (8, 6, 0.01, "2steps")
    assert found["model"] == {"name": "mlp", "widths": [4]}
    assert found["optimizer"] == {"name": "adam", "b1": 0.8}
    assert all(Path(file).is_absolute() for file in found["card"]["samples"]["jets"]["files"])
    monkeypatch.delenv("HLT_TRAIN_FIT_SEED")
    monkeypatch.delenv("HLT_TRAIN_FIT_BATCH")
    monkeypatch.chdir("/")
    assert run(capsys, "--config", tmp_path / "r" / "config.yaml", "--run", tmp_path / "again", "-q")[0] == 0
    assert stored(tmp_path / "again") == found


def test_files_and_splits_by_file(card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(card.parent)
    splits = ("--train", "jets_00.root", "--val", "jets_01.root", "--test", "jets_01.root")
    code, _, err = run(capsys, card, "--files", "jets=jets_00.root", "--run", tmp_path / "a", "-q", *SMALL)
    assert code == 0, err
    assert stored(tmp_path / "a")["card"]["samples"]["jets"]["files"] == [str(card.parent / "jets_00.root")]
    code, _, err = run(capsys, card, *splits[:4], "--run", tmp_path / "b", "--json", "-q", *SMALL)
    assert code == 0, err
    assert stored(tmp_path / "b")["card"]["splits"]["by"] == "files"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["CARD", *SMALL], ["needs a directory", "--dry-run"]),
        (["nosuch.yaml", "--run", "RUN"], ["nosuch.yaml"]),
        (["toy_jet", "--run", "RUN"], ["toy_jets"]),
        (["CARD", "--run", "RUN", "--batchs", "3"], ["--batchs", "--batch"]),
        (["CARD", "--run", "RUN", "--batch", "63", "--devices", "2"], ["63", "2", "62", "64"]),
        (["CARD", "--run", "RUN", "--batch", "0"], ["batch"]),
        (["CARD", "--run", "RUN", "--model", "deepset"], ["deepset", "deepsets"]),
        (["CARD", "--run", "RUN", "--set", "model.width=[3]"], ["width", "widths"]),
        (["CARD", "--run", "RUN", "--set", "learnin_rate=3"], ["learnin_rate", "learning_rate"]),
        (["CARD", "--run", "RUN", "--optimizer", "addam"], ["addam", "adam"]),
        (["CARD", "--run", "RUN", "--schedule", "cosine"], ["cosine", "cosine_decay_schedule"]),
        (["CARD", "--run", "RUN", "--strategy", "synch"], ["synch", "sync"]),
        (["CARD", "--run", "RUN", "--for", "3weeks"], ["3weeks", "20epochs"]),
        (["CARD", "--run", "RUN", "--files", "jet=x.root"], ["jet", "jets"]),
        (["CARD", "--run", "RUN", "--files", "jets=/nosuch/*.root"], ["/nosuch/*.root"]),
        (["--run", "RUN", "--files", "jets=x.root"], ["CARD"]),
        (["CARD", "--run", "RUN", "--init-from", "/nosuch"], ["/nosuch", "not a run directory"]),
        (["CARD", "--run", "RUN", "--config", "/nosuch.yaml"], ["/nosuch.yaml"]),
        (["--resume", "/nosuch"], ["not a run directory"]),
        (["--resume", "/nosuch", "--batch", "3"], ["--resume", "batch"]),
    ],
)
def test_refusals(arguments: list[str], expected: list[str], card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, what is wrong and what is near on stderr, nothing on stdout, nothing written."""
    given = [str(card) if a == "CARD" else str(tmp_path / "r") if a == "RUN" else a for a in arguments]
    code, out, err = run(capsys, *given)
    assert code == 2, err
    assert out == ""
    for text in expected:
        assert text in err
    assert "Traceback" not in err
    assert "bug" not in err
    assert not (tmp_path / "r").exists()


def test_dry_run(card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(capsys, card, "--dry-run", "-q", *SMALL)
    assert code == 0
    assert "rows per s" in out
    assert "parameter .layers[0].linear.weight" in out
    assert list(tmp_path.iterdir()) == []


def test_divergence_is_exit_code_1(card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, card, "--run", tmp_path / "r", "--optimizer", "sgd", "--learning-rate", "1e38", "-q", *SMALL)
    assert code == 1
    assert out == ""
    assert "not finite at step" in err


def test_help_is_quick_and_light() -> None:
    """`fit --help` imports neither jax nor uproot."""
    code = "import sys; from hlt_train.cli import group; group.main(['fit', '--help'], standalone_mode=False); "
    code += "assert not {'jax', 'uproot', 'numpy'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "--checkpoint-every" in done.stdout


def test_without_a_card_toy_jets_are_made_in_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hlt_train.fit.TOY_ROWS", 500)
    code, out, err = run(capsys, "--run", tmp_path / "r", "--json", *SMALL)
    assert code == 0, err
    assert sum(json.loads(out)["rows"].values()) == 500
    assert (tmp_path / "r" / "data" / "toy_jets.root").is_file()
    assert stored(tmp_path / "r")["card"]["samples"]["jets"]["files"] == [str(tmp_path / "r" / "data" / "toy_jets.root")]
    assert "no card: 500 toy jets" in err
    monkeypatch.setattr("hlt_train.fit.TOY_ROWS", 1)
    assert run(capsys, "--run", tmp_path / "bad")[0] != 0
    assert not (tmp_path / "bad").exists()

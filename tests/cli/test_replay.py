"""`hlt-train replay`: exit codes, stdout and stderr."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hlt_train.cli import main
from hlt_train.transports.journal import file_of
from tests.runs import write_card

SIMULATED = ("--transport", "simulate", "--workers", "2", "--strategy", "hogwild", "--set", "transport.stragglers=lognormal:0.5")


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of the command in this process."""
    with pytest.raises(SystemExit) as ended:
        main([*map(str, arguments)])
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def test_a_run_is_replayed_and_a_changed_log_is_found_out(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    card, path = write_card(tmp_path / "data", files=2, rows=200), tmp_path / "r"
    code, _, err = run(capsys, "fit", card, "--run", path, "--set", "model.widths=[8]", "--batch", "32", "--for", "8steps", *SIMULATED, "-q")
    assert code == 0, err
    code, out, err = run(capsys, "replay", path)
    assert code == 0, err
    assert f"{path}: 3 actors, 16 batches replayed" in out
    assert "every state equal to the bit\nparameters sha256 " in out
    code, out, _ = run(capsys, "replay", path, "--json", "-q")
    assert code == 0
    assert json.loads(out)["equal"] is True
    log = file_of(path, "shard", 0)
    lines = log.read_text().splitlines()
    serves = [json.loads(line) for line in lines[1:]]
    at = next(k for k in range(2, len(serves) - 1) if serves[k][0][0] != serves[k + 1][0][0] and serves[k + 1][0][1] > 0) + 1
    lines[at], lines[at + 1] = lines[at + 1], lines[at]
    log.write_text("\n".join(lines) + "\n")
    code, out, err = run(capsys, "replay", path, "-q")
    assert (code, out) == (1, "")
    assert "the replay differs from the recording: worker 0" in err or "the logs do not fit together" in err
    assert f"where:   {path}" in err
    (path / "transport.json").unlink()
    code, _, err = run(capsys, "replay", path, "-q")
    assert code == 2
    assert f"next:    hlt-train fit --resume {path}" in err


def test_no_such_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = run(capsys, "replay", tmp_path / "none")
    assert (code, out) == (2, "")
    assert str(tmp_path / "none") in err

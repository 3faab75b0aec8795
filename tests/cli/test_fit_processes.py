"""`fit --transport mpi` as it is typed: errors that happen in the processes, and a run that ends early."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import write_card

PROGRAM = Path(sys.executable).with_name("hlt-train")  # a script: what mpiexec starts is it again
BY_PROCESSES = ("--strategy", "downpour", "--transport", "mpi", "--workers", "2", "--batch", "64", "-q")


def process(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "NPROC")}
    return subprocess.run([PROGRAM, *map(str, arguments)], capture_output=True, text=True, env=environment, timeout=300, check=False)


def test_what_goes_wrong_in_all_processes_is_said_once(tmp_path: Path) -> None:
    card = write_card(tmp_path, files=1)
    done = process("fit", card, "--files", f"jets={tmp_path}/jetz_00.root", "--run", tmp_path / "run", *BY_PROCESSES)
    assert done.returncode == 2
    assert done.stderr.count("no such file") == 1
    assert "jets_00.root" in done.stderr  # the nearest
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_asynchronous_run_stops_early(tmp_path: Path) -> None:
    """Epochs are shorter than a validation here: nobody runs away from it."""
    card, run = write_card(tmp_path, files=2), tmp_path / "run"
    done = process("fit", card, "--run", run, *BY_PROCESSES, "--for", "300epochs", "--patience", "1", "--learning-rate", "1e-9", "--json")
    assert done.returncode == 0, done.stderr
    epochs = [line for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if line.get("event") == "epoch"]
    assert len(epochs) < 20
    assert json.loads(done.stdout)["stopped"] == "patience"

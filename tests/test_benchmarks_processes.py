"""The benchmarks of processes run and print what they promise; their figures are not tested."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
SCRIPTS = Path(__file__).parents[1] / "benchmarks"


def printed(script: str, *arguments: str) -> str:
    found = subprocess.run([sys.executable, SCRIPTS / script, *arguments], capture_output=True, text=True, timeout=1100, check=False)
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_earlier_protocol_learns() -> None:
    assert float(printed("earlier_protocol.py").splitlines()[0].rpartition("validation loss ")[2]) < 1e-3


def test_exchange_measures_every_mode() -> None:
    out = printed("exchange.py", "--quick", "--where")
    for name in ("hlt-train, overlap", "hlt-train, waiting", "per tensor, blocking", "on_answer", "ask"):
        assert name in out


def test_topology_measures_every_column_and_predicts() -> None:
    out = printed("topology.py", "--quick")
    for name in ("N = 1", "N = 2", "alone", "earlier", "downpour, overlap", "easgd", "predicted / measured"):
        assert name in out


def test_the_earlier_protocol_survives_no_death_and_ours_does() -> None:
    lines = [line for line in printed("topology.py", "--quick", "--chaos").splitlines() if line.startswith(("worker killed", "master killed"))]
    assert len(lines) == 4
    for line in lines:
        assert ("completes" in line) == ("downpour" in line), line

"""The commands of docs/budget.md on toy events, each in a process of its own: a student within 100 ns, within 1 ms from branch values to decision, within
5,000 LUTs; killed in the middle, they find the same."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from hlt_train.files import read_document
from tests import runs

pytestmark = pytest.mark.slow
BUDGETS = {
    "network": ("--budget-network", "100ns"),
    "path": ("--budget-path", "1ms", "--reached", "8kHz/100kHz"),
    "luts": ("--budget-luts", "5000"),
}
SHORT = ("--trials", "2", "--for", "200steps", "--set", "search.rungs=2", "--set", "search.families=[mlp]", "--json", "-q")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("events")
    done = runs.process("toy", folder / "events.root", "--kind", "events", "-n", "40000", "--seed", "1")
    assert done.returncode == 0, done.stderr
    files = [part for name in ("hh", "qcd") for part in ("--files", f"{name}={folder}/events.root")]
    done = runs.process("fit", "toy_events", *files, "--run", folder / "teacher", "--for", "2epochs", "--set", "model.widths=[32]", "-q")
    assert done.returncode == 0, done.stderr
    return folder / "teacher"


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("table") / "table.json"
    done = subprocess.run(runs.command("bench", "--calibrate", path, "-q"), capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr
    return path


def command(teacher: Path, table: Path, name: str, out: Path) -> list[str]:
    own = () if name == "luts" else ("--latency-table", str(table))
    return runs.command("distil", teacher, "--run", out, *BUDGETS[name], *own, *SHORT)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", BUDGETS)
def test_it_finds_one_with_a_certificate(teacher: Path, table: Path, tmp_path: Path, name: str) -> None:
    done = subprocess.run(command(teacher, table, name, tmp_path / "r"), capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["search"]["costs"][name] <= found["search"]["limits"][name]
    for target in found["export"].values():
        certificate = json.loads((Path(target) / "certificate.json").read_text())
        assert certificate["budget"]["met"]
        assert certificate["budget"]["measured"]["costs"][name] <= certificate["budget"]["limits"][name]
        assert certificate["logits"]["differing"] == 0
    if name == "path":
        assert found["search"]["path"]["samples"] == ["qcd"]
        assert set(found["search"]["path"]["not_timed"]["selections"]) == {"selection", "samples.qcd.selection"}
        assert 0 < found["search"]["path"]["share_of_300_ms"] < 1


@pytest.mark.timeout(3600)
def test_killed_twice_it_finds_the_same(teacher: Path, table: Path, tmp_path: Path) -> None:
    """kill -9 in the middle of two candidates; the LUTs are alkaid's, so that nothing is measured with a clock."""
    done = subprocess.run(command(teacher, table, "luts", tmp_path / "whole"), capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr
    path = tmp_path / "killed"
    for deaths, line in enumerate((command(teacher, table, "luts", path), runs.command("distil", "--resume", path, "-q"))):
        started = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while started.poll() is None and len(list(path.glob("search/candidates/*/*/warmup/checkpoints"))) <= deaths:
            time.sleep(0.02)
        assert started.poll() is None
        started.send_signal(signal.SIGKILL)
        started.wait()
    done = subprocess.run(runs.command("distil", "--resume", path, "--json", "-q"), capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr
    first, again = (record(tmp_path / name) for name in ("whole", "killed"))
    assert first == again


def record(path: Path) -> dict[str, Any]:
    return read_document(path / "search" / "search.json", "hlt-train/search", 1)

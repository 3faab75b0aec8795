"""The benchmarks of distributed rules, and that of specialists, start, run and print their tables (`--quick`)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["asynchrony", "backup_workers", "easgd", "fasgd", "sandblaster", "specialists", "wires"])
def test_a_benchmark_prints_its_tables(name: str, tmp_path: Path) -> None:
    found = subprocess.run([sys.executable, FOLDER / f"{name}.py", "--quick"], capture_output=True, text=True, cwd=tmp_path, timeout=550, check=False)
    assert found.returncode == 0, found.stderr
    lines = found.stdout.splitlines()
    assert any(set(line) == {"-", " "} for line in lines), "no table"
    assert "1 seed(s), --quick: not to be quoted" in lines[-1]
    assert not list(tmp_path.iterdir())

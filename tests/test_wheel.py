"""The wheel in an environment of its own, used from another folder as a user would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_wheel_fits_distils_and_exports_from_another_folder(tmp_path: Path) -> None:
    def run(*command: str | Path) -> str:
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "XLA_FLAGS", "NPROC")}
        done = subprocess.run([str(c) for c in command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    source = tmp_path / "source"
    run("git", "clone", "--quiet", ROOT, source)
    run(sys.executable, "-m", "venv", "venv")
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", ".", source)
    (wheel,) = tmp_path.glob("*.whl")
    run(python, "-m", "pip", "install", "--quiet", f"{wheel}[onnx,compiler]")
    program = tmp_path / "venv" / "bin" / "hlt-train"
    run(program, "toy", "events.root", "--kind", "events", "-n", "20k", "--seed", "5")
    run(program, "fit", "toy_events", "--files", "hh=events.root", "--files", "qcd=events.root", "--run", "teacher", "--for", "2epochs")
    run(program, "distil", "teacher", "--run", "student", "--for", "2epochs")
    run(program, "export", "student", "--to", "cpp,onnx", "--out", "exported")
    for target in ("cpp", "onnx"):
        certificate = json.loads((tmp_path / "exported" / target / "certificate.json").read_text())
        assert certificate["bit_exact"] is True

"""An export's own selftest.py, run as a stranger would: a copy of the directory, a new Python that cannot import hlt_train, hardly any environment."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hlt_train.errors import RunFailed

__all__ = ["run_selftest"]

BOOT = """
import runpy, sys
sys.modules["hlt_train"] = None
sys.argv = ["selftest.py", "--no-time", "--json"]
runpy.run_path("selftest.py", run_name="__main__")
"""
KEPT = ("PATH", "CXX", "TMPDIR", "HOME", "LD_LIBRARY_PATH")


def run_selftest(directory: Path) -> dict[str, Any]:
    """Run it; returns `passed`, what it printed, and the fields of its JSON line where it prints one."""
    if not (directory / "selftest.py").is_file():
        raise RunFailed("the export has no selftest.py", where=str(directory))
    with tempfile.TemporaryDirectory(prefix="hlt-train-selftest-") as scratch:
        copy = Path(scratch) / "export"
        shutil.copytree(directory, copy)
        environment = {name: os.environ[name] for name in KEPT if name in os.environ}
        done = subprocess.run([sys.executable, "-I", "-c", BOOT], cwd=copy, env=environment, capture_output=True, text=True, check=False)
    return {**_json_line(done.stdout), "passed": done.returncode == 0, "output": (done.stdout + done.stderr).strip()}


def _json_line(text: str) -> dict[str, Any]:
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            try:
                content = json.loads(line)
            except json.JSONDecodeError:
                continue
            return content if isinstance(content, dict) else {}
    return {}

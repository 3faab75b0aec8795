"""Compile main.cpp with the compiler of this machine and check net.hpp against golden.bin: exit code 0 when every integer and decision agrees.

Standard library only. Run it from anywhere: `python selftest.py`; `--no-time` leaves the timing out.
"""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent


def compiler():
    """The command of a C++ compiler: CXX, c++, g++, clang++, or the one of the package ziglang."""
    words = shlex.split(os.environ.get("CXX", ""))
    if words:
        return words
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "c++"]
    sys.exit("FAILED: no C++ compiler found, nothing is verified. Next: pip install ziglang")


def thresholds_agree(said):
    """Whether the thresholds compiled in are those of working_points.json."""
    path = HERE / "working_points.json"
    compiled = re.findall(r"^working point \d+ +threshold (\S+)", said, re.MULTILINE)
    stated = [point["integer_threshold"] for point in json.loads(path.read_text())["points"]] if path.exists() else []
    return not compiled or compiled == ["none" if threshold is None else str(threshold) for threshold in stated]


def main():
    """Compile in a temporary directory, run in the export directory."""
    with tempfile.TemporaryDirectory() as scratch:
        program = str(Path(scratch) / "selftest")
        built = subprocess.run([*compiler(), "-std=c++17", "-O2", str(HERE / "main.cpp"), "-o", program], cwd=scratch, check=False)
        if built.returncode:
            print("FAILED: main.cpp does not compile")
            return 1
        done = subprocess.run([program, *sys.argv[1:]], cwd=HERE, check=False, stdout=subprocess.PIPE, text=True)
        print(done.stdout, end="")
        if done.returncode == 0 and not thresholds_agree(done.stdout):
            print("FAILED: the thresholds of working_points.hpp are not those of working_points.json")
            return 1
        return 1 if done.returncode else 0


if __name__ == "__main__":
    sys.exit(main())

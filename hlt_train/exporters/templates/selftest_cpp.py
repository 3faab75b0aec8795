"""Does net.hpp in this directory still compute what it was exported for, with the compiler of this machine?

    python selftest.py [--json] [--no-time]

Compiles main.cpp in a temporary directory and runs it here: it compares every feature of golden_features.bin, and every logit, score and decision of
golden.bin. Then the thresholds compiled in are
compared with working_points.json, and the files with certificate.json. Exit code 0: all equal; 1: something differs. Needs the standard library and a C++17
compiler: CXX, c++, g++, clang++, or the package ziglang.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def compiler() -> list[str]:
    """The command of a C++ compiler."""
    words = shlex.split(os.environ.get("CXX", ""))
    if words:
        return words
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "c++"]
    sys.exit("FAILED: no C++ compiler found, nothing is verified. Next: pip install ziglang")


def run(options: Sequence[str]) -> tuple[str, str]:
    """(what main.cpp printed, what is wrong or "")."""
    with tempfile.TemporaryDirectory() as scratch:
        program = str(Path(scratch) / "selftest")
        built = subprocess.run([*compiler(), "-std=c++17", "-O2", str(HERE / "main.cpp"), "-o", program], cwd=scratch, check=False)
        if built.returncode:
            return "", "main.cpp does not compile"
        done = subprocess.run([program, *options], cwd=HERE, check=False, stdout=subprocess.PIPE, text=True)
        return done.stdout, f"the program that checks net.hpp ends with {done.returncode}" if done.returncode else ""


def document(name: str) -> dict[str, Any]:
    """A JSON file of this directory; empty where there is none."""
    try:
        found: dict[str, Any] = json.loads((HERE / name).read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        sys.exit(f"FAILED: {name} is damaged: {error}")
    return found


def thresholds_agree(said: str) -> bool:
    """Whether the thresholds compiled in are those of working_points.json."""
    compiled = re.findall(r"^working point \d+ +threshold (\S+)", said, re.MULTILINE)
    stated = [point["integer_threshold"] for point in document("working_points.json").get("points", [])]
    return compiled == ["none" if threshold is None else str(threshold) for threshold in stated]


def changed_files() -> list[str]:
    """Files whose bytes are not those that certificate.json names."""
    stated = document("certificate.json").get("sha256", {})
    return [name for name, value in stated.items() if not (HERE / name).is_file() or hashlib.sha256((HERE / name).read_bytes()).hexdigest() != value]


def numbers(said: str) -> dict[str, int | float]:
    """The lines `differing logits   0` as {"differing_logits": 0}."""
    found = re.findall(r"^([a-z ]+?) {2,}([-+.\deinfa]+)$", said, re.MULTILINE)
    return {name.replace(" ", "_"): float(value) if re.search(r"[.einfa]", value) else int(value) for name, value in found}


def spelt(literal: str) -> str:
    """The name that a string constant of the header holds."""
    return re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), literal).encode("latin-1").decode()


def features(found: dict[str, int | float]) -> dict[str, Any]:
    """What main.cpp says of features.hpp against NumPy, with the tolerance that the header states."""
    if "features" not in found:
        return {}
    header = (HERE / "features.hpp").read_text()
    stated = dict(re.findall(r"^inline constexpr (?:int|double) (tolerance_\w+) = (\S+);", header, re.MULTILINE))
    origins = re.findall(r'\{"([^"]*)", \d+, \d+, Origin::(\w+)\}', header)
    return {
        "vectors": found["feature_vectors"],
        "compared": found["features"],
        "differing": found["differing_features"],
        "beyond_tolerance": found["features_beyond"],
        "jumped": found["features_that_jump"],
        "maximal_ulp": found["largest_feature_ulp"],
        "maximal_deviation": found["largest_feature_deviation"],
        "tolerance": {
            "ulp": int(stated["tolerance_ulp"]),
            "of_largest": float.fromhex(stated["tolerance_relative"]),
            "one_jump_in": int(stated["tolerance_jumps"]),
        },
        **{word: [spelt(name) for name, origin in origins if origin == word] for word in ("exact", "libm", "jumps", "given")},
    }


def main() -> int:
    """Run, compare, print, and return the exit code."""
    said, error = run([option for option in sys.argv[1:] if option == "--no-time"])
    changed = changed_files()
    if not error and not thresholds_agree(said):
        error = "the thresholds of working_points.hpp are not those of working_points.json"
    if not error and changed:
        error = f"changed since the export: {', '.join(changed)}"
    if "--json" in sys.argv[1:]:
        found = numbers(said)
        told = {"features": features(found)} if features(found) else {}
        print(json.dumps({"compiler": " ".join(compiler()), **found, **told, "files_changed": changed, "error": error, "passed": not error}))
    else:
        print(said, end="")
    if error:
        print(f"FAILED: {error}", file=sys.stderr)
    return 1 if error else 0


if __name__ == "__main__":
    sys.exit(main())

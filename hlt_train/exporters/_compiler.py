"""Which C++ compiler this machine has, and how generated code is compiled with it.

Order: the option given, `CXX`, `c++`, `g++`, `clang++`, then the one inside the `ziglang` package of this Python. None: a `UsageError` with the install line.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from hlt_train.errors import RunFailed, UsageError

__all__ = ["compile_cpp", "find_compiler", "version"]

_INSTALL = "pip install ziglang   (or: apt-get install g++; or set CXX)"


def find_compiler(wanted: str = "") -> tuple[str, ...]:
    """The command that starts a C++ compiler, as words.

    Args:
        wanted: what the user asked for, a program with optional arguments; "" searches.

    Raises:
        UsageError: `wanted` or CXX names no program, or there is no compiler at all.
    """
    for origin, text in (("the option compiler", wanted), ("the environment variable CXX", os.environ.get("CXX", ""))):
        words = shlex.split(text)
        if words:
            if shutil.which(words[0]) is None:
                raise UsageError(f"{origin} names a compiler that is not there: {words[0]}", then=_INSTALL)
            return tuple(words)
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name) is not None:
            return (name,)
    if importlib.util.find_spec("ziglang") is not None:
        return (sys.executable, "-m", "ziglang", "c++")
    raise UsageError("no C++ compiler found, so nothing can be compiled and nothing is verified", then=_INSTALL)


def version(compiler: Sequence[str]) -> str:
    """First line of the compiler's own `--version`."""
    done = _run([*compiler, "--version"], cwd=None)
    return done.stdout.partition("\n")[0].strip()


def compile_cpp(compiler: Sequence[str], sources: Sequence[Path], out: Path, flags: Sequence[str] = ("-O2",)) -> str:
    """Compile `sources` as C++17 into `out`.

    Args:
        compiler: from `find_compiler`.
        sources: absolute paths.
        out: the program or library to write.
        flags: after `-std=c++17`; `-shared -fPIC` for a library.

    Returns:
        What the compiler said: its warnings, "" when there are none.

    Raises:
        RunFailed: the compiler failed; the message carries the first lines of what it said.
    """
    done = _run([*compiler, "-std=c++17", *flags, *map(str, sources), "-o", str(out)], cwd=out.parent)
    return done.stderr


def _run(command: Sequence[str], *, cwd: Path | None) -> subprocess.CompletedProcess[str]:
    try:
        done = subprocess.run(list(command), cwd=cwd, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UsageError(f"the compiler cannot be started: {error}", where=shlex.join(command), then=_INSTALL) from error
    if done.returncode != 0:
        said = "\n".join((done.stderr or done.stdout).splitlines()[:20])
        raise RunFailed(f"the compiler failed with exit code {done.returncode}:\n{said}", where=shlex.join(command))
    return done

"""Run the network of this directory: net_c.cpp and firmware/ compiled to a shared library, called through its C interface.

    import run
    logits = run.load(directory)(integers, counts)

Needs Python, numpy and a C++ compiler (CXX, c++, g++, clang++, or the package ziglang); neither hls4ml nor hlt-train.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

__all__ = ["build", "compiler", "load"]

FLAGS = ("-std=c++17", "-O2", "-shared", "-fPIC", "-w")  # -w: the warnings of ap_types are not ours to mend


def compiler() -> tuple[str, ...]:
    """The command of a C++ compiler."""
    words = shlex.split(os.environ.get("CXX", ""))
    if words:
        return tuple(words)
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return (name,)
    if importlib.util.find_spec("ziglang"):
        return (sys.executable, "-m", "ziglang", "c++")
    raise SystemExit("FAILED: no C++ compiler found, nothing is verified. Next: pip install ziglang")


def build(directory: Path, command: Sequence[str], out: Path) -> None:
    """Compile net_c.cpp and the firmware that it includes into the shared library `out`."""
    directory = directory.resolve()
    words = [*command, *FLAGS, f"-I{directory / 'firmware' / 'ap_types'}", str(directory / "net_c.cpp"), "-o", str(out)]
    done = subprocess.run(words, cwd=out.parent, capture_output=True, text=True, check=False)
    if done.returncode:
        said = "\n".join(done.stderr.splitlines()[:20])
        raise RuntimeError(f"the compiler failed with exit code {done.returncode}:\n{shlex.join(words)}\n{said}")


def load(directory: Path, command: Sequence[str] | None = None) -> Callable[[Mapping[str, np.ndarray], Mapping[str, np.ndarray]], np.ndarray]:
    """The network as a function: integers of the input step by group, int64 `[n, n_vars]` or `[n, length, n_vars]`, and counts by group, `[n]` -> logits.

    The integers are those of `graph.json`: value * 2**f of each variable. Logits are int64 `[n, outputs]`. Constituents at index >= count may be anything.
    """
    interface = json.loads((directory / "interface.json").read_text())
    with tempfile.TemporaryDirectory(prefix="hlt-train-") as scratch:  # a loaded library stays mapped when its file is gone
        path = Path(scratch).resolve() / "libnet.so"
        build(directory, command or compiler(), path)
        function = ctypes.CDLL(str(path)).net_evaluate
    function.restype = None
    groups, outputs = interface["groups"], len(interface["outputs"])

    def evaluate(integers: Mapping[str, np.ndarray], counts: Mapping[str, np.ndarray]) -> np.ndarray:
        n = len(integers[groups[0]["name"]])
        arrays, held = [], []
        for group in groups:
            shape = (n, len(group["variables"])) if group["length"] is None else (n, group["length"], len(group["variables"]))
            array = np.ascontiguousarray(integers[group["name"]], np.int64)
            if array.shape != shape:
                raise ValueError(f"group '{group['name']}' must have the shape {list(shape)}, found {list(array.shape)}")
            arrays.append(array)
            held.append(np.ascontiguousarray(counts[group["name"]] if group["length"] is not None else np.zeros(n), np.int32))
        logits = np.empty((n, outputs), np.int64)
        pointers = [(ctypes.c_void_p * len(groups))(*(array.ctypes.data for array in part)) for part in (arrays, held)]
        function(*pointers, ctypes.c_int64(n), logits.ctypes.data_as(ctypes.c_void_p))
        return logits

    return evaluate

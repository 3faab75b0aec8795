"""The written header compiled to a shared library and called through its C interface: how Python runs the artefact itself."""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hlt_train.errors import UsageError, nearest
from hlt_train.exporters._compiler import compile_cpp
from hlt_train.types import Features

__all__ = ["Library", "build"]

_TIMES = ("chain_median", "chain_p99", "single_median", "single_p99", "cold_median", "cold_p99", "clock", "blocks", "calls")


def build(directory: Path, compiler: Sequence[str], flags: Sequence[str] = ("-O2",)) -> Library:
    """The header of an export directory, compiled and loaded."""
    source = directory.resolve() / "net_c.cpp"
    if not source.is_file():
        raise UsageError("this is not an export of the target cpp: net_c.cpp is missing", where=str(directory))
    with tempfile.TemporaryDirectory(prefix="hlt-train-") as scratch:  # a loaded library stays mapped when its file is gone
        path = Path(scratch).resolve() / "libnet.so"
        compile_cpp(compiler, [source], path, [*flags, "-shared", "-fPIC"])
        return Library(path)


class Library:
    """A compiled net_c.cpp; everything it says of itself is read from the compiled code.

    Attributes:
        groups: (name, variables, length) in the order of the C interface; length None for scalars.
        outputs: names of the outputs.
        dtype: of an output as the library writes it.
        paths: name of each code path of this architecture -> whether this processor has it.
        path: the one that is taken unless another is named.
    """

    def __init__(self, path: Path, namespace: str = "net") -> None:
        self._library = ctypes.CDLL(str(path))
        self._namespace = namespace
        text: dict[str, Any] = {"restype": ctypes.c_char_p}
        counts = range(self._function("n_groups")())
        names = [self._function("group_name", **text)(g).decode() for g in counts]
        lengths = [int(self._function("group_length")(g)) or None for g in counts]
        self.groups = tuple(zip(names, [int(self._function("group_variables")(g)) for g in counts], lengths, strict=True))
        self.outputs = tuple(self._function("output_name", **text)(o).decode() for o in range(self._function("n_outputs")()))
        count = range(self._function("n_paths")())
        self.paths = {self._function("path_name", **text)(p).decode(): bool(self._function("path_available")(p)) for p in count}
        error = self._function("dispatch_error", **text)()
        if error is not None:
            here = ", ".join(name for name, available in self.paths.items() if available)
            raise UsageError(error.decode(), where=f"NET_ISA={os.environ.get('NET_ISA', '')}", then=f"unset NET_ISA, or name one of: {here}")
        self.path = list(self.paths)[self._function("path")()]
        self.dtype = np.dtype({0: np.float32, 4: np.int32, 8: np.int64}[int(self._function("logit_bytes")())])

    def evaluate(self, x: Features, path: str = "") -> np.ndarray:
        """Outputs `[n, n_outputs]` of raw float32 features: int64, or float32 for a float network; `path` "" is the default one."""
        call, n, keep = self._arguments(x)
        out = np.empty((n, len(self.outputs)), self.dtype)
        self._run("evaluate_path", path, *call, ctypes.c_int64(n), out.ctypes.data_as(ctypes.c_void_p))
        del keep
        return out if self.dtype == np.float32 else out.astype(np.int64)

    def time(self, x: Features, path: str = "") -> dict[str, float]:
        """Nanoseconds per call at batch 1 (see templates/timing.hpp)."""
        call, n, keep = self._arguments(x)
        out = np.empty(len(_TIMES), np.float64)
        self._run("time", path, *call, ctypes.c_int64(n), out.ctypes.data_as(ctypes.c_void_p))
        del keep
        return dict(zip(_TIMES, out.tolist(), strict=True))

    def _run(self, name: str, path: str, *arguments: Any) -> None:
        """Call a function that takes the number of a path first and returns whether it could."""
        wanted = path or self.path
        if wanted not in self.paths:
            raise UsageError(f"the header has no path '{wanted}'", near=nearest(wanted, self.paths), then=f"one of: {', '.join(self.paths)}")
        if self._function(name)(ctypes.c_int32(list(self.paths).index(wanted)), *arguments) != 0:
            raise UsageError(f"this processor lacks what the path '{wanted}' needs: it was not run", then=f"take the default path, {self.path}")

    def _function(self, name: str, *, restype: Any = ctypes.c_int32) -> Callable[..., Any]:
        function = self._library[f"{self._namespace}_{name}"]
        function.restype = restype
        return function

    def _arguments(self, x: Features) -> tuple[tuple[Any, Any], int, list[np.ndarray]]:
        """Pointers to the groups and counts, the number of events, and the arrays that must stay alive."""
        arrays: list[np.ndarray] = []
        counts: list[np.ndarray] = []
        n = len(next(iter(x.groups.values()))) if x.groups else 0
        for name, variables, length in self.groups:
            shape = (n, variables) if length is None else (n, length, variables)
            found = x.groups.get(name)
            if found is None or found.shape != shape:
                what = "missing" if found is None else f"shaped {list(found.shape)}"
                raise UsageError(f"the exported network reads group '{name}' as float32 {list(shape)}; it is {what}", near=sorted(x.groups))
            arrays.append(np.ascontiguousarray(found, np.float32))
            count = x.counts.get(name) if length is not None else np.zeros(0, np.int32)
            if count is None or (length is not None and count.shape != (n,)):
                raise UsageError(f"the exported network reads the counts of group '{name}' as int32 [{n}]", near=sorted(x.counts))
            counts.append(np.ascontiguousarray(count, np.int32))
        pointers = [(ctypes.c_void_p * len(held))(*(a.ctypes.data for a in held)) for held in (arrays, counts)]
        return (pointers[0], pointers[1]), n, arrays + counts

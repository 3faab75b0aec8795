"""Tables that predicted costs rest on: a latency table in a folder of a run, given or measured first, and the small networks that alkaid traces.

A table may come from another machine, so what differs from this one is said.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hlt_train import latency_table, lut_surrogate
from hlt_train.clocks import FLAGS
from hlt_train.exporters._compiler import find_compiler, version
from hlt_train.files import read_document, write_bytes, write_document
from hlt_train.graph import Graph
from hlt_train.machine import machine
from hlt_train.progress import Progress
from hlt_train.run import Run
from hlt_train.search_space import shape_of

__all__ = ["LOGIC", "SMALL", "latency", "logic", "small_model"]

LATENCY, LOGIC = "latency_table.json", "lut_surrogate.json"
SMALL = (((4,), 4), ((8,), 6), ((8, 4), 3), ((6, 6), 8), ((12,), 3), ((4, 4, 4), 6), ((10,), 4), ((6, 4), 5))  # widths and bits of what alkaid traces
HELD_OUT = 2  # the last of them


def latency(given: str | None, folder: Path, isa: str, run: Run, progress: Progress) -> dict[str, Any]:
    """The latency table in `folder`, which is that of the file `given`, or is measured first; it knows the code path `isa`."""
    path = folder / LATENCY
    if not path.is_file():
        if given is None:
            progress("no latency table was given: measuring the kernels of this processor (about two minutes)")
            latency_table.calibrate(path, progress=progress)
        else:
            write_bytes(path, Path(given).read_bytes())
    table = latency_table.read_table(path)
    latency_table.check_path(table, isa, where=str(path), then="leave --latency-table out to make one")
    for what in _differences(table):
        run.log(f"warning: {what}")
        progress(f"warning: {what}")
    return table


def logic(folder: Path, clock_ns: float, graphs: Callable[[], Sequence[Graph]], progress: Progress) -> dict[str, Any]:
    """The surrogate of alkaid's estimates in `folder`, fitted first where it is not there yet. graphs: the small networks that are traced then."""
    path = folder / LOGIC
    if not path.is_file():
        small = graphs()
        progress(f"alkaid traces {len(small)} small networks, to predict others")
        write_document(path, *lut_surrogate.FORMAT, lut_surrogate.fit(small, clock_ns, HELD_OUT))
    return read_document(path, *lut_surrogate.FORMAT)


def _differences(table: dict[str, Any]) -> list[str]:
    """What the table was made with and this machine measures with, where they differ."""
    here = {"processor": machine()["cpu"], "compiler": version(find_compiler()), "flags": FLAGS}
    there = {"processor": table["machine"]["cpu"], "compiler": table["compiler"], "flags": table["flags"]}
    return [f"the latency table is of the {word} '{there[word]}', finalists are measured with '{here[word]}'" for word in here if here[word] != there[word]]


def small_model(family: str, widths: Sequence[int]) -> dict[str, Any]:
    """Options of a small network of a family."""
    return shape_of(family, widths if family == "mlp" else widths[:1], [4])

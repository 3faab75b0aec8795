"""Is the code of an export the code that this program writes for its graph? An export may come from a stranger, and what is compiled or loaded runs.

`graph.json` is data: numbers and names, checked when it is read. Everything else that runs is written again from it, and must be the same bytes.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hlt_train import __version__, files
from hlt_train.errors import UsageError
from hlt_train.exporters import Exporter
from hlt_train.graph import Graph

__all__ = ["check_regenerated"]

READ = ("working_points.json",)  # what `complete` may read


def check_regenerated(directory: Path, graph: Graph, exporter: Exporter, program: str) -> None:
    """Write the artefacts again and compare them.

    Args:
        directory: of the export.
        graph: what its graph.json says.
        exporter: with the options that the certificate names.
        program: what the certificate says that it was written by.

    Raises:
        UsageError: a file differs, or is missing.
    """
    with tempfile.TemporaryDirectory(prefix="hlt-train-") as scratch:
        again = Path(scratch)
        exporter.write(graph, again)
        for name in READ:
            if (directory / name).is_file():
                shutil.copyfile(directory / name, again / name)
        exporter.complete(again)
        for name in exporter.artefacts:
            found = directory / name
            if not found.is_file() or files.sha256(found) != files.sha256(again / name):
                ours = f"hlt-train {__version__}"
                told = "" if program == ours else f" ({program} wrote it, this is {ours})"
                raise UsageError(
                    f"{name} is not what this program writes for graph.json{told}, and it would run here",
                    where=str(found),
                    then="export the run again, or give --trust if you know who made these files",
                )

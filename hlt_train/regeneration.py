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
        for path in directory.iterdir():  # what `complete` may read
            if path.is_file() and path.name not in exporter.artefacts and not (again / path.name).exists():
                shutil.copyfile(path, again / path.name)
        exporter.complete(again)
        for name in exporter.artefacts:
            if name in exporter.data:
                continue
            for file in sorted(_below(directory, name) | _below(again, name)):
                found = directory / file
                if not found.is_file() or not (again / file).is_file() or files.sha256(found) != files.sha256(again / file):
                    ours = f"hlt-train {__version__}"
                    told = "" if program == ours else f" ({program} wrote it, this is {ours})"
                    raise UsageError(
                        f"{file} is not what this program writes for graph.json{told}, and it would run here",
                        where=str(found),
                        then="export the run again, or give --trust if you know who made these files",
                    )


def _below(directory: Path, name: str) -> set[str]:
    """The files of an artefact, by their paths in the directory; a name that ends in "/" is a folder."""
    if not name.endswith("/"):
        return {name}
    return {path.relative_to(directory).as_posix() for path in (directory / name).rglob("*") if path.is_file()}

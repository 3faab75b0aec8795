"""A training that is one stage of another command: a run directory of its own inside of that command's, begun or gone on with."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from jax.sharding import Mesh

from hlt_train.preparation import Prepared, describe
from hlt_train.run import Run

__all__ = ["begun", "stage"]


@contextlib.contextmanager
def begun(folder: Path) -> Iterator[tuple[Run, bool]]:
    """(the run in `folder`, whether it had begun before). What was killed before it was a run is begun anew."""
    again = (folder / "config.yaml").is_file()
    if folder.exists() and not again:
        shutil.rmtree(folder)
    with Run.open(folder) if again else Run.create(folder) as run:
        yield run, again


@contextlib.contextmanager
def stage(ready: Prepared, folder: Path, mesh: Mesh) -> Iterator[tuple[Run, bool]]:
    """As `begun`; a new run is described."""
    with begun(folder) as (run, again):
        if not again:
            describe(ready, mesh, run)
        yield run, again

"""A training that is one stage of another command: a run directory of its own inside of that command's, begun or gone on with."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from jax.sharding import Mesh

from hlt_train.preparation import Prepared, describe
from hlt_train.run import Run

__all__ = ["stage"]


@contextlib.contextmanager
def stage(ready: Prepared, folder: Path, mesh: Mesh) -> Iterator[tuple[Run, bool]]:
    """(the run in `folder`, whether it had begun before); a new one is described. What was killed before it was a run is begun anew."""
    again = (folder / "config.yaml").is_file()
    if folder.exists() and not again:
        shutil.rmtree(folder)
    with Run.open(folder) if again else Run.create(folder) as run:
        if not again:
            describe(ready, mesh, run)
        yield run, again

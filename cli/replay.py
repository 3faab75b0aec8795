"""Compute a run by messages once more from the logs of its actors, and compare every bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hlt_train.cli._options import emit, json_option, quiet_option

__all__ = ["command"]


@click.command(short_help="Compute a run by messages once more from its logs.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--inexact", is_flag=True, help="Replay although versions or machine differ: the bits may then differ, too.")
@json_option
@quiet_option
def command(run: Path, inexact: bool, as_json: bool, quiet: bool) -> None:
    """Replay RUN, a finished run of the transports simulate or mpi, in one process, from what its actors logged that they consumed.

    The final state of every worker and every server shard must have the hash that the run recorded; exit code 1 otherwise.
    """
    from hlt_train.progress import Progress
    from hlt_train.replay import replay

    progress = Progress(quiet=quiet)
    result = replay(run, inexact=inexact, progress=progress)
    progress.close()
    emit(result, as_json=as_json, text=_summary)


def _summary(result: dict[str, Any]) -> str:
    return (
        f"{result['run']}: {result['actors']} actors, {result['batches']:,} batches replayed in {result['seconds']:.1f} s, "
        f"every state equal to the bit\nparameters sha256 {result['params']}"
    )

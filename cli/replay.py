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
@click.option("--serial", is_flag=True, help="Do the batches of a run without server one after the other, and print how far from that the run came out.")
@json_option
@quiet_option
def command(run: Path, inexact: bool, serial: bool, as_json: bool, quiet: bool) -> None:
    """Replay RUN, a finished run of the transports simulate or mpi, in one process, from what its actors logged that they consumed.

    The final state of every worker and every server shard must have the hash that the run recorded; exit code 1 otherwise. A run whose workers raced on shared
    parameters (Hogwild by processes) has no order and is refused; --serial says by how much the race mattered.
    """
    from hlt_train.progress import Progress
    from hlt_train.replay import replay

    progress = Progress(quiet=quiet)
    result = replay(run, inexact=inexact, serial=serial, progress=progress)
    progress.close()
    emit(result, as_json=as_json, text=_deviation if serial else _summary)


def _summary(result: dict[str, Any]) -> str:
    return (
        f"{result['run']}: {result['actors']} actors, {result['batches']:,} batches replayed in {result['seconds']:.1f} s, "
        f"every state equal to the bit\nparameters sha256 {result['params']}"
    )


def _deviation(result: dict[str, Any]) -> str:
    from hlt_train.report.table import table

    parameters = result["parameters"]
    rows = [["parameters, distance", f"{parameters['distance']:.4g}", f"{100 * parameters['relative']:.3g} % of the way from the start"]]
    rows += [["parameters, largest", f"{parameters['largest']:.4g}", ""]]
    for name in ("losses", "norms"):
        if name in result:
            found = result[name]
            what = {"losses": "loss of a batch", "norms": "norm of an update"}[name]
            rows.append([what, f"{found['mean_distance']:.4g}", f"mean {found['race']:.4g} in the run, {found['serial']:.4g} one after the other"])
    return table(rows, [f"{result['updates']:,} batches", "deviation", ""])

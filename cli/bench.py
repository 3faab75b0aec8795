"""Measure the latency of an export again, beside what its certificate says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hlt_train.cli._options import emit, json_option, quiet_option, trust_option

__all__ = ["command"]


@click.command(short_help="Measure an export's latency again.")
@click.argument("export", metavar="EXPORT", type=click.Path(path_type=Path))
@trust_option
@json_option
@quiet_option
def command(export: Path, trust: bool, as_json: bool, quiet: bool) -> None:
    """Time the artefact in EXPORT (one target's directory) at batch 1 on this machine, as `export` did when it certified it.

    Figures of another machine, compiler or instruction set differ; the table says what each was measured with. For steady figures leave the machine idle
    and pin the process: taskset -c 1 hlt-train bench EXPORT.
    """
    from hlt_train.bench import bench
    from hlt_train.progress import Progress

    progress = Progress(quiet=quiet)
    result = bench(export, trust=trust, progress=progress)
    progress.close()
    emit(result, as_json=as_json, text=_text)


def _text(result: dict[str, Any]) -> str:
    from hlt_train.report.table import table

    then, now = result["certified"], result["now"]
    names = {"median_ns": "median", "p99_ns": "p99", "cold_p50_ns": "cold p50"}
    rows = [[names[key], f"{then[key]:,.0f} ns", f"{now[key]:,.0f} ns", f"{ratio:.2f}"] for key, ratio in result["ratio"].items()]
    rows += [[key, str(then.get(key, "")), str(now.get(key, "")), ""] for key in ("method", "compiler", "flags", "isa") if key in then or key in now]
    rows.append(["processor", *(str(result["machine"][when]["cpu"]) for when in ("certified", "now")), ""])
    return table(rows, [f"bench {result['target']}", "certified", "now", "ratio"])

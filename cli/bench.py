"""Measure the latency of an export again, beside what its certificate says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hlt_train.cli._options import emit, json_option, quiet_option, trust_option
from hlt_train.errors import UsageError

__all__ = ["command"]


@click.command(short_help="Measure an export's latency again.")
@click.argument("export", metavar="[EXPORT]", required=False, type=click.Path(path_type=Path))
@click.option("--calibrate", metavar="FILE.json", type=click.Path(path_type=Path), help="Fit the cost table of this machine and compiler, and write it there.")
@trust_option
@json_option
@quiet_option
def command(export: Path | None, calibrate: Path | None, trust: bool, as_json: bool, quiet: bool) -> None:
    """Time the artefact in EXPORT (one target's directory) at batch 1 on this machine, as `export` did when it certified it.

    Figures of another machine, compiler or instruction set differ; the table says what each was measured with. For steady figures leave the machine idle
    and pin the process: taskset -c 1 hlt-train bench EXPORT.

    With --calibrate (and no EXPORT) generated networks are compiled and timed, and what each kernel of the C++ header costs is fitted for every code path
    that this processor has: minutes.
    """
    from hlt_train.progress import Progress

    if (export is None) == (calibrate is None):
        what = "bench what?" if export is None else "--calibrate times generated networks, not an export"
        raise UsageError(what, then="hlt-train bench EXPORT, or hlt-train bench --calibrate FILE.json")
    progress = Progress(quiet=quiet)
    if export is not None:
        from hlt_train.bench import bench

        result, text = bench(export, trust=trust, progress=progress), _text
    else:
        from hlt_train.latency_table import calibrate as fit

        assert calibrate is not None
        result, text = fit(calibrate, progress=progress), _table_text
    progress.close()
    emit(result, as_json=as_json, text=text)


def _text(result: dict[str, Any]) -> str:
    from hlt_train.report.table import table

    then, now = result["certified"], result["now"]
    names = {"median_ns": "median", "p99_ns": "p99", "cold_p50_ns": "cold p50"}
    rows = [[names[key], f"{then[key]:,.0f} ns", f"{now[key]:,.0f} ns", f"{ratio:.2f}"] for key, ratio in result["ratio"].items()]
    rows += [[key, str(then.get(key, "")), str(now.get(key, "")), ""] for key in ("method", "compiler", "flags", "isa") if key in then or key in now]
    rows.append(["processor", *(str(result["machine"][when]["cpu"]) for when in ("certified", "now")), ""])
    return table(rows, [f"bench {result['target']}", "certified", "now", "ratio"])


def _table_text(result: dict[str, Any]) -> str:
    from hlt_train.report.table import table

    names = list(next(iter(result["paths"].values()))["ns"])
    rows = []
    for path, found in result["paths"].items():
        errors = [f"{100 * found[part][which]:.0f} %" for part in ("fit", "held_out") for which in ("median", "worst")]
        rows.append([path, *(f"{found['ns'][name]:.2f}" for name in names), *errors])
    head = table(rows, ["ns per", *names, "fit, median", "worst", "held out, median", "worst"])
    return f"{head}\n{result['compiler']}, {result['flags']}, {result['machine']['cpu']}; written to {result['out']}"

"""Train specialists for the classes that a generalist confuses, joined to an ensemble."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hlt_train.cli._config import assignments, given, override_files
from hlt_train.cli._options import emit, files_option, json_option, quiet_option, set_option
from hlt_train.cli._training import (
    TRAINING_KEYS,
    batch_option,
    checkpoint_every_option,
    devices_option,
    inexact_option,
    keep_option,
    optimizer_option,
    refuse_beside_resume,
    resident_option,
    threads_option,
)
from hlt_train.errors import UsageError

__all__ = ["command"]

# parameter of the command -> key of the configuration
KEYS = TRAINING_KEYS | {
    "count": "count",
    "size": "size",
    "top": "top",
    "temperature": "temperature",
    "share": "lambda",
}
WITH_RESUME = {"resume", "inexact", "as_json", "quiet"}


@click.command(short_help="Train specialists for the classes that a generalist confuses.")
@click.argument("generalist", metavar="[GENERALIST_RUN]", required=False, type=click.Path(path_type=Path))
@click.option("--run", "run", metavar="DIR", type=click.Path(path_type=Path), help="The directory of the ensemble to make; it must not exist.")
@files_option
@click.option("--count", type=int, metavar="N", help="Specialists.  [default: as many sets of two classes or more as there are]")
@click.option("--size", type=int, metavar="N", help="Classes of every set, which may then overlap.  [default: the clusters, disjoint]")
@click.option("--top", type=int, metavar="N", help="A specialist is asked where its set holds one of the generalist's N most probable classes.  [default: 1]")
@click.option("--for", "length", metavar="LENGTH", help="Of each specialist: 5epochs, 5000steps or 3e6events.  [default: 5epochs]")
@click.option("--learning-rate", type=float, metavar="RATE", help="Peak of the schedule.  [default: 0.001]")
@click.option("--lambda", "share", type=float, metavar="L", help="Share of the generalist's soft targets in a specialist's loss.  [default: 0]")
@click.option("--temperature", type=float, metavar="T", help="Of the soft targets.  [default: 2]")
@batch_option
@optimizer_option
@click.option("--schedule", metavar="NAME", help="By its name in optax, over each specialist.  [default: cosine_decay_schedule]")
@devices_option
@click.option("--seed", type=int, metavar="N", help="Of the order of the rows and dropout of the first specialist; the next ones count on.  [default: 1]")
@click.option("--patience", type=int, metavar="N", help="Stop a specialist after N epochs without a better validation loss.")
@resident_option
@threads_option
@checkpoint_every_option
@keep_option
@click.option("--resume", metavar="DIR", type=click.Path(path_type=Path), help="Continue an ensemble exactly where it was.")
@inexact_option
@click.option("--dry-run", is_flag=True, help="Find the sets, compile, run one step, print sets, shapes, memory and speed; write nothing.")
@click.option("--config", metavar="FILE", type=click.Path(path_type=Path), help="A configuration, for instance DIR/config.yaml; flags win over it.")
@set_option
@json_option
@quiet_option
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Find the classes that the float network of GENERALIST_RUN (at BEST) confuses, train a specialist for each set of them, and join all to an ensemble.

    Sets are clusters of classes that are predicted together, or given: --set 'sets=[[g,q],[W,Z]]'. A specialist begins as the generalist, with one more
    class for all others. DIR can be evaluated, predicted with, and is a teacher: hlt-train distil DIR --run STUDENT.
    """
    from hlt_train.progress import Progress

    progress = Progress(quiet=options["quiet"])
    result = _resume(ctx, progress) if options["resume"] is not None else _specialists(ctx, progress)
    progress.close()
    emit(result, as_json=options["as_json"], text=_trial if options["dry_run"] else _summary)


def _resume(ctx: click.Context, progress: Any) -> dict[str, Any]:
    options = ctx.params
    refuse_beside_resume(ctx, WITH_RESUME, "ensemble", then="a new --run with --config")
    from hlt_train.specialists import resume

    return resume(options["resume"], inexact=options["inexact"], progress=progress)


def _specialists(ctx: click.Context, progress: Any) -> dict[str, Any]:
    from hlt_train.configuration import check, merge
    from hlt_train.run import read_config

    options = ctx.params
    if options["run"] is None and not options["dry_run"]:
        raise UsageError("specialists needs a directory to write", then="hlt-train specialists GENERALIST_RUN --run DIR (or --dry-run)")
    stored = {} if options["config"] is None else read_config(options["config"])
    content = merge(stored, given(ctx, KEYS), assignments(ctx))
    if options["generalist"] is not None:
        content["generalist"] = str(options["generalist"].absolute())
    if content.get("generalist") is None:
        raise UsageError("specialists needs a generalist", then="hlt-train specialists GENERALIST_RUN --run DIR")
    if options["files"]:
        own = content.get("card") or read_config(Path(content["generalist"])).get("card") or {}
        content["card"] = override_files(own, options["files"], {})

    from hlt_train.specialist_training import SpecialistsConfig
    from hlt_train.specialists import dry_run, specialists

    config = check(SpecialistsConfig, content, where=str(options["config"] or ""))
    return dry_run(config, progress=progress) if options["dry_run"] else specialists(config, options["run"], progress=progress)


def _sets(sets: list[dict[str, Any]]) -> str:
    from hlt_train.report.table import table

    rows = []
    for number, found in enumerate(sets, 1):
        confused = [f"{100 * found['confused'][key]:.1f} %" for key in ("within", "outside")]
        rows.append([f"{number}: {', '.join(found['classes'])}", f"{100 * found['share']:.1f} %", *confused, f"{found['correction']:+.3f}"])
    return table(rows, ["specialist", "of the training rows", "confused within", "taken for others", "dustbin's logit"])


def _summary(result: dict[str, Any]) -> str:
    from hlt_train.report.evaluation import brief
    from hlt_train.report.table import table

    rows = [["ensemble", f"{result['run']}, {result['parameters']:,} parameters"], ["generalist", result["generalist"]]]
    parts = [table(rows, ["specialists", ""]), _sets(result["sets"])]
    if result["figures"] is not None:
        parts.append(_figures(result["figures"]))
    if result["evaluation"] is not None and result["evaluation"]["sections"]:
        parts.append(brief([result["evaluation"]]))
    return "\n\n".join(parts)


def _figures(found: dict[str, Any]) -> str:
    from hlt_train.report.table import plus_minus, table

    def text(value: dict[str, float] | None) -> str:
        return "" if value is None else plus_minus(value["value"], value["error"])

    rows = []
    for name, part in [("all", found["all"]), *((", ".join(each["classes"]), each) for each in found["sets"])]:
        for figure in ("accuracy", "cross_entropy"):
            columns = [text(part[figure].get(network)) for network in ("generalist", "specialist", "ensemble", "difference")]
            rows.append([name, figure.replace("_", "-"), *columns])
    header = ["rows of", "figure", "generalist", "specialist alone", "ensemble", "ensemble - generalist"]
    return table(rows, header) + f"\n{found['rows']:,} rows of the {found['split']} split; errors count events, those of differences are paired"


def _trial(result: dict[str, Any]) -> str:
    from hlt_train.report.table import table

    rows = [[key.replace("_", " "), str(value)] for key, value in result.items() if key not in ("parameters", "sets")]
    rows += [[f"parameter {name}", str(shape)] for name, shape in result["parameters"].items()]
    return _sets(result["sets"]) + "\n\n" + table(rows, ["dry run", ""])

"""Train a teacher from ROOT files (no card: toy jets)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from hlt_train.cli._config import assignments, card_content, given, override_files
from hlt_train.cli._options import CARD, emit, files_option, json_option, quiet_option, set_option
from hlt_train.cli._training import (
    TRAINING_KEYS,
    batch_option,
    checkpoint_every_option,
    inexact_option,
    keep_option,
    optimizer_option,
    patience_option,
    refuse_beside_resume,
    resident_option,
    threads_option,
)
from hlt_train.errors import UsageError

__all__ = ["command"]

# parameter of the command -> key of the configuration
KEYS = TRAINING_KEYS | {
    "model": "model",
    "strategy": "strategy",
    "transport": "transport",
    "workers": "transport.workers",
    "servers": "transport.servers",
    "wire": "transport.wire",
    "exchange": "transport.exchange",
    "overlap": "transport.overlap",
    "with_ft": "transport.with_ft",
    "respawn": "transport.respawn",
    "backups": "strategy.backups",
    "scan": "scan",
    "buffer": "buffer",
    "init_from": "init_from",
}
WITH_RESUME = {"length", "workers", "devices", "nodes", "resume", "inexact", "as_json", "quiet"}


@click.command(short_help="Train a teacher from ROOT files.")
@click.argument("card", metavar=f"[{CARD}]", required=False)
@click.option("--run", "run", metavar="DIR", type=click.Path(path_type=Path), help="The run directory to make; it must not exist.")
@files_option
@click.option("--train", metavar="GLOB", multiple=True, help="Files of the training split (repeatable, with --val and --test; replaces the card's splits).")
@click.option("--val", metavar="GLOB", multiple=True, help="Files of the validation split.")
@click.option("--test", metavar="GLOB", multiple=True, help="Files of the test split.")
@click.option("--for", "length", metavar="LENGTH", help="20epochs, 5000steps or 3e6events.  [default: 20epochs]")
@batch_option
@click.option("--model", metavar="NAME", help="Architecture; its options: --set model.OPTION=VALUE.  [default: mlp]")
@optimizer_option
@click.option("--learning-rate", type=float, metavar="RATE", help="Peak of the schedule.  [default: 0.003]")
@click.option("--schedule", metavar="NAME", help="By its name in optax, over the whole length.  [default: cosine_decay_schedule]")
@click.option("--strategy", metavar="NAME", help="Distributed SGD rule.  [default: sync]")
@click.option("--transport", metavar="NAME", help="lockstep, simulate or mpi; its options: --set transport.OPTION=VALUE.  [default: lockstep]")
@click.option("--workers", type=int, metavar="N", help="Workers of simulate and mpi (lockstep: --devices).  [default: 2]")
@click.option("--servers", type=int, metavar="S", help="Shards of the parameter server of simulate and mpi.  [default: 1]")
@click.option("--backups", type=int, metavar="B", help="Workers whose gradients a round of sync does not wait for.  [default: 0]")
@click.option("--wire", metavar="FORMAT", help="Numbers of messages: float32, bfloat16, float16 or int8.  [default: float32]")
@click.option("--exchange", metavar="HOW", help="How a mean is formed: allreduce or alltoall; mpi also server.")
@click.option("--overlap", is_flag=True, help="Workers of simulate and mpi go on while an answer is under way.")
@click.option("--with-ft", is_flag=True, help="mpi: survive killed processes (Open MPI's fault tolerance).")
@click.option("--respawn", type=int, metavar="N", help="mpi: replace up to N killed workers.")
@click.option(
    "--devices", type=int, metavar="N", help="Devices of this machine, or of all --nodes together; --resume may change it.  [default: 1 on a CPU, all GPUs]"
)
@click.option(
    "--nodes",
    metavar="HOST:PORT,COUNT,INDEX",
    help="lockstep: this process is INDEX of COUNT; process 0 is reached at HOST:PORT. Under mpirun or srun HOST:PORT is enough.",
)
@click.option("--seed", type=int, metavar="N", help="Of the weights, the order of the rows and dropout.  [default: 1]")
@patience_option
@resident_option
@click.option("--buffer", type=int, metavar="ROWS", help="Rows shuffled together when the data are streamed.  [default: 131072]")
@click.option("--scan", type=int, metavar="N", help="Most steps per call into the device.  [default: 32]")
@threads_option
@checkpoint_every_option
@keep_option
@click.option("--init-from", metavar="RUN", help="Start from the weights (BEST) and the normalisation of another run.")
@click.option("--resume", metavar="DIR", type=click.Path(path_type=Path), help="Continue a run exactly where it was; with --for, to a later end.")
@inexact_option
@click.option("--dry-run", is_flag=True, help="Open the files, compile, run one step, print shapes, memory and speed; write nothing.")
@click.option(
    "--config", metavar="FILE", type=click.Path(path_type=Path), help="A configuration, for instance RUN/config.yaml; flags and HLT_TRAIN_FIT_* win over it."
)
@set_option
@json_option
@quiet_option
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Train a teacher on the samples of CARD (a YAML file, or an embedded card: toy_jets, toy_events) and write a run directory.

    Without CARD: 40,000 toy jets, written under the run. The validation split is evaluated after every epoch; BEST is the epoch with the lowest loss.
    --set augment.TRANSFORM.OPTION=VALUE changes the rows of every training batch (docs/distillation.md).
    """
    from hlt_train.progress import Progress
    from hlt_train.transports.launch import assign_gpu, launched

    if launched() is not None:
        assign_gpu()  # before jax is imported
    if options["nodes"] is not None:
        os.environ["HLT_TRAIN_NODES"] = options["nodes"]  # where every part of the program looks for it
    speaks = True
    if os.environ.get("HLT_TRAIN_NODES"):
        from hlt_train import cluster

        speaks = cluster.first()
    progress = Progress(quiet=options["quiet"] or not speaks)
    result = _fit(ctx, progress) if options["resume"] is None else _resume(ctx, progress)
    progress.close()
    if result is None or not speaks:  # another process says how the run ended
        return
    emit(result, as_json=options["as_json"], text=_trial if options["dry_run"] else _summary)


def _resume(ctx: click.Context, progress: Any) -> dict[str, Any] | None:
    options = ctx.params
    refuse_beside_resume(ctx, WITH_RESUME, "run", then="a new --run with --config and --init-from")
    from hlt_train.run import check_is_run, read_config

    check_is_run(options["resume"], then="hlt-train fit --run DIR starts a new run")
    if read_config(options["resume"]).get("transport", {}).get("name") == "mpi":
        import sys

        from hlt_train.processes import resume_by_processes

        more = {name: options[name] for name in ("length", "workers", "inexact")}
        return resume_by_processes(options["resume"], sys.argv, **more, progress=progress)
    if ctx.get_parameter_source("workers") == click.core.ParameterSource.COMMANDLINE:
        raise UsageError("--workers with --resume is for runs by processes (--transport mpi)", then="leave it out")
    from hlt_train.fit import resume

    return resume(options["resume"], length=options["length"], inexact=options["inexact"], devices_now=options["devices"], progress=progress)


def _fit(ctx: click.Context, progress: Any) -> dict[str, Any] | None:
    import tempfile

    from hlt_train.configuration import check, merge
    from hlt_train.run import read_config

    options = ctx.params
    if options["run"] is None and not options["dry_run"]:
        raise UsageError("fit needs a directory to write", then="hlt-train fit ... --run DIR (or --dry-run)")
    stored = {} if options["config"] is None else read_config(options["config"])
    card = card_content(options["card"], stored)
    content = merge(stored, {} if card is None else {"card": card}, given(ctx, KEYS), assignments(ctx))
    splits = {"train": options["train"], "validation": options["val"], "test": options["test"]}
    if content.get("card") is not None:
        content["card"] = override_files(content["card"], options["files"], splits)
    elif options["files"] or any(splits.values()):
        raise UsageError("--files, --train, --val and --test need a CARD that says what the files hold", then="hlt-train inspect FILE drafts one")
    if content.get("init_from") is not None:
        content["init_from"] = str(Path(content["init_from"]).absolute())

    from hlt_train.fit import FitConfig, dry_run, fit

    config = check(FitConfig, content, where=str(options["config"] or ""))
    if options["dry_run"]:
        with tempfile.TemporaryDirectory() as scratch:
            return dry_run(config, Path(scratch), progress=progress)
    if config.transport["name"] == "mpi":
        import sys

        from hlt_train.processes import fit_by_processes

        return fit_by_processes(config, options["run"], sys.argv, progress=progress)
    return fit(config, options["run"], progress=progress)


def _summary(result: dict[str, Any]) -> str:
    from hlt_train.report.table import table

    speed = "" if result["rows_per_s"] is None else f", {result['rows_per_s']:,.0f} rows/s"
    rows = [
        ["run", result["run"]],
        ["model", f"{result['model']}, {result['parameters']:,} parameters"],
        ["rows", ", ".join(f"{split} {count:,}" for split, count in result["rows"].items())],
        ["trained", f"{result['steps']:,} steps, {result['epochs']:.4g} epochs ({result['stopped']}){speed}"],
        ["best", f"step {result['best']['step']:,}"],
        *([f"validation {name}", f"{value:.5g}"] for name, value in result["validation"].items()),
    ]
    if "traffic" in result:
        from hlt_train.report.traffic import brief

        rows += brief(result["traffic"], result["coverage"])
    return table(rows, ["fit", ""])


def _trial(result: dict[str, Any]) -> str:
    from hlt_train.report.table import table

    rows = [[key.replace("_", " "), value if isinstance(value, str) else f"{value}"] for key, value in result.items() if key != "parameters"]
    rows += [[f"parameter {name}", str(shape)] for name, shape in result["parameters"].items()]
    return table(rows, ["dry run", ""])

"""What the verbs that train have in common: options, each a decorator of its own, their keys in a configuration, what `--resume` does not take."""

from __future__ import annotations

from collections.abc import Collection

import click
from click.core import ParameterSource

from hlt_train.errors import UsageError

__all__ = [
    "TRAINING_KEYS",
    "batch_option",
    "checkpoint_every_option",
    "devices_option",
    "inexact_option",
    "keep_option",
    "optimizer_option",
    "patience_option",
    "refuse_beside_resume",
    "resident_option",
    "threads_option",
]

# parameter of a command -> key of the configuration
TRAINING_KEYS = {
    "optimizer": "optimizer",
    "schedule": "schedule",
    "learning_rate": "learning_rate",
    "batch": "batch",
    "length": "for",
    "seed": "seed",
    "devices": "devices",
    "resident": "resident",
    "checkpoint_every": "checkpoint_every",
    "keep": "keep",
    "patience": "patience",
    "threads": "threads",
}

batch_option = click.option("--batch", type=int, metavar="N", help="Rows per step over all devices.  [default: 512]")
checkpoint_every_option = click.option(
    "--checkpoint-every", type=int, metavar="STEPS", help="Steps between checkpoints.  [default: the ends of epochs, 5 s apart]"
)
devices_option = click.option("--devices", type=int, metavar="N", help="Devices of this machine.  [default: 1 on a CPU, all GPUs]")
inexact_option = click.option("--inexact", is_flag=True, help="Resume although versions or machine differ and the result will not be the same to the bit.")
keep_option = click.option("--keep", type=int, metavar="N", help="Checkpoints kept besides LAST and BEST.  [default: 3]")
optimizer_option = click.option("--optimizer", metavar="NAME", help="By its name in optax; its options: --set optimizer.OPTION=VALUE.  [default: adam]")
patience_option = click.option("--patience", type=int, metavar="N", help="Stop after N epochs without a better validation loss.")
resident_option = click.option(
    "--resident", type=click.Choice(["auto", "always", "never"]), help="Keep the decoded data on the device; auto: up to a quarter of its memory."
)
threads_option = click.option("--threads", type=int, metavar="N", help="Threads that decompress.")


def refuse_beside_resume(ctx: click.Context, taken: Collection[str], what: str, *, then: str) -> None:
    """Refuse flags beside `--resume`, which goes on with a `what` as it is configured, but for the parameters that it takes."""
    extra = [p for p in ctx.params if p not in taken and ctx.get_parameter_source(p) == ParameterSource.COMMANDLINE]
    if extra:
        names = ", ".join(f"'{name.replace('_', '-')}'" for name in extra)
        raise UsageError(f"--resume continues the {what} as it is configured; it does not take {names}", then=then)

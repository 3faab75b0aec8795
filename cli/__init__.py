"""The command line: a group that loads a command's file only when it is called. The only room that imports click."""

from __future__ import annotations

import difflib
import importlib
import os
import pkgutil
import sys
from typing import Any

import click

from hlt_train import __version__
from hlt_train.errors import HltTrainError

__all__ = ["main"]

EPILOG = "Exit codes: 0 done, 1 the run failed, 2 usage or configuration, 3 budget not met, 130 interrupted after saving."


class Lazy(click.Group):
    """Commands are the files of this folder whose names have no leading underscore; each defines `command`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands, without importing them."""
        order = ["toy", "inspect", "fit", "specialists", "distil", "export", "bench", "evaluate", "predict", "replay"]
        found = [module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")]
        return sorted(found, key=lambda name: (order.index(name) if name in order else len(order), name))

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import one command."""
        if name not in self.list_commands(ctx):
            return None
        command: click.Command = importlib.import_module(f"{__name__}.{name}").command
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """As click, but an unknown command names the nearest ones."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], self.list_commands(ctx))
            if not near or "Did you mean" in error.message:
                raise
            raise click.UsageError(f"{error.message} Did you mean {' or '.join(near)}?", ctx) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One line per command, read from the file's docstring: `--help` imports nothing heavy."""
        rows = []
        for name in self.list_commands(ctx):
            module = importlib.import_module(f"{__name__}.{name}")
            rows.append((name, (module.__doc__ or "").partition("\n")[0]))
        if not rows:
            return
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "HLT_TRAIN", "max_content_width": 120}, epilog=EPILOG)
@click.version_option(__version__, prog_name="hlt-train")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def group(ctx: click.Context, debug: bool) -> None:
    """From ROOT files to a network that runs in a trigger: fit a teacher, distil a fixed-point student, export it bit for bit."""
    ctx.obj = {"debug": debug}


def main(arguments: list[str] | None = None) -> None:
    """Run the program and exit with the documented code; errors are text on stderr, without a traceback unless `--debug`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    failure: BaseException | None = None
    try:
        result: Any = group.main(args=arguments, prog_name="hlt-train", standalone_mode=False)
        code = result if isinstance(result, int) else 0
    except HltTrainError as error:
        if debug:
            raise
        if "HLT_TRAIN_RANKS" not in os.environ or error.exit_code == 130:  # of several processes the one that started them speaks
            click.echo(f"Error: {error}", err=True)
        code, failure = error.exit_code, error
    except click.exceptions.Exit as error:
        code = error.exit_code
    except click.ClickException as error:
        error.show()
        code = 2
    except (KeyboardInterrupt, click.Abort):
        click.echo("Interrupted before anything had to be saved.", err=True)
        code = 130
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): not an error of ours. Python would complain once more when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        if debug:
            raise
        click.echo(
            f"Error: this is a bug in hlt-train {__version__}: {type(error).__name__}: {error}\n  next:    run again with --debug and report the traceback",
            err=True,
        )
        code, failure = 1, error
    raise SystemExit(code) from failure  # whoever started this process as one of several finds there what to say

"""Rates, efficiencies and latency of runs and exports, side by side, with errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hlt_train.cli._options import emit, files_option, json_option, parse_files, quiet_option, trust_option
from hlt_train.errors import UsageError

__all__ = ["command"]


@click.command(short_help="Compare runs and exports: rates, efficiencies, latency.")
@click.argument("sources", metavar="RUN|EXPORT...", nargs=-1, required=True, type=click.Path(path_type=Path))
@files_option
@click.option("--input-rate", "rates", metavar="[NAME=]RATE", multiple=True, help="Input rate of a sample, for instance 100kHz (replaces the card's).")
@click.option("--rate", "rate", metavar="RATE,...", help="Report the efficiency at these rates, for instance 10Hz,50Hz.  [default: the card's working points]")
@click.option("--mistag", metavar="P%,...", help="Report the efficiency at these misidentification probabilities, for instance 1%,5%.")
@click.option("--eff", metavar="P%,...", help="Report the rate at these signal efficiencies.  [default: 50%,80%,95%]")
@click.option("--split", type=click.Choice(["train", "validation", "test"]), default="test", show_default=True, help="The split of the card to evaluate.")
@click.option("--replicas", type=click.IntRange(min=2), metavar="N", help="Of the bootstrap.  [default: 100 to 400, by the number of rows]")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the bootstrap.")
@click.option("--latency/--no-latency", default=True, show_default=True, help="Measure the time of one call.")
@click.option("--brief", "short", is_flag=True, help="One line per network, at the first request, instead of every table.")
@trust_option
@json_option
@quiet_option
def command(sources: tuple[Path, ...], files: tuple[str, ...], short: bool, as_json: bool, quiet: bool, **options: Any) -> None:
    """Evaluate runs (at BEST; a fixed-point run by the golden evaluator) and exports (the artefact itself runs) on the same events.

    Prints efficiency at each rate, rate at each efficiency, the reference cut and the best single variable, each network against its teacher (or the
    first one) with paired errors, and latency at batch 1. The rows are the test split of the card that the first network was trained with.
    """
    from hlt_train.evaluate import evaluate
    from hlt_train.progress import Progress
    from hlt_train.report.evaluation import brief, evaluation_text

    progress = Progress(quiet=quiet)
    result = evaluate(
        sources,
        files=parse_files(files),
        rates=options["rates"],
        requests=_requests(options["rate"], options["mistag"], options["eff"]),
        split=options["split"],
        replicas=options["replicas"],
        seed=options["seed"],
        latency=options["latency"],
        trust=options["trust"],
        progress=progress,
    )
    progress.close()
    emit(result, as_json=as_json, text=(lambda found: brief([found])) if short else evaluation_text)


def _requests(rate: str | None, mistag: str | None, eff: str | None) -> list[Any]:
    from pydantic import ValidationError

    from hlt_train.data.trigger_card import WorkingPoint
    from hlt_train.trigger.working_points import Request

    found = []
    for option, prefix, text in (("--rate", "", rate), ("--mistag", "mistag ", mistag), ("--eff", "eff ", eff)):
        for part in (text or "").split(",") if text else ():
            try:
                point = WorkingPoint.model_validate(prefix + part.strip())
            except ValidationError as error:
                raise UsageError(error.errors()[0]["msg"].removeprefix("Value error, "), where=option) from error
            if option == "--rate" and point.kind != "rate":
                raise UsageError(f"'{part}' is not a rate", where=option, then="--rate 50Hz, --mistag 1%, --eff 80%")
            found.append(Request(point.kind, point.value, str(point)))
    return found

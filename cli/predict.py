"""Write scores, decisions and identities of ROOT files into a new ROOT file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hlt_train.cli._options import emit, json_option, quiet_option, trust_option

__all__ = ["command"]


@click.command(short_help="Scores and decisions of ROOT files as a new ROOT file.")
@click.argument("source", metavar="RUN|EXPORT", type=click.Path(path_type=Path))
@click.argument("files", metavar="FILES...", nargs=-1, required=True)
@click.option("--out", metavar="OUT.root", required=True, type=click.Path(path_type=Path), help="The file to make; it must not exist.")
@trust_option
@json_option
@quiet_option
def command(source: Path, files: tuple[str, ...], out: Path, trust: bool, as_json: bool, quiet: bool) -> None:
    """Score FILES (paths or globs, or NAME=GLOB for a sample of the card) with a run at BEST or with an exported artefact.

    OUT.root gets a tree `Scores` with one row per example that passes the card's selection, in the order of the files: identity, scores per class,
    discriminant, integer score, a bit per working point, labels where the files have them, and the card's observers.
    """
    from hlt_train.predict import predict
    from hlt_train.progress import Progress

    progress = Progress(quiet=quiet)
    result = predict(source, files, out, trust=trust, progress=progress)
    progress.close()
    emit(result, as_json=as_json, text=_text)


def _text(result: dict[str, Any]) -> str:
    from hlt_train.report.table import table

    rows = [
        ["network", f"{result['network']}, {result['kind']} ({result['which']})"],
        ["written", f"{result['out']}, tree {result['tree']}, {result['rows']:,} rows{', labelled' if result['labelled'] else ''}"],
        *[[f"pass {name}", f"{count:,}"] for name, count in result["passing"].items()],
        *[["not finite", f"{name}: {count:,}"] for name, count in result["nonfinite"].items()],
        *[["warning", text] for text in result["warnings"]],
    ]
    return table(rows, ["predict", ""])

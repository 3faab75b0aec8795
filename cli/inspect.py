"""Show what a ROOT file holds, what a data card makes of its files, or what a run by messages did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hlt_train.cli._options import emit, files_option, json_option, parse_assignments, parse_files, set_option
from hlt_train.errors import UsageError

__all__ = ["command"]


@click.command()
@click.argument("source", metavar="FILE|CARD|RUN")
@click.option("--tree", metavar="NAME", help="The tree of a file (default: Events, or the only one).")
@click.option(
    "--entries", type=click.IntRange(min=1), default=10_000, show_default=True, help="Entries of a file whose values are looked at; rows for --sparsity."
)
@files_option
@click.option("--check", is_flag=True, help="A card: read every row too, count NaN and infinities, find damage.")
@click.option("--draft", is_flag=True, help="Print a first card for a file (YAML, to be edited).")
@click.option("--sparsity", is_flag=True, help="A card: Hogwild's Omega, Delta and rho with a model, and whether lock-free training is justified.")
@click.option("--model", metavar="NAME", help="With --sparsity: the model.  [default: mlp]")
@click.option("--batch", type=click.IntRange(min=1), metavar="N", help="With --sparsity: examples of a batch.  [default: 512]")
@set_option
@json_option
def command(
    source: str,
    tree: str | None,
    entries: int,
    files: tuple[str, ...],
    check: bool,
    draft: bool,
    sparsity: bool,
    model: str | None,
    batch: int | None,
    assignments: tuple[str, ...],
    as_json: bool,
) -> None:
    r"""Show the trees, branches, types, codecs and ranges of a ROOT FILE, the samples, rows, splits and classes of a CARD, or what the workers of a RUN did.

    Of a RUN by messages (transports simulate and mpi): each worker's time, the staleness of the updates, what became of every entry.

    \b
    hlt-train inspect data.root
    hlt-train inspect data.root --draft > card.yaml
    hlt-train inspect card.yaml --check
    hlt-train inspect toy_cells --files events=cells.root --sparsity --model sparse_linear
    hlt-train inspect runs/downpour
    """
    from hlt_train import inspect as verb

    if Path(source).is_dir():
        emit(verb.inspect_run(Path(source)), as_json=as_json, text=verb.run_text)
        return
    card = verb.is_card(source)
    for given, name, belongs in (
        (tree, "--tree", "file"),
        (draft, "--draft", "file"),
        (files, "--files", "card"),
        (check, "--check", "card"),
        (sparsity, "--sparsity", "card"),
    ):
        if given and card == (belongs == "file"):
            raise UsageError(f"{name} is for a {belongs}, and '{source}' is a {'card' if card else 'ROOT file'}", then="hlt-train inspect --help")
    for there, name in ((model is not None, "--model"), (batch is not None, "--batch"), (bool(assignments), "--set")):
        if there and not sparsity:
            raise UsageError(f"{name} belongs to --sparsity", then=f"hlt-train inspect {source} --sparsity --model NAME")
    if sparsity and check:
        raise UsageError("--check and --sparsity are two questions", then="ask them one after the other")
    if sparsity:
        from hlt_train.inspect_sparsity import inspect_sparsity, sparsity_text

        size = {} if batch is None else {"batch": batch}
        found = inspect_sparsity(source, parse_files(files), model=model or "mlp", options=model_options(assignments), entries=entries, **size)
        emit(found, as_json=as_json, text=sparsity_text)
    elif card:
        emit(verb.inspect_card(source, parse_files(files), check=check), as_json=as_json, text=verb.card_text)
    elif draft:
        text = verb.draft_card(str(Path(source)), tree, entries=entries)
        emit({"kind": "draft", "card": text}, as_json=as_json, text=lambda _: text.rstrip())
    else:
        emit(verb.inspect_file(source, tree, entries=entries), as_json=as_json, text=verb.file_text)


def model_options(assignments: tuple[str, ...]) -> dict[str, Any]:
    """The options of `--set model.OPTION=VALUE`; nothing else can be set here."""
    given = parse_assignments(assignments)
    options = given.pop("model", {})
    if given or not isinstance(options, dict):
        raise UsageError(f"--set takes model.OPTION=VALUE here, got '{assignments[0]}'", then="for instance --set model.buckets=65536")
    return options

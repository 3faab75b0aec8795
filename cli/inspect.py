"""Show what a ROOT file holds, or what a data card makes of its files."""

from __future__ import annotations

from pathlib import Path

import click

from hlt_train.cli._options import emit, files_option, json_option, parse_files
from hlt_train.errors import UsageError

__all__ = ["command"]


@click.command()
@click.argument("source", metavar="FILE|CARD")
@click.option("--tree", metavar="NAME", help="The tree of a file (default: Events, or the only one).")
@click.option("--entries", type=click.IntRange(min=1), default=10_000, show_default=True, help="Entries of a file whose values are looked at.")
@files_option
@click.option("--check", is_flag=True, help="A card: read every row too, count NaN and infinities, find damage.")
@click.option("--draft", is_flag=True, help="Print a first card for a file (YAML, to be edited).")
@json_option
def command(source: str, tree: str | None, entries: int, files: tuple[str, ...], check: bool, draft: bool, as_json: bool) -> None:
    r"""Show the trees, branches, types, codecs and ranges of a ROOT FILE, or the samples, rows, splits and classes of a CARD.

    \b
    hlt-train inspect data.root
    hlt-train inspect data.root --draft > card.yaml
    hlt-train inspect card.yaml --check
    """
    from hlt_train import inspect as verb

    card = verb.is_card(source)
    for given, name, belongs in ((tree, "--tree", "file"), (draft, "--draft", "file"), (files, "--files", "card"), (check, "--check", "card")):
        if given and card == (belongs == "file"):
            raise UsageError(f"{name} is for a {belongs}, and '{source}' is a {'card' if card else 'ROOT file'}", then="hlt-train inspect --help")
    if card:
        emit(verb.inspect_card(source, parse_files(files), check=check), as_json=as_json, text=verb.card_text)
    elif draft:
        text = verb.draft_card(str(Path(source)), tree, entries=entries)
        emit({"kind": "draft", "card": text}, as_json=as_json, text=lambda _: text.rstrip())
    else:
        emit(verb.inspect_file(source, tree, entries=entries), as_json=as_json, text=verb.file_text)

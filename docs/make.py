"""Write docs/commands.md from the commands' own `--help`; `--check` only says whether it is up to date."""

from __future__ import annotations

import sys
from pathlib import Path

from click.testing import CliRunner

from hlt_train.cli import group

TARGET = Path(__file__).parent / "commands.md"


def page() -> str:
    """The command reference as Markdown."""
    context = group.make_context("hlt-train", [], resilient_parsing=True)
    parts = ["# Commands\n", "Written by `make docs` from the program's own help.\n"]
    for name in ["", *group.list_commands(context)]:
        arguments = [name, "--help"] if name else ["--help"]
        text = CliRunner().invoke(group, arguments, prog_name="hlt-train", terminal_width=120, catch_exceptions=False).output
        parts.append(f"## hlt-train {name}".rstrip() + f"\n\n```text\n{text.rstrip()}\n```\n")
    return "\n".join(parts)


def main() -> None:
    """Write or check."""
    text = page()
    if "--check" in sys.argv:
        sys.exit(0 if TARGET.exists() and TARGET.read_text() == text else "docs/commands.md is out of date: run `make docs`")
    TARGET.write_text(text)


if __name__ == "__main__":
    main()

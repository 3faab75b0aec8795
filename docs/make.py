"""Write the generated pages; `--check` only says whether they are up to date.

docs/commands.md comes from the commands' own `--help`, docs/coverage-of-exports.md from the cases that the tests run.
"""

from __future__ import annotations

import sys
from pathlib import Path

from click.testing import CliRunner

from hlt_train.cli import group

HERE = Path(__file__).resolve().parent


def commands() -> str:
    """The command reference as Markdown."""
    context = group.make_context("hlt-train", [], resilient_parsing=True)
    parts = ["# Commands\n", "Written by `make docs` from the program's own help.\n"]
    for name in ["", *group.list_commands(context)]:
        arguments = [name, "--help"] if name else ["--help"]
        text = CliRunner().invoke(group, arguments, prog_name="hlt-train", terminal_width=120, catch_exceptions=False).output
        parts.append(f"## hlt-train {name}".rstrip() + f"\n\n```text\n{text.rstrip()}\n```\n")
    return "\n".join(parts)


def coverage() -> str:
    """What the tests compare of every export, as Markdown."""
    sys.path.insert(0, str(HERE.parent))
    from tests.exporters.covering import page

    return page()


PAGES = {"commands.md": commands, "coverage-of-exports.md": coverage}


def main() -> None:
    """Write or check."""
    stale = []
    for name, page in PAGES.items():
        target, text = HERE / name, page()
        if "--check" not in sys.argv:
            target.write_text(text)
        elif not target.exists() or target.read_text() != text:
            stale.append(f"docs/{name}")
    if stale:
        sys.exit(f"{', '.join(stale)}: out of date: run `make docs`")


if __name__ == "__main__":
    main()

"""The errors a user can meet, and the exit code of each.

An error says what happened, where (file, tree, branch, entry range), the nearest valid names, and the command to try next. The command line alone turns
them into text and an exit code; library code raises them and never prints.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["BudgetNotMet", "HltTrainError", "Hopeless", "Interrupted", "RunFailed", "UsageError", "nearest", "refuse_unknown"]


class HltTrainError(Exception):
    """Base of every error that is the user's to read.

    Args:
        what: one sentence, what is wrong.
        where: file, tree, branch, entry range, or path inside a document.
        near: the nearest valid names (see `nearest`), best first.
        then: the next command or action.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", near: Iterable[str] = (), then: str = "") -> None:
        self.what = what
        self.where = where
        self.near = tuple(near)
        self.then = then
        super().__init__(what)

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where:   {self.where}")
        if self.near:
            lines.append(f"  nearest: {', '.join(self.near)}")
        if self.then:
            lines.append(f"  next:    {self.then}")
        return "\n".join(lines)


class RunFailed(HltTrainError):
    """The run itself failed: damaged data, divergence, an export that differs. Exit code 1."""

    exit_code = 1


class Hopeless(RunFailed):
    """This network cannot learn as it was asked to: a loss that is not finite, formats that saturate. A search goes on with another. Exit code 1."""


class UsageError(HltTrainError):
    """Usage or configuration: wrong option, card, file or branch. Exit code 2."""

    exit_code = 2


class BudgetNotMet(HltTrainError):
    """No candidate fits the budget. Exit code 3."""

    exit_code = 3


class Interrupted(HltTrainError):
    """Stopped by a signal after the state was saved. Exit code 130."""

    exit_code = 130


def refuse_unknown(section: str, config: Mapping[str, Any], known: Sequence[str]) -> None:
    """Refuse a key that a section of the configuration does not have, with the nearest ones."""
    for key in config:
        if key not in known:
            raise UsageError(f"{section} has no option '{key}'", where=f"{section}.{key}", near=nearest(key, known) or tuple(known))


def nearest(name: str, names: Iterable[str], most: int = 3) -> tuple[str, ...]:
    """The names most like `name`, best first, compared without case; empty when nothing is close.

    >>> nearest("jet_pT", ["jet_eta", "jet_pt", "run"])
    ('jet_pt', 'jet_eta')
    """
    folded: dict[str, str] = {}
    for candidate in names:
        folded.setdefault(candidate.lower(), candidate)
    close = difflib.get_close_matches(name.lower(), folded, n=most, cutoff=0.5)
    return tuple(folded[c] for c in close)

"""What a search knows: every proposal with its costs and its verdict, the figures at each rung, who went on, what was measured. Rewritten after each event.

`RUN/search/search.json` (format `hlt-train/search`, version 1):

    space        what was varied            budget      the limits            isa       the code path that times are of
    rungs        steps at the end of each   factor      one in so many goes on
    candidates   number, what (words), model, precision, options, lengths, predicted (costs), figures,
                 verdict (trained | over budget | same as N | cannot be: ... | failed: ...)
                 a figure: rung, steps, value, error; rungs are left out by a finalist that was called up
    decisions    per rung: steps, entered, went_on
    measured     number -> steps of training at which it was measured, costs, ratio of measured to predicted, fits
    chosen       number; null before the end, and where nothing fits
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hlt_train.files import read_document, write_document

__all__ = ["Record"]

FORMAT = ("hlt-train/search", 1)


class Record:
    """`search.json` of a search directory, read where it is there.

    Attributes:
        content: as it is written, without format and version.
    """

    def __init__(self, path: Path, head: dict[str, Any]) -> None:
        self._path = path
        empty: dict[str, Any] = {**head, "candidates": [], "decisions": [], "measured": {}, "chosen": None}
        self.content = {k: v for k, v in read_document(path, *FORMAT).items() if k not in ("format", "version")} if path.is_file() else empty

    def save(self) -> None:
        """Write it."""
        write_document(self._path, *FORMAT, self.content)

    def candidate(self, number: int) -> dict[str, Any] | None:
        """The entry of a proposal, None where there is none yet."""
        return next((one for one in self.content["candidates"] if one["number"] == number), None)

    def add(self, entry: dict[str, Any]) -> dict[str, Any]:
        """A new proposal."""
        self.content["candidates"].append(entry)
        self.save()
        return entry

    @property
    def trained(self) -> list[dict[str, Any]]:
        """Those that were, or are being, trained."""
        return [one for one in self.content["candidates"] if one["verdict"] == "trained"]

    def figures(self, rung: int) -> dict[int, float]:
        """Candidate -> figure at the end of a rung, of those that came so far."""
        return {one["number"]: figure["value"] for one in self.trained for figure in one["figures"] if figure["rung"] == rung}

"""`ensemble.json`: what an ensemble of a generalist and its specialists consists of. All runs lie below the directory, which can be moved as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hlt_train.errors import RunFailed
from hlt_train.files import read_document, write_document

__all__ = ["FILE", "Part", "is_ensemble", "read", "write"]

FORMAT, FILE = "hlt-train/ensemble", "ensemble.json"
THEN = "hlt-train specialists GENERALIST_RUN --run DIR makes a new one"


class Part(NamedTuple):
    """One network of an ensemble.

    Attributes:
        run: relative to the ensemble.
        step, weights: its checkpoint, and the SHA-256 of the weights.
        classes: that it tells apart, without the dustbin; of the generalist all.
        correction: of the dustbin's logit; 0 of the generalist.
    """

    run: str
    step: int
    weights: str
    classes: tuple[str, ...]
    correction: float


def is_ensemble(path: Path) -> bool:
    """Whether a directory holds a finished ensemble."""
    return (path / FILE).is_file()


def write(path: Path, generalist: Part, specialists: Sequence[Part], top: int) -> None:
    """Write `ensemble.json` into `path`; top: so many of the generalist's most probable classes choose the specialists."""
    content = {"top": top, "generalist": generalist._asdict(), "specialists": [part._asdict() for part in specialists]}
    write_document(path / FILE, FORMAT, 1, content)


def read(path: Path) -> tuple[Part, tuple[Part, ...], int]:
    """(generalist, specialists, top) of `path`."""
    content = read_document(path / FILE, FORMAT, 1)
    try:
        generalist, specialists, top = _part(content["generalist"]), tuple(_part(each) for each in content["specialists"]), int(content["top"])
    except (KeyError, TypeError, ValueError) as error:
        raise RunFailed(f"damaged ensemble: {error}", where=str(path / FILE), then=THEN) from error
    odd = [part for part in specialists if len(set(part.classes)) < len(part.classes) or not set(part.classes) < set(generalist.classes)]
    if odd:
        what = f"{odd[0].run} is said to tell {', '.join(odd[0].classes)} apart, which is no set of the generalist's {', '.join(generalist.classes)}"
        raise RunFailed(f"damaged ensemble: {what}", where=str(path / FILE), then=THEN)
    return generalist, specialists, top


def _part(content: dict[str, Any]) -> Part:
    return Part(str(content["run"]), int(content["step"]), str(content["weights"]), tuple(content["classes"]), float(content["correction"]))

"""The candidates of a search: each proposal as a configuration, as a graph that costs something, and as runs that are trained rung by rung.

A rung has a run directory of its own, `search/candidates/<number>/<steps>`. Its float warm-up is that of the rung before, trained on; its formats are chosen
anew from there, and its training on the grid begins there. What the rung before had learnt on its grid is not kept: its formats come from a warm-up that was
much shorter, and longer training drives weights out of them (62 % of the weights of a last layer saturated when that was tried).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hlt_train.appraisal import events_of, mean_counts
from hlt_train.comparison import figures_at
from hlt_train.configuration import check, merge
from hlt_train.data.card import Card
from hlt_train.distil import finished, leave_if, train_student
from hlt_train.graph import Graph
from hlt_train.progress import Progress
from hlt_train.run import Run, read_config
from hlt_train.scorers import scorer
from hlt_train.search_space import Proposal
from hlt_train.signals import StopRequest
from hlt_train.specimen import specimen
from hlt_train.stage import begun
from hlt_train.study import DistilConfig, Study, open_study, spec_of

__all__ = ["Candidates"]

REPLICAS = 100  # of the validation events, for the error of a figure


class Candidates:
    """All candidates of one search. Use as a context manager: data sets of shorter collections are closed at the end.

    Args:
        study: of the search's own card and configuration.
        run: of the search; candidates are in `search/candidates/<number>`.
        progress: where to say how far it is.
        stop: asked between two trainings.
        inexact: whether a resumed candidate may differ in its bits.
    """

    def __init__(self, study: Study, run: Run, progress: Progress, stop: StopRequest, *, inexact: bool) -> None:
        self._base, self._run, self._progress, self._stop, self._inexact = study, run, progress, stop, inexact
        self._open = ExitStack()
        self._studies: dict[tuple[tuple[str, int], ...], Study] = {}
        self._counts: dict[tuple[tuple[str, int], ...], Mapping[str, float]] = {}

    def __enter__(self) -> Candidates:  # noqa: PYI034 - the run-time check of annotations knows no Self here
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def folder(self, number: int, steps: int | None = None) -> Path:
        """The run directory of a candidate at `steps`, or that of its last rung."""
        place = self._run.path / "search" / "candidates" / str(number)
        return place / str(max(_rungs(place)) if steps is None else steps)

    def study(self, proposal: Proposal) -> Study:
        """What a candidate is trained from: the search's teacher and events, its own card and configuration."""
        shared = self._shared(proposal.lengths)
        base = {**self._base.config.stored(), "card": shared.dataset.card.model_dump(mode="json"), "search": None, "budget": None}
        content = merge(base, {"model": proposal.model, "precision": proposal.precision}, *(_nested(key, value) for key, value in proposal.options.items()))
        config = check(DistilConfig, content, where="search")
        spec, head = spec_of(config, shared.dataset.card)
        return shared._replace(config=config, spec=spec, head=head)

    def _shared(self, lengths: Mapping[str, int]) -> Study:
        """The search's study with a card whose collections are that long."""
        card = self._base.dataset.card
        if all(card.inputs[name].length == length for name, length in lengths.items()):
            return self._base
        key = tuple(sorted(lengths.items()))
        if key not in self._studies:
            content = card.model_dump(mode="json")
            for name, length in lengths.items():
                content["inputs"][name]["length"] = length
            config = self._base.config
            own = config.teacher_card or [teacher.card for teacher in self._base.teachers]
            changed = config.model_copy(update={"card": Card.model_validate(content), "teacher_card": own})
            found = open_study(changed, self._base.mesh, self._run.path, self._progress)
            self._open.callback(found.dataset.close)
            self._studies[key] = found
        return self._studies[key]

    def graph(self, proposal: Proposal) -> tuple[Graph, Mapping[str, float]]:
        """The graph of a candidate that does not exist yet, and the mean numbers of constituents that it reads."""
        study = self.study(proposal)
        key = tuple(sorted(proposal.lengths.items()))
        if key not in self._counts:
            self._counts[key] = mean_counts(events_of(study.dataset, "train"), study.inputs)
        return specimen(study.spec, study.inputs), self._counts[key]

    def advance(self, number: int, proposal: Proposal, steps: int) -> dict[str, float]:
        """Train a candidate to `steps`, or the rest of it, and return its figure on validation by the golden evaluator: `value`, and `error` over events.

        Raises:
            Hopeless: it cannot be trained.
        """
        study, folder = self.study(proposal), self.folder(number, steps)
        own = study._replace(config=study.config.model_copy(update={"length": f"{steps}steps"}))
        if not finished(folder):
            with begun(folder) as (run, again):
                before = [rung for rung in _rungs(folder.parent) if rung < steps]
                if before and not again:
                    _take_warmup(folder.parent / str(max(before)), folder, min(round(own.config.warmup * steps), steps - 1))
                train_student(own, run, self._progress, self._stop, restore="same" if again else None, inexact=self._inexact)
        leave_if(self._stop, f"candidate {number} at {steps:,} steps")
        values, replicas, _ = figures_at([scorer(folder)], own, "validation", self._progress, replicas=REPLICAS)
        return {"value": float(values[0]), "error": float(replicas[0].std(ddof=1))}


def _rungs(place: Path) -> list[int]:
    """Steps of the rungs at which a candidate is, or was."""
    return [int(folder.name) for folder in place.iterdir()] if place.is_dir() else []


def _take_warmup(source: Path, folder: Path, steps: int) -> None:
    """The float warm-up of a rung, to be continued to `steps`."""
    if (source / "warmup" / "config.yaml").is_file():
        shutil.copytree(source / "warmup", folder / "warmup")
        with Run.open(folder / "warmup") as run:
            run.write_config({**read_config(run.path), "for": f"{steps}steps"})


def _nested(key: str, value: Any) -> dict[str, Any]:
    """`a.b` -> {"a": {"b": value}}."""
    for part in reversed(key.split(".")):
        value = {part: value}
    found: dict[str, Any] = value
    return found

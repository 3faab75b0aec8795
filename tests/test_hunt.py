"""The decisions of a search, with figures and costs that are functions of the proposal: who is trained how long, measured, chosen; at any death."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from hlt_train.budget import Budget
from hlt_train.errors import BudgetNotMet, Hopeless, RunFailed, UsageError
from hlt_train.hunt import Hunt, Work
from hlt_train.progress import Progress
from hlt_train.sampling import Trials
from hlt_train.search_record import Record
from hlt_train.search_space import Choose, Proposal, Search

RUNGS = [10, 30, 90]
WIDTHS = [4, 8, 16, 24, 32, 48, 64]


class Death(BaseException):
    """A process that is gone: nothing may catch it."""


class World:
    """Wider is better and costs more; a call costs `excess` of what was predicted. Everything that is done is counted, and `left` steps later it dies."""

    def __init__(self, folder: Path, *, limit: float = 50.0, excess: float = 1.0, trials: int = 9) -> None:
        self.folder, self.excess = folder, excess
        self.budget, self.asked = Budget(network=limit), Search(trials=trials)
        self.trained: list[tuple[int, int]] = []
        self.measured: list[int] = []
        self.left = -1

    def tick(self) -> None:
        if self.left == 0:
            raise Death
        self.left -= 1

    def width(self, proposal: Proposal) -> int:
        return int(proposal.model["widths"][0])

    def predict(self, proposal: Proposal) -> dict[str, float]:
        if self.width(proposal) == 24:
            raise UsageError("a sum of 'logits' can exceed its accumulator")
        return {"network": float(self.width(proposal))}

    def advance(self, number: int, proposal: Proposal, steps: int) -> dict[str, float]:
        self.tick()
        if self.width(proposal) == 16:
            raise Hopeless("the loss is not finite")
        self.trained.append((number, steps))
        return {"value": self.width(proposal) / 100 + steps / 1e4 + proposal.options["spice"] / 1e5, "error": 0.01}

    def measure(self, number: int, proposal: Proposal) -> dict[str, Any]:
        self.tick()
        self.measured.append(number)
        return {"costs": {"network": self.excess * self.width(proposal)}}

    def run(self) -> tuple[dict[str, Any], int]:
        record = Record(self.folder / "search.json", {"seed": 1})
        hunt = Hunt(self.budget, self.asked, RUNGS, record, Work(self.predict, self.advance, self.measure), Progress(quiet=True))
        hunt.first_rung(Trials(self.folder / "journal.log", 1), self.propose)
        for rung in range(1, len(RUNGS)):
            hunt.next_rung(rung)
        return record.content, hunt.finalist()

    @staticmethod
    def propose(choose: Choose) -> Proposal:
        return Proposal({"name": "mlp", "widths": [choose("width", WIDTHS)]}, {}, {"spice": choose("spice", list(range(6)))}, {})


def verdicts(content: dict[str, Any], word: str) -> Sequence[dict[str, Any]]:
    return [one for one in content["candidates"] if one["verdict"].startswith(word)]


def test_who_is_trained_how_long(tmp_path: Path) -> None:
    world = World(tmp_path)
    content, chosen = world.run()
    trained = {one["number"]: one for one in verdicts(content, "trained")}
    assert len(trained) == 9
    assert {one["model"]["widths"][0] for one in trained.values()} <= {4, 8, 32, 48}
    assert {one["model"]["widths"][0] for one in verdicts(content, "over budget")} == {64}
    assert all("accumulator" in one["verdict"] for one in verdicts(content, "cannot be"))
    assert all("not finite" in one["verdict"] for one in verdicts(content, "failed"))
    assert len({(*one["model"]["widths"], one["options"]["spice"]) for one in trained.values()}) == 9  # none twice
    by_rung = [[number for number, steps in world.trained if steps == wanted] for wanted in RUNGS]
    assert [len(rung) for rung in by_rung] == [9, 3, 1]
    quality = {number: (one["model"]["widths"][0], one["options"]["spice"]) for number, one in trained.items()}
    assert set(by_rung[1]) == set(sorted(quality, key=lambda number: quality[number])[-3:])
    assert by_rung[2] == world.measured == [chosen] == [max(quality, key=lambda number: quality[number])]
    assert [decision["went_on"] for decision in content["decisions"]] == [sorted(by_rung[1], key=lambda number: quality[number])[::-1], [chosen]]


def test_finalists_that_are_over_budget_make_room_for_others(tmp_path: Path) -> None:
    """Measured times are a fifth above the predicted ones: what was predicted at 48 of 50 is set aside, and the best that fits is called up."""
    world = World(tmp_path, excess=1.2)
    content, chosen = world.run()
    widths = {one["number"]: one["model"]["widths"][0] for one in content["candidates"]}
    assert widths[chosen] == 32
    aside = [number for number, found in content["measured"].items() if not found["fits"]]
    assert aside
    assert {widths[int(number)] for number in aside} == {48}
    assert all(found["ratio"]["network"] == pytest.approx(1.2) for found in content["measured"].values())
    assert (chosen, RUNGS[-1]) in world.trained


def test_nothing_fits(tmp_path: Path) -> None:
    with pytest.raises(BudgetNotMet, match="is predicted at 4 of 3 ns") as caught:
        World(tmp_path / "a", limit=3.0, trials=2).run()
    assert caught.value.where == "network: 1.33 of the limit"
    with pytest.raises(BudgetNotMet, match="is measured at 40 of 30 ns") as caught:
        World(tmp_path / "b", limit=30.0, excess=10.0).run()
    assert caught.value.exit_code == 3


def test_when_all_that_fit_fail_it_is_not_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, trials=1)
    monkeypatch.setitem(type(world).propose.__globals__, "WIDTHS", [16, 64])
    with pytest.raises(RunFailed, match="candidates within the budget failed; the last one, mlp 16"):
        world.run()


@pytest.mark.parametrize("excess", [1.0, 1.2])
def test_a_death_at_any_time_changes_nothing(tmp_path: Path, excess: float) -> None:
    """Killed before each training and each measurement: the same record, the same choice, and nothing that was finished is done again."""
    undisturbed = World(tmp_path / "whole", excess=excess)
    wanted = undisturbed.run()
    jobs = len(undisturbed.trained) + len(undisturbed.measured)
    assert jobs > 12
    dying = World(tmp_path / "dying", excess=excess)
    deaths = 0
    while True:
        dying.left = 1  # one thing is done, the next kills it
        try:
            found = dying.run()
        except Death:
            deaths += 1
            continue
        break
    assert deaths >= jobs - 1
    assert found == wanted
    assert (dying.trained, dying.measured) == (undisturbed.trained, undisturbed.measured)

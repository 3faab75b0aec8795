"""Who is tried within a budget, and who is chosen: the decisions of a search, apart from how a candidate is made, trained and measured.

Proposals come from Optuna, told one after the other. One whose predicted cost exceeds a limit is not trained. The others are trained to the first rung; the
best of a rung go on to the next (`hlt_train.halving`); those that come to the last are measured, and the best of those that fit is chosen. Where none of them
fits, the next best of all that were trained are called up, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from hlt_train import halving
from hlt_train.budget import Budget
from hlt_train.errors import BudgetNotMet, Hopeless, RunFailed, UsageError
from hlt_train.progress import Progress
from hlt_train.sampling import Trials
from hlt_train.search_record import Record
from hlt_train.search_space import Choose, Proposal, Search

__all__ = ["Hunt", "Work"]

ASKED = 25  # proposals per candidate that is trained, at most


class Work(NamedTuple):
    """What is done to a candidate.

    Attributes:
        predict: limit -> cost, the same whenever it is asked; `UsageError` where such a network cannot be.
        advance: (number, proposal, steps) -> `value` and `error` at the end of a rung; `Hopeless` where it cannot be trained.
        measure: (number, proposal) -> `costs` by limit, and how they were measured.
    """

    predict: Callable[[Proposal], dict[str, float]]
    advance: Callable[[int, Proposal, int], dict[str, float]]
    measure: Callable[[int, Proposal], dict[str, Any]]


class Hunt:
    """The steps of a search; each leaves its record on the disk before the next begins, and does nothing where the record has it already.

    Args:
        budget: with its limits.
        asked: trials and the factor of the halving.
        rungs: steps of training at the end of each.
        record: what is known.
        work: what a candidate is predicted, trained and measured by.
        progress: where to say what is done.
    """

    def __init__(self, budget: Budget, asked: Search, rungs: Sequence[int], record: Record, work: Work, progress: Progress) -> None:
        self.budget, self.asked, self.rungs, self.record, self.work, self.progress = budget, asked, rungs, record, work, progress

    def proposal(self, number: int) -> Proposal:
        """As it was recorded."""
        entry = self.record.candidate(number)
        assert entry is not None
        return Proposal(**{name: entry[name] for name in Proposal._fields})

    def first_rung(self, trials: Trials, made: Callable[[Choose], Proposal]) -> None:
        """Propose, predict, and train what may fit to the first rung."""
        while (len(self.record.figures(0)) < self.asked.trials and len(self.record.content["candidates"]) < ASKED * self.asked.trials) or trials.unfinished:
            trial = trials.open()
            entry = self.record.candidate(trial.number)
            if entry is None:
                entry = self._judged(trial.number, made(partial(trials.choose, trial)))
            if entry["verdict"] == "trained":
                self._advance(trial.number, 0)
            first = [one["value"] for one in self._like(entry)["figures"] if one["rung"] == 0]
            trials.tell(trial, first[0] if first else None)
        failed = [one for one in self.record.content["candidates"] if one["verdict"].startswith("failed")]
        if failed and not self.record.figures(0):
            what = f"all {len(failed)} candidates within the budget failed; the last one, {failed[-1]['what']}: {failed[-1]['verdict'].partition(': ')[2]}"
            raise RunFailed(what, where="search", then="another --learning-rate or --for, or a wider search")
        if not self.record.figures(0):
            raise self._not_met("predicted", {one["number"]: one["predicted"] for one in self.record.content["candidates"] if one["predicted"]})

    def _judged(self, number: int, proposal: Proposal) -> dict[str, Any]:
        """The record of a new proposal: its predicted costs, and whether it is to be trained."""
        plain = proposal._asdict()
        same = [one for one in self.record.content["candidates"] if all(one[name] == value for name, value in plain.items())]
        predicted: dict[str, float] = {}
        verdict = "trained"
        if same:
            predicted, verdict = same[0]["predicted"], f"same as {same[0]['number']}"
        else:
            try:
                predicted = self.work.predict(proposal)
            except UsageError as error:
                verdict = f"cannot be: {error.what}"
            if predicted and not self.budget.fits(predicted):
                verdict = "over budget"
        self.progress(f"candidate {number}: {proposal}: {verdict}" + (f"; {self.budget.told(predicted)}" if predicted else ""))
        return self.record.add({"number": number, "what": str(proposal), **plain, "predicted": predicted, "verdict": verdict, "figures": []})

    def _like(self, entry: dict[str, Any]) -> dict[str, Any]:
        """The entry itself, or the one that it repeats."""
        word, _, number = entry["verdict"].rpartition("same as ")
        other = self.record.candidate(int(number)) if not word and number.isdigit() else None
        return other or entry

    def _advance(self, number: int, rung: int) -> None:
        entry = self.record.candidate(number)
        assert entry is not None
        if any(one["rung"] == rung for one in entry["figures"]):
            return
        steps = self.rungs[rung]
        self.progress(f"candidate {number} ({entry['what']}) to {steps:,} steps")
        try:
            figure = self.work.advance(number, self.proposal(number), steps)
        except Hopeless as error:
            entry["verdict"] = f"failed: {error.what}"
            self.progress(f"candidate {number} {entry['verdict']}")
        else:
            entry["figures"].append({"rung": rung, "steps": steps, **figure})
            self.progress(f"candidate {number}: {figure['value']:.4f} +- {figure['error']:.4f} on validation")
        self.record.save()

    def next_rung(self, rung: int) -> None:
        """The best of a rung go on to the next."""
        decisions = self.record.content["decisions"]
        if len(decisions) < rung:
            entered = self.record.figures(rung - 1)
            decisions.append(
                {"rung": rung, "steps": self.rungs[rung], "entered": sorted(entered), "went_on": list(halving.going_on(entered, self.asked.factor))}
            )
            self.record.save()
        for number in decisions[rung - 1]["went_on"]:
            self._advance(number, rung)

    def finalist(self) -> int:
        """The best of those that were trained to the end and, measured, fit; where none of them does, the next best are trained to the end and measured."""
        last = len(self.rungs) - 1
        for number in halving.best_first(self.record.figures(last)):
            self._measured(number)
        while not (fitting := self._fitting()):
            aside = {int(number) for number, found in self.record.content["measured"].items() if not found["fits"]}
            waiting = [one for one in self.record.trained if one["number"] not in aside]
            if not waiting:
                raise self._not_met("measured", {int(number): found["costs"] for number, found in self.record.content["measured"].items()})
            following = max(waiting, key=lambda one: (one["figures"][-1]["rung"], one["figures"][-1]["value"], -one["number"]))
            self._measured(following["number"])  # as it is, before it costs a training: its time hardly depends on what it learns
            if self.record.content["measured"][str(following["number"])]["fits"]:
                self.progress(f"no finalist fits: candidate {following['number']} is called up")
                self._advance(following["number"], last)
                self._measured(following["number"])
        return halving.best_first(fitting)[0]

    def _fitting(self) -> dict[int, float]:
        measured = self.record.content["measured"]
        return {k: v for k, v in self.record.figures(len(self.rungs) - 1).items() if measured.get(str(k), {}).get("fits")}

    def _measured(self, number: int) -> None:
        """Measure a finalist, and say how far its prediction was off."""
        measured, entry = self.record.content["measured"], self.record.candidate(number)
        assert entry is not None
        steps = entry["figures"][-1]["steps"]
        if measured.get(str(number), {}).get("steps") == steps:
            return
        found = self.work.measure(number, self.proposal(number))
        ratio = {name: value / entry["predicted"][name] for name, value in found["costs"].items() if name != "path" and entry["predicted"].get(name)}
        measured[str(number)] = {"steps": steps, **found, "ratio": ratio, "fits": self.budget.fits(found["costs"])}
        self.record.save()
        off = "".join(f", {name} {100 * (r - 1):+.1f} % of its prediction" for name, r in ratio.items())
        self.progress(f"candidate {number}: {self.budget.told(found['costs'])}{off}{'' if measured[str(number)]['fits'] else ': set aside'}")

    def _not_met(self, how: str, costs: dict[int, dict[str, float]]) -> BudgetNotMet:
        if not costs:
            tried = len(self.record.content["candidates"])
            return BudgetNotMet(f"none of {tried} proposals can be built", where="search", then="look at the verdicts in search/search.json")
        number = min(costs, key=lambda one: self.budget.worst(costs[one])[1])
        entry = self.record.candidate(number)
        assert entry is not None
        name, ratio = self.budget.worst(costs[number])
        what = f"no student fits the budget; the nearest miss, candidate {number} ({entry['what']}), is {how} at {self.budget.told(costs[number])}"
        return BudgetNotMet(what, where=f"{name}: {ratio:.2f} of the limit", then=f"a larger --budget-{name}, or --set search.widths with smaller ones")

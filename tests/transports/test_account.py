"""Every share of an epoch is in one class, and the classes add up to it."""

from __future__ import annotations

import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hlt_train.transports.account import APPLIED, BINS, CLASSES, GATED, HELD, LATE, OPEN, Account, Coverage

STEPS, WORKERS = 4, 3
SHARE = st.tuples(st.integers(0, 2 * STEPS - 1), st.integers(0, WORKERS - 1))
MARK = st.tuples(SHARE, st.sampled_from([APPLIED, LATE, GATED, HELD]))


def marked(marks: list[tuple[tuple[int, int], int]]) -> Coverage:
    coverage = Coverage(STEPS, WORKERS)
    for share, code in marks:
        new = coverage.is_open(share)
        assert coverage.mark(share, code) == new
        assert not coverage.is_open(share)
    return coverage


@given(marks=st.lists(MARK, max_size=40))
def test_classes_add_up_and_the_first_one_counts(marks: list[tuple[tuple[int, int], int]]) -> None:
    coverage = marked(marks)
    first: dict[tuple[int, int], int] = {}
    for share, code in marks:
        first.setdefault(share, code)
    for epoch in range(2):
        counts = coverage.counts(epoch)
        assert sum(counts.values()) == STEPS * WORKERS
        for code, name in enumerate(CLASSES):
            shares = [tuple(share) for share in coverage.shares(epoch, code).tolist()] if epoch in coverage.epochs else []
            wanted = sorted(s for s, c in first.items() if c == code and s[0] // STEPS == epoch)
            if code != OPEN:
                assert shares == wanted
                assert counts[name] == len(wanted)
        assert coverage.extras(epoch)["duplicates"] == sum(share[0] // STEPS == epoch for share, _ in marks) - sum(s[0] // STEPS == epoch for s in first)


@given(before=st.lists(MARK, max_size=20), after=st.lists(MARK, max_size=20))
def test_roll_back_counts_what_was_lost(before: list[tuple[tuple[int, int], int]], after: list[tuple[tuple[int, int], int]]) -> None:
    coverage = marked(before)
    saved = {epoch: table.copy() for epoch, table in coverage.epochs.items()}
    lost = {share for share, code in after if coverage.is_open(share) and coverage.mark(share, code) and code == APPLIED}
    assert coverage.roll_back(saved) == len(lost)
    assert sum(coverage.lost.values()) == len(lost)
    assert all(coverage.is_open(share) for share in lost)
    assert {epoch: table.tolist() for epoch, table in coverage.epochs.items()} == {epoch: table.tolist() for epoch, table in saved.items()}
    for epoch, table in coverage.epochs.items():
        assert table is not saved[epoch]


@given(numbers=st.lists(st.integers(0, 2 * STEPS * WORKERS - 1), unique=True))
def test_portions_are_numbered_through_the_rounds(numbers: list[int]) -> None:
    coverage = Coverage(STEPS, WORKERS)
    for number in numbers:
        assert coverage.mark((number, -1), APPLIED)
        assert not coverage.mark((number, -1), APPLIED)
    for epoch in range(2):
        assert coverage.counts(epoch)["applied"] == sum(number // (STEPS * WORKERS) == epoch for number in numbers)


def test_held_shares_are_open_again_when_the_run_goes_on() -> None:
    coverage = marked([((0, 0), HELD), ((0, 1), APPLIED)])
    for share in ((0, 0), (0, 1), (7, 2)):
        coverage.reopen(share)
    assert coverage.is_open((0, 0))
    assert not coverage.is_open((0, 1))


def test_round_trip_through_json() -> None:
    coverage = marked([((5, 1), LATE), ((5, 1), LATE)])
    coverage.note_redealt((1, 2))
    again = Coverage(STEPS, WORKERS)
    again.restore({epoch: table.copy() for epoch, table in coverage.epochs.items()}, json.loads(json.dumps(coverage.document())))
    assert [again.counts(e) for e in range(2)] == [coverage.counts(e) for e in range(2)]
    assert [again.extras(e) for e in range(2)] == [{"duplicates": 0, "redealt": 1, "lost": 0}, {"duplicates": 1, "redealt": 0, "lost": 0}]


@given(applied=st.lists(st.integers(0, 1000), min_size=1, max_size=9))
def test_fairness_is_jains_index(applied: list[int]) -> None:
    account = Account(len(applied))
    account.applied[:] = applied
    fairness = account.fairness()
    assert 1 / len(applied) - 1e-12 <= fairness <= 1 + 1e-12
    if len(set(applied)) == 1:
        assert fairness == 1
    account.applied[:] = [1] + [0] * (len(applied) - 1)
    assert account.fairness() == 1 / len(applied)


def test_staleness_and_its_summary() -> None:
    account = Account(2)
    assert account.document()["staleness"]["mean"] is None
    for worker, staleness in ((0, 0), (1, 2), (1, 1000), (0, -1)):
        account.stale(worker, staleness)
    document = json.loads(json.dumps(account.document()))
    histogram = document["staleness"]["histogram"]
    assert (histogram[0], histogram[2], histogram[-1], sum(histogram)) == (2, 1, 1, 4)
    assert document["staleness"]["mean"] == (2 + BINS - 1) / 4
    again = Account(2)
    again.restore(account.arrays())
    account.stale(0, 0)
    assert again.document() == document
    assert np.asarray(again.arrays()["staleness"]).sum() == 4

"""The coverage certificate: classes add up, and their hashes are those of the entries themselves."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlt_train import devices
from hlt_train.certificate import certificate, identities, set_hash
from hlt_train.fit import prepare
from hlt_train.preparation import Prepared
from hlt_train.progress import Progress
from hlt_train.shares import Shares
from hlt_train.transports.account import APPLIED, GATED, HELD, LATE, Coverage
from tests.runs import config, write_card

WORKERS, BATCH = 4, 64


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prepared]:
    card = write_card(tmp_path_factory.mktemp("jets"))
    made = prepare(config(card, batch=BATCH, transport={"name": "simulate", "workers": WORKERS}), devices.mesh(1), Progress(quiet=True))
    with made.dataset:
        yield made


@given(rows=st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 3)), max_size=8), data=st.data())
def test_the_hash_of_a_set(rows: list[tuple[int, int]], data: st.DataObject) -> None:
    """Neither order nor dealing matters; how often an entry comes does."""
    array = np.array(rows, np.uint64).reshape(-1, 2)
    assert set_hash(array) == set_hash(array[data.draw(st.permutations(range(len(rows))))])
    if rows:
        assert set_hash(array) != set_hash(array[1:])
        assert set_hash(array) != set_hash(np.concatenate([array, array[:1]]))
        assert set_hash(array) != set_hash(array + np.uint64(1))


def test_identities_tell_the_entries_apart(ready: Prepared) -> None:
    found = identities(ready.dataset)
    assert found.shape == (ready.task.train.rows, 2)
    assert len(np.unique(found, axis=0)) == len(found)


@pytest.mark.parametrize("portions", [False, True])
def test_classes_add_up(portions: bool, ready: Prepared) -> None:
    stream = ready.task.train
    shares, identity, spe = Shares(stream, WORKERS, BATCH, resident=True), identities(ready.dataset), stream.steps_per_epoch
    coverage = Coverage(spe, WORKERS)
    chance = np.random.default_rng(2)
    numbers = [(step * WORKERS + owner, -1) if portions else (step, owner) for step in range(2 * spe) for owner in range(WORKERS)]
    coded = {share: (APPLIED, LATE, GATED, HELD)[chance.integers(4)] for share in numbers}
    for share, code in coded.items():
        coverage.mark(share, code)
    coverage.mark(numbers[0], APPLIED)
    coverage.note_redealt(numbers[-1])
    whole = certificate(coverage, shares, identity, 2 * spe, portions=portions)
    assert whole["split"] == {"rows": stream.rows, "hash": set_hash(identity)}
    assert [epoch["complete"] for epoch in whole["epochs"]] == [True, True]
    assert [(epoch["duplicates"], epoch["redealt"], epoch["lost"]) for epoch in whole["epochs"]] == [(1, 0, 0), (0, 1, 0)]
    for number, epoch in enumerate(whole["epochs"]):
        assert (epoch["epoch"], epoch["rows"], epoch["hash"]) == (number + 1, stream.rows, whole["split"]["hash"])
        for name, code in (("applied", APPLIED), ("late", LATE), ("gated", GATED), ("held", HELD)):
            mine = [share for share in numbers[number * spe * WORKERS : (number + 1) * spe * WORKERS] if coded[share] == code]
            rows = np.concatenate([shares.rows(share) for share in mine])
            assert epoch["classes"][name] == {"shares": len(mine), "rows": len(rows), "hash": set_hash(identity[rows])}


def test_an_open_share_and_an_epoch_that_has_only_begun(ready: Prepared) -> None:
    stream = ready.task.train
    shares, identity, spe = Shares(stream, WORKERS, BATCH, resident=True), identities(ready.dataset), stream.steps_per_epoch
    coverage = Coverage(spe, WORKERS)
    for step in range(spe + 2):
        for owner in range(WORKERS):
            if (step, owner) != (3, 1):
                coverage.mark((step, owner), APPLIED)
    coverage.mark((spe + 5, 0), APPLIED)  # a worker that was ahead when the run ended
    first, second = certificate(coverage, shares, identity, spe + 2)["epochs"]
    assert not first["complete"]
    assert first["classes"]["open"]["rows"] == BATCH // WORKERS
    assert second["complete"]
    assert second["rows"] == 2 * BATCH
    assert second["classes"]["applied"]["shares"] == 2 * WORKERS

"""The data of a share: those that lockstep deals, however they are read and whoever reads them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest

from hlt_train import devices, shares
from hlt_train.data.stream import Stream
from hlt_train.fit import prepare
from hlt_train.preparation import Prepared
from hlt_train.progress import Progress
from hlt_train.shares import Shares
from hlt_train.transports.dealing import deals, inherit
from tests.runs import config, write_card

WORKERS, BATCH = 4, 64


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prepared]:
    card = write_card(tmp_path_factory.mktemp("jets"))
    content = config(card, batch=BATCH, transport={"name": "simulate", "workers": WORKERS}, buffer=300)
    made = prepare(content, devices.mesh(1), Progress(quiet=True))
    with made.dataset:
        yield made


@pytest.fixture(scope="module")
def stream(ready: Prepared) -> Stream:
    return ready.task.train


def same(a: object, b: object) -> bool:
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in leaves)


def kept(batch: Any, keep: Any) -> Any:
    """Some rows of a batch."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[keep], batch)


@pytest.mark.parametrize("resident", [True, False])
def test_shares_are_what_lockstep_deals(resident: bool, stream: Stream) -> None:
    """The rows that fill up the last step have weight 0; with streamed data they are zeros, too."""
    found = Shares(stream, WORKERS, BATCH, resident=resident)
    for epoch in range(2):
        seen = []
        for step, (batch, rows) in enumerate(stream.epoch(epoch)):
            for owner in range(WORKERS):
                share = epoch * stream.steps_per_epoch + step, owner
                mine, theirs, real = found(share), kept(batch, owner), rows[owner] >= 0
                assert resident or same(mine, theirs)
                assert same(kept(mine, real), kept(theirs, real))
                assert (np.asarray(mine.weight)[~real] == 0).all()
                assert found.rows(share).tolist() == rows[owner][real].tolist()
                seen += rows[owner][real].tolist()
        assert step + 1 == stream.steps_per_epoch
        assert sorted(seen) == list(range(stream.rows))
    assert stream.rows % BATCH  # the last step was filled up


@pytest.mark.parametrize("resident", [True, False])
def test_any_order_gives_the_same(resident: bool, stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that are far apart, two epochs, a window of three steps."""
    monkeypatch.setattr(shares, "WINDOW", 3)
    total = 2 * stream.steps_per_epoch
    expected, found = (Shares(stream, WORKERS, BATCH, resident=kind) for kind in (True, resident))
    for step, owner in np.random.default_rng(1).integers(0, (total, WORKERS), size=(40, 2)).tolist():
        mine, theirs = found((step, owner)), expected((step, owner))
        assert same(mine.weight, theirs.weight)
        real = np.asarray(mine.weight) > 0
        assert same(kept(mine, real), kept(theirs, real))
    assert len(found._window) <= 3


def test_takeovers_read_the_rows_of_the_dead(stream: Stream) -> None:
    """After two deaths the survivors' shares of an epoch are its rows, each once."""
    found, steps = Shares(stream, WORKERS, BATCH, resident=True), stream.steps_per_epoch
    dealt = dict(enumerate(deals(WORKERS, steps)))
    rows: list[int] = []

    def turn(k: int) -> None:
        if (share := dealt[k].pop()) is not None:
            rows.extend(found.rows(share).tolist())

    for dead, turns in ((1, 3), (2, 4)):
        for _ in range(turns):
            for k in dealt:
                turn(k)
        gone = dealt.pop(dead)
        for heir, sources in inherit(gone, (), list(dealt)).items():
            dealt[heir].extend(sources)
    while any(deal.left() for deal in dealt.values()):
        for k in dealt:
            turn(k)
    assert sorted(rows) == list(range(stream.rows))


def test_portions_are_those_of_the_first_epoch(stream: Stream) -> None:
    found = Shares(stream, WORKERS, BATCH, resident=True)
    portions = stream.steps_per_epoch * WORKERS
    for number in (0, 5, portions - 1):
        step, owner = divmod(number, WORKERS)
        for around in range(2):
            assert found.rows((number + around * portions, -1)).tolist() == found.rows((step, owner)).tolist()

"""Dispatches: their sizes, the thread that works ahead, and that resident data are dealt exactly as a stream deals them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlt_train import devices
from hlt_train.data.card import load_card
from hlt_train.data.dataset import open_dataset
from hlt_train.data.normalise import fit_normalisation
from hlt_train.data.stream import Stream
from hlt_train.errors import UsageError
from hlt_train.feed import Resident, Streamed, ahead, edges, make_feed, portion_steps
from tests.runs import write_card


@given(st.integers(0, 50), st.integers(0, 200), st.integers(1, 40), st.none() | st.integers(1, 60))
def test_edges_cover_and_meet_every_multiple(start: int, length: int, most: int, every: int | None) -> None:
    sizes = edges(start, start + length, most, every)
    ends = np.cumsum([start, *sizes])
    assert ends[-1] == start + length
    assert all(0 < size <= most for size in sizes)
    if every is not None:
        assert set(range(start + 1, start + length + 1)) & set(range(0, start + length + 1, every)) <= set(ends.tolist())


def test_wide_rows_make_short_dispatches() -> None:
    assert portion_steps(32, 512, 100, 320) == 32
    assert portion_steps(32, 1024, 1 << 20, 320) == 1


def test_dispatches_are_evened_out_over_the_epoch() -> None:
    assert portion_steps(32, 512, 100, 71) == 24
    assert portion_steps(32, 512, 100, 5) == 5


def test_ahead_raises_where_the_item_was_due() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("disk")

    found = ahead(items())
    assert [next(found), next(found)] == [1, 2]
    with pytest.raises(OSError, match="disk"):
        next(found)


def test_ahead_stops_its_thread() -> None:
    before = threading.active_count()
    found = ahead(iter(range(1000)))
    assert next(found) == 0
    found.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("workers", [1, 2])
def test_resident_rows_are_the_streams_rows(workers: int, tmp_path: Path) -> None:
    """Every leaf of every step, on every worker, from any position; padding only by its weight."""
    mesh = devices.mesh(workers)
    with open_dataset(load_card(write_card(tmp_path, files=3, rows=150))) as dataset:
        inputs = fit_normalisation(dataset)
        stream = Stream(dataset, "train", inputs, batch=32, workers=workers, seed=3, buffer=100)
        kept, streamed = Resident(stream, mesh, 4, 32), Streamed(stream, mesh, 4, 32)
        for epoch, start in ((0, 0), (1, 3)):
            sizes = edges(start, stream.steps_per_epoch, 4, None)
            rows = 0
            for a, b in zip(kept.portions(epoch, start, sizes), streamed.portions(epoch, start, sizes), strict=True):
                assert a.steps == b.steps
                for worker in range(workers):
                    cut = [jax.tree.map(lambda leaf, w=worker: leaf[w], tree) for tree in (kept.resident, a.data, b.data)]
                    x, y = (jax.device_get(jax.vmap(at)(np.arange(a.steps))) for at in (kept.select(cut[0], cut[1]), streamed.select((), cut[2])))
                    real = y.weight != 0
                    np.testing.assert_array_equal(x.weight, y.weight)
                    np.testing.assert_array_equal(x.label[real], y.label[real])
                    np.testing.assert_array_equal(x.x.groups["hlf"][real], y.x.groups["hlf"][real])
                    rows += int(real.sum())
            assert rows == stream.rows - start * 32


def test_numbered_portions_are_the_shares_of_epoch_0(tmp_path: Path) -> None:
    """Portion p, in any round, is share p % workers of step p // workers; the data must stay on the devices."""
    mesh = devices.mesh(2)
    with open_dataset(load_card(write_card(tmp_path, files=3, rows=150))) as dataset:
        stream = Stream(dataset, "train", fit_normalisation(dataset), batch=32, workers=2, seed=3, buffer=100)
        feed = make_feed(stream, mesh, 4, 32, resident="auto", fits=False, numbered=True)
        assert [portion.steps for portion in feed.portions(1, 0, [4, 2])] == [4, 2]
        at = feed.select(jax.tree.map(lambda leaf: leaf[1], feed.resident), ())
        portions = 2 * stream.steps_per_epoch
        for step, (batch, _) in enumerate(stream.epoch(0)):
            for worker in range(2):
                number = 2 * step + worker
                for again in (number, number + 3 * portions):
                    found = jax.device_get(at(again))
                    real = found.weight != 0
                    np.testing.assert_array_equal(found.weight, batch.weight[worker])
                    np.testing.assert_array_equal(found.label[real], batch.label[worker][real])
        with pytest.raises(UsageError, match="--resident never"):
            make_feed(stream, mesh, 4, 32, resident="never", fits=False, numbered=True)

"""The stream: every row once per epoch, in an order that (seed, epoch) fixes, from any position, in bounded memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rootfiles import card, event_columns, write_tree

from hlt_train.data.dataset import Dataset, open_dataset
from hlt_train.data.normalise import apply, fit_normalisation
from hlt_train.data.order import Order
from hlt_train.data.stream import Stream
from hlt_train.errors import RunFailed, UsageError
from hlt_train.types import Batch, Inputs

N = 1009  # prime


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Dataset, Inputs]]:
    """Three files of 499, 7 and 503 entries, clusters of about 64."""
    folder = tmp_path_factory.mktemp("stream")
    first = 0
    for k, n in enumerate((499, 7, 503)):
        write_tree(folder / f"{k}.root", event_columns(n, k, first=first), basket=61)
        first += n
    with open_dataset(card(folder / "*.root", splits={"by": "hash", "fractions": {"train": 0.8, "validation": 0.2}}), cluster_entries=61) as dataset:
        yield dataset, fit_normalisation(dataset)


def make(opened: tuple[Dataset, Inputs], **options: Any) -> Stream:
    dataset, inputs = opened
    return Stream(dataset, "train", inputs, **({"batch": 32, "seed": 5, "buffer": 200} | options))


def delivered(stream: Stream, epoch: int = 0, start: int = 0) -> np.ndarray:
    rows = np.concatenate([rows.ravel() for _, rows in stream.epoch(epoch, start)])
    return rows[rows >= 0]


def equal(one: Batch, other: Batch) -> bool:
    pairs = [
        *((one.x.groups[n], other.x.groups[n]) for n in one.x.groups),
        *((one.x.counts[n], other.x.counts[n]) for n in one.x.counts),
        (one.label, other.label),
        (one.weight, other.weight),
        *((one.extra[n], other.extra[n]) for n in one.extra),
    ]
    return all(np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("workers", range(1, 8))
def test_every_identity_once_per_epoch(opened: tuple[Dataset, Inputs], workers: int) -> None:
    dataset, _ = opened
    whole = dataset.rows(range(len(dataset.clusters)), "train")
    stream = make(opened, batch=11 * workers, workers=workers)
    assert stream.rows == len(whole)
    for epoch in range(2):
        rows = delivered(stream, epoch)
        identities = whole.identity[rows]
        np.testing.assert_array_equal(identities[np.argsort(identities[:, 2])], whole.identity[np.argsort(whole.identity[:, 2])])


@settings(max_examples=12)
@given(batch=st.integers(1, 40), workers=st.integers(1, 7), buffer=st.integers(1, 1500), seed=st.integers(0, 2**63), shuffle=st.booleans(), data=st.data())
def test_a_resume_continues_without_replay(
    opened: tuple[Dataset, Inputs], batch: int, workers: int, buffer: int, seed: int, shuffle: bool, data: st.DataObject
) -> None:
    options: dict[str, Any] = {"batch": batch * workers, "workers": workers, "buffer": buffer, "seed": seed, "shuffle": shuffle}
    stream = make(opened, **options)
    order = stream.order(3)
    assert sorted(order.tolist()) == list(range(stream.rows))
    step = data.draw(st.integers(0, stream.steps_per_epoch))
    np.testing.assert_array_equal(delivered(make(opened, **options), 3, step), order[step * batch * workers :])


def test_batches_hold_the_rows_that_they_name(opened: tuple[Dataset, Inputs]) -> None:
    dataset, inputs = opened
    whole = dataset.rows(range(len(dataset.clusters)), "train")
    z = apply(inputs, whole.x)
    stream = make(opened, batch=48, workers=3, extra={"logits": np.arange(2.0 * dataset.size("train")).reshape(-1, 2)})
    batches = list(stream.epoch(0))
    assert len(batches) == stream.steps_per_epoch
    for batch, rows in batches:
        assert batch.label.shape == rows.shape == (3, 16)
        real = rows >= 0
        for name, leaf in batch.x.groups.items():
            np.testing.assert_array_equal(leaf[real], z.groups[name][rows[real]])
            assert not leaf[~real].any()
        np.testing.assert_array_equal(batch.x.counts["parts"][real], whole.x.counts["parts"][rows[real]])
        np.testing.assert_array_equal(batch.label[real], whole.label[rows[real]])
        np.testing.assert_array_equal(batch.weight, np.where(real, whole.weight[rows], 0))
        np.testing.assert_array_equal(batch.extra["logits"][real][:, 0], 2.0 * rows[real])
        assert batch.weight.dtype == np.float32
        assert rows.dtype == np.int64
    last = batches[-1][1].ravel()
    count = stream.rows % 48
    assert count
    assert np.array_equal(last >= 0, np.arange(48) < count), "the padding is at the end: shares are contiguous"


def test_only_the_live_block_is_decoded_after_a_seek(opened: tuple[Dataset, Inputs]) -> None:
    dataset, _ = opened
    options = {"prefetch": False, "buffer": 150}
    whole = make(opened, **options)
    list(whole.epoch(2))
    assert sorted(whole.decoded) == [c for c in range(len(dataset.clusters)) if dataset.counts["train"][c]]
    for step in range(whole.steps_per_epoch):
        resumed = make(opened, **options)
        batch, rows = next(resumed.epoch(2, step))
        needed = {int(np.searchsorted(dataset.offsets("train"), row, side="right")) - 1 for row in rows.ravel() if row >= 0}
        assert needed <= set(resumed.decoded)
        consumed = whole.decoded[: whole.decoded.index(resumed.decoded[0])]
        assert not set(consumed) & set(resumed.decoded)
        assert len(resumed.decoded) <= 2 * 5, "the live block and, where a batch crosses its end, the next"
        assert np.array_equal(rows, next(itertools.islice(make(opened, **options).epoch(2), step, None))[1])
        assert batch.label.shape == (1, 32)


def test_resident_mode_has_the_same_rows_and_order(opened: tuple[Dataset, Inputs]) -> None:
    extra = {"t": np.random.default_rng(0).normal(size=(opened[0].size("train"), 3)).astype(np.float32)}
    stream = make(opened, extra=extra)
    resident = stream.resident()
    order = stream.order(1)
    place = 0
    for batch, rows in stream.epoch(1):
        real = rows[0] >= 0
        take = order[place : place + int(real.sum())]
        np.testing.assert_array_equal(rows[0][real], take)
        part = Batch(
            resident.x._replace(groups={n: v[take] for n, v in resident.x.groups.items()}, counts={n: v[take] for n, v in resident.x.counts.items()}),
            resident.label[take],
            resident.weight[take],
            {n: v[take] for n, v in resident.extra.items()},
        )
        got = Batch(
            batch.x._replace(groups={n: v[0][real] for n, v in batch.x.groups.items()}, counts={n: v[0][real] for n, v in batch.x.counts.items()}),
            batch.label[0][real],
            batch.weight[0][real],
            {n: v[0][real] for n, v in batch.extra.items()},
        )
        assert equal(got, part)
        place += len(take)
    assert place == stream.rows


def test_order_depends_on_seed_and_epoch_alone(opened: tuple[Dataset, Inputs]) -> None:
    first = make(opened).order(0)
    assert np.array_equal(first, make(opened, batch=7, workers=7, prefetch=False).order(0))
    assert not np.array_equal(first, make(opened).order(1))
    assert not np.array_equal(first, make(opened, seed=6).order(0))
    assert np.array_equal(make(opened, shuffle=False).order(4), np.arange(len(first)))


def test_the_order_never_changes_between_versions() -> None:
    order = Order(np.array([3, 0, 4, 2]), seed=1, buffer=4, shuffle=True)
    assert [block.tolist() for block in order.blocks(0)] == [[0, 3], [2]]
    assert order.within(0, 1, 6).tolist() == [0, 1, 4, 5, 3, 2]


def test_blocks_mix_clusters_and_rows() -> None:
    order = Order(np.full(100, 50), seed=0, buffer=1000, shuffle=True)
    blocks = order.blocks(0)
    assert all(len(block) == 20 for block in blocks)
    assert abs(np.corrcoef(np.arange(5), [block.mean() for block in blocks])[0, 1]) < 0.9
    within = order.within(0, 0, 1000)
    assert abs(np.corrcoef(np.arange(1000), within)[0, 1]) < 0.1
    assert not np.array_equal(within, order.within(0, 1, 1000))


def test_a_file_shorter_than_a_batch(tmp_path: Path) -> None:
    path = write_tree(tmp_path / "x.root", event_columns(5))
    with open_dataset(card(path, splits={"by": "hash", "fractions": {"train": 1.0}})) as dataset:
        stream = Stream(dataset, "train", fit_normalisation(dataset), batch=32, workers=4)
        ((batch, rows),) = stream.epoch(0)
    assert sorted(rows.ravel().tolist()) == [-1] * 27 + [0, 1, 2, 3, 4]
    assert batch.weight.sum() == 5
    assert (rows[1:] == -1).all()


def test_a_start_beyond_the_end_gives_nothing(opened: tuple[Dataset, Inputs]) -> None:
    stream = make(opened)
    assert list(stream.epoch(0, stream.steps_per_epoch)) == []


def test_prefetch_changes_nothing_and_stops_when_left(opened: tuple[Dataset, Inputs]) -> None:
    one, other = make(opened, prefetch=True), make(opened, prefetch=False)
    assert all(equal(a, b) and np.array_equal(r, s) for (a, r), (b, s) in zip(one.epoch(0), other.epoch(0), strict=True))
    generator = make(opened).epoch(0)
    next(generator)
    generator.close()


def test_errors_of_the_prefetching_thread_arrive(tmp_path: Path) -> None:
    columns = event_columns(400)
    columns["x"][399] = np.nan
    path = write_tree(tmp_path / "x.root", columns, basket=100)
    with open_dataset(
        card(path, splits={"by": "hash", "fractions": {"train": 1.0}}, inputs={"e": {"vars": {"x": {"centre": 0, "scale": 1}}}}), cluster_entries=100
    ) as dataset:
        stream = Stream(dataset, "train", fit_normalisation(dataset), batch=10, buffer=100, shuffle=False)
        batches = stream.epoch(0)
        got = list(itertools.islice(batches, 30))
        with pytest.raises(RunFailed, match="'x' has 1 values that are NaN"):
            next(batches)
    assert len(got) == 30, "what was decoded before is delivered"


@pytest.mark.parametrize(("batch", "workers"), [(10, 3), (0, 1), (4, 0)])
def test_a_batch_that_cannot_be_shared(opened: tuple[Dataset, Inputs], batch: int, workers: int) -> None:
    with pytest.raises(UsageError, match="cannot be shared"):
        make(opened, batch=batch, workers=workers)


def test_an_empty_split(opened: tuple[Dataset, Inputs]) -> None:
    dataset, inputs = opened
    with pytest.raises(UsageError, match="split 'test' has no row"):
        Stream(dataset, "test", inputs, batch=4)
    with pytest.raises(UsageError, match="unknown split 'tset'"):
        Stream(dataset, "tset", inputs, batch=4)


def test_two_streams_read_the_same_files_at_once(opened: tuple[Dataset, Inputs]) -> None:
    """A validation pass beside a training stream whose prefetching thread reads: both get what they get alone."""
    dataset, inputs = opened
    train = make(opened, buffer=61)
    validation = Stream(dataset, "validation", inputs, batch=16, buffer=61, shuffle=False)
    expected = [batch for batch, _ in Stream(dataset, "validation", inputs, batch=16, shuffle=False, prefetch=False).epoch(0)]
    for epoch in range(3):
        outer = train.epoch(epoch)
        next(outer)
        assert all(equal(a, b) for (a, _), b in zip(validation.epoch(0), expected, strict=True))
        outer.close()

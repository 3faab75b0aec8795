"""Writing of toy files: what is left behind after a full disk or an interrupt, bounded memory, rounding."""

from __future__ import annotations

import resource
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import uproot

from hlt_train.datasets._writer import generator, interleaved_labels, rounded, write_chunks
from hlt_train.datasets.events import CHUNK, write_events
from hlt_train.errors import RunFailed, UsageError


def test_full_disk_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))  # as a full disk: writing beyond fails with an OSError
    try:
        with pytest.raises(RunFailed, match="cannot write: File too large"):
            write_events(tmp_path / "x.root", 20_000, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_interrupt_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(rows: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_events(tmp_path / "x.root", 20, 1, progress=interrupt)
    assert not list(tmp_path.iterdir())


def test_unwritable_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(RunFailed, match="cannot write"):
        write_events(tmp_path / "file" / "x.root", 20, 1)


def test_never_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "x.root"
    path.write_bytes(b"precious")
    with pytest.raises(UsageError, match="nothing is ever overwritten") as caught:
        write_events(path, 20, 1)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == b"precious"


def test_progress_counts_rows(tmp_path: Path) -> None:
    rows: list[int] = []
    write_events(tmp_path / "x.root", CHUNK + 5, 1, progress=rows.append)
    assert rows == [CHUNK, CHUNK + 5]


def peak(path: Path, n: int) -> int:
    """Largest memory held by Python objects and arrays while writing, in bytes."""
    row = np.arange(1000, dtype=np.float64)
    tracemalloc.start()
    try:
        write_chunks(path, "T", {}, lambda number: {"x": row + 1000 * number}, n=n, size=1000)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    peak(tmp_path / "warm.root", 1000)
    short, long = peak(tmp_path / "short.root", 20_000), peak(tmp_path / "long.root", 200_000)
    assert long - short < 200_000  # bytes; the file is 1.4 MB longer
    with uproot.open(tmp_path / "long.root") as file:
        assert (file["T"]["x"].array(library="np") == np.arange(200_000)).all()
        assert file["T"]["x"].num_baskets == 200


def test_streams_are_independent_and_repeatable() -> None:
    draws = {key: tuple(generator(7, *key).random(4)) for key in [(1, 0), (1, 1), (2, 0), (1, 0, 0), (1, 0, 1)]}
    assert len(set(draws.values())) == len(draws)
    assert draws[1, 0] == tuple(generator(7, 1, 0).random(4))
    assert draws[1, 0] != tuple(generator(8, 1, 0).random(4))


@pytest.mark.parametrize(("rows", "classes"), [(1, 5), (7, 5), (10, 2), (9973, 3)])
def test_labels_are_balanced_in_every_beginning(rows: int, classes: int) -> None:
    label = interleaved_labels(rows, classes, generator(1, 1))
    counts = np.cumsum(label[:, None] == np.arange(classes), axis=0)
    assert (counts.max(axis=1) - counts.min(axis=1)).max() <= 1


def test_rounding_keeps_twelve_bits() -> None:
    values = np.concatenate([generator(1, 1).normal(size=1000) * 10.0 ** np.arange(-5, 5).repeat(100), [0.0, 1.0, -1.0]])
    found = rounded(values)
    np.testing.assert_allclose(found, values, rtol=2.0**-13 * 1.001, atol=0)
    assert not (found.view(np.uint32) & 0x7FF).any()
    assert (rounded(found.astype(np.float64)) == found).all()

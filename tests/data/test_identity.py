"""Split hashes with test vectors, keys for joins, duplicates."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlt_train.data import identity as module
from hlt_train.data.identity import UNUSED, Spool, hash_splits, identity_hashes, keys

# The vectors of docs/physics.md: (sample, identity) -> hash.
VECTORS = [
    ("qcd", (1, 1, 1), 0x8E20A0FC7F1356F6),
    ("hh", (1, 1, 1), 0x88717ED3CABC363E),
    ("hh", (382834, 17, 12345678901), 0x17BE807244A61BFB),
    ("données", (-1, 0, 2**62), 0x056C5C46A3C20DA7),
]


def by_the_book(sample: str, identity: tuple[int, ...]) -> int:
    content = sample.encode() + b"\0" + b"".join(struct.pack("<q", value) for value in identity)
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


@pytest.mark.parametrize(("sample", "identity", "expected"), VECTORS)
def test_vectors(sample: str, identity: tuple[int, ...], expected: int) -> None:
    assert identity_hashes(sample, np.array([identity], np.int64)).tolist() == [expected]


@given(st.text(max_size=5).filter(lambda s: "\0" not in s and s.isprintable()), st.lists(st.tuples(*[st.integers(-(2**63), 2**63 - 1)] * 2), max_size=5))
def test_hashes_follow_the_definition(sample: str, rows: list[tuple[int, int]]) -> None:
    got = identity_hashes(sample, np.array(rows, np.int64).reshape(-1, 2))
    assert got.tolist() == [by_the_book(sample, row) for row in rows]


def test_fractions_are_what_they_say() -> None:
    hashes = identity_hashes("x", np.arange(20000).reshape(-1, 1))
    codes = hash_splits(hashes, {"train": 0.5, "validation": 0.1, "test": 0.3})
    np.testing.assert_allclose(np.bincount(codes, minlength=4) / 20000, [0.5, 0.1, 0.3, 0.1], atol=0.015)
    assert np.array_equal(codes == 0, hashes < np.uint64(2**63))
    more = hash_splits(hashes, {"train": 0.5, "validation": 0.2, "test": 0.3})
    assert np.array_equal(codes == 0, more == 0)
    assert not np.any(more == UNUSED)


def test_the_whole_range_is_used() -> None:
    ends = np.array([0, 2**64 - 1], np.uint64)
    assert hash_splits(ends, {"train": 1.0}).tolist() == [0, 0]
    assert hash_splits(ends, {"test": 1.0}).tolist() == [2, 2]
    assert hash_splits(ends, {"train": 0.6, "validation": 0.1, "test": 0.3}).tolist() == [0, 2]


def test_keys_join_across_cards() -> None:
    identity = np.array([[1, 5], [1, 6], [2, 5]])
    one = keys(("a", "b"), np.array([0, 0, 1], np.int32), identity, np.array([0, 1, 0], np.int32))
    other = keys(("b", "c", "a"), np.array([0, 2], np.int32), identity[[2, 1]], np.array([0, 1], np.int32))
    common, left, right = np.intersect1d(one, other, return_indices=True)
    assert len(common) == 2
    assert sorted(zip(left.tolist(), right.tolist(), strict=True)) == [(1, 1), (2, 0)]


@pytest.mark.parametrize("at_once", [4, 64, 1 << 16])
def test_duplicates_are_counted_in_portions(tmp_path: Path, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_AT_ONCE", at_once)
    identity = np.arange(300).reshape(-1, 1)
    identity[250] = 3
    identity[260] = 3
    identity[270] = 100
    spool = Spool(tmp_path / "spool")
    for start in range(0, 300, 70):
        part = slice(start, start + 70)
        spool.add(identity_hashes("s", identity[part]), np.arange(300)[part])
    count, pairs = spool.duplicates()
    assert count == 3
    assert pairs == [(3, 250), (100, 270), (250, 260)]
    assert not list(tmp_path.iterdir())


def test_no_entries_no_duplicates(tmp_path: Path) -> None:
    assert Spool(tmp_path / "spool").duplicates() == (0, [])

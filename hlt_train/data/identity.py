"""The identity of an entry: its split, its key in joins and caches, and the search for duplicates.

The split hash is BLAKE2b with 8 bytes of digest over the sample's name in UTF-8, a NUL byte, and each identity column as a little-endian signed 64-bit
integer; the digest is read as a little-endian unsigned 64-bit integer u, and u / 2^64 is the fraction that decides the split (docs/physics.md has test
vectors). The object index is not part of it: the objects of one event stay together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from hlt_train.data.card import SPLITS
from hlt_train.errors import UsageError

__all__ = ["NOT_SELECTED", "UNUSED", "Spool", "hash_splits", "identity_hashes", "keys", "name_hash"]

UNUSED = 3  # selected, but in no split
NOT_SELECTED = 255

_RECORD = np.dtype([("hash", "<u8"), ("entry", "<i8")])
_AT_ONCE = 1 << 16  # records in memory at once: 1 MB


def identity_hashes(sample: str, identity: np.ndarray) -> np.ndarray:
    """uint64 `[n]`: the split hash of each row of `identity` (int64 `[n, k]`)."""
    if "\0" in sample:
        raise UsageError(f"a sample's name cannot hold a NUL byte: {sample!r}")
    start = hashlib.blake2b(sample.encode() + b"\0", digest_size=8)
    width = 8 * identity.shape[1]
    content = np.ascontiguousarray(identity, "<i8").tobytes()
    digests = bytearray()
    for place in range(0, len(content), width):
        state = start.copy()
        state.update(content[place : place + width])
        digests += state.digest()
    return np.frombuffer(bytes(digests), "<u8").astype(np.uint64)


def name_hash(sample: str) -> int:
    """The hash of a sample's name alone, which stands for the name in `keys`."""
    return int.from_bytes(hashlib.blake2b(sample.encode() + b"\0", digest_size=8).digest(), "little")


def hash_splits(hashes: np.ndarray, fractions: Mapping[str, float]) -> np.ndarray:
    """uint8 `[n]`: index into `SPLITS` of each hash, `UNUSED` beyond the sum of the fractions. Changing a later fraction moves no row of an earlier split."""
    codes = np.full(len(hashes), UNUSED, np.uint8)
    below = 0.0
    for code, split in enumerate(SPLITS):
        lower = round(below * 2.0**64)
        below += fractions.get(split, 0.0)
        upper = (1 << 64) if below > 1 - 1e-9 else round(below * 2.0**64)
        if upper > lower:
            codes[(hashes >= np.uint64(lower)) & (hashes <= np.uint64(upper - 1))] = code
    return codes


def keys(samples: tuple[str, ...], sample: np.ndarray, identity: np.ndarray, object: np.ndarray) -> np.ndarray:
    """Keys for joins across cards: a structured array (sample's name hash, identity columns, object) that sorts, compares and works with `np.unique`.

    Args:
        samples: names of the card's samples.
        sample: int32 `[n]`, index into `samples`.
        identity: int64 `[n, k]`.
        object: int32 `[n]`.
    """
    columns = [("sample", "<u8"), *[(f"identity{i}", "<i8") for i in range(identity.shape[1])], ("object", "<i8")]
    found = np.empty(len(sample), columns)
    found["sample"] = np.array([name_hash(name) for name in samples], np.uint64)[sample]
    for i in range(identity.shape[1]):
        found[f"identity{i}"] = identity[:, i]
    found["object"] = object
    return found


class Spool:
    """Collects the identity hashes of one sample on disk and finds duplicates in bounded memory.

    16 bytes of disk per entry while the dataset opens (32 for a moment). The hashes are dealt by their leading bits into files of about 65 thousand, and each
    is sorted in memory: 1 MB up to 17 million entries of a sample, then entries / 256 at once. Two different identities share a hash with probability
    n^2 / 2^65 (3 % for one such pair among a thousand million entries); whoever names a pair compares the identities.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records = 0

    def add(self, hashes: np.ndarray, entries: np.ndarray) -> None:
        """Append hashes and the running numbers of their entries."""
        records = np.empty(len(hashes), _RECORD)
        records["hash"] = hashes
        records["entry"] = entries
        with self.path.open("ab") as stream:
            stream.write(records.tobytes())
        self.records += len(records)

    def duplicates(self, most: int = 3) -> tuple[int, list[tuple[int, int]]]:
        """How many entries repeat an earlier one, and the first pairs (entry, entry that repeats it). Removes the files."""
        count = 0
        pairs: list[tuple[int, int]] = []
        for path in self._parts():
            records = np.fromfile(path, _RECORD)
            path.unlink()
            records = records[np.argsort(records["hash"], kind="stable")]
            again = np.flatnonzero(records["hash"][1:] == records["hash"][:-1])
            count += len(again)
            pairs += [(int(records["entry"][i]), int(records["entry"][i + 1])) for i in again]
            pairs = sorted(pairs)[:most]
        return count, pairs

    def _parts(self) -> list[Path]:
        """Deal the records into files by the leading bits of their hash, so that each fits into memory."""
        if not self.records:
            return []
        bits = min(8, max(0, (self.records - 1).bit_length() - (_AT_ONCE - 1).bit_length()))
        if bits == 0:
            return [self.path]
        parts = [self.path.with_name(f"{self.path.name}.{k}") for k in range(1 << bits)]
        for start in range(0, self.records, _AT_ONCE):
            records = np.fromfile(self.path, _RECORD, count=_AT_ONCE, offset=start * _RECORD.itemsize)
            leading = records["hash"] >> np.uint64(64 - bits)
            for k, part in enumerate(parts):
                with part.open("ab") as stream:
                    stream.write(records[leading == np.uint64(k)].tobytes())
        self.path.unlink()
        return parts

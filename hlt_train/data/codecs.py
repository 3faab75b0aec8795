"""Which codec the baskets of a tree really use, read from their bytes: the file's and the branches' settings may differ from what was written."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

__all__ = ["branch_codec", "page_codecs"]

_KEY = struct.Struct(">ihiih")  # bytes, version, uncompressed bytes, date, key length
_MAGIC = {b"ZL": "ZLIB", b"XZ": "LZMA", b"L4": "LZ4", b"ZS": "ZSTD", b"CS": "old ZLIB"}


def branch_codec(branch: Any, path: Path) -> str:
    """Codec of a TTree branch's first basket on disk; of one kept inside the tree's header, the branch's setting, in brackets."""
    setting = str(branch.compression).partition("(")[0] if branch.compression else "none"
    seeks = [int(seek) for seek in branch.member("fBasketSeek") if seek > 0]
    if not seeks:
        return f"({setting})"
    with path.open("rb") as stream:
        stream.seek(seeks[0])
        total, _, uncompressed, _, length = _KEY.unpack(stream.read(_KEY.size))
        if total - length >= uncompressed:
            return "none"
        stream.seek(seeks[0] + length)
        return _MAGIC.get(stream.read(2), "unknown")


def page_codecs(ntuple: Any, path: Path) -> dict[str, int]:
    """Codec -> number of columns of an RNTuple, from the first page of each column of the first cluster."""
    found: dict[str, int] = {}
    clusters = ntuple.page_link_list
    if not len(clusters):
        return found
    with path.open("rb") as stream:
        for column in clusters[0]:
            if not len(column.pages):
                continue
            stream.seek(column.pages[0].locator.offset)
            codec = _MAGIC.get(stream.read(2), "none")
            found[codec] = found.get(codec, 0) + 1
    return found

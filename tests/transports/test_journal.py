"""The logs of actors: whole lines, whatever happens to the process; cut back to a checkpoint; damage is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlt_train.errors import HltTrainError, RunFailed, UsageError
from hlt_train.transports import journal as journals
from hlt_train.transports.journal import MOST_OPEN, Journal, Journals, file_of, read

LINE = st.one_of(
    st.lists(st.integers(-1, 10**6), min_size=3, max_size=3),
    st.fixed_dictionaries({"t": st.integers(0, 99), "takes over": st.lists(st.lists(st.integers(0, 9), min_size=4, max_size=4), max_size=2)}),
    st.just({"t": 3, "ends": True}),
)


@given(lines=st.lists(LINE, max_size=12), keep=st.integers(0, 12), torn=st.integers(0, 30), more=st.lists(LINE, max_size=3))
def test_round_trip_torn_last_line_and_cut(lines: list[Any], keep: int, torn: int, more: list[Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    run = tmp_path_factory.mktemp("run")
    journal, sizes = Journal(run, "worker", 7), []
    for line in lines:
        sizes.append(journal.size())
        journal(line)
    journal.close()
    path = file_of(run, "worker", 7)
    assert journal.size() == path.stat().st_size
    assert read(path) == lines
    whole = path.read_bytes()
    end = b'[1,2,{"torn'[:torn]
    path.write_bytes(whole + end)  # killed in the middle of a line
    assert read(path) == lines
    again = Journal(run, "worker", 7)
    again.cut(sizes[keep] if keep < len(lines) else len(whole))
    for line in more:
        again(line)
    again.close()
    assert read(path) == lines[:keep] + more
    assert again.size() == path.stat().st_size


@pytest.mark.parametrize("left", [b"", b'{"format": "hlt-tr'])
def test_killed_within_the_header(left: bytes, tmp_path: Path) -> None:
    path = file_of(tmp_path, "shard", 0)
    path.parent.mkdir()
    path.write_bytes(left)
    journal = Journal(tmp_path, "shard", 0)
    journal([[0, 0]])
    journal.close()
    assert read(path) == [[[0, 0]]]


def test_a_log_shorter_than_its_checkpoint_is_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "worker", 0)
    with pytest.raises(RunFailed, match="shorter than it was at the last checkpoint") as refused:
        journal.cut(journal.size() + 1)
    assert refused.value.where == str(journal.path)


def test_many_logs_need_few_open_files(tmp_path: Path) -> None:
    many = Journals(tmp_path)
    notes = [many.note("worker", k) for k in range(MOST_OPEN + 50)]
    headers = many.sizes()
    assert headers == many.headers()
    for number in range(3):
        for k, note in enumerate(notes):
            note([k, -1, number])
        assert sum(journal._stream is not None for journal in many._all.values()) == MOST_OPEN
    sizes = many.sizes()
    assert sizes == {path.name: path.stat().st_size for path in (tmp_path / "actors").iterdir()}
    for note in notes:
        note([0, 0, 0])
    many.cut(sizes)
    many.close()
    assert sizes == {path.name: path.stat().st_size for path in (tmp_path / "actors").iterdir()}
    assert read(file_of(tmp_path, "worker", MOST_OPEN + 49)) == [[MOST_OPEN + 49, -1, number] for number in range(3)]
    many.cut(headers)
    assert read(file_of(tmp_path, "worker", 0)) == []


def test_without_a_run_nothing_is_kept() -> None:
    none = Journals(None)
    none.note("worker", 0)([0, 0, 0])
    assert none.sizes() == none.headers() == {}
    none.cut({"worker-00000.jsonl": 3})
    none.close()


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "worker", 0)
    with Path("/dev/full").open("wb", buffering=0) as full:
        journal._stream = full
        with pytest.raises(RunFailed, match="cannot write: No space left on device") as refused:
            journal([0, 0, 0])
    assert refused.value.where == str(journal.path)
    assert "--resume" in refused.value.then


HEAD = {"format": "hlt-train/journal", "version": 1, "actor": "worker 0"}


@pytest.mark.parametrize(
    ("kind", "content", "error", "what", "line"),
    [
        ("worker", [json.dumps({**HEAD, "version": 2})], UsageError, "version 2, newer than this program reads", None),
        ("worker", [json.dumps({**HEAD, "format": "x"})], UsageError, "expected a file of format 'hlt-train/journal'", None),
        ("worker", [], UsageError, "expected a file of format", None),
        ("worker", [json.dumps(HEAD), "[0,-1,0]", "[1,-1"], RunFailed, "damaged log", 3),
        ("worker", [json.dumps(HEAD), "[0,-1]"], RunFailed, "no line such as", 2),
        ("worker", [json.dumps(HEAD), '"text"'], RunFailed, "no line such as", 2),
        ("worker", [json.dumps(HEAD), "[0,-1,0.5]"], RunFailed, "no line such as", 2),
        ("shard", [json.dumps(HEAD), "[[0,0]]", "[0,-1,0]"], RunFailed, "no line such as", 3),
        ("shard", [json.dumps(HEAD), "[]"], RunFailed, "no line such as", 2),
        ("shard", [json.dumps(HEAD), "[[0,0]]", "\xff"], RunFailed, "damaged log", 3),
    ],
)
def test_damage_is_named(kind: str, content: list[str], error: type[HltTrainError], what: str, line: int | None, tmp_path: Path) -> None:
    path = file_of(tmp_path, kind, 0)
    path.parent.mkdir()
    path.write_text("".join(text + "\n" for text in content), encoding="latin-1")
    with pytest.raises(error) as refused:
        read(path)
    assert what in refused.value.what
    assert refused.value.where == (str(path) if line is None else f"{path}, line {line}")


def test_no_such_log(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no such log: worker-00003\.jsonl") as refused:
        read(file_of(tmp_path, "worker", 3))
    assert "--transport simulate" in refused.value.then
    assert journals.VERSION == 1

"""Replay from logs: what does not fit together is an error, and a different order is different bits."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlt_train.errors import RunFailed
from hlt_train.transports.dealing import deals
from hlt_train.transports.journal import file_of
from hlt_train.transports.program import digest
from hlt_train.transports.replay import Replay
from tests import messages
from tests.messages import finish, program, simulation


def recorded(run: Path, name: str = "hogwild", shards: int = 2, steps: int = 12) -> messages.Simulation:
    return finish(simulation(program(name, 3, shards), steps, run=run))


def change(path: Path, what: str, at: int) -> None:
    """Swap two lines, drop one, or write one twice; `at` counts after the header."""
    lines = path.read_text().splitlines()
    at += 1
    if what == "swap":
        lines[at], lines[at + 1] = lines[at + 1], lines[at]
    elif what == "drop":
        del lines[at]
    else:
        lines.insert(at, lines[at])
    path.write_text("\n".join(lines) + "\n")


def test_swapped_serves_give_other_states(tmp_path: Path) -> None:
    """Two messages of different workers that a shard served in turn: each is there in time, so the replay runs through, to other bits."""
    found = recorded(tmp_path, shards=1)
    path = file_of(tmp_path, "shard", 0)
    lines = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    first = next(k for k in range(4, len(lines)) if lines[k][0][0] != lines[k + 1][0][0] and lines[k + 1][0][1] > 0)
    change(path, "swap", first)
    again = messages.replayed(tmp_path, found.program, 12)
    assert [digest(s.state) for s in again.shards] != [digest(s.state) for s in found.shards]


@pytest.mark.parametrize(
    ("kind", "what", "at"), [("shard", "drop", 5), ("shard", "twice", 5), ("worker", "drop", 4), ("worker", "twice", 4), ("worker", "swap", 4)]
)
def test_logs_that_do_not_fit_together(kind: str, what: str, at: int, tmp_path: Path) -> None:
    found = recorded(tmp_path)
    change(file_of(tmp_path, kind, 1), what, at)
    with pytest.raises(RunFailed, match=r"the logs do not fit together: (worker|shard) ") as refused:
        messages.replayed(tmp_path, found.program, 12)
    assert refused.value.then


def test_shards_of_one_order_whose_logs_differ(tmp_path: Path) -> None:
    found = recorded(tmp_path, "sync")
    change(file_of(tmp_path, "shard", 1), "drop", 3)
    with pytest.raises(RunFailed, match="the logs of the shards are not of one order"):
        messages.replayed(tmp_path, found.program, 12)


@given(cut=st.integers(0, 40))
def test_a_log_that_ends_early_is_replayed_as_far_as_it_goes_or_refused(cut: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """As a killed process leaves it: never a crash, never a hang."""
    folder = tmp_path_factory.mktemp("run")
    found = recorded(folder, steps=6)
    path = file_of(folder, "worker", 1)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[: max(1, len(lines) - cut)]) + "\n")
    again = Replay(found.program, messages.data(3), deals(3, 6), *messages.logs(folder, found.program), 0)
    with contextlib.suppress(RunFailed):
        again.run()
    assert again.workers[1].t <= 6


def test_messages_are_forgotten_when_everybody_has_them(tmp_path: Path) -> None:
    for name, shards in (("gem", 2), ("gossip", 1)):
        found = recorded(tmp_path / name, name, shards)
        again = messages.replayed(tmp_path / name, found.program, 12)
        left = len(again._sent)
        assert left <= (0 if name == "gem" else 36)
        assert not again._parts


def test_joins_reach_their_worker_shard_by_shard(tmp_path: Path) -> None:
    """A warm start with three shards whose logs are read at different speeds: the slices come in the order of the shards."""
    made = program("downpour", 3, 3, warm_start=3)
    found = finish(simulation(made, 9, run=tmp_path))
    messages.check_replay(found, tmp_path, 9)

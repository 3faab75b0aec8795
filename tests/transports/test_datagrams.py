"""Datagrams between workers: real sockets, what they lose, and Dogwild over them in real processes, replayed to the bit although datagrams were lost."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hlt_train.errors import UsageError
from hlt_train.race import in_turns
from hlt_train.transports.datagrams import HEAD, PAYLOAD, Datagrams, size_of
from hlt_train.transports.launch import launch
from hlt_train.transports.options import MpiOptions
from hlt_train.transports.program import Message
from hlt_train.unreliable import by_datagrams
from tests import messages, races

RACES = str(Path(__file__).parents[1] / "races.py")
SPECS = (((), np.dtype(np.int32)), ((5,), np.dtype(np.float32)), ((), np.dtype(np.bool_)))


@pytest.fixture
def pair() -> Iterator[Any]:
    """Makes two workers that know each other; options are the first one's."""
    made: list[Datagrams] = []

    def make(**options: Any) -> tuple[Datagrams, Datagrams]:
        a, b = Datagrams(0, SPECS, **options), Datagrams(1, SPECS)
        a.meet(b.address())
        b.meet(a.address())
        made.extend((a, b))
        return a, b

    yield make
    for one in made:
        one.close()


def message(sequence: int, to: int = 1) -> Message:
    part = (np.int32(sequence), np.arange(5, dtype=np.float32) + sequence, np.bool_(sequence % 2))
    return Message(0, sequence, 3 * sequence, to, True, False, np.zeros(1, np.int64), (), [part])  # type: ignore[list-item]


def test_a_message_comes_as_it_was_sent(pair: Any) -> None:
    a, b = pair()
    for sequence in range(4):
        a.send(message(sequence))
    found = b.receive()
    assert [(m.source, m.sequence, m.point, m.to, m.push) for m in found] == [(0, k, 3 * k, 1, True) for k in range(4)]
    for k, m in enumerate(found):
        c, values, flag = m.parts[0]
        assert (int(c), bool(flag)) == (k, bool(k % 2))
        np.testing.assert_array_equal(values, np.arange(5) + k)
    assert b.receive() == []
    assert (a.counts().sent, b.counts().received) == (4, {0: 4})


def test_loss_and_reorder_on_purpose(pair: Any) -> None:
    a, b = pair(loss=0.25, reorder=0.25, seed=4)
    found = []
    for sequence in range(400):
        a.send(message(sequence))
        found += b.receive()
    came = [m.sequence for m in found]
    assert len(set(came)) == len(came) == a.sent
    assert 60 < a.withheld < 140
    assert a.sent + a.withheld in (399, 400)  # one may still be kept back
    late = sum(after < before for before, after in pairwise(came))
    assert 30 < late < 120


def test_strangers_and_copies_are_dropped(pair: Any) -> None:
    a, b = pair()
    a.send(message(1))
    host, port = b.address()["host"], b.address()["port"]
    good = HEAD.pack(b.token, 0, 1, 1, 3) + bytes(size_of(SPECS) - HEAD.size)
    forged = HEAD.pack(b.token ^ 1, 0, 1, 2, 3) + bytes(size_of(SPECS) - HEAD.size)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        for content in (forged, good, b"", good[:-1], good + b"x"):
            stranger.sendto(content, (host, port))
    assert [m.sequence for m in b.receive()] == [1]


def test_nothing_is_sent_to_who_is_not_known(pair: Any) -> None:
    a, _b = pair()
    a.send(message(0, to=7))
    assert a.counts().sent == 0


def test_a_message_fits_into_a_datagram() -> None:
    fitting = messages.program("dogwild", 2, chunk=362)
    assert size_of(fitting.body_specs(0)) <= PAYLOAD
    default = messages.program("dogwild", 2)
    assert size_of(default.body_specs(0)) <= PAYLOAD
    with pytest.raises(UsageError, match=r"a datagram holds 1,472 bytes, and a message has 1,517") as refused:
        Datagrams(0, messages.program("dogwild", 2, chunk=374).body_specs(0))
    assert "strategy.chunk=362" in str(refused.value)


def test_which_runs_send_them() -> None:
    dogwild, gossip, hogwild = (messages.strategy(name, 2) for name in ("dogwild", "gossip", "hogwild"))
    assert by_datagrams(dogwild, MpiOptions(datagrams="udp", loss=0.1))
    assert not by_datagrams(dogwild, MpiOptions())
    for rule in (gossip, hogwild):
        with pytest.raises(UsageError, match="for a rule that can do with that"):
            by_datagrams(rule, MpiOptions(datagrams="udp"))
    with pytest.raises(UsageError, match="loss and reorder are for datagrams"):
        by_datagrams(dogwild, MpiOptions(reorder=0.1))


def test_another_machine_needs_a_network(pair: Any) -> None:
    a, b = pair()
    with pytest.raises(UsageError, match="receives on that machine alone") as refused:
        a.meet({**b.address(), "machine": "elsewhere"})
    assert "transport.lan" in str(refused.value)


def test_dogwild_by_datagrams_is_replayed(tmp_path: Path) -> None:
    """Three nodes, a tenth of the datagrams lost on purpose, a checkpoint on the way and a longer run after it."""
    fields = {"rule": "dogwild", "run": str(tmp_path / "run"), "options": {"chunk": 40, "fan": 4, "quiet": 10**6}, "rate": 0.02, "workers": 3}
    first = {"job": {**fields, "steps": 20, "pause": 0.002}, "mpi": {"datagrams": "udp", "loss": 0.1, "reorder": 0.1}}
    second = {**first, "job": {**first["job"], "steps": 40, "extended": True}, "replay": True}
    file = tmp_path / "jobs.json"
    file.write_text(json.dumps([first, second]))
    ended = launch([RACES, str(file)], 4)
    assert ended.code == 0, ended.text
    transport = json.loads((tmp_path / "run" / "transport.json").read_text())
    counted = transport["datagrams"]
    assert counted["by"] == "udp"
    assert 0 < counted["received"] <= counted["sent"]
    assert counted["lost_on_purpose"] > 0
    assert all(lost >= 0 for lost in transport["lost_datagrams"])
    for epoch in json.loads((tmp_path / "run" / "coverage.json").read_text())["epochs"]:
        assert epoch["classes"]["open"] == epoch["duplicates"] == 0
    assert json.loads((tmp_path / "run" / "replay.json").read_text()) == transport["digests"]
    found = in_turns(races.program_of(second), races.data_of(second), 40, np.zeros(len(races.program_of(second).vector), np.float32))
    assert found["updates"] == 120

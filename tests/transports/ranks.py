"""What the ranks of test_post.py do: the first argument names it; each leaves what it saw in the folder OUT."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from hlt_train.errors import RunFailed, UsageError
from hlt_train.transports.launch import launched, local_rank
from hlt_train.transports.post import Parcel, Post

OUT = Path(os.environ.get("OUT", "."))


def leave(name: str, what: Any) -> None:
    temporary = OUT / f".{name}.{os.getpid()}"
    temporary.write_text(json.dumps(what))
    temporary.replace(OUT / f"{name}.json")


def collect(post: Post, number: int, **options: Any) -> list[Parcel]:
    parcels: list[Parcel] = []
    give_up = time.monotonic() + 20
    while len(parcels) < number:
        parcels += post.poll(30.0, deadline=give_up, **options)
    return parcels


def end() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def until_dead(post: Post) -> list[Parcel]:
    """Everything up to the first death, or a call."""
    parcels: list[Parcel] = []
    give_up = time.monotonic() + 20
    while not (post.dead or post.called):
        parcels += post.poll(30.0, deadline=give_up)
    return parcels


def trip() -> None:
    """Every rank sends 40 messages to every rank, itself included; sizes from nothing to exactly the capacity."""
    capacity = 1 << 18
    post = Post(capacity, words=3)

    def letters(source: int, to: int) -> list[tuple[int, np.ndarray]]:
        rng = np.random.default_rng([source, to])
        sizes = [(0, capacity, int(rng.integers(capacity)), int(rng.integers(5000)), 1)[k % 5] for k in range(40)]
        return [(k - 20, rng.integers(0, 256, size, dtype=np.uint8)) for k, size in enumerate(sizes)]

    for to in range(post.size):
        for k, body in letters(post.rank, to):
            changed = body.copy()
            post.send(to, k, [k, -(2**62), len(body)][: 3 if k % 2 else 1], changed if k else changed.reshape(1, -1))
            changed[:] = 0  # the sender may change its array at once
    parcels = collect(post, 40 * post.size)
    for source in range(post.size):
        mine = [p for p in parcels if p.source == source]
        for parcel, (k, body) in zip(mine, letters(source, post.rank), strict=True):
            assert parcel.tag == k
            assert parcel.header.tolist() == [k, -(2**62), len(body)][: 3 if k % 2 else 1]
            np.testing.assert_array_equal(parcel.payload, body)
            if len(body) % 8 == 0:
                parcel.payload.view(np.float64)
    assert post.flush(10.0)
    assert post.pending() == 0
    sizes = [sum(8 * (3 if k % 2 else 1) + len(body) for k, body in letters(post.rank, to)) for to in range(post.size)]
    assert post.bytes_sent.tolist() == sizes
    assert post.messages_sent.tolist() == [40] * post.size
    assert post.dropped.sum() == 0
    several = [np.arange(5, dtype=np.uint8), np.float32([1, 2, 3]), np.array(7, np.int64)]
    for to in range(post.size):
        post.send(to, 0, [], several)
    for parcel in collect(post, post.size):  # each begins at a multiple of 64 bytes
        assert parcel.payload.tobytes() == b"".join(a.tobytes().ljust(-(-a.nbytes // 64) * 64, b"\0") for a in several)
        assert parcel.payload.ctypes.data % 64 == 0
    # What was received is compared only now: before, a fast peer may have sent its next message already.
    assert post.messages_received.tolist() == [41] * post.size
    more = sum(-(-a.nbytes // 64) * 64 for a in several)
    assert post.bytes_received.tolist() == [more + sum(8 * (3 if k % 2 else 1) + len(b) for k, b in letters(s, post.rank)) for s in range(post.size)]
    errors = []
    for arguments in ((0, 0, [], np.zeros(capacity + 1, np.uint8)), (0, 0, [1, 2, 3, 4], None), (post.size, 0, [], None)):
        try:
            post.send(*arguments)
        except ValueError as error:
            errors.append(str(error))
    assert post.close()
    leave(f"trip-{post.rank}", errors)


def flood() -> None:
    """Three senders that never stop, and a receiver that is slower than each: something of every sender is always there."""
    post = Post(1000)
    if post.rank == 0:
        first: list[Parcel] = []
        while len(first) < 300:
            time.sleep(2e-3)
            first += post.poll(0.0, most=3)
        first = first[-300:]
        leave("flood", [sum(p.source == s for p in first) for s in range(post.size)])
        for source in range(1, post.size):
            post.send(source, 1, [])
        while len(post.left) < post.size - 1:
            post.poll(1.0)
    else:
        while not post.poll(0.001 if post.pending() > 50 else 0.0):
            if post.pending() <= 50:
                post.send(0, 0, [], np.zeros(1000, np.uint8))
    assert post.close()


def late() -> None:
    """Rank 0 waits for a message that nobody sends."""
    post = Post(100)
    if post.rank == 0:
        began = time.monotonic()
        try:
            post.poll(10.0, deadline=began + 0.3, awaited=[2])
        except RunFailed as error:
            leave("late", [str(error), time.monotonic() - began])
        for to in (1, 2):
            post.send(to, 0, [])
    else:
        collect(post, 1)
    assert post.close()


def killed() -> None:
    """Rank 2 dies after complete messages to a receiver that does not look; the others see it, go on without it, and part."""
    post = Post(100_000)
    if post.rank == 2:
        for k in range(20):
            post.send(0, k, [k], np.full(500 * k, k, np.uint8))
        post.flush(10.0)
        end()
    if post.rank == 0:
        time.sleep(0.0 if "eager" in sys.argv else 0.2)
    parcels = until_dead(post)
    assert all((p.payload == p.tag).all() and p.payload.size == 500 * p.tag for p in parcels)
    time.sleep(0.2)  # the others know it too by now
    post.send(2, 0, [])
    assert post.dropped.tolist() == [0, 0, 1, 0]
    for to in {0, 1, 3} - {post.rank}:
        post.send(to, 99, [post.rank], np.full(100_000, post.rank, np.uint8))
    alive = post.alive
    after = collect(post, 2)
    leave(f"killed-{post.rank}", [[p.tag for p in parcels], sorted(p.source for p in after), sorted(post.dead), alive])
    assert post.close()


def recover() -> None:
    """Rank 2 dies; the others rebuild without it, and no message between them is lost."""
    post = Post(100_000)
    if post.rank == 2:
        post.poll(0.1)
        end()
    parcels = until_dead(post)
    for to in {0, 1, 3} - {post.rank}:
        for k in range(10):
            post.send(to, k, [], np.full(1000 * k * k, k, np.uint8))
    replaced = post.recover()
    for to in {0, 1, 3} - {post.rank}:
        post.send(to, 10, [], None)
    parcels += collect(post, 22 - len(parcels))
    tags = {s: [p.tag for p in parcels if p.source == s] for s in range(4)}
    leave(f"recover-{post.rank}", [replaced, sorted(post.dead), post.epoch, tags, post.rank])
    assert post.close()


def respawn() -> None:
    """Ranks 1 and 2 die and are replaced; then rank 0 dies and is replaced, then a replacement."""
    post = Post(100_000)
    if not post.replacement and post.rank in (1, 2):
        time.sleep(0.1)
        end()
    seen: list[tuple[int, ...]] = []
    victims: dict[int, set[int]] = {0: {1, 2}, 1: {0}, 2: {2}, 3: set()}  # who dies after how many recoveries
    arriving = post.replacement
    while True:
        if not arriving:
            until_dead(post)
            seen.append(post.recover(sys.argv))
        arriving = False
        for to in range(post.size):
            post.send(to, post.epoch, [post.rank], np.full(50_000, post.epoch, np.uint8))
        parcels = collect(post, post.size)
        assert sorted(p.source for p in parcels) == list(range(post.size))
        assert all(p.tag == post.epoch and (p.payload == post.epoch).all() for p in parcels)
        if not victims[post.epoch]:
            break
        if post.rank in victims[post.epoch]:
            post.flush(10.0)
            end()
    leave(f"respawn-{post.rank}", [post.replacement, sorted(post.dead), seen])
    assert post.close(60.0)


def stuck() -> None:
    """Rank 2 dies; rank 1 says that it joins the recovery and does not."""
    post = Post(100)
    if post.rank == 2:
        time.sleep(0.1)
        end()
    until_dead(post)
    if post.rank == 1:
        post._rebuilt = lambda _respawn: time.sleep(60)
    post.recover(patience=3.0)


def fails() -> None:
    """Rank 1 fails with an error of ours while the others work."""
    post = Post(100)
    if post.rank == 1:
        raise UsageError("no such branch", where="jets.root")
    while True:
        post.poll(1.0)


def early() -> None:
    """Rank 0 is killed while the others wait."""
    post = Post(100)
    if post.rank == 0:
        time.sleep(0.2)
        end()
    give_up = time.monotonic() + 20
    while not post.dead and time.monotonic() < give_up:
        post.poll(1.0)
    assert post.close()


def waits() -> None:
    """Every rank counts its signals and ends with 130 a moment after the first."""
    seen: list[str] = []
    for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(s, lambda number, _frame: seen.append(signal.Signals(number).name))
    post = Post(100)
    leave(f"ready-{post.rank}", os.getpid())
    while not seen:
        post.poll(0.05)
    time.sleep(0.4)
    leave(f"signals-{post.rank}", seen)
    assert post.close()
    sys.exit(130)


def looks() -> None:
    """What a rank finds in its environment; no Post, no farewell."""
    assert launched() is not None
    leave(f"looks-{launched()[0]}", [launched(), local_rank(), {k: os.environ.get(k) for k in ("NPROC", "MINE", "ALL", "OMP_NUM_THREADS")}, sys.argv[1:]])


if __name__ == "__main__":
    globals()[sys.argv[1]]()

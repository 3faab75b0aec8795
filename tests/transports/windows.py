"""What the ranks of test_lock_free.py do with windows: the first argument names it; each leaves what it saw in the folder OUT."""

from __future__ import annotations

import os
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from hlt_train.transports.launch import FOLDER
from hlt_train.transports.lock_free import Memory, how_of, touched
from hlt_train.transports.post import Post
from hlt_train.transports.watched import Watched, leave_at_once
from tests.transports.ranks import leave

OFFSET, WIDTH, BUCKETS = 2, 5, 200
N = OFFSET + WIDTH * BUCKETS + 7
TURNS = 150
START = np.random.default_rng(0).integers(-9, 9, N).astype(np.float32)  # whole numbers: sums are exact


def adding(post: Post, how: str, *, unsafe: bool = False) -> None:
    """Ranks 0 and 1 add, the owners (rma: the last two) own."""
    how = how_of(post.comm, how)
    owners = (0,) if how == "node" else (post.size - 2, post.size - 1)
    memory = Memory(post.comm, N, how, owners, unsafe=unsafe)
    if post.rank == 0:
        memory.set(START, 5)
    post.comm.Barrier()
    assert np.array_equal(memory.read(), START)
    post.comm.Barrier()
    numbers = []
    if post.rank < 2:
        rows = np.random.default_rng(post.rank + 1).integers(0, BUCKETS + 1, 60).astype(np.int32)
        met = touched(rows, BUCKETS)
        seen = memory.read_rows(OFFSET, WIDTH, met.rows)
        assert seen.shape == (len(met.rows), WIDTH)
        for _ in range(TURNS):
            memory.add_rows(OFFSET, met.rows, met.sums(np.ones((len(rows), WIDTH), np.float32)))
            memory.add_range(0, np.ones(N, np.float32))
            numbers.append(memory.next_number())
        for k in range(post.size):
            post.send(k, 1, [post.rank])
    heard = 0
    while heard < 2:  # an owner looks, so that the others' calls get on
        heard += len(post.poll(0.0))
        time.sleep(1e-4)
    post.comm.Barrier()
    if post.rank == 0:
        want = START.astype(np.float64) + 2 * TURNS
        for k in (0, 1):
            rows = np.random.default_rng(k + 1).integers(0, BUCKETS + 1, 60)
            for row in rows[rows < BUCKETS]:
                want[OFFSET + WIDTH * row : OFFSET + WIDTH * (row + 1)] += TURNS
        leave("missing", float((want - memory.read()).sum()))
        leave("number", memory.number())
        leave("counted", memory.counted())
    leave(f"attempted-{post.rank}", memory.attempted)
    leave(f"numbers-{post.rank}", numbers)
    leave(f"segments-{post.rank}", [os.environ[FOLDER], os.environ["OMPI_MCA_osc_sm_backing_directory"]])  # noqa: SIM112
    post.comm.Barrier()


def hung(post: Post) -> None:
    """Rank 1 does not come back from a call."""

    watched = Watched(0.5, partial(leave_at_once, post.rank, "it hangs"))
    for _ in range(3):
        with watched():
            time.sleep(0.01)
    time.sleep(1.0)  # between calls there is time
    if post.rank == 1:
        with watched():
            time.sleep(60)
    while True:
        post.poll(1.0)


def main() -> None:
    post = Post(1000)
    what = sys.argv[1]
    if what == "hung":
        hung(post)
    adding(post, what.removeprefix("unsafe-"), unsafe=what.startswith("unsafe"))
    post.close(30.0)


if __name__ == "__main__":
    main()

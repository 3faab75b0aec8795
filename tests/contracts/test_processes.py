"""What every discovered strategy keeps when real processes run it: each share of the data counted once, and the run replayed from its logs to the bit.

Where messages are served as they come, two recordings of one command differ in their logs and their results; each is replayed exactly.
"""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hlt_train import plugins
from hlt_train.transports.journal import file_of, read
from hlt_train.transports.launch import Ended, launch
from tests import processes

STRATEGIES = plugins.names("strategies")
OPTIONS: dict[str, dict[str, Any]] = {
    "agn": {"window": 2},
    "average": {"period": 3},
    "easgd": {"period": 2},
    "fasgd": {"c_push": 0.1, "c_fetch": 0.1},
    "gossip": {"p": 0.5},
}
HANDED_OUT = {"steps": 8, "per_epoch": 2}  # rules whose server says what to work on: rounds over few portions
# Further forms of the rules. More than two workers or one shard where that makes a difference.
FORMS: dict[str, dict[str, Any]] = {
    "sync with backups": {"rule": "sync", "options": {"backups": 1}, "workers": 3},
    "sync, two shards": {"rule": "sync", "servers": 2},
    "sync, alltoall": {"rule": "sync", "exchange": "alltoall", "workers": 3},
    "sync, alltoall, bfloat16": {"rule": "sync", "exchange": "alltoall", "wire": "bfloat16"},
    "sync, alltoall, float16": {"rule": "sync", "exchange": "alltoall", "wire": "float16"},
    "sync, alltoall, int8": {"rule": "sync", "exchange": "alltoall", "wire": "int8"},
    "sync, allreduce": {"rule": "sync", "exchange": "allreduce", "workers": 3},
    "average, allreduce, int8": {"rule": "average", "exchange": "allreduce", "options": {"period": 3}, "wire": "int8"},
    "downpour, warm start": {"rule": "downpour", "options": {"warm_start": 2, "n_push": 2, "n_fetch": 3}, "servers": 2},
    "downpour, overlap": {"rule": "downpour", "overlap": True},
    "sandblaster, two shards": {"rule": "sandblaster", "servers": 2, **HANDED_OUT},
    "easgd, synchronous": {"rule": "easgd", "options": {"period": 3, "synchronous": True}},
    "easgd with momentum": {"rule": "easgd", "options": {"period": 2, "momentum": 0.5}},
    "dynsgd, softsync": {"rule": "dynsgd", "options": {"softsync": 2}, "servers": 2},
}


def _jobs() -> dict[str, dict[str, Any]]:
    plain = {name: {"rule": name, "options": OPTIONS.get(name, {}), **(HANDED_OUT if name == "sandblaster" else {})} for name in STRATEGIES}
    return {name: {"steps": 24, "per_epoch": 12, "pause": 0.002, "uneven": True, **job} for name, job in {**plain, **FORMS}.items()}


JOBS = _jobs()


def _rule(name: str) -> Any:
    return processes.rule_of(processes.Job(run="", **JOBS[name]))


def _free(name: str) -> bool:
    """Whether messages are served as they come."""
    rule = _rule(name)
    return not rule.peers and rule.quorum == 1


class Recordings:
    """The runs of all jobs; done before if there is a word in the folder of how they ended."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ended = folder / "ended.json"
        if not ended.exists():
            ended.write_text(json.dumps(self.launch()))
        self.ended = Ended(*json.loads(ended.read_text()))

    def launch(self) -> Ended:
        jobs = []
        for name, job in JOBS.items():
            jobs += [{**job, "run": str(self.path(name, again)), "replay": True} for again in range(1 + _free(name))]
        file = self.folder / "jobs.json"
        file.write_text(json.dumps(jobs))
        ranks = max(processes.ranks_of(processes.Job(**job)) for job in jobs)
        return launch([processes.__file__, str(file)], ranks, nproc=2)

    def path(self, name: str, again: int = 0) -> Path:
        return self.folder / f"{name} {again}".replace(",", "").replace(" ", "-")

    def read(self, name: str, file: str, again: int = 0) -> Any:
        return json.loads((self.path(name, again) / file).read_text())

    def logs(self, name: str, again: int = 0) -> list[Any]:
        run, job = self.path(name, again), processes.Job(run="", **JOBS[name])
        shards = 0 if _rule(name).peers else processes.made(job).shards
        return [read(file_of(run, "worker", k)) for k in range(job.workers)] + [read(file_of(run, "shard", k)) for k in range(shards)]


@pytest.fixture(scope="module")
def recordings(shared_folder: Path) -> Recordings:
    """Made once, also where several processes share out the tests of this module."""
    folder = shared_folder / "recordings"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return Recordings(folder)


def test_all_ran(recordings: Recordings) -> None:
    assert recordings.ended[:3] == (0, {}, [])


@pytest.mark.parametrize("name", JOBS)
def test_replay_is_the_recording(name: str, recordings: Recordings) -> None:
    for again in range(1 + _free(name)):
        digests = recordings.read(name, "transport.json", again)["digests"]
        assert recordings.read(name, "replay.json", again) == digests
        assert len(digests["workers"]) == JOBS[name].get("workers", 2)


@pytest.mark.parametrize("name", JOBS)
def test_every_share_counts_once(name: str, recordings: Recordings) -> None:
    job = processes.Job(run="", **JOBS[name])
    epochs = recordings.read(name, "coverage.json")["epochs"]
    for epoch in epochs:
        assert epoch["classes"]["open"] == 0
        assert sum(epoch["classes"].values()) == job.per_epoch * job.workers
        assert (epoch["redealt"], epoch["lost"]) == (0, 0)
        assert epoch["duplicates"] == 0 or _rule(name).batch is not None  # a portion may be handed out twice
    assert len(epochs) == job.steps // job.per_epoch


@pytest.mark.parametrize("name", [name for name in JOBS if _free(name)])
def test_the_order_of_arrival_decides(name: str, recordings: Recordings) -> None:
    first, second = (recordings.read(name, "transport.json", again) for again in range(2))
    assert recordings.logs(name, 0) != recordings.logs(name, 1)
    if _rule(name).batch is None:  # the sums of Sandblaster are exact: who computed what does not matter
        assert first["digests"]["params"] != second["digests"]["params"]
    else:
        assert first["digests"]["params"] == second["digests"]["params"]
    for found in (first, second):
        assert np.count_nonzero(found["staleness"]["histogram"]) > 1


@pytest.mark.parametrize("name", [name for name in JOBS if _rule(name).quorum == 0 and not _rule(name).peers])
def test_a_barrier_has_no_staleness(name: str, recordings: Recordings) -> None:
    assert recordings.read(name, "transport.json")["staleness"]["mean"] == 0.0


def test_how_a_mean_is_formed_changes_rounding_only(recordings: Recordings) -> None:
    def last(name: str) -> float:
        lines = (recordings.path(name) / "metrics.jsonl").read_text().splitlines()
        return float(json.loads(lines[-1])["validation"]["loss"])

    np.testing.assert_allclose(last("sync, two shards"), last("sync"), rtol=1e-5)
    np.testing.assert_allclose(last("sync, alltoall, bfloat16"), last("sync"), rtol=1e-2)
    np.testing.assert_allclose(last("sync, allreduce"), last("sync, alltoall"), rtol=1e-5)
    for wire in ("bfloat16", "float16", "int8"):
        found = recordings.read(f"sync, alltoall, {wire}", "transport.json")["wire"]
        assert found["format"] == wire
        assert 0 < found["relative_error"] < 0.05

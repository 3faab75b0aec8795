"""Runs by processes that are interrupted or lose processes: they go on, or end with a word about it, and leave nothing behind."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from hlt_train.transports.journal import file_of, read
from tests.chaos import Outcome, Strike, after, chaos, jobs_command

TIMES = {"seconds", "rows_per_s", "validation_seconds"}
SLOW = {"pause": 0.02, "steps": 60, "per_epoch": 20, "checkpoint_every": 10}


def run_jobs(folder: Path, jobs: list[dict[str, Any]], ranks: int, strikes: list[Strike] = (), *, ft: bool = False, **more: Any) -> Outcome:  # type: ignore[assignment]
    file = folder / f"jobs{len(list(folder.glob('jobs*')))}.json"
    file.write_text(json.dumps(jobs))
    outcome = chaos(jobs_command(file, ranks, fault_tolerant=ft), str(file), strikes, **more)
    assert outcome.left == [], outcome
    return outcome


def document(run: Path, name: str) -> Any:
    return json.loads((run / name).read_text())


def metrics(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def complete(run: Path, job: dict[str, Any], workers: int = 2) -> None:
    for epoch in document(run, "coverage.json")["epochs"]:
        assert epoch["classes"]["open"] == 0, epoch
        assert sum(epoch["classes"].values()) == job["per_epoch"] * workers
    assert document(run, "replay.json") == document(run, "transport.json")["digests"]


def test_interrupted_runs_go_on(tmp_path: Path) -> None:
    """After SIGTERM, and after everything was killed, a barrier ends where an undisturbed run does; an asynchronous rule is replayed across it."""
    sync, free = {"rule": "sync", **SLOW}, {"rule": "downpour", "workers": 3, "options": {"n_push": 2}, **SLOW}
    runs = {name: tmp_path / name for name in ("whole", "term", "kill", "free")}
    outcome = run_jobs(tmp_path, [{**sync, "run": str(runs["term"])}], 4, [Strike(-1, signal.SIGTERM, after(runs["term"], 33))])
    assert outcome.code == 130, outcome
    outcome = run_jobs(tmp_path, [{**sync, "run": str(runs["kill"])}], 4, [Strike(-2, signal.SIGKILL, after(runs["kill"], 27))])
    outcome = run_jobs(tmp_path, [{**free, "run": str(runs["free"])}], 5, [Strike(-1, signal.SIGTERM, after(runs["free"], 50))])
    assert outcome.code == 130, outcome
    again = [{**(free if name == "free" else sync), "run": str(run), "replay": True} for name, run in runs.items()]
    outcome = run_jobs(tmp_path, again, 4)  # one worker fewer for the asynchronous one: the others do what was its
    assert outcome.code == 0, outcome
    for name in ("term", "kill"):
        assert document(runs[name], "transport.json")["digests"] == document(runs["whole"], "transport.json")["digests"]
        assert metrics(runs[name]) == metrics(runs["whole"])
    for name in ("whole", "term", "kill"):
        complete(runs[name], sync)
    complete_free = document(runs["free"], "coverage.json")["epochs"]
    assert [epoch["classes"]["open"] for epoch in complete_free] == [0, 0, 0]
    assert sum(sum(epoch["classes"].values()) for epoch in complete_free) == 180
    assert document(runs["free"], "transport.json")["dead"] == [2]
    assert document(runs["free"], "replay.json") == document(runs["free"], "transport.json")["digests"]


def test_workers_begin_together(tmp_path: Path) -> None:
    """One takes long to compile: none of the others runs ahead, so that staleness is that of the rule."""
    run = tmp_path / "run"
    job = {"rule": "downpour", "run": str(run), "workers": 2, "steps": 40, "per_epoch": 20, "late": [1, 4.0]}
    assert run_jobs(tmp_path, [job], 4).code == 0
    served = [pair[0] for line in read(file_of(run, "shard", 0)) if isinstance(line, list) for pair in line]
    assert sorted(served) == [0] * 40 + [1] * 40
    assert served.index(1) < 30


@pytest.mark.parametrize("role", [pytest.param("worker", marks=pytest.mark.slow), "server", pytest.param("clerk", marks=pytest.mark.slow)])
def test_a_killed_process_is_survived(role: str, tmp_path: Path) -> None:
    """Of the slow ones tests/test_chaos.py says the same, of other moments."""
    run = tmp_path / "run"
    job = {"rule": "downpour", "run": str(run), "workers": 3, "with_ft": True, "watchdog": 60.0, "replay": True, **SLOW}
    outcome = run_jobs(tmp_path, [job], 5, [Strike({"clerk": 0, "server": 1, "worker": 3}[role], signal.SIGKILL, after(run, 70))], ft=True)
    assert outcome.code == 0, outcome
    assert_survived(run, role)


def assert_survived(run: Path, role: str) -> None:
    """The asynchronous run of three workers lost this process after its first checkpoint."""
    log, transport = (run / "log.txt").read_text(), document(run, "transport.json")
    assert document(run, "replay.json") == transport["digests"]
    epochs = document(run, "coverage.json")["epochs"]
    assert [epoch["classes"]["open"] for epoch in epochs] == [0, 0, 0]
    assert sum(sum(epoch["classes"].values()) for epoch in epochs) == 180
    if role == "worker":
        assert "worker 1 (rank 3) died" in log
        assert transport["dead"] == [1]
        assert sum(epoch["redealt"] for epoch in epochs) > 0
        assert transport["recoveries"] == []
    else:
        (recovery,) = transport["recoveries"]
        assert recovery["dead"] == [{"clerk": 0, "server": 1}[role]]
        assert recovery["restored"] is not None
        assert recovery["lost_messages"] >= 0
        assert (recovery["lost_shares"] is None) == (role == "clerk")
        assert sum(epoch["lost"] for epoch in epochs) == (recovery["lost_shares"] or 0)
        assert transport["dead"] == [2]  # the worker with the highest number took over the role


@pytest.mark.slow
@pytest.mark.parametrize("exchange", ["alltoall", "allreduce"])
def test_workers_that_are_the_server_too(exchange: str, tmp_path: Path) -> None:
    """One of them dies: the others go back to the checkpoint and share what was its, its shard included."""
    run = tmp_path / "run"
    job = {"rule": "sync", "exchange": exchange, "run": str(run), "workers": 3, "with_ft": True, "watchdog": 60.0, "replay": True, **SLOW}
    outcome = run_jobs(tmp_path, [job], 4, [Strike(2, signal.SIGKILL, after(run, 35))], ft=True)
    assert outcome.code == 0, outcome
    assert document(run, "transport.json")["dead"] == [1]
    complete(run, job, 3)


@pytest.mark.slow
def test_a_replacement_joins(tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = {"rule": "downpour", "run": str(run), "with_ft": True, "respawn": 1, "watchdog": 60.0, "replay": True, **SLOW}
    outcome = run_jobs(tmp_path, [job], 4, [Strike(3, signal.SIGKILL, after(run, 40))], ft=True)
    assert outcome.code == 0, outcome
    transport = document(run, "transport.json")
    assert transport["dead"] == []
    assert len(transport["recoveries"]) == 1
    complete(run, job)


@pytest.mark.slow
def test_a_stopped_worker_is_late_or_stale(tmp_path: Path) -> None:
    """A barrier with backups goes on without it; elsewhere what it computed before is served when it goes on."""
    late, stale = tmp_path / "late", tmp_path / "stale"
    jobs = [
        {"rule": "sync", "options": {"backups": 1}, "workers": 3, "run": str(late), "replay": True, **SLOW},
        {"rule": "downpour", "workers": 3, "run": str(stale), "replay": True, **SLOW},
    ]
    # It goes on when the two others have sent so many messages, however long that takes them.
    strikes = [Strike(4, what, after(run, count)) for run in (late, stale) for what, count in ((signal.SIGSTOP, 20), (signal.SIGCONT, 52))]
    outcome = run_jobs(tmp_path, jobs, 5, strikes)
    assert outcome.code == 0, outcome
    for run in (late, stale):
        complete(run, SLOW, 3)
    assert document(late, "transport.json")["late"][2] > 10
    histogram = document(stale, "transport.json")["staleness"]["histogram"]
    assert max(k for k, count in enumerate(histogram) if count) > 10


@pytest.mark.parametrize("ft", [pytest.param(False, marks=pytest.mark.slow), True])
def test_an_error_of_a_worker_ends_the_run(ft: bool, tmp_path: Path) -> None:
    run = tmp_path / "run"
    outcome = run_jobs(tmp_path, [{"rule": "downpour", "run": str(run), "raises": [1, 20], "with_ft": ft, **SLOW}], 4, ft=ft)
    assert outcome.code == 1, outcome
    assert "rank 3 (worker 1): ValueError: this batch is bad" in outcome.err
    assert "Traceback" in (run / "log.txt").read_text()


@pytest.mark.slow
def test_a_hanging_exchange_is_ended(tmp_path: Path) -> None:
    run = tmp_path / "run"
    outcome = run_jobs(tmp_path, [{"rule": "sync", "run": str(run), "watchdog": 8.0, **SLOW}], 4, [Strike(3, signal.SIGSTOP, after(run, 30))])
    assert outcome.code == 1, outcome
    (line,) = [line for line in (run / "log.txt").read_text().splitlines() if "watchdog" in line]
    assert "nothing has moved for 8 s; still at work: worker 0 (rank 2, batch" in line
    assert "nothing at all came from rank 3; the last checkpoint is step" in line
    assert line.partition("watchdog: ")[2] in outcome.err


@pytest.mark.slow
def test_without_fault_tolerance_a_killed_rank_ends_the_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    outcome = run_jobs(tmp_path, [{"rule": "downpour", "run": str(run), **SLOW}], 4, [Strike(3, signal.SIGKILL, after(run, 40))])
    assert outcome.code == 1, outcome
    assert json.loads(outcome.out.splitlines()[-1])["first"] == 3

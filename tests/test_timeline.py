"""The timeline is a file of trace events, and nobody does two things at a time."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from hlt_train import timeline
from hlt_train.timeline import Timeline
from hlt_train.transports.simulate import Failure, Span
from tests.messages import finish, program, simulation


def written(made: Timeline, path: Path) -> dict[str, Any]:
    made.write(path, "virtual")
    content: dict[str, Any] = json.loads(path.read_text(), parse_constant=pytest.fail)
    return content


@pytest.mark.parametrize(("name", "shards"), [("hogwild", 2), ("sync", 1), ("gossip", 1)])
def test_spans_of_a_simulation(name: str, shards: int, tmp_path: Path) -> None:
    """Batches, waits and serves of an actor follow one another; a failure may lie within one of them."""
    made = Timeline()
    failures = (Failure(0.1, "kill", 1), Failure(0.12, "stop", 2, 0.1))
    found = finish(simulation(program(name, 3, shards), 18, failures=failures, spans=made))
    content = written(made, tmp_path / "timeline.json")
    events = content["traceEvents"]
    names = {event["tid"]: event["args"]["name"] for event in events if event["ph"] == "M" and event["name"] == "thread_name"}
    assert set(names.values()) >= {"worker 0", "worker 1", "worker 2"}
    for tid in names:
        spans = [event for event in events if event["ph"] == "X" and event["tid"] == tid]
        busy = [event for event in spans if event["cat"] != "failure"]
        for event in spans:
            assert set(event) == {"name", "cat", "ph", "pid", "tid", "ts", "dur"}
            assert event["pid"] == 1
            assert event["dur"] > 0
            assert event["name"] in ("compute", "wait", "serve", "failure")
        for before, after in pairwise(busy):
            assert before["ts"] + before["dur"] <= after["ts"] + 0.01  # microseconds
    last = max(event["ts"] + event["dur"] for event in events if event["ph"] == "X" and event["cat"] == "compute")
    assert last <= found.now * 1e6 + 0.01
    compute = sum(event["dur"] for event in events if event["ph"] == "X" and event["cat"] == "compute")
    assert compute / 1e6 == pytest.approx(found.account.compute.sum(), rel=1e-4)
    order = [names[event["tid"]] for event in sorted((e for e in events if e["name"] == "thread_sort_index"), key=lambda e: e["args"]["sort_index"])]
    assert order == sorted(order)
    assert content["otherData"] == {"format": "hlt-train/timeline", "version": 1, "clock": "virtual", "dropped_spans": 0}


def test_too_many_spans_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline, "MOST", 3)
    made = Timeline()
    for k in range(5):
        made(Span("worker 10" if k % 2 else "worker 9", "compute", float(k), k + 0.5))
    content = written(made, tmp_path / "timeline.json")
    assert content["otherData"]["dropped_spans"] == 2
    assert [event["ts"] for event in content["traceEvents"] if event["ph"] == "X"] == [0.0, 1e6, 2e6]
    assert [event["args"]["name"] for event in content["traceEvents"] if event["name"] == "thread_name"] == ["worker 9", "worker 10"]

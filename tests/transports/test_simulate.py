"""The virtual clock: times that can be computed by hand, failures, what becomes of every share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hlt_train.errors import RunFailed, UsageError
from hlt_train.transports import noise, simulate
from hlt_train.transports.account import Coverage
from hlt_train.transports.program import Program
from hlt_train.transports.simulate import Failure, Simulation, Span, Timing
from tests import messages
from tests.messages import PER_EPOCH, counts, finish, outcome, program, simulation

BYTES = 4 * len(messages.TRUTH)


def slow(worker: int, by: float) -> Any:
    """A factor: one worker takes `by` times as long."""
    return lambda k, _batch: by if k == worker else 1.0


# Predictions.


def test_a_barrier_without_stragglers_takes_steps_times_compute() -> None:
    found = finish(simulation(program("sync", 3), 10, timing=Timing(compute=0.5, latency=0.0, bandwidth=1e30)))
    assert found.now == pytest.approx(5.0)
    assert found.account.compute.tolist() == pytest.approx([5.0] * 3)
    assert found.account.waiting.sum() == pytest.approx(0)


def test_a_barrier_waits_for_the_slowest() -> None:
    found = finish(simulation(program("sync", 3), 10, timing=Timing(compute=0.5, factor=slow(1, 3), latency=0.0, bandwidth=1e30)))
    assert found.now == pytest.approx(15.0)
    assert found.account.waiting.tolist() == pytest.approx([10.0, 0.0, 10.0])


def test_asynchronous_workers_wait_for_nobody() -> None:
    found = finish(simulation(program("hogwild"), 12, timing=Timing(compute=0.5, factor=slow(1, 3), latency=0.0, bandwidth=1e30)))
    assert found.now == pytest.approx(18.0)
    assert found.account.compute.tolist() == pytest.approx([6.0, 18.0, 6.0])
    assert found.account.staleness.sum() == 36


def test_bandwidth_and_service() -> None:
    """One worker: to the server and back, one after the other; three at a barrier: the shard serves their messages one by one."""
    timing = Timing(compute=0.5, latency=0.0, bandwidth=BYTES / 0.25, service=0.125)
    assert finish(simulation(program("sync", 1), 4, timing=timing)).now == pytest.approx(4 * (0.5 + 0.25 + 0.125 + 0.25))
    assert finish(simulation(program("sync", 3), 4, timing=timing)).now == pytest.approx(4 * (0.5 + 0.25 + 3 * 0.125 + 0.25))


def test_the_mean_of_the_latency_is_that_of_the_option() -> None:
    steps = 600
    found = finish(simulation(program("sync", 1), steps, timing=Timing(compute=1e-9, latency=0.5, bandwidth=1e30)))
    assert abs(found.now / (2 * steps) - 0.5) < 5 * 0.25 / (2 * steps) ** 0.5  # exponential with mean 0.25 above 0.25


def test_shared_cores() -> None:
    assert finish(simulation(program("sync", 3), 4, timing=Timing(compute=0.5, latency=0.0, bandwidth=1e30, cores=3))).now == pytest.approx(2.0)
    found = finish(simulation(program("sync", 3), 4, timing=Timing(compute=0.5, latency=0.0, bandwidth=1e30, cores=1)))
    assert found.now == pytest.approx(4 * 0.5 * 3)


def test_bytes_are_counted_and_a_fetch_is_a_header() -> None:
    assert finish(simulation(program("sync", 2), 5)).account.bytes.tolist() == [5 * 2 * BYTES] * 2
    found = finish(simulation(program("gem", 2), 5))  # a fetch with its answer, then a commit
    assert found.account.bytes.tolist() == [5 * 2 * BYTES] * 2
    assert found.account.messages.tolist() == [10, 10]


# Messages.


@pytest.mark.parametrize("name", ["hogwild", "downpour", "easgd", "dynsgd", "agn", "gem", "sync", "average"])
def test_shards_change_nothing_where_messages_come_in_one_order(name: str) -> None:
    """Element-wise rules; without latency every message reaches all shards at once, so that all of them serve in one order."""
    timing = Timing(factor=messages.ROUGH.factor, latency=0.0, bandwidth=1e30)
    options = {"window": 2} if name == "agn" else {}
    one, three = (finish(simulation(program(name, 3, shards, **options), 18, timing=timing)) for shards in (1, 3))
    assert one.params().tobytes() == three.params().tobytes()
    assert one.account.staleness.tolist() == three.account.staleness.tolist()


def test_a_push_that_nobody_answers_reaches_every_shard() -> None:
    """gem's commits come at different times to the shards, and none gets lost."""
    made = program("gem", 2, 2)
    found = finish(simulation(made, 12))
    assert not found._sent
    assert not found._left
    assert [shard.clock for shard in found.shards] == [24, 24]


def test_messages_of_a_worker_to_a_shard_stay_in_order() -> None:
    """A worker that reads after it has written sees what it wrote: with batches much shorter than the latency."""
    found = finish(simulation(program("gem", 1), 60, timing=Timing(compute=1e-6, latency=0.1)))
    serial = finish(simulation(program("gem", 1), 60, timing=messages.CALM))
    assert found.params().tobytes() == serial.params().tobytes()


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_shards_in_one_order_agree(shards: int, tmp_path: Path) -> None:
    made = program("sync", 3, shards, backups=1)
    finish(simulation(made, 12, run=tmp_path))
    _, logs = messages.logs(tmp_path, made)
    assert all(log == logs[0] for log in logs)
    assert any(isinstance(line, dict) and "late" in line for line in logs[0])


def test_a_slow_backup_drops_its_gradients_and_the_coverage_says_so() -> None:
    timing = Timing(factor=slow(2, 3.5), latency=1e-4)
    found = finish(simulation(program("sync", 3, backups=1), 12, timing=timing))
    late = {name: found.coverage.counts(epoch)[name] for epoch in (0,) for name in ("applied", "late")}
    assert late == {"applied": 2 * PER_EPOCH, "late": PER_EPOCH}
    assert counts(found)["late"] == found.account.late[2] == 12
    assert found.account.late[:2].tolist() == [0, 0]
    assert found.done == 36
    assert found.account.batches[2] < 12  # rounds that closed meanwhile were not computed
    assert found.account.fairness() == pytest.approx(2 / 3)
    unhurried = finish(simulation(program("sync", 2, backups=0), 12, timing=Timing(latency=1e-4)))
    assert found.now < unhurried.now + 4 * 0.02


@pytest.mark.parametrize("shards", [1, 2])
def test_gates_give_shares_up(shards: int) -> None:
    found = finish(simulation(program("fasgd", 3, shards, eps=0.5, c_push=1.0), 18))
    total = counts(found)
    assert total["gated"] > 0
    assert total["gated"] == found.account.gated.sum()
    assert total["applied"] + total["gated"] == 54
    assert found.done == 54


def test_what_no_push_took_along_is_held_until_the_run_goes_on(tmp_path: Path) -> None:
    made = program("downpour", 2, n_push=4, n_fetch=3)
    found = finish(simulation(made, 9, run=tmp_path))
    assert counts(found)["held"] == 2
    found.extend(12)
    finish(found)
    assert counts(found) == {"open": 0, "applied": 24, "late": 0, "gated": 0, "held": 0}
    messages.check_replay(found, tmp_path, 12)


def test_datagrams_are_lost_and_reordered() -> None:
    made = program("gossip", 3, p=0.9)
    rule = made.strategy
    made.strategy = rule._replace(reliable=False)
    whole = finish(simulation(made, 20, timing=Timing(latency=5e-3, loss=0.0)))
    lossy = finish(simulation(made, 20, timing=Timing(latency=5e-3, loss=0.5, reorder=0.5)))
    assert whole.account.lost_datagrams.sum() == 0
    sent = int(lossy.account.messages.sum())
    assert abs(lossy.account.lost_datagrams.sum() / sent - 0.5) < 4 * 0.5 / sent**0.5
    weights = [float(sum(w.state.weight for w in run.workers)) for run in (whole, lossy)]
    assert weights[1] < weights[0] <= 1 + 1e-6


def test_warm_start() -> None:
    """Worker 0 does the first steps alone, with everybody's data; the others begin at what it reached."""
    made = program("downpour", 3, warm_start=2)
    spans: list[Span] = []
    found = simulation(made, 8, timing=Timing(compute=0.5, latency=0.0, bandwidth=1e30), spans=spans.append)
    found.advance(6)
    reached = found.params()
    finish(found)
    first = {k: min(span.begin for span in spans if span.actor == f"worker {k}") for k in range(3)}
    assert first == pytest.approx({0: 0.0, 1: 3.0, 2: 3.0})
    assert found.now == pytest.approx(3.0 + 6 * 0.5)
    assert found.account.batches.tolist() == [12, 6, 6]
    assert counts(found)["applied"] == 24
    assert np.abs(reached).max() > 0.1
    short = finish(simulation(program("downpour", 3, warm_start=20), 4))
    assert short.account.batches.tolist() == [12, 0, 0]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_death_during_the_warm_start(victim: int, tmp_path: Path) -> None:
    found = finish(simulation(program("downpour", 3, 2, warm_start=4), 12, failures=(Failure(0.1, "kill", victim),), run=tmp_path))
    assert counts(found)["applied"] == found.done == 36
    messages.check_replay(found, tmp_path, 12)


def test_idle_workers() -> None:
    """At the end of a round workers without a portion ask again, take no core, and all portions are done once per round."""
    workers, spans = 5, list[Span]()
    found = finish(simulation(program("sandblaster", workers), 6, timing=Timing(factor=slow(1, 5.0), latency=1e-4, cores=workers), spans=spans.append))
    assert counts(found)["applied"] == found.done == 6 * workers
    assert any(span.kind == "wait" for span in spans)
    assert not found._busy
    assert not found._idle


# Failures.


def test_a_barrier_waits_until_a_death_is_discovered() -> None:
    timing = Timing(compute=0.5, latency=0.0, bandwidth=1e30, detection=2.0)
    found = finish(simulation(program("sync", 3), 6, timing=timing, failures=(Failure(1.2, "kill", 1),)))
    # Two rounds, then 2.0 s after the death its 4 shares go to two workers: 4 more rounds of both, and 2 of both for what they inherited.
    assert found.now == pytest.approx(1.2 + 2.0 + 0.5 * (3 + 2), abs=0.51)
    assert counts(found)["applied"] == found.done == 18
    assert found.coverage.redealt == {0: 4}


def test_stops_that_overlap() -> None:
    timing = Timing(compute=0.5, latency=0.0, bandwidth=1e30)
    failures = (Failure(0.7, "stop", 1, 2.0), Failure(1.7, "stop", 1, 4.0), Failure(2.0, "stop", 1, 0.1))
    spans: list[Span] = []
    found = finish(simulation(program("sync", 2), 4, timing=timing, failures=failures, spans=spans.append))
    assert found.now == pytest.approx(5.7 + 1.0)
    assert [span.end - span.begin for span in spans if span.kind == "failure"] == pytest.approx([2.0, 4.0, 0.1])


def test_a_stop_while_it_waits_for_its_answer() -> None:
    timing = Timing(compute=0.5, factor=slow(0, 4), latency=0.0, bandwidth=1e30)
    found = finish(simulation(program("sync", 2), 3, timing=timing, failures=(Failure(1.0, "stop", 1, 5.0),)))
    assert found.now == pytest.approx(6.0 + 0.5 + 2.0)


def test_failures_after_the_end_do_not_happen() -> None:
    calm = finish(simulation(program("hogwild"), 6))
    later = tuple(Failure(1000.0 + k, kind, 1, 1.0) for k, kind in enumerate(("kill", "server", "stop")))
    assert outcome(finish(simulation(program("hogwild"), 6, failures=later))) == outcome(calm)


def test_the_last_checkpoint_of_a_server_that_will_die_is_a_part_of_the_state() -> None:
    failures = (Failure(0.6, "server"),)
    whole = simulation(program("hogwild"), 24, failures=failures)
    whole.advance(12)
    whole.remember()
    whole.advance(24)
    document, arrays = whole.take()
    tables = {epoch: table.copy() for epoch, table in whole.coverage.epochs.items()}
    again = simulation(program("hogwild"), 24, failures=failures)
    again.coverage.restore(tables, whole.coverage.document())
    again.put(document, arrays, tables)
    finish(whole)
    assert sum(whole.coverage.lost.values()) > 12
    assert outcome(finish(again)) == outcome(whole)
    document, _ = whole.take()
    assert "saved" not in document  # no server is to die any more


@pytest.mark.parametrize("at", [0.05, 0.3])
def test_a_worker_that_died_since_the_last_checkpoint_stays_dead(at: float, tmp_path: Path) -> None:
    failures = (Failure(at, "kill", 2), Failure(0.45, "server"))
    found = finish(simulation(program("hogwild", 3, 2), 24, failures=failures, run=tmp_path))
    assert found.dead == {2}
    assert counts(found)["applied"] == found.done == 72
    messages.check_replay(found, tmp_path, 24)


@pytest.mark.parametrize(
    ("name", "failures", "what"),
    [
        ("hogwild", (Failure(1.0, "kill", 3),), "a failure of worker 3: the run has 3 worker"),
        ("hogwild", (Failure(1.0, "stop", -1, 1.0),), "a failure of worker -1"),
        ("hogwild", tuple(Failure(1.0, "kill", k) for k in range(3)), "kills every worker"),
        ("gossip", (Failure(1.0, "server"),), "a failure of the server: this strategy has none"),
    ],
)
def test_schedules_that_cannot_happen_are_refused(name: str, failures: tuple[Failure, ...], what: str) -> None:
    with pytest.raises(UsageError, match=what) as refused:
        simulation(program(name), 3, failures=failures)
    assert refused.value.then


# Standing still, stopping, going on.


def test_a_simulation_that_stands_still_is_an_error() -> None:
    """A message of a barrier got lost on the way."""
    found = simulation(program("sync", 3), 3)
    found.advance(4)
    found._heap = [event for event in found._heap if event[2] != "arrive"]
    with pytest.raises(RunFailed, match=r"the simulation stands still: worker\(s\) \d.* wait for an answer that nobody will send") as refused:
        found.advance(9)
    assert "s of virtual time" in refused.value.where
    assert refused.value.then


def test_workers_that_never_get_data_are_an_error_not_a_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulate, "_STILL", 40)
    made = program("sandblaster", 5)
    made._portion = lambda _w: -1
    with pytest.raises(RunFailed, match="the server has no data for any worker"):
        finish(simulation(made, 3))


def test_stop_and_go_on(tmp_path: Path) -> None:
    """Stopped in the middle of an interval, then continued: its logs replay."""
    made = program("easgd", 3, 2)
    found = simulation(made, 60, run=tmp_path)
    found.advance(70)
    found.stop()
    found.drain()
    before = found.account.batches.sum()
    assert 70 <= before < 80
    found.drain()
    assert found.account.batches.sum() == before
    messages.check_replay(found, tmp_path, 60)
    found.extend(66)
    finish(found)
    assert found.account.batches.tolist() == [66] * 3
    assert counts(found)["applied"] == 3 * 66
    messages.check_replay(found, tmp_path, 66)


@pytest.mark.parametrize("name", ["easgd", "sync", "gossip", "sandblaster"])
def test_a_longer_run(name: str, tmp_path: Path) -> None:
    """12 batches, which end in the middle of an interval of EASGD, then 6 more; the dead one's are done by the others."""
    workers = 5 if name == "sandblaster" else 3
    found = finish(simulation(program(name, workers), 12, failures=(Failure(0.1, "kill", 2),), run=tmp_path))
    document, arrays = found.take()
    again = simulation(program(name, workers), 99, failures=found.failures)
    again.put(document, arrays, found.coverage.epochs)
    assert again.steps == 12
    found.extend(18)
    finish(found)
    assert counts(found)["open"] == 0
    assert sum(counts(found).values()) == 18 * workers
    messages.check_replay(found, tmp_path, 18)
    with pytest.raises(ValueError, match="a run of 18 steps, extended to 17"):
        found.extend(17)


# Size.


def test_hundreds_of_workers() -> None:
    """Every event costs the same, however many workers there are: the Python calls per batch of 300 are those of 40."""

    def calls(workers: int) -> float:
        import cProfile
        import pstats

        setup = messages.strategy("hogwild", workers, 0.1 / workers)
        made = Program(setup, noise.quadratic(noise.spectrum(5), 1.0, 16), np.ones(5, np.float32), noise.BATCH, workers=workers, seed=1)
        found = Simulation(made, lambda _share: noise.BATCH, steps=2, coverage=Coverage(2, workers), timing=Timing(factor=messages.ROUGH.factor))
        found.advance(min(20, workers))  # compiled
        profile = cProfile.Profile()
        profile.enable()
        finish(found)
        profile.disable()
        assert np.isfinite(found.params()).all()
        return pstats.Stats(profile).total_calls / (2 * workers)  # type: ignore[attr-defined]

    few, many = calls(40), calls(300)
    assert many < 1.5 * few

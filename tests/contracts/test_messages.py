"""What every discovered strategy keeps when it sends messages: under the virtual clock, through a checkpoint, and replayed from its logs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from hlt_train import plugins
from hlt_train.files import read_arrays, write_arrays
from hlt_train.transports.account import BINS
from hlt_train.transports.program import Program
from hlt_train.transports.simulate import Failure, Simulation
from tests import messages
from tests.contracts.test_strategies import OPTIONS
from tests.drive import Drive

STRATEGIES = plugins.names("strategies")


def program(name: str, workers: int, **more: Any) -> Program:
    """Two workers meet two shards, all others one."""
    return messages.program(name, workers, 2 if workers == 2 else 1, **more, **OPTIONS.get(name, {}))


def simulation(name: str, workers: int, steps: int = 24, overlap: bool = False, **more: Any) -> Simulation:
    return messages.simulation(program(name, workers, overlap=overlap), steps, **more)


def overlaps(name: str) -> bool:
    rule = messages.strategy(name, 2, **OPTIONS.get(name, {}))
    return rule.quorum > 0 and rule.asks == 1 and rule.batch is None and not rule.peers


@pytest.mark.parametrize("name", STRATEGIES)
def test_one_worker_is_the_serial_rule(name: str) -> None:
    made, steps = program(name, 1), 12
    portions = made.strategy.batch is not None
    x, y = map(np.stack, zip(*(messages.data(1)((step, -1 if portions else 0)) for step in range(steps)), strict=True))

    def gradient(params: Any, _k: int, number: Any, key: Any) -> Any:
        return messages.gradient(params, (jnp.asarray(x)[number], jnp.asarray(y)[number]), key)

    drive = Drive(made.strategy, messages.TRUTH * 0, gradient)
    if portions:
        while (int(made.strategy.batch(drive.w[0]))) < steps:
            drive.run([0])
    else:
        drive.run([0] * steps)
        if steps % made.strategy.every:  # what is left after the last batch goes out
            drive.exchange(0)
    simulated = messages.finish(messages.simulation(made, steps, timing=messages.CALM))
    np.testing.assert_allclose(simulated.params(), drive.params(), rtol=1e-4, atol=1e-5)
    assert simulated.account.batches.tolist() == [steps]


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow), 5])
def test_converges_on_a_convex_problem(name: str, workers: int) -> None:
    steps = 150 if program(name, workers).strategy.batch is None else 60  # of a portion each: 30 rounds
    simulated = messages.finish(simulation(name, workers, steps))
    np.testing.assert_allclose(simulated.params(), messages.TRUTH, atol=2e-3)
    found = messages.counts(simulated)
    assert found["applied"] == sum(found.values()) == steps * workers
    assert simulated.done == steps * workers


@pytest.mark.parametrize("name", STRATEGIES)
def test_same_seed_same_bits_however_it_is_advanced(name: str) -> None:
    whole = messages.outcome(messages.finish(simulation(name, 5)))
    cut = simulation(name, 5)
    for done in (1, 2, 50, 51, 90):
        cut.advance(done)
    assert messages.outcome(messages.finish(cut)) == whole


def through_a_file(simulated: Simulation, folder: Path) -> Simulation:
    """A fresh simulation in the state of `simulated`, as a checkpoint would keep it."""
    document, arrays = simulated.take()
    write_arrays(folder / "state.npz", arrays)
    fresh = messages.simulation(simulated.program, simulated.steps, timing=simulated.timing, failures=simulated.failures)
    tables = {epoch: table.copy() for epoch, table in simulated.coverage.epochs.items()}
    fresh.coverage.restore(tables, json.loads(json.dumps(simulated.coverage.document())))
    fresh.put(json.loads(json.dumps(document)), read_arrays(folder / "state.npz"), tables)
    return fresh


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("workers", [2, 5])
def test_checkpoint_round_trip_with_messages_in_flight(name: str, workers: int, tmp_path: Path) -> None:
    whole = messages.outcome(messages.finish(simulation(name, workers)))
    cut, flying = simulation(name, workers), 0
    for done in (5 * workers, 11 * workers + 1, 17 * workers):
        cut.advance(done)
        flying += sum(event[2] in ("arrive", "offer", "reply", "peer") for event in cut._heap)
        state = messages.outcome(cut)
        fresh = through_a_file(cut, tmp_path)
        assert messages.outcome(fresh) == state
        messages.finish(cut)  # what the old one counts meanwhile is its own
        cut = fresh
    assert messages.outcome(messages.finish(cut)) == whole
    rule = cut.rule
    assert flying or rule.quorum <= 0 or rule.every > 1


def spread(simulated: Simulation) -> None:
    """Messages of a rule without a barrier were of different staleness."""
    rule = simulated.rule
    histogram = simulated.account.staleness.sum(axis=0)
    assert len(histogram) == BINS
    if rule.peers:
        assert not histogram.any()
    elif rule.quorum == 1:
        assert (histogram > 0).sum() > 1, histogram
    else:
        assert (histogram > 0).sum() == 1, histogram


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("workers", [2, 5])
def test_replay_is_the_recording(name: str, workers: int, tmp_path: Path) -> None:
    simulated = messages.finish(simulation(name, workers, run=tmp_path))
    spread(simulated)
    messages.check_replay(simulated, tmp_path, 24)


@pytest.mark.parametrize("name", [name for name in STRATEGIES if overlaps(name)])
def test_replay_of_overlapped_exchanges(name: str, tmp_path: Path) -> None:
    simulated = messages.finish(simulation(name, 5, overlap=True, run=tmp_path))
    spread(simulated)
    messages.check_replay(simulated, tmp_path, 24)
    waited = messages.finish(simulation(name, 5))
    assert simulated.now < waited.now
    assert simulated.account.waiting.sum() < waited.account.waiting.sum()


@pytest.mark.parametrize("name", STRATEGIES)
def test_replay_with_a_death_a_stop_and_the_loss_of_the_server(name: str, tmp_path: Path) -> None:
    peers = program(name, 5).strategy.peers
    server = () if peers else (Failure(0.6, "server"),)
    failures = (Failure(0.2, "kill", 1), Failure(0.25, "stop", 2, 0.2), *server, Failure(0.4 if peers else 1.0, "kill", 0))
    simulated = simulation(name, 5, failures=failures, run=tmp_path)
    simulated.advance(10)
    simulated.remember()
    messages.finish(simulated)
    assert simulated.dead == {0, 1}
    messages.check_replay(simulated, tmp_path, 24)
    found = messages.counts(simulated)
    assert found["open"] == 0
    assert sum(found.values()) == 24 * 5
    if server:
        assert sum(simulated.coverage.lost.values()) > 0
    if simulated.rule.batch is None:
        assert simulated.done == 24 * 5
        assert sum(simulated.coverage.redealt.values()) > 0

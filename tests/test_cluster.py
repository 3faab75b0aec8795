"""Several processes as one run: real ones on this machine, which meet, are killed, are asked to stop, and are continued by fewer."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hlt_train import checkpoints, cluster
from hlt_train.errors import UsageError
from hlt_train.fit import fit, resume
from hlt_train.progress import Progress
from hlt_train.run import Run
from tests.runs import config, steady, write_card

SCRIPT = """
import json, sys
from pathlib import Path
from hlt_train.errors import Interrupted, UsageError
from hlt_train.fit import fit
from hlt_train.progress import Progress
from tests.runs import config
path, card, options = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
try:
    fit(config(Path(card), **options), path, progress=Progress(quiet=True))
except Interrupted as error:
    print(error.what)
    sys.exit(7)
except UsageError as error:
    print(error.what)
    sys.exit(2)
"""
QUIET = Progress(quiet=True)
OPTIONS = {
    "devices": 2,
    "scan": 5,
    "checkpoint_every": 10,
    "seed": 3,
    "strategy": {"name": "downpour"},
    "optimizer": {"name": "sgd"},
    "schedule": {"name": "constant_schedule"},
}


def port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return int(free.getsockname()[1])


def start(path: Path, card: Path, processes: int, **options: Any) -> list[subprocess.Popen[str]]:
    """The processes of a run."""
    clean = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "NPROC")} | {"NPROC": "4"}
    at = port()
    return [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(path), str(card), json.dumps(options)],
            env={**clean, "HLT_TRAIN_NODES": f"localhost:{at},{processes},{k}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
        )
        for k in range(processes)
    ]


def ended(running: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Exit codes and all that they said."""
    found = [process.communicate(timeout=300) for process in running]
    return [(process.returncode, out + err) for process, (out, err) in zip(running, found, strict=True)]


def wait_for(running: list[subprocess.Popen[str]], path: Path, step: int) -> None:
    until = time.monotonic() + 200
    while time.monotonic() < until:
        if (path / "LAST").is_file() and checkpoints.pointed(path, "LAST") >= step:
            return
        assert all(process.poll() is None for process in running), ended(running)
        time.sleep(0.005)
    raise AssertionError("no checkpoint")


def metrics(path: Path) -> list[dict[str, Any]]:
    with Run.open(path) as run:
        return steady(run.metrics())


def assert_close(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """The same lines, their losses to rounding: between processes the sum of an exchange may be rounded otherwise."""
    assert [(line["event"], line["step"]) for line in found] == [(line["event"], line["step"]) for line in expected]
    for a, b in zip(found, expected, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a.get("messages", {}).get("applied") == b.get("messages", {}).get("applied")


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_card(tmp_path_factory.mktemp("cluster"), files=2, rows=500)


@pytest.fixture(scope="module")
def alone(card: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run of this process with two devices."""
    path = tmp_path_factory.mktemp("alone") / "run"
    fit(config(card, **OPTIONS, length="40steps"), path, progress=QUIET)
    return path


@pytest.mark.parametrize("resident", [pytest.param("always", marks=pytest.mark.slow), "never"])
def test_two_processes_are_one_run(resident: str, card: Path, alone: Path, tmp_path: Path) -> None:
    """Same steps, losses, validation and messages as one process with as many devices; one of them writes."""
    path = tmp_path / "run"
    assert [code for code, _ in ended(start(path, card, 2, **OPTIONS, length="40steps", resident=resident))] == [0, 0]
    assert_close(metrics(path), metrics(alone))
    assert json.loads((path / "provenance.json").read_text())["environment"]["processes"] == 2


@pytest.mark.slow
def test_a_killed_process_ends_the_run_which_goes_on_with_fewer(card: Path, alone: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    running = start(path, card, 2, **OPTIONS, length="100000steps")
    wait_for(running, path, 10)
    running[1].send_signal(signal.SIGKILL)
    (code, said), (killed, _) = ended(running)
    assert (code, killed) == (1, -signal.SIGKILL), said
    assert "A process is lost" in said
    assert "--resume" in said
    last = checkpoints.pointed(path, "LAST")
    assert last is not None
    assert last >= 10
    assert checkpoints.load(path, last, "state")["2"] == last  # complete: its digest is compared
    with pytest.raises(UsageError, match=r"processes \(2 then, 1 now\)"):
        resume(path, length=f"{last + 12}steps", progress=QUIET)
    resume(path, length=f"{last + 12}steps", inexact=True, progress=QUIET)
    assert checkpoints.pointed(path, "LAST") == last + 12
    lines = metrics(path)
    assert lines[-1]["messages"]["applied"] == 2 * (last + 12)
    both = [[line for line in found if line["event"] == "steps" and line["step"] <= min(last + 12, 40)] for found in (lines, metrics(alone))]
    assert_close(*both)
    # and on one device: the server goes on, the worker begins at its parameters
    resume(path, length=f"{last + 24}steps", inexact=True, devices_now=1, progress=QUIET)
    assert checkpoints.load(path, last + 24, "state")["3/seen"].shape == (1,)
    assert metrics(path)[-1]["messages"]["applied"] == 2 * (last + 12) + 12


@pytest.mark.slow
def test_a_killed_writer_leaves_a_complete_checkpoint(card: Path, tmp_path: Path) -> None:
    """Process 0, where they meet: jax may end the other one before it can speak."""
    path = tmp_path / "run"
    running = start(path, card, 2, **OPTIONS, length="100000steps")
    wait_for(running, path, 10)
    running[0].send_signal(signal.SIGKILL)
    (_, _), (code, said) = ended(running)
    assert code in {1, -signal.SIGABRT}, said
    last = checkpoints.pointed(path, "LAST")
    assert last is not None
    assert checkpoints.load(path, last, "state")["2"] == last


@pytest.mark.slow
@pytest.mark.parametrize("asked", [0, 1])
def test_a_signal_to_one_stops_all_at_the_same_step(asked: int, card: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    running = start(path, card, 2, **OPTIONS, length="100000steps")
    wait_for(running, path, 10)
    running[asked].send_signal(signal.SIGTERM)
    found = ended(running)
    assert [code for code, _ in found] == [7, 7], found
    last = checkpoints.pointed(path, "LAST")
    assert all(f"saved at step {last} of" in said for _, said in found)


def test_nodes_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for pair in cluster.RANKS for n in pair] + [cluster.VARIABLE]:
        monkeypatch.delenv(name, raising=False)
    assert cluster.parse(None) is None
    assert cluster.parse("node17:29400,4,1") == cluster.Nodes("node17:29400", 4, 1)
    with pytest.raises(UsageError, match="no launcher says"):
        cluster.parse("node17:29400")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "3")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "2")
    assert cluster.parse("node17:29400") == cluster.Nodes("node17:29400", 3, 2)
    monkeypatch.setenv(cluster.VARIABLE, "a:1,2,1")
    assert cluster.parse(None) == cluster.Nodes("a:1", 2, 1)
    assert not cluster.first()
    for wrong in ("node17", "node17:x", "a:1,2", "a:1,2,b"):
        with pytest.raises(UsageError, match="not HOST:PORT"):
            cluster.parse(wrong)
    with pytest.raises(UsageError, match="does not exist"):
        cluster.parse("a:1,2,2")

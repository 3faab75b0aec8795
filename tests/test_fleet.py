"""Training by messages under the virtual clock, end to end on small ROOT files."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from hlt_train import checkpoints
from hlt_train.errors import Interrupted, RunFailed, UsageError
from hlt_train.files import read_document, sha256
from hlt_train.fit import FitConfig, fit, resume
from hlt_train.fleet import RESULTS
from hlt_train.progress import Progress
from hlt_train.replay import replay
from hlt_train.restore import load_run
from hlt_train.run import Run
from tests.runs import command, config, steady, write_card

QUIET = Progress(quiet=True)
# 12 steps per epoch. A worker dies, one is stopped, the server dies: in the second of three epochs, of some 0.5 virtual seconds each.
FAILURES = ["kill:1@0.6", "stop:2@0.7+0.2", "server@0.95"]
ROUGH = {"name": "simulate", "workers": 4, "servers": 2, "compute": 0.02, "stragglers": "lognormal:0.5", "latency": 0.01}


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_card(tmp_path_factory.mktemp("jets"))


def messages(card: Path, strategy: str | dict[str, Any] = "downpour", length: str = "3epochs", **options: Any) -> FitConfig:
    """A configuration of a simulated run; `transport` adds to that of `ROUGH`."""
    named = {"name": strategy} if isinstance(strategy, str) else strategy
    transport = {**ROUGH, **options.pop("transport", {})}
    return config(card, length=length, learning_rate=0.01, strategy=named, transport=transport, **options)


def logs(path: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in (path / "actors").iterdir()}


def state(path: Path) -> dict[str, Any]:
    """All that is the same in two runs that are the same: everything but times of this machine, and the timeline, which each process begins anew."""
    folder = path / "checkpoints" / str(checkpoints.pointed(path, "LAST"))
    with Run.open(path) as run:
        metrics = steady(run.metrics())
    return {
        "arrays": sha256(folder / "weights.npz") + sha256(folder / "state.npz"),
        "metrics": metrics,
        "logs": logs(path),
        "transport": read_document(path / "transport.json", "hlt-train/transport", 1),
        "coverage": read_document(path / "coverage.json", "hlt-train/coverage", 1),
    }


def check_covered(path: Path) -> dict[str, Any]:
    """The certificate adds up, and every epoch is the split."""
    content = read_document(path / "coverage.json", "hlt-train/coverage", 1)
    for epoch in content["epochs"]:
        assert epoch["complete"]
        assert (epoch["rows"], epoch["hash"]) == (content["split"]["rows"], content["split"]["hash"])
        assert sum(part["rows"] for part in epoch["classes"].values()) == epoch["rows"]
        assert epoch["classes"]["open"]["shares"] == 0
        if epoch["classes"]["applied"]["rows"] == epoch["rows"]:
            assert epoch["classes"]["applied"]["hash"] == epoch["hash"]
    return content


@pytest.fixture(scope="module")
def troubled(card: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FitConfig]:
    """An undisturbed process whose simulated workers are not."""
    path = tmp_path_factory.mktemp("runs") / "troubled"
    content = messages(card, transport={"failures": FAILURES, "wire": "bfloat16"}, log_every=2, checkpoint_every=5, seed=3)
    fit(content, path, progress=QUIET)
    return path, content


def test_what_a_run_writes(card: Path, tmp_path: Path) -> None:
    result = fit(messages(card, "downpour", "4epochs"), tmp_path / "r", progress=QUIET)
    assert result["validation"]["accuracy"] > 0.3  # five classes
    assert result["virtual_seconds"] > 48 * 0.02
    assert result["late"] == result["gated"] == 0
    assert result["staleness"] > 0.5
    assert 0.9 < result["fairness"] <= 1
    assert {*RESULTS, "actors"} < {path.name for path in (tmp_path / "r").iterdir()}
    assert set(logs(tmp_path / "r")) == {*(f"worker-0000{k}.jsonl" for k in range(4)), "shard-00000.jsonl", "shard-00001.jsonl"}
    lines = state(tmp_path / "r")["metrics"]
    assert [line["step"] for line in lines if line["event"] == "epoch"] == [12, 24, 36, 48]
    times = [line["virtual_seconds"] for line in lines]
    assert times == sorted(times)
    transport = read_document(tmp_path / "r" / "transport.json", "hlt-train/transport", 1)
    assert transport["batches"] == transport["applied"] == [48] * 4
    assert sum(count > 0 for count in transport["staleness"]["histogram"]) > 2
    content = check_covered(tmp_path / "r")
    assert len(content["epochs"]) == 4
    assert replay(tmp_path / "r", progress=QUIET)["batches"] == 4 * 48
    load_run(tmp_path / "r")


def test_a_barrier_by_messages_is_lockstep_to_rounding(card: Path, tmp_path: Path) -> None:
    fit(messages(card, "sync", "2epochs"), tmp_path / "four", progress=QUIET)
    fit(config(card, length="2epochs", learning_rate=0.01, devices=1), tmp_path / "one", progress=QUIET)
    found = [checkpoints.load(path, 24, "weights") for path in (tmp_path / "four", tmp_path / "one")]
    for name, leaf in found[0].items():
        np.testing.assert_allclose(leaf, found[1][name], rtol=1e-3, atol=2e-5)
    epochs = []
    for path in (tmp_path / "four", tmp_path / "one"):
        with Run.open(path) as run:
            lines = [line for line in run.metrics() if line["event"] == "epoch"]
            # An epoch is over when its batches are computed: the last update may still be under way, except at the end of the run.
            epochs.append([line["loss"] for line in lines] + [lines[-1]["validation"]["loss"]])
    np.testing.assert_allclose(epochs[0], epochs[1], rtol=1e-4)


@pytest.mark.parametrize("strategy", [{"name": "gossip", "p": 0.3}, {"name": "sandblaster", "m": 1}])
def test_other_kinds_of_rules(strategy: dict[str, Any], card: Path, tmp_path: Path) -> None:
    """Peers without a server, portions that the server hands out; with a death."""
    fit(messages(card, strategy, "2epochs", batch=128, transport={"failures": ["kill:3@0.3"]}), tmp_path / "r", progress=QUIET)
    check_covered(tmp_path / "r")
    if strategy["name"] == "gossip":
        replay(tmp_path / "r", progress=QUIET)


def test_backups_and_overlap(card: Path, tmp_path: Path) -> None:
    fit(messages(card, {"name": "sync", "backups": 1}, "1epochs"), tmp_path / "late", progress=QUIET)
    late = check_covered(tmp_path / "late")["epochs"][0]["classes"]["late"]
    assert late["shares"] == 12
    assert replay(tmp_path / "late", progress=QUIET)["equal"]
    fit(messages(card, "downpour", "1epochs", transport={"overlap": True}), tmp_path / "overlap", progress=QUIET)
    assert replay(tmp_path / "overlap", progress=QUIET)["equal"]


def test_trouble_is_covered_and_replayed(troubled: tuple[Path, FitConfig]) -> None:
    path, _ = troubled
    content = check_covered(path)
    assert sum(epoch["redealt"] for epoch in content["epochs"]) > 0
    assert sum(epoch["lost"] for epoch in content["epochs"]) > 0
    transport = read_document(path / "transport.json", "hlt-train/transport", 1)
    assert set(transport["digests"]["workers"]) == {"0", "2", "3"}
    assert 0 < transport["wire"]["relative_error"] < 2.0**-8
    replay(path, progress=QUIET)


def test_streamed_and_resident_data_give_the_same_bits(troubled: tuple[Path, FitConfig], tmp_path: Path) -> None:
    path, content = troubled
    assert content.resident == "auto"
    assert fit(content.model_copy(update={"resident": "never"}), tmp_path / "r", progress=QUIET)["resident"] is False
    assert state(tmp_path / "r") == state(path)


def wait_for(path: Path, event: str, count: int, running: subprocess.Popen[str] | None = None) -> None:
    until = time.monotonic() + 200
    while time.monotonic() < until and (running is None or running.poll() is None):
        file = path / "metrics.jsonl"
        if file.exists() and file.read_text().count(f'"event": "{event}"') >= count:
            return
        time.sleep(0.002)
    raise AssertionError(f"no {count} lines of '{event}' in {path}")


def test_killed_and_resumed(troubled: tuple[Path, FitConfig], tmp_path: Path) -> None:
    """SIGKILL after the first death: the rest is the same to the bit, logs included."""
    whole, content = troubled
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content.stored(), sort_keys=False))
    path = tmp_path / "killed"
    arguments = command("fit", "--config", tmp_path / "config.yaml", "--run", path, "-q")
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=dict(os.environ)) as running:
        wait_for(path, "steps", 7, running)
        running.send_signal(signal.SIGKILL)
        running.communicate()
    with pytest.raises(UsageError, match="the run is not finished") as refused:
        replay(path, progress=QUIET)
    assert refused.value.then == f"hlt-train fit --resume {path}"
    with (path / "actors" / "worker-00000.jsonl").open("a") as stream:
        stream.write("[7,-1,")  # killed in the middle of a line
    resume(path, progress=QUIET)
    assert state(path) == state(whole)


def test_a_run_without_a_checkpoint_begins_again(card: Path, tmp_path: Path) -> None:
    path = tmp_path / "r"
    fit(messages(card, "hogwild", "1epochs"), path, progress=QUIET)
    before = state(path)
    for name in ("LAST", "BEST"):
        (path / name).unlink()
    shutil.rmtree(path / "checkpoints")
    resume(path, progress=QUIET)
    assert state(path) == before


def test_a_signal_saves_between_checkpoints(troubled: tuple[Path, FitConfig], tmp_path: Path) -> None:
    """Twice, once of it before the server dies: it goes back to the checkpoint to which an undisturbed one would have gone."""
    whole, content = troubled
    path = tmp_path / "stopped"

    def stopped(action: Any, lines: int) -> None:
        def send() -> None:
            wait_for(path, "steps", lines)
            os.kill(os.getpid(), signal.SIGTERM)

        sender = threading.Thread(target=send)
        sender.start()
        with pytest.raises(Interrupted, match=r"SIGTERM: saved at step \d+ of 36") as interrupted:
            action()
        sender.join()
        assert interrupted.value.then == f"hlt-train fit --resume {path}"

    stopped(lambda: fit(content, path, progress=QUIET), 3)
    stopped(lambda: resume(path, progress=QUIET), 8)
    resume(path, progress=QUIET)
    assert state(path) == state(whole)


def test_a_longer_and_a_shorter_run(card: Path, tmp_path: Path) -> None:
    """5 steps end within an interval of EASGD; then 18, then, of the same, 13. Every end can be replayed."""
    path = tmp_path / "r"
    content = messages(card, {"name": "easgd", "period": 3}, "5steps", schedule={"name": "constant_schedule"}, log_every=2)
    fit(content, path, progress=QUIET)
    first = logs(path)
    resume(path, length="18steps", progress=QUIET)
    assert all(text.startswith(first[name][: first[name].rindex('{"t"')]) for name, text in logs(path).items() if name.startswith("worker"))
    transport = read_document(path / "transport.json", "hlt-train/transport", 1)
    assert transport["batches"] == [18] * 4
    replay(path, progress=QUIET)
    content = read_document(path / "coverage.json", "hlt-train/coverage", 1)
    assert [epoch["classes"]["applied"]["shares"] for epoch in content["epochs"]] == [48, 24]
    assert all(epoch["complete"] for epoch in content["epochs"])
    resume(path, length="13steps", progress=QUIET)
    replay(path, progress=QUIET)


def test_a_run_that_is_made_shorter_on_the_way(card: Path, tmp_path: Path) -> None:
    path = tmp_path / "r"
    content = messages(card, "hogwild", "22steps", schedule={"name": "constant_schedule"}, log_every=2, checkpoint_every=4)

    def send() -> None:
        wait_for(path, "steps", 2)
        os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=send)
    sender.start()
    with pytest.raises(Interrupted):
        fit(content, path, progress=QUIET)
    sender.join()
    result = resume(path, length="20steps", progress=QUIET)
    assert result["steps"] == 20
    assert replay(path, progress=QUIET)["equal"]


def test_early_stopping(card: Path, tmp_path: Path) -> None:
    """Nothing is learnt with this rate; asynchronous workers are in mid epoch when the second validation ends the run."""
    path = tmp_path / "r"
    content = messages(card, {"name": "easgd", "period": 4}, "9epochs", patience=1).model_copy(update={"learning_rate": 1e-30})
    result = fit(content, path, progress=QUIET)
    assert (result["stopped"], result["steps"]) == ("patience", 24)
    replay(path, progress=QUIET)
    before = state(path)
    resume(path, progress=QUIET)
    assert state(path) == before
    result = resume(path, length="10epochs", progress=QUIET)
    assert result["steps"] == 36  # patience counts anew: the first validation is no worse than none
    with pytest.raises(UsageError, match=r"the length of this run was changed on the way \(108, 120 steps\)") as refused:
        replay(path, progress=QUIET)
    assert "--schedule constant" in refused.value.then


def test_divergence(card: Path, tmp_path: Path) -> None:
    content = messages(card, "hogwild", optimizer={"name": "sgd"}).model_copy(update={"learning_rate": 1e30})
    with pytest.raises(RunFailed, match="the loss is not finite at step"):
        fit(content, tmp_path / "r", progress=QUIET)


@pytest.mark.parametrize(
    ("strategy", "transport", "what", "then"),
    [
        ("sync", {"overlap": True}, "cannot overlap its exchanges: it is a barrier", "leave --overlap out"),
        ("gem", {"overlap": True}, "its exchange has 2 parts", "leave --overlap out"),
        ("sandblaster", {"overlap": True}, "the server tells its workers", "leave --overlap out"),
        ("gossip", {"overlap": True}, "wait for nobody anyway", "leave --overlap out"),
        ("hogwild", {"failures": ["kill:4@1"]}, "a failure of worker 4: the run has 4 worker(s)", "a worker from 0 to 3"),
        ("gossip", {"failures": ["server@1"]}, "a failure of the server: this strategy has none", "kill:WORKER@TIME or stop:WORKER@TIME+SECONDS"),
        ("hogwild", {"failures": ["kill@1"]}, "a failure is kill:WORKER@TIME", ""),
        ("hogwild", {"stragglers": "lognorml:1"}, "no straggler model is called 'lognorml'", "one of: none, lognormal, pareto, trace"),
        ("hogwild", {"workers": 3}, "--batch 64 cannot be shared equally by --workers 3", "a batch that is a multiple of the workers"),
        ("hogwild", {"latenzy": 3}, "simulate has no option 'latenzy'", None),
        ("hogwild", {"wire": "int4"}, "option 'wire' of simulate", ""),
    ],
)
def test_refusals(strategy: str, transport: dict[str, Any], what: str, then: str | None, card: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        fit(messages(card, strategy, transport=transport), tmp_path / "r", progress=QUIET)
    assert what in refused.value.what
    assert then is None or refused.value.then == then


def test_json_of_a_run_is_json(troubled: tuple[Path, FitConfig]) -> None:
    path, _ = troubled
    for name in RESULTS:
        json.loads((path / name).read_text(), parse_constant=pytest.fail)

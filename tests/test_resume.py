"""Resume: real processes are killed at random points, and what they leave is continued to the undisturbed result, bit for bit."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from hlt_train import checkpoints
from hlt_train.configuration import check
from hlt_train.data.card import load_card
from hlt_train.data.dataset import open_dataset
from hlt_train.data.normalise import load
from hlt_train.data.order import Order
from hlt_train.errors import Interrupted
from hlt_train.files import sha256
from hlt_train.fit import FitConfig, fit, resume
from hlt_train.progress import Progress
from hlt_train.run import Run
from tests.runs import command, config, process, steady, write_card

pytestmark = pytest.mark.usefixtures("compiled_anew")
EPOCHS, BATCH, EVERY, BUFFER = 24, 16, 30, 400


def final(path: Path) -> tuple[str, list[dict[str, Any]]]:
    """SHA-256 of the weights and of the whole state at LAST, and the metrics without times."""
    step = checkpoints.pointed(path, "LAST")
    folder = path / "checkpoints" / str(step)
    with Run.open(path) as run:
        return sha256(folder / "weights.npz") + sha256(folder / "state.npz"), steady(run.metrics())


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "NPROC")}
    return subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for(running: subprocess.Popen[str], path: Path, event: str, step: int) -> None:
    """Until the run has written a line of this kind for a step >= `step`."""
    pattern = re.compile(rf'"event": "{event}".*?"step": (\d+)')
    until = time.monotonic() + 200
    while time.monotonic() < until:
        text = (path / "metrics.jsonl").read_text() if (path / "metrics.jsonl").exists() else ""
        if any(int(found) >= step for found in pattern.findall(text)):
            return
        if running.poll() is not None:
            raise AssertionError(f"the process ended before it could be killed: {running.communicate()}")
        time.sleep(0.002)
    raise AssertionError(f"no '{event}' at step {step} in {path}")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A streamed run whose checkpoint interval does not divide the epoch, with dropout, so that random keys matter, and its configuration."""
    folder = tmp_path_factory.mktemp("resume")
    card = write_card(folder / "data", files=8, rows=200)
    content = config(
        card,
        length=f"{EPOCHS}epochs",
        batch=BATCH,
        model={"name": "mlp", "widths": [8], "dropout": 0.1},
        resident="never",
        buffer=BUFFER,
        scan=4,
        checkpoint_every=EVERY,
        log_every=7,
        seed=3,
    )
    (folder / "config.yaml").write_text(yaml.safe_dump(content.stored()))
    done = process("fit", "--config", folder / "config.yaml", "--run", folder / "whole", "--json", "-q")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["stopped"] == "complete"
    return folder


@pytest.mark.parametrize("kills", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_killed_at_random_points(kills: int, undisturbed: Path) -> None:
    """Half of the kills fall in mid epoch by the clock of the steps, half right after a validation; every one loses work that has to be done again."""
    path = undisturbed / f"killed-{kills}"
    metrics = final(undisturbed / "whole")[1]
    total = metrics[-1]["step"]
    per_epoch = total // EPOCHS
    assert per_epoch % EVERY
    assert EVERY % per_epoch
    chance = random.Random(5)
    arguments: tuple[str | Path, ...] = ("fit", "--config", undisturbed / "config.yaml", "--run", path, "-q")
    inside = 0
    for number, event in enumerate(("steps", "epoch") * (kills // 2)):
        running = start(*arguments)
        wait_for(running, path, event, int(total * (number + chance.random() * 0.6) / 5))
        running.kill()
        running.communicate()
        step = checkpoints.pointed(path, "LAST")
        assert step is not None
        inside += step % per_epoch != 0
        arguments = ("fit", "--resume", path, "-q")
    assert inside >= kills // 2
    done = process(*arguments)
    assert done.returncode == 0, done.stderr
    assert final(path) == final(undisturbed / "whole")
    assert_nothing_is_read_twice(path, per_epoch, kills)


def assert_nothing_is_read_twice(path: Path, per_epoch: int, kills: int) -> None:
    """Before its first batch a resumed process has decoded the block in which it fell, and no cluster of the blocks before it."""
    notes = re.findall(r"first batch: epoch (\d+) step (\d+) of it, clusters decoded so far: \[([^\]]*)\]", (path / "log.txt").read_text())
    assert len(notes) == kills + 1
    with open_dataset(load_card(path.parent / "data" / "small.yaml")) as dataset:
        order = Order(dataset.counts["train"], seed=3, buffer=BUFFER, shuffle=True)
    assert len(load(path / "normalisation.json").groups) == 1
    later = 0
    for epoch, step, text in notes:
        decoded = {int(number) for number in text.split(",")}
        blocks = order.blocks(int(epoch) - 1)
        rows = 0
        for block in blocks:
            rows += int(order.sizes[block].sum())
            if rows > int(step) * BATCH:
                assert set(block.tolist()) <= decoded
                break
            assert not set(block.tolist()) & decoded
            later += 1
        assert int(step) < per_epoch
    assert later, "no resume fell behind the first block of an epoch: the test shows nothing"


def test_a_signal_saves_and_says_how_to_go_on(undisturbed: Path) -> None:
    """SIGTERM, then a resume whose own environment asks for another thread pool: that of the first process is restored."""
    path = undisturbed / "terminated"
    running = start("fit", "--config", undisturbed / "config.yaml", "--run", path)
    wait_for(running, path, "steps", 100)
    running.send_signal(signal.SIGTERM)
    out, err = running.communicate(timeout=200)
    assert running.returncode == 130, err
    assert out == ""
    assert f"hlt-train fit --resume {path}" in err
    assert "Traceback" not in err
    recorded = json.loads((path / "provenance.json").read_text())["environment"]["nproc"]
    done = process("fit", "--resume", path, env={"NPROC": str(recorded + 3)})
    assert done.returncode == 0, done.stderr
    assert final(path) == final(undisturbed / "whole")


def short(undisturbed: Path, length: str) -> FitConfig:
    """The configuration of the undisturbed run with fewer epochs."""
    return check(FitConfig, {**yaml.safe_load((undisturbed / "config.yaml").read_text()), "for": length})


@pytest.fixture(scope="module")
def four_epochs(undisturbed: Path) -> Path:
    """An undisturbed run of this process."""
    fit(short(undisturbed, "4epochs"), undisturbed / "four", progress=Progress(quiet=True))
    return undisturbed / "four"


@pytest.mark.parametrize("sent", [signal.SIGINT, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)])
def test_every_signal_ends_the_loop_at_an_edge(sent: signal.Signals, undisturbed: Path, four_epochs: Path, tmp_path: Path) -> None:
    """In this process, sent from a thread; afterwards the signal means what it meant before, and the resumed run ends as an undisturbed one."""
    before = signal.getsignal(sent)

    def send() -> None:
        path = tmp_path / "stopped" / "metrics.jsonl"
        while not path.exists() or path.read_text().count('"steps"') < 3:
            time.sleep(0.001)
        os.kill(os.getpid(), sent)

    sender = threading.Thread(target=send)
    sender.start()
    with pytest.raises(Interrupted, match=f"{sent.name}: saved at step"):
        fit(short(undisturbed, "4epochs"), tmp_path / "stopped", progress=Progress(quiet=True))
    sender.join()
    assert signal.getsignal(sent) == before
    resume(tmp_path / "stopped", progress=Progress(quiet=True))
    assert final(tmp_path / "stopped") == final(four_epochs)


def test_a_run_without_a_checkpoint_begins_again(four_epochs: Path, tmp_path: Path) -> None:
    path = shutil.copytree(four_epochs, tmp_path / "r")
    for name in ("LAST", "BEST"):
        (path / name).unlink()
    shutil.rmtree(path / "checkpoints")
    resume(path, progress=Progress(quiet=True))
    assert final(path) == final(four_epochs)

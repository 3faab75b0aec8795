"""`replay` of runs on small ROOT files: equal to the bit, or an error that says why not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hlt_train.errors import HltTrainError, RunFailed, UsageError
from hlt_train.fit import fit
from hlt_train.progress import Progress
from hlt_train.replay import replay
from hlt_train.transports.journal import file_of
from tests.runs import config, write_card

QUIET = Progress(quiet=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three asynchronous workers, and one in lockstep."""
    made = tmp_path_factory.mktemp("replay")
    card = write_card(made / "data")
    transport = {"name": "simulate", "workers": 3, "stragglers": "lognormal:0.5", "latency": 0.01}
    strategy = {"name": "downpour"}
    fit(config(card, length="10steps", batch=48, strategy=strategy, transport=transport), made / "run", progress=QUIET)
    fit(config(card, length="2steps", batch=48), made / "lockstep", progress=QUIET)
    return made


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines()


def swapped_serves(run: Path) -> None:
    """Two neighbouring serves of different workers, neither the first of its worker: the replay runs through."""
    path = file_of(run, "shard", 0)
    lines = lines_of(path)
    serves = [json.loads(line) for line in lines]
    at = next(k for k in range(6, len(lines) - 1) if serves[k][0][0] != serves[k + 1][0][0] and serves[k + 1][0][1] > 0)
    lines[at], lines[at + 1] = lines[at + 1], lines[at]
    path.write_text("\n".join(lines) + "\n")


def dropped_answer(run: Path) -> None:
    path = file_of(run, "worker", 1)
    path.write_text("\n".join(line for k, line in enumerate(lines_of(path)) if k != 4) + "\n")


def damaged_line(run: Path) -> None:
    path = file_of(run, "worker", 1)
    lines = lines_of(path)
    lines[3] = lines[3][:-2]
    path.write_text("\n".join(lines) + "\n")


def missing_log(run: Path) -> None:
    file_of(run, "worker", 2).unlink()


def unfinished(run: Path) -> None:
    (run / "transport.json").unlink()


def other_parameters(run: Path) -> None:
    content = json.loads((run / "transport.json").read_text())
    content["digests"]["params"] = "0" * 64
    (run / "transport.json").write_text(json.dumps(content))


def other_machine(run: Path) -> None:
    content = json.loads((run / "provenance.json").read_text())
    content["environment"]["versions"]["jax"] = "0.0.1"
    (run / "provenance.json").write_text(json.dumps(content))


def test_equal_to_the_bit(folder: Path) -> None:
    result = replay(folder / "run", progress=QUIET)
    assert (result["equal"], result["actors"], result["batches"]) == (True, 4, 30)
    assert result["params"] == json.loads((folder / "run" / "transport.json").read_text())["digests"]["params"]


@pytest.mark.parametrize(
    ("change", "error", "what", "then"),
    [
        (swapped_serves, RunFailed, "the replay differs from the recording: worker", "changed since"),
        (other_parameters, RunFailed, "the replay differs from the recording: the parameters", "changed since"),
        (dropped_answer, RunFailed, "the logs do not fit together: worker 0 at exchange point", "logs are whole"),
        (damaged_line, RunFailed, "damaged log", "only a whole log can be replayed"),
        (missing_log, UsageError, "no such log: worker-00002.jsonl", "--transport simulate"),
        (unfinished, UsageError, "the run is not finished", "hlt-train fit --resume"),
        (other_machine, UsageError, "not bit for bit: ", "--inexact"),
    ],
)
def test_what_is_refused(change: Callable[[Path], None], error: type[HltTrainError], what: str, then: str, folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(folder / "run", run)
    change(run)
    with pytest.raises(error) as refused:
        replay(run, progress=QUIET)
    assert what in refused.value.what
    assert str(run) in refused.value.where
    assert then in refused.value.then
    if change is damaged_line:
        assert refused.value.where.endswith("worker-00001.jsonl, line 4")
    if change is other_machine:
        assert replay(run, inexact=True, progress=QUIET)["equal"]


def test_a_lockstep_run_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="a lockstep run has no messages to replay") as refused:
        replay(folder / "lockstep", progress=QUIET)
    assert refused.value.then.startswith("hlt-train fit --config")

"""Shared parameters without a lock, with real processes: every addition arrives; races on a dense and a sparse problem, their logs, deaths, resumes, hangs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hlt_train.checkpoints import pointed
from hlt_train.cli import main
from hlt_train.errors import UsageError
from hlt_train.files import read_arrays
from hlt_train.race import PARAMETERS, Serial, racing, serial, updates
from hlt_train.transports.journal import file_of, read
from hlt_train.transports.launch import MEMORY, PREFIX, launch, sweep
from hlt_train.transports.lock_free import touched
from hlt_train.transports.options import MpiOptions
from tests import messages, races

WINDOWS = str(Path(__file__).with_name("windows.py"))
RACES = str(Path(__file__).parents[1] / "races.py")


# Rows, and a vector of one process.


def test_rows_of_hits() -> None:
    met = touched(np.array([7, 3, 9, 3, 9, 7, 7], np.int32), 9)  # 9 is padding
    assert met.rows.tolist() == [3, 7]
    values = np.arange(14, dtype=np.float32).reshape(7, 2)
    np.testing.assert_array_equal(met.sums(values), [values[1] + values[3], values[0] + values[5] + values[6]])
    spread = met.spread(np.array([[1, 2], [3, 4]], np.float32), 7)
    assert spread.tolist() == [[3, 4], [1, 2], [0, 0], [1, 2], [0, 0], [3, 4], [3, 4]]


def test_hits_that_are_all_padding() -> None:
    met = touched(np.full(3, 4, np.int32), 4)
    assert met.sums(np.ones((3, 2), np.float32)).shape == (0, 2)
    assert not met.spread(np.zeros((0, 2), np.float32), 3).any()


def test_a_serial_vector_adds_where_it_should() -> None:
    memory = Serial(np.zeros(11))
    memory.add_rows(1, np.array([0, 2]), np.ones((2, 3), np.float32))
    memory.add_range(4, np.full(3, 2, np.float32))
    assert memory.read().tolist() == [0, 1, 1, 1, 2, 2, 2, 1, 1, 1, 0]


# Which runs race.


def options(**changes: Any) -> MpiOptions:
    return MpiOptions(**changes)


def test_hogwild_races_unless_an_option_is_about_messages() -> None:
    hogwild, downpour, dogwild = (messages.strategy(name, 2) for name in ("hogwild", "downpour", "dogwild"))
    assert racing(hogwild, options())
    assert racing(hogwild, options(lock_free="rma", servers=2))
    for other in ({"lock_free": "no"}, {"overlap": True}, {"wire": "bfloat16"}, {"exchange": "alltoall"}, {"respawn": 1}):
        assert not racing(hogwild, options(**other))
    assert not racing(downpour, options())
    assert not racing(dogwild, options())


@pytest.mark.parametrize(
    ("rule", "changes", "what"),
    [
        ("downpour", {"lock_free": "node"}, "whose server only adds"),
        ("hogwild", {"lock_free": "node", "wire": "float16"}, "'wire'"),
        ("hogwild", {"lock_free": "rma", "hogwild_unsafe": True}, "hogwild_unsafe"),
        ("downpour", {"hogwild_unsafe": True}, "hogwild_unsafe"),
    ],
)
def test_options_that_do_not_fit_are_refused(rule: str, changes: dict[str, Any], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        racing(messages.strategy(rule, 2), options(**changes))


# Windows.


def left(out: Path, name: str) -> Any:
    return json.loads((out / f"{name}.json").read_text())


@pytest.mark.parametrize(("how", "ranks"), [("auto", 3), ("rma", 4)])
def test_every_addition_arrives(how: str, ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes add to the same entries 150 times; one row of the table lies with both owners."""
    monkeypatch.setenv("OUT", str(tmp_path))
    ended = launch([WINDOWS, how], ranks)
    assert ended.code == 0, ended.text
    assert left(tmp_path, "missing") == 0
    assert left(tmp_path, "number") == 305
    assert sorted(left(tmp_path, "numbers-0") + left(tmp_path, "numbers-1")) == list(range(5, 305))
    folder, backing = left(tmp_path, "segments-0")
    assert folder == backing  # what a killed launch leaves there is swept by the next


def test_unsafe_additions_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUT", str(tmp_path))
    ended = launch([WINDOWS, "unsafe-node"], 2)
    assert ended.code == 0, ended.text
    attempted = left(tmp_path, "attempted-0") + left(tmp_path, "attempted-1")
    arrived = left(tmp_path, "counted")
    assert attempted > 2 * 150 * 1000
    assert 0 < arrived <= attempted
    assert left(tmp_path, "missing") >= 0


def test_a_call_that_does_not_come_back_ends_the_process(tmp_path: Path) -> None:
    ended = launch([WINDOWS, "hung"], 2)
    assert ended.code == 1
    assert ended.errors == {1: "it hangs"}


def test_segments_of_a_dead_launch_are_removed() -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    gone, kept = MEMORY / f"{PREFIX}{dead.pid}-1-test", MEMORY / f"{PREFIX}{os.getpid()}-{_started()}-test"
    for folder in (gone, kept):
        folder.mkdir()
        (folder / "osc_sm.node.1.0.3").write_bytes(b"parameters")
    try:
        assert gone in sweep()
        assert not gone.exists()
        assert kept.exists()
    finally:
        (kept / "osc_sm.node.1.0.3").unlink()
        kept.rmdir()


def _started() -> str:
    return Path(f"/proc/{os.getpid()}/stat").read_text().rpartition(")")[2].split()[19]


# Races.


def play(folder: Path, jobs: list[dict[str, Any]], ranks: int = 3, **more: Any) -> Any:
    folder.mkdir(exist_ok=True)
    file = folder / "jobs.json"
    file.write_text(json.dumps(jobs))
    return launch([RACES, str(file)], ranks, **more)


def job(folder: Path, name: str, *, cells: bool = False, mpi: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    rate = 0.5 if cells else 0.02
    return {"job": {"rule": "hogwild", "run": str(folder / name), "rate": rate, **fields}, "mpi": mpi or {}, "cells": cells}


@pytest.fixture(scope="module")
def raced(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Several races, one after the other, by the same processes; two of them are two parts of one."""
    folder = tmp_path_factory.mktemp("races")
    dense = job(folder, "dense", checkpoint_every=15)
    jobs = {
        "dense": dense,
        "unsafe": job(folder, "unsafe", mpi={"hogwild_unsafe": True}),
        "cells": job(folder, "cells", cells=True),
        "longer": {**dense, "job": {**dense["job"], "steps": 60, "extended": True}},
    }
    ended = play(folder, list(jobs.values()))
    assert ended.code == 0, ended.text
    rma = job(folder, "rma", cells=True, servers=2, mpi={"lock_free": "rma"})
    ended = play(folder / "rma", [rma], 5)
    assert ended.code == 0, ended.text
    return {**jobs, "rma": rma}


def logs(content: dict[str, Any]) -> dict[int, list[Any]]:
    return {k: read(file_of(Path(content["job"]["run"]), "worker", k)) for k in (0, 1)}


def document(content: dict[str, Any], name: str = "transport") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(content["job"]["run"]) / f"{name}.json").read_text())
    return found


def final(content: dict[str, Any]) -> np.ndarray:
    run = Path(content["job"]["run"])
    return read_arrays(run / "checkpoints" / str(pointed(run, "LAST")) / "actors" / PARAMETERS)["parameters"]


@pytest.mark.parametrize("name", ["longer", "unsafe", "cells", "rma"])
def test_a_race_does_every_share_once_and_logs_it(name: str, raced: dict[str, dict[str, Any]]) -> None:
    content = raced[name]
    steps = content["job"].get("steps", 40)
    lines = sorted(line for k, log in logs(content).items() for line in updates(log, k))
    assert [line.n for line in lines] == list(range(2 * steps))
    assert sorted(line.share for line in lines) == [(step, owner) for step in range(steps) for owner in (0, 1)]
    assert all(line.norm > 0 for line in lines)
    for epoch in document(content, "coverage")["epochs"]:
        assert epoch["classes"]["applied"] == 40
        assert epoch["classes"]["open"] == epoch["duplicates"] == 0
    assert document(content)["race"]["updates"] == 2 * steps
    assert document(content)["race"]["lock_free"] == ("rma" if name == "rma" else "node")
    epochs = [json.loads(text) for text in (Path(content["job"]["run"]) / "metrics.jsonl").read_text().splitlines()]
    found = [line["validation"]["loss"] for line in epochs if line.get("event") == "epoch"]
    assert found[-1] < found[0] * 1.05


@pytest.mark.parametrize("name", ["longer", "cells", "rma"])
def test_one_batch_after_the_other_comes_out_near_the_race(name: str, raced: dict[str, dict[str, Any]]) -> None:
    content = raced[name]
    found = serial(races.program_of(content), races.data_of(content), logs(content), final(content))
    assert found["updates"] == 2 * content["job"].get("steps", 40)
    assert found["parameters"]["relative"] < 0.25
    assert found["losses"]["mean_distance"] < 0.1 * found["losses"]["serial"] + 0.02


def test_lost_additions_are_reported(raced: dict[str, dict[str, Any]]) -> None:
    assert document(raced["longer"])["race"]["unsafe"] is None
    unsafe = document(raced["unsafe"])["race"]["unsafe"]
    n = len(races.program_of(raced["unsafe"]).vector)
    assert unsafe["additions"] == 80 * n
    assert 0 <= unsafe["lost_fraction"] == 1 - unsafe["arrived"] / unsafe["additions"] < 0.5


def test_a_killed_worker_leaves_its_shares_to_the_others(tmp_path: Path) -> None:
    killed = job(tmp_path, "killed", with_ft=True, kill=[2, 9, "SIGKILL"], pause=0.01)
    ended = play(tmp_path, [killed], fault_tolerant=True)
    assert ended.code == 0, ended.text
    assert ended.killed == (2,)
    by = {k: updates(log, k) for k, log in logs(killed).items()}
    assert len(by[1]) == 8
    assert sorted(line.share for lines in by.values() for line in lines) == [(step, owner) for step in range(40) for owner in (0, 1)]
    epochs = document(killed, "coverage")["epochs"]
    assert [epoch["classes"]["applied"] for epoch in epochs] == [40, 40]
    assert sum(epoch["redealt"] for epoch in epochs) == 32


@pytest.mark.slow
def test_fit_races_and_replay_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The commands, on cells: auto is a race; replay says no with exit code 2; --serial tells the deviation."""
    cells, run = tmp_path / "cells.root", tmp_path / "run"
    program = Path(sys.executable).with_name("hlt-train")  # a script: what mpiexec starts is it again
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "NPROC")}

    def process(*arguments: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, env=environment, timeout=300, check=False)

    def here(*arguments: Any) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([*map(str, arguments)])
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    assert here("toy", cells, "--kind", "cells", "-n", "1200", "--seed", "1")[0] == 0
    fit = ["fit", "toy_cells", "--files", f"events={cells}", "--model", "sparse_linear", "--set", "model.buckets=4096", "--strategy", "hogwild"]
    done = process(*fit, "--transport", "mpi", "--workers", "2", "--batch", "32", "--for", "2epochs", "--learning-rate", "0.1", "--run", run, "--json", "-q")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["traffic"]["race"]["lock_free"] == "node"
    assert all(epoch["complete"] for epoch in result["coverage"]["epochs"])
    code, _, err = here("replay", run, "-q")
    assert code == 2
    assert "--serial" in err
    again = process("replay", run, "--serial", "--json", "-q")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["parameters"]["relative"] < 0.2

"""The post office and the launcher, with real processes: whole messages, fairness, death, recovery, replacement, exit codes, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hlt_train.errors import UsageError
from hlt_train.transports.launch import MEMORY, Ended, assign_gpu, launch, launched, local_rank, mpiexec, sweep

RANKS = str(Path(__file__).with_name("ranks.py"))
LAUNCHER = """
import sys
from hlt_train.transports.launch import launch
ended = launch(sys.argv[3:], int(sys.argv[1]), fault_tolerant=sys.argv[2] == "ft")
print(ended.text)
sys.exit(ended.code)
"""


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OUT", str(tmp_path))
    return tmp_path


def read(out: Path, name: str) -> list:
    return json.loads((out / f"{name}.json").read_text())


def play(what: str, ranks: int, *, fault_tolerant: bool = False) -> None:
    ended = launch([RANKS, *what.split()], ranks, fault_tolerant=fault_tolerant)
    assert ended.code == 0, ended.text


def test_round_trip_of_every_size(out: Path) -> None:
    play("trip", 3)
    for rank in range(3):
        too_large, too_long, nobody = read(out, f"trip-{rank}")
        assert too_large == "a payload of 262145 bytes to rank 0 is larger than the capacity, 262144"
        assert too_long == "a header of 4 words to rank 0 is longer than the 3 that were agreed on"
        assert nobody == "there is no rank 3 among 3"


def test_three_flooding_senders_are_served_in_turns(out: Path) -> None:
    play("flood", 4)
    shares = read(out, "flood")
    assert sum(shares) == 300
    assert all(0.25 <= share / 300 <= 0.42 for share in shares[1:]), shares


def test_deadline_names_who_is_awaited(out: Path) -> None:
    play("late", 3)
    text, waited = read(out, "late")
    assert text.startswith("rank 0 waits for rank 2: nothing has come for 0.3 s")
    assert 0.3 <= waited < 2


@pytest.mark.parametrize("how", ["", "eager"])
def test_last_complete_message_of_a_killed_sender_then_its_death(out: Path, how: str) -> None:
    play(f"killed {how}", 4, fault_tolerant=True)
    for rank in (0, 1, 3):
        tags, after, dead, alive = read(out, f"killed-{rank}")
        assert tags == (list(range(20)) if rank == 0 else [])
        assert after == sorted({0, 1, 3} - {rank})
        assert dead == [2]
        assert alive == [0, 1, 3]


def test_recovery_keeps_numbers_and_loses_nothing(out: Path) -> None:
    play("recover", 4, fault_tolerant=True)
    for rank in (0, 1, 3):
        replaced, dead, epoch, tags, number = read(out, f"recover-{rank}")
        assert (replaced, dead, epoch, number) == ([], [2], 1, rank)
        assert tags == {str(s): list(range(11)) if s in {0, 1, 3} - {rank} else [] for s in range(4)}


def test_replacements_take_the_place_of_the_dead_again_and_again(out: Path) -> None:
    play("respawn", 4, fault_tolerant=True)
    seen = {rank: read(out, f"respawn-{rank}") for rank in range(4)}
    assert all(dead == [] for _, dead, _ in seen.values())
    assert [seen[rank][0] for rank in range(4)] == [True, True, True, False]
    assert seen[3][2] == [[1, 2], [0], [2]]


def test_a_recovery_that_hangs_in_mpi_is_ended(out: Path) -> None:
    ended = launch([RANKS, "stuck"], 4, fault_tolerant=True)
    assert ended.code == 1
    assert set(ended.errors.values()) == {"the recovery hangs: MPI has rebuilt nothing for 3 s"}


def test_a_failing_rank_is_named_with_its_message(out: Path) -> None:
    ended = launch([RANKS, "fails"], 3)
    assert ended.code == 2
    assert ended.errors[1] == "UsageError: no such branch\n  where:   jets.root"
    assert set(ended.killed) <= {0, 2}


def test_a_killed_rank_fails_the_run_unless_it_is_fault_tolerant(out: Path) -> None:
    ended = launch([RANKS, "early"], 3)
    assert ended.code == 1
    assert 0 in ended.killed
    assert "rank 0: killed" in ended.text
    assert launch([RANKS, "early"], 3, fault_tolerant=True) == Ended(0, {}, (0,))


@pytest.mark.parametrize(("number", "fault_tolerant"), [(signal.SIGTERM, False), (signal.SIGUSR1, True), (signal.SIGINT, False)])
def test_a_signal_reaches_every_rank_once(out: Path, number: signal.Signals, fault_tolerant: bool) -> None:
    command = [sys.executable, "-c", LAUNCHER, "3", "ft" if fault_tolerant else "plain", RANKS, "waits"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    give_up = time.monotonic() + 30
    while len(list(out.glob("ready-*.json"))) < 3:
        assert process.poll() is None
        assert time.monotonic() < give_up
        time.sleep(0.02)
    process.send_signal(number)
    text, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert text.strip() == ""
    assert [read(out, f"signals-{rank}") for rank in range(3)] == [[number.name]] * 3


def test_each_rank_has_its_environment(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert launch([RANKS, "looks", "--x", "a b"], 2, nproc=3, env={"ALL": "all"}, env_per_rank=lambda rank: {"MINE": f"of {rank}"}) == Ended(0, {}, ())
    for rank in range(2):
        environment = {"NPROC": "3", "MINE": f"of {rank}", "ALL": "all", "OMP_NUM_THREADS": None}
        assert read(out, f"looks-{rank}") == [[rank, 2], rank, environment, ["looks", "--x", "a b"]]
    assert launch([RANKS, "looks"], 4).code == 0
    assert read(out, "looks-3")[2]["NPROC"] == str(max(1, len(os.sched_getaffinity(0)) // 4))


def test_what_killed_launches_left_is_swept(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hlt_train.transports.launch.MEMORY", out)
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19]
    living, rank_lives = out / f"hlt-train-ranks-{process.pid}-{started}-a", out / f"hlt-train-ranks-{process.pid}-1-b"
    dead, foreign = out / f"hlt-train-ranks-{process.pid}-2-c", out / "hlt-train-ranks-of-somebody"
    for folder in (living, rank_lives, dead, foreign):
        folder.mkdir()
        (folder / "sm_segment").write_bytes(b"1")
    (rank_lives / f"pid-{process.pid}-{started}").touch()
    (dead / f"pid-{process.pid}-3").touch()
    assert [p for p in sweep() if p.parent == out] == [dead]
    process.communicate(b"\n")
    assert [p for p in sweep() if p.parent == out] == [rank_lives, living]
    assert foreign.is_dir()


def test_shared_memory_of_a_killed_launch_is_swept_by_the_next(out: Path) -> None:
    command = [sys.executable, "-c", LAUNCHER, "2", "plain", RANKS, "waits"]
    process = subprocess.Popen(command)
    give_up = time.monotonic() + 30
    while len(list(out.glob("ready-*.json"))) < 2:
        assert time.monotonic() < give_up
        time.sleep(0.02)
    (folder,) = MEMORY.glob(f"hlt-train-ranks-{process.pid}-*")
    assert len(list(folder.rglob("sm_segment*"))) == 2
    parents = {int(Path(f"/proc/{read(out, f'ready-{rank}')}/stat").read_text().rpartition(")")[2].split()[1]) for rank in range(2)}
    for pid in (process.pid, *parents, *(read(out, f"ready-{rank}") for rank in range(2))):
        os.kill(pid, signal.SIGKILL)
    process.wait()
    while folder in MEMORY.iterdir():
        assert time.monotonic() < give_up
        sweep()
        time.sleep(0.02)


def test_launched_reads_the_environment_of_each_launcher() -> None:
    assert launched({}) is None
    assert launched({"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4"}) == (2, 4)
    assert launched({"PMI_RANK": "0", "PMI_SIZE": "2"}) == (0, 2)
    assert launched({"PMIX_RANK": "5", "SLURM_NTASKS": "8", "SLURM_PROCID": "5"}) == (5, 8)
    assert launched({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}) is None
    assert local_rank({"SLURM_LOCALID": "3"}) == 3


def test_a_rank_is_shown_one_gpu() -> None:
    for local, chosen in ((0, "4"), (1, "7"), (2, "4")):
        environment = {"CUDA_VISIBLE_DEVICES": "4,7", "OMPI_COMM_WORLD_LOCAL_RANK": str(local)}
        assert assign_gpu(environment) == environment["CUDA_VISIBLE_DEVICES"] == chosen
    for none in ("", "-1"):
        environment = {"CUDA_VISIBLE_DEVICES": none, "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
        assert assign_gpu(environment) is None
        assert environment["CUDA_VISIBLE_DEVICES"] == none


def test_a_rank_starts_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="rank 0 of 2 already"):
        launch([RANKS, "looks"], 2)


def test_without_mpi4py_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mpi4py.py").write_text("raise ImportError('no mpi4py here')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    code = "from hlt_train.transports.post import Post; Post(10)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'hlt-train[mpi]'" in done.stderr
    with pytest.raises(UsageError, match="no mpi4py here") as caught:
        mpiexec()
    assert "pip install 'hlt-train[mpi]'" in str(caught.value)

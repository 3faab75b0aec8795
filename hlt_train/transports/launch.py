"""Several processes: are we one of them, start them, and tell how they ended.

`launch` starts `mpiexec` on this machine. What runs in each rank is this module (`python -m hlt_train.transports.launch SCRIPT ARGUMENTS...`): it sets the
rank's environment, gives it a GPU, enters MPI, runs the script, and leaves a record. The exit code comes from those records, because mpiexec returns 0
although a rank was killed, and another rank's victims hide the rank that failed first.

Signals go from the launcher straight to the ranks, each once. mpiexec has a session of its own, so that a Ctrl-C on the terminal does not reach it too:
it would end the ranks while they save.

Under `mpirun` or `srun` of a site (`launched`), which may span machines, nothing of this is used: every process is a rank already.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from hlt_train.errors import RunFailed, UsageError

__all__ = ["Ended", "assign_gpu", "launch", "launched", "leave_record", "local_rank", "mpiexec", "replacement_command", "sweep"]

FOLDER = "HLT_TRAIN_RANKS"  # where the ranks of one launch leave their records
INSTALL = "pip install 'hlt-train[mpi]'"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
PREFIX = "hlt-train-ranks-"
MEMORY = Path("/dev/shm")  # noqa: S108 - shared memory is the purpose
LOOK = 0.05  # seconds between two looks at the ranks
GRACE = 10.0  # seconds for mpiexec to end once every rank has, and between asking it to end and killing it
FAREWELL = 30.0  # seconds that other ranks may run after one has failed
# (rank, size) as the launchers say them: Open MPI; hydra and its kin (MPICH, Intel), also srun --mpi=pmi2; Cray; PMIx under srun, whose size is Slurm's.
WORLDS = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("PALS_RANKID", "PALS_SIZE"),
    ("PMIX_RANK", "SLURM_NTASKS"),
)
LOCAL = ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "PALS_LOCAL_RANKID", "SLURM_LOCALID")
# Asked in a process of its own: loading an MPI library changes the process that loads it. The library's path is what the loader has mapped.
PROBE = """
import mpi4py
mpi4py.rc.initialize = False
from mpi4py import MPI
paths = {line.split(None, 5)[5].strip() for line in open('/proc/self/maps') if len(line.split(None, 5)) == 6}
print(next((p for p in sorted(paths) if p.rpartition('/')[2].startswith('libmpi')), ''))
print(MPI.Get_library_version())
"""


class Ended(NamedTuple):
    """How a launch ended.

    Attributes:
        code: the exit code of the whole: 0, 130 (interrupted), or that of the rank that failed first.
        errors: per rank that failed, what it said.
        killed: ranks that ended without a record.
        first: the one of them that was gone first, where that was seen.
    """

    code: int
    errors: dict[int, str]
    killed: tuple[int, ...]
    first: int | None = None

    @property
    def text(self) -> str:
        """One line per rank that failed or was killed; empty when there is none."""
        lines = [f"rank {rank}: {text}" for rank, text in self.errors.items()]
        return "\n".join([*lines, *(f"rank {rank}: killed" for rank in self.killed)])


class Mpiexec(NamedTuple):
    """A launcher that fits the library mpi4py loads: its path, the kind of MPI (`openmpi` or `hydra`) and its major version."""

    path: Path
    kind: str
    major: int


def launched(environment: Mapping[str, str] | None = None) -> tuple[int, int] | None:
    """(rank, size) if this process was started by mpirun or srun as one of several, from the environment alone; None otherwise.

    A batch script's own shell also sees Slurm's variables, so `SLURM_PROCID` without a PMI is not taken for a rank.
    """
    seen = os.environ if environment is None else environment
    for rank, size in WORLDS:
        if seen.get(rank, "").isdecimal() and seen.get(size, "").isdecimal():
            return int(seen[rank]), int(seen[size])
    return None


def local_rank(environment: Mapping[str, str] | None = None) -> int:
    """This process's number among those of its machine; 0 where nothing says so."""
    seen = os.environ if environment is None else environment
    return next((int(seen[name]) for name in LOCAL if seen.get(name, "").isdecimal()), 0)


def assign_gpu(environment: MutableMapping[str, str] | None = None, *, local: int | None = None) -> str | None:
    """Show this rank one GPU, chosen by its number on its machine (or `local`), and return it. To be called before jax is imported.

    Of the GPUs that `CUDA_VISIBLE_DEVICES` allows, or else those that the driver shows. None, and nothing is changed, where there is no GPU. A rank that
    `launch` starts has been given its GPU already; a replacement has not, because it knows its number only from its Post.
    """
    seen = os.environ if environment is None else environment
    allowed = seen.get("CUDA_VISIBLE_DEVICES")
    if allowed is None:
        found = sorted(int(p.name.removeprefix("nvidia")) for p in Path("/dev").glob("nvidia[0-9]*"))
        names = [str(i) for i in range(len(found))]
    else:
        names = [name.strip() for name in allowed.split(",") if name.strip()]
    if not names or names[0] == "-1":
        return None
    chosen = names[(local_rank(seen) if local is None else local) % len(names)]
    seen["CUDA_VISIBLE_DEVICES"] = chosen
    return chosen


def mpiexec() -> Mpiexec:
    """The launcher that belongs to the MPI library which mpi4py loads: a site's where mpi4py was built against it, the wheel's otherwise."""
    probe = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if probe.returncode != 0:
        reason = (probe.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UsageError(f"training with several processes needs MPI: {reason}", then=INSTALL)
    library, _, version = probe.stdout.partition("\n")
    kind, major = _kind(version)
    beside = [parent / "bin" / "mpiexec" for parent in Path(library).parents] if library else []
    on_path = shutil.which("mpiexec")
    for candidate in [*beside, *([Path(on_path)] if on_path else [])]:
        if candidate.is_file() and os.access(candidate, os.X_OK) and _kind(_says(candidate)) == (kind, major):
            return Mpiexec(candidate, kind, major)
    raise UsageError(f"no mpiexec belongs to the MPI that mpi4py loads ({library}: {version.splitlines()[0]})", then=f"{INSTALL}, or mpirun hlt-train ...")


def _kind(version: str) -> tuple[str, int]:
    """Family and major version from what a library or a launcher says of itself. Only Open MPI's major matters to us."""
    found = re.search(r"Open ?MPI\)? v?(\d+)", version) or re.search(r"OpenRTE\) (\d+)", version)
    return ("openmpi", int(found.group(1))) if found else ("hydra", 0)


def _says(candidate: Path) -> str:
    return subprocess.run([str(candidate), "--version"], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL).stdout


def replacement_command(argv: Sequence[str]) -> list[str]:
    """The command of one rank that runs `argv`: a script, or `-m` and a module, and its arguments."""
    return [sys.executable, "-m", "hlt_train.transports.launch", *argv]


def _command(found: Mpiexec, ranks: int, fault_tolerant: bool) -> tuple[list[str], dict[str, str]]:
    """The head of mpiexec's command line and the environment it needs."""
    if found.kind == "hydra":
        if fault_tolerant:
            raise UsageError("a run that survives the death of a rank needs Open MPI 5 or later", where=str(found.path), then=INSTALL)
        return [str(found.path), "-n", str(ranks)], {}
    # Only self, sm and tcp: all that one machine needs. Opening the others costs a second at start.
    environment = {"OMPI_MCA_pml": "ob1", "OMPI_MCA_btl": "self,sm,tcp", "OMPI_MCA_osc": "sm,rdma"}
    # Where a process may not read another's memory (some containers), a message travels in pieces and each waits for a nap to end: few and large ones.
    environment["OMPI_MCA_btl_sm_max_send_size"] = "262144"
    if os.geteuid() == 0:
        environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    if found.major < 5:
        if fault_tolerant:
            raise UsageError(f"a run that survives the death of a rank needs Open MPI 5, this is {found.major}", where=str(found.path), then=INSTALL)
        return [str(found.path), "--oversubscribe", "--bind-to", "none", "-n", str(ranks)], environment
    head = [str(found.path), "--map-by", ":OVERSUBSCRIBE", "--bind-to", "none"]
    if fault_tolerant:
        head += ["--with-ft", "ulfm"]
        # The first option covers the ranks of mpiexec itself; these cover the replacements as well, whose death would end everything otherwise.
        environment |= {"PRTE_MCA_state_base_recoverable": "1", "PRTE_MCA_state_base_error_non_zero_exit": "0"}
    return [*head, "-n", str(ranks)], environment


def launch(
    argv: Sequence[str],
    ranks: int,
    *,
    fault_tolerant: bool = False,
    env: Mapping[str, str] | None = None,
    env_per_rank: Callable[[int], Mapping[str, str]] | None = None,
    nproc: int | None = None,
) -> Ended:
    """Run `argv` in every one of `ranks` processes on this machine and wait for all of them.

    SIGINT, SIGTERM and SIGUSR1 are forwarded to every rank, once each; a third SIGINT ends the ranks at once.

    Args:
        argv: what Python runs: a script (such as `sys.argv[0]`), or `-m` and a module, and its arguments.
        ranks: how many.
        fault_tolerant: the others go on when one dies (Open MPI 5); False: all end.
        env: more environment for all.
        env_per_rank: more environment for one, by its rank; set before anything but Python itself is imported there.
        nproc: threads of XLA's pool in each rank; default cores // ranks, at least 1.
    """
    if ranks < 1:
        raise UsageError(f"the number of processes is at least 1, got {ranks}")
    if (place := launched()) is not None:
        raise UsageError(f"this process is rank {place[0]} of {place[1]} already: it starts no others", then="leave out either mpirun or the number of workers")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    head, needed = _command(mpiexec(), ranks, fault_tolerant)
    # What the caller's environment says of MPI itself wins over our choice; NPROC does not: it was meant for one process.
    environment = needed | dict(os.environ) | {"NPROC": str(nproc or max(1, cores // ranks))} | dict(env or {})
    sweep()
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-{_started(os.getpid())}-", dir=_memory()) as name:
        folder = Path(name)
        # Open MPI's shared memory and session lie in the same folder: what a killed launch leaves behind is found, and known to be ours.
        environment |= {FOLDER: name, "PRTE_MCA_prte_tmpdir_base": name, **{f"OMPI_MCA_{part}_sm_backing_directory": name for part in ("btl", "osc")}}
        for rank in range(ranks):
            extra = dict(env_per_rank(rank)) if env_per_rank else {}
            (folder / f"env-{rank}.json").write_text(json.dumps(extra))
        return _Watch(folder, ranks, fault_tolerant).run([*head, *replacement_command(argv)], environment)


def _memory() -> str | None:
    """The file system that is memory, where the ranks' shared segments belong; None (the temporary folder) where there is none."""
    return str(MEMORY) if MEMORY.is_dir() and os.access(MEMORY, os.W_OK | os.X_OK) else None


def sweep() -> list[Path]:
    """Remove what killed launches of this user left: their folders, with the shared-memory segments in them. Returns what was removed.

    A folder is left alone while its launcher or any of its ranks runs; a process number that the system has given away since counts as dead.
    """
    removed = []
    for folder in sorted({*MEMORY.glob(f"{PREFIX}*"), *Path(tempfile.gettempdir()).glob(f"{PREFIX}*")}):
        pid, _, rest = folder.name.removeprefix(PREFIX).partition("-")
        try:
            if not pid.isdecimal() or folder.lstat().st_uid != os.geteuid() or _started(int(pid)) == rest.partition("-")[0] or _living(folder):
                continue
        except FileNotFoundError:
            continue  # another launch removes it at this moment
        shutil.rmtree(folder, ignore_errors=True)
        removed.append(folder)
    return removed


def _living(folder: Path) -> list[int]:
    """Process ids of the ranks that run; a number that the system has given to another process since is not one of them."""
    found = []
    for file in folder.glob("pid-*"):
        pid, _, started = file.name.removeprefix("pid-").partition("-")
        if _started(int(pid)) == started:
            found.append(int(pid))
    return found


class _Watch:
    """One mpiexec, its ranks' files, and the signals on their way."""

    def __init__(self, folder: Path, ranks: int, fault_tolerant: bool) -> None:
        self.folder, self.ranks, self.fault_tolerant = folder, ranks, fault_tolerant
        self.signals: list[int] = []
        self.told: dict[int, int] = {}  # process id -> how many of the signals it got
        self.first: int | None = None  # rank that ended without a record, before all others

    def run(self, command: list[str], environment: dict[str, str]) -> Ended:
        before = {s: signal.signal(s, self._note) for s in SIGNALS}
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            code = self._wait(process)
        finally:
            self._end(process)
            for s, handler in before.items():
                signal.signal(s, handler)
        return self._ended(code)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.signals.append(number)

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        """Until mpiexec ends, or until nothing is left to wait for: with a rank dead it may hang in its own cleaning up, or its ranks in MPI's."""
        idle_since = failed_since = None
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(LOOK)
            alive = _living(self.folder)
            self._look_for_the_first(alive)
            for pid in alive:
                for number in self.signals[self.told.get(pid, 0) :]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)
                self.told[pid] = len(self.signals)
            if self.signals.count(signal.SIGINT) > 2:
                return 130
            idle_since = (idle_since or time.monotonic()) if self._stuck(alive) else None
            if idle_since and time.monotonic() - idle_since > GRACE:
                return 0
            failed_since = failed_since or (time.monotonic() if self._failed() else None)
            if failed_since and time.monotonic() - failed_since > FAREWELL:
                return 1

    def _look_for_the_first(self, alive: list[int]) -> None:
        if self.first is None:
            entered = {int(f.name.split("-")[1]): f for f in self.folder.glob("in-*")}
            gone = set(entered) - set(alive) - {int(f.stem.split("-")[1]) for f in self._recorded()}
            if len(gone) < len(entered):  # otherwise all went together
                self.first = next((int(rank) for pid in sorted(gone) if (rank := entered[pid].read_text())), None)

    def _stuck(self, alive: list[int]) -> bool:
        """All that run have left their record; or a rank died before MPI began, and the others wait for it there for ever."""
        started = {int(f.name.split("-")[1]) for f in self.folder.glob("pid-*")}
        entered = {int(f.name.split("-")[1]) for f in self.folder.glob("in-*")}
        recorded = {int(f.stem.split("-")[1]) for f in self._recorded()}
        working = set(alive) - recorded
        never = started - set(alive) - entered - recorded
        return bool(recorded and not working) or bool(never and not working & entered)

    def _failed(self) -> bool:
        """A rank has ended with an error: the others follow soon, or hang."""
        return any(json.loads(path.read_text())["code"] not in (0, 130) for path in self._recorded())

    def _recorded(self) -> list[Path]:
        return sorted(self.folder.glob("ended-*.json"))

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """Nothing outlives the launcher."""
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        for pid in _living(self.folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if process.poll() is None:
            process.kill()
            process.wait()

    def _ended(self, code: int) -> Ended:
        records = sorted((json.loads(path.read_text()) for path in self._recorded()), key=lambda r: r["time"])
        failed = [r for r in records if r["code"] not in (0, 130)]
        killed = tuple(sorted(set(range(self.ranks)) - {r["rank"] for r in records}))
        errors = {r["rank"]: r["error"] for r in failed}
        if failed:
            return Ended(failed[0]["code"], errors, killed, self.first)
        if code and not self.signals and not any(self.folder.glob("in-*")):
            raise RunFailed(f"mpiexec ended with code {code} before any of the {self.ranks} ranks had started", then="its message is above")
        stopped = any(r["code"] == 130 for r in records)
        if stopped or (killed and any(s in SIGNALS for s in self.signals)):
            return Ended(130, errors, killed)
        if killed and not (self.fault_tolerant and records):
            return Ended(1, errors, killed, self.first)
        return Ended(0, errors, killed)


def _started(pid: int) -> str | None:
    """When a process started, in the kernel's ticks; None if it is no more (or a zombie)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]


@contextlib.contextmanager
def _arguments(argv: list[str]) -> Iterator[None]:
    before, sys.argv = sys.argv, argv
    try:
        yield
    finally:
        sys.argv = before


def _run(argv: list[str]) -> tuple[int, str]:
    """Run a script or a module as Python would; its exit code and the text of the error that caused it."""
    try:
        if argv[0] == "-m":
            with _arguments(argv[1:]):
                runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
        else:
            sys.path[0] = str(Path(argv[0]).resolve().parent)
            with _arguments(argv):
                runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as end:
        # A command line turns an error into a text and an exit code; the error is still the context of the exit.
        cause = end.__cause__ or end.__context__
        if end.code is None or isinstance(end.code, int):
            return end.code or 0, str(cause) if cause else f"exit code {end.code}"
        print(end.code, file=sys.stderr)  # noqa: T201 - as Python does
        return 1, str(end.code)
    except KeyboardInterrupt:
        return 130, "interrupted"
    except BaseException as error:  # noqa: BLE001 - whatever it is, it goes to the record
        sys.excepthook(type(error), error, error.__traceback__)
        return int(getattr(error, "exit_code", 1)), f"{type(error).__name__}: {error}"
    return 0, ""


def leave_record(rank: int, code: int, error: str, began: float = 0.0) -> None:
    """How this process ended, for its launcher. A process that ends itself in a hurry (`os._exit`) leaves it before; without a launcher of ours, nothing."""
    if FOLDER not in os.environ:
        return
    folder, pid = Path(os.environ[FOLDER]), os.getpid()
    temporary = folder / f"part-{pid}"
    temporary.write_text(json.dumps({"rank": rank, "pid": pid, "code": code, "error": error, "began": began, "time": time.time()}))
    temporary.replace(folder / f"ended-{pid}.json")


def main(argv: list[str]) -> int:
    """One rank: environment, MPI, the script, the record. Returns the code that mpiexec may see."""
    folder = Path(os.environ[FOLDER])
    pid = os.getpid()
    (folder / f"pid-{pid}-{_started(pid)}").touch()
    # MPI comes first: with fault tolerance, a rank that ends before it has entered leaves all others waiting there.
    from hlt_train.transports import post

    MPI = post.mpi()
    place = launched()
    rank = -1 if place is None else place[0]
    (folder / f"in-{pid}").write_text(str(rank))
    if MPI.Comm.Get_parent() == MPI.COMM_NULL:
        os.environ.update(json.loads((folder / f"env-{rank}.json").read_text()))
        assign_gpu()
    else:
        rank = -1  # a replacement's rank in its own small world says nothing; its Post knows
    began = time.time()
    code, error = _run(argv)
    leave_record(rank if post.place is None else post.place, code, error, began)
    if post.place is None and code == 0:
        MPI.Finalize()  # a script that exchanges nothing
        return 0
    # After a common farewell the code is ours alone to tell: mpiexec would end the others. Without one it should, unless they go on without us.
    return 0 if post.clean or os.environ.get(post.FAULT_TOLERANT) == "1" else code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

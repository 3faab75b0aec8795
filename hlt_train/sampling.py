"""Optuna as the source of proposals: a study in a journal of the run directory, told one trial after the other.

What a trial is asked depends on the seed, its number, the name of the choice and the trials that were told before, and on nothing else: a process that dies
in the middle of a trial goes on with the same one. The sampler is TPE (Bergstra et al., NeurIPS 2011), each choice on its own; trials that were never trained
because they cost too much are told as pruned, which TPE takes for worse than any that was trained.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

__all__ = ["Trials"]

NAME = "students"
STARTUP = 8  # trials drawn at random before TPE has something to go by


class _Alone:
    """No lock: one process writes a run directory, and `Run` holds its lock. A lock of Optuna's own would outlive a process that is killed."""

    def acquire(self) -> bool:
        """Always."""
        return True

    def release(self) -> None:
        """Nothing was taken."""


class _Repeatable(BaseSampler):
    """TPE with random numbers of their own for each choice of each trial."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        return {}

    def sample_independent(self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:
        digest = hashlib.sha256(f"{self._seed} {trial.number} {param_name}".encode()).digest()
        sampler = TPESampler(seed=int.from_bytes(digest[:4], "little"), n_startup_trials=STARTUP, multivariate=False, constant_liar=False)
        return sampler.sample_independent(study, trial, param_name, param_distribution)


class Trials:
    """The study in `path`, made or opened.

    Args:
        path: the journal.
        seed: of every choice.
    """

    def __init__(self, path: Path, seed: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_torn_line(path)
        lock: Any = _Alone()
        storage = JournalStorage(JournalFileBackend(str(path), lock))
        self._study = optuna.create_study(storage=storage, sampler=_Repeatable(seed), study_name=NAME, direction="maximize", load_if_exists=True)

    @property
    def unfinished(self) -> bool:
        """Whether a trial was begun and not told."""
        return bool(self._waiting())

    def _waiting(self) -> list[FrozenTrial]:
        return [trial for trial in self._study.get_trials(deepcopy=False) if not trial.state.is_finished()]

    def open(self) -> optuna.Trial:
        """The trial that was not told yet, or a new one."""
        waiting = self._waiting()
        return optuna.Trial(self._study, waiting[0]._trial_id) if waiting else self._study.ask()  # noqa: SLF001 - there is no other way to go on with one

    def choose(self, trial: optuna.Trial, name: str, values: Sequence[Any]) -> Any:
        """One of `values`: by its place where they are numbers in order, else as one of several names."""
        if all(isinstance(value, int | float) for value in values):
            return values[trial.suggest_int(name, 0, len(values) - 1)]
        return values[trial.suggest_categorical(name, list(range(len(values))))]

    def tell(self, trial: optuna.Trial, value: float | None) -> None:
        """The figure of a trial that was trained; None of one that was not."""
        self._study.tell(trial.number, value, state=TrialState.PRUNED if value is None else TrialState.COMPLETE)


def _drop_torn_line(path: Path) -> None:
    """A process that is killed may leave half a line at the end."""
    if path.is_file():
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            path.write_bytes(whole)

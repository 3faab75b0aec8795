"""Optuna behind a seed: the same trials again, after a death in the middle of one, and after a torn line."""

from __future__ import annotations

from pathlib import Path

from hlt_train.sampling import STARTUP, Trials

WIDTHS = [4, 8, 16, 32]


def tried(trials: Trials, count: int) -> list[tuple[int, str]]:
    """Choices of the next trials, told so that TPE has something to learn; every third one is not trained."""
    found = []
    for _ in range(count):
        trial = trials.open()
        width, family = trials.choose(trial, "width", WIDTHS), trials.choose(trial, "family", ["mlp", "conv"])
        found.append((width, family))
        trials.tell(trial, None if trial.number % 3 == 2 else width / 32)
    return found


def test_the_same_seed_gives_the_same_trials(tmp_path: Path) -> None:
    count = STARTUP + 6
    first = tried(Trials(tmp_path / "a.log", 1), count)
    assert tried(Trials(tmp_path / "b.log", 1), count) == first
    assert tried(Trials(tmp_path / "c.log", 2), count) != first
    assert len(set(first)) > 2
    # TPE has learnt that wide is good
    assert sum(width for width, _ in first[STARTUP:]) / 6 > sum(width for width, _ in first[:STARTUP]) / STARTUP


def test_a_death_in_the_middle_of_a_trial_changes_nothing(tmp_path: Path) -> None:
    count = STARTUP + 4
    undisturbed = tried(Trials(tmp_path / "a.log", 7), count)
    path, found = tmp_path / "b.log", []
    for number in range(count):
        dying = Trials(path, 7)
        trial = dying.open()
        dying.choose(trial, "width", WIDTHS)  # dies before the second choice
        with path.open("ab") as stream:
            stream.write(b'{"op_code":5,"wor')  # in the middle of a line
        again = Trials(path, 7)
        assert again.unfinished
        assert again.open().number == number
        found += tried(again, 1)
        assert not again.unfinished
    assert found == undisturbed

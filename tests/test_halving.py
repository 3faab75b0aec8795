"""Rungs and who goes on."""

from __future__ import annotations

from hlt_train.halving import best_first, going_on, rung_steps


def test_rungs_grow_to_the_whole_length() -> None:
    assert rung_steps(900, 3, 3) == [100, 300, 900]
    assert rung_steps(100, 1, 3) == [100]
    assert rung_steps(10, 4, 3) == [2, 4, 10]  # 10 / 27 and 10 / 9 are both less than a warm-up and a step after it


def test_the_best_go_on() -> None:
    figures = {0: 0.2, 1: 0.5, 2: 0.5, 3: 0.1, 4: 0.4, 5: 0.3, 6: 0.0}
    assert best_first(figures) == [1, 2, 4, 5, 0, 3, 6]
    assert list(going_on(figures, 3)) == [1, 2]
    assert list(going_on({7: 0.1, 8: 0.2}, 3)) == [8]

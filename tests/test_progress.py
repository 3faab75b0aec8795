"""Progress: a bar on a terminal, lines in a log, nothing when quiet."""

from __future__ import annotations

import io

from hlt_train.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_in_a_log() -> None:
    log = io.StringIO()
    progress = Progress(stream=log, interval=0.0)
    progress("opening")
    progress.update(1, 4, "epoch 1")
    progress.close()
    assert log.getvalue() == "opening\n 25 % epoch 1\n"


def test_an_interval_thins_the_log() -> None:
    log = io.StringIO()
    progress = Progress(stream=log, interval=1e9)
    for step in range(1000):
        progress.update(step, 1000, "epoch 1")
    assert log.getvalue().count("\n") == 1


def test_a_bar_on_a_terminal_leaves_nothing_behind() -> None:
    screen = Terminal()
    progress = Progress(stream=screen)
    progress.update(1, 2, "epoch 1")
    assert screen.getvalue() == "\r[############............]  50 % epoch 1"
    progress("a line")
    assert screen.getvalue().endswith("\ra line\n")
    progress.close()
    assert screen.getvalue().count("\n") == 1


def test_quiet() -> None:
    log = io.StringIO()
    progress = Progress(stream=log, quiet=True)
    progress("opening")
    progress.update(1, 2, "epoch")
    progress.close()
    assert log.getvalue() == ""

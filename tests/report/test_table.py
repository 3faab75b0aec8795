"""Alignment of tables and rounding of errors."""

from __future__ import annotations

import doctest

from hlt_train import errors
from hlt_train.report import table as module
from hlt_train.report.table import plus_minus, table


def test_examples_in_the_docstrings() -> None:
    for documented in (module, errors):
        done = doctest.testmod(documented)
        assert done.attempted > 0
        assert done.failed == 0


def test_a_table_without_rows_keeps_its_header() -> None:
    assert table([], ["a", "b"], title="none").splitlines()[:2] == ["none", "a  b"]


def test_errors_that_cannot_be_rounded() -> None:
    assert plus_minus(1.0, float("inf")) == "1"
    assert plus_minus(0.0, 0.0) == "0.000 +- 0.000"

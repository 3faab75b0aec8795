"""The form of an error, and the nearest names."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hlt_train.errors import BudgetNotMet, Interrupted, RunFailed, UsageError, nearest


def test_form() -> None:
    error = UsageError("branch 'jet_pT' not found", where="a.root, tree Events (412 branches)", near=("jet_pt", "jet_phi"), then="hlt-train inspect a.root")
    assert str(error).splitlines() == [
        "branch 'jet_pT' not found",
        "  where:   a.root, tree Events (412 branches)",
        "  nearest: jet_pt, jet_phi",
        "  next:    hlt-train inspect a.root",
    ]


def test_exit_codes() -> None:
    assert [e("x").exit_code for e in (RunFailed, UsageError, BudgetNotMet, Interrupted)] == [1, 2, 3, 130]


@given(st.lists(st.text("abcXYZ_", min_size=3), min_size=1, unique_by=str.lower))
def test_nearest_finds_the_same_name_in_another_case(names: list[str]) -> None:
    assert nearest(names[0].swapcase(), names)[0] == names[0]

"""Event decisions from object scores, against a loop over events."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlt_train.errors import UsageError
from hlt_train.trigger.events import event_scores, group_rows

rows = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 4), st.integers(-9, 9), st.booleans()), min_size=1, max_size=25)


@given(rows, st.sampled_from(["max", "nth(0)", "nth(1)", "nth(2)", "sum"]), st.booleans())
def test_against_a_loop(content: list[tuple[int, int, int, bool]], how: str, integer: bool) -> None:
    sample, number, score, part = (np.array(column) for column in zip(*content, strict=True))
    score = score.astype(np.int64 if integer else np.float64)
    lowest = np.iinfo(np.int64).min if integer else -np.inf
    grouping = group_rows(sample, number[:, None])
    keys = list(dict.fromkeys(zip(sample.tolist(), number.tolist(), strict=True)))
    expected = []
    for key in keys:
        mine = sorted((s for s, e, x, p in zip(sample, number, score, part, strict=True) if p and (s, e) == key for s in [x]), reverse=True)
        k = {"max": 0, "nth(0)": 0, "nth(1)": 1, "nth(2)": 2}.get(how, 0)
        expected.append((sum(mine) if how == "sum" else mine[k]) if len(mine) > k else lowest)
    found = event_scores(score, grouping, part, how)
    assert found.dtype == score.dtype
    assert found.tolist() == expected
    assert [(int(sample[f]), int(number[f])) for f in grouping.first] == keys


def test_every_column_of_the_identity_counts() -> None:
    grouping = group_rows(np.zeros(3, np.int32), np.array([[1, 7], [2, 7], [1, 7]]))
    assert grouping.event.tolist() == [0, 1, 0]


def test_unknown_rule() -> None:
    grouping = group_rows(np.zeros(1, np.int32), np.zeros((1, 1), np.int64))
    with pytest.raises(UsageError, match="mean"):
        event_scores(np.zeros(1), grouping, np.ones(1, bool), "mean")

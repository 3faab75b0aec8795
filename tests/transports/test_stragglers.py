"""Straggler models: a factor with mean 1 that belongs to (seed, worker, batch)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlt_train.errors import UsageError
from hlt_train.transports.stragglers import factor, uniform

COUNT = 20_000


def draws(text: str, seed: int = 3) -> np.ndarray:
    made = factor(text, seed)
    return np.array([made(k % 7, k // 7) for k in range(COUNT)])


@pytest.mark.parametrize("text", ["lognormal:0.5", "lognormal:0", "pareto:3.5", "none"])
def test_mean_is_one(text: str) -> None:
    """Within 5 standard errors; the variance of a Pareto distribution with exponent 3.5 exists."""
    found = draws(text)
    assert abs(found.mean() - 1) <= 5 * found.std() / COUNT**0.5 + 1e-12
    assert (found > 0).all()


def test_widths() -> None:
    logs = np.log(draws("lognormal:0.5"))
    assert abs(logs.std() - 0.5) < 5 * 0.5 / (2 * COUNT) ** 0.5
    found = draws("pareto:2")
    assert found.min() >= 0.5
    assert abs((found > 1).mean() - 0.25) < 5 * (0.25 * 0.75 / COUNT) ** 0.5  # (x_m / x)^2


def test_trace_resamples_its_file(tmp_path: Path) -> None:
    times = [0.1, 0.2, 0.3, 1.4]
    (tmp_path / "times.txt").write_text("\n".join(map(str, times)))
    found = draws(f"trace:{tmp_path / 'times.txt'}")
    values, counts = np.unique(found, return_counts=True)
    np.testing.assert_allclose(values, np.array(times) / 0.5)
    assert (np.abs(counts / COUNT - 0.25) < 5 * (0.25 * 0.75 / COUNT) ** 0.5).all()


@given(seed=st.integers(0, 2**31 - 1), purpose=st.integers(0, 2**16), actor=st.integers(0, 20_000), count=st.integers(0, 2**40))
def test_uniform_is_a_function_of_its_arguments(seed: int, purpose: int, actor: int, count: int) -> None:
    u = uniform(seed, purpose, actor, count)
    assert 0 < u < 1
    assert u == uniform(seed, purpose, actor, count)
    assert len({u, uniform(seed + 1, purpose, actor, count), uniform(seed, purpose, actor + 1, count), uniform(seed, purpose, actor, count + 1)}) == 4


def test_uniform_is_uniform_and_stays_what_it_is() -> None:
    assert uniform(1, 2, 3, 4) == 0.8237397162346505
    found = np.array([uniform(5, 1, k % 100, k // 100) for k in range(COUNT)])
    counts, _ = np.histogram(found, bins=20, range=(0, 1))
    assert ((counts - COUNT / 20) ** 2 / (COUNT / 20)).sum() < 50  # chi^2 of 19 degrees of freedom: 1e-4
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 5 / COUNT**0.5


def test_a_trace_may_say_where_it_comes_from(tmp_path: Path) -> None:
    (tmp_path / "bare.txt").write_text("1\n2\n")
    (tmp_path / "told.txt").write_text("# measured on a Monday, 2 cores\n1  # the first\n\n2\n")
    np.testing.assert_array_equal(draws(f"trace:{tmp_path / 'told.txt'}"), draws(f"trace:{tmp_path / 'bare.txt'}"))


@pytest.mark.parametrize(
    ("text", "what", "near"),
    [
        ("lognormall:1", "no straggler model is called 'lognormall'", ("lognormal",)),
        ("lognormal:x", "lognormal takes a number, got 'lognormal:x'", ()),
        ("lognormal", "lognormal takes a number", ()),
        ("lognormal:-1", "the width of a lognormal is not negative", ()),
        ("lognormal:nan", "the width of a lognormal", ()),
        ("lognormal:inf", "the width of a lognormal", ()),
        ("pareto:1", "a Pareto distribution has a mean only for an exponent above 1", ()),
        ("pareto:nan", "a Pareto distribution", ()),
        ("none:1", "takes no number", ()),
        ("trace:/no/such/file", "no such trace of batch times: /no/such/file", ()),
    ],
)
def test_malformed_models_are_refused_by_name(text: str, what: str, near: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as refused:
        factor(text, 0)
    assert what in refused.value.what
    assert refused.value.near == near


@pytest.mark.parametrize("content", ["", "0.1\nabc\n", "0.1\n-1\n", "0.1\nnan\n"])
def test_malformed_traces_are_refused_by_name(content: str, tmp_path: Path) -> None:
    file = tmp_path / "times.txt"
    file.write_text(content)
    with pytest.raises(UsageError, match=r"trace (of batch times|holds)") as refused:
        factor(f"trace:{file}", 0)
    assert refused.value.where == str(file)

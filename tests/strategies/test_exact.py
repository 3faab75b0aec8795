"""The exact sum: no order of terms changes a bit of it, and it is as near as float32 can be."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlt_train.strategies import _exact

ADDED = jax.jit(_exact.added)
MEAN = jax.jit(_exact.mean, static_argnums=1)
TERMS, N = 24, 64


def total(terms: np.ndarray) -> _exact.Sum:
    s = _exact.zero(jnp.zeros(terms.shape[1:]))
    for term in terms:
        s = ADDED(s, term)
    return s


def bits(s: _exact.Sum) -> bytes:
    return b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves((s, MEAN(s, TERMS))))


def terms(seed: int, spread: float) -> np.ndarray:
    """Float32 numbers of very different sizes, zeros of both signs among them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(TERMS, N)) * 2.0 ** rng.uniform(-spread, spread, size=(TERMS, N))
    x[rng.random((TERMS, N)) < 0.2] = 0
    return (x * rng.choice([1, -1], size=x.shape)).astype(np.float32)


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 8, 30, 110]))
def test_the_order_of_the_terms_changes_no_bit(seed: int, spread: float) -> None:
    x = terms(seed, spread)
    assert bits(total(x)) == bits(total(np.random.default_rng(seed).permutation(x)))


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 8, 30, 110]))
def test_the_mean_is_within_float32_of_its_largest_term(seed: int, spread: float) -> None:
    x = terms(seed, spread)
    exact = x.astype(np.float64)
    found = np.asarray(MEAN(total(x), TERMS), np.float64)
    assert (np.abs(found - exact.mean(axis=0)) <= 2.0**-24 * np.abs(exact).max(axis=0) + 2.0**-126).all()


def test_small_terms_survive_beside_large_ones_that_cancel() -> None:
    x = np.zeros((TERMS, 1), np.float32)
    x[:3, 0] = [2.0**20, 1.0, -(2.0**20)]
    assert float(MEAN(total(x), TERMS)[0]) == np.float32(1 / TERMS)


def test_one_term_is_itself() -> None:
    x = np.concatenate([terms(0, 120)[0], np.float32([np.finfo(np.float32).max, -np.finfo(np.float32).max, 2.0**-126, 0])])
    np.testing.assert_array_equal(MEAN(total(x[None]), 1), x)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 11, TERMS - 1])
def test_what_is_not_finite_stays(bad: float, at: int) -> None:
    x = terms(1, 4)
    x[at, 5] = bad
    found = np.isnan(np.asarray(MEAN(total(x), TERMS)))
    assert found[5]
    assert found.sum() == 1


def test_the_most_terms_do_not_overflow() -> None:
    """As many equal terms as are allowed, added up by doubling the words."""
    s = ADDED(_exact.zero(jnp.zeros(())), jnp.float32(-1.9999999))
    words = [np.asarray(word, np.int64) * _exact.MOST for word in s.words]
    assert max(abs(int(word)) for word in words) < 2**31
    many = s._replace(words=tuple(jnp.asarray(word, jnp.int32) for word in words))
    np.testing.assert_allclose(float(MEAN(many, _exact.MOST)), -1.9999999, rtol=1e-7)


def test_entries_do_not_see_each_other() -> None:
    """A slice of a sum is the sum of slices: shards agree to the bit."""
    x = terms(2, 20)
    whole = total(x)
    part = total(x[:, 10:33])
    assert np.asarray(MEAN(part, TERMS)).tobytes() == np.asarray(MEAN(whole, TERMS))[10:33].tobytes()

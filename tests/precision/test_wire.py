"""Formats of messages: bounds, what is not finite, saturation, determinism, error feedback."""

from __future__ import annotations

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hlt_train.errors import UsageError
from hlt_train.precision import wire as wires
from hlt_train.precision.wire import BLOCK, Blocks, Wire, check, decode, encode, error, feedback, saturated

NARROW = [w for w in get_args(Wire) if w != "float32"]
ENCODE = jax.jit(encode, static_argnums=1)
DECODE = jax.jit(decode)
ERROR = jax.jit(error, static_argnums=1)
SATURATED = jax.jit(saturated, static_argnums=1)
LENGTH = 12  # one length for the examples of Hypothesis: one compilation


def floats(low: int, high: int) -> st.SearchStrategy[np.ndarray]:
    """Signed float32 numbers of magnitude 2**low to 2**high, and zeros."""
    magnitude = st.builds(lambda m, e: m * 2.0**e, st.floats(1, 2, exclude_max=True, width=32), st.integers(low, high - 1))
    number = st.one_of(st.just(0.0), magnitude, magnitude.map(lambda x: -x))
    return hnp.arrays(np.float32, LENGTH, elements=number)


def there_and_back(x: np.ndarray, wire: Wire) -> np.ndarray:
    return np.asarray(DECODE(ENCODE(jnp.asarray(x), wire)))


@settings(max_examples=20)
@given(floats(-126, 128))
def test_float32_is_exact(x: np.ndarray) -> None:
    assert there_and_back(x, "float32").tobytes() == x.tobytes()


@settings(max_examples=20)
@given(floats(-126, 127))
def test_bfloat16_rounds_to_eight_bits(x: np.ndarray) -> None:
    assert (np.abs(there_and_back(x, "bfloat16").astype(np.float64) - x) <= np.abs(x.astype(np.float64)) * 2.0**-8).all()


@settings(max_examples=20)
@given(floats(-40, 16))
@example(np.full(LENGTH, 2.0**-24, np.float32))
@example(np.full(LENGTH, 65504, np.float32))
def test_float16_is_numpys_up_to_its_largest(x: np.ndarray) -> None:
    want = np.clip(x, -65504, 65504).astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(there_and_back(x, "float16"), want)


@settings(max_examples=20)
@given(floats(-110, 127))
@example(np.full(LENGTH, 127, np.float32))
@example(np.full(LENGTH, np.nextafter(np.float32(127), np.float32(200))))
@example(np.full(LENGTH, wires.LARGEST["int8"], np.float32))
def test_int8_is_within_half_a_step_of_the_smallest_scale_that_fits(x: np.ndarray) -> None:
    x64 = x.astype(np.float64)
    largest = np.abs(x64).max()
    encoded = ENCODE(jnp.asarray(x), "int8")
    scale = 2.0 ** float(encoded.exponent[0])
    if largest > 0:
        assert largest <= 127 * scale
        assert largest > 127 * scale / 2
    assert (np.abs(np.asarray(DECODE(encoded)).astype(np.float64) - x64) <= scale / 2).all()
    assert np.abs(np.asarray(encoded.code)).max() <= 127


def test_int8_of_very_small_numbers() -> None:
    """Below 2**-119 the scale stays at 2**-126; half a step of that is all that is lost."""
    x = np.float32([2.0**-120, -(2.0**-125), 2.0**-126, 0])
    assert (np.abs(there_and_back(x, "int8").astype(np.float64) - x) <= 2.0**-127).all()


@pytest.mark.parametrize("n", [0, 1, BLOCK, 2 * BLOCK + 5])
@pytest.mark.parametrize("wire", get_args(Wire))
def test_any_length_and_the_bytes_that_travel(n: int, wire: Wire) -> None:
    x = np.random.default_rng(n).normal(size=n).astype(np.float32)
    encoded = ENCODE(jnp.asarray(x), wire)
    decoded = DECODE(encoded)
    assert decoded.shape == (n,)
    assert decoded.dtype == jnp.float32
    travel = sum(leaf.nbytes for leaf in jax.tree.leaves(encoded))
    assert travel == {"float32": 4 * n, "bfloat16": 2 * n, "float16": 2 * n, "int8": n + -(-n // BLOCK)}[wire]


def test_blocks_do_not_see_each_other() -> None:
    rng = np.random.default_rng(3)
    quiet, loud = rng.normal(size=BLOCK).astype(np.float32), 1e6 * rng.normal(size=BLOCK).astype(np.float32)
    both = there_and_back(np.concatenate([quiet, loud]), "int8")
    np.testing.assert_array_equal(both[:BLOCK], there_and_back(quiet, "int8"))
    np.testing.assert_array_equal(both[BLOCK:], there_and_back(loud, "int8"))


@pytest.mark.parametrize("wire", get_args(Wire))
@settings(max_examples=20)
@given(x=floats(-126, 128))
def test_what_was_decoded_encodes_to_itself(wire: Wire, x: np.ndarray) -> None:
    once = there_and_back(x, wire)
    assert there_and_back(once, wire).tobytes() == once.tobytes()


@pytest.mark.parametrize("wire", get_args(Wire))
@settings(max_examples=20)
@given(x=floats(-10, 10), bad=st.lists(st.sampled_from([np.nan, np.inf, -np.inf]), min_size=1, max_size=5), at=st.integers(0, LENGTH - 5))
def test_not_finite_stays_not_finite_and_disturbs_nobody(wire: Wire, x: np.ndarray, bad: list[float], at: int) -> None:
    x[at : at + len(bad)] = bad
    calm = np.where(np.isfinite(x), x, 0)
    found = there_and_back(x, wire)
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(x))
    np.testing.assert_array_equal(found[np.isfinite(x)], there_and_back(calm, wire)[np.isfinite(x)])
    if wire != "int8":
        np.testing.assert_array_equal(found[at : at + len(bad)], bad)


def test_saturation_is_counted() -> None:
    top = np.finfo(np.float32).max
    x = jnp.asarray([1.0, 65504, 65505, -1e6, np.inf, np.nan, top, -top])
    found = {w: int(SATURATED(x, w)) for w in get_args(Wire)}
    assert found == {"float32": 0, "bfloat16": 2, "float16": 4, "int8": 2}
    np.testing.assert_array_equal(there_and_back(x, "float16"), [1, 65504, 65504, -65504, np.inf, np.nan, 65504, -65504])
    for wire in ("bfloat16", "int8"):
        np.testing.assert_array_equal(there_and_back(x, wire)[-2:], np.float32([wires.LARGEST[wire], -wires.LARGEST[wire]]))


@pytest.mark.parametrize("wire", get_args(Wire))
def test_relative_error(wire: Wire) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=5000).astype(np.float32)
    x64 = x.astype(np.float64)
    want = np.linalg.norm(there_and_back(x, wire) - x64) / np.linalg.norm(x64)
    np.testing.assert_allclose(ERROR(jnp.asarray(x), wire), want, rtol=1e-4)
    assert {"float32": 0, "bfloat16": 2**-8, "float16": 2**-11, "int8": 0.02}[wire] >= want
    assert float(ERROR(jnp.zeros(7), wire)) == 0
    assert np.isnan(ERROR(jnp.asarray([1.0, np.nan]), wire))
    if wire in {"int8", "bfloat16"}:  # the squares would leave the range of float32
        for by in (1e-30, 1e30):
            np.testing.assert_allclose(ERROR(jnp.asarray(x * np.float32(by)), wire), want, rtol=0.4)


@pytest.mark.parametrize("wire", NARROW)
def test_feedback_loses_nothing_for_good(wire: Wire) -> None:
    """Constant vectors through a coarse wire: without feedback the error of the sum grows with the messages, with it it stays at one message's."""
    x = np.random.default_rng(1).normal(size=300).astype(np.float32) / 3
    residual, total = jnp.zeros(300), np.zeros(300)
    step = jax.jit(feedback, static_argnums=2)
    for _ in range(200):
        encoded, residual = step(jnp.asarray(x), residual, wire)
        total += np.asarray(DECODE(encoded), np.float64)
    np.testing.assert_allclose(total + np.asarray(residual, np.float64), 200 * x.astype(np.float64), atol=2e-5)
    assert np.abs(total - 200 * x.astype(np.float64)).max() < 0.02
    _, residual = step(jnp.full(300, jnp.nan), residual, wire)
    assert np.isfinite(residual).all()


def test_bits_are_those_of_eager_jax_and_of_vmap() -> None:
    x = jnp.asarray(np.random.default_rng(5).normal(size=(4, 2 * BLOCK + 100)).astype(np.float32))
    stacked = jax.jit(jax.vmap(lambda row: encode(row, "int8")))(x)
    for k in range(4):
        alone = encode(x[k], "int8")
        assert isinstance(alone, Blocks)
        np.testing.assert_array_equal(stacked.code[k], alone.code)
        np.testing.assert_array_equal(stacked.exponent[k], alone.exponent)


@pytest.mark.parametrize("wire", get_args(Wire))
def test_there_and_back_inside_one_compiled_function(wire: Wire) -> None:
    """XLA drops a cast to a narrower type and back."""
    x = np.random.default_rng(2).normal(size=500).astype(np.float32) * np.float32(1e-4)
    np.testing.assert_array_equal(jax.jit(lambda v: decode(encode(v, wire)))(x), there_and_back(x, wire))


def test_unknown_wire() -> None:
    assert check("int8") == "int8"
    with pytest.raises(UsageError) as refused:
        check("float61")
    assert "float16" in str(refused.value)

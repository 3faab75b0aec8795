"""The number contract between training and the golden model (`docs/numbers.md`): the input step on constructed ties, every format, dots of every width."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hlt_train import graph
from hlt_train.arithmetic import requantise
from hlt_train.data import normalise
from hlt_train.golden import CATEGORIES
from hlt_train.models import _layers
from hlt_train.models._layers import Dense, Grid, LayerFormats
from hlt_train.models._lower import Lowering, quant_of
from hlt_train.models.mlp import MLP, mlp
from hlt_train.precision.config import Precision
from hlt_train.precision.exact import EXACT_FLOAT32, EXACT_INT32
from hlt_train.precision.fixed import FixedFormat
from hlt_train.precision.formats import NumberFormat, parse_format, quantise
from hlt_train.precision.minifloat import MiniFormat
from hlt_train.proof import prove
from hlt_train.types import Features, Inputs
from hlt_train.vectors import vectors
from tests.students import inputs

# ---------------------------------------------------------------------------------------------------------------------------------- the input step


def float32(value: Fraction) -> Fraction:
    """The nearest number of 24 significant bits, half to even; no exponent is too small or large here."""
    if value == 0:
        return value
    step = Fraction(2) ** (math.floor(math.log2(abs(value))) - 23)
    while abs(value) / step >= 2**24:
        step *= 2
    while abs(value) / step < 2**23:
        step /= 2
    return round(value / step) * step


def first_grid(x: np.ndarray, node: graph.Input) -> np.ndarray:
    """The integers of the input step by its definition, in fractions: (x - centre), rounded, times the scale, rounded, clamped, half to even."""
    f = int(node.quant.to.f)
    found = np.empty(x.shape, np.int64)
    for (row, j), value in np.ndenumerate(x):
        difference = float32(Fraction(float(value)) - Fraction(float(node.centre[j])))
        t = float32(difference * Fraction(float(node.scale[j])) * 2**f)
        found[row, j] = round(min(max(t, Fraction(int(node.lo[j]))), Fraction(int(node.hi[j]))))
    return found


@pytest.fixture(scope="module")
def ties() -> tuple[Inputs, MLP, graph.Graph, np.ndarray]:
    """A network, and raw rows whose variables are ties of its input step or numbers on which a wrong arithmetic goes to the other side."""
    described = inputs(np.random.default_rng(21), ("event", 6, None))
    formats = Precision(weights="fixed<8,2>", bias="fixed<8,2>", activations="ufixed<8,3>", inputs="fixed<10,4>")
    network = mlp(described, 2, jax.random.key(0), widths=(4,), precision=formats)
    lowered = network.lower(described, ("a", "b"), None)
    made = vectors(lowered, n=4000)
    x = made.x.groups["event"][made.category == CATEGORIES.index("input_tie")]
    kept: np.ndarray = x[(np.abs(x) < 1e6).all(axis=1)][:400]
    return described, network, lowered, kept


def golden(ties: tuple[Inputs, MLP, graph.Graph, np.ndarray]) -> np.ndarray:
    _, _, lowered, x = ties
    return graph.trace(lowered, Features({"event": x}, {}))["event_input"]


def training(ties: tuple[Inputs, MLP, graph.Graph, np.ndarray]) -> np.ndarray:
    """What the training's own normalisation and first grid give, as integers."""
    described, network, lowered, x = ties
    found = eqx.filter_jit(lambda step, rows: step(rows))(network.inputs[0], normalise.apply(described, Features({"event": x}, {})))
    f = lowered.structure["event_input"].f
    assert f is not None
    return np.ldexp(np.asarray(found, np.float64), f.astype(np.int32))


@pytest.mark.parametrize("of", [golden, training])
def test_the_input_step_on_constructed_ties(ties: tuple[Inputs, MLP, graph.Graph, np.ndarray], of: Callable[[Any], np.ndarray]) -> None:
    _, _, lowered, x = ties
    node = lowered.inputs[0]
    assert isinstance(node, graph.Input)
    assert len(x) > 200
    np.testing.assert_array_equal(of(ties), first_grid(x, node))


F32 = np.float32


def _offset(centre: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return (-centre.astype(np.float64) * scale.astype(np.float64)).astype(F32)


# x, centre, scale (of the first grid, or of the normalisation) -> what a wrong arithmetic makes of them, float32
WRONG: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "x * s + o": lambda x, centre, scale: x * scale + _offset(centre, scale),
    "fused": lambda x, centre, scale: (x.astype(np.float64) * scale + _offset(centre, scale)).astype(F32),
    "float64": lambda x, centre, scale: ((x.astype(np.float64) - centre) * scale.astype(np.float64)).astype(F32),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_another_input_step_is_found(ties: tuple[Inputs, MLP, graph.Graph, np.ndarray], monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    """In the golden model and in training alike: the test above cannot pass with it."""
    _, _, lowered, x = ties
    node = lowered.inputs[0]
    assert isinstance(node, graph.Input)
    want = first_grid(x, node)

    def step(x: np.ndarray, centre: np.ndarray, scale: np.ndarray, lo: np.ndarray, hi: np.ndarray, nan: np.ndarray) -> np.ndarray:
        del nan
        return np.rint(np.clip(WRONG[wrong](x, centre, scale), lo.astype(F32), hi.astype(F32))).astype(np.int64)

    def apply(described: Inputs, rows: Features) -> Features:
        (group,) = described.groups
        return Features({"event": np.clip(WRONG[wrong](rows.groups["event"], group.centre, group.scale), group.lo, group.hi)}, {})

    monkeypatch.setattr(graph, "input_step", step)
    monkeypatch.setattr(normalise, "apply", apply)
    assert (golden(ties) != want).mean() > 0.01
    assert (training(ties) != want).mean() > 0.01


# ------------------------------------------------------------------------------------------------------------------------------------ every format

ROUNDINGS = st.sampled_from(["floor", "half_up", "half_even", "stochastic"])
FIXED = st.builds(
    FixedFormat,
    signed=st.booleans(),
    width=st.integers(1, 24),
    integer=st.integers(-20, 30),
    round=ROUNDINGS,
    over=st.sampled_from(["wrap", "sat", "sat_sym"]),
)
MINI = st.builds(MiniFormat, exponent=st.integers(1, 5), mantissa=st.integers(0, 8), bias=st.integers(-10, 20), round=ROUNDINGS)


def near(to: NumberFormat, shift: int, rng: np.random.Generator) -> np.ndarray:
    """Integers of the grid that is `shift` bits finer: of every size, ties and their neighbours, about both limits and about every binade, below 2**24."""
    some = rng.integers(-(2**23), 2**23, 300) >> rng.integers(0, 23, 300)
    powers = np.left_shift(np.int64(1), rng.integers(0, 23, 60)) * rng.choice([-1, 1], 60)
    middles = (2 * rng.integers(-300, 300, 100) + 1) << max(shift - 1, 0)
    ends = [int(end) << max(shift, 0) if shift >= 0 else int(end) >> -shift for end in (to.lo, to.hi)]
    edges = np.array([end + d for end in ends for d in range(-3, 4) if abs(end) < 2**23], np.int64)
    found = np.concatenate([some, powers, middles, edges, [0, 1, -1]])
    around = np.concatenate([found, found + 1, found - 1])
    kept: np.ndarray = around[np.abs(around) < 2**24].astype(np.int64)
    return kept


@settings(max_examples=80)
@given(st.one_of(FIXED, MINI), st.integers(-8, 18), st.integers(0, 2**32 - 1))
def test_every_format_loses_the_bits_that_the_golden_model_loses(to: NumberFormat, shift: int, seed: int) -> None:
    """Ties, saturation, subnormal numbers, negative integer bits, widths 1 to 24: the training's quantiser against `Requant`."""
    n = near(to, shift, np.random.default_rng(seed))
    f = to.f + shift
    want = requantise(n[:, None], np.array([f], np.int64), quant_of(to))[:, 0]
    found = np.asarray(quantise(jnp.asarray(np.ldexp(n.astype(np.float64), -f), jnp.float32), to), np.float64)
    np.testing.assert_array_equal(np.ldexp(found, to.f), want)


@pytest.mark.parametrize("text", ["fixed<6,2>,half_even,sat", "minifloat<3,2,4>,half_even"])
@pytest.mark.parametrize("change", [{"round": "half_up"}, {"round": "floor"}, {"width": 7}, {"mantissa": 3}, {"exponent": 2}])
def test_a_quantiser_of_another_format_is_found(text: str, change: dict[str, Any]) -> None:
    to = parse_format(text)
    assert isinstance(to, FixedFormat | MiniFormat)
    if not change.keys() <= {field.name for field in dataclasses.fields(to)}:
        return
    n = near(to, 4, np.random.default_rng(0))
    want = np.ldexp(requantise(n[:, None], np.array([to.f + 4], np.int64), quant_of(to))[:, 0].astype(np.float64), -to.f)
    other: Any = dataclasses.replace(to, **change)
    found = np.asarray(quantise(jnp.asarray(np.ldexp(n.astype(np.float64), -to.f - 4), jnp.float32), other))
    assert (found != want).any()


# ----------------------------------------------------------------------------------------------------------------------------- dots of every width

WIDE = st.tuples(st.integers(1, 16), st.integers(2, 16), st.sampled_from([1, 7, 48]), st.booleans(), st.one_of(FIXED, MINI))


def layer(bits_x: int, bits_w: int, n: int, relu: bool, out: NumberFormat, rng: np.random.Generator) -> tuple[Dense, np.ndarray]:
    """A layer of formats of these widths with large weights, and rows that it reads, among them those that drive its sums to their extremes."""
    source = FixedFormat(True, bits_x, 2, "half_even", "sat")
    weights = FixedFormat(True, bits_w, 1, "half_even", "sat")
    f = bits_x - 2 + bits_w - 1
    bias = FixedFormat(True, 12, 12 - f + 2, "half_even", "sat")
    out = out.at(f - 9)  # nine bits fewer than the sums have
    linear = eqx.nn.Linear(n, 5, key=jax.random.key(0))
    w = np.sign(rng.normal(size=(5, n))) * np.ldexp(rng.integers(2 ** (bits_w - 2), 2 ** (bits_w - 1), (5, n)) - 0.0, 1 - bits_w)
    arrays = (jnp.asarray(w, jnp.float32), jnp.asarray(np.ldexp(rng.integers(-2000, 2000, 5) + 0.0, 2 - f), jnp.float32))
    linear = eqx.tree_at(lambda part: (part.weight, part.bias), linear, arrays)
    formats = LayerFormats(weights, bias, out, Grid.of(source, n))
    rows = np.concatenate([rng.integers(source.lo, source.hi + 1, (60, n)), *(np.where(s * w > 0, source.hi, source.lo) for s in (1, -1))])
    return Dense(linear, "dense", "relu" if relu else "none", formats, None), rows


def both(part: Dense, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, graph.Affine]:
    """The outputs as integers: of training and of the golden arithmetic; the lowered layer."""
    assert part.formats is not None
    assert part.formats.out is not None
    made = Lowering()
    made.dense(part, "x")
    affine, requant = made.nodes
    assert isinstance(affine, graph.Affine)
    assert isinstance(requant, graph.Requant)
    sums = rows @ affine.w + affine.b
    golden = requantise(np.maximum(sums, 0) if affine.relu else sums, affine.f, requant.quant)
    found = part(jnp.asarray(np.ldexp(rows.astype(np.float64), -part.formats.source_f), jnp.float32))
    return np.ldexp(np.asarray(found, np.float64), part.formats.out.f), golden, affine


@settings(max_examples=40)
@given(WIDE, st.integers(0, 2**32 - 1))
def test_dots_of_every_width_are_the_integers_and_within_the_proof(shape: tuple[int, int, int, bool, NumberFormat], seed: int) -> None:
    """One bit to 16 times 16 bits, in float32 or int32 as the bound says; no sum of the rows that drive it farthest passes what is proved."""
    part, rows = layer(*shape, np.random.default_rng(seed))
    assert part.formats is not None
    if part.formats.bound >= EXACT_INT32:
        return
    found, want, affine = both(part, rows)
    np.testing.assert_array_equal(found, want)
    x = FixedFormat(True, shape[0], 2, "half_even", "sat")
    group = inputs(np.random.default_rng(0), ("event", shape[2], None)).groups[0]
    unclipped = dataclasses.replace(group, lo=np.full(shape[2], -4, F32), hi=np.full(shape[2], 4, F32))
    first = graph.input_node("x", unclipped, graph.Fixed(True, 1, x.f))  # type: ignore[arg-type]
    proof = prove(graph.Graph((first, affine, graph.Output("out", ("dense",), tuple("abcde"), "none"))))["dense"]
    sums = rows @ affine.w + affine.b
    assert np.abs(sums).max() <= proof.bound <= part.formats.bound + 1
    assert (np.maximum(sums, 0 if affine.relu else sums).max(axis=0) == proof.hi).all()
    assert part.formats.in_int32 == (part.formats.bound >= EXACT_FLOAT32)


def test_a_dot_in_float32_beyond_the_bound_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    part, rows = layer(14, 14, 7, False, FixedFormat(True, 16, 0, "half_even", "sat"), np.random.default_rng(0))
    assert part.formats is not None
    assert EXACT_FLOAT32 < part.formats.bound < EXACT_INT32
    np.testing.assert_array_equal(*both(part, rows)[:2])
    monkeypatch.setattr(_layers, "EXACT_FLOAT32", EXACT_INT32)
    found, want, _ = both(part, rows)
    assert (found != want).any()

"""What every discovered model keeps: its lowering computes what it computes, or is refused by name; constituents beyond the count do not exist."""

from __future__ import annotations

import functools
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from hlt_train import graph, plugins
from hlt_train.calibration import calibrate, dense_layers
from hlt_train.errors import UsageError
from hlt_train.models import _layers, _pooling
from hlt_train.models._refusal import NoGraph
from hlt_train.precision import exact
from hlt_train.precision.config import Precision
from hlt_train.precision.formats import Format, parse_format
from hlt_train.proof import prove
from hlt_train.types import Features, Inputs
from tests.students import NARROW, cells, inputs, normalised, raw, raw_cells

MODELS = plugins.names("models")
SCORE = np.array([-1, 1], np.int64)
SMALL: dict[str, dict[str, object]] = {"mlp": {"widths": (16, 8)}, "deepsets": {"phi": (16, 8), "rho": (8,)}, "conv": {"filters": (8, 6), "rho": (8,)}}
GROUPS = (("event", 3, None), ("jets", 4, 6), ("tracks", 2, 9))


def describe(name: str, rng: np.random.Generator) -> Inputs:
    """Inputs that a model takes: generic ones, or two groups of hits for one that reads cells."""
    return cells(("cells", 6), ("tracks", 9)) if name == "sparse_linear" else inputs(rng, *GROUPS)


def draw(name: str, rng: np.random.Generator, described: Inputs, n: int, *, garbage: float = np.nan) -> Features:
    return (raw_cells if name == "sparse_linear" else raw)(rng, described, n, garbage=garbage)


def or_refuses(test: Callable[..., None]) -> Callable[..., None]:
    """The test runs, or the model says in it that it has no graph: then the refusal is what is checked. Any other error is one."""

    @functools.wraps(test)
    def run(name: str, **arguments: object) -> None:
        try:
            test(name=name, **arguments)
        except NoGraph as refusal:
            check_refusal(name, refusal)

    return run


def check_refusal(name: str, refusal: NoGraph) -> None:
    """It names the model and what is missing, models that do have a graph, and what to do."""
    assert refusal.what.startswith(f"{name} has no graph")
    assert len(refusal.what) > len(f"{name} has no graph") + 20
    assert refusal.then
    assert refusal.near
    assert all(refused(other, fixed=fixed) is None for other in refusal.near for fixed in (False, True))


@functools.cache
def refused(name: str, *, fixed: bool) -> NoGraph | None:
    described = describe(name, np.random.default_rng(1))
    try:
        build(name, described, 1, NARROW if fixed else None, **SMALL.get(name, {})).lower(described, ("a", "b"), SCORE if fixed else None)
    except NoGraph as refusal:
        return refusal
    return None


@pytest.mark.parametrize("name", MODELS)
def test_has_a_graph_or_says_that_it_has_none(name: str) -> None:
    """Float and fixed point alike: a model cannot be exported in one and refuse the other."""
    refusals = [refused(name, fixed=False), refused(name, fixed=True)]
    assert (refusals[0] is None) == (refusals[1] is None)
    for refusal in refusals:
        if refusal is not None:
            check_refusal(name, refusal)


def test_there_are_models_with_a_graph() -> None:
    assert {"mlp", "deepsets", "conv"} <= {name for name in MODELS if refused(name, fixed=False) is None}


def build(name: str, described: Inputs, seed: int, precision: Precision | None = None, *, scale: float = 1.0, **options: object) -> eqx.Module:
    """A model with weights that are not small, so that formats saturate; what starts at zero is given some, so that it says something."""
    model = plugins.factory("models", name)(described, 2, jax.random.key(seed), precision=precision, **options)
    arrays, static = eqx.partition(model, eqx.is_inexact_array)
    some = lambda a: a if np.any(a) else jax.random.normal(jax.random.key(seed), a.shape)  # noqa: E731
    return eqx.combine(jax.tree.map(lambda a: some(a) * scale, arrays), static)


def forward(model: eqx.Module, x: Features) -> np.ndarray:
    return np.asarray(eqx.filter_jit(lambda m, v: m(v))(model, x))


def integers(lowered: graph.Graph, logits: np.ndarray) -> np.ndarray:
    """Float logits as the integers they stand for; off the grid is an error."""
    f = lowered.structure["output"].f
    assert f is not None
    scaled = np.ldexp(logits.astype(np.float64), f.astype(np.int32))
    assert np.array_equal(scaled, np.rint(scaled)), "logits are off their grid"
    return scaled.astype(np.int64)


def options_of(name: str) -> list[dict[str, object]]:
    return [{"pool": pool} for pool in ("sum", "mean", "max")] if "pool" in plugins.options("models", name) else [{}]


# Models share their pools: of every one but the last that has them, the further ones are left to the long tests.
POOLED = next(name for name in MODELS[::-1] if len(options_of(name)) > 1)
CASES = [pytest.param(name, options, marks=[pytest.mark.slow] if k and name != POOLED else []) for name in MODELS for k, options in enumerate(options_of(name))]


@pytest.mark.parametrize(("name", "options"), CASES)
@or_refuses
def test_float_lowering(name: str, options: dict[str, object]) -> None:
    rng = np.random.default_rng(5)
    described = describe(name, rng)
    x = draw(name, rng, described, 500)
    model = build(name, described, 1, **options)
    lowered = model.lower(described, ("a", "b"), None)
    assert not lowered.exact
    np.testing.assert_allclose(graph.evaluate(lowered, x), forward(model, normalised(described, x)), rtol=2e-4, atol=2e-4)


FORMAT = st.builds(
    lambda kind, width, integer, *modes: f"{kind}fixed<{width},{integer}>,{','.join(modes)}",
    st.sampled_from(["", "u"]),
    st.integers(3, 9),
    st.integers(0, 2),
    st.sampled_from(["floor", "half_up", "half_even"]),
    st.sampled_from(["sat", "wrap"]),
)


WEIGHTS = st.one_of(
    FORMAT,
    st.sampled_from(["pow2<4,1>", "pow2<3,0>", "ternary<0>", "binary<0>", "minifloat<2,1,2>,half_even", "minifloat<3,2,4>,floor", "minifloat<2,3,1>,half_up"]),
)


@pytest.mark.parametrize(("name", "options"), CASES)
@settings(max_examples=4, phases=[Phase.generate])  # every example compiles: shrinking would take minutes
@given(
    weights=WEIGHTS,
    activations=FORMAT,
    layer=WEIGHTS,
    inputs_width=st.integers(4, 12),
    scale=st.sampled_from([0.5, 2.0, 30.0]),
    seed=st.integers(0, 2**32 - 1),
)
@or_refuses
def test_fixed_lowering_is_bit_for_bit(
    name: str, options: dict[str, object], weights: str, activations: str, layer: str, inputs_width: int, scale: float, seed: int
) -> None:
    """Random formats, overflow that saturates or wraps, an override of one layer and one group: JAX float32 equals the golden integers."""
    rng = np.random.default_rng(seed)
    described = describe(name, rng)
    precision = Precision.from_config(
        {
            "weights": weights,
            "bias": "fixed<5,4>",
            "activations": activations,
            "inputs": f"fixed<{inputs_width},4>",
            "layers": {"logits": {"weights": layer}, "jets": {"inputs": "fixed<9,3>"}},
        }
    )
    model = build(name, described, seed % 1000, precision, scale=scale, **options, **SMALL.get(name, {}))
    lowered = model.lower(described, ("a", "b"), SCORE)
    x = draw(name, rng, described, 120)
    assert lowered.exact
    assert all(proof.f24 for proof in prove(lowered).values())
    np.testing.assert_array_equal(integers(lowered, forward(model, normalised(described, x))), graph.evaluate(lowered, x))


@pytest.mark.parametrize("per", ["channel", "element"])
@pytest.mark.parametrize("name", MODELS)
@or_refuses
def test_formats_per_channel_and_per_element_are_bit_for_bit(name: str, per: str) -> None:
    """Scales that calibration chose for every output or every weight, features of different exponents through pooling and concatenation."""
    rng = np.random.default_rng(13)
    described = describe(name, rng)
    x = draw(name, rng, described, 200)
    build(name, described, 2, NARROW).lower(described, ("a", "b"), SCORE)  # a model without a graph says so here
    modes = f",half_even,sat,per_{per}"
    asked = Precision(weights="fixed<6,auto>" + modes, bias="fixed<7,auto>" + modes, activations="ufixed<6,auto>" + modes, inputs="fixed<8,auto>")

    def built(precision: Precision | None) -> eqx.Module:
        model = build(name, described, 2, precision, **SMALL.get(name, {}))
        uneven = lambda a: a * 2.0 ** jax.random.randint(jax.random.key(1), (a.shape[0], *(1,) * (a.ndim - 1)), -3, 2)  # noqa: E731
        arrays, static = eqx.partition(model, eqx.is_inexact_array)
        return eqx.combine(jax.tree.map(uneven, arrays), static)

    chosen = calibrate(built, built(None), asked, normalised(described, x))
    model = built(chosen)
    found = [np.size(layer.formats.weights.f) for layer in dense_layers(model)]
    assert found == [layer.linear.weight.shape[0] if per == "channel" else layer.linear.weight.size for layer in dense_layers(model)]
    lowered = model.lower(described, ("a", "b"), SCORE)
    assert any(len(set(node.f.tolist())) > 1 for node in lowered.nodes if isinstance(node, graph.Affine))
    np.testing.assert_array_equal(integers(lowered, forward(model, normalised(described, x))), graph.evaluate(lowered, x))


@pytest.mark.parametrize("name", MODELS)
@or_refuses
def test_a_quantiser_that_leaves_the_grid_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison fails as soon as the quantiser is the textbook straight-through form, which is off the grid for large values."""
    rng = np.random.default_rng(11)
    described = describe(name, rng)
    quantise = _layers.quantise

    def naive(x: jax.Array, to: Format, key: jax.Array | None = None) -> jax.Array:
        return x + jax.lax.stop_gradient(quantise(x, to, key) - x)

    x = draw(name, rng, described, 200)
    model = build(name, described, 3, NARROW, scale=1e9)
    lowered = model.lower(described, ("a", "b"), SCORE)
    want = graph.evaluate(lowered, x)
    np.testing.assert_array_equal(integers(lowered, forward(model, normalised(described, x))), want)
    for module in (_layers, _pooling, exact):
        monkeypatch.setattr(module, "quantise", naive)
    jax.clear_caches()
    with pytest.raises(AssertionError):
        np.testing.assert_array_equal(integers(lowered, forward(model, normalised(described, x))), want)


MINIFLOATS = ["minifloat<2,1,0>,half_even", "minifloat<3,2,4>,floor", "minifloat<4,3,10>,half_up"]


# Each with one of them; all of them with each are left to the long tests.
WITH = [(case, to, case.marks or ([] if k % 3 == j else [pytest.mark.slow])) for k, case in enumerate(CASES) for j, to in enumerate(MINIFLOATS)]


@pytest.mark.parametrize(("name", "options", "activations"), [pytest.param(*case.values, to, marks=marks) for case, to, marks in WITH])
@or_refuses
def test_minifloat_activations_are_bit_for_bit(name: str, options: dict[str, object], activations: str) -> None:
    """In float32 and, of the last, in int32: ties, subnormal numbers and saturation through every layer and pool."""
    rng = np.random.default_rng(17)
    described = describe(name, rng)
    precision = Precision(weights="fixed<6,2>", bias="fixed<6,3>", activations=activations, inputs="fixed<8,4>")
    model = build(name, described, 4, precision, scale=3.0, **options, **SMALL.get(name, {}))
    lowered = model.lower(described, ("a", "b"), SCORE)
    x = draw(name, rng, described, 600)
    assert all(proof.f24 for proof in prove(lowered).values()) == (activations != MINIFLOATS[-1])
    np.testing.assert_array_equal(integers(lowered, forward(model, normalised(described, x))), graph.evaluate(lowered, x))
    for node in lowered.nodes:
        if isinstance(node, graph.Requant):
            assert node.quant.mantissa == parse_format(activations).mantissa


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name == "mlp" else [pytest.mark.slow]) for name in MODELS])
@or_refuses
def test_beyond_int32_training_comes_near_the_golden_model(name: str) -> None:
    """Sums of 24 bits times 24, and of E5M2: the forward rounds them in float32, the golden model holds them, and sums of E5M2 times E5M2 nobody."""
    rng = np.random.default_rng(7)
    described = describe(name, rng)
    x = draw(name, rng, described, 200)
    for formats in ({"weights": "fixed<24,3>", "activations": "ufixed<24,6>"}, {"weights": "fixed<9,3>", "activations": "minifloat<5,2,18>,half_even"}):
        precision = Precision(bias="fixed<10,3>", inputs="fixed<12,4>", **formats)
        model = build(name, described, 2, precision, **SMALL.get(name, {}))
        lowered = model.lower(described, ("a", "b"), SCORE)
        assert any(layer.formats.bound >= exact.EXACT_INT32 for layer in dense_layers(model))
        f = lowered.structure["output"].f
        want = np.ldexp(graph.evaluate(lowered, x).astype(np.float64), -f.astype(np.int32))
        found = forward(model, normalised(described, x))
        near = np.isclose(found, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
        assert near.mean() > 0.95  # a rounding in float32 may go to the other side of a tie
    wide = Precision(weights="minifloat<5,2>,half_even", bias="fixed<10,3>", activations="minifloat<5,2>,half_even", inputs="fixed<12,4>")
    with pytest.raises(UsageError, match="for training only") as caught:
        build(name, described, 2, wide, **SMALL.get(name, {})).lower(described, ("a", "b"), SCORE)
    assert caught.value.where.startswith("precision.layers.")


@pytest.mark.parametrize("name", MODELS)
@or_refuses
def test_wide_formats_run_in_int32(name: str) -> None:
    """Sums of hidden layers that exceed what float32 holds: the layer runs in int32, and the bits are still those of the golden model."""
    rng = np.random.default_rng(7)
    described = describe(name, rng)
    wide = Precision(weights="fixed<12,3>", bias="fixed<10,3>", activations="ufixed<12,5>", inputs="fixed<12,4>", layers={"logits": {"weights": "fixed<4,1>"}})
    model = build(name, described, 2, wide, scale=6.0, **SMALL.get(name, {}))
    lowered = model.lower(described, ("a", "b"), SCORE)
    x = draw(name, rng, described, 300)
    assert not all(proof.f24 for proof in prove(lowered).values())
    np.testing.assert_array_equal(integers(lowered, forward(model, normalised(described, x))), graph.evaluate(lowered, x))


@pytest.mark.parametrize("precision", [None, NARROW])
@pytest.mark.parametrize(("name", "options"), CASES)
@or_refuses
def test_padding_does_not_exist(name: str, options: dict[str, object], precision: Precision | None) -> None:
    """Whatever lies at index >= count, the logits and the gradients are the same."""
    rng = np.random.default_rng(2)
    described = describe(name, rng)
    clean = normalised(described, draw(name, rng, described, 200))
    model = build(name, described, 1, precision, **options)
    arrays, static = eqx.partition(model, eqx.is_inexact_array)

    def loss(a: eqx.Module, x: Features) -> jax.Array:
        return (eqx.combine(a, static)(x) ** 2).sum()

    want = eqx.filter_jit(eqx.filter_value_and_grad(loss))(arrays, clean)
    for garbage in (np.nan, 1e30):
        groups = dict(clean.groups)
        for g in described.groups:
            if g.length is not None:
                dirty = groups[g.name].copy()
                dirty[np.arange(g.length) >= clean.counts[g.name][:, None]] = garbage
                groups[g.name] = dirty
        found = eqx.filter_jit(eqx.filter_value_and_grad(loss))(arrays, Features(groups, clean.counts))
        assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True))


@pytest.mark.parametrize("precision", [None, NARROW])
@pytest.mark.parametrize("name", MODELS)
@or_refuses
def test_counts_are_respected(name: str, precision: Precision | None) -> None:
    """A constituent that is counted matters; counts beyond the length read the first `length`, negative ones none."""
    rng = np.random.default_rng(4)
    described = describe(name, rng)
    x = draw(name, rng, described, 200, garbage=1.0)
    model = build(name, described, 1, precision)
    full = normalised(described, Features(x.groups, {k: np.full_like(v, described[k].length) for k, v in x.counts.items()}))
    x = Features(full.groups, x.counts)
    none = Features(x.groups, {k: np.zeros_like(v) for k, v in x.counts.items()})
    over = Features(x.groups, {k: v + 5 for k, v in full.counts.items()})
    below = Features(x.groups, {k: v - 3 for k, v in none.counts.items()})
    assert not np.array_equal(forward(model, x), forward(model, full))
    np.testing.assert_array_equal(forward(model, over), forward(model, full))
    np.testing.assert_array_equal(forward(model, below), forward(model, none))


@pytest.mark.parametrize("name", MODELS)
def test_a_key_means_training(name: str) -> None:
    described = describe(name, np.random.default_rng(1))
    x = normalised(described, draw(name, np.random.default_rng(1), described, 50))
    model = build(name, described, 1, dropout=0.5)
    assert not np.array_equal(model(x, key=jax.random.key(1)), model(x, key=jax.random.key(2)))
    np.testing.assert_array_equal(model(x, key=jax.random.key(1)), model(x, key=jax.random.key(1)))
    np.testing.assert_array_equal(model(x), model(x))


@pytest.mark.parametrize("name", MODELS)
@or_refuses
def test_trace_names_every_layer_with_an_output_format(name: str) -> None:
    """Calibration relies on it: each layer that takes `activations` appears, with finite values."""
    rng = np.random.default_rng(1)
    described = describe(name, rng)
    model = build(name, described, 1, NARROW)
    traced = model.trace(normalised(described, draw(name, rng, described, 50)))
    lowered = {node.name.removesuffix("_out") for node in model.lower(described, ("a", "b"), SCORE).nodes if type(node).__name__ == "Requant"}
    assert lowered == set(traced)
    assert all(jnp.isfinite(v).all() for v in traced.values())

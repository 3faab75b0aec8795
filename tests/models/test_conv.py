from __future__ import annotations

import jax
import numpy as np
import pytest

from hlt_train.errors import UsageError
from hlt_train.graph import evaluate
from hlt_train.models.conv import ConvBranch, conv
from hlt_train.precision.config import Precision
from hlt_train.types import Features
from tests.students import NARROW, inputs, normalised, raw


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (4, 2), (2, 3)])
def test_full_collections_are_convolved_as_xla_does_it(kernel: int, stride: int) -> None:
    """Two layers in SAME form: a position at every stride-th constituent, the kernel's middle one at it."""
    rng = np.random.default_rng(1)
    described = inputs(rng, ("jets", 3, 12))
    x = normalised(described, raw(rng, described, 50))
    full = Features(x.groups, {"jets": np.full(50, 12, np.int32)})
    values = np.nan_to_num(x.groups["jets"])
    full.groups["jets"] = values
    model = conv(described, 2, jax.random.key(0), filters=(5, 4), kernel=kernel, stride=stride, rho=(), pool="flatten")
    branch = model.branches[0]
    assert isinstance(branch, ConvBranch)
    want = jax.numpy.asarray(values)
    for layer, window in zip(branch.phi, branch.windows, strict=True):
        w, b = layer.parameters()
        kernels = w.T.reshape(kernel, want.shape[-1], -1)
        padding = [(window.before, window.after)]
        want = jax.lax.conv_general_dilated(want, kernels, (stride,), padding, dimension_numbers=("NWC", "WIO", "NWC"), precision="highest")
        want = jax.nn.relu(want + b)
        assert want.shape[1] == window.positions == -(-(12 if layer is branch.phi[0] else branch.windows[0].positions) // stride)
    np.testing.assert_allclose(branch(full, None, None), want.reshape(50, -1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision", [None, NARROW])
def test_flattened_positions_keep_their_order_and_lower(precision: Precision | None) -> None:
    rng = np.random.default_rng(2)
    described = inputs(rng, ("event", 2, None), ("jets", 3, 7))
    x = raw(rng, described, 300)
    model = conv(described, 2, jax.random.key(3), filters=(6, 4), stride=2, rho=(5,), pool="flatten", precision=precision)
    lowered = model.lower(described, ("a", "b"), None if precision is None else np.array([1, -1], np.int64))
    found = np.asarray(model(normalised(described, x)))
    if precision is None:
        np.testing.assert_allclose(evaluate(lowered, x), found, rtol=2e-4, atol=2e-4)
        return
    f = lowered.structure["output"].f
    assert f is not None
    np.testing.assert_array_equal(np.ldexp(found.astype(np.float64), f.astype(np.int32)), evaluate(lowered, x))


def test_the_order_of_constituents_matters() -> None:
    rng = np.random.default_rng(3)
    described = inputs(rng, ("jets", 3, 7))
    x = normalised(described, raw(rng, described, 100))
    model = conv(described, 2, jax.random.key(0), filters=(6,), rho=())
    turned = x.groups["jets"].copy()
    for row, count in enumerate(x.counts["jets"]):
        turned[row, :count] = turned[row, :count][::-1]
    assert not np.allclose(model(x), model(Features({"jets": turned}, x.counts)), equal_nan=True)


def test_what_no_network_can_be_is_refused() -> None:
    jets, key = inputs(np.random.default_rng(1), ("jets", 2, 5)), jax.random.key(0)
    with pytest.raises(UsageError, match="'event' are scalars"):
        conv(inputs(np.random.default_rng(1), ("event", 2, None)), 2, key)
    with pytest.raises(UsageError, match="filters needs"):
        conv(jets, 2, key, filters=())
    with pytest.raises(UsageError, match="kernel and stride are at least 1, got 0 and 1"):
        conv(jets, 2, key, kernel=0)
    with pytest.raises(UsageError, match="'jets_conv_2' reads at most 2 positions"):
        conv(jets, 2, key, filters=(4, 4, 4), stride=2, kernel=6)

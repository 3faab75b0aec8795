from __future__ import annotations

import jax
import numpy as np
import pytest

from hlt_train.errors import UsageError
from hlt_train.models.deepsets import deepsets
from hlt_train.precision.config import Precision
from hlt_train.types import Features
from tests.students import NARROW, inputs, normalised, raw


@pytest.mark.parametrize("precision", [None, NARROW])
@pytest.mark.parametrize("pool", ["sum", "mean", "max"])
def test_the_order_of_constituents_does_not_matter(precision: Precision | None, pool: str) -> None:
    """Exactly for fixed point, to rounding for float."""
    rng = np.random.default_rng(1)
    described = inputs(rng, ("event", 2, None), ("jets", 3, 7))
    x = normalised(described, raw(rng, described, 200))
    shuffled = x.groups["jets"].copy()
    for row, count in enumerate(x.counts["jets"]):
        shuffled[row, :count] = rng.permutation(shuffled[row, :count], axis=0)
    model = deepsets(described, 2, jax.random.key(0), phi=(8, 6), rho=(5,), pool=pool, precision=precision)
    want, found = model(x), model(Features({**x.groups, "jets": shuffled}, x.counts))
    assert not np.array_equal(shuffled, x.groups["jets"])
    if precision is None:
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)
    else:
        np.testing.assert_array_equal(found, want)


def test_needs_constituents() -> None:
    with pytest.raises(UsageError) as caught:
        deepsets(inputs(np.random.default_rng(1), ("event", 2, None)), 2, jax.random.key(0))
    assert "'event' are scalars" in str(caught.value)
    assert "--model mlp" in str(caught.value)


def test_refuses_no_phi() -> None:
    with pytest.raises(UsageError, match="phi needs"):
        deepsets(inputs(np.random.default_rng(1), ("jets", 2, 40)), 2, jax.random.key(0), phi=())


def test_a_mean_is_whole_where_its_sums_and_quotients_fit() -> None:
    described = inputs(np.random.default_rng(1), ("jets", 2, 40))
    for phi, pool, whole in (("ufixed<8,2>", "ufixed<8,2>", True), ("ufixed<20,2>", "ufixed<8,2>", False), ("ufixed<8,2>", "ufixed<24,0>", False)):
        formats = Precision(weights="fixed<4,1>", bias="fixed<4,1>", activations=phi, layers={"jets_pool": {"activations": pool}})
        network = deepsets(described, 2, jax.random.key(0), phi=(4,), pool="mean", precision=formats)
        assert network.branches[0].pool is not None
        assert network.branches[0].pool.whole == whole

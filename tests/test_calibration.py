from __future__ import annotations

import jax
import numpy as np
import pytest

from hlt_train.calibration import calibrate, dense_layers, nearest_format, needs_calibration, provisional
from hlt_train.models.deepsets import deepsets
from hlt_train.precision.config import Precision
from hlt_train.precision.fixed import FixedFormat
from hlt_train.precision.formats import parse_format
from tests.students import inputs, normalised, raw

AUTO = FixedFormat(True, 8, None, "half_even", "sat")


def test_every_auto_becomes_a_number_that_the_network_takes() -> None:
    rng = np.random.default_rng(1)
    described = inputs(rng, ("event", 3, None), ("jets", 4, 6))
    x = normalised(described, raw(rng, described, 500))

    def build(precision: Precision | None) -> object:
        return deepsets(described, 2, jax.random.key(0), phi=(8,), rho=(6,), precision=precision)

    asked = Precision(layers={"rho_0": {"weights": "fixed<5,2>,floor,wrap"}})
    found = calibrate(build, build(None), asked, x)  # type: ignore[arg-type]
    assert set(found.layers) == {"jets_phi_0", "jets_pool", "rho_0", "logits"}
    assert found.layers["rho_0"]["weights"] == "fixed<5,2>,floor,wrap"
    assert not any("auto" in text for roles in found.layers.values() for text in roles.values())
    layers = dense_layers(build(found))  # type: ignore[arg-type]
    assert all(layer.formats is not None and layer.formats.bias.f <= layer.formats.f for layer in layers)
    pooled = parse_format(found.layers["jets_pool"]["activations"])
    assert pooled.hi * 2.0**-pooled.f > 1  # sums of six constituents


def test_the_range_decides() -> None:
    rng = np.random.default_rng(0)
    assert nearest_format(AUTO, rng.uniform(-0.9, 0.9, 10_000), "weights").integer == 1
    assert nearest_format(AUTO, rng.uniform(-7, 7, 10_000), "weights").integer == 4
    assert nearest_format(AUTO, rng.uniform(-0.01, 0.01, 10_000), "weights").integer == -5


def test_one_outlier_saturates_for_a_finer_step() -> None:
    values = np.random.default_rng(0).normal(0, 0.3, 100_000)
    values[0] = 5.0
    assert nearest_format(AUTO, values, "weights").integer < 4


def test_all_zero_values() -> None:
    assert nearest_format(AUTO, np.zeros(5), "weights").integer is not None


@pytest.mark.parametrize(("precision", "needed"), [(Precision(), True), (Precision("fixed<8,2>", "fixed<8,2>", "ufixed<8,2>", "fixed<10,auto>"), False)])
def test_who_needs_a_warm_up(precision: Precision, needed: bool) -> None:
    assert needs_calibration(precision) == needed
    assert not needs_calibration(provisional(precision))

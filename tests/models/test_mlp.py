from __future__ import annotations

import jax
import numpy as np
import pytest

from hlt_train.errors import UsageError
from hlt_train.models.mlp import mlp
from hlt_train.precision.config import Precision
from tests.students import NARROW, inputs

JETS = inputs(np.random.default_rng(1), ("event", 2, None), ("jets", 3, 5))


def test_parameters_are_those_of_the_layers() -> None:
    model = mlp(JETS, 2, jax.random.key(0), widths=(8,))
    assert [layer.linear.weight.shape for layer in model.layers] == [(8, 17), (2, 8)]
    assert [layer.name for layer in model.layers] == ["dense_0", "logits"]


def test_no_hidden_layer_is_a_linear_model() -> None:
    assert len(mlp(JETS, 2, jax.random.key(0), widths=(), precision=NARROW).layers) == 1


def test_the_key_decides_the_weights() -> None:
    first, again, other = (mlp(JETS, 2, jax.random.key(k)).layers[0].linear.weight for k in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"widths": (8, 0)}, "a width is at least 1"),
        ({"dropout": 1.0}, "[0, 1)"),
        ({"activation": "tanh", "precision": NARROW}, "--set model.activation=relu"),
        ({"dropout": 0.1, "precision": NARROW}, "off its grid"),
        ({"precision": Precision()}, "not chosen yet"),
        ({"precision": Precision(weights="fixed<8,2>", bias="fixed<20,2>", activations="ufixed<8,3>")}, "finer than its accumulators"),
        ({"precision": Precision(weights="fixed<8,2>", bias="fixed<8,2>", activations="pow2<4,1>")}, "activations are fixed point or minifloat"),
        ({"precision": Precision(layers={"dense_9": {"weights": "fixed<4,1>"}})}, "no layer 'dense_9'"),
    ],
)
def test_refusals(options: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        mlp(JETS, 2, jax.random.key(0), **options)  # type: ignore[arg-type]
    assert says in str(caught.value)

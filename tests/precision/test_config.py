from __future__ import annotations

import pytest

from hlt_train.errors import UsageError
from hlt_train.precision.config import Precision
from hlt_train.precision.formats import parse_format


def test_overrides_and_round_trip() -> None:
    made = Precision.from_config({"weights": "fixed<6,1>", "round": "half_up", "layers": {"dense_0": {"weights": "fixed<4,1>,floor,wrap"}}})
    assert str(made.format("dense_0", "weights")) == "fixed<4,1>,floor,wrap"
    assert str(made.format("dense_1", "weights")) == "fixed<6,1>,half_up,sat"
    assert str(made.format("jets", "inputs")) == "fixed<10,4>,half_even,sat"
    assert Precision.from_config(made.to_config()) == made


def test_with_format() -> None:
    made = Precision().with_format("logits", "bias", parse_format("fixed<8,1>,floor,sat"))
    assert str(made.format("logits", "bias")) == "fixed<8,1>,floor,sat"
    assert Precision().layers == {}


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"weigths": "fixed<8,2>"}, "nearest: weights"),
        ({"round": "half_evn"}, "nearest: half_even"),
        ({"over": "clip"}, "precision.over"),
        ({"inputs": "fixed<8,2>,floor,sat"}, "half_even and sat"),
        ({"layers": {"dense_0": {"weight": "fixed<8,2>"}}}, "nearest: weights"),
        ({"layers": {"dense_0": "fixed<8,2>"}}, "expected {layer: {role: format}}"),
        ({"layers": {"dense_0": {"bias": "fixd<8,2>"}}}, "not a number format"),
    ],
)
def test_refusals(config: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        Precision.from_config(config)
    assert says in str(caught.value)


def test_an_unknown_layer_names_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        Precision(layers={"dens_0": {"weights": "fixed<8,2>"}}).check(["dense_0", "logits"])
    assert "nearest: dense_0" in str(caught.value)

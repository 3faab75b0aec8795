"""Made-up students: the shape and the formats of real ones, the same each time, with costs that hardly differ from those of what is trained."""

from __future__ import annotations

import numpy as np
import pytest

from hlt_train.cost import cost
from hlt_train.errors import UsageError
from hlt_train.graph import Affine
from hlt_train.graph_document import to_document
from hlt_train.precision.config import Precision
from hlt_train.restore import ModelSpec
from hlt_train.specimen import specimen
from tests import students

PRECISION = Precision(weights="fixed<6,auto>", activations="ufixed<5,auto>").to_config()


def spec(model: dict[str, object], precision: dict[str, object] = PRECISION) -> ModelSpec:
    return ModelSpec.of({**model, "precision": precision}, ("a", "b"))._replace(score=(-1, 1))


def test_the_same_graph_again_with_formats_and_weights_of_their_kind() -> None:
    inputs = students.inputs(np.random.default_rng(1), ("event", 3, None), ("jets", 2, 4))
    wanted = spec({"name": "deepsets", "phi": [16, 8], "rho": [8]})
    graph = specimen(wanted, inputs)
    assert to_document(graph) == to_document(specimen(wanted, inputs))
    assert to_document(graph) != to_document(specimen(wanted, inputs, seed=1))
    layers = [node for node in graph.nodes if isinstance(node, Affine)]
    assert [node.w.shape for node in layers] == [(2, 16), (16, 8), (11, 8), (8, 2)]
    for node in (layers[0], layers[1], layers[3]):  # the weights of the third are shifted, to align the grids of what is joined before it
        assert node.w.min() >= -32  # six bits, and used
        assert node.w.max() <= 31
        assert np.abs(node.w).max() > 20
        assert np.mean(node.w == 0) < 0.2
    assert graph.output.score is not None
    assert cost(graph)["macs"] == 4 * (2 * 16 + 16 * 8) + 11 * 8 + 8 * 2


@pytest.mark.parametrize("weights", ["ternary<auto>", "minifloat<3,2>", "pow2<4,auto>", "fixed<4,auto>,half_even,sat,per_channel"])
def test_other_formats_of_weights(weights: str) -> None:
    inputs = students.inputs(np.random.default_rng(1), ("event", 3, None))
    graph = specimen(spec({"name": "mlp", "widths": [4]}, {**PRECISION, "weights": weights}), inputs)
    assert any(node.w.any() for node in graph.nodes if isinstance(node, Affine))


def test_a_network_that_cannot_be() -> None:
    inputs = students.inputs(np.random.default_rng(1), ("event", 3, None))
    with pytest.raises(UsageError, match="no layer 'dense_7'"):
        specimen(spec({"name": "mlp", "widths": [4]}, {**PRECISION, "layers": {"dense_7": {"weights": "fixed<4,1>"}}}), inputs)


def test_formats_that_follow_are_at_some_scale() -> None:
    inputs = students.inputs(np.random.default_rng(1), ("event", 3, None))
    moving = {**PRECISION, "weights": "dynamic<6>", "activations": "udynamic<6>"}
    fixed = {**PRECISION, "weights": "fixed<6,auto>", "activations": "ufixed<6,auto>"}
    a, b = (cost(specimen(spec({"name": "mlp", "widths": [4]}, precision), inputs)) for precision in (moving, fixed))
    assert a == b

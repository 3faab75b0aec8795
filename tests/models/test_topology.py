"""The topology classifier: the benchmark's number of parameters, what Keras' LSTM computes, padding skipped."""

from __future__ import annotations

import json
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import pytest

from hlt_train.data.card import load_card
from hlt_train.datasets.topology import write_topology
from hlt_train.errors import UsageError
from hlt_train.export import export
from hlt_train.fit import fit
from hlt_train.models._refusal import NoGraph
from hlt_train.models.topology import topology
from hlt_train.progress import Progress
from hlt_train.types import Features
from tests.runs import config
from tests.students import NARROW, inputs, normalised, raw

DESCRIBED = inputs(np.random.default_rng(1), ("particles", 4, 7), ("event", 2, None), classes=3)


def count(model: eqx.Module) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array)))


def test_as_many_parameters_as_the_benchmark() -> None:
    """Keras: LSTM 4 * (19 + 19 + 1) * 19 = 2,964, Dense 19 * 3 + 3 = 60. Of the embedded card too, whose other group is not used by default."""
    described = inputs(np.random.default_rng(1), ("particles", 19, 801), classes=3)
    model = topology(described, 3, jax.random.key(0))
    assert count(model.branches[0].cell) == 2964
    assert count(model) == 3024
    card = load_card("toy_topology")
    own = inputs(np.random.default_rng(1), *((name, len(g.vars), g.length) for name, g in card.inputs.items()), classes=3)
    assert count(topology(own, 3, jax.random.key(0))) == 3024
    assert count(topology(own, 3, jax.random.key(0), scalars=True)) == 3024 + 14 * 3


@eqx.filter_jit
def forward(model: eqx.Module, x: Features) -> jax.Array:
    return model(x)


def reference(model: eqx.Module, values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The LSTM of Hochreiter and Schmidhuber with forget gates, row by row in float64, reading `counts` constituents."""
    cell = model.branches[0].cell
    w, u, b = (np.asarray(a, np.float64) for a in (cell.weight_ih, cell.weight_hh, cell.bias))
    sigmoid = lambda v: 1 / (1 + np.exp(-v))  # noqa: E731
    logits = []
    for row, n in zip(values.astype(np.float64), counts, strict=True):
        h, c = np.zeros(cell.hidden_size), np.zeros(cell.hidden_size)
        for x in row[:n]:
            i, f, g, o = np.split(w @ x + u @ h + b, 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
        logits.append(np.asarray(model.logits.weight) @ h + np.asarray(model.logits.bias))
    return np.array(logits)


def test_it_is_an_lstm_over_the_real_constituents() -> None:
    x = normalised(DESCRIBED, raw(np.random.default_rng(2), DESCRIBED, 40))
    model = topology(DESCRIBED, 3, jax.random.key(0), width=5)
    np.testing.assert_allclose(forward(model, x), reference(model, x.groups["particles"], x.counts["particles"]), rtol=1e-5, atol=1e-5)


def test_longer_padding_changes_no_bit_and_order_matters() -> None:
    x = normalised(DESCRIBED, raw(np.random.default_rng(2), DESCRIBED, 40))
    model = topology(DESCRIBED, 3, jax.random.key(0))
    longer = inputs(np.random.default_rng(1), ("particles", 4, 12), ("event", 2, None), classes=3)
    padded = np.concatenate([x.groups["particles"], np.full((40, 5, 4), np.nan, np.float32)], axis=1)
    wide = topology(longer, 3, jax.random.key(0))
    np.testing.assert_array_equal(forward(model, x), forward(wide, Features({**x.groups, "particles": padded}, x.counts)))
    full = Features(x.groups, {"particles": np.full(40, 7, np.int32)})
    turned = Features({**x.groups, "particles": x.groups["particles"][:, ::-1]}, full.counts)
    assert not np.allclose(forward(model, full), forward(model, turned))


def test_forget_gates_start_open() -> None:
    bias = np.asarray(topology(DESCRIBED, 3, jax.random.key(0)).branches[0].cell.bias)
    np.testing.assert_array_equal(bias, [0] * 4 + [1] * 4 + [0] * 8)


def test_scalars_enter_only_when_asked() -> None:
    x = normalised(DESCRIBED, raw(np.random.default_rng(2), DESCRIBED, 40))
    other = Features({**x.groups, "event": x.groups["event"] + 1}, x.counts)
    for scalars in (False, True):
        model = topology(DESCRIBED, 3, jax.random.key(0), scalars=scalars)
        assert np.array_equal(forward(model, x), forward(model, other)) == (not scalars)


def test_refusals() -> None:
    with pytest.raises(UsageError, match="'event' are scalars") as caught:
        topology(inputs(np.random.default_rng(1), ("event", 2, None)), 2, jax.random.key(0))
    assert "--model mlp" in str(caught.value)
    with pytest.raises(UsageError, match="a width is at least 1"):
        topology(DESCRIBED, 3, jax.random.key(0), width=0)
    with pytest.raises(NoGraph, match="an LSTM has no node in the graph"):
        topology(DESCRIBED, 3, jax.random.key(0), precision=NARROW)
    with pytest.raises(NoGraph) as refused:
        topology(DESCRIBED, 3, jax.random.key(0)).lower(DESCRIBED, ("a", "b", "c"), None)
    assert refused.value.near[0] == "deepsets"
    assert "hlt-train distil" in str(refused.value)


def test_fit_learns_writes_working_points_and_export_refuses(tmp_path: Path) -> None:
    """Lists of 32 particles: from three classes alike to well above chance in a few epochs."""
    write_topology(tmp_path / "toy.root", 4500, 1, particles=32)
    card = load_card("toy_topology")
    card.samples["events"].files = [str(tmp_path / "toy.root")]
    card.inputs["particles"].length = 32
    result = fit(config(card, length="4epochs", model={"name": "topology"}, batch=100, learning_rate=0.01), tmp_path / "run", progress=Progress(quiet=True))
    assert result["parameters"] == 3024
    assert result["validation"]["accuracy"] > 0.65  # chance is 0.33
    points = json.loads((tmp_path / "run" / "working_points.json").read_text())["points"]
    assert [point["name"] for point in points] == ["tight", "medium", "loose"]
    assert points[0]["efficiency"]["value"] > 5 * points[0]["mistag"]["value"]
    with pytest.raises(NoGraph, match="topology has no graph"):
        export(tmp_path / "run", ["onnx"], tmp_path / "out", progress=Progress(quiet=True))
    assert not (tmp_path / "out").exists()

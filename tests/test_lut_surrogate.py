"""The surrogate of alkaid's estimate: what it counts, that it finds the constants that made the numbers, how near it comes to alkaid itself."""

from __future__ import annotations

import numpy as np
import pytest

from hlt_train import lut_surrogate
from hlt_train.errors import UsageError
from hlt_train.graph import Graph
from hlt_train.lut_surrogate import fit, predict
from hlt_train.precision.config import Precision
from hlt_train.restore import ModelSpec
from hlt_train.specimen import specimen
from tests import students


def network(widths: tuple[int, ...], bits: int, pool: str | None = None) -> Graph:
    precision = Precision(weights=f"fixed<{bits},auto>", activations=f"ufixed<{bits},auto>", inputs="fixed<8,4>").to_config()
    rng = np.random.default_rng(5)
    if pool is None:
        return specimen(ModelSpec.of({"name": "mlp", "widths": list(widths), "precision": precision}, ("a", "b")), students.inputs(rng, ("event", 6, None)))
    model = {"name": "deepsets", "phi": list(widths), "rho": [4], "pool": pool, "precision": precision}
    return specimen(ModelSpec.of(model, ("a", "b")), students.inputs(rng, ("event", 2, None), ("jets", 2, 4)))


def test_signed_digits() -> None:
    """The non-adjacent form has the fewest digits other than 0: 7 = 8 - 1, 11 = 8 + 4 - 1, -6 = -8 + 2."""
    assert lut_surrogate._digits(np.array([0, 1, 2, 3, 7, 11, -6, 15, 85])).tolist() == [0, 1, 1, 2, 2, 3, 2, 2, 4]


def test_a_fit_finds_what_made_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = [network((4,), 3), network((6, 3), 4), network((3,), 8), network((4,), 5, "sum"), network((8, 4, 4), 6), network((3,), 4, "max"), network((5,), 6)]

    def invented(graph: Graph, clock_ns: float) -> dict[str, float]:
        counted = lut_surrogate._counts(graph)
        luts = 0.6 * counted["digit_bits"] + 1.5 * counted["requant_bits"] + 0.5 * counted["mask_bits"]
        return {"luts": luts, "cycles": 0.0, "delay_ns": 0.5 * counted["layer"] + 0.7 * counted["levels"] + 0.2 * counted["pool"]}

    monkeypatch.setattr(lut_surrogate, "estimate_logic", invented)
    table = fit(graphs, 5.0, held_out=2)
    assert table["networks"] == 5
    assert table["luts"]["held_out"]["worst"] < 1e-6
    assert table["luts"]["constants"]["requant_bits"] == pytest.approx(1.5)
    found = predict(table, graphs[-1])
    assert found["luts"] == pytest.approx(invented(graphs[-1], 5.0)["luts"])
    assert found["cycles"] == np.ceil(invented(graphs[-1], 5.0)["delay_ns"] / 5.0)


def test_it_is_near_alkaid() -> None:
    """Fitted to three networks, it tells the LUTs of a fourth of twice their size within a third."""
    table = fit([network((4,), 4), network((6,), 6), network((4, 4), 3), network((10,), 5)], 5.0, held_out=1)
    assert table["luts"]["held_out"]["worst"] < 0.35
    assert predict(table, network((6,), 6))["luts"] > 1.5 * predict(table, network((4,), 4))["luts"]


def test_what_alkaid_cannot_hold_is_refused() -> None:
    error = {"constants": {}}
    with pytest.raises(UsageError, match="alkaid has no division"):
        predict({"clock_ns": 5.0, "luts": error, "delay_ns": error}, network((3,), 4, "mean"))

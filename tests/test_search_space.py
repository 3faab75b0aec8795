"""What a search varies: defaults from the card and the budget, proposals as a function of the choices, refusals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from hlt_train.budget import Budget
from hlt_train.calibration import dense_layers
from hlt_train.errors import UsageError
from hlt_train.precision.config import Precision
from hlt_train.restore import ModelSpec, outline
from hlt_train.search_space import Search, propose, space_of
from tests import students

TIME, LOGIC = Budget(network="100ns"), Budget(luts=5000)
GROUPS = {"event": None, "jets": 10}
PRECISION = Precision().to_config()


def test_defaults_come_from_the_card_and_the_budget() -> None:
    space = space_of(Search(), GROUPS, TIME, PRECISION)
    assert space.families == ("mlp", "deepsets", "conv")
    assert space.lengths == {"jets": (3, 5, 8, 10)}
    assert space.weights == ("fixed<8,auto>",)  # a processor's time depends little on them
    assert space_of(Search(), {"event": None}, TIME, PRECISION).families == ("mlp",)
    assert space_of(Search(), GROUPS, LOGIC, PRECISION).weights == tuple(f"fixed<{bits},auto>" for bits in (3, 4, 5, 6, 8))
    made = space_of(Search(weights=[4, "ternary<auto>"], inputs=[6]), GROUPS, TIME, PRECISION)
    assert (made.weights, made.inputs) == (("fixed<4,auto>", "ternary<auto>"), ("fixed<6,4>",))


@pytest.mark.parametrize("family", ["mlp", "deepsets", "conv"])
def test_a_proposal_is_a_network_whose_layers_have_their_formats(family: str) -> None:
    """Whatever is chosen, every layer that is named exists and every layer is named."""
    rng = np.random.default_rng(3)
    space = space_of(Search(families=[family], widths=[2, 3, 5], depth=[1, 2]), GROUPS, LOGIC, PRECISION)
    seen = set()
    for _ in range(6):

        def choose(name: str, values: Sequence[Any]) -> Any:
            return values[rng.integers(len(values))]

        proposal = propose(space, choose)
        seen.add(str(proposal))
        inputs = students.inputs(rng, ("event", 3, None), ("jets", 2, proposal.lengths["jets"]))
        precision = {**PRECISION, **proposal.precision}
        spec = ModelSpec.of({**proposal.model, "precision": precision}, ("a", "b"))
        assert {layer.name for layer in dense_layers(outline(spec._replace(precision=None), inputs))} == set(proposal.precision["layers"])
        Precision.from_config(precision).check(proposal.precision["layers"])
    assert len(seen) > 2


def test_only_open_choices_are_asked_for() -> None:
    asked: list[str] = []

    def first(name: str, values: Sequence[Any]) -> Any:
        asked.append(name)
        return values[0]

    search = Search(families=["mlp"], widths=[4, 8], depth=[2], constituents={"jets": [4]}, options={"temperature": [1.0, 2.0]})
    proposal = propose(space_of(search, GROUPS, TIME, PRECISION), first)
    assert asked == ["mlp_width_0", "mlp_width_1", "temperature"]
    assert (proposal.model, proposal.lengths, proposal.options) == ({"name": "mlp", "widths": [4, 4]}, {"jets": 4}, {"temperature": 1.0})
    assert str(proposal) == "mlp 4-4 of 4 jets, temperature 1.0"


def test_refusals() -> None:
    with pytest.raises(UsageError, match="the card has none"):
        space_of(Search(families=["deepsets"]), {"event": None}, TIME, PRECISION)
    with pytest.raises(UsageError, match="no constituents 'jet'") as caught:
        space_of(Search(constituents={"jet": [3]}), GROUPS, TIME, PRECISION)
    assert caught.value.near == ("jets",)
    with pytest.raises(UsageError, match="gives 10 of 'jets', not 12"):
        space_of(Search(constituents={"jets": [3, 12]}), GROUPS, TIME, PRECISION)
    with pytest.raises(UsageError, match="format"):
        space_of(Search(weights=["fixd<4,auto>"]), GROUPS, TIME, PRECISION)
    for wrong in ({"families": ["deepset"]}, {"widths": []}, {"weights": []}, {"options": {"temperature": []}}, {"factor": 1}, {"trails": 3}):
        with pytest.raises(ValidationError):
            Search.model_validate(wrong)

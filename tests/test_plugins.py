"""Discovery by file name, options from keyword-only parameters, refusals with the nearest name."""

from __future__ import annotations

import pytest

from hlt_train import plugins
from hlt_train.errors import UsageError


@pytest.mark.parametrize("room", plugins.ROOMS)
def test_every_plugin_loads_and_says_what_it_is(room: str) -> None:
    assert plugins.names(room)
    for name in plugins.names(room):
        assert plugins.factory(room, name).__name__ == name
        assert plugins.summary(room, name)
        for option in plugins.options(room, name).values():
            assert option.annotation is not option.empty, f"{room}.{name}: option {option.name} has no type"


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="no model is called 'mpl'") as caught:
        plugins.factory("models", "mpl")
    assert "mlp" in caught.value.near
    with pytest.raises(UsageError, match="no strategy is called"):
        plugins.factory("strategies", "snyc")


def test_options_are_checked_by_name_and_type() -> None:
    assert plugins.parse_options("models", "mlp", {"widths": [8, 4]})["widths"] == (8, 4)
    with pytest.raises(UsageError, match="no option 'width'") as caught:
        plugins.parse_options("models", "mlp", {"width": [8]})
    assert caught.value.near[0] == "widths"
    with pytest.raises(UsageError, match="option 'widths' of mlp"):
        plugins.parse_options("models", "mlp", {"widths": "wide"})

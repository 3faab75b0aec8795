"""What a budget is: texts and numbers, what fits, what is nearest."""

from __future__ import annotations

import pytest

from hlt_train.budget import Budget, parse_time, share, spelt


@pytest.mark.parametrize(("text", "ns"), [("100ns", 100.0), ("1.5 us", 1500.0), ("1ms", 1e6), ("2e-3s", 2e6), (40, 40.0), (".5us", 500.0)])
def test_times(text: str | int, ns: float) -> None:
    assert parse_time(text) == pytest.approx(ns, rel=1e-12)


@pytest.mark.parametrize("text", ["100", "ns", "-1ns", "0ns", "100 parsec", "1e400s", True])
def test_what_is_no_time(text: object) -> None:
    with pytest.raises(ValueError, match="time"):
        parse_time(text)


def test_shares() -> None:
    assert share("8kHz/100kHz") == pytest.approx(0.08)
    with pytest.raises(ValueError, match="two rates"):
        share("8kHz")
    with pytest.raises(ValueError, match="more events cannot reach"):
        share("100kHz/8kHz")


def test_the_worst_limit_decides() -> None:
    budget = Budget(network="100ns", luts=5000)
    assert budget.limits == {"network": 100.0, "luts": 5000.0}
    assert budget.fits({"network": 100.0, "luts": 5000.0, "macs": 1e9})
    assert not budget.fits({"network": 50.0, "luts": 5001.0})
    assert budget.worst({"network": 150.0, "luts": 2500.0}) == ("network", 1.5)
    assert budget.worst({}) == ("", 0.0)
    assert budget.told({"luts": 1234.0}) == "1,234 of 5,000 LUTs"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ({}, "needs a limit"),
        ({"luts": 100, "reached": "8kHz/100kHz"}, "scales the time of 'path'"),
        ({"macs": 100, "isa": "avx2"}, "belong to 'network' and 'path'"),
        ({"network": "100"}, "a time such as"),
        ({"path": "1ms", "reached": "8kHz"}, "two rates"),
    ],
)
def test_what_is_no_budget(content: dict[str, object], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        Budget.model_validate(content)


def test_costs_in_words() -> None:
    assert [spelt("network", v) for v in (87.31, 1234.0, 2e6)] == ["87.3 ns", "1.23 us", "2 ms"]
    assert spelt("macs", 1e6) == "1,000,000 multiply-accumulates"

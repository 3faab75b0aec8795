"""The expression language against NumPy and Awkward, and what it refuses."""

from __future__ import annotations

import awkward as ak
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hlt_train.data.expressions import parse
from hlt_train.errors import UsageError

X = np.array([1.0, -2.0, 3.5])
N = np.array([0, 1, 2])
PT = ak.Array([[3.0, 1.0, 2.0], [], [5.0]])
ETA = ak.Array([[0.1, -2.0, 0.3], [], [-1.0]])
COLUMNS = {"x": X, "n": N, "Jet_pt": PT, "Jet_eta": ETA, "jet.pt": PT}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x + 2 * n", X + 2 * N),
        ("-x ** 2 % 3", -(X**2) % 3),
        ("x // 2 + n / 4", X // 2 + N / 4),
        ("(x > 0) & ~(n == 2)", (X > 0) & ~(N == 2)),
        ("0 < x < 2", (X > 0) & (X < 2)),
        ("(n & 1) == 1", (N & 1) == 1),
        ("where(x > 0, x, -1)", np.where(X > 0, X, -1)),
        ("np.abs(x) + abs(x)", 2 * np.abs(X)),
        ("clip(x, -1, 1)", np.clip(X, -1, 1)),
        ("max(x, 0) + min(n, 1)", np.maximum(X, 0) + np.minimum(N, 1)),
        ("pi * n", np.pi * N),
        ("sum(Jet_pt)", [6.0, 0.0, 5.0]),
        ("count(Jet_pt)", [3, 0, 1]),
        ("max(Jet_pt, default=-1)", [3.0, -1.0, 5.0]),
        ("min(Jet_pt, default=0)", [1.0, 0.0, 5.0]),
        ("mean(Jet_pt, default=0)", [2.0, 0.0, 5.0]),
        ("any(Jet_pt > 2)", [True, False, True]),
        ("all(Jet_pt > 2)", [False, True, True]),
        ("nth(Jet_pt, 1, default=-9)", [1.0, -9.0, -9.0]),
        ("nth(sort_desc(Jet_pt), 1, default=-9)", [2.0, -9.0, -9.0]),
        ("sum(Jet_pt[Jet_eta > 0])", [5.0, 0.0, 0.0]),
        ("sum(Jet_pt * x)", [6.0, 0.0, 17.5]),
        ("sum(jet.pt)", [6.0, 0.0, 5.0]),
    ],
)
def test_values(text: str, expected: object) -> None:
    np.testing.assert_allclose(np.asarray(parse(text).evaluate(COLUMNS)), np.asarray(expected))


def test_jagged_values() -> None:
    assert parse("Jet_pt * 2").evaluate(COLUMNS).to_list() == [[6.0, 2.0, 4.0], [], [10.0]]
    assert parse("sort(Jet_pt)").evaluate(COLUMNS).to_list() == [[1.0, 2.0, 3.0], [], [5.0]]
    assert parse("where(Jet_eta > 0, Jet_pt, 0)").evaluate(COLUMNS).to_list() == [[3.0, 0.0, 2.0], [], [0.0]]


def test_empty_reductions_are_nan_and_bad_logarithms_infinite() -> None:
    assert np.isnan(parse("max(Jet_pt)").evaluate(COLUMNS)).tolist() == [False, True, False]
    assert parse("log(n)").evaluate(COLUMNS)[0] == -np.inf


def test_names_and_constants() -> None:
    assert parse("log(x) + np.pi + Jet_pt").names == {"x", "Jet_pt"}
    assert parse("1").names == frozenset()
    assert parse("1").evaluate({}) == 1


@pytest.mark.parametrize(
    ("text", "aligned"),
    [
        ("Jet_pt * 2 > x", True),
        ("where(Jet_eta > 0, 1, 0)", True),
        ("sum(Jet_pt)", False),
        ("Jet_pt / sum(Jet_pt)", True),
        ("Jet_pt[Jet_pt > 1]", False),
        ("sort(Jet_pt)", False),
        ("x + 1", False),
        ("max(Jet_pt, axis=2)", True),
    ],
)
def test_follows_the_objects(text: str, aligned: bool) -> None:
    assert parse(text).follows(frozenset({"Jet_pt", "Jet_eta"})) is aligned


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lag(x)", "unknown function 'lag', at column 1"),
        ("x +", "not an expression"),
        ("__import__('os').system('ls')", "unknown function"),
        ("x.__class__()", "unknown function"),
        ("'text'", "Constant is not in the expression language"),
        ("[1, 2]", "List is not in the expression language"),
        ("lambda: 1", "Lambda is not in the expression language"),
        ("x and n", "do not work entry by entry"),
        ("not x", "do not work entry by entry"),
        ("x > 1 & n < 2", "bind more tightly"),
        ("(n & x == 1)", "bind more tightly"),
        ("Jet_pt[0]", "an index must be a jagged mask"),
        ("Jet_pt[0:1]", "an index must be a jagged mask"),
        ("log(x, n)", r"log\(\) takes 1 arguments, got 2"),
        ("max(Jet_pt, defalt=1)", r"max\(\) has no option 'defalt'"),
        ("max(Jet_pt, default=x)", "must be a number"),
        ("np.foo", "unknown constant"),
        ("sum(x).y", "attribute of a value"),
        ("x if n else 1", "IfExp"),
    ],
)
def test_refusals(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse(text)


def test_nearest_function_is_named() -> None:
    with pytest.raises(UsageError) as caught:
        parse("sqr(x)")
    assert "sqrt" in caught.value.near


@pytest.mark.parametrize("text", ["sum(x)", "nth(x, 0)", "nth(Jet_pt, n)", "Jet_pt + Jet_pt[Jet_pt > 1]"])
def test_wrong_shapes_are_errors_with_shapes(text: str) -> None:
    with pytest.raises(UsageError, match="cannot evaluate") as caught:
        parse(text).evaluate(COLUMNS)
    assert "x: (3,)" in caught.value.where or "Jet_pt: 3 * var" in caught.value.where


_LEAVES = st.sampled_from(["x", "n", "1.5", "2"])


@given(st.recursive(_LEAVES, lambda e: st.tuples(e, st.sampled_from(["+", "-", "*", "<", "=="]), e).map(lambda t: f"({t[0]} {t[1]} {t[2]})"), max_leaves=8))
def test_arithmetic_agrees_with_python(text: str) -> None:
    try:
        expected = eval(text, {"x": X, "n": N})
    except TypeError:  # NumPy has no boolean subtract: neither has the language
        with pytest.raises(UsageError):
            parse(text).evaluate(COLUMNS)
        return
    np.testing.assert_array_equal(parse(text).evaluate(COLUMNS), expected)

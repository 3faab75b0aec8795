"""The rate-aware objective: its gradient against the efficiency at a fixed rate, its threshold, and the weights that never mix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import expit

from hlt_train.data.dataset import open_dataset
from hlt_train.errors import UsageError
from hlt_train.rate_objective import BACKGROUND, ROWS, SIGNAL, THRESHOLD, RateObjective, discriminant_in, rate_rows
from hlt_train.trigger.discriminant import Discriminant, discriminant
from hlt_train.types import Batch, Features
from tests.rootfiles import card, event_columns, write_tree

RNG = np.random.default_rng(5)
N = 4000
SIDE = np.arange(N) % 2  # signal is 1
X = RNG.normal(0, 1, (N, 2)) + SIDE[:, None] * np.array([2.0, 0.5])
RATE = 0.05


def batch(weight: np.ndarray | None = None, rate: np.ndarray | None = None) -> Batch:
    r = np.ones(N) if rate is None else rate
    u, b = np.where(SIDE, r, 0), np.where(SIDE, 0, r)
    extra = {SIGNAL: N * u / u.sum(), BACKGROUND: N * b / b.sum() / RATE, ROWS: np.ones(N)}
    columns = {name: jnp.asarray(values, jnp.float32) for name, values in extra.items()}
    return Batch(Features({}, {}), jnp.asarray(SIDE, jnp.int32), jnp.asarray(np.ones(N) if weight is None else weight, jnp.float32), columns)


def soft_efficiency(w: np.ndarray, width: float, rate: np.ndarray | None = None) -> tuple[float, float]:
    """Efficiency and threshold where the soft rate is RATE, by root finding in float64."""
    score, r = X @ w, np.ones(N) if rate is None else rate

    def mean(t: float, side: int) -> float:
        return float(np.average(expit((score - t) / width)[side == SIDE], weights=r[side == SIDE]))

    t = brentq(lambda t: mean(t, 0) - RATE, -20, 20)
    return mean(t, 1), t


def state(objective: RateObjective, w: np.ndarray, t: float, rows: Batch) -> dict[str, Any]:
    """The companion when its densities have settled at threshold t."""
    start = {THRESHOLD: {**{k: jnp.zeros(()) for k in ("signal", "background", "rows")}, "threshold": jnp.float32(t)}}
    score = jnp.asarray(X @ w, jnp.float32)
    seen = jax.grad(lambda others: objective.loss(score, rows, others))(start)[THRESHOLD]
    return {THRESHOLD: {**seen, "threshold": jnp.float32(t)}}


@pytest.mark.parametrize("width", [0.3, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_gradient_is_that_of_the_efficiency_at_the_rate(width: float, weighted: bool) -> None:
    """Against differences of the efficiency whose threshold was found anew for each network."""
    rate = RNG.uniform(0.2, 3, N) if weighted else None
    objective, rows, w = RateObjective("tight", width=width, weight=2.0), batch(rate=rate), np.array([1.5, 0.7])
    others = state(objective, w, soft_efficiency(w, width, rate)[1], rows)
    found = jax.grad(lambda v: objective.loss(jnp.asarray(X, jnp.float32) @ v, rows, others))(jnp.asarray(w, jnp.float32))
    want = [(soft_efficiency(w + h, width, rate)[0] - soft_efficiency(w - h, width, rate)[0]) / 2e-4 for h in 1e-4 * np.eye(2)]
    np.testing.assert_allclose(found, -2 * np.array(want), rtol=2e-3, atol=2e-4)


def test_the_threshold_settles_where_the_rate_is_the_working_points() -> None:
    """From far below, on batches of 64 rows with three background rows above the threshold in two; and it follows a score that moves."""
    objective, w, rows = RateObjective("tight", gain=0.03), np.array([1.5, 0.7]), batch()
    companion = objective.companions()[THRESHOLD]
    rule = companion.optimiser(None)  # type: ignore[arg-type]
    whole = X @ w
    exact = np.quantile(whole[SIDE == 0], 1 - RATE)

    def step(others: Any, drawn: Any) -> Any:
        pick, shift = drawn
        part = jax.tree.map(lambda leaf: leaf[pick], rows)
        seen = jax.grad(lambda o: objective.loss(jnp.asarray(whole, jnp.float32)[pick] + shift, part, {THRESHOLD: o}))(others)
        moved = jax.tree.map(lambda a, b: a + b, others, rule.update(seen, None, others)[0])
        return moved, moved["threshold"]

    picks = np.random.default_rng(0).integers(0, N, (3000, 64))
    shifts = np.where(np.arange(3000) < 1500, 0, 2).astype(np.float32)
    _, found = jax.lax.scan(step, companion.start, (jnp.asarray(picks), jnp.asarray(shifts)))
    for shift in (0.0, 2.0):
        settled = (shifts == shift) & (np.arange(3000) % 1500 > 600)
        assert np.mean(np.asarray(found)[settled]) == pytest.approx(exact + shift, abs=0.06)


def test_padding_rows_do_not_count() -> None:
    """A batch whose last half is padding reports to the threshold what its first half would."""
    objective, w = RateObjective("tight"), np.array([1.5, 0.7])
    rows = batch()
    padded = jax.tree.map(lambda leaf: jnp.concatenate([leaf, jnp.zeros_like(leaf)]), rows)
    companion = objective.companions()[THRESHOLD]
    rule = companion.optimiser(None)  # type: ignore[arg-type]
    moved = []
    for part in (rows, padded):
        score = jnp.asarray(np.resize(X @ w, len(part.label)), jnp.float32)
        seen = jax.grad(lambda o, part=part, score=score: objective.loss(score, part, {THRESHOLD: o}))(companion.start)
        moved.append({k: float(v) for k, v in rule.update(seen, None, companion.start)[0].items() if k != "rows"})
    assert moved[0] == pytest.approx(moved[1], rel=1e-5)


def test_training_weights_do_not_enter() -> None:
    objective, w = RateObjective("tight"), np.array([1.5, 0.7])
    others = state(objective, w, 1.0, batch())
    score = jnp.asarray(X @ w, jnp.float32)
    found = [objective.loss(score, batch(weight=weight), others) for weight in (None, RNG.uniform(0, 9, N))]
    assert float(found[0]) == float(found[1])


def test_the_score_is_the_cards_discriminant() -> None:
    spec = Discriminant.of({"t": 1.0}, {"g": 1.0, "q": 3.0}, ("g", "q", "W", "t"))
    logits = RNG.normal(0, 2, (20, 5))
    signal, background = np.array([0, 0, 0, 1], np.float32), np.array([0.25, 0.75, 0, 0], np.float32)
    found = discriminant_in(jnp.asarray(logits, jnp.float32), 4, signal, background, head=False)
    np.testing.assert_allclose(found, discriminant(logits, ("g", "q", "W", "t"), spec), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(discriminant_in(jnp.asarray(logits, jnp.float32), 4, signal, background, head=True), logits[:, 4].astype(np.float32))


POINTS = {"tight": "50 Hz", "tag": "mistag 4%", "half": "eff 50%"}
TRIGGER = {"rate": {"all": {"input_rate": "2 kHz"}}, "rate_weight": "weight", "working_points": POINTS}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    columns = event_columns(500)
    columns["weight"] = np.random.default_rng(1).uniform(0.5, 2, 500).astype(np.float32)
    return write_tree(tmp_path_factory.mktemp("rates") / "events.root", columns)


def test_rate_weights_make_means_efficiencies_and_rates(file: Path) -> None:
    with open_dataset(card(file, trigger=TRIGGER, weights={"expression": "1"})) as dataset:
        rows = next(dataset.iterate("train"))
        tight, tag = rate_rows(dataset, "tight"), rate_rows(dataset, "tag")
    signal = rows.label == 1
    assert tight[BACKGROUND].mean() == pytest.approx(2000 / 50)  # of the sample, signal and all
    assert tag[BACKGROUND].mean() == pytest.approx(1 / 0.04)
    assert not tag[BACKGROUND][signal].any()
    for found in (tight, tag):
        np.testing.assert_allclose(found[SIGNAL][signal], rows.rate_weight[signal] * len(rows) / rows.rate_weight[signal].sum(), rtol=1e-6)
        assert not found[SIGNAL][~signal].any()


def test_training_weights_change_no_rate_row(file: Path) -> None:
    found = []
    for expression in ("1", "x * x"):
        with open_dataset(card(file, trigger=TRIGGER, weights={"expression": expression})) as dataset:
            found.append(rate_rows(dataset, "tight"))
    assert all(np.array_equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize(("point", "says"), [("tigth", "no working point 'tigth'"), ("half", "asks for an efficiency, which leaves nothing to gain")])
def test_working_points_that_are_none(file: Path, point: str, says: str) -> None:
    with open_dataset(card(file, trigger=TRIGGER)) as dataset, pytest.raises(UsageError) as caught:
        rate_rows(dataset, point)
    assert says in str(caught.value)
    assert caught.value.near[:2] == ("tight", "tag")


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"name": "rate", "working_point": "tight", "widht": 1}, "nearest: width"),
        ({"name": "raet", "working_point": "tight"}, "nearest: rate"),
        ({"name": "rate"}, "needs a working point"),
        ({"name": "rate", "working_point": "tight", "memory": 1}, "below 1"),
        ({"name": "rate", "working_point": "tight", "width": 0}, "above 0"),
    ],
)
def test_sections_that_are_none(section: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        RateObjective.from_config(section)
    assert says in str(caught.value)

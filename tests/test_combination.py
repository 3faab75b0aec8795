"""The distribution of an ensemble: the minimum of a sum of divergences, against closed forms, derivatives and one more way to find it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, logsumexp, softmax

from hlt_train.combination import Expert, active, combine, gradient, mean_of, objective
from hlt_train.errors import RunFailed

RNG = np.random.default_rng(3)
SETS = ((0, 1), (1, 2, 4), (3, 4))


def distributions(n: int, classes: int, spread: float = 2.0) -> np.ndarray:
    return np.asarray(log_softmax(RNG.normal(0, spread, (n, classes)), axis=1))


def marginal(log_p: np.ndarray, members: tuple[int, ...]) -> Expert:
    """A specialist that says what a distribution over all classes says."""
    rest = [c for c in range(log_p.shape[1]) if c not in members]
    return Expert(members, np.concatenate([log_p[:, list(members)], logsumexp(log_p[:, rest], axis=1, keepdims=True)], axis=1))


def experts(n: int) -> list[Expert]:
    return [Expert(members, distributions(n, len(members) + 1)) for members in SETS]


def everywhere(log_p: np.ndarray, some: list[Expert]) -> np.ndarray:
    return combine(log_p, some, np.ones((len(log_p), len(some)), bool))


def test_without_an_active_specialist_the_generalist_stays() -> None:
    log_p = distributions(20, 5)
    np.testing.assert_array_equal(combine(log_p, experts(20), np.zeros((20, 3), bool)), log_p)
    np.testing.assert_array_equal(combine(log_p, [], active(log_p, [], 1)), log_p)


def test_a_specialist_that_agrees_changes_nothing() -> None:
    log_p = distributions(50, 5)
    np.testing.assert_allclose(everywhere(log_p, [marginal(log_p, members) for members in SETS]), log_p, rtol=0, atol=1e-11)


def test_three_classes_by_hand() -> None:
    """p_g = (.5, .3, .2); a specialist of {0, 1} says (.2, .6), dustbin .2. Members: means (.35, .45); the dustbin's one class: (.2 + .2) / 2."""
    found = everywhere(np.log([[0.5, 0.3, 0.2]]), [Expert((0, 1), np.log([[0.2, 0.6, 0.2]]))])
    np.testing.assert_allclose(np.exp(found), [[0.35, 0.45, 0.2]], rtol=1e-12)


def test_one_specialist_in_closed_form() -> None:
    """Members get the mean of both; the dustbin's classes share out the mean of the two dustbins as the generalist does."""
    log_p, members = distributions(200, 6, 4.0), (1, 2, 5)
    expert = Expert(members, distributions(200, 4, 4.0))
    p, own, rest = np.exp(log_p), np.exp(expert.log_p), [0, 3, 4]
    wanted = np.empty_like(p)
    wanted[:, members] = (p[:, members] + own[:, :-1]) / 2
    total = p[:, rest].sum(axis=1, keepdims=True)
    wanted[:, rest] = p[:, rest] / total * (total + own[:, -1:]) / 2
    np.testing.assert_allclose(np.exp(everywhere(log_p, [expert])), wanted, rtol=1e-11)


def test_specialists_that_leave_one_class_out_are_averaged() -> None:
    """A dustbin of one class hides nothing: F is then a sum of KL(p, q), whose minimum is the arithmetic mean."""
    whole = [distributions(100, 4) for _ in range(3)]
    found = everywhere(whole[0], [marginal(whole[1], (0, 1, 2)), marginal(whole[2], (1, 2, 3))])
    np.testing.assert_allclose(np.exp(found), np.mean(np.exp(whole), axis=0), rtol=1e-11)


def test_the_gradient_vanishes_and_is_the_derivative() -> None:
    """F in logits, differentiated by JAX in float64, at a random point and at the solution."""
    log_p, some = distributions(40, 5, 3.0), experts(40)

    def total(z: jax.Array) -> jax.Array:
        log_q = jax.nn.log_softmax(z, axis=1)
        found = -jnp.sum(jnp.exp(log_p) * log_q)
        for expert in some:
            rest = np.array([c for c in range(5) if c not in expert.members])
            dustbin = jax.nn.logsumexp(log_q[:, rest], axis=1, keepdims=True)
            found -= jnp.sum(jnp.exp(expert.log_p) * jnp.concatenate([log_q[:, np.array(expert.members)], dustbin], axis=1))
        return found

    log_q = everywhere(log_p, some)
    with jax.enable_x64(True):
        for point, size in ((distributions(40, 5), None), (log_q, 1e-10)):
            derivative = np.asarray(jax.grad(total)(jnp.asarray(point)))
            np.testing.assert_allclose(gradient(point, log_p, some), derivative, atol=1e-11)
            assert size is None or np.abs(derivative).max() < size
    np.testing.assert_allclose(logsumexp(log_q, axis=1), 0, atol=1e-11)


def test_another_minimiser_finds_nothing_lower() -> None:
    log_p, some = distributions(8, 5), experts(8)
    log_q = everywhere(log_p, some)
    least = objective(log_q, log_p, some)
    for row in range(8):
        mine = [Expert(e.members, e.log_p[row : row + 1]) for e in some]

        def cost(z: np.ndarray, row: int = row, mine: list[Expert] = mine) -> float:
            return float(objective(log_softmax(z)[None], log_p[row : row + 1], mine)[0])

        found = minimize(cost, log_p[row], tol=1e-10)
        assert found.fun == pytest.approx(least[row], abs=1e-9)
        np.testing.assert_allclose(softmax(found.x), np.exp(log_q[row]), atol=1e-5)


def test_a_row_does_not_depend_on_the_others() -> None:
    log_p, some = distributions(30, 5), experts(30)
    on = active(log_p, SETS, 2)
    assert len(np.unique(on, axis=0)) > 1
    whole = combine(log_p, some, on)
    for row in (0, 7, 29):
        alone = combine(log_p[[row]], [Expert(e.members, e.log_p[[row]]) for e in some], on[[row]])
        np.testing.assert_array_equal(alone[0], whole[row])


def test_probabilities_that_float64_cannot_hold() -> None:
    log_p = np.asarray(log_softmax([[0.0, -900.0, -2000.0, 0.0]], axis=1))
    found = everywhere(log_p, [Expert((0, 3), np.asarray(log_softmax([[0.0, 0.0, -3000.0]], axis=1)))])
    assert np.isfinite(found).all()
    assert found[0, 1] - found[0, 2] == pytest.approx(1100.0)


def test_what_is_not_finite_is_refused() -> None:
    log_p = distributions(3, 5)
    bad = Expert((0, 1), np.full((3, 3), np.nan))
    with pytest.raises(RunFailed, match="not finite"):
        everywhere(log_p, [bad])


def test_active_sets() -> None:
    log_p = np.log([[0.6, 0.3, 0.1], [0.1, 0.3, 0.6], [0.4, 0.2, 0.4]])
    assert active(log_p, [(0, 1), (1, 2)], 1).tolist() == [[True, False], [False, True], [True, False]]  # of equals the first
    assert active(log_p, [(0, 1), (2,)], 2).tolist() == [[True, False], [True, True], [True, True]]


@pytest.mark.parametrize("how", ["geometric", "arithmetic"])
def test_means(how: str) -> None:
    logits = RNG.normal(0, 2, (3, 10, 4))
    weights = np.array([[1.0], [2.0], [0.0]]) * np.ones(10)
    logits[2] = np.nan  # what has no weight is not looked at
    p = softmax(logits[:2], axis=2)
    wanted = (p[0] + 2 * p[1]) / 3 if how == "arithmetic" else (p[0] * p[1] ** 2) ** (1 / 3)
    wanted /= wanted.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(np.exp(mean_of(logits, weights, how)), wanted, rtol=1e-12)  # type: ignore[arg-type]

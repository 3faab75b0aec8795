"""Sandblaster: its direction against three others, and a result that knows nothing of workers, arrivals, copies and deaths."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from hlt_train.errors import UsageError
from hlt_train.strategies import In, Info, Strategy
from hlt_train.strategies.sandblaster import PATIENCE, sandblaster
from tests import convex
from tests.drive import Drive

P, ROWS, N = 8, 32, 9
M = 4


def problem() -> tuple[np.ndarray, np.ndarray]:
    """`[P, ROWS, 6]` and `[P, ROWS]`: a fit that is not convex, with inputs of different sizes."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(P, ROWS, 6)) * np.array([1, 3, 0.3, 1, 2, 0.5])
    y = np.tanh(x @ np.array([1, -2, 3, 0.5, 1, 0])) + 0.1 * rng.normal(size=(P, ROWS))
    return x.astype(np.float32), y.astype(np.float32)


X, Y = map(jnp.asarray, problem())
START = np.zeros(N, np.float32)


def loss(v: Any, x: Any, y: Any) -> Any:
    return jnp.mean((jnp.tanh(x @ v[:6] + v[6:].sum()) - y) ** 2) + 1e-3 * (v**2).sum()


def gradient(v: Any, _k: Any, number: Any, _key: Any) -> Any:
    return jax.value_and_grad(loss)(v, X[number % P], Y[number % P])


def rule(workers: int = 1, portions: int = P, **options: Any) -> Strategy:
    return sandblaster(convex.setup(optax.sgd(0.1), workers, portions=portions), **{"m": M, **options})


RULE = rule(3)  # the number of workers in it is only that of its patience
INFO = Info(0, 1, jax.random.key(0))


def whole_rounds(made: Strategy, rounds: int, gradient: Any = gradient, start: Any = START) -> list[Any]:
    """One worker, compiled as one loop over exchanges: the server after each round (it runs the same functions, hence the same bits as any other)."""
    w, s = made.init_worker(jnp.asarray(start), INFO), made.init_server(jnp.asarray(start), INFO)
    head = In((), *map(jnp.asarray, (True, True, 0, 0)))

    @jax.jit
    def one_round(state: Any) -> Any:
        def exchange(_: Any, state: Any) -> Any:
            w, s = state
            number = made.batch(w)
            w, out = made.ask(made.step(w, *gradient(made.point(w), 0, number, None)), INFO.key)
            messages = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], head._replace(body=out.body, push=out.push))
            s, answers = made.serve(s, messages, made.measure(s, messages))
            return made.take(w, jax.tree.map(lambda leaf: leaf[0], answers), head), s

        return jax.lax.fori_loop(0, state[1].got.shape[0], exchange, state)

    w = w._replace(number=jnp.zeros_like(w.number))  # as if portion 0 had been handed out
    s = s._replace(given=s.given.at[0].set(1))
    found = []
    for _ in range(rounds):
        w, s = one_round((w, s))
        found.append(jax.device_get(s))
    return found


@functools.cache
def plain_rounds() -> list[Any]:
    return whole_rounds(RULE, 45)


def bits(d: Drive) -> bytes:
    """Everything that the coordinator and the shards know, but for who holds what."""
    s = d.s[0]
    return b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves((s.base, s.trial, s.direction, s.basis, s.search, s.round)))


def drive(made: Strategy, workers: int, seed: int, rounds: int, deaths: tuple[int, ...] = (), shards: int = 1) -> Drive:
    """Workers in random order until so many rounds are done; who dies does so while it holds a portion of the second round."""
    d = Drive(made, START, gradient, workers, shards)
    rng = np.random.default_rng(seed)
    while int(d.s[0].round) < rounds:
        if int(d.s[0].round) == 1:
            d.live -= set(deaths)
        d.run([int(rng.choice(sorted(d.live)))])
    return d


def two_loops(g: np.ndarray, s: list[np.ndarray], y: list[np.ndarray]) -> np.ndarray:
    """Nocedal and Wright, algorithm 7.4, on vectors in float64; pairs from the oldest to the newest."""
    q, alphas = g.copy(), []
    for a, b in zip(reversed(s), reversed(y), strict=True):
        alphas.append(a @ q / (a @ b))
        q -= alphas[-1] * b
    q *= s[-1] @ y[-1] / (y[-1] @ y[-1])
    for a, b, alpha in zip(s, y, reversed(alphas), strict=True):
        q += (alpha - b @ q / (a @ b)) * a
    return -q


def accepted(rounds: int) -> list[Any]:
    """The server at each accepted point."""
    found = plain_rounds()[:rounds]
    return [s for before, s in zip([None, *found], found, strict=False) if before is None or s.accepted > before.accepted]


def test_the_direction_is_that_of_two_loops_over_vectors_and_of_optax() -> None:
    points = [(s.base, s.basis[2 * M], s.direction) for s in accepted(14)]
    assert len(points) >= 10
    s, y = [], []
    tx = optax.scale_by_lbfgs(memory_size=M)
    state, update = tx.init(jnp.asarray(START)), jax.jit(tx.update)
    for k, (base, g, direction) in enumerate(points):
        updates, state = update(g, state, base)
        if k == 0:
            np.testing.assert_array_equal(direction, -g)
            continue
        s.append(base.astype(np.float64) - points[k - 1][0])
        y.append(g.astype(np.float64) - points[k - 1][1])
        want = two_loops(g.astype(np.float64), s[-M:], y[-M:])
        scale = np.abs(want).max()
        np.testing.assert_allclose(direction, want, atol=2e-4 * scale, rtol=0)
        np.testing.assert_allclose(direction, -updates, atol=1e-3 * scale, rtol=0)  # optax loops over vectors in float32


def test_shards_give_what_one_server_gives() -> None:
    one, cut = drive(RULE, 1, 0, 5), drive(RULE, 1, 0, 5, shards=3)
    for name in ("base", "trial", "direction"):
        a, b = (np.concatenate([np.asarray(getattr(s, name)) for s in d.s]) for d in (one, cut))
        np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(a).max(), rtol=0)
    np.testing.assert_allclose(one.params(), cut.params(), rtol=1e-4)
    for s in cut.s[1:]:
        assert convex.same(jax.device_get((s.search, s.got, s.given, s.round)), jax.device_get((cut.s[0].search, cut.s[0].got, cut.s[0].given, cut.s[0].round)))


@functools.cache
def reference() -> bytes:
    return bits(drive(RULE, 1, 0, 3))


@settings(max_examples=5)
@given(st.integers(0, 2**32 - 1))
def test_arrivals_copies_and_deaths_change_no_bit(seed: int) -> None:
    assert bits(drive(RULE, 3, seed, 3)) == reference()
    assert bits(drive(RULE, 3, seed, 3, deaths=(0, 2))) == reference()


@pytest.mark.parametrize("workers", [2, P, P + 3])
def test_the_number_of_workers_changes_no_bit(workers: int) -> None:
    assert bits(drive(RULE, workers, workers, 3)) == reference()


def test_the_number_of_copies_changes_no_bit() -> None:
    d = Drive(RULE, START, gradient, 5)
    d.s[0] = d.s[0]._replace(copies=jnp.asarray(9))  # of the first round
    rng = np.random.default_rng(0)
    while int(d.s[0].round) < 3:
        d.run([int(rng.integers(5))])
    assert bits(d) == reference()


def test_the_size_of_the_portions_changes_only_the_rounding() -> None:
    def larger(portions: int) -> Any:
        x, y = (a.reshape(portions, -1, *a.shape[2:]) for a in (X, Y))
        return lambda v, _k, number, _key: jax.value_and_grad(loss)(v, x[number % portions], y[number % portions])

    for a, b in zip(plain_rounds()[:4], whole_rounds(rule(portions=2), 4, larger(2)), strict=True):
        np.testing.assert_allclose(a.trial, b.trial, atol=1e-4)
        np.testing.assert_allclose(a.search.origin.value, b.search.origin.value, rtol=1e-5)


def test_a_portion_counts_once_and_only_in_its_round() -> None:
    d = Drive(RULE, START, gradient).run([0])
    serve, measure = jax.jit(RULE.serve), jax.jit(RULE.measure)

    def message(number: int, push: bool = True, by: float = 1.0) -> In:
        grads = jnp.full((1, N), by, jnp.float32)
        return In((jnp.asarray([number]), jnp.asarray([by]), grads), jnp.asarray([push]), jnp.asarray([True]), jnp.zeros(1, int), jnp.zeros(1, int))

    def after(s: Any, m: In) -> Any:
        return serve(s, m, measure(s, m))[0]

    first = after(d.s[0], message(3))
    assert first.got.sum() == 1
    for number, push in ((3, True), (3 + P, True), (4, False), (-1, False)):
        again = after(first, message(number, push, np.nan))
        assert convex.same(jax.device_get((again.gradient, again.loss, again.got)), jax.device_get((first.gradient, first.loss, first.got)))
    s = d.s[0]
    for number in range(P):
        s = after(s, message(number, by=float(number)))
    assert int(s.round) == 1
    assert not s.got.any()
    np.testing.assert_array_equal(s.basis[2 * M], np.full(N, (P - 1) / 2))
    stale = after(s, message(5))
    assert not stale.got.any(), "a portion of the last round"


def test_who_gets_what() -> None:
    """New portions first, each once; then copies of those that are out; then nothing, until patience says that their holders may be dead."""
    workers = 3
    d = Drive(RULE, START, gradient, workers).run([0, 1, 2])
    assert [int(w.number) for w in d.w] == [0, 1, 2]
    d.run([2] * (P - 3))
    assert int(d.w[2].number) == P - 1
    found = []
    for _ in range(5):
        d.run([2])
        found.append(int(d.w[2].number))
    assert found == [0, 1, P, P + 1, P + 2], "copies of 0 and 1, which closed the round"

    d = Drive(RULE, START, gradient, workers).run([0, 1, 2])
    d.run([2] * (P - 2))  # 2 has a copy of portion 0
    assert int(d.w[2].number) == 0
    d.w[2] = d.w[2]._replace(number=jnp.asarray(-1))  # and loses it
    d.run([2])
    assert int(d.w[2].number) == 1
    d.w[2] = d.w[2]._replace(number=jnp.asarray(-1))
    d.run([2])
    assert int(d.w[2].number) == -1
    d.run([2] * (PATIENCE * workers))
    assert int(d.w[2].number) >= 0
    d.run([2] * 2)
    assert int(d.s[0].round) == 1


def test_as_low_as_scipy_in_as_many_evaluations() -> None:
    full = jax.jit(jax.value_and_grad(lambda v: jnp.mean(jax.vmap(loss, (None, 0, 0))(v, X, Y))))

    def float64(v: np.ndarray) -> tuple[float, np.ndarray]:
        f, g = full(jnp.asarray(v, jnp.float32))
        return float(f), np.asarray(g, np.float64)

    peer = scipy.optimize.minimize(float64, START, jac=True, method="L-BFGS-B", options={"maxcor": M, "ftol": 0, "gtol": 1e-5})
    found = plain_rounds()
    assert peer.nfev <= len(found)
    values = [float(s.search.origin.value) for s in found]
    assert values[-1] <= peer.fun * (1 + 1e-5)
    reached = next(k for k, f in enumerate(values, 1) if f <= peer.fun * (1 + 1e-4))
    assert reached <= 1.5 * peer.nfev
    assert (np.diff(values) <= 1e-6).all(), "the loss at accepted points never rises beyond rounding"
    np.testing.assert_allclose(found[-1].base, peer.x, atol=3e-3)


def test_every_pair_is_good() -> None:
    for s in accepted(20)[M:]:
        assert (np.einsum("kn,kn->k", s.basis[:M], s.basis[M : 2 * M]) > 0).all()


def test_a_tree_of_parameters_is_its_vector() -> None:
    tree = {"a": np.zeros((2, 3), np.float32), "b": np.zeros((), np.float32), "c": np.zeros(2, np.float32)}

    def of_tree(p: Any, _k: Any, number: Any, _key: Any) -> Any:
        return jax.value_and_grad(lambda p: loss(jnp.concatenate([p["a"].ravel(), p["b"][None], p["c"]]), X[number % P], Y[number % P]))(p)

    a = Drive(RULE, tree, of_tree).run([0] * (3 * P + 1)).params()
    b = Drive(RULE, START, gradient).run([0] * (3 * P + 1)).params()
    assert {name: leaf.shape for name, leaf in a.items()} == {"a": (2, 3), "b": (), "c": (2,)}
    np.testing.assert_allclose(np.concatenate([leaf.ravel() for leaf in a.values()]), b, atol=1e-5)


def test_a_step_into_nan_is_taken_back() -> None:
    """A loss with a wall: log of a number that the first step, of length 1, makes negative."""

    def walled(v: Any, _k: Any, number: Any, _key: Any) -> Any:
        return jax.value_and_grad(lambda v: jnp.sum(v - 0.01 * jnp.log(v)) + 0 * number)(v)

    d = Drive(RULE, np.full(N, 0.1, np.float32), walled).run([0] * (12 * P + 1))
    assert np.isnan(d.losses[P])
    assert np.isfinite(float(d.s[0].search.origin.value))
    np.testing.assert_allclose(d.params(), 0.01, rtol=0.05)


def test_a_wrong_gradient_leads_nowhere_and_breaks_nothing() -> None:
    """No step decreases the loss: the base stays, and after 20 evaluations the search starts again, down the gradient."""

    def wrong(v: Any, _k: Any, _number: Any, _key: Any) -> Any:
        return jnp.any(v != START).astype(jnp.float32), jnp.ones_like(v)

    d = Drive(RULE, START, wrong).run([0] * (P + 1))
    again = []
    for _ in range(22):
        d.run([0] * P)
        again.append(int(d.s[0].search.evaluations) == 0)
    assert again == [False] * 19 + [True] + [False] * 2
    assert int(d.s[0].accepted) == 1
    np.testing.assert_array_equal(d.params(), START)


@pytest.mark.parametrize("options", [{"m": 0}, {"first": 0.0}, {"c1": 0.95}, {"c2": 1.0}, {"c1": 0.0}, {"copies": 0}, {"portions": 0}, {"portions": 2**18 + 1}])
def test_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="sandblaster"):
        rule(**options)

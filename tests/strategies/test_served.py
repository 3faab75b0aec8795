"""The addition that stands for `serve=None`: masks, order, sparse bodies, and a sparse body cut over shards."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hlt_train.strategies import In, Info, Sparse
from hlt_train.strategies._served import served
from hlt_train.strategies.hogwild import hogwild
from tests import convex

SERVE = jax.jit(served(hogwild(convex.setup(convex.optax.sgd(0.1)))))


def messages(body, push) -> In:
    push = jnp.asarray(push)
    zeros = jnp.zeros(len(push), jnp.int32)
    return In(body, push, jnp.ones_like(push), zeros, zeros)


def test_a_rule_with_a_serve_of_its_own_keeps_it() -> None:
    rule = hogwild(convex.setup(convex.optax.sgd(0.1)))._replace(serve=lambda s, m, _t: (s, m.body))
    assert served(rule) is rule.serve


def test_only_what_is_pushed_counts_even_beside_a_nan() -> None:
    s = {"w": jnp.zeros(3), "b": jnp.zeros(())}
    body = {"w": jnp.asarray([[1.0, 2, 3], [np.nan, 1, 1], [10, 20, 30]]), "b": jnp.asarray([1.0, np.inf, 2])}
    s, answers = SERVE(s, messages(body, [True, False, True]), ())
    np.testing.assert_array_equal(s["w"], [11, 22, 33])
    np.testing.assert_array_equal(answers["w"], [[1, 2, 3], [1, 2, 3], [11, 22, 33]])
    np.testing.assert_array_equal(answers["b"], [1, 1, 3])


def test_messages_at_once_are_messages_one_by_one() -> None:
    rng = np.random.default_rng(0)
    body = rng.normal(size=(5, 40)).astype(np.float32)
    push = [True, True, False, True, True]
    at_once, answers = SERVE(jnp.zeros(40), messages(jnp.asarray(body), push), ())
    s = jnp.zeros(40)
    for k in range(5):
        s, answer = SERVE(s, messages(jnp.asarray(body[k : k + 1]), push[k : k + 1]), ())
        np.testing.assert_array_equal(answer[0], answers[k])
    np.testing.assert_array_equal(s, at_once)


@pytest.mark.parametrize("cuts", [[0, 9], [0, 4, 9], [0, 1, 1, 8, 9]])
def test_sparse_bodies_and_their_shards(cuts: list[int]) -> None:
    """Repeated indices add, indices beyond the vector are padding; shards that each get their part hold together what one server holds."""
    rng = np.random.default_rng(1)
    body = Sparse(jnp.asarray(rng.integers(0, 12, (3, 7)).astype(np.int32)), jnp.asarray(rng.integers(-5, 5, (3, 7)).astype(np.float32)))
    push = [True, False, True]
    want = sum(np.asarray(Sparse(body.index[k], body.value[k]).dense(12)) for k in (0, 2))[:9]
    parts = [SERVE(jnp.zeros(stop - start), messages(body.part(start, stop), push), ())[0] for start, stop in itertools.pairwise(cuts) if stop > start]
    np.testing.assert_array_equal(np.concatenate(parts), want)


@pytest.mark.parametrize("name", ["sandblaster", "dogwild", "gossip", "hogwild"])
def test_a_transport_may_donate_the_state(name: str) -> None:
    """No two leaves share a buffer."""
    rule = convex.strategy(name, workers=2)
    params = jnp.arange(5.0)
    info = Info(0, 2, jax.random.key(0))
    for made in (rule.init_worker(params, info), rule.init_server(params, info)):
        places = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(made)]
        assert len(set(places)) == len(places)

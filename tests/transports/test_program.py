"""What actors compute: the wires, what is cut over the shards, sparse bodies, keys, states."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hlt_train.errors import RunFailed, UsageError
from hlt_train.strategies import Setup, Sparse
from hlt_train.strategies.hogwild import hogwild
from hlt_train.transports.account import Coverage
from hlt_train.transports.program import Layout, Program
from hlt_train.transports.simulate import Simulation
from tests import messages
from tests.messages import ROUGH, finish, program, simulation

SIZE = 12


@pytest.mark.parametrize(("wire", "error"), [("bfloat16", 2.0**-8), ("float16", 2.0**-11), ("int8", 1 / 127)])
@pytest.mark.parametrize("name", ["sync", "hogwild"])
def test_a_wire_costs_about_its_error(name: str, wire: str, error: float) -> None:
    """Of a body, relative to its largest number; the contraction of SGD keeps the sum over the run at the same size."""
    made = program(name, 3, 2, wire=wire)
    exact, small = finish(simulation(program(name, 3, 2), 8)), finish(simulation(made, 8))
    assert len(made.wire_errors) == 8 * 3
    assert 0 < np.max(made.wire_errors) <= error * 6**0.5
    off = np.abs(small.params() - exact.params()).max()
    assert 0 < off < 10 * error
    sizes = {"bfloat16": 2, "float16": 2, "int8": 1}
    pushed = 6 * sizes[wire] + (2 if wire == "int8" else 0)  # an exponent for each of two shards
    assert small.account.bytes.tolist() == [8 * (pushed + 6 * 4)] * 3


def test_unknown_wires_are_refused() -> None:
    with pytest.raises(UsageError) as refused:
        program("sync", 3, wire="bfloat")
    assert "bfloat16" in refused.value.near


@given(cuts=st.lists(st.integers(0, SIZE), max_size=4), capacity=st.integers(1, 5))
@settings(max_examples=5)
def test_what_is_cut_is_joined_again(cuts: list[int], capacity: int) -> None:
    edges = [0, *sorted(cuts), SIZE]
    tree = {
        "vector": jnp.arange(SIZE, dtype=jnp.float32),
        "rows": jnp.arange(3.0 * SIZE).reshape(3, SIZE),
        "whole": jnp.arange(5),
        "scalar": jnp.float32(2),
        "sparse": Sparse(jnp.arange(capacity) * 2, jnp.ones(capacity)),
    }

    def at(n: int) -> Any:
        like = {**tree, "vector": jnp.zeros(n), "rows": jnp.zeros((3, n))}
        return jax.eval_shape(lambda: like)

    layout = Layout(at, SIZE, edges)
    parts = [layout.split(tree, shard) for shard in range(len(edges) - 1)]
    for part, begin, end in zip(parts, edges[:-1], edges[1:], strict=True):
        assert part["vector"].tolist() == list(range(begin, end))
        assert part["rows"].shape == (3, end - begin)
        assert part["whole"].tolist() == list(range(5))
        np.testing.assert_array_equal(part["sparse"].dense(end - begin), tree["sparse"].dense(SIZE)[begin:end])
    joined = layout.join(parts)
    for name in ("vector", "rows", "whole", "scalar"):
        np.testing.assert_array_equal(joined[name], tree[name])


def sparse_gradient(vector: Any, batch: Any, _key: Any) -> Any:
    """Of (v_i - i)^2 / 2 for a few i."""
    index = batch
    off = vector[index] - index.astype(jnp.float32)
    return 0.5 * jnp.sum(off**2), Sparse(index, off)


def touched(share: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(list(share)).choice(SIZE, 3, replace=False).astype(np.int32)


@pytest.mark.parametrize("shards", [1, 3])
def test_sparse_bodies_over_shards(shards: int) -> None:
    """Three entries of twelve are written each time; a shard applies its own."""
    rule = hogwild(Setup(3, optax.constant_schedule(0.5), optax.sgd))
    made = Program(rule, sparse_gradient, np.zeros(SIZE, np.float32), touched((0, 0)), workers=3, shards=shards, seed=1)
    found = Simulation(made, touched, steps=60, coverage=Coverage(60, 3), timing=ROUGH)
    finish(found)
    np.testing.assert_allclose(found.params(), np.arange(SIZE), atol=1e-3)
    assert found.account.bytes.tolist() == [60 * (shards * 3 * 8 + SIZE * 4)] * 3


def test_a_sparse_gradient_is_the_dense_one() -> None:
    """One worker: to rounding, with any number of shards."""

    def dense(vector: Any, batch: Any, key: Any) -> Any:
        loss, grads = sparse_gradient(vector, batch, key)
        return loss, grads.dense(SIZE)

    rule = hogwild(Setup(1, optax.constant_schedule(0.5), optax.sgd))
    ends = []
    for gradient, shards in ((sparse_gradient, 1), (sparse_gradient, 3), (dense, 2)):
        made = Program(rule, gradient, np.zeros(SIZE, np.float32), touched((0, 0)), workers=1, shards=shards, seed=1)
        ends.append(finish(Simulation(made, touched, steps=8, coverage=Coverage(8, 1), timing=ROUGH)).params())
    assert ends[0].tobytes() == ends[1].tobytes()
    np.testing.assert_allclose(ends[0], ends[2], rtol=1e-6)


def test_states_come_back_and_strangers_are_refused() -> None:
    made, other = program("fasgd", 2, 2, eps=0.5), program("gem", 2, 2)
    worker = made.worker(1)
    for state in (worker, made.compute(worker, messages.data(2)((0, 1)), 1, 0)[0]):
        content = made.leaves(state)
        assert made.leaves(made.worker_from(content))["structure"] == content["structure"]
        assert all(np.array_equal(a, b) for a, b in zip(made.leaves(made.worker_from(content))["leaves"], content["leaves"], strict=True))
    for shard in range(2):
        assert made.slice(made.server_from(made.leaves(made.server(shard)), shard)).tolist() == [0.0] * 3
    with pytest.raises(RunFailed, match="not one of this strategy") as refused:
        other.worker_from(made.leaves(worker))
    assert refused.value.then


def test_more_shards_than_numbers() -> None:
    """Empty slices are slices, too."""
    found = finish(simulation(program("sync", 2, 8), 6))
    one = finish(simulation(program("sync", 2, 1), 6))
    assert found.params().tobytes() == one.params().tobytes()

"""The gradient with respect to the rows that a batch touches: equal to the dense one, without a dense one; Hogwild with it, simulated and replayed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from hlt_train.fit import cross_entropy, fit
from hlt_train.fleet import make_program
from hlt_train.models.mlp import mlp
from hlt_train.models.sparse_linear import sparse_linear
from hlt_train.progress import Progress
from hlt_train.replay import replay
from hlt_train.restore import parameters
from hlt_train.run import Run
from hlt_train.sparse_gradient import SparseGradient, sparse_gradient
from hlt_train.strategies import Sparse
from hlt_train.task import Task, gradient_of
from hlt_train.types import Batch
from tests import messages
from tests.runs import config
from tests.students import cells, inputs, normalised, raw_cells

DESCRIBED = cells(("calo", 12), ("muon", 4), classes=3)
ROWS, BUCKETS = 24, 211  # fewer rows than hits: some are hit twice


def task(buckets: int = BUCKETS, dropout: float = 0.0, **changes: Any) -> Task:
    network = sparse_linear(DESCRIBED, 3, jax.random.key(0), buckets=buckets, dropout=dropout)
    made = Task(parameters(network), cross_entropy(network), None, None, 0.8, ROWS)  # type: ignore[arg-type]
    return made._replace(**changes)


def batch(seed: int = 2) -> Batch:
    rng = np.random.default_rng(seed)
    x = normalised(DESCRIBED, raw_cells(rng, DESCRIBED, ROWS, garbage=1.0))
    return Batch(x, rng.integers(0, 3, ROWS).astype(np.int32), rng.uniform(0, 2, ROWS).astype(np.float32), {})


def point(learnt: Task) -> np.ndarray:
    size = len(ravel_pytree(learnt.params)[0])
    return np.random.default_rng(5).normal(size=size).astype(np.float32)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_it_is_the_dense_gradient(dropout: float) -> None:
    learnt, rows = task(dropout=dropout), batch()
    vector, unravel = point(learnt), ravel_pytree(learnt.params)[1]
    loss, dense = jax.jit(gradient_of(learnt))(unravel(jnp.asarray(vector)), rows, jax.random.key(3))
    of_entries = sparse_gradient(learnt)
    assert of_entries is not None
    found, sparse = jax.jit(of_entries)(vector, rows, jax.random.key(3))
    np.testing.assert_allclose(found, loss, rtol=1e-6)
    np.testing.assert_allclose(sparse.dense(len(vector)), ravel_pytree(dense)[0], rtol=1e-5, atol=1e-7)


def test_entries_are_those_of_the_hits_and_all_others() -> None:
    learnt, rows = task(), batch()
    of_entries = sparse_gradient(learnt)
    assert of_entries is not None
    index = np.asarray(of_entries.index(rows))
    assert (of_entries.offset, of_entries.width, of_entries.n) == (0, 3, 3 * BUCKETS + 3)
    assert of_entries.others == ((3 * BUCKETS, 3 * BUCKETS + 3),)
    assert index.tolist()[-3:] == list(range(3 * BUCKETS, 3 * BUCKETS + 3))
    real = int(rows.x.counts["calo"].sum() + rows.x.counts["muon"].sum())
    assert (index < of_entries.n).sum() == 3 * real + 3
    assert (index[index >= of_entries.n] == of_entries.n).all()


def test_no_array_is_as_large_as_the_table() -> None:
    """Nothing that the compiled gradient computes has the size of the table; only its argument has."""
    learnt, rows = task(buckets=2**20), batch()
    of_entries = sparse_gradient(learnt)
    assert of_entries is not None
    vector = jax.ShapeDtypeStruct((of_entries.n,), jnp.float32)
    made = jax.jit(of_entries).lower(vector, rows, jax.random.key(0)).compile()
    memory = made.memory_analysis()
    assert memory.temp_size_in_bytes + memory.output_size_in_bytes < 4 * of_entries.n / 10
    lines = [line for line in made.as_text().splitlines() if f"f32[{of_entries.n}]" in line.partition("=")[2].partition("(")[0]]
    assert all("parameter(" in line for line in lines), lines


def test_other_networks_strategies_and_penalties_stay_dense() -> None:
    described = inputs(np.random.default_rng(0), ("calo", 3, None))
    network = mlp(described, 2, jax.random.key(0), widths=(4,))
    assert sparse_gradient(Task(parameters(network), cross_entropy(network), None, None, 1.0, ROWS)) is None  # type: ignore[arg-type]
    assert sparse_gradient(task(penalty=lambda p: jnp.sum(p.table**2))) is None
    options: dict[str, Any] = {"workers": 2, "servers": 2, "seed": 1, "wire": "float32"}
    sparse, _ = make_program(task(), messages.strategy("hogwild", 2), batch(), **options)
    dense, _ = make_program(task(), messages.strategy("downpour", 2), batch(), **options)
    m = ROWS * 16 * 3 + 3
    assert [shape for shape, _ in sparse.body_specs(0)] == [(m,), (m,)]
    assert all(shape != (m,) for shape, _ in dense.body_specs(0))


def test_its_two_halves_are_the_whole() -> None:
    """What a transport that reads the entries itself computes is what the gradient of the vector computes."""
    learnt, rows = task(), batch()
    of_entries = sparse_gradient(learnt)
    assert isinstance(of_entries, SparseGradient)
    vector = point(learnt)
    seen = np.append(vector, np.float32(0))[np.asarray(of_entries.index(rows))]
    loss, value = jax.jit(of_entries.at)(seen, rows, jax.random.key(1))
    whole, sparse = jax.jit(of_entries)(vector, rows, jax.random.key(1))
    assert isinstance(sparse, Sparse)
    assert float(loss) == float(whole)
    assert np.asarray(value).tobytes() == np.asarray(sparse.value).tobytes()


def test_hogwild_on_cells_simulated_and_replayed(tmp_path: Path) -> None:
    from hlt_train.data.card import load_card
    from hlt_train.datasets.cells import write_cells

    write_cells(tmp_path / "cells.root", 2000, seed=1)
    card = load_card("toy_cells")
    card.samples["events"].files = [str(tmp_path / "cells.root")]
    runs = []
    for name, servers in (("one", 1), ("again", 1), ("two", 2)):
        chosen = config(
            card,
            model={"name": "sparse_linear", "buckets": 4096},
            strategy={"name": "hogwild"},
            transport={"name": "simulate", "workers": 3, "servers": servers, "stragglers": "lognormal:0.5", "timeline": False},
            schedule={"name": "constant_schedule"},
            learning_rate=0.3,
            batch=48,
            length="3epochs",
        )
        result = fit(chosen, tmp_path / name, progress=Progress(quiet=True))
        with Run.open(tmp_path / name) as run:
            losses = [line["validation"]["loss"] for line in run.metrics() if line["event"] == "epoch"]
        assert max(losses) < np.log(2)
        again = replay(tmp_path / name, progress=Progress(quiet=True))
        assert again["equal"]
        runs.append((again["params"], result["coverage"]["epochs"][0]["complete"]))
    assert runs[0] == runs[1]
    assert all(complete for _, complete in runs)

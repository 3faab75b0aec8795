"""Training in low precision: what a product computes in both passes, the grid of stored parameters, exponents that follow, and runs of the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hlt_train import checkpoints, low_precision
from hlt_train.beside import Beside
from hlt_train.configuration import check
from hlt_train.distil import distil
from hlt_train.errors import UsageError
from hlt_train.fit import FitConfig, fit, resume
from hlt_train.low_precision import SCALES, SETTLING, LowPrecision
from hlt_train.precision.formats import parse_format, quantise
from hlt_train.progress import Progress
from hlt_train.restore import load_run, outline
from hlt_train.run import read_config
from hlt_train.types import Batch, Features
from tests.distillation import config as student
from tests.runs import config, write_card

FIXED = LowPrecision("fixed<6,3>", "fixed<7,2>", "fixed<8,2>")
BATCH = Batch(Features({}, {}), np.zeros(8, np.int32), np.ones(8, np.float32), {})


def quadratic(params: Beside, batch: Batch, key: Any) -> Any:
    """Rows of (x w - y)^2 with one product."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 3)).astype(np.float32), rng.normal(size=(8, 2)).astype(np.float32)
    return jnp.sum((x @ params.network["w"] - y) ** 2, axis=1)


def start(low: LowPrecision, w: np.ndarray) -> Beside:
    return Beside({"w": jnp.asarray(w, jnp.float32)}, {SCALES: jnp.zeros((1, 6, 3))})


def test_every_operand_result_and_gradient_is_on_its_grid() -> None:
    """Against the formulas written out: both passes of one product with fixed-point formats."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 3)).astype(np.float32), rng.normal(size=(8, 2)).astype(np.float32)
    w = rng.normal(size=(3, 2)).astype(np.float32)
    ahead, back = (lambda v, t=t: np.asarray(quantise(jnp.asarray(v), parse_format(f"{t},half_even,sat"))) for t in (FIXED.forward, FIXED.backward))
    out = ahead(ahead(x) @ ahead(w))
    want = back(ahead(x).T @ back(2 * (out - y)))
    losses = low_precision.learning(FIXED, quadratic)
    value, gradient = jax.value_and_grad(lambda p: losses(p, BATCH, None).sum())(start(FIXED, w))
    np.testing.assert_allclose(value, ((out - y) ** 2).sum(), rtol=1e-6)
    np.testing.assert_array_equal(gradient.network["w"], want)


def test_counts_come_as_the_gradient_of_the_exponents() -> None:
    """Not multiplied by anything of the loss, so that their mean over workers is the rate over all of them."""
    low = LowPrecision()
    losses = low_precision.learning(low, quadratic)
    params = start(low, np.full((3, 2), 0.3))
    found = [np.asarray(jax.grad(lambda p, c=c: (losses(p, BATCH, None) * c).mean())(params).others[SCALES]) for c in (1.0, 1e-3)]
    np.testing.assert_array_equal(found[0][:, :3], found[1][:, :3])  # the forward pass does not know of the factor
    assert found[0][0, 1].tolist() == [0.0, 1.0, 0.0]  # 0.3 is within -0.5 to 0.5, beyond half of it, and needs I = 0


@pytest.mark.parametrize("storage", ["fixed<8,2>", "dynamic<8>", "minifloat<4,3,8>"])
@pytest.mark.parametrize("round", ["half_even", "stochastic"])
def test_parameters_are_stored_on_the_grid(storage: str, round: str) -> None:
    low = LowPrecision("float32", "float32", storage, round)  # type: ignore[arg-type]
    losses, tx = low_precision.learning(low, quadratic), low_precision.storage(low, optax.sgd(0.01), batch=8, seed=1)
    params, others = start(low, np.random.default_rng(3).normal(size=(3, 2)))
    state = tx.init(params)
    for _ in range(20):
        updates, state = tx.update(jax.grad(lambda p: losses(Beside(p, others), BATCH, None).mean())(params), state, params)
        params = optax.apply_updates(params, updates)
        w = params["w"]
        to = parse_format(f"fixed<8,{int(state.exponents[0])}>" if storage.startswith("dynamic") else storage, round="half_even", over="sat")
        np.testing.assert_array_equal(w, quantise(w, to))


def test_stochastic_storage_moves_where_nearest_stands_still() -> None:
    """Updates of a twentieth of a step: rounding to the nearest loses every one, at random none is lost on average."""
    moved = {}
    for round in ("half_even", "stochastic"):
        low = LowPrecision("float32", "float32", "fixed<8,2>", round)  # type: ignore[arg-type]
        tx = low_precision.storage(low, optax.sgd(1.0), batch=8, seed=1)
        params = start(low, np.zeros((50, 40))).network
        state = tx.init(params)
        gradient = {"w": jnp.full((50, 40), -1 / 64 / 20)}
        for _ in range(40):
            updates, state = tx.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        moved[round] = float(params["w"].mean() * 64)
    assert moved["half_even"] == 0
    assert moved["stochastic"] == pytest.approx(2, abs=5 * np.sqrt(40 * 0.05 / 2000))


def test_exponents_follow_at_once_and_then_by_the_rule() -> None:
    """One period is five steps of a batch of eight."""
    low = LowPrecision(every=40)
    tx = low_precision.exponents(low, batch=8)
    params = jnp.zeros((1, 6, 3))
    state = tx.init(params)

    def stepped(counts: list[float], steps: int) -> float:
        nonlocal params, state
        gradient = jnp.zeros((1, 6, 3)).at[0, 0].set(jnp.asarray(counts))
        for _ in range(steps):
            updates, state = tx.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        return float(params[0, 0, 0])

    assert stepped([0.0, 0.0, 3.0], 1) == 3
    assert stepped([0.0, 0.0, 5.0], SETTLING - 1) == 5
    assert stepped([0.0, 0.5, 9.0], 5) == 5  # what a batch would need counts no more
    assert stepped([0.01, 0.5, 0.0], 4) == 5
    assert stepped([0.01, 0.5, 0.0], 1) == 6
    assert stepped([0.0, 0.0, 0.0], 10) == 4


QUIET = Progress(quiet=True)


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_card(tmp_path_factory.mktemp("jets"))


def weights(run: Path) -> dict[str, np.ndarray]:
    return checkpoints.load(run, checkpoints.pointed(run, "LAST") or 0, "weights")


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_run_learns_on_the_grid_and_goes_on_bit_for_bit(card: Path, tmp_path: Path, workers: int) -> None:
    """Stochastic rounding, dynamic groups, one device and two; three epochs of six and then the others; the network is that of any float run."""
    options: dict[str, Any] = {"low_precision": {"round": "stochastic", "storage": "fixed<12,3>", "every": 500}, "learning_rate": 0.02, "devices": workers}
    whole = fit(config(card, length="6epochs", schedule={"name": "constant_schedule"}, **options), tmp_path / "whole", progress=QUIET)
    assert whole["validation"]["accuracy"] > 0.4  # five classes
    fit(config(card, length="3epochs", schedule={"name": "constant_schedule"}, **options), tmp_path / "part", progress=QUIET)
    resume(tmp_path / "part", length="6epochs", progress=QUIET)
    stored = weights(tmp_path / "whole")
    assert all(np.array_equal(stored[name], array) for name, array in weights(tmp_path / "part").items())
    grid = parse_format("fixed<12,3>,half_even,sat")
    assert all(np.array_equal(array, quantise(jnp.asarray(array), grid)) for array in stored.values())
    loaded = load_run(tmp_path / "whole")
    assert jax.tree.structure(loaded.model) == jax.tree.structure(outline(loaded.spec, loaded.inputs))


@pytest.mark.slow
def test_a_student_is_trained_in_low_precision_too(card: Path, tmp_path: Path) -> None:
    fit(config(card), tmp_path / "teacher", progress=QUIET)
    section = {"forward": "dynamic<12>", "backward": "dynamic<12>"}
    result = distil(student(tmp_path / "teacher", low_precision=section), tmp_path / "student", progress=QUIET)
    assert result["golden"]["differing_rows"] == 0
    assert read_config(tmp_path / "student")["low_precision"]["storage"] == "dynamic<12>"


@pytest.mark.parametrize(
    "options",
    [{"strategy": {"name": "easgd"}}, {"transport": {"name": "simulate", "workers": 2}}],
)
def test_what_does_not_train_in_low_precision_says_so(card: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="low precision trains by sync in lockstep"):
        fit(config(card, low_precision={}, **options), tmp_path / "run", progress=QUIET)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"forwards": "dynamic<10>"}, "nearest: forward"),
        ({"forward": "dynamic<1>"}, "2 to 24 bits"),
        ({"storage": "ternary<1>"}, "no format to train in"),
        ({"backward": "fixed<8,auto>"}, "no format to train in"),
        ({"round": "nearest"}, "no such mode"),
        ({"every": 0}, "number of examples"),
    ],
)
def test_refusals(section: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        check(FitConfig, {"low_precision": section})
    assert says in str(caught.value)

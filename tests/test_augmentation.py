"""Transforms: what each leaves as it is, whatever the features; that strength 0 changes nothing; where their columns come from; runs with them."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hlt_train import checkpoints, plugins
from hlt_train.augmentation import augmenting
from hlt_train.errors import UsageError
from hlt_train.fit import fit, resume
from hlt_train.progress import Progress
from hlt_train.types import Features, Group, Inputs
from tests.runs import config, write_card

F32 = np.float32
LENGTH, ROWS = 6, 40
VARIABLES = ("part_pt", "part_logpt", "part_deta", "part_dphi", "part_charge")
PT, LOGPT, ETA, PHI, CHARGE = range(5)


def group(name: str, variables: tuple[str, ...], length: int | None) -> Group:
    n = len(variables)
    return Group(name, variables, length, np.zeros(n, F32), np.ones(n, F32), np.full(n, -5, F32), np.full(n, 5, F32), np.zeros(n, F32))


INPUTS = Inputs((group("hlf", ("mass", "width"), None), group("part", VARIABLES, LENGTH)), ("a", "b"))


def features(seed: int) -> Features:
    """Jets of 0 to 6 constituents of charges that tell them apart; garbage, NaN too, beyond every count; a NaN and an infinity among the scalars."""
    rng = np.random.default_rng(seed)
    pt = rng.exponential(20, (ROWS, LENGTH)) + 0.5
    parts = np.stack([pt, np.log(pt), *rng.normal(0, 0.3, (2, ROWS, LENGTH)), np.tile(np.arange(LENGTH), (ROWS, 1))], axis=2).astype(F32)
    counts = rng.integers(0, LENGTH + 1, ROWS).astype(np.int32)
    beyond = np.arange(LENGTH) >= counts[:, None]
    parts[beyond] = rng.choice(np.array([np.nan, 7.0, -3e38], F32), (int(beyond.sum()), 5))
    scalars = rng.normal(80, 10, (ROWS, 2)).astype(F32)
    scalars[0], scalars[1] = np.nan, np.inf
    return Features({"hlf": scalars, "part": parts}, {"part": counts})


@functools.cache
def compiled(section: str) -> Callable[..., Any]:
    return jax.jit(augmenting(json.loads(section), INPUTS))


def transformed(section: dict[str, Any], x: Features, seed: int = 0) -> Features:
    found: Features = jax.tree.map(np.asarray, compiled(json.dumps(section))(x, jax.random.key(seed)))
    return found


def constituents(x: Features, row: int) -> np.ndarray:
    return np.asarray(x.groups["part"][row, : x.counts["part"][row]], np.float64)


SECTIONS: dict[str, dict[str, Any]] = {
    "rotation": {},
    "reflection": {},
    "energy_smearing": {"relative": 0.1},
    "dropping": {"probability": 0.4},
    "scalar_smearing": {"relative": {"mass": 0.1}, "absolute": {"width": 3.0}},
}
NOTHING: dict[str, dict[str, Any]] = {
    "rotation": {"angle": 0.0},
    "reflection": {"probability": 0.0},
    "energy_smearing": {"relative": 0.0},
    "dropping": {"probability": 0.0},
    "scalar_smearing": {"relative": {"mass": 0.0}},
}


def same(a: Features, b: Features) -> bool:
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in leaves)


@pytest.mark.parametrize("name", plugins.names("augmentations"))
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_padding_is_left_alone_and_strength_0_changes_nothing(name: str, seed: int) -> None:
    x = features(seed)
    assert same(transformed({name: NOTHING[name]}, x, seed), x)
    found = transformed({name: SECTIONS[name]}, x, seed)
    assert not same(found, x)
    assert same(found, transformed({name: SECTIONS[name]}, x, seed))  # a function of the key
    if name != "dropping":  # which moves what it drops beyond the count
        beyond = np.arange(LENGTH) >= x.counts["part"][:, None]
        assert found.groups["part"][beyond].tobytes() == x.groups["part"][beyond].tobytes()
        np.testing.assert_array_equal(found.counts["part"], x.counts["part"])
    untouched = "part" if name == "scalar_smearing" else "hlf"
    assert found.groups[untouched].tobytes() == x.groups[untouched].tobytes()


def distances(p: np.ndarray) -> np.ndarray:
    return np.hypot(p[:, None, ETA] - p[:, ETA], p[:, None, PHI] - p[:, PHI])


def mass(p: np.ndarray) -> float:
    """Of massless constituents at small angles: m^2 = sum over pairs of pT_i pT_j dR_ij^2, each pair once."""
    return float(np.sqrt((p[:, None, PT] * p[:, PT] * distances(p) ** 2).sum() / 2))


@pytest.mark.parametrize("name", ["rotation", "reflection"])
def test_what_turns_a_jet_keeps_its_distances_and_its_mass(name: str) -> None:
    x = features(1)
    found = transformed({name: SECTIONS[name]}, x)
    others = [PT, LOGPT, CHARGE]
    moved = 0
    for row in range(ROWS):
        before, after = constituents(x, row), constituents(found, row)
        np.testing.assert_array_equal(before[:, others], after[:, others])
        np.testing.assert_allclose(distances(after), distances(before), atol=1e-6)
        np.testing.assert_allclose(np.hypot(after[:, ETA], after[:, PHI]), np.hypot(before[:, ETA], before[:, PHI]), atol=1e-6)
        assert mass(after) == pytest.approx(mass(before), rel=1e-5)
        moved += not np.array_equal(before, after)
    assert moved > ROWS / 4


def test_a_rotation_keeps_the_sense_and_a_reflection_turns_it() -> None:
    x = features(2)
    sense = lambda p: p[0, ETA] * p[1, PHI] - p[0, PHI] * p[1, ETA]  # noqa: E731
    rows = [row for row in range(ROWS) if x.counts["part"][row] >= 2]
    for name, signs in (("rotation", {1.0}), ("reflection", {1.0, -1.0})):
        found = transformed({name: {}}, x)
        assert {float(np.sign(sense(constituents(found, r)) * sense(constituents(x, r)))) for r in rows} == signs


def test_smearing_has_the_width_that_was_asked_for_and_one_factor_per_constituent() -> None:
    x = features(3)
    factors = []
    for seed in range(20):
        found = transformed({"energy_smearing": {"relative": 0.1}}, x, seed)
        for row in range(ROWS):
            before, after = constituents(x, row), constituents(found, row)
            factors += list(np.log(after[:, PT] / before[:, PT]))
            np.testing.assert_allclose(after[:, LOGPT] - before[:, LOGPT], np.log(after[:, PT] / before[:, PT]), atol=1e-5)
            np.testing.assert_array_equal(after[:, [ETA, PHI, CHARGE]], before[:, [ETA, PHI, CHARGE]])
    assert np.std(factors) == pytest.approx(0.1, rel=0.1)
    assert np.mean(factors) == pytest.approx(0, abs=5 * 0.1 / np.sqrt(len(factors)))


def test_dropping_drops_as_often_as_it_says_and_keeps_the_order() -> None:
    x = features(4)
    possible = dropped = 0
    for seed in range(20):
        found = transformed({"dropping": {"probability": 0.3, "keep": 2}}, x, seed)
        for row in range(ROWS):
            before, after = constituents(x, row), constituents(found, row)
            kept = [int(c) for c in after[:, CHARGE]]
            np.testing.assert_array_equal(after, before[kept])  # charges are places, so these are the rows that are left, as they were
            assert kept == sorted(kept)
            assert kept[:2] == list(range(min(2, len(before))))
            possible += max(0, len(before) - 2)
            dropped += len(before) - len(after)
    assert dropped / possible == pytest.approx(0.3, abs=5 * np.sqrt(0.21 / possible))


def test_scalars_are_smeared_within_their_resolution() -> None:
    x = features(5)
    found = np.stack([transformed({"scalar_smearing": SECTIONS["scalar_smearing"]}, x, seed).groups["hlf"][2:] for seed in range(60)])
    before = x.groups["hlf"][2:]
    assert ((found - before)[..., 0] / before[:, 0]).std() == pytest.approx(0.1, rel=0.1)
    assert (found - before)[..., 1].std() == pytest.approx(3.0, rel=0.1)


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"rotation": {"phi": "part_phi"}}, "group 'part' has no variable 'part_phi'"),
        ({"rotation": {"group": "hlf"}}, "no group of them is called 'hlf'"),
        ({"rotation": {"angle": 270}}, "between 0 and 180"),
        ({"reflection": {"probability": 2}}, "between 0 and 1"),
        ({"energy_smearing": {"log": ["part_loge"]}}, "group 'part' has no variable 'part_loge'"),
        ({"energy_smearing": {"relative": -1}}, "at least 0"),
        ({"dropping": {"keep": -1}}, "keep at least 0"),
        ({"scalar_smearing": {"absolute": {"mas": 1}}}, "no scalar input is called 'mas'"),
        ({"scalar_smearing": {}}, "told no variable"),
    ],
)
def test_refusals(section: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        augmenting(section, INPUTS)
    assert says in str(caught.value)


def test_columns_that_are_not_there() -> None:
    bare = Inputs((group("part", ("part_pt", "part_eta"), LENGTH),), ("a", "b"))
    with pytest.raises(UsageError, match="no variable with a name that ends in deta or etarel"):
        augmenting({"rotation": {}}, bare)
    with pytest.raises(UsageError, match="2 variables"):
        augmenting({"rotation": {}}, Inputs((group("part", ("a_deta", "b_deta", "a_dphi"), LENGTH),), ("a", "b")))
    with pytest.raises(UsageError, match="there are 0 groups"):
        augmenting({"dropping": {}}, Inputs(INPUTS.groups[:1], ("a", "b")))
    with pytest.raises(UsageError, match="no energy or momentum"):
        augmenting({"energy_smearing": {}}, Inputs((group("part", ("a_deta", "a_dphi"), LENGTH),), ("a", "b")))


QUIET = Progress(quiet=True)
SECTION = {"scalar_smearing": {"relative": {"jet_mass": 0.2}}}


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_card(tmp_path_factory.mktemp("jets"))


def weights(path: Path) -> dict[str, np.ndarray]:
    return checkpoints.load(path, checkpoints.pointed(path, "LAST") or 0, "weights")


def test_a_teacher_is_augmented_and_goes_on_bit_for_bit(card: Path, tmp_path: Path) -> None:
    constant = {"schedule": {"name": "constant_schedule"}}
    fit(config(card, length="4epochs", augment=SECTION, **constant), tmp_path / "whole", progress=QUIET)
    fit(config(card, length="2epochs", augment=SECTION, **constant), tmp_path / "part", progress=QUIET)
    resume(tmp_path / "part", length="4epochs", progress=QUIET)
    assert all(np.array_equal(array, weights(tmp_path / "part")[name]) for name, array in weights(tmp_path / "whole").items())


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"devices": 2}, {"transport": {"name": "simulate", "workers": 2}, "strategy": {"name": "downpour"}}])
def test_strength_0_is_the_run_without(card: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    """Normalisation on the device gives the bits of the stream's, on every kind of transport."""
    found: dict[str, Callable[[], Any] | Any] = {}
    for name, section in (("with", {"scalar_smearing": {"relative": {"jet_mass": 0.0}}}), ("without", {})):
        fit(config(card, augment=section, **options), tmp_path / name, progress=QUIET)
        found[name] = weights(tmp_path / name)
    assert all(np.array_equal(array, found["with"][key]) for key, array in found["without"].items())


def test_transforms_of_a_section_have_keys_of_their_own() -> None:
    """Smeared by the same deviations, the energy of the hardest constituent and a scalar would be fully correlated."""
    x = features(6)
    found = transformed({name: SECTIONS[name] for name in ("scalar_smearing", "energy_smearing")}, x)
    good = np.flatnonzero(x.counts["part"][2:] > 0) + 2
    deviations = [(found.groups["hlf"] - x.groups["hlf"])[good, 1], np.log(found.groups["part"][good, 0, PT] / x.groups["part"][good, 0, PT])]
    assert abs(np.corrcoef(*deviations)[0, 1]) < 0.6

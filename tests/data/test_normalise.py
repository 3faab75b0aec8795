"""Normalisation: the fit against NumPy, the application against its definition, storage to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rootfiles import card, event_columns, write_tree

from hlt_train.data.dataset import open_dataset
from hlt_train.data.normalise import apply, fit_normalisation, load, save
from hlt_train.errors import RunFailed, UsageError
from hlt_train.types import Features, Group, Inputs

ALL = {"by": "hash", "fractions": {"train": 1.0}}


def location(values: np.ndarray) -> tuple[float, float]:
    low, middle, high = np.quantile(values.astype(np.float64), [0.16, 0.5, 0.84])
    return middle, 1 / max(high - middle, middle - low)


def test_automatic_normalisation_is_median_and_quantile_width(tmp_path: Path) -> None:
    path = write_tree(tmp_path / "x.root", event_columns(3000), basket=400)
    with open_dataset(card(path), cluster_entries=400) as dataset:
        inputs = fit_normalisation(dataset)
        rows = dataset.rows(range(len(dataset.clusters)), "train")
        assert not dataset.warnings
    for k in range(2):
        middle, scale = location(rows.x.groups["event"][:, k])
        assert inputs["event"].centre[k] == np.float32(middle)
        assert inputs["event"].scale[k] == pytest.approx(scale, rel=1e-6)
    real = np.arange(4) < rows.x.counts["parts"][:, None]
    for k in range(2):
        middle, scale = location(rows.x.groups["parts"][..., k][real])
        assert inputs["parts"].centre[k] == np.float32(middle)
        assert inputs["parts"].scale[k] == pytest.approx(scale, rel=1e-6)
    assert inputs.classes == ("a", "b")
    assert inputs["parts"].length == 4


def test_the_sample_is_bounded_and_does_not_depend_on_clusters(tmp_path: Path) -> None:
    path = write_tree(tmp_path / "x.root", event_columns(20_000), basket=1000)
    fits = []
    for entries in (1000, 7000):
        with open_dataset(card(path, splits=ALL), cluster_entries=entries) as dataset:
            fits.append(fit_normalisation(dataset, rows=2000))
            exact = fit_normalisation(dataset)
    for one, other in zip(fits[0].groups, fits[1].groups, strict=True):
        np.testing.assert_array_equal(one.centre, other.centre)
        np.testing.assert_array_equal(one.scale, other.scale)
    assert fits[0]["event"].centre[0] != exact["event"].centre[0]
    assert fits[0]["event"].centre[0] == pytest.approx(exact["event"].centre[0], abs=0.3)


def test_manual_values_are_kept_and_need_no_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tree(tmp_path / "x.root", event_columns(100))
    manual = {"e": {"vars": {"x": {"centre": 3, "scale": 0.5, "clip": [-1, 2]}, "y": {"centre": 0, "scale": 1, "clip": None}}}}
    with open_dataset(card(path, inputs=manual, nan=-1)) as dataset:
        monkeypatch.setattr(dataset, "decode", lambda *a, **k: pytest.fail("nothing has to be read"))
        group = fit_normalisation(dataset)["e"]
    assert group.centre.tolist() == [3, 0]
    assert group.scale.tolist() == [0.5, 1]
    assert group.lo.tolist() == [-1, -np.inf]
    assert group.hi.tolist() == [2, np.inf]
    assert group.nan.tolist() == [-1, -1]


def test_a_constant_gets_scale_one_and_a_warning(tmp_path: Path) -> None:
    columns = event_columns(100)
    columns["x"][:] = 5
    with open_dataset(card(write_tree(tmp_path / "x.root", columns))) as dataset:
        inputs = fit_normalisation(dataset)
        assert any("'x' of group 'event' is constant" in warning for warning in dataset.report["warnings"])
    assert (inputs["event"].centre[0], inputs["event"].scale[0]) == (5, 1)


def test_nan_does_not_enter_the_fit_and_nothing_but_nan_is_refused(tmp_path: Path) -> None:
    columns = event_columns(500)
    columns["x"][::2] = np.nan
    path = write_tree(tmp_path / "x.root", columns)
    with open_dataset(card(path, nan=0, splits=ALL)) as dataset:
        middle, _ = location(columns["x"][1::2])
        assert fit_normalisation(dataset)["event"].centre[0] == np.float32(middle)
    columns["x"][:] = np.nan
    path.unlink()
    with open_dataset(card(write_tree(path, columns), nan=0)) as dataset, pytest.raises(RunFailed, match="'x' has no finite value"):
        fit_normalisation(dataset)


def test_an_empty_training_split(tmp_path: Path) -> None:
    path = write_tree(tmp_path / "x.root", event_columns(50))
    tested = card(path, splits={"by": "hash", "fractions": {"test": 1.0}})
    with open_dataset(tested, training=False) as dataset, pytest.raises(UsageError, match="training split is empty"):
        fit_normalisation(dataset)


def group(**changes: Any) -> Group:
    f = np.float32
    fields: dict[str, Any] = {
        "name": "g",
        "variables": ("a", "b"),
        "length": None,
        "centre": np.array([0.1, 3.3], f),
        "scale": np.array([7.7, 0.3], f),
        "lo": np.array([-5, -np.inf], f),
        "hi": np.array([5, np.inf], f),
        "nan": np.array([0.5, -1], f),
    }
    return Group(**(fields | changes))


def test_apply_is_subtract_multiply_clip_in_float32() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(0, 10, (1000, 2)).astype(np.float32)
    x[0] = [np.nan, np.inf]
    x[1] = [-np.inf, np.nan]
    kept = x.copy()
    inputs = Inputs((group(),), ("p", "q"))
    z = apply(inputs, Features({"g": x}, {})).groups["g"]
    assert z.dtype == np.float32
    expected = (x[2:] - inputs["g"].centre) * inputs["g"].scale
    expected[:, 0] = np.clip(expected[:, 0], -5, 5)
    np.testing.assert_array_equal(z[2:], expected)
    assert z[:2].tolist() == [[0.5, np.inf], [-5.0, -1.0]]
    np.testing.assert_array_equal(x, kept)


def test_absent_constituents_become_zero_whatever_they_hold() -> None:
    x = np.full((3, 2, 2), np.nan, np.float32)
    x[0, 0] = [1, 2]
    x[1, :, :] = 4
    z = apply(
        Inputs((group(length=2, lo=np.float32([-9, -9]), hi=np.float32([99, 99])),), ()), Features({"g": x}, {"g": np.array([1, 2, 0], np.int32)})
    ).groups["g"]
    assert z[0, 1].tolist() == [0, 0]
    assert z[2].tolist() == [[0, 0], [0, 0]]
    assert np.all(z[1] != 0)


def test_storage_is_exact(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    bits = rng.integers(0, 2**32, (3, 2), dtype=np.uint32) & 0x7F7FFFFF
    awkward = bits.view(np.float32)
    inputs = Inputs((group(centre=awkward[0], scale=awkward[1], length=7, available="offline"), group(name="h", nan=awkward[2])), ("p", "q", "r"))
    save(tmp_path / "normalisation.json", inputs)
    back = load(tmp_path / "normalisation.json")
    assert back.classes == inputs.classes
    for one, other in zip(inputs.groups, back.groups, strict=True):
        assert (one.name, one.variables, one.length, one.available) == (other.name, other.variables, other.length, other.available)
        for field in ("centre", "scale", "lo", "hi", "nan"):
            assert getattr(one, field).tobytes() == getattr(other, field).tobytes()
            assert getattr(other, field).dtype == np.float32


def test_damaged_storage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "normalisation.json"
    save(path, Inputs((group(),), ("p", "q")))
    content = json.loads(path.read_text())
    del content["groups"][0]["variables"][0]["centre"]
    path.write_text(json.dumps(content))
    with pytest.raises(RunFailed, match="damaged normalisation") as caught:
        load(path)
    assert caught.value.where == str(path)

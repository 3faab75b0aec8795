"""Opened cards: rows, splits, labels, weights, collections, and what bad input gets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pytest
import uproot
from rootfiles import card, event_columns, write_tree

from hlt_train.data.card import SPLITS
from hlt_train.data.dataset import Dataset, open_dataset
from hlt_train.data.identity import hash_splits, identity_hashes
from hlt_train.errors import HltTrainError, RunFailed, UsageError
from hlt_train.types import Rows

N = 997


@pytest.fixture
def columns() -> dict[str, Any]:
    return event_columns(N)


@pytest.fixture
def path(tmp_path: Path, columns: dict[str, Any]) -> Path:
    return write_tree(tmp_path / "events.root", columns, basket=100)


def everything(dataset: Dataset, split: str) -> Rows:
    return dataset.rows(range(len(dataset.clusters)), split)


def test_rows_equal_the_file(path: Path, columns: dict[str, Any]) -> None:
    with open_dataset(card(path, observers=["y"], trigger={"rate_weight": "2 * weight", "variables": ["x"]}), cluster_entries=128) as dataset:
        identity = np.stack([columns[c].astype(np.int64) for c in ("run", "luminosityBlock", "event")], axis=1)
        expected = hash_splits(identity_hashes("all", identity), {"train": 0.6, "validation": 0.2, "test": 0.2})
        for code, split in enumerate(SPLITS):
            mine = np.flatnonzero(expected == code)
            rows = everything(dataset, split)
            np.testing.assert_array_equal(rows.identity[:, 2], mine)
            np.testing.assert_array_equal(rows.x.groups["event"], np.stack([columns["x"], columns["y"].astype(np.float32)], 1)[mine])
            padded = ak.to_numpy(ak.fill_none(ak.pad_none(columns["part"]["pt"][mine], 4, clip=True), 0))
            np.testing.assert_array_equal(rows.x.groups["parts"][..., 0], padded)
            np.testing.assert_array_equal(rows.x.counts["parts"], np.minimum(ak.num(columns["part"]["pt"])[mine], 4))
            np.testing.assert_array_equal(rows.label, columns["label"][mine])
            np.testing.assert_array_equal(rows.rate_weight, np.full(len(mine), 2.0))
            np.testing.assert_array_equal(rows.observers["y"], columns["y"][mine])
            np.testing.assert_array_equal(rows.reference["x"], columns["x"][mine])
            assert rows.x.groups["event"].dtype == np.float32
            assert rows.label.dtype == np.int32
            assert rows.weight.dtype == np.float64
            assert dataset.size(split) == len(mine)
            parts = list(dataset.iterate(split, step=17))
            assert max(len(p) for p in parts) <= 17
            np.testing.assert_array_equal(np.concatenate([p.identity for p in parts]), rows.identity)
            trained = dataset.rows(range(len(dataset.clusters)), split, columns="training")
            np.testing.assert_array_equal(trained.x.groups["parts"], rows.x.groups["parts"])
            assert len(trained.rate_weight) == 0


@pytest.mark.parametrize(("entries", "cluster_entries"), [(230, 1), (N, 64), (N, 100), (N, 250), (N, 100_000)])
def test_rows_do_not_depend_on_clusters(tmp_path: Path, entries: int, cluster_entries: int) -> None:
    path = write_tree(tmp_path / "events.root", event_columns(entries), basket=100)
    with open_dataset(card(path)) as one, open_dataset(card(path), cluster_entries=cluster_entries) as other:
        np.testing.assert_array_equal(everything(one, "train").identity, everything(other, "train").identity)
        starts = {c.start for c in other.clusters}
        assert cluster_entries < 100 or all(start % 100 == 0 for start in starts), "clusters start with baskets"


def test_several_files_and_globs(tmp_path: Path) -> None:
    for k in range(3):
        write_tree(tmp_path / f"part_{k}.root", event_columns(50, k, first=50 * k))
    both = card([tmp_path / "part_[01].root", tmp_path / "part_*.root"])
    with open_dataset(both) as dataset:
        assert [f["entries"] for f in dataset.report["samples"]["all"]["files"]] == [50, 50, 50]
        assert sum(dataset.size(s) for s in SPLITS) == 150
    with open_dataset(both, {"all": [str(tmp_path / "part_2.root")]}) as dataset:
        assert sum(dataset.size(s) for s in SPLITS) == 50
    with pytest.raises(UsageError, match="no sample 'al'") as caught:
        open_dataset(both, {"al": ["x"]})
    assert caught.value.near == ("all",)
    with pytest.raises(UsageError, match="no file matches"):
        open_dataset(card(tmp_path / "prt_*.root"))
    with pytest.raises(UsageError, match="has no files"):
        open_dataset(card([]))


def test_splits_by_expression(path: Path) -> None:
    splits = {"by": "expression", "train": "event % 10 < 6", "test": "event % 10 >= 8"}
    with open_dataset(card(path, splits=splits)) as dataset:
        assert set(everything(dataset, "train").identity[:, 2] % 10) == set(range(6))
        assert dataset.size("validation") == 0
        assert dataset.report["samples"]["all"]["unused"] == np.count_nonzero(np.isin(np.arange(N) % 10, (6, 7)))
    with pytest.raises(UsageError, match="splits 'train' and 'test' overlap: entry 5 is in both"):
        open_dataset(card(path, splits=splits | {"test": "event % 10 == 5"}))


def test_splits_by_file(tmp_path: Path) -> None:
    paths = [write_tree(tmp_path / f"{k}.root", event_columns(40, k, first=40 * k)) for k in range(3)]
    lists = {"train": [str(paths[0])], "validation": [str(tmp_path / "1*.root")], "test": [str(paths[2])]}
    with open_dataset(card(tmp_path / "*.root", splits={"by": "files"} | lists)) as dataset:
        assert everything(dataset, "validation").identity[:, 2].tolist() == list(range(40, 80))
    with open_dataset(card(tmp_path / "*.root"), split_files=lists) as dataset:
        assert everything(dataset, "test").identity[:, 2].tolist() == list(range(80, 120))
    with pytest.raises(UsageError, match="is in no split"):
        open_dataset(card(tmp_path / "*.root"), split_files={"train": [str(paths[0])]})
    with pytest.raises(UsageError, match="in split 'train' and in split 'test'"):
        open_dataset(card(tmp_path / "*.root"), split_files={"train": [str(tmp_path / "*.root")], "test": [str(paths[0])]})
    with pytest.raises(UsageError, match="unknown split 'val'"):
        open_dataset(card(tmp_path / "*.root"), split_files={"val": []})


def test_samples_with_selections_and_labels_by_sample(path: Path) -> None:
    samples = {"b": {"files": str(path), "selection": "label == 1"}, "a": {"files": str(path), "selection": "label == 0"}}
    with open_dataset(card(path, samples=samples, selection="event < 500", labels={"classes": ["a", "b"], "by": "sample"})) as dataset:
        rows = everything(dataset, "train")
        assert np.array_equal(rows.label, 1 - rows.sample)
        assert np.array_equal(rows.identity[:, 2] % 2, rows.label)
        assert rows.identity[:, 2].max() < 500
        assert dataset.report["samples"]["a"]["selected"] == 250


def test_balance_gives_equal_sums_and_mean_weight(tmp_path: Path) -> None:
    columns = event_columns(N)
    columns["label"] = (np.arange(N) % 5 == 0).astype(np.int32)
    path = write_tree(tmp_path / "x.root", columns)
    with open_dataset(card(path, weights={"expression": "1 + label", "balance": True})) as dataset:
        rows = everything(dataset, "train")
        sums = np.bincount(rows.label, rows.weight)
        assert sums[0] == pytest.approx(sums[1])
        assert dataset.mean_weight == pytest.approx(rows.weight.mean())
        assert sums.sum() == pytest.approx((1 + rows.label).sum())


@pytest.mark.parametrize(("rule", "expected"), [("keep", [-1.0, 1.0]), ("abs", [1.0, 1.0]), ("drop", [0.0, 1.0])])
def test_negative_weights(path: Path, rule: str, expected: list[float]) -> None:
    weights = {"expression": "where(event % 5 == 0, -1, 1)", "negative": rule}
    with open_dataset(card(path, weights=weights, trigger={"rate_weight": weights["expression"]})) as dataset:
        rows = everything(dataset, "train")
        negative = rows.identity[:, 2] % 5 == 0
        assert np.array_equal(rows.weight, np.where(negative, *expected))
        assert np.array_equal(rows.rate_weight, np.where(negative, -1.0, 1.0)), "rates keep negative weights"
        assert dataset.report["negative_weight_fraction"] == pytest.approx(negative.mean())
        assert any("negative weight" in warning for warning in dataset.warnings)


def test_negative_weights_can_be_an_error(path: Path) -> None:
    with pytest.raises(UsageError, match="is negative at entry 3"):
        open_dataset(card(path, weights={"expression": "where(event == 3, -1, 1)", "negative": "error"}))


def test_duplicates_are_counted_and_named(tmp_path: Path, columns: dict[str, Any]) -> None:
    columns["event"][700] = 5
    columns["event"][900] = 6
    path = write_tree(tmp_path / "x.root", columns)
    with open_dataset(card(path)) as dataset:
        report = dataset.report["samples"]["all"]
        assert report["duplicates"] == 2
        assert report["duplicate_examples"][0] == f"run 1, luminosityBlock 7, event 5: {path} entry 5 and {path} entry 700"
        assert "2 entries repeat" in dataset.warnings[0]


def collection_columns() -> dict[str, Any]:
    rng = np.random.default_rng(3)
    n = 211
    counts = rng.integers(0, 5, n)
    total = int(counts.sum())
    tracks = rng.integers(0, 4, total)
    pt = rng.exponential(40, total).astype(np.float32)
    return {
        "run": np.ones(n, np.int32),
        "luminosityBlock": np.ones(n, np.int32),
        "event": np.arange(n),
        "met": rng.exponential(20, n).astype(np.float32),
        "Jet": ak.zip(
            {
                "pt": ak.unflatten(pt, counts),
                "eta": ak.unflatten(rng.normal(0, 2, total).astype(np.float32), counts),
                "flavour": ak.unflatten(rng.integers(0, 2, total), counts),
            }
        ),
        "Muon": ak.zip({"pt": ak.unflatten(rng.exponential(9, total).astype(np.float32), np.roll(counts, 1))}),
        "_tracks": ak.unflatten(ak.unflatten(rng.normal(0, 1, int(tracks.sum())).astype(np.float32), tracks), counts),
    }


def collection_card(path: Path, **changes: Any) -> Any:
    settings: dict[str, Any] = {
        "example": "Jet",
        "object_selection": "(Jet_pt > 10) & (abs(Jet_eta) < 2.5)",
        "new_variables": {"Jet_logpt": "log(Jet_pt)", "ht": "sum(Jet_pt)", "fraction": "Jet_pt / ht", "n": "count(Jet_pt)"},
        "inputs": {"jet": ["Jet_logpt", "Jet_eta", "fraction", "met", "ht"], "muons": {"length": 3, "vars": ["Muon_pt"]}},
        "labels": {"classes": ["light", "b"], "expression": "Jet_flavour"},
        "weights": {"expression": "1"},
        "observers": ["Jet_pt", "n"],
        "splits": {"by": "hash", "fractions": {"train": 1.0}},
    }
    return card(path, **(settings | changes))


def test_objects_of_a_collection_are_rows(tmp_path: Path) -> None:
    columns = collection_columns()
    nested = columns.pop("_tracks")
    path = write_tree(tmp_path / "x.root", columns, basket=50)
    with open_dataset(collection_card(path), cluster_entries=50) as dataset:
        rows = everything(dataset, "train")
        expected = [
            (event, k, jet["pt"], jet["eta"], jet["flavour"], met, sum(j["pt"] for j in jets), [m["pt"] for m in muons])
            for event, (jets, met, muons) in enumerate(zip(columns["Jet"].to_list(), columns["met"].tolist(), columns["Muon"].to_list(), strict=True))
            for k, jet in enumerate(jets)
            if jet["pt"] > 10 and abs(jet["eta"]) < 2.5
        ]
        assert len(rows) == len(expected) == dataset.size("train")
        np.testing.assert_array_equal(rows.identity[:, 2], [e[0] for e in expected])
        np.testing.assert_array_equal(rows.object, [e[1] for e in expected])
        np.testing.assert_array_equal(rows.label, [e[4] for e in expected])
        wanted = [[np.log(e[2]), e[3], e[2] / e[6], e[5], e[6]] for e in expected]
        np.testing.assert_allclose(rows.x.groups["jet"], wanted, rtol=1e-5)
        np.testing.assert_array_equal(rows.x.counts["muons"], [min(len(e[7]), 3) for e in expected])
        np.testing.assert_allclose(rows.x.groups["muons"][:, :, 0], [(e[7] + [0] * 3)[:3] for e in expected], rtol=1e-6)
        assert len(np.unique(dataset.identity_keys(rows))) == len(rows)
    assert nested.ndim == 3


def test_objects_of_one_event_stay_in_one_split(tmp_path: Path) -> None:
    columns = collection_columns()
    columns.pop("_tracks")
    path = write_tree(tmp_path / "x.root", columns)
    with open_dataset(collection_card(path, splits={"by": "hash"})) as dataset:
        events = [set(everything(dataset, split).identity[:, 2].tolist()) for split in SPLITS]
    assert not events[0] & events[1]
    assert not events[0] & events[2]
    assert not events[1] & events[2]


def test_lists_of_lists_are_constituents_of_objects(tmp_path: Path) -> None:
    columns = collection_columns()
    nested = columns.pop("_tracks")
    path = tmp_path / "x.root"
    flat = {name: value for name, value in columns.items() if name not in ("Jet", "Muon")}
    fields = {f"Jet_{name}": columns["Jet"][name] for name in ("pt", "eta", "flavour")} | {"Muon_pt": columns["Muon"]["pt"], "Jet_tracks": nested}
    with uproot.recreate(path) as file:
        file.mkrntuple("Events", ak.Array(flat | fields))
    inputs = {"jet": ["Jet_pt"], "tracks": {"length": 2, "vars": ["Jet_tracks"]}}
    with open_dataset(collection_card(path, inputs=inputs, object_selection=None)) as dataset:
        rows = everything(dataset, "train")
    wanted = [tracks for jets in nested.to_list() for tracks in jets]
    np.testing.assert_array_equal(rows.x.counts["tracks"], [min(len(t), 2) for t in wanted])
    np.testing.assert_allclose(rows.x.groups["tracks"][:, :, 0], [[*t, 0, 0][:2] for t in wanted])


def test_a_collection_that_is_not_there(path: Path) -> None:
    with pytest.raises(UsageError, match="no collection 'Part'") as caught:
        open_dataset(card(path, example="Part", inputs={"e": ["x"]}))
    assert caught.value.near == ("part",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": {"e": ["x", "z"]}}, r"branch 'z' is missing"),
        ({"inputs": {"e": ["part_pt"]}}, r"input of group 'e': 'part_pt' is a list per entry, used as one value"),
        ({"inputs": {"e": {"length": 3, "vars": ["x"]}}}, r"input of group 'e': 'x' is one value per entry, not a list"),
        ({"labels": {"classes": ["a", "b"], "expression": "label + 1"}}, r"label 2 is out of range: 2 classes are numbered 0 to 1"),
        ({"labels": {"classes": ["a", "b"], "expression": "label / 2"}}, r"label 0.5 is out of range"),
        ({"labels": {"classes": ["a", "b", "c"], "expression": "label"}}, r"class 'c' has no row in any split"),
        ({"splits": {"by": "expression", "train": "label == 0", "test": "label == 1"}}, r"class 'b' has no row in the training split \(498 in the others\)"),
        ({"weights": {"expression": "where(label == 1, -1, 1)"}}, r"the training weights of class 'b' sum to -\d+"),
        ({"weights": {"expression": "log(event - 5)"}}, r"training weight 'log\(event - 5\)' is .* at entry"),
        ({"identity": ["x"]}, r"identity 'x' is not a whole number"),
        ({"identity": ["part_pt"]}, r"identity 'part_pt' is a list per entry"),
        ({"selection": "event < 0"}, r"sample 'all' has no row: the selection refuses every entry"),
        ({"selection": "part_pt > 0"}, r"selection 'part_pt > 0' is a list per entry"),
        ({"new_variables": {"a": "b", "b": "a"}, "inputs": {"e": ["a"]}}, r"new variables form a circle"),
        ({"new_variables": {"a": "a + 1"}, "inputs": {"e": ["a"]}}, r"new variable 'a' is defined by itself"),
        ({"tree": "Event"}, r"no tree 'Event'"),
        (
            {"inputs": {"e": {"length": 3, "vars": ["part_pt", "part_big"]}}, "new_variables": {"part_big": "part_pt[part_pt > 5]"}},
            r"mixes lists of different length",
        ),
        ({"inputs": {"e": ["x"]}, "observers": ["part_pt"]}, r"observer 'part_pt' is a list per entry"),
    ],
)
def test_refusals(path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(HltTrainError, match=message) as caught, open_dataset(card(path, **changes)) as dataset:
        everything(dataset, "train")
    assert isinstance(caught.value, UsageError | RunFailed)


def test_a_missing_branch_names_sample_file_and_nearest(tmp_path: Path) -> None:
    full = write_tree(tmp_path / "a.root", event_columns(50))
    columns = event_columns(50)
    columns["X1"] = columns.pop("x")
    other = write_tree(tmp_path / "b.root", columns)
    samples = {"one": {"files": str(full)}, "two": {"files": str(other)}}
    with pytest.raises(UsageError, match="branch 'x' is missing") as caught:
        open_dataset(card(full, samples=samples))
    assert str(other) in caught.value.where
    assert "sample 'two'" in caught.value.where
    assert "X1" in caught.value.near


def test_strings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.root"
    with uproot.recreate(path) as file:
        file.mkrntuple("Events", ak.Array({"x": ["a", "b"], "label": [0, 1], "weight": [1, 1], "run": [1, 1], "luminosityBlock": [1, 1], "event": [1, 2]}))
    with pytest.raises(UsageError, match="branch 'x' holds std::string, not numbers"):
        open_dataset(card(path, inputs={"e": ["x"]}))


def test_zero_entries(tmp_path: Path, path: Path) -> None:
    empty = write_tree(tmp_path / "empty.root", event_columns(0))
    with pytest.raises(UsageError, match="sample 'all' has zero entries"):
        open_dataset(card(empty))
    with open_dataset(card([empty, path])) as dataset:
        assert sum(dataset.size(s) for s in SPLITS) == N, "an empty file beside a full one is what a skim leaves"


def bad_columns(value: float) -> dict[str, Any]:
    columns = event_columns(N)
    columns["x"][[300, 301, 650]] = value
    return columns


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_values_are_refused_with_branch_file_and_entries(tmp_path: Path, value: float) -> None:
    path = write_tree(tmp_path / "x.root", bad_columns(value), basket=200)
    with open_dataset(card(path, splits={"by": "hash", "fractions": {"train": 1.0}}), cluster_entries=200) as dataset:
        with pytest.raises(RunFailed, match=r"'x' has 2 values that are NaN or infinite, the first at entry 300") as caught:
            everything(dataset, "train")
        assert caught.value.where == f"{path}, tree 'Events', entries 200 to 400, branch 'x'"


def test_non_finite_values_are_counted_where_they_are_replaced(tmp_path: Path) -> None:
    path = write_tree(tmp_path / "x.root", bad_columns(np.nan), basket=200)
    with open_dataset(card(path, nan=0.5, splits={"by": "hash", "fractions": {"train": 1.0}}), cluster_entries=200) as dataset:
        for _ in range(2):
            assert np.isnan(everything(dataset, "train").x.groups["event"][:, 0]).sum() == 3
        assert dataset.nonfinite == {"x": 3}
        assert dataset.report["nonfinite"] == {"x": 3}


def test_padding_and_constituents_beyond_the_length_are_not_inspected(tmp_path: Path) -> None:
    columns = event_columns(N)
    long = ak.num(columns["part"]["pt"]) > 4
    pt = ak.where(long & (ak.local_index(columns["part"]["pt"]) >= 4), np.nan, columns["part"]["pt"])
    columns["part"] = ak.zip({"pt": ak.values_astype(pt, np.float32), "eta": columns["part"]["eta"]})
    with open_dataset(card(write_tree(tmp_path / "x.root", columns))) as dataset:
        assert len(everything(dataset, "train"))


def test_derived_variables_are_named_with_their_expression(path: Path) -> None:
    derived = card(path, new_variables={"logx": "log(x - 10)"}, inputs={"e": ["logx"]})
    with open_dataset(derived) as dataset, pytest.raises(RunFailed, match=r"'logx' \(log\(x - 10\)\) has \d+ values"):
        everything(dataset, "train")


def test_huge_values_are_taken_for_damage(tmp_path: Path) -> None:
    path = write_tree(tmp_path / "x.root", bad_columns(3e38), basket=200)
    with open_dataset(card(path, nan=0, splits={"by": "hash", "fractions": {"train": 1.0}})) as dataset:
        with pytest.raises(RunFailed, match=r"values beyond 1e\+30 in 3 rows, the first at entry 300.*damaged") as caught:
            everything(dataset, "train")
        assert "branch 'x'" in caught.value.where


def test_without_labels_nothing_of_the_training_is_read(tmp_path: Path) -> None:
    columns = event_columns(60)
    del columns["label"], columns["weight"]
    path = write_tree(tmp_path / "x.root", columns)
    with pytest.raises(UsageError, match="branch 'label' is missing"):
        open_dataset(card(path))
    with open_dataset(card(path), labelled=False) as dataset:
        assert set(everything(dataset, "test").label.tolist()) == {-1}


def test_classes_may_be_missing_when_nothing_is_trained(path: Path) -> None:
    with open_dataset(card(path, labels={"classes": ["a", "b", "c"], "expression": "label"}), training=False) as dataset:
        assert dataset.report["classes"]["c"]["rows"]["train"] == 0


def test_scratch_is_left_clean(path: Path, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with open_dataset(card(path), scratch=scratch):
        assert list(scratch.iterdir())
    assert not list(scratch.iterdir())
    with pytest.raises(UsageError):
        open_dataset(card(path, labels={"classes": ["a", "b", "c"], "expression": "label"}), scratch=scratch)
    assert not list(scratch.iterdir())


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    paths = [write_tree(tmp_path / f"{k}.root", event_columns(50, k, first=50 * k)) for k in range(2)]
    with open_dataset(card(paths)) as dataset:
        dataset._decoder.trees.close()
        paths[0].unlink()
        write_tree(paths[0], event_columns(40, 9))
        with pytest.raises(RunFailed, match="has changed since"):
            everything(dataset, "train")


def test_the_report_is_json(path: Path) -> None:
    with open_dataset(card(path)) as dataset:
        report = json.loads(json.dumps(dataset.report, allow_nan=False))
    assert sum(report["rows"].values()) == N
    assert report["samples"]["all"]["files"][0]["uuid"]

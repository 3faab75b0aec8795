"""Opening and reading ROOT files: what comes back, and what each kind of bad file gets."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import uproot
from rootfiles import event_columns, write_tree

from hlt_train.data.read import Trees, open_tree
from hlt_train.errors import HltTrainError, RunFailed, UsageError


@pytest.fixture
def pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(2)


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (b"", UsageError, r"the file is empty \(0 bytes\)"),
        (b"run event\n1 2\n", UsageError, r"not a ROOT file \(text that starts 'run event'\)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", UsageError, r"not a ROOT file \(git-LFS pointer\)"),
        (b"\x1f\x8b\x08\x00\x00\x00\x00\x00" * 20, UsageError, r"not a ROOT file \(first bytes 1f 8b 08 00\)"),
        (b"root\x00\x00", RunFailed, "less than a ROOT header"),
    ],
)
def test_files_that_are_not_root(tmp_path: Path, content: bytes, kind: type[HltTrainError], message: str) -> None:
    path = tmp_path / "data.root"
    path.write_bytes(content)
    with pytest.raises(kind, match=message) as caught:
        open_tree(str(path), None)
    assert caught.value.where == str(path)


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "signal_1.root").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"no such file: signal_2.root") as caught:
        open_tree(str(tmp_path / "signal_2.root"), None)
    assert caught.value.near == ("signal_1.root",)
    with pytest.raises(UsageError) as caught:
        open_tree(str(tmp_path / "none" / "signal_2.root"), None)
    assert "the folder does not exist" in caught.value.where


def test_a_directory_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a directory"):
        open_tree(str(tmp_path), None)


@pytest.mark.parametrize("keep", [40, 300, 0.5, 0.99])
def test_truncated_files(tmp_path: Path, keep: float) -> None:
    whole = write_tree(tmp_path / "whole.root", event_columns(2000)).read_bytes()
    path = tmp_path / "cut.root"
    path.write_bytes(whole[: int(keep * len(whole)) if keep < 1 else int(keep)])
    with pytest.raises(RunFailed, match="truncated"):
        open_tree(str(path), None)


def test_a_file_without_a_tree(tmp_path: Path) -> None:
    path = tmp_path / "histograms.root"
    with uproot.recreate(path) as file:
        file["h"] = np.histogram(np.arange(10.0))
    with pytest.raises(UsageError, match="holds no tree"):
        open_tree(str(path), None)


def test_the_choice_of_the_tree(tmp_path: Path) -> None:
    path = tmp_path / "trees.root"
    with uproot.recreate(path) as file:
        for name in ("Events", "Runs", "dir/signal"):
            file.mktree(name, {"x": np.dtype("f4")}).extend({"x": np.ones(3, np.float32)})
    assert open_tree(str(path), None).name == "Events"
    assert open_tree(str(path), "Runs").name == "Runs"
    assert open_tree(str(path), "signal").name == "dir/signal"
    assert open_tree(str(path), "dir/signal").name == "dir/signal"
    with pytest.raises(UsageError, match="no tree 'Event'") as caught:
        open_tree(str(path), "Event")
    assert caught.value.near == ("Events",)
    other = tmp_path / "two.root"
    with uproot.recreate(other) as file:
        for name in ("signal", "background"):
            file.mktree(name, {"x": np.dtype("f4")}).extend({"x": np.ones(3, np.float32)})
    with pytest.raises(UsageError, match="the choice of the tree is open") as caught:
        open_tree(str(other), None)
    assert set(caught.value.near) == {"signal", "background"}


def test_the_only_tree_is_taken(tmp_path: Path) -> None:
    assert open_tree(str(write_tree(tmp_path / "x.root", event_columns(5), tree="ntuple")), None).name == "ntuple"


def test_columns_come_back(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    columns = event_columns(100)
    tree = open_tree(str(write_tree(tmp_path / "x.root", columns, basket=30)), None)
    assert tree.entries == 100
    assert tree.offsets(["x", "part_pt"]) == [0, 30, 60, 90, 100]
    assert (tree.branch("x").depth, tree.branch("x").dtype) == (0, np.dtype("f4"))
    assert (tree.branch("part_pt").depth, tree.branch("part_pt").dtype) == (1, np.dtype("f4"))
    got = tree.submit(["x", "event", "part_pt"], 17, 75, pool).result()
    np.testing.assert_array_equal(got["x"], columns["x"][17:75])
    np.testing.assert_array_equal(got["event"], columns["event"][17:75])
    assert got["part_pt"].to_list() == columns["part"]["pt"][17:75].to_list()


def test_rntuple(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    path = tmp_path / "x.root"
    array = ak.Array({"x": [1.0, 2.0, 3.0], "pt": [[1.0], [], [2.0, 3.0]], "name": ["a", "b", "c"], "jet": [[{"eta": 1.0}], [], [{"eta": 2.0}]]})
    with uproot.recreate(path) as file:
        file.mkrntuple("Events", array)
    tree = open_tree(str(path), None)
    assert tree.entries == 3
    assert {"x", "pt", "name"} <= set(tree.names)
    assert "jet.eta" in tree
    assert "jet.phi" not in tree
    assert tree.branch("pt").depth == 1
    assert tree.branch("name").dtype is None
    got = tree.submit(["x", "pt", "jet.eta"], 1, 3, pool).result()
    assert got["x"].tolist() == [2.0, 3.0]
    assert got["pt"].to_list() == [[], [2.0, 3.0]]
    assert got["jet.eta"].to_list() == [[], [2.0]]
    assert tree.offsets(["x"]) == [0, 3]


def test_damaged_baskets_name_branch_and_entries(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    path = write_tree(tmp_path / "x.root", event_columns(5000), basket=1000)
    with uproot.open(path) as file:
        key = file["Events"]["y"].member("fBasketSeek")[2]
    content = bytearray(path.read_bytes())
    content[key + 200 : key + 264] = b"\x55" * 64
    path.write_bytes(content)
    tree = open_tree(str(path), None)
    tree.submit(["y"], 0, 2000, pool).result()
    with pytest.raises(RunFailed, match="cannot read branch 'y'") as caught:
        tree.submit(["x", "y"], 2000, 3000, pool).result()
    assert "entries 2000 to 3000" in caught.value.where


def test_trees_are_kept_open_within_a_budget(tmp_path: Path) -> None:
    paths = [str(write_tree(tmp_path / f"{k}.root", event_columns(5, k))) for k in range(3)]
    trees = Trees(files=2)
    first = trees.get(paths[0], None)
    assert trees.get(paths[0], None) is first
    trees.get(paths[1], None)
    trees.get(paths[2], None)
    assert trees.get(paths[0], None) is not first
    trees.close()

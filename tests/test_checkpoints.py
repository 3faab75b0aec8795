"""Checkpoints: complete or absent, never mistaken for another model's, never deleted while they are pointed at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from hlt_train import checkpoints
from hlt_train.checkpoints import Snapshot
from hlt_train.errors import RunFailed, UsageError

TREE: dict[str, Any] = {"a": [np.arange(3, dtype=np.float32), None], "b": {"c": np.int32(5)}}


def saved(run: Path, *steps: int) -> None:
    for step in steps:
        checkpoints.save(run, Snapshot(TREE, TREE, {"step": step}))


def test_round_trip_keeps_every_bit_and_type(tmp_path: Path) -> None:
    tree = {"x": np.array([1.5, np.pi], np.float32), "half": np.asarray(jnp.arange(3, dtype=jnp.bfloat16)), "n": np.uint32(7)}
    checkpoints.save(tmp_path, Snapshot(tree, tree, {"step": 3}))
    found = checkpoints.to_tree(checkpoints.load(tmp_path, 3, "state"), tree, where="here")
    for name, leaf in tree.items():
        assert found[name].dtype == leaf.dtype
        assert found[name].tobytes() == leaf.tobytes()


def test_other_models_are_refused(tmp_path: Path) -> None:
    arrays = checkpoints.to_arrays(TREE)
    with pytest.raises(RunFailed, match="differing: d"):
        checkpoints.to_tree(arrays, {**TREE, "d": np.zeros(1)}, where="here")
    with pytest.raises(RunFailed, match=r"shape \(3,\), expected \(4,\)"):
        checkpoints.to_tree(arrays, {"a": [np.zeros(4), None], "b": {"c": 0}}, where="here")


@pytest.mark.parametrize("damage", ["flip", "cut", "lose"])
def test_damage_is_seen(damage: str, tmp_path: Path) -> None:
    saved(tmp_path, 1)
    path = tmp_path / "checkpoints" / "1" / "state.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "lose":
        path.unlink()
    else:
        path.write_bytes(bytes(content) if damage == "flip" else bytes(content[:-10]))
    with pytest.raises(RunFailed, match="lost a file" if damage == "lose" else "SHA-256"):
        checkpoints.load(tmp_path, 1, "state")


def test_pruning_keeps_the_newest_and_what_is_pointed_at(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3, 4, 5, 6)
    checkpoints.point(tmp_path, "BEST", 2)
    checkpoints.point(tmp_path, "LAST", 6)
    checkpoints.prune(tmp_path, 2)
    assert checkpoints.steps(tmp_path) == [2, 5, 6]


def test_what_a_killed_process_left_is_dropped(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3)
    (tmp_path / "checkpoints" / ".4.writing").mkdir()
    checkpoints.drop_after(tmp_path, 2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["1", "2"]
    saved(tmp_path, 2)  # again at the same step
    assert checkpoints.document(tmp_path, 2)["step"] == 2


def test_pointers(tmp_path: Path) -> None:
    assert checkpoints.pointed(tmp_path, "LAST") is None
    checkpoints.point(tmp_path, "LAST", 9)
    with pytest.raises(UsageError, match="not there"):
        checkpoints.pointed(tmp_path, "LAST")

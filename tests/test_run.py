"""Run directories: one writer, metrics that are cut, configurations that are read back."""

from __future__ import annotations

from pathlib import Path

import pytest

from hlt_train import run as runs
from hlt_train.errors import RunFailed, UsageError
from hlt_train.run import Run


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with Run.create(tmp_path / "r") as run:
        run.write_config({"seed": 1})
        with pytest.raises(UsageError, match="being written by process"):
            Run.open(tmp_path / "r")
    with Run.open(tmp_path / "r"):
        pass


def test_never_over_something(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "precious").write_text("x")
    with pytest.raises(UsageError, match="nothing is ever overwritten"):
        Run.create(tmp_path / "r")
    with pytest.raises(UsageError, match="not a run directory"):
        Run.open(tmp_path / "r")
    assert (tmp_path / "r" / "precious").read_text() == "x"


def test_metrics_are_cut_where_the_checkpoint_was_taken(tmp_path: Path) -> None:
    with Run.create(tmp_path / "r") as run:
        assert run.metrics() == []
        assert run.metrics_size() == 0
        for step in range(5):
            run.metric({"step": step})
            if step == 2:
                size = run.metrics_size()
        with (run.path / "metrics.jsonl").open("a") as stream:
            stream.write('{"step": 5, "lo')  # a process that died while it wrote
        assert [line["step"] for line in run.metrics()] == [0, 1, 2, 3, 4]
        run.cut_metrics(size)
        assert [line["step"] for line in run.metrics()] == [0, 1, 2]
        with pytest.raises(RunFailed, match="shorter"):
            run.cut_metrics(size + 1)
        run.cut_metrics(0)
        run.metric({"step": 0})
        assert [line["step"] for line in run.metrics()] == [0]


def test_configuration_comes_back(tmp_path: Path) -> None:
    content = {"verb": "fit", "model": {"name": "mlp", "widths": [8, 8]}, "for": "3epochs", "rate": 1e-5}
    with Run.create(tmp_path / "r") as run:
        run.write_config(content)
        assert runs.read_config(run.path) == content
        assert runs.read_config(run.path / "config.yaml") == content
        assert (run.path / "config.yaml").read_text().startswith("format: hlt-train/config\nversion: 1\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [("- a\n", "expected a mapping"), ("a: [", "not YAML"), ("format: hlt-train/card\n", "expected a configuration"), ("version: 2\n", "newer than")],
)
def test_configurations_that_are_none(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UsageError, match=message):
        runs.read_config(tmp_path / "c.yaml")
    with pytest.raises(UsageError, match="no such file"):
        runs.read_config(tmp_path / "d.yaml")


def test_provenance_keeps_its_sessions(tmp_path: Path) -> None:
    with Run.create(tmp_path / "r") as run:
        run.write_provenance({"environment": {"nproc": 4}})
        run.write_provenance({})
        found = run.provenance()
    assert found["environment"] == {"nproc": 4}
    assert len(found["sessions"]) == 2
    assert found["sessions"][0]["argv"]


def test_constraints_name_every_distribution() -> None:
    lines = runs.constraints().splitlines()
    assert lines[0].startswith("# hlt-train==")
    assert any(line.startswith("jax==") for line in lines)
    assert all("==" in line for line in lines)


def test_discard(tmp_path: Path) -> None:
    with Run.create(tmp_path / "r") as run:
        run.discard()
    assert not (tmp_path / "r").exists()

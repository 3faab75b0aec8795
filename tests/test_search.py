"""The search within a budget, end to end on small files: the same candidates again, also across an interruption; what fits, what does not, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hlt_train import checkpoints, search_outcome
from hlt_train.artefact import open_export
from hlt_train.distil import distil, resume
from hlt_train.errors import BudgetNotMet, Interrupted, UsageError
from hlt_train.files import read_document, sha256, write_document
from hlt_train.fit import fit
from hlt_train.latency_table import FORMAT, KERNELS, TILE
from hlt_train.progress import Progress
from hlt_train.restore import load_run
from hlt_train.run import read_config
from tests import runs
from tests.distillation import SUBSET, Stopper, change, config, weights_hash, write_card

QUIET = Progress(quiet=True)
SEARCH = {"trials": 3, "widths": [3, 4], "depth": [1, 2], "rungs": 2, "weights": [4, 6], "options": {"temperature": [1.0, 2.0]}}
MACS = 40  # of 6 inputs, 6 outputs: one hidden layer of 3 fits (36), of 4 does not (48)


@pytest.fixture(scope="module", autouse=True)
def few_vectors() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search_outcome, "VECTORS", 2000)
        yield


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jets")
    fit(runs.config(write_card(folder), length="4epochs", learning_rate=0.02), folder / "teacher", progress=QUIET)
    return folder / "teacher"


def asked(teacher: Path, search: dict[str, Any] = SEARCH, **budget: Any) -> Any:
    return config(teacher, length="60steps", batch=64, budget=budget, search=search, learning_rate=0.01)


def test_one_candidate_that_fits(teacher: Path, tmp_path: Path) -> None:
    """From the command's configuration to a certified export; a proposal of more than 30 multiplications is never trained. The card has inputs of its own."""
    path, card = tmp_path / "r", teacher.parent / "small.yaml"
    subset = change(card, "subset.yaml", (next(line for line in card.read_text().splitlines() if line.startswith("inputs:")), SUBSET))
    search = {"trials": 1, "rungs": 1, "widths": [3, 4], "depth": [1]}
    result = distil(config(teacher, subset, length="60steps", budget={"macs": 30}, search=search), path, progress=QUIET)
    told = record(path)
    assert [one["verdict"] for one in told["candidates"]].count("trained") == 1
    assert told["candidates"][told["chosen"]]["model"] == {"name": "mlp", "widths": [3]}
    assert [p.name for p in (path / "search" / "candidates").iterdir()] == [str(told["chosen"])]
    assert read_config(path)["model"] == {"name": "mlp", "widths": [3]}
    assert weights_hash(path, "BEST") == weights_hash(path / "search" / "candidates" / str(told["chosen"]) / "60", "BEST")
    assert open_export(path / "export" / "cpp").certificate["budget"]["measured"]["costs"] == {"macs": 27.0}
    assert result["search"]["costs"] == {"macs": 27.0}  # 3 inputs, 3 hidden, 6 outputs
    assert 0 <= result["search"]["value"] <= 1
    assert "teacher" not in result["search"]  # it cannot be given these rows
    assert read_config(path / "search")["search"]["trials"] == 1  # what repeats the search


@pytest.fixture(scope="module")
def found(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    path = tmp_path_factory.mktemp("runs") / "found"
    return path, distil(asked(teacher, macs=70), path, progress=QUIET)


def record(path: Path) -> dict[str, Any]:
    return read_document(path / "search" / "search.json", "hlt-train/search", 1)


@pytest.mark.slow
def test_the_best_that_fits_becomes_the_run(found: tuple[Path, dict[str, Any]]) -> None:
    path, result = found
    told = record(path)
    trained = [one for one in told["candidates"] if one["verdict"] == "trained"]
    assert len(trained) == 3
    assert all(one["predicted"]["macs"] <= 70 for one in trained)
    assert all(one["predicted"]["macs"] > 70 for one in told["candidates"] if one["verdict"] == "over budget")
    assert not [one for one in told["candidates"] if one["verdict"] == "over budget" and (path / "search" / "candidates" / str(one["number"])).exists()]
    assert told["rungs"] == [20, 60]
    (decision,) = told["decisions"]
    first = {one["number"]: one["figures"][0]["value"] for one in trained}
    assert decision["entered"] == sorted(first)
    assert decision["went_on"] == [max(first, key=lambda number: (first[number], -number))]
    assert told["chosen"] == decision["went_on"][0]
    chosen = path / "search" / "candidates" / str(told["chosen"]) / "60"
    assert weights_hash(path, "BEST") == weights_hash(chosen, "BEST")
    assert load_run(path).spec == load_run(chosen).spec
    assert read_config(path)["model"] == read_config(chosen)["model"]
    assert read_config(path)["for"] == "60steps"
    assert checkpoints.pointed(chosen, "LAST") == 30  # after a warm-up of 30
    assert checkpoints.pointed(chosen / "warmup", "LAST") == 30
    assert checkpoints.pointed(chosen.with_name("20") / "warmup", "LAST") == 10
    certificate = json.loads((path / "export" / "cpp" / "certificate.json").read_text())
    assert certificate["budget"]["met"]
    assert certificate["budget"]["measured"]["costs"] == certificate["budget"]["predicted"] == {"macs": float(result["golden"]["cost"]["macs"])}
    assert open_export(path / "export" / "cpp").graph.exact
    assert 0 <= result["search"]["value"] <= 1
    assert result["search"]["teacher"]["value"] > 0
    assert (path / "search" / "front_macs.svg").read_text().startswith("<svg")
    assert result["search"]["rows"][0]["number"] == told["chosen"]


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_anew")
def test_the_same_candidates_across_an_interruption(teacher: Path, found: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Stopped in the middle of a candidate, a torn line in the journal, half a candidate that is no run: the same record, bit for bit."""
    path = tmp_path / "again"
    with pytest.raises(Interrupted) as stopped:
        distil(asked(teacher, macs=70), path, progress=Stopper(4))
    assert f"distil --resume {path}" in str(stopped.value)
    with (path / "search" / "journal.log").open("ab") as stream:
        stream.write(b'{"op_code"')
    before = {p: p.stat().st_mtime_ns for p in path.rglob("candidates/*/*/student.json")}
    result = resume(path, progress=QUIET)
    assert before
    assert {p: p.stat().st_mtime_ns for p in before} == before  # none is trained again
    assert record(path) == record(found[0])
    assert weights_hash(path, "BEST") == weights_hash(found[0], "BEST")
    assert {k: v for k, v in result["search"].items() if k != "plots"} == {k: v for k, v in found[1]["search"].items() if k != "plots"}
    assert resume(path, progress=QUIET)["search"] == result["search"]  # finished: told again
    with pytest.raises(UsageError, match="a search has a fixed length"):
        resume(path, length="90steps", progress=QUIET)


@pytest.mark.slow
def test_nothing_fits(teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(BudgetNotMet) as caught:
        distil(asked(teacher, {**SEARCH, "trials": 1}, macs=20), tmp_path / "r", progress=QUIET)
    assert caught.value.exit_code == 3
    assert "is predicted at 36 of 20 multiply-accumulates" in str(caught.value)
    assert "macs: 1.80 of the limit" in str(caught.value)
    assert not list((tmp_path / "r").rglob("student.json"))  # nothing was trained


def table(path: Path, ns: float) -> Path:
    """A latency table in which a call costs `ns` and nothing else does."""
    constants = {**dict.fromkeys(KERNELS, 0.0), "call": ns}
    error = {"median": 0.0, "worst": 0.0}
    content = {"compiler": "c++", "flags": "-O2", "method": "", "machine": {"cpu": "another"}, "seed": 0}
    write_document(path, *FORMAT, {**content, "paths": {name: {"ns": constants, "networks": 1, "fit": error, "held_out": error} for name in TILE}})
    return path


@pytest.mark.slow
def test_finalists_are_measured_and_set_aside(teacher: Path, tmp_path: Path) -> None:
    """The table promises 1 ns: every finalist, and then every other candidate, is measured and found to be over budget."""
    said: list[str] = []

    class Listener(Progress):
        def __call__(self, text: str) -> None:
            said.append(text)

    path = tmp_path / "r"
    search = {**SEARCH, "trials": 2, "depth": [1], "weights": [6], "options": {}}
    wanted = asked(teacher, search, network=2.0, latency_table=str(table(tmp_path / "table.json", 1.0)), isa="plain")
    with pytest.raises(BudgetNotMet) as caught:
        distil(wanted, path, progress=Listener(quiet=True))
    told = record(path)
    assert told["isa"] == "plain"
    assert {one["number"] for one in told["candidates"] if one["verdict"] == "trained"} == {int(number) for number in told["measured"]}
    for measured in told["measured"].values():
        assert not measured["fits"]
        assert measured["costs"]["network"] == measured["network"]["median_ns"] == max(measured["network"]["processes_ns"]) > 2
        assert (measured["network"]["blocks"], measured["network"]["calls"], len(measured["network"]["processes_ns"])) == (200, 1000, 3)
        assert measured["ratio"]["network"] == measured["costs"]["network"]  # the prediction was 1 ns
    assert "is measured at" in str(caught.value)
    assert "another" in "".join(text for text in said if text.startswith("warning: the latency table"))
    assert sha256(path / "search" / "latency_table.json") == sha256(tmp_path / "table.json")  # kept as it was given
    again = json.dumps(told)
    with pytest.raises(BudgetNotMet):
        resume(path, progress=QUIET)
    assert json.dumps(record(path)) == again  # measured once


@pytest.mark.slow
def test_one_student_under_a_budget(teacher: Path, tmp_path: Path) -> None:
    one = config(teacher, length="8steps", model={"name": "mlp", "widths": [3]}, budget={"macs": MACS})
    result = distil(one, tmp_path / "fits", progress=QUIET)
    assert result["budget"]["costs"] == {"macs": 36.0}
    assert read_document(tmp_path / "fits" / "budget.json", "hlt-train/budget", 1)["fits"]
    assert json.loads((tmp_path / "fits" / "export" / "cpp" / "certificate.json").read_text())["budget"]["met"]
    large = config(teacher, length="8steps", model={"name": "mlp", "widths": [4]}, budget={"macs": MACS})
    with pytest.raises(BudgetNotMet, match="over budget before it is trained: 48 of 40"):
        distil(large, tmp_path / "over", progress=QUIET)
    assert not (tmp_path / "over").exists()  # nothing was begun


def test_refusals(teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a search needs a budget"):
        distil(config(teacher, search={}), tmp_path / "r", progress=QUIET)
    with pytest.raises(UsageError, match="kept by fixed-point students"):
        distil(config(teacher, precision=None, budget={"macs": 1}, search={}), tmp_path / "r", progress=QUIET)
    with pytest.raises(UsageError, match="looks for one"):
        distil(config(teacher, seeds=2, budget={"macs": 1}), tmp_path / "r", progress=QUIET)
    with pytest.raises(UsageError, match="no such file"):
        distil(asked(teacher, network=100.0, latency_table=str(tmp_path / "none.json")), tmp_path / "r", progress=QUIET)
    with pytest.raises(UsageError, match="the latency table has no path 'avx3'") as caught:
        distil(asked(teacher, network=100.0, isa="avx3", latency_table=str(table(tmp_path / "table.json", 1.0))), tmp_path / "r", progress=QUIET)
    assert "avx2" in caught.value.near
    assert not (tmp_path / "r").exists()

"""Every target on a pairwise covering array of formats, weights and families (`tests/exporters/covering.py`): the golden integers, or a refusal by node."""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hlt_train import files
from hlt_train.decisions import decide, scores
from hlt_train.errors import UsageError
from hlt_train.exporters._grid import write_graph
from hlt_train.golden import Golden, write_golden
from hlt_train.graph import Graph, Requant, evaluate
from hlt_train.vectors import vectors
from tests import graphs
from tests.exporters.covering import CASES, FACTORS, FLOATS, NEAREST, TARGETS, TOLERANCE, Case, Row, covering, float_graph, graph_of, pairs

# The selftests of many exports, one after the other, in a process that can import neither hlt_train nor anything else of this checkout.
BOOT = """
import contextlib, io, json, os, runpy, sys
sys.modules["hlt_train"] = None
sys.argv = ["selftest.py", "--no-time", "--json"]
for directory in json.load(sys.stdin):
    os.chdir(directory)
    path, said, code = list(sys.path), io.StringIO(), 0
    with contextlib.redirect_stdout(said):
        try:
            runpy.run_path("selftest.py", run_name="__main__")
        except SystemExit as error:
            code = error.code
    sys.path[:] = path
    sys.modules.pop("run", None)
    print(json.dumps([code, said.getvalue()]), flush=True)
"""


# ------------------------------------------------------------------------------------------------------------------------------------ the array


def test_every_pair_of_levels_is_in_the_array() -> None:
    rows = covering()
    wanted = set()
    for (a, first), (b, second) in itertools.combinations(enumerate(FACTORS.values()), 2):
        wanted |= {((a, x), (b, y)) for x in first for y in second}
    assert set().union(*map(pairs, rows)) == wanted
    assert len(rows) < 2 * max(len(a) * len(b) for a, b in itertools.combinations(FACTORS.values(), 2))


@pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if target.vectors])
def test_every_pair_that_a_target_takes_is_compared(name: str) -> None:
    taken = [row for row in itertools.starmap(Row, itertools.product(*FACTORS.values())) if not TARGETS[name].refuses(row)]
    compared = [case.network for case in CASES if case.target == name and isinstance(case.network, Row)]
    assert all(row in taken for row in compared)
    assert set().union(*map(pairs, compared)) == set().union(*map(pairs, taken))


def changed(graph: Graph, **what: str | int | None) -> Graph:
    return Graph(tuple(dataclasses.replace(n, quant=dataclasses.replace(n.quant, **what)) if isinstance(n, Requant) else n for n in graph.nodes))


@pytest.mark.parametrize("row", covering(), ids=str)
def test_the_modes_of_a_row_matter(row: Row) -> None:
    """Otherwise it would compare nothing of them."""
    graph = graph_of(row)
    x = vectors(graph, n=2000).x
    expected = evaluate(graph, x)
    for mode in set(FACTORS["round"]) - {row.round}:
        assert (evaluate(changed(graph, round=mode), x) != expected).any(), mode
    for mode in set(FACTORS["over"]) - {row.over}:
        if row.sign == "unsigned" and {mode, row.over} == {"sat", "sat_sym"}:
            continue  # without a sign they are one
        other = changed(graph, over="sat_sym", mantissa=1) if mode == "minifloat" else changed(graph, over=mode, mantissa=None)
        assert (evaluate(other, x) != expected).any(), mode


# ------------------------------------------------------------------------------------------------------------------------------------ refusals


REFUSING = [name for name, target in TARGETS.items() if set(FLOATS) - set(target.floats) or any(target.refuses(row) for row in covering())]


@pytest.mark.parametrize("name", REFUSING)
def test_what_a_target_refuses_is_refused_by_node_with_an_alternative(tmp_path: Path, name: str) -> None:
    target = TARGETS[name]
    networks = [graph_of(row) for row in covering() if target.refuses(row)] + [float_graph(network) for network in FLOATS if network not in target.floats]
    for k, graph in enumerate(networks):
        directory = tmp_path / str(k)
        directory.mkdir()
        with pytest.raises(UsageError) as error:
            target.make().write(graph, directory)
        assert any(error.value.where == f"node '{node.name}'" and f"'{node.name}'" in error.value.what for node in graph.nodes), error.value
        assert error.value.near, error.value


# ---------------------------------------------------------------------------------------------------------------------------------- comparison


def golden(graph: Graph, n: int) -> tuple[Golden, dict[str, Any]]:
    """At least n vectors of every kind with what they must give, and two working points of an exact graph."""
    data = graphs.features(graph, n // 5, seed=1)
    outputs = evaluate(graph, data)
    points: dict[str, Any] = {"points": []}
    nearest = None
    score = scores(graph, outputs, points)
    if score is not None:
        cuts = [int(np.quantile(score, q)) for q in (0.5, 0.95)]
        points = {"points": [{"name": f"cut {cut}", "integer_threshold": cut, "threshold": 0.0} for cut in cuts]}
        near = np.unique(np.concatenate([np.argsort(np.abs(score - cut), kind="stable")[: NEAREST // 2] for cut in cuts]))
        nearest = data.take(near)
    x, category = vectors(graph, data, nearest, n=n, seed=2)
    outputs = evaluate(graph, x)
    score = scores(graph, outputs, points)
    return Golden(x, outputs, score, decide(graph, score, points, len(outputs)), category), points


def export(case: Case, n: int, directory: Path) -> int:
    """What `export` leaves in a directory; the number of vectors that its selftest is to compare."""
    graph = case.graph
    directory.mkdir()
    exporter = TARGETS[case.target].make()
    facts = exporter.write(graph, directory)
    assert facts["bit_exact"] == (graph.exact and case.target != "lwtnn")
    found, points = golden(graph, n)
    write_graph(graph, directory)
    files.write_document(directory / "working_points.json", "hlt-train/working-points", 1, points)
    tolerance = {} if graph.exact else {"tolerance": TOLERANCE * float(np.abs(found.outputs).max())}
    write_golden(directory, graph, found, [point["name"] for point in points["points"]], tolerance)
    exporter.complete(directory)
    assert len(found) >= n
    if case.target == "alkaid":  # its selftest reads the program itself: its own interpreter is asked too
        assert np.array_equal(exporter.load(directory)(found.x), found.outputs)
    return len(found)


def selftests(directories: Sequence[Path]) -> list[tuple[int, dict[str, Any]]]:
    """Exit code and JSON of the selftest of every directory."""
    command = [sys.executable, "-I", "-c", BOOT]
    done = subprocess.run(command, input=json.dumps([str(d) for d in directories]), cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == len(directories), done.stderr
    return [(code or 0, json.loads(said.splitlines()[-1])) for code, said in lines]


def compare(cases: Sequence[tuple[Case, int]], tmp_path: Path) -> None:
    """Export every case and run the selftests: no integer, score or decision may differ."""
    directories = [tmp_path / str(k) for k in range(len(cases))]
    sizes = [export(case, n, directory) for (case, n), directory in zip(cases, directories, strict=True)]
    for (case, _), size, (code, said) in zip(cases, sizes, selftests(directories), strict=True):
        what = f"{case.target}: {case.network}: {said}"
        assert code == 0, what
        assert said["passed"], what
        assert said["vectors"] == size, what
        differing = {key: value for key, value in said.items() if "differing" in key}
        assert differing, what
        assert not case.graph.exact or (len(differing) == 3 and not any(differing.values())), what


@pytest.mark.parametrize("name", TARGETS)
def test_the_first_rows_give_the_golden_integers(tmp_path: Path, name: str) -> None:
    compare([(case, case.fast) for case in CASES if case.target == name and case.fast], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case.slow], ids=lambda case: f"{case.target}: {case.network}")
def test_every_row_gives_the_golden_integers(tmp_path: Path, case: Case) -> None:
    compare([(case, case.slow)], tmp_path)

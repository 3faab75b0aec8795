"""The table of what the header's kernels cost: it knows every code path, a fit finds the constants that made the times, and a prediction is their sum."""

from __future__ import annotations

import numpy as np
import pytest

from hlt_train.errors import UsageError
from hlt_train.exporters._cpp_plain import Plain
from hlt_train.exporters._cpp_sse2 import Sse2
from hlt_train.exporters._cpp_wide import Avx2, Avx512, Vnni
from hlt_train.latency_table import CONVS, FLATS, HELD_OUT, KERNELS, LANES, MLPS, SETS, TILE, _cases, _fit, kernels, predict


def test_every_path_of_the_header_has_its_tiles() -> None:
    assert set(TILE) == set(LANES) == {path.name for path in (Plain, Sse2, Avx2, Avx512, Vnni)}


def test_kernels_are_counted_once_per_constituent() -> None:
    (graph, _), *_ = _cases(np.random.default_rng(1), (), ((8, 32, 3, (24,), (16,)),))
    full, half = kernels(graph, "sse2"), kernels(graph, "sse2", {"jets": 16.0})
    assert full["call"] == half["call"] == 1
    assert full["input"] == 32
    assert half["input"] == 16
    assert full["tile"] - half["tile"] == 16 * 4 * 6  # 8 inputs in pairs, 24 outputs in fours
    assert full["pool"] == 32 * 3
    assert kernels(graph, "sse2", {"jets": 99.0}) == full


def test_neighbours_and_flattened_constituents_are_gathered() -> None:
    (flat, _), (conv, _) = _cases(np.random.default_rng(1), (), (), ((4, 6, (8, 2)),), ((20, 6, 2, (8,), (4,)),))
    assert kernels(flat, "sse2")["gather"] == 6  # one register holds four variables
    assert kernels(conv, "sse2")["gather"] == 6 * 8  # three times twenty need eight
    assert kernels(conv, "sse2", {"jets": 2.0})["gather"] == 2 * 8


@pytest.mark.parametrize("path", TILE)
def test_a_fit_finds_what_made_the_times(path: str) -> None:
    rng = np.random.default_rng(2)
    kept = _cases(rng, *HELD_OUT)
    cases = [*_cases(rng, MLPS, SETS, FLATS, CONVS), *kept]
    truth = dict(zip(KERNELS, (25.0, 2.0, 3.0, 0.3, 1.5, 0.8, 0.6), strict=True))
    times = [{path: sum(truth[name] * count for name, count in kernels(graph, path, counts).items())} for graph, counts in cases]
    found = _fit(cases, times, path, len(kept))
    assert found["networks"] == len(cases) - len(kept)
    assert found["held_out"]["worst"] < 1e-6
    table = {"paths": {path: found}}
    graph, counts = cases[-1]
    assert predict(table, graph, path, counts) == pytest.approx(times[-1][path])
    with pytest.raises(UsageError, match="has no path 'neon'"):
        predict(table, graph, "neon")

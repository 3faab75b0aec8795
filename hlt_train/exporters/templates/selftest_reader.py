"""Does the network in this directory still compute what it was exported for, on this machine?

    python selftest.py [--json]

Runs it in NumPy (reader.py) on the golden vectors and compares logits, integer scores, and the decision at every working point of working_points.json with the
recorded ones; then the hashes of the files with certificate.json. Exit code 0: all equal, float logits within their stated tolerance; 1: something differs.
Needs Python and numpy only.
"""

from __future__ import annotations

import runpy
import sys
from typing import Any

import numpy as np

from hlt_train.exporters.templates.selftest_files import HERE, counted, differences, read_golden, read_json, report

run = runpy.run_path(str(HERE / "reader.py"))["run"]


def integer_score(logits: np.ndarray) -> np.ndarray:
    """The score of integer logits, int64 `[n]`: the combination that graph.json names, aligned to the finest exponent of the logits that it uses."""
    output = read_json("graph.json")["nodes"][-1]
    weights = np.array(output["score"]["data"], np.int64)
    f = np.array([port["f"] for port in read_json("alkaid.json")["outputs"]], np.int64)
    top = f[weights != 0].max(initial=-200)
    total: np.ndarray = logits @ np.where(weights != 0, weights << np.maximum(top - f, 0), 0)
    return total


def compare() -> dict[str, Any]:
    """Counts of what was compared and what differs, and the first difference."""
    head, document = read_json("golden.json"), read_json("working_points.json")
    groups, counts, outputs, score, decisions = read_golden(head)
    logits = run(HERE, groups, counts)
    result = {"runtime": f"numpy {np.__version__}", **counted(head, document, outputs, decisions)}
    if "error" in result:
        return result
    return {**result, **differences(head, document, logits, outputs, score, decisions, lambda: integer_score(logits))}


if __name__ == "__main__":
    sys.exit(report(compare))

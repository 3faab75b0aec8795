"""Target `lwtnn`: JSON for lwtnn, in its sequential form for a chain of layers on scalars, in its graph form otherwise; float networks only.

Normalisation is lwtnn's own `(x + offset) * scale`. The clip of the card is made of elementwise layers, also for infinities; a NaN must be replaced by the
stated `default` before, which lwtnn leaves to `lwt::NanReplacer`. lwtnn computes in double and cannot round, so fixed-point networks are refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hlt_train import __version__, files
from hlt_train.exporters import Exporter
from hlt_train.exporters._lwtnn_nodes import graph_form, is_chain, refuse, sequential_form
from hlt_train.exporters._lwtnn_run import latency, load
from hlt_train.exporters._templates import selftest, template
from hlt_train.graph import Graph

__all__ = ["lwtnn"]


def lwtnn() -> Exporter:
    """JSON for lwtnn: float networks of dense layers, with sum over constituents; computed in double, deviation stated."""

    def write(graph: Graph, directory: Path) -> dict[str, Any]:
        refuse(graph)
        chain = is_chain(graph)
        document = sequential_form(graph) if chain else graph_form(graph)
        document["miscellaneous"] = {"program": f"hlt-train {__version__}"}
        files.write_text(directory / "network.json", json.dumps(document, indent=1) + "\n")
        files.write_text(directory / "selftest.py", selftest("selftest_reader.py"))
        files.write_text(directory / "reader.py", template("reader_lwtnn.py"))
        return {
            "target": "lwtnn",
            "bit_exact": False,
            "starts_at": "float",
            "form": "sequential" if chain else "graph",
            "layers": len(document["layers"]),
            "condition": "a NaN is replaced by the variable's default before the network, as lwt::NanReplacer does; the vectors were compared so",
            "compared_with": "reader.py, which computes what lwtnn does in float64 with NumPy; lwtnn's own sums differ by roundings of float64",
        }

    return Exporter(write, load, latency, ("network.json", "reader.py", "selftest.py"))

"""Target `alkaid`: Verilog of the whole network without multipliers, with the scripts that build it, and the program it is printed from.

The artefact starts at the integers of the input step. `program.alir.json` is the traced network (ALIR, read by alkaid and by `reader.py`); `rtl/` holds the
Verilog printed from it, pipelined, with scripts for Vivado and Quartus; `alkaid.json` names the ports and states the estimates.
"""

from __future__ import annotations

import gzip
import math
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from hlt_train import files
from hlt_train.errors import UsageError
from hlt_train.exporters import Exporter
from hlt_train.exporters._alkaid_run import latency, load
from hlt_train.exporters._alkaid_trace import costs, library, pipeline, refuse, trace
from hlt_train.exporters._grid import write_graph
from hlt_train.exporters._templates import selftest, template
from hlt_train.graph import Graph, score_weights
from hlt_train.proof import prove, summary

__all__ = ["alkaid"]

FORMAT, VERSION = "hlt-train/alkaid", 1


def alkaid(*, clock_ns: float = 5.0, part: str = "xcvu13p-flga2577-2-e") -> Exporter:
    """Verilog without multipliers, exact, with LUTs and cycles estimated by alkaid; starts at the integers of the input step.

    Args:
        clock_ns: clock period in ns: the network is cut into pipeline stages of about this delay.
        part: device that the build scripts name.
    """
    if not (math.isfinite(clock_ns) and clock_ns > 0):
        raise UsageError(f"clock_ns must be a period in ns, found {clock_ns}", near=("5.0",))

    def write(graph: Graph, directory: Path) -> dict[str, Any]:
        refuse(graph)
        package = library()
        program = trace(graph)
        program.save(directory / "program.alir.json")
        estimate = costs(program, clock_ns)
        package.codegen.rtl.RTLModel(
            pipeline(program, clock_ns), directory / "rtl", prj_name="network", part_name=part, clock_period=clock_ns, ternary_fuse=False
        ).write()
        for packed in (directory / "rtl").rglob("*.gz"):  # without the time at which it was packed: the same network gives the same bytes
            packed.write_bytes(gzip.compress(gzip.decompress(packed.read_bytes()), mtime=0))
        files.write_document(directory / "alkaid.json", FORMAT, VERSION, {**_ports(graph), "estimate": estimate, "part": part})
        write_graph(graph, directory)
        files.write_text(directory / "selftest.py", selftest("selftest_reader.py"))
        files.write_text(directory / "reader.py", template("reader_alir.py"))
        return {
            "target": "alkaid",
            "bit_exact": True,
            "starts_at": "grid",
            "compared_program": "ALIR, the program from which rtl/ is printed; the Verilog itself is not simulated",
            "operations": len(program.ops),
            "estimate": estimate,
            "part": part,
            "alkaid": version("alkaid"),
            "proof": summary(prove(graph)),
        }

    return Exporter(write, load, latency, ("program.alir.json", "alkaid.json", "reader.py", "rtl/", "selftest.py"))


def _ports(graph: Graph) -> dict[str, Any]:
    """The order and the formats of the program's inputs and outputs."""
    inputs: list[dict[str, Any]] = []
    for node in graph.inputs:
        f = graph.structure[node.name].f
        assert f is not None
        quant = node.quant  # type: ignore[union-attr]
        width = np.broadcast_to(quant.to.width, len(f))
        inputs.append(
            {"group": node.group, "variables": list(node.variables), "length": node.length, "signed": quant.to.signed, "bits": width.tolist(), "f": f.tolist()}
        )
        if node.length is not None:
            inputs.append({"group": node.group, "valid": node.length, "signed": False, "bits": 1, "f": 0})
    f = graph.structure[graph.output.name].f
    assert f is not None
    score = None
    if graph.output.score is not None:
        weights, exponent = score_weights(graph)
        score = {"weights": weights.tolist(), "f": exponent}
    return {"inputs": inputs, "outputs": [{"name": name, "f": int(k)} for name, k in zip(graph.output.names, f, strict=True)], "score": score}

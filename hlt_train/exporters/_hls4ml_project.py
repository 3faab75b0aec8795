"""hls4ml's project for a graph: the layer list handed to hls4ml, checked for the types that were asked for, and written without a trace of time or place."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hlt_train.errors import RunFailed, UsageError
from hlt_train.exporters._hls4ml_layers import Layers
from hlt_train.exporters._hls4ml_types import Type

__all__ = ["BACKENDS", "Port", "Project", "write_project"]

BACKENDS = {"vitis": "Vitis", "vivado": "Vivado"}
STAMP = "00000000"  # hls4ml draws one at random for the name of its own library


class Port(NamedTuple):
    """An argument of the top function: its C++ type's name, the type itself, and its number of elements."""

    cpp: str
    type: Type
    size: int


class Project(NamedTuple):
    """What was written.

    Attributes:
        inputs: the arguments of the top function, in order: inputs of the graph, then masks.
        output: its last argument.
        version: of hls4ml.
        namespace: of the top function; "" for the global one.
    """

    inputs: tuple[Port, ...]
    output: Port
    version: str
    namespace: str


def write_project(layers: Layers, directory: Path, name: str, *, backend: str, part: str, clock_ns: float, namespace: str) -> Project:
    """Write the project into `directory`, which exists.

    Raises:
        UsageError: hls4ml is not installed.
        RunFailed: hls4ml changed a type or lost a layer's place.
    """
    try:
        import hls4ml
        from hls4ml.backends import get_backend
        from hls4ml.model.graph import ModelGraph
    except ImportError as error:
        raise UsageError("hls4ml is not installed", then="pip install 'hlt-train[hls4ml]'") from error
    if not str(hls4ml.__version__).startswith("1.3."):
        raise UsageError(f"hls4ml {hls4ml.__version__}: this exporter writes for 1.3", then="pip install 'hlt-train[hls4ml]'")
    config = get_backend(BACKENDS[backend]).create_initial_config(
        part=part, clock_period=clock_ns, io_type="io_parallel", namespace=namespace or None, write_weights_txt=False
    )
    config |= {"Backend": BACKENDS[backend], "ProjectName": name, "OutputDir": str(directory), "HLSConfig": _hls_config(layers)}
    with _quiet():
        model = ModelGraph.from_layer_list(config, layers.layers, layers.inputs, [layers.output.layer])
        _check(model, layers)
        model.write()
    _settle(directory, {str(model.config.config["Stamp"]): STAMP, str(directory): "."})
    inputs = tuple(_port(variable, layers.precisions[layer]["result"]) for variable, layer in zip(model.get_input_variables(), layers.inputs, strict=True))
    output = _port(model.get_output_variables()[0], layers.precisions[layers.output.layer]["result"])
    return Project(inputs, output, str(hls4ml.__version__), namespace)


def _hls_config(layers: Layers) -> dict[str, Any]:
    by_name = {}
    for layer in layers.layers:
        name = layer["name"]
        by_name[name] = {"Precision": {k: str(v) for k, v in layers.precisions[name].items()}, "ReuseFactor": 1, "Strategy": "Latency"}
        if layer["class_name"] == "Conv1D":  # every constituent in the same clock cycle
            by_name[name]["ParallelizationFactor"] = layer["out_width"]
    # BitExact is hls4ml's own derivation of widths (see `_hls4ml_layers`).
    return {"Model": {"Precision": "fixed<16,6>", "ReuseFactor": 1, "Strategy": "Latency", "BitExact": False}, "LayerName": by_name}


def _check(model: Any, layers: Layers) -> None:
    """Every type that was asked for is there: nothing was replaced, fused or inferred."""
    for layer in layers.layers:
        name = layer["name"]
        node = model.graph.get(name)
        if node is None:
            raise RunFailed(f"hls4ml removed layer '{name}'", where=name, then="report it with the version of hls4ml")
        for variable, wanted in layers.precisions[name].items():
            found = node.get_output_variable().type.precision if variable == "result" else node.get_attr(f"{variable}_t").precision
            if (found.signed, found.width, found.integer) != tuple(wanted):
                raise RunFailed(
                    f"hls4ml made {found} of the {variable} of '{name}', asked was {wanted}", where=name, then="report it with the version of hls4ml"
                )


def _port(variable: Any, type_: Type) -> Port:
    size = 1
    for extent in variable.shape:
        size *= int(extent)
    return Port(variable.type.name, type_, size)


def _settle(directory: Path, replacements: dict[str, str]) -> None:
    """What names a random stamp or this machine's folder becomes the same for the same graph."""
    for path in sorted(directory.iterdir()):
        if path.is_file():
            text = path.read_text()
            changed = re.sub("|".join(map(re.escape, replacements)), lambda found: replacements[found.group()], text)
            if changed != text:
                path.write_text(changed)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """hls4ml prints its progress and warns of attributes that it sets twice."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield

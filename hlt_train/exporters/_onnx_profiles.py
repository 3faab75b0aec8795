"""What the profiles of target `onnx` differ in: how a group of features enters the graph, how the results leave it, and the files beside the model.

Between the two every profile is the same graph. A collection whose length is an axis of its own ("dynamic") is cut to the first `length` constituents.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hlt_train import files
from hlt_train.errors import UsageError, nearest
from hlt_train.exporters._onnx_builder import Builder
from hlt_train.graph import FloatInput, Graph, Input

__all__ = ["ABSENT", "MISSING", "PROFILES", "SOFTMAX_TOLERANCE", "Options", "Profile", "Read", "profile_named"]

# What preprocess.json writes for an absent constituent and for a value that is none: no number that CMSSW lets through (|x| <= 1e32) reaches them.
ABSENT = 2.0**127
MISSING = 2.0**126
LARGEST = float(np.finfo(np.float32).max)
SOFTMAX_TOLERANCE = 2.0**-19  # of a probability in float32 against float64: a few roundings of numbers of at most 1


class Options(NamedTuple):
    """The options that belong to one profile or another."""

    name: str
    jet_input: str
    track_input: str
    tracks: str
    max_batch_size: int


class Read(NamedTuple):
    """One group as the graph reads it.

    Attributes:
        x: float32 `[batch, n]`, or `[batch, constituents, n]`.
        missing: bool, shaped like x: the value is none.
        mask: bool `[batch, constituents, 1]`: the constituent exists; None where all do.
        number: float32 `[batch, 1]`, how many exist (of `plain`: as given, it may exceed the length).
    """

    x: str
    missing: str
    mask: str | None = None
    number: str | None = None


class Profile:
    """The profile `plain`, and what the others have in common.

    Attributes:
        name: of the profile.
        opset: its default.
        dynamic: whether the constituents' axis has a length of its own.
        probabilities: whether softmax is an output.
        own: the options that only this profile reads.
    """

    name = "plain"
    opset = 17
    dynamic = False
    probabilities = False
    own: tuple[str, ...] = ()

    def __init__(self, options: Options) -> None:
        self.options = options

    def check(self, graph: Graph) -> None:
        """Refuse what the profile cannot represent, by name."""
        clash = {f"{node.group}_count" for node in graph.inputs if node.length is not None} & {node.group for node in graph.inputs}
        if clash:
            raise UsageError(f"group '{min(clash)}' has the name of a count", then="rename it in the card")

    def read(self, to: Builder, node: Input | FloatInput) -> Read:
        """Declare the inputs of a group."""
        n = len(node.variables)
        if node.length is None:
            x = to.input(node.group, "batch", n)
            return Read(x, to.op("IsNaN", x))
        x, count = to.input(node.group, "batch", node.length, n), to.input(f"{node.group}_count", "batch", 1)
        return Read(x, to.op("IsNaN", x), self._below(to, self._index(to, node.length), count), count)

    def _index(self, to: Builder, length: int) -> str:
        return to.constant(np.arange(length).reshape(1, -1, 1))

    def _below(self, to: Builder, index: str, count: str) -> str:
        return to.op("Less", index, to.op("Unsqueeze", count, to.constant(np.array([2]), "axes", np.int64)))

    def finish(self, to: Builder, graph: Graph, logits: str, score: str | None) -> None:
        """Declare the outputs."""
        to.output("logits", logits, "batch", len(graph.output.names))
        if score is not None:
            to.output("score", score, "batch", 1)

    def layout(self, graph: Graph) -> list[dict[str, Any]]:
        """For the metadata: per group its input, the input of its count, and its length."""
        return [
            {"group": node.group, "input": node.group, "count": None if node.length is None else f"{node.group}_count", "length": node.length}
            for node in graph.inputs
        ]

    def metadata(self, graph: Graph) -> dict[str, str]:
        """What the framework reads from the model's metadata."""
        return {}

    def model_path(self) -> str:
        """Where the model lies in the directory."""
        return "model.onnx"

    def companions(self, graph: Graph, directory: Path) -> None:
        """Write the files that the framework reads beside the model."""

    def names(self) -> tuple[str, ...]:
        """The files of `companions`."""
        return ()

    def facts(self, graph: Graph) -> dict[str, Any]:
        """What the certificate says of the profile."""
        logits = "exact: integer = logits * 2**logits_exponents" if graph.exact else "float32, within the deviation stated"
        softmax = {"softmax": f"float32, within {SOFTMAX_TOLERANCE} of the softmax in float64 of the logits"} if self.probabilities else {}
        score = {"score": "exact: the integer that thresholds cut on"} if graph.output.score is not None else {}
        return {"profile": self.name, "promise": {"logits": logits, **softmax, **score}}

    def _refuse_one_class(self, graph: Graph) -> None:
        if len(graph.output.names) < 2:
            raise UsageError(
                f"Output '{graph.output.name}' has one logit, whose softmax is always 1: profile '{self.name}' hands out probabilities",
                where=f"node '{graph.output.name}'",
                near=("onnx.profile=plain", "onnx.profile=triton"),
                then="export it with a profile that hands out the logit",
            )


class Cmssw(Profile):
    """`cms::Ort::ONNXRuntime` with `preprocess.json`: feature-major, one input per group, softmax first."""

    name = "cmssw"
    opset = 15
    dynamic = True
    probabilities = True

    def check(self, graph: Graph) -> None:
        self._refuse_one_class(graph)
        owners: dict[str, str] = {}
        for node in graph.inputs:
            if node.group in ("input_names", "output_names"):
                raise UsageError(f"group '{node.group}' has the name of a key of preprocess.json", where=f"node '{node.name}'", then="rename it in the card")
            for variable in node.variables:
                if owners.setdefault(variable, node.group) != node.group:
                    raise UsageError(
                        f"groups '{owners[variable]}' and '{node.group}' both have a variable '{variable}', and CMSSW finds features by their name alone",
                        where=f"node '{node.name}'",
                        near=("onnx.profile=plain",),
                        then="give one of them a name of its own with new_variables in the card",
                    )

    def read(self, to: Builder, node: Input | FloatInput) -> Read:
        n = len(node.variables)
        raw = to.input(node.group, "batch", n, 1 if node.length is None else f"n_{node.group}")
        if node.length is None:
            x = to.op("Reshape", raw, to.constant(np.array([0, n]), "shape", np.int64))
            return Read(x, self._missing(to, x))
        x = to.op("Transpose", to.first(raw, node.length, 2), perm=[0, 2, 1])
        leading = to.op("Gather", x, to.constant(np.array([0]), "axes", np.int64), axis=2)
        mask = to.op("Not", to.op("Equal", leading, to.constant(ABSENT, "absent")))
        return Read(x, self._missing(to, x), mask, to.reduce("ReduceSum", to.op("Cast", mask, to=1)))

    def _missing(self, to: Builder, x: str) -> str:
        return to.op("Or", to.op("IsNaN", x), to.op("Equal", x, to.constant(MISSING, "missing")))

    def finish(self, to: Builder, graph: Graph, logits: str, score: str | None) -> None:
        to.output("softmax", to.op("Softmax", logits, axis=-1), "batch", len(graph.output.names))
        super().finish(to, graph, logits, score)

    def layout(self, graph: Graph) -> list[dict[str, Any]]:
        return [{"group": node.group, "input": node.group, "count": None, "length": node.length} for node in graph.inputs]

    def companions(self, graph: Graph, directory: Path) -> None:
        """preprocess.json, in the schema that CMSSW and weaver share. It changes no number: the exact input step is inside the graph."""
        content: dict[str, Any] = {"output_names": ["softmax"], "input_names": [node.group for node in graph.inputs]}
        for node in graph.inputs:
            # A scalar is a collection of one: mixing fixed and variable lengths would shift the list of shapes.
            infos = {
                "median": 0.0,
                "norm_factor": 1.0,
                "replace_inf_value": MISSING,
                "lower_bound": -LARGEST,
                "upper_bound": LARGEST,
                "pad": MISSING if node.length is None else ABSENT,
            }
            content[node.group] = {
                "var_names": list(node.variables),
                "min_length": 1,
                "max_length": node.length or 1,
                "var_infos": dict.fromkeys(node.variables, infos),
            }
        files.write_text(directory / "preprocess.json", json.dumps(content, indent=1) + "\n")

    def names(self) -> tuple[str, ...]:
        return ("preprocess.json",)

    def facts(self, graph: Graph) -> dict[str, Any]:
        return {
            **super().facts(graph),
            "flav_names": list(graph.output.names),
            "preprocessing": {
                "normalisation": "inside the graph; preprocess.json hands every number on unchanged",
                "equal": "preprocess.json and the graph together are the input step for NaN and every |x| <= 1e32",
                "beyond": "CMSSW replaces infinities and |x| > 1e32 by replace_inf_value: there they count as NaN, while the input step clamps them",
                "absent": ABSENT,
                "missing": MISSING,
            },
        }


class Triton(Profile):
    """A model repository of Triton's: `<name>/config.pbtxt`, `<name>/1/model.onnx`."""

    name = "triton"
    dynamic = True
    own = ("max_batch_size",)

    def check(self, graph: Graph) -> None:
        super().check(graph)
        if self.options.max_batch_size < 1:
            raise UsageError(f"max_batch_size must be at least 1, got {self.options.max_batch_size}: the graph has a batch axis", then="for instance 256")

    def read(self, to: Builder, node: Input | FloatInput) -> Read:
        if node.length is None:
            return super().read(to, node)
        raw, given = to.input(node.group, "batch", f"n_{node.group}", len(node.variables)), to.input(f"{node.group}_count", "batch", 1)
        x = to.first(raw, node.length, 1)
        mask = self._below(to, to.first(self._index(to, node.length), to.size(x, 1), 1), given)
        return Read(x, to.op("IsNaN", x), mask, to.reduce("ReduceSum", to.op("Cast", mask, to=1)))

    def model_path(self) -> str:
        return f"{self.options.name}/1/model.onnx"

    def names(self) -> tuple[str, ...]:
        return (f"{self.options.name}/config.pbtxt",)

    def companions(self, graph: Graph, directory: Path) -> None:
        ports = []
        for node in graph.inputs:
            ports.append((node.group, [len(node.variables)] if node.length is None else [-1, len(node.variables)]))
            if node.length is not None:
                ports.append((f"{node.group}_count", [1]))
        outputs = [("logits", [len(graph.output.names)]), *([("score", [1])] if graph.output.score is not None else [])]
        lines = [
            f'name: "{self.options.name}"',
            'backend: "onnxruntime"',
            f"max_batch_size: {self.options.max_batch_size}",
            *(line for name, dims in ports for line in _port("input", name, dims)),
            *(line for name, dims in outputs for line in _port("output", name, dims)),
            "# Exact integers are promised for ONNX Runtime on the CPU, one thread.",
            "instance_group { count: 1 kind: KIND_CPU }",
            *(f'parameters {{ key: "{key}" value {{ string_value: "1" }} }}' for key in ("intra_op_thread_count", "inter_op_thread_count")),
        ]
        files.write_text(directory / self.names()[0], "\n".join(lines) + "\n")

    def facts(self, graph: Graph) -> dict[str, Any]:
        return {**super().facts(graph), "model": self.options.name, "max_batch_size": self.options.max_batch_size}


def _port(kind: str, name: str, dims: list[int]) -> list[str]:
    return [f"{kind} {{", f'  name: "{name}"', "  data_type: TYPE_FP32", f"  dims: [ {', '.join(map(str, dims))} ]", "}"]


class Athena(Profile):
    """The convention of ATLAS' flavour tagging: one jet per call, `jet_features`, `track_features`, a scalar `p<flavour>` per class."""

    name = "athena"
    opset = 16
    dynamic = True
    probabilities = True
    own = ("jet_input", "track_input", "tracks")

    def check(self, graph: Graph) -> None:
        self._refuse_one_class(graph)
        for collection in (False, True):
            found = [node for node in graph.inputs if (node.length is not None) is collection]
            if len(found) > 1:
                what = "collections" if collection else "groups of scalars"
                raise UsageError(
                    f"profile 'athena' has one input for {'tracks' if collection else 'jet variables'}, and the network reads {len(found)} {what}: "
                    + ", ".join(f"'{node.group}'" for node in found),
                    where=f"node '{found[1].name}'",
                    near=("onnx.profile=plain", "onnx.profile=cmssw"),
                    then="merge them into one group in the card, or export it with a profile that has an input per group",
                )

    def _input(self, node: Input | FloatInput) -> str:
        return self.options.jet_input if node.length is None else self.options.track_input

    def read(self, to: Builder, node: Input | FloatInput) -> Read:
        n = len(node.variables)
        if node.length is None:
            x = to.input(self._input(node), 1, n)
            return Read(x, to.op("IsNaN", x))
        kept = to.first(to.input(self._input(node), "n_tracks", n), node.length, 0)
        x = to.op("Unsqueeze", kept, to.constant(np.array([0]), "axes", np.int64))
        count = to.op("Reshape", to.op("Cast", to.size(kept, 0), to=1), to.constant(np.array([1, 1]), "shape", np.int64))
        return Read(x, to.op("IsNaN", x), None, count)

    def finish(self, to: Builder, graph: Graph, logits: str, score: str | None) -> None:
        to.inputs.sort(key=lambda port: str(port.name) != self.options.jet_input)
        for prefix, tensor in (("p", to.op("Softmax", logits, axis=-1)), ("logit_", logits)):
            row = to.op("Reshape", tensor, to.constant(np.array([-1]), "shape", np.int64))
            for k, name in enumerate(graph.output.names):
                to.output(f"{prefix}{name}", to.op("Gather", row, to.constant(np.array(k), "axes", np.int64), axis=0))
        if score is not None:
            to.output("score", to.op("Reshape", score, to.constant(np.zeros(0), "shape", np.int64)))

    def layout(self, graph: Graph) -> list[dict[str, Any]]:
        return [{"group": node.group, "input": self._input(node), "count": None, "length": node.length} for node in graph.inputs]

    def metadata(self, graph: Graph) -> dict[str, str]:
        def described(name: str, node: Input | FloatInput) -> dict[str, Any]:
            # The exact normalisation is inside the graph; Athena's (x + offset) * scale changes nothing.
            return {"name": name, "variables": [{"name": variable, "offset": 0.0, "scale": 1.0} for variable in node.variables]}

        content = {
            "inputs": [described("jet_var", node) for node in graph.inputs if node.length is None],
            "input_sequences": [described(self.options.tracks, node) for node in graph.inputs if node.length is not None],
            "layers": [],
            "nodes": [],
            "onnx_model_version": "v1",
        }
        return {"gnn_config": json.dumps(content)}

    def facts(self, graph: Graph) -> dict[str, Any]:
        return {**super().facts(graph), "model": self.options.name, "tracks": self.options.tracks}


PROFILES: dict[str, type[Profile]] = {profile.name: profile for profile in (Profile, Cmssw, Triton, Athena)}


def profile_named(name: str, options: Options, defaults: Options) -> Profile:
    """The profile, with its options checked: one that belongs to another profile is refused."""
    if name not in PROFILES:
        raise UsageError(f"no profile is called '{name}'", near=nearest(name, PROFILES) or tuple(PROFILES), then=f"one of: {', '.join(PROFILES)}")
    for owner in PROFILES.values():
        for key in owner.own:
            if owner.name != name and getattr(options, key) != getattr(defaults, key):
                raise UsageError(f"option '{key}' belongs to profile '{owner.name}', not to '{name}'", then=f"leave it out, or add --profile {owner.name}")
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", options.name):
        raise UsageError(f"the model's name must be letters, digits and underscores, got '{options.name}'", then="for instance --set onnx.name=jet_tagger")
    return PROFILES[name](options)

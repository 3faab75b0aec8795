"""The profiles of the ONNX target: each framework's inputs and outputs around the same integers, and whatever changes one of them is noticed."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx as library
import onnxruntime
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from onnx import numpy_helper

from hlt_train.certify import Material, export_graph
from hlt_train.cli.export import _options
from hlt_train.errors import RunFailed, UsageError
from hlt_train.exporters._compiler import find_compiler
from hlt_train.exporters._onnx_run import find_model
from hlt_train.exporters.onnx import onnx
from hlt_train.graph import Concat, Fixed, Graph, Output, Pool, Quant, Requant, evaluate, input_node, score
from hlt_train.progress import Progress
from hlt_train.proof import prove
from hlt_train.selftest import run_selftest
from hlt_train.types import Features
from hlt_train.vectors import vectors
from tests import graphs

QUIET = Progress(quiet=True)
ROOT = Path(__file__).parents[2]
PROFILES = ("cmssw", "triton", "athena")
FACTS = {"cmssw": 15, "triton": 17, "athena": 16}
POINTS = {"points": [{"name": "tight", "integer_threshold": 30, "threshold": 0.1}, {"name": "never", "integer_threshold": None, "threshold": 0.0}]}
ABSENT, MISSING = np.float32(2.0**127), np.float32(2.0**126)


def session_of(directory: Path) -> Any:
    return onnxruntime.InferenceSession(str(find_model(directory)), providers=["CPUExecutionProvider"])


def ports(session: Any) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
    for port in (*session.get_inputs(), *session.get_outputs()):
        assert port.type == "tensor(float)"
    return {p.name: p.shape for p in session.get_inputs()}, {p.name: p.shape for p in session.get_outputs()}


def subject(*, over: str = "sat") -> Graph:
    """A collection and scalars, every neuron alive, generic centres and scales."""
    rng = np.random.default_rng(5)
    nodes = (
        input_node("in_jets", graphs.group(rng, "jets", 3, 5), Fixed(True, 3, 3)),
        input_node("in_event", graphs.group(rng, "event", 4), Fixed(True, 3, 3)),
        graphs.affine(rng, "phi", "in_jets", 3, 6, relu=False, f=7),
        Requant("phi_act", ("phi",), Quant(Fixed(True, 2, 3), "half_up", over)),  # type: ignore[arg-type]
        Pool("pool", ("phi_act",), "sum", "jets"),
        graphs.affine(rng, "dense", "in_event", 4, 6, relu=False, f=7),
        Requant("act", ("dense",), Quant(Fixed(True, 2, 3), "half_even", over)),  # type: ignore[arg-type]
        Concat("all", ("pool", "act")),
        graphs.affine(rng, "logits", "all", 12, 3, relu=False, f=10),
        Output("out", ("logits",), ("b", "c", "u"), "none", np.array([1, -1, 0], np.int64)),
    )
    return Graph(nodes)


# ------------------------------------------------------------------------------------------------------------------- the same integers


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("kind", ["mlp", "sum", "max", "mean"])
def test_the_artefact_gives_the_golden_integers(tmp_path: Path, profile: str, kind: str) -> None:
    for seed in range(2):
        graph = graphs.mlp(seed) if kind == "mlp" else graphs.deepsets(seed, kind=kind)
        x = vectors(graph, n=1500, seed=seed).x
        exporter = onnx(profile=profile)
        facts = exporter.write(graph, tmp_path)
        assert facts["bit_exact"]
        assert facts["profile"] == profile
        assert facts["opset"] == FACTS[profile]
        assert np.array_equal(exporter.load(tmp_path)(x), evaluate(graph, x))


@pytest.mark.parametrize("opset", [13, 15, 17, 18, 21])
@pytest.mark.parametrize("profile", PROFILES)
def test_every_opset_and_the_checker(tmp_path: Path, profile: str, opset: int) -> None:
    for kind in ("max", "mean"):
        graph = graphs.deepsets(3, kind=kind)
        x = vectors(graph, n=700).x
        exporter = onnx(profile=profile, opset=opset)
        assert exporter.write(graph, tmp_path)["opset"] == opset
        assert np.array_equal(exporter.load(tmp_path)(x), evaluate(graph, x))
        model = library.load(str(find_model(tmp_path)))
        library.checker.check_model(model, full_check=True)
        inferred = library.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
        assert len(inferred.graph.value_info) > 0


@pytest.mark.parametrize("profile", PROFILES)
def test_wild_graphs(tmp_path: Path, profile: str) -> None:
    exact = 0
    for seed in range(12):
        graph = graphs.wild(seed)
        if all(proof.f24 for proof in prove(graph).values()):
            exporter = onnx(profile=profile)
            exporter.write(graph, tmp_path)
            x = vectors(graph, n=600, seed=seed).x
            assert np.array_equal(exporter.load(tmp_path)(x), evaluate(graph, x)), seed
            exact += 1
    assert exact > 5


@pytest.mark.parametrize("profile", PROFILES)
def test_float_networks_stay_within_rounding(tmp_path: Path, profile: str) -> None:
    graph = graphs.float_mlp(2, activation="tanh")
    certificate = export_graph(Material(graph), {"onnx": onnx(profile=profile)}, tmp_path / "out", n_vectors=1000, progress=QUIET)["onnx"]
    assert not certificate["bit_exact"]
    assert certificate["maximal_deviation"] <= 1e-5 * certificate["largest_logit"]
    assert "deviation" in certificate["promise"]["logits"]
    result = run_selftest(tmp_path / "out" / "onnx")
    assert result["passed"], result["output"]
    if profile != "triton":
        assert result["softmax_deviation"] <= result["softmax_tolerance"] == 2.0**-19 + certificate["tolerance"]


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED"])
def test_optimisation_and_threads_change_no_bit(tmp_path: Path, profile: str, level: str) -> None:
    graph = subject()
    onnx(profile=profile).write(graph, tmp_path)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(str(find_model(tmp_path)), options, providers=["CPUExecutionProvider"])
    x = vectors(graph, n=300).x
    expected = score(graph, evaluate(graph, x))
    for row in range(0, 300, 3):
        found = session.run(["score"], framework_inputs(profile, tmp_path, x, row))[0]
        assert int(found.reshape(())) == expected[row]


def framework_inputs(profile: str, directory: Path, x: Features, row: int) -> dict[str, np.ndarray]:
    """One jet as the framework hands it over, with the constituents that exist and no padding where it can."""
    event, count = x.groups["event"][row], int(np.clip(x.counts["jets"][row], 0, 5))
    jets = x.groups["jets"][row, :count]
    if profile == "athena":
        return {"jet_features": event[None], "track_features": jets}
    if profile == "triton":
        return {"event": event[None], "jets": jets[None], "jets_count": np.array([[count]], np.float32)}
    document = json.loads((directory / "preprocess.json").read_text())
    columns = {"event": [event[[j]] for j in range(len(event))], "jets": [jets[:, j] for j in range(jets.shape[1])]}
    return cms_inputs(document, columns, clamp=True)


# --------------------------------------------------------------------------------------------------------------------------- cmssw


def catch_infs(value: np.float32, other: np.float32) -> np.float32:
    return other if not np.isfinite(value) or abs(value) > np.float32(1e32) else value


def center_norm_pad(values: np.ndarray, info: dict[str, float], least: int, most: int, *, clamp: bool) -> list[np.float32]:
    """CMSSW's preprocessing of one variable, value by value; `clamp` leaves infinities to the clamp, as the golden model does."""
    f32 = np.float32
    median, factor, other, lower, upper, pad = (f32(info[key]) for key in ("median", "norm_factor", "replace_inf_value", "lower_bound", "upper_bound", "pad"))
    assert lower <= pad <= upper
    assert least <= most
    size = min(max(len(values), least), most)
    ready = []
    for k in range(size):
        if k >= len(values):
            ready.append(pad)
            continue
        value = f32(values[k])
        if not (clamp and abs(value) > f32(1e32)):
            value = catch_infs(value, other)
        with np.errstate(over="ignore"):
            ready.append(min(max((value - median) * factor, lower), upper))
    return ready


def cms_inputs(document: dict[str, Any], columns: dict[str, list[np.ndarray]], *, clamp: bool) -> dict[str, np.ndarray]:
    """What a producer hands to cms::Ort::ONNXRuntime::run with `{1, n_vars, length of the first variable}`."""
    feeds = {}
    for group in document["input_names"]:
        part = document[group]
        flat, length = [], 0
        for k, (name, values) in enumerate(zip(part["var_names"], columns[group], strict=True)):
            ready = center_norm_pad(values, part["var_infos"][name], part["min_length"], part["max_length"], clamp=clamp)
            flat += ready
            length = len(ready) if k == 0 else length
        feeds[group] = np.array(flat, np.float32).reshape(1, len(part["var_names"]), length)
    return feeds


def test_cmssw_preprocessing_then_the_graph_is_the_input_step(tmp_path: Path) -> None:
    graph = subject()
    onnx(profile="cmssw").write(graph, tmp_path)
    document, session = json.loads((tmp_path / "preprocess.json").read_text()), session_of(tmp_path)
    x = vectors(graph, n=2500).x
    # What CMSSW calls missing is missing in the golden model, too.
    caught = {name: np.where(np.isfinite(array) & (np.abs(array) <= np.float32(1e32)), array, np.float32(np.nan)) for name, array in x.groups.items()}
    expected = evaluate(graph, Features(caught, x.counts))
    f = graph.structure["out"].f
    assert f is not None
    seen = set()
    for row in range(0, len(expected), 4):
        count = int(x.counts["jets"][row])  # over-long ones are cut by max_length
        jets = x.groups["jets"][row, : min(count, 5)]
        if count > 5:
            jets = np.concatenate([jets, np.full((count % 7 + 1, 3), 11, np.float32)])
        columns = {"jets": list(jets.T), "event": [x.groups["event"][row, [j]] for j in range(4)]}
        feeds = cms_inputs(document, columns, clamp=False)
        seen.add(feeds["jets"].shape[2])
        softmax, logits = session.run(None, feeds)[:2]
        assert np.array_equal((logits[0].astype(np.float64) * 2.0**f).astype(np.int64), expected[row])
        weights = np.exp(expected[row] * 2.0**-f - (expected[row] * 2.0**-f).max())
        assert np.abs(softmax[0] - weights / weights.sum()).max() <= 2.0**-19
    assert seen == {1, 2, 3, 4, 5}, "lengths of their own, not padded ones"


def test_cmssw_ports_and_document(tmp_path: Path) -> None:
    onnx(profile="cmssw").write(subject(), tmp_path)
    session = session_of(tmp_path)
    inputs, outputs = ports(session)
    assert inputs == {"jets": ["batch", 3, "n_jets"], "event": ["batch", 4, 1]}
    assert list(outputs.items()) == [("softmax", ["batch", 3]), ("logits", ["batch", 3]), ("score", ["batch", 1])]
    document = json.loads((tmp_path / "preprocess.json").read_text())
    assert document["input_names"] == ["jets", "event"]
    assert document["output_names"] == ["softmax"]
    jets, event = document["jets"], document["event"]
    assert (jets["min_length"], jets["max_length"]) == (1, 5)
    assert (event["min_length"], event["max_length"]) == (1, 1)
    assert jets["var_names"] == ["jets_0", "jets_1", "jets_2"]
    info = jets["var_infos"]["jets_1"]
    assert (info["median"], info["norm_factor"]) == (0, 1)
    assert np.float32(info["pad"]) == ABSENT
    assert np.float32(info["replace_inf_value"]) == MISSING
    assert np.float32(event["var_infos"]["event_0"]["pad"]) == MISSING


def test_cmssw_absent_constituents_are_not_there(tmp_path: Path) -> None:
    """Padding in any number and at any place of a collection changes no bit."""
    graph = subject()
    onnx(profile="cmssw").write(graph, tmp_path)
    session = session_of(tmp_path)
    rng = np.random.default_rng(0)
    event, jets = rng.normal(size=(1, 4, 1)).astype(np.float32), rng.normal(0, 20, size=(1, 3, 2)).astype(np.float32)
    alone = session.run(["logits"], {"event": event, "jets": jets})[0]
    pad = np.full((1, 3, 1), ABSENT, np.float32)
    for parts in ([jets, pad], [jets, pad, pad, pad], [pad, jets], [jets[:, :, :1], pad, jets[:, :, 1:]]):
        assert np.array_equal(session.run(["logits"], {"event": event, "jets": np.concatenate(parts, axis=2)})[0], alone)
    assert not np.array_equal(session.run(["logits"], {"event": event, "jets": pad})[0], alone)


# -------------------------------------------------------------------------------------------------------------------------- triton


def model_config() -> Any:
    """The part of Triton's ModelConfig that we write, with its field names; an unknown field or enumerator does not parse."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="model_config.proto", package="inference", syntax="proto3")
    for name, values in (("DataType", {"TYPE_INVALID": 0, "TYPE_FP32": 11}), ("Kind", {"KIND_AUTO": 0, "KIND_GPU": 1, "KIND_CPU": 2})):
        enum = file.enum_type.add(name=name)
        for key, number in values.items():
            enum.value.add(name=key, number=number)

    def message(name: str, *fields: tuple[str, int, int, str, bool]) -> None:
        found = file.message_type.add(name=name)
        for key, number, kind, type_name, many in fields:
            label = field.LABEL_REPEATED if many else field.LABEL_OPTIONAL
            found.field.add(name=key, number=number, type=kind, label=label, **({"type_name": type_name} if type_name else {}))  # type: ignore[arg-type]

    for name in ("Input", "Output"):
        message(
            name,
            ("name", 1, field.TYPE_STRING, "", False),
            ("data_type", 2, field.TYPE_ENUM, ".inference.DataType", False),
            ("dims", 3, field.TYPE_INT64, "", True),
        )
    message("Group", ("count", 2, field.TYPE_INT32, "", False), ("kind", 4, field.TYPE_ENUM, ".inference.Kind", False))
    message("Value", ("string_value", 1, field.TYPE_STRING, "", False))
    message("Parameter", ("key", 1, field.TYPE_STRING, "", False), ("value", 2, field.TYPE_MESSAGE, ".inference.Value", False))
    message(
        "ModelConfig",
        ("name", 1, field.TYPE_STRING, "", False),
        ("backend", 17, field.TYPE_STRING, "", False),
        ("max_batch_size", 4, field.TYPE_INT32, "", False),
        ("input", 5, field.TYPE_MESSAGE, ".inference.Input", True),
        ("output", 6, field.TYPE_MESSAGE, ".inference.Output", True),
        ("instance_group", 7, field.TYPE_MESSAGE, ".inference.Group", True),
        ("parameters", 14, field.TYPE_MESSAGE, ".inference.Parameter", True),
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))()


def test_triton_repository_and_its_configuration(tmp_path: Path) -> None:
    exporter = onnx(profile="triton", name="jet_tagger", max_batch_size=32)
    exporter.write(subject(), tmp_path)
    assert set(exporter.artefacts) == {"jet_tagger/config.pbtxt", "jet_tagger/1/model.onnx", "selftest.py"}
    assert {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()} == set(exporter.artefacts)
    config = text_format.Parse((tmp_path / "jet_tagger" / "config.pbtxt").read_text(), model_config())
    assert (config.name, config.backend, config.max_batch_size) == ("jet_tagger", "onnxruntime", 32)
    assert [group.kind for group in config.instance_group] == [2]
    assert {p.key: p.value.string_value for p in config.parameters} == {"intra_op_thread_count": "1", "inter_op_thread_count": "1"}
    inputs, outputs = ports(session_of(tmp_path))
    for stated, model in ((config.input, inputs), (config.output, outputs)):
        assert [port.name for port in stated] == list(model)
        for port in stated:
            assert port.data_type == 11
            # Triton adds the batch axis; -1 is an axis of any length.
            assert ["batch", *port.dims] == [-1 if isinstance(size, str) and k else size for k, size in enumerate(model[port.name])]
    assert {port.name: list(port.dims) for port in config.input} == {"jets": [-1, 3], "jets_count": [1], "event": [4]}


def test_triton_batches_of_jets_of_different_lengths(tmp_path: Path) -> None:
    graph = subject()
    onnx(profile="triton").write(graph, tmp_path)
    x = vectors(graph, n=400).x
    feeds = {"event": x.groups["event"], "jets": x.groups["jets"], "jets_count": x.counts["jets"][:, None].astype(np.float32)}
    found = session_of(tmp_path).run(["score"], feeds)[0][:, 0]
    assert np.array_equal(found.astype(np.int64), score(graph, evaluate(graph, x)))


# -------------------------------------------------------------------------------------------------------------------------- athena


def test_athena_ports_and_metadata(tmp_path: Path) -> None:
    facts = onnx(profile="athena", name="MyTagger", tracks="tracks_all_sd0sort").write(subject(), tmp_path)
    session = session_of(tmp_path)
    inputs, outputs = ports(session)
    assert list(inputs.items()) == [("jet_features", [1, 4]), ("track_features", ["n_tracks", 3])]
    assert list(outputs.items()) == [(name, []) for name in ("pb", "pc", "pu", "logit_b", "logit_c", "logit_u", "score")]
    model = library.load(str(tmp_path / "model.onnx"))
    assert model.doc_string == "MyTagger"
    assert [opset.version for opset in model.opset_import] == [16]
    config = json.loads(session.get_modelmeta().custom_metadata_map["gnn_config"])
    assert config["onnx_model_version"] == "v1"
    (jet,), (tracks,) = config["inputs"], config["input_sequences"]
    assert (jet["name"], tracks["name"]) == ("jet_var", "tracks_all_sd0sort") == ("jet_var", facts["tracks"])
    assert jet["variables"][1] == {"name": "event_1", "offset": 0.0, "scale": 1.0}
    assert [variable["name"] for variable in tracks["variables"]] == ["jets_0", "jets_1", "jets_2"]


@pytest.mark.parametrize("kind", ["sum", "max", "mean"])
def test_athena_any_number_of_tracks(tmp_path: Path, kind: str) -> None:
    """0 to beyond the length; only the first ones count."""
    graph = graphs.deepsets(4, kind=kind)
    onnx(profile="athena").write(graph, tmp_path)
    session = session_of(tmp_path)
    rng = np.random.default_rng(1)
    event, tracks = rng.normal(0, 30, (1, 2)).astype(np.float32), rng.normal(0, 30, (40, 3)).astype(np.float32)
    for n in range(40):
        found = session.run(["score"], {"jet_features": event, "track_features": tracks[:n]})[0]
        x = Features({"jets": tracks[None, :7], "event": event}, {"jets": np.array([n], np.int32)})
        assert int(found) == score(graph, evaluate(graph, x))[0], n


def test_athena_of_one_kind_of_input_and_other_names(tmp_path: Path) -> None:
    onnx(profile="athena", jet_input="event_features").write(graphs.mlp(1), tmp_path)
    session = session_of(tmp_path)
    assert ports(session)[0] == {"event_features": [1, 5]}
    assert json.loads(session.get_modelmeta().custom_metadata_map["gnn_config"])["input_sequences"] == []


# ------------------------------------------------------------------------------------------------------------------------ refusals


def edited(graph: Graph, name: str, **changes: Any) -> Graph:
    return Graph(tuple(dataclasses.replace(node, **changes) if node.name == name else node for node in graph.nodes))


def two_collections() -> Graph:
    rng = np.random.default_rng(0)
    nodes = (
        input_node("in_jets", graphs.group(rng, "jets", 3, 5), Fixed(True, 3, 3)),
        input_node("in_tracks", graphs.group(rng, "tracks", 2, 8), Fixed(True, 3, 3)),
        Pool("a", ("in_jets",), "sum", "jets"),
        Pool("b", ("in_tracks",), "max", "tracks"),
        Concat("all", ("a", "b")),
        graphs.affine(rng, "logits", "all", 5, 2, relu=False),
        Output("out", ("logits",), ("x", "y"), "none"),
    )
    return Graph(nodes)


def test_athena_refuses_two_collections_and_the_others_take_them(tmp_path: Path) -> None:
    graph = two_collections()
    with pytest.raises(UsageError, match="'jets', 'tracks'") as error:
        onnx(profile="athena").write(graph, tmp_path)
    assert error.value.near == ("onnx.profile=plain", "onnx.profile=cmssw")
    assert "in_tracks" in error.value.where
    assert list(tmp_path.iterdir()) == []
    x = vectors(graph, n=600).x
    for profile in ("cmssw", "triton"):
        exporter = onnx(profile=profile)
        (tmp_path / profile).mkdir()
        exporter.write(graph, tmp_path / profile)
        assert np.array_equal(exporter.load(tmp_path / profile)(x), evaluate(graph, x))


def test_what_a_profile_cannot_hold_is_refused_by_name(tmp_path: Path) -> None:
    one = graphs.mlp(1, outputs=1)
    for profile in ("cmssw", "athena"):
        with pytest.raises(UsageError, match="Output 'out' has one logit"):
            onnx(profile=profile).write(one, tmp_path)
    onnx(profile="triton").write(one, tmp_path)
    same = edited(subject(), "in_event", variables=("jets_0", "b", "c", "d"))
    with pytest.raises(UsageError, match="groups 'jets' and 'event' both have a variable 'jets_0'"):
        onnx(profile="cmssw").write(same, tmp_path)
    for group, message in (("logits", "'logits' already"), ("input_names", "key of preprocess.json")):
        with pytest.raises(UsageError, match=message):
            onnx(profile="cmssw").write(edited(subject(), "in_event", group=group), tmp_path)


def test_options_are_checked() -> None:
    with pytest.raises(UsageError, match="no profile is called 'cms'") as error:
        onnx(profile="cms")
    assert error.value.near == ("cmssw",)
    with pytest.raises(UsageError, match="option 'jet_input' belongs to profile 'athena'"):
        onnx(profile="cmssw", jet_input="x")
    with pytest.raises(UsageError, match="letters, digits"):
        onnx(profile="triton", name="../x")
    with pytest.raises(UsageError, match="max_batch_size"):
        onnx(profile="triton", max_batch_size=0).write(subject(), Path("never"))
    with pytest.raises(UsageError, match="quantised"):
        onnx(quantised="int4")


def test_the_command_lines_shorthand() -> None:
    def of(targets: list[str], profile: str | None, options: dict[str, Any]) -> dict[str, Any]:
        return _options(targets, options, profile=profile, emulator=False)

    assert of(["onnx"], None, {"onnx": {"opset": 17}}) == {"onnx": {"opset": 17}}
    assert of(["cpp", "onnx"], "cmssw", {"cpp": {}, "onnx": {"opset": 17}}) == {"cpp": {}, "onnx": {"opset": 17, "profile": "cmssw"}}
    assert of(["onnx"], "cmssw", {"onnx": {"profile": "cmssw"}}) == {"onnx": {"profile": "cmssw"}}
    with pytest.raises(UsageError, match="do not agree"):
        of(["onnx"], "cmssw", {"onnx": {"profile": "athena"}})
    with pytest.raises(UsageError, match="of the target onnx, and --to names cpp"):
        of(["cpp"], "cmssw", {})


def test_models_of_version_1_still_run(tmp_path: Path) -> None:
    """They did not describe their inputs."""
    for k, graph in enumerate((graphs.mlp(2), graphs.deepsets(2))):
        onnx().write(graph, tmp_path)
        model = library.load(str(tmp_path / "model.onnx"))
        kept = {p.key: p.value for p in model.metadata_props if p.key not in ("hlt_train.profile", "hlt_train.inputs")}
        assert len(kept) == len(model.metadata_props) - 2
        library.helper.set_model_props(model, {**kept, "hlt_train.version": "1"})
        library.save(model, str(tmp_path / "model.onnx"))
        x = vectors(graph, n=400, seed=k).x
        assert np.array_equal(onnx().load(tmp_path)(x), evaluate(graph, x))


def test_a_cmssw_export_without_its_preprocessing_does_not_run(tmp_path: Path) -> None:
    onnx(profile="cmssw").write(subject(), tmp_path)
    (tmp_path / "preprocess.json").write_text("{")
    with pytest.raises(RunFailed, match="damaged file"):
        onnx().load(tmp_path)
    (tmp_path / "preprocess.json").unlink()
    with pytest.raises(UsageError, match=r"no such file: preprocess\.json"):
        onnx().load(tmp_path)


def test_a_repository_of_two_models_is_not_one(tmp_path: Path) -> None:
    for name in ("a", "b"):
        onnx(profile="triton", name=name).write(graphs.mlp(0), tmp_path)
    with pytest.raises(UsageError, match="2 models"):
        onnx().load(tmp_path)


# --------------------------------------------------------------------------------------------------------------- what changes is noticed


Exported = dict[str, tuple[Path, dict[str, Any]]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """By profile: a certified export, its certificate."""
    found = {}
    for profile in PROFILES:
        out = tmp_path_factory.mktemp(profile) / "out"
        material = Material(subject(), POINTS, graphs.features(subject(), 500))
        found[profile] = out / "onnx", export_graph(material, {"onnx": onnx(profile=profile)}, out, n_vectors=2000, keep=300, progress=QUIET)["onnx"]
    return found


@pytest.mark.parametrize("profile", PROFILES)
def test_a_certified_directory_stands_alone(exported: Exported, profile: str) -> None:
    directory, certificate = exported[profile]
    exporter = onnx(profile=profile)
    documents = {"graph.json", "golden.bin", "golden.json", "working_points.json"}
    assert {*exporter.artefacts, *documents} == certificate["sha256"].keys()
    assert certificate["profile"] == profile
    assert certificate["promise"]["logits"].startswith("exact")
    assert certificate["logits"]["differing"] == certificate["decisions"]["differing"] == 0
    assert certificate["latency"]["median_ns"] > 0
    result = run_selftest(directory)
    assert result["passed"], result["output"]
    assert result["vectors"] > 800
    if profile != "triton":
        assert result["probabilities_differing"] == 0
        assert 0 < result["softmax_deviation"] <= result["softmax_tolerance"] == 2.0**-19
    # The exporter with default options reads whatever profile lies there.
    x = vectors(subject(), n=300).x
    assert np.array_equal(onnx().load(directory)(x), evaluate(subject(), x))


def named(model: Any, name: str) -> Any:
    """The initialiser called `name`."""
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def change(name: str, edit: Callable[[np.ndarray], Any]) -> Callable[[Any], None]:
    def apply(model: Any) -> None:
        tensor = named(model, name)
        before = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(edit(before.copy()), before.dtype), name))

    return apply


def bump(array: np.ndarray, *index: int) -> np.ndarray:
    array[index] += 1
    return array


def rounding(model: Any) -> None:
    """Floor(x + 1/2) becomes Round: half up becomes half even."""
    floor = next(node for node in model.graph.node if node.name.startswith("phi_act/Floor"))
    add = next(node for node in model.graph.node if node.output[0] == floor.input[0])
    floor.op_type, floor.input[0] = "Round", add.input[0]


def length(model: Any) -> None:
    """One constituent more than the network reads."""
    axes = [tensor for tensor in model.graph.initializer if tensor.name.startswith("in_jets/axes") and numpy_helper.to_array(tensor).tolist() == [5]]
    assert len(axes) == 1
    axes[0].CopyFrom(numpy_helper.from_array(np.array([4], np.int64), axes[0].name))


MUTATIONS: dict[str, Callable[[Any], None]] = {
    "weight": change("phi/weight", lambda w: bump(w, 2, 3)),
    "bias": change("dense/bias", lambda b: bump(b, 1)),
    "shift": change("phi_act/shift", lambda s: s * 2),
    "rounding": rounding,
    "clamp limit": change("act/hi", lambda hi: hi - np.eye(6, dtype=np.float32)[4]),
    "input limit": change("in_jets/lo", lambda lo: bump(lo, 2)),
    "nan": change("in_event/nan", lambda n: bump(n, 0)),
    "centre": change("in_jets/centre", lambda c: np.nextafter(c, np.float32(np.inf))),
    "length": length,
}


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_selftest_fails_on_a_changed_model(tmp_path: Path, exported: Exported, profile: str, mutation: str) -> None:
    copy = Path(shutil.copytree(exported[profile][0], tmp_path / "copy"))
    path = find_model(copy)
    model = library.load(str(path))
    MUTATIONS[mutation](model)
    library.checker.check_model(model)
    library.save(model, str(path))
    result = run_selftest(copy)
    assert not result["passed"]
    assert result["logits_differing"] > 0, "the integers must tell, not only the hash"
    x = vectors(subject(), n=1500, seed=3).x
    assert (onnx().load(copy)(x) != evaluate(subject(), x)).any(), "and so must the comparison of the export"


@pytest.mark.parametrize("profile", ["cmssw", "athena"])
@pytest.mark.parametrize("how", ["another function", "another class"])
def test_the_selftest_fails_on_changed_probabilities(tmp_path: Path, exported: Exported, profile: str, how: str) -> None:
    copy = Path(shutil.copytree(exported[profile][0], tmp_path / "copy"))
    model = library.load(str(copy / "model.onnx"))
    softmax = next(node for node in model.graph.node if node.op_type == "Softmax")
    if how == "another function":
        softmax.op_type = "HardSigmoid"
        del softmax.attribute[:]
    elif profile == "athena":
        first, second = (next(node for node in model.graph.node if node.output[0] == name) for name in ("pb", "pc"))
        first.input[0], second.input[0] = second.input[0], first.input[0]
    else:
        softmax.attribute[0].i = 0
    library.save(model, str(copy / "model.onnx"))
    result = run_selftest(copy)
    assert not result["passed"]
    assert result["probabilities_differing"] > 0
    assert result["logits_differing"] == 0


CHANGES: dict[str, tuple[str, float]] = {
    "median": ("median", 1e-3),
    "norm_factor": ("norm_factor", 1.0001),
    "lower_bound": ("lower_bound", -5.0),
    "upper_bound": ("upper_bound", float(ABSENT)),  # infinities become absent constituents
    "replace_inf_value": ("replace_inf_value", 0.0),
    "pad": ("pad", 0.0),
}


@pytest.mark.parametrize("changed", CHANGES)
def test_preprocess_json_is_part_of_what_is_compared(tmp_path: Path, exported: Exported, changed: str) -> None:
    copy = Path(shutil.copytree(exported["cmssw"][0], tmp_path / "copy"))
    document = json.loads((copy / "preprocess.json").read_text())
    key, value = CHANGES[changed]
    document["jets"]["var_infos"]["jets_0"][key] = value
    (copy / "preprocess.json").write_text(json.dumps(document))
    result = run_selftest(copy)
    assert not result["passed"]
    assert result["logits_differing"] > 0
    x = vectors(subject(), n=1500, seed=3).x
    assert (onnx().load(copy)(x) != evaluate(subject(), x)).any()


@pytest.mark.parametrize("profile", PROFILES)
def test_a_wrong_artefact_never_appears(tmp_path: Path, profile: str) -> None:
    right = onnx(profile=profile)

    def write(graph: Graph, directory: Path) -> dict[str, Any]:
        facts = right.write(graph, directory)
        model = library.load(str(find_model(directory)))
        MUTATIONS["weight"](model)
        library.save(model, str(find_model(directory)))
        return facts

    with pytest.raises(RunFailed, match=r"onnx: .* vectors differ"):
        export_graph(Material(subject(), POINTS), {"onnx": right._replace(write=write)}, tmp_path / "out", n_vectors=2000, progress=QUIET)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------------------- what the pages show

# The declarations of ONNX Runtime's and CMSSW's headers that the pages use, since no package that the tests install has them.
ORT_STUB = """#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>
enum OrtLoggingLevel { ORT_LOGGING_LEVEL_WARNING = 2 };
enum OrtAllocatorType { OrtArenaAllocator = 1 };
enum OrtMemType { OrtMemTypeDefault = 0 };
namespace Ort {
struct Env { Env(OrtLoggingLevel, const char*); };
struct SessionOptions { SessionOptions(); SessionOptions& SetIntraOpNumThreads(int); SessionOptions& SetInterOpNumThreads(int); };
struct RunOptions { explicit RunOptions(std::nullptr_t); };
struct MemoryInfo { static MemoryInfo CreateCpu(OrtAllocatorType, OrtMemType); };
struct TensorTypeAndShapeInfo { std::size_t GetElementCount() const; };
struct Value {
  Value(Value&&) = default;
  Value& operator=(Value&&) = default;
  Value(const Value&) = delete;
  template <typename T> static Value CreateTensor(const MemoryInfo&, T*, std::size_t, const std::int64_t*, std::size_t);
  template <typename T> const T* GetTensorData() const;
  TensorTypeAndShapeInfo GetTensorTypeAndShapeInfo() const;
private:
  Value();
};
struct Session {
  explicit Session(std::nullptr_t);
  Session(const Env&, const char*, const SessionOptions&);
  Session(Session&&) = default;
  Session& operator=(Session&&) = default;
  Session(const Session&) = delete;
  std::vector<Value> Run(const RunOptions&, const char* const*, const Value*, std::size_t, const char* const*, std::size_t);
};
}
"""
CMS_STUB = """#pragma once
#include <cstdint>
#include <string>
#include <vector>
namespace cms::Ort {
typedef std::vector<std::vector<float>> FloatArrays;
struct ONNXRuntime {
  ONNXRuntime(const ONNXRuntime&) = delete;
  FloatArrays run(const std::vector<std::string>&, FloatArrays&, const std::vector<std::vector<std::int64_t>>& = {}, const std::vector<std::string>& = {},
                  std::int64_t = 1) const;
};
}
"""


def snippets(page: str) -> list[str]:
    return re.findall(r"```cpp\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)


@pytest.mark.parametrize(("page", "number"), [("cmssw.md", 0), ("cmssw.md", 1), ("athena.md", 0)])
def test_the_pages_code_compiles(tmp_path: Path, page: str, number: int) -> None:
    """Against minimal declarations, with all warnings: that it is C++ and that it names functions that the declarations have."""
    found = snippets(page)
    assert len(found) == (2 if page == "cmssw.md" else 1)
    (tmp_path / "onnxruntime_cxx_api.h").write_text(ORT_STUB)
    header = tmp_path / "PhysicsTools" / "ONNXRuntime" / "interface" / "ONNXRuntime.h"
    header.parent.mkdir(parents=True)
    header.write_text(CMS_STUB)
    (tmp_path / "page.cpp").write_text(found[number])
    command = [*find_compiler(""), "-std=c++17", "-Wall", "-Wextra", "-Werror", "-isystem", str(tmp_path), "-c", "page.cpp", "-o", "page.o"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

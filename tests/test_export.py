"""`export` of real runs, float and fixed point: what lies in the directory, what opens it again, what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hlt_train import files, plugins
from hlt_train.artefact import is_export, open_export
from hlt_train.bench import bench
from hlt_train.cli import main
from hlt_train.data import normalise
from hlt_train.errors import RunFailed, UsageError
from hlt_train.export import export
from hlt_train.files import read_document, write_document
from hlt_train.fit import fit
from hlt_train.golden import read_golden
from hlt_train.graph import Affine, Graph, evaluate
from hlt_train.precision.config import Precision
from hlt_train.progress import Progress
from hlt_train.restore import load_run, lowered
from hlt_train.types import Features
from tests.runs import config, write_card

QUIET = Progress(quiet=True)
TRIGGER = """
new_variables: {log_mass: "log(jet_mass + 1)", twice: "2 * log_mass"}
trigger:
  discriminant: {signal: [t], background: {g: 0.7, q: 0.3}}
  working_points: {tight: mistag 5%, loose: mistag 20%}
"""


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    card = write_card(tmp_path_factory.mktemp("jets"), files=2, rows=600)
    card.write_text(card.read_text().replace("hlf: [jet_mass,", "hlf: [twice,") + TRIGGER)
    path = tmp_path_factory.mktemp("runs") / "teacher"
    fit(config(card, length="3epochs", learning_rate=0.02), path, progress=QUIET)
    return path


@pytest.fixture(scope="module")
def student(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teacher's weights read as a fixed-point network that cuts on t minus q."""
    path = Path(shutil.copytree(teacher, tmp_path_factory.mktemp("runs") / "student"))
    (path / "working_points.json").unlink()  # they are the teacher's
    model = read_document(path / "model.json", "hlt-train/model", 1)
    precision = Precision(weights="fixed<8,3>", bias="fixed<8,3>", activations="ufixed<8,4>", inputs="fixed<10,4>")
    content = {**model, "precision": precision.to_config(), "score": [0, -1, 0, 0, 1]}
    write_document(path / "model.json", "hlt-train/model", 1, {k: v for k, v in content.items() if k not in ("format", "version")})
    return path


@pytest.fixture(scope="module")
def exported(student: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("exports") / "student"
    return out, export(student, ["onnx"], out, n_vectors=6000, keep=500, progress=QUIET)


def test_the_directory_holds_all_there_is_to_know(student: Path, exported: tuple[Path, dict[str, Any]]) -> None:
    out, result = exported
    directory = out / "onnx"
    names = {"model.onnx", "selftest.py", "graph.json", "golden.bin", "golden.json", "working_points.json", "features.json", "card.json", "normalisation.json"}
    assert {path.name for path in directory.iterdir()} == names | {"certificate.json"}
    certificate = result["targets"]["onnx"]
    stored = read_document(directory / "certificate.json", "hlt-train/certificate", 1)
    assert {**stored, "bytes": certificate["bytes"]} == {"format": "hlt-train/certificate", "version": 1, **json.loads(json.dumps(certificate))}
    assert certificate["bit_exact"]
    assert certificate["starts_at"] == "float"
    assert certificate["logits"] == {"compared": 5 * certificate["vectors"]["compared"], "differing": 0}
    assert certificate["decisions"] == {"compared": 2 * certificate["vectors"]["compared"], "differing": 0}
    assert certificate["vectors"]["compared"] >= 6000
    assert certificate["vectors"]["by_category"]["nearest"] > 100
    assert set(certificate["sha256"]) == names
    assert certificate["one_ulp"]["of"] == "validation rows"
    assert 0 <= certificate["one_ulp"]["integer_inputs_flipped"] < 0.01
    assert certificate["cost"]["macs"] == 6 * 8 + 8 * 5
    assert certificate["proof"]["dense_0"]["f24"]
    assert certificate["sources"]["weights_sha256"]
    assert (directory / "working_points.json").read_bytes() == (student / "working_points.json").read_bytes()


def test_features_say_where_every_input_comes_from(exported: tuple[Path, dict[str, Any]], student: Path) -> None:
    document = read_document(exported[0] / "onnx" / "features.json", "hlt-train/features", 2)
    (group,) = document["groups"]
    first = group["variables"][0]
    assert first["expression"] == "2 * log_mass"
    assert first["branches"] == ["jet_mass"]
    inputs = load_run(student).inputs
    assert np.float32(first["centre"]) == inputs["hlf"].centre[0]
    assert np.float32(first["scale"]) == inputs["hlf"].scale[0]
    assert first["integer"]["f"] == 6
    assert np.float32(first["integer"]["factor"]) == inputs["hlf"].scale[0] * np.float32(64)
    assert first["clip"] == [-5.0, 5.0]
    assert (first["integer"]["lo"], first["integer"]["hi"]) == (-320, 320)
    program = document["program"]
    assert [step["op"] for step in program["steps"]][:4] == ["branch", "constant", "add", "log"]
    assert program["given"] == {}
    assert [branch["type"] for branch in program["branches"]] == ["float32"] * 6


def test_shipped_vectors_are_those_of_the_golden_model(exported: tuple[Path, dict[str, Any]], student: Path) -> None:
    golden = read_golden(exported[0] / "onnx")
    graph = lowered(load_run(student))
    assert np.array_equal(evaluate(graph, golden.x), golden.outputs)
    assert len(golden) == exported[1]["targets"]["onnx"]["vectors"]["shipped"]


def test_it_opens_again_and_runs_the_artefact(exported: tuple[Path, dict[str, Any]], student: Path) -> None:
    artefact = open_export(exported[0])
    assert is_export(exported[0])
    assert artefact.target == "onnx"
    assert artefact.exact
    assert artefact.names == ("g", "q", "W", "Z", "t")
    loaded = load_run(student)
    assert artefact.card == loaded.card
    assert [group.name for group in artefact.inputs.groups] == ["hlf"]
    x = read_golden(artefact.path).x
    logits = artefact.outputs(x)
    assert np.array_equal(logits, evaluate(lowered(loaded), x))
    assert np.array_equal(artefact.score(logits), logits[:, 4] - logits[:, 1])
    assert len(artefact.working_points["points"]) == 2


def test_a_changed_export_does_not_open(exported: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(exported[0], tmp_path / "copy"))
    document = json.loads((copy / "onnx" / "working_points.json").read_text())
    document["points"][0]["integer_threshold"] += 1
    (copy / "onnx" / "working_points.json").write_text(json.dumps(document))
    with pytest.raises(RunFailed, match=r"working_points\.json is not the file that was certified"):
        open_export(copy / "onnx")


def certify_again(directory: Path) -> None:
    """As whoever changes a file and knows about certificates would."""
    path = directory / "certificate.json"
    content = json.loads(path.read_text())
    content["sha256"] = {name: files.sha256(directory / name) for name in content["sha256"]}
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("file", ["model.onnx", "selftest.py"])
def test_code_that_its_graph_does_not_give_is_not_run(exported: tuple[Path, dict[str, Any]], tmp_path: Path, file: str) -> None:
    """Every hash agrees; the file is another's."""
    copy = Path(shutil.copytree(exported[0] / "onnx", tmp_path / "onnx"))
    assert open_export(copy).exact
    content = (copy / file).read_bytes()
    (copy / file).write_bytes(content + (b"\n# and something else\n" if file == "selftest.py" else content[-8:]))
    certify_again(copy)
    with pytest.raises(UsageError, match=f"{file} is not what this program writes") as error:
        open_export(copy)
    assert error.value.exit_code == 2
    assert "--trust" in error.value.then


def test_a_trusted_export_runs_as_it_is(exported: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Its weights are others than its graph's: whoever says --trust gets what the file computes."""
    copy = Path(shutil.copytree(exported[0] / "onnx", tmp_path / "onnx"))
    graph = open_export(copy).graph
    changed = Graph(tuple(dataclasses.replace(node, b=node.b + 1) if isinstance(node, Affine) else node for node in graph.nodes))
    (tmp_path / "changed").mkdir()
    plugins.factory("exporters", "onnx")().write(changed, tmp_path / "changed")
    shutil.copy(tmp_path / "changed" / "model.onnx", copy / "model.onnx")
    certify_again(copy)
    with pytest.raises(UsageError, match=r"model\.onnx"):
        open_export(copy)
    x = read_golden(copy).x
    assert np.array_equal(open_export(copy, trust=True).outputs(x), evaluate(changed, x))


def test_a_certificate_sets_nothing_on_this_machine(exported: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(exported[0] / "onnx", tmp_path / "cpp"))
    content = json.loads((copy / "certificate.json").read_text())
    (copy / "certificate.json").write_text(json.dumps({**content, "target": "cpp", "options": {"compiler": "false"}}))
    with pytest.raises(UsageError, match="wants to set 'compiler'"):
        open_export(copy, trust=True)


def test_options_travel_with_the_certificate(student: Path, tmp_path: Path) -> None:
    result = export(student, ["onnx"], tmp_path / "out", n_vectors=2000, options={"onnx": {"opset": 13}}, progress=QUIET)
    assert result["targets"]["onnx"]["options"] == {"opset": 13}
    assert open_export(tmp_path / "out").certificate["opset"] == 13


def test_bench_compares_with_the_certificate(exported: tuple[Path, dict[str, Any]]) -> None:
    found = bench(exported[0] / "onnx", progress=QUIET)
    certified = json.loads((exported[0] / "onnx" / "certificate.json").read_text())
    assert found["certified"] == certified["latency"]
    assert found["machine"]["certified"] == found["machine"]["now"] == certified["machine"]
    assert set(found["ratio"]) == {"median_ns", "p99_ns", "cold_p50_ns"}
    for name, ratio in found["ratio"].items():
        assert ratio == found["now"][name] / found["certified"][name] > 0


def test_a_directory_of_two_targets_asks_which(exported: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    shutil.copytree(exported[0] / "onnx", tmp_path / "both" / "onnx")
    shutil.copytree(exported[0] / "onnx", tmp_path / "both" / "other")
    with pytest.raises(UsageError, match="several targets") as error:
        open_export(tmp_path / "both")
    assert len(error.value.near) == 2
    with pytest.raises(UsageError, match="not an export"):
        open_export(tmp_path)
    with pytest.raises(UsageError, match="no such run or export") as error:
        open_export(tmp_path / "boht")
    assert error.value.near[0].endswith("both")


def test_a_float_teacher_states_its_deviation(teacher: Path, tmp_path: Path) -> None:
    certificate = export(teacher, ["onnx"], tmp_path / "out", n_vectors=3000, progress=QUIET)["targets"]["onnx"]
    assert not certificate["bit_exact"]
    assert 0 <= certificate["maximal_deviation"] <= 1e-5 * certificate["largest_logit"]
    assert certificate["decisions"]["compared"] == 2 * certificate["vectors"]["compared"]
    artefact = open_export(tmp_path / "out")
    x = read_golden(artefact.path).x
    logits = artefact.outputs(x)
    log = logits.astype(np.float64)
    expected = log[:, 4] - np.log(0.7 * np.exp(log[:, 0]) + 0.3 * np.exp(log[:, 1]))
    assert np.allclose(artefact.score(logits), expected, rtol=1e-6, atol=1e-6)


def test_an_export_of_an_older_best_derives_its_working_points_again(student: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(student, tmp_path / "run"))
    stale = read_document(run / "working_points.json", "hlt-train/working-points", 1) if (run / "working_points.json").exists() else None
    content = {"network": "BEST, step 1", "points": []}
    write_document(run / "working_points.json", "hlt-train/working-points", 1, content)
    (tmp_path / "out").mkdir()  # an empty directory is taken
    export(run, ["onnx"], tmp_path / "out", n_vectors=500, progress=QUIET)
    found = read_document(run / "working_points.json", "hlt-train/working-points", 1)
    assert [point["name"] for point in found["points"]] == ["tight", "loose"]
    assert stale is None or found["points"] == stale["points"]


def test_refusals(student: Path, tmp_path: Path) -> None:
    go = lambda targets, out, **options: export(student, targets, out, progress=QUIET, **options)  # noqa: E731
    with pytest.raises(UsageError, match="no exporter is called 'onx'") as error:
        go(["onx"], tmp_path / "out")
    assert "onnx" in error.value.near
    with pytest.raises(UsageError, match="export to what"):
        go([], tmp_path / "out")
    with pytest.raises(UsageError, match="no option 'opsett'"):
        go(["onnx"], tmp_path / "out", options={"onnx": {"opsett": 17}})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("mine")
    with pytest.raises(UsageError, match="nothing is ever overwritten"):
        go(["onnx"], tmp_path / "full")
    assert (tmp_path / "full" / "precious").read_text() == "mine"
    with pytest.raises(UsageError, match="not a run directory"):
        export(tmp_path / "nowhere", ["onnx"], tmp_path / "out", progress=QUIET)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


def test_two_exports_compare_the_same_vectors(student: Path, exported: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    export(student, ["onnx"], tmp_path / "again", n_vectors=6000, keep=500, progress=QUIET)
    for file in ("golden.bin", "model.onnx", "graph.json", "features.json"):
        assert (tmp_path / "again" / "onnx" / file).read_bytes() == (exported[0] / "onnx" / file).read_bytes()


def test_the_inputs_of_a_graph_are_a_choice_of_groups(student: Path) -> None:
    """Rows may hold more groups than the network reads."""
    loaded = load_run(student)
    graph = lowered(loaded)
    x = Features({"hlf": np.zeros((3, 6), np.float32), "unused": np.zeros((3, 2), np.float32)}, {})
    assert evaluate(graph, x).shape == (3, 5)
    assert normalise.load(student / "normalisation.json").classes == ("g", "q", "W", "Z", "t")


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    return int(caught.value.code or 0)


def test_the_command(student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("export", student, "--to", "onnx", "--out", tmp_path / "a", "--vectors", 600, "-q") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "bit-exact" in out
    assert "widest accumulator" in out
    assert call("export", student, "--to", "onnx", "--out", tmp_path / "b", "--vectors", 600, "-q", "--json", "--set", "onnx.opset=15") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["targets"]["onnx"]["opset"] == 15
    assert call("export", student, "--to", "onnx", "--out", tmp_path / "b", "-q") == 2
    assert "nothing is ever overwritten" in capsys.readouterr().err


def test_the_features_of_a_header_are_compared_and_reported(student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("export", student, "--to", "cpp", "--out", tmp_path / "a", "--vectors", 600, "-q") == 0
    said = capsys.readouterr().out
    found = read_document(tmp_path / "a" / "cpp" / "certificate.json", "hlt-train/certificate", 1)["features"]
    same, compared = found["compared"] - found["differing"], found["compared"]
    assert f"cpp: features.hpp gives {same:,} of {compared:,} features as NumPy does, the others within {found['maximal_ulp']} ulp" in said
    assert (found["libm"], found["given"]) == (["twice"], [])
    assert found["exact"] == ["jet_mult", "jet_sumzlogz", "jet_width", "jet_tau21", "jet_tau32"]
    artefact = open_export(tmp_path / "a")
    assert artefact.target == "cpp"
    document = json.loads((artefact.path / "features.json").read_text())
    step = next(step for step in document["program"]["steps"] if step["op"] == "log")
    step["op"] = "log2"
    (artefact.path / "features.json").write_text(json.dumps(document))
    certify_again(artefact.path)
    with pytest.raises(UsageError, match=r"features\.hpp is not what this program writes"):
        open_export(tmp_path / "a")


def test_the_emulator_is_of_hls4ml(student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("export", student, "--to", "onnx", "--emulator", "--out", tmp_path / "a", "-q") == 2
    said = capsys.readouterr().err
    assert "--emulator is of the target hls4ml, and --to names onnx" in said
    assert "--to onnx,hls4ml" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_run_leaves_for_an_fpga_and_is_opened_again(student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("export", student, "--to", "hls4ml,qonnx", "--emulator", "--out", tmp_path / "a", "--vectors", 6000, "-q", "--json") == 0
    found = json.loads(capsys.readouterr().out)["targets"]
    loaded = load_run(student)
    graph = lowered(loaded)
    for name in ("hls4ml", "qonnx"):
        assert found[name]["starts_at"] == "grid"
        assert found[name]["logits"]["differing"] == found[name]["decisions"]["differing"] == 0
        artefact = open_export(tmp_path / "a" / name)
        x = read_golden(tmp_path / "a" / name).x
        assert np.array_equal(artefact.outputs(x), evaluate(graph, x))
    assert (tmp_path / "a" / "hls4ml" / "emulator" / "emulator.cpp").is_file()


def test_a_missing_runtime_is_a_usage_error(student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UsageError, match="ONNX Runtime is not installed") as error:
        export(student, ["onnx"], tmp_path / "out", n_vectors=500, progress=QUIET)
    assert "pip install" in error.value.then
    assert list(tmp_path.iterdir()) == []

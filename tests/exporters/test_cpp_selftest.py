"""The export directory checks itself: alone, without hlt_train, and it notices every kind of damage."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hlt_train import files, golden
from hlt_train.exporters._compiler import compile_cpp, find_compiler
from hlt_train.exporters.cpp import cpp
from hlt_train.graph import Fixed, Graph, Output, Quant, Requant, evaluate, input_node, score
from hlt_train.vectors import vectors
from tests import graphs


def export(directory: Path, graph: Graph, n: int = 4000) -> Path:
    """What `export` leaves behind, as far as the self-test reads it."""
    directory.mkdir()
    exporter = cpp()
    exporter.write(graph, directory)
    x, category = vectors(graph, n=n, seed=1)
    outputs = evaluate(graph, x)
    points: list[dict[str, object]] = []
    decisions = np.zeros((0, len(outputs)), bool)
    found = None
    if graph.output.score is not None:
        found = score(graph, outputs)
        # A threshold that is itself a score, so that >= and > differ; one that is no score of any vector needs none next to it.
        tight = int(np.sort(found)[int(0.9 * len(found))])
        points = [{"name": "tight", "integer_threshold": tight}, {"name": "never", "integer_threshold": None}]
        decisions = np.stack([found >= tight, np.zeros(len(found), bool)])
    files.write_document(directory / "working_points.json", "hlt-train/working-points", 1, {"points": points})
    golden.write_golden(
        directory, graph, golden.Golden(x, outputs, found, decisions, category), [str(p["name"]) for p in points], {} if graph.exact else {"tolerance": 1e-4}
    )
    exporter.complete(directory)
    return directory


def selftest(directory: Path) -> subprocess.CompletedProcess[str]:
    """In a process that sees the standard library and the export directory only."""
    return subprocess.run([sys.executable, "-I", "-S", str(directory / "selftest.py"), "--no-time"], cwd="/", capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("cpp") / "net", graphs.deepsets(8, kind="mean", round="half_even"))


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    for path in exported.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_it_passes_alone(copy: Path) -> None:
    blind = subprocess.run([sys.executable, "-I", "-S", "-c", "import hlt_train"], capture_output=True, text=True, check=False)
    assert "ModuleNotFoundError" in blind.stderr
    done = selftest(copy)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert re.search(r"^differing logits +0$", done.stdout, re.MULTILINE)
    assert re.search(r"^differing decisions +0$", done.stdout, re.MULTILINE)


def test_a_damaged_document_is_named(copy: Path) -> None:
    (copy / "working_points.json").write_text('{"points": [1')
    done = selftest(copy)
    assert done.returncode == 1
    assert "FAILED: working_points.json is damaged" in done.stderr
    assert "Traceback" not in done.stderr


def test_it_reports_in_json_and_names_changed_files(copy: Path) -> None:
    command = [sys.executable, "-I", "-S", str(copy / "selftest.py"), "--no-time", "--json"]
    (copy / "certificate.json").write_text(json.dumps({"sha256": {"net.hpp": files.sha256(copy / "net.hpp")}}))
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert {k: found[k] for k in ("differing_logits", "differing_decisions", "files_changed", "error")} == {
        "differing_logits": 0,
        "differing_decisions": 0,
        "files_changed": [],
        "error": "",
    }
    assert found["vectors"] >= 4000
    with (copy / "net.hpp").open("a") as stream:
        stream.write("// a remark\n")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, json.loads(done.stdout)["files_changed"]) == (1, ["net.hpp"])


def test_the_documented_command_line_works_and_times(copy: Path) -> None:
    said = subprocess.run("c++ -std=c++17 -O2 main.cpp -o selftest && ./selftest", shell=True, cwd=copy, capture_output=True, text=True, check=True)
    assert re.search(r"^dependent calls +[\d.]+ ns median", said.stdout, re.MULTILINE)
    assert said.stdout.endswith("passed\n")


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["address", "undefined"])
def test_it_is_clean_under_sanitizers(sanitizer: str, copy: Path) -> None:
    """The golden features lie in heap blocks of their exact size: reading beyond the last variable would end the program."""
    compile_cpp(find_compiler(), [copy / "main.cpp"], copy / "selftest", ["-O2", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"])
    done = subprocess.run(["./selftest", "--no-time"], cwd=copy, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_file_compiles_without_a_warning(copy: Path) -> None:
    command = ["c++", "-std=c++17", "-O2", "-Wall", "-Wextra", "-Wconversion", "-Wpedantic", "-Werror", "main.cpp", "-o", "selftest"]
    assert subprocess.run(command, cwd=copy, capture_output=True, text=True, check=True).stderr == ""


def replace(copy: Path, pattern: str, change: str, name: str = "net.hpp") -> None:
    """Replace the first match of `pattern`, which must be there."""
    path = copy / name
    text, count = re.subn(pattern, change, path.read_text(), count=1, flags=re.MULTILINE | re.DOTALL)
    assert count == 1, f"{pattern} is not in {name}"
    assert text != path.read_text(), "the mutation changes nothing"
    path.write_text(text)


MUTATIONS = {
    "a weight": (r"(phi1_w_\[4\]\[8\] = \{\s*\{)(-?\d+)", r"\1 1 + \2"),
    "a bias": (r"(rho_b_\[5\] = \{)(-?\d+)", r"\1 1 + \2"),
    "a shift": (r"(phi0_act_shift_\[4\] = \{)(\d+)", r"\1 1 + \2"),
    "a rounding mode": (r"shift_half_even<std::int32_t>\(phi0", "shift_half_up<std::int32_t>(phi0"),
    "the rounding of the mean": (r"divide_half_even\(std::int64_t\{", "divide_floor(std::int64_t{"),
    "a centre": (r"(in_event_centre_\[2\] = \{)(\S+f)", r"\1\2 * 1.01f"),
    "a NaN value": (r"(in_jets_nan_\[3\] = \{)(-?\d+)", r"\1 1 + \2"),
    "a clip limit": (r"quantise\(event \+ i(.*?), (-0x\S+f), (0x\S+f),", r"quantise(event + i\1, \2, \3 - 1.0f,"),
    "the input step as x * s + o": (r"opaque\(opaque\(opaque\(x\) - centre\) \* scale\)", "opaque(opaque(x) * scale + opaque(-centre * scale))"),
    "half away from zero": (
        r"return _mm_cvtss_si32\(_mm_set_ss\(v\)\)|static_cast<std::int32_t>\(std::lrintf\(v\)\)",
        "return static_cast<std::int32_t>(std::round(v))",
    ),
    "NaN not recognised": (r"> 0x7f800000u", "> 0x7fffffffu"),
    "a score weight": (r"return std::int64_t\{logits\[0\]\}", "return std::int64_t{logits[0]} * 2"),
    "a count not clamped": (r"\(count > length \? length : count\)", "(count > length ? length - 1 : count)"),
}


QUICK = {"a weight", "the input step as x * s + o"}  # tests/contracts/test_exporters.py makes other mistakes in it


def sorted_by_speed(names: Iterable[str]) -> list[Any]:
    """Those that every change is tested with, and those left to `make test-all`."""
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", sorted_by_speed(MUTATIONS))
def test_a_mutation_of_the_header_makes_it_fail(name: str, copy: Path) -> None:
    replace(copy, *MUTATIONS[name])
    done = selftest(copy)
    assert done.returncode == 1, done.stdout
    assert "differs from the golden model" in done.stderr


SSE2_MUTATIONS = {
    "a weight": (r"(namespace sse2 .*?phi1_w_\[64\] = \{)(-?\d+)", r"\1 1 + \2"),
    "a bias": (r"(namespace sse2 .*?rho_b_\[8\] = \{)(-?\d+)", r"\1 1 + \2"),
    "a scale": (r"(namespace sse2 .*?in_event_scale_\[8\] = \{)(\S+f)", r"\1 1.01f * \2"),
    "a NaN value": (r"(namespace sse2 .*?in_jets_nan_\[8\] = \{)(-?\d+)", r"\1 1 + \2"),
    "the input step as x * s + o": (
        r"opaque4\(_mm_mul_ps\(opaque4\(_mm_sub_ps\(x, _mm_load_ps\(centre\)\)\), _mm_load_ps\(scale\)\)\)",
        "_mm_sub_ps(_mm_mul_ps(x, _mm_load_ps(scale)), _mm_mul_ps(_mm_load_ps(centre), _mm_load_ps(scale)))",
    ),
}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the path exists on x86-64 only")
@pytest.mark.parametrize("name", sorted_by_speed(SSE2_MUTATIONS))
def test_a_mutation_of_the_sse2_path_makes_it_fail(name: str, copy: Path) -> None:
    replace(copy, *SSE2_MUTATIONS[name])
    done = selftest(copy)
    assert done.returncode == 1, done.stdout
    assert re.search(r"^paths +plain sse2\(differs\)( [a-z0-9]+(\(not run\))?)*$", done.stdout, re.MULTILINE), done.stdout


def uniform() -> Graph:
    """An MLP whose formats have one exponent per layer, so that the SSE2 path packs its Requant nodes."""
    rng = np.random.default_rng(7)
    nodes = [
        input_node("in", graphs.group(rng, "event", 5), Fixed(True, 3, 4)),
        graphs.affine(rng, "dense", "in", 5, 9),
        Requant("act", ("dense",), Quant(Fixed(True, 2, 4), "half_even", "sat")),
        graphs.affine(rng, "logits", "act", 9, 2, relu=False),
        Output("out", ("logits",), ("a", "b"), "softmax", np.array([1, -1])),
    ]
    return Graph(tuple(nodes))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the path exists on x86-64 only")
@pytest.mark.parametrize(
    ("pattern", "change"),
    [
        (r"requantise_sat<Round::half_even, 4>", "requantise_sat<Round::half_up, 4>"),
        (r"requantise_sat<Round::half_even, 4>", "requantise_sat<Round::half_even, 5>"),
        (r"(act_hi_\[16\] = \{)63", r"\g<1>62"),
    ],
)
def test_a_mutation_of_a_packed_requant_makes_it_fail(pattern: str, change: str, tmp_path: Path) -> None:
    directory = export(tmp_path / "net", uniform())
    assert selftest(directory).returncode == 0
    replace(directory, pattern, change)
    assert selftest(directory).returncode == 1


@pytest.mark.parametrize("over", [pytest.param("wrap", marks=pytest.mark.slow), "sat", pytest.param("sat_sym", marks=pytest.mark.slow)])
def test_a_mutated_limit_makes_it_fail(over: str, tmp_path: Path) -> None:
    directory = export(tmp_path / "net", graphs.mlp(3, over=over, round="floor"))
    assert selftest(directory).returncode == 0
    table = r"(act0_mask_\[8\] = \{)" if over == "wrap" else r"(act0_hi_\[8\] = \{)"
    scalar = (
        r"(wrap<std::int32_t>\(shift_floor<std::int32_t>\(dense0.*?, )"
        if over == "wrap"
        else r"(clamp<std::int32_t>\(shift_floor<std::int32_t>\(dense0.*?\), -?\d+, )"
    )
    replace(directory, f"(?:{table}|{scalar})(\\d+)", r"\1\2\3 >> 1")
    assert selftest(directory).returncode == 1


def test_a_moved_threshold_makes_it_fail(copy: Path) -> None:
    tight = json.loads((copy / "working_points.json").read_text())["points"][0]["integer_threshold"]
    replace(copy, rf'(\{{"tight", true, ){tight}\}}', rf"\g<1>{tight + 1}}}", "working_points.hpp")
    done = selftest(copy)
    assert done.returncode == 1
    assert re.search(r"^differing logits +0$", done.stdout, re.MULTILINE)
    assert not re.search(r"^differing decisions +0$", done.stdout, re.MULTILINE)


def test_thresholds_that_disagree_with_the_document_make_it_fail(copy: Path) -> None:
    replace(copy, r'("integer_threshold": )(-?\d+)', r"\g<1>7\2", "working_points.json")
    done = selftest(copy)
    assert (done.returncode, "working_points.json" in done.stderr) == (1, True)


def test_a_damaged_golden_file_is_an_error(copy: Path) -> None:
    compile_cpp(find_compiler(), [copy / "main.cpp"], copy / "selftest", ["-O1"])
    whole = (copy / "golden.bin").read_bytes()
    for damaged in (whole[:-1], whole + b"\0", b"X" + whole[1:], whole[:16] + b"\x07" + whole[17:], b""):
        (copy / "golden.bin").write_bytes(damaged)
        done = subprocess.run(["./selftest", "--no-time"], cwd=copy, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert "golden.bin" in done.stderr
    (copy / "golden.bin").unlink()
    assert subprocess.run(["./selftest", "--no-time"], cwd=copy, capture_output=True, check=False).returncode == 1


def test_a_float_network_is_checked_within_its_tolerance(tmp_path: Path) -> None:
    directory = export(tmp_path / "net", graphs.float_mlp(2), n=1000)
    done = selftest(directory)
    assert done.returncode == 0, done.stderr
    assert "largest deviation" in done.stdout
    replace(directory, r"(logits_2_b_\[3\] = \{)(\S+f)", r"\1 0.25f + \2")
    assert selftest(directory).returncode == 1


def test_a_compiler_that_is_missing_is_named(copy: Path) -> None:
    command = [sys.executable, "-I", "-S", str(copy / "selftest.py")]
    done = subprocess.run(command, env={"PATH": "/nowhere"}, capture_output=True, text=True, check=False)
    assert (done.returncode, "pip install ziglang" in done.stderr) == (1, True)

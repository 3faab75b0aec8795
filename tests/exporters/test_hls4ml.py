"""The hls4ml target: its compiled firmware gives the golden integers, what it cannot hold is refused by node, and a changed file is noticed."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hlt_train.certify import Material, export_graph
from hlt_train.errors import RunFailed, UsageError
from hlt_train.exporters._compiler import compile_cpp, find_compiler
from hlt_train.exporters._grid import input_integers
from hlt_train.exporters._hls4ml_types import Type, reduced, spanning, union
from hlt_train.exporters.hls4ml import hls4ml
from hlt_train.graph import Affine, Fixed, Graph, Output, Quant, Requant, evaluate, input_node
from hlt_train.progress import Progress
from hlt_train.selftest import BOOT
from hlt_train.types import Features
from hlt_train.vectors import vectors
from tests import graphs
from tests.exporters import hls4ml_nets as nets
from tests.exporters.changes import move_threshold, noticed_threshold

QUIET = Progress(quiet=True)
SMALL = nets.deepsets(4, 3, 4)
POINTS = {"points": [{"name": "tight", "integer_threshold": noticed_threshold(SMALL, 4000), "threshold": 0.1}]}


def written(directory: Path, graph: Graph) -> Callable[[Features], np.ndarray]:
    """The artefact as a function."""
    exporter = hls4ml()
    assert exporter.write(graph, directory)["starts_at"] == "grid"
    found: Callable[[Features], np.ndarray] = exporter.load(directory)
    return found


def differing(directory: Path, graph: Graph, n: int) -> int:
    x = vectors(graph, n=n, seed=3).x
    return int((written(directory, graph)(x) != evaluate(graph, x)).sum())


@pytest.mark.parametrize("n", [20_000, pytest.param(100_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("net", ["modes", pytest.param("mlp", marks=pytest.mark.slow), "deepsets", "convolution"])
def test_each_family_is_exact(tmp_path: Path, net: str, n: int) -> None:
    assert differing(tmp_path, getattr(nets, net)(), n) == 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(24))
def test_wild_graphs(tmp_path: Path, seed: int) -> None:
    assert differing(tmp_path, nets.tame(graphs.wild(seed)), 3000) == 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(24))
def test_windows_of_every_kind(tmp_path: Path, seed: int) -> None:
    """Kernels, strides and padding one behind the other, with and without an Affine between them."""
    assert differing(tmp_path, nets.tame(graphs.wild_windows(seed)), 3000) == 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_modes_with_other_formats(tmp_path: Path, seed: int) -> None:
    assert differing(tmp_path, nets.modes(seed), 3000) == 0


# ------------------------------------------------------------------------------------------------------------------------------------- types


def test_a_type_holds_what_it_must_and_no_bit_more() -> None:
    array = lambda *values: np.array(values, np.int64)  # noqa: E731
    assert spanning(array(0, -8), array(7, 3), array(2, 2)) == Type(True, 4, 2)
    assert spanning(array(0), array(7), array(2)) == Type(False, 3, 1)
    assert spanning(array(0), array(0), array(5)) == Type(False, 1, -4)
    assert spanning(array(-1, 0), array(0, 3), array(0, 4)) == Type(True, 5, 1)
    assert reduced(array(8, -4), array(3, 3)) == Type(True, 3, 2)  # 1 and -1/2
    assert reduced(array(0, 0), array(3, 9)) == Type(False, 1, 1)
    assert reduced(array(96), array(-2)) == Type(False, 2, 9)
    assert union([Type(False, 3, 2), Type(True, 4, 1)]) == Type(True, 6, 3)
    assert (str(Type(False, 6, 8)), Type(True, 6, -5).cpp) == ("ufixed<6,8>", "ap_fixed<6,-5>")


# ---------------------------------------------------------------------------------------------------------------------------------- refusals


def one_layer(f: np.ndarray) -> Graph:
    """Inputs of 5 bits at exponents f."""
    rng = np.random.default_rng(0)
    nodes = (
        input_node("first", graphs.group(rng, "event", len(f)), Fixed(True, 4 - f, f)),
        graphs.affine(rng, "dense", "first", len(f), 3, relu=False),
        Output("out", ("dense",), tuple("abc"), "none"),
    )
    return Graph(nodes)


@pytest.mark.parametrize(
    ("graph", "node", "what", "near"),
    [
        (graphs.deepsets(0, kind="mean"), "pool", "mean over a variable number", "sum"),
        (graphs.deepsets(2, kind="max"), "pool", "'residual' can be negative", "sum"),
        (graphs.float_mlp(0), "in_jets", "float32", "onnx"),
        (one_layer(np.array([64, 0])), "first", "bits in one type", "cpp"),
    ],
)
def test_a_refusal_names_the_node_and_what_comes_nearest(tmp_path: Path, graph: Graph, node: str, what: str, near: str) -> None:
    with pytest.raises(UsageError, match=what) as error:
        hls4ml().write(graph, tmp_path)
    assert error.value.where == f"node '{node}'"
    assert near in error.value.near


def test_constants_of_more_than_float64_holds_are_refused(tmp_path: Path) -> None:
    graph = one_layer(np.array([0, 0]))
    wide = tuple(dataclasses.replace(n, b=np.array([1, 0, 1 << 54]), f=np.full(3, 8)) if isinstance(n, Affine) else n for n in graph.nodes)
    with pytest.raises(UsageError, match="its bias needs 55 bits") as error:
        hls4ml().write(Graph(wide), tmp_path)
    assert error.value.where == "node 'dense'"


def test_options_are_checked(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no backend is called 'vitus'") as error:
        hls4ml(backend="vitus")
    assert error.value.near == ("vitis",)
    with pytest.raises(UsageError, match="no name of a C\\+\\+ function"):
        hls4ml(name="class")
    with pytest.raises(UsageError, match="clock_ns"):
        hls4ml(clock_ns=0.0)
    with pytest.raises(UsageError, match="net_c"):
        hls4ml().load(tmp_path)


def test_hls4ml_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hls4ml", None)
    with pytest.raises(UsageError, match="hls4ml is not installed") as error:
        hls4ml().write(nets.mlp(), tmp_path)
    assert "hlt-train[hls4ml]" in error.value.then


# ------------------------------------------------------------------------------------------------------------------ an export and its damage


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hls4ml") / "out"
    export_graph(Material(SMALL, POINTS), {"hls4ml": hls4ml(emulator=True, name="tiny")}, out, n_vectors=4000, keep=100, progress=QUIET)
    return out / "hls4ml"


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def selftest(directory: Path) -> dict[str, object]:
    """Run by a Python that can import neither hlt_train nor hls4ml."""
    blind = BOOT.replace('sys.modules["hlt_train"] = None', 'sys.modules["hlt_train"] = sys.modules["hls4ml"] = None')
    assert blind != BOOT
    done = subprocess.run([sys.executable, "-I", "-c", blind], cwd=directory, capture_output=True, text=True, check=False)
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return {**found, "code": done.returncode}


Change = str | Callable[[re.Match[str]], str]


def replace(copy: Path, name: str, pattern: str, change: Change) -> None:
    """Replace the first match of `pattern`, which must be there."""
    path = copy / "firmware" / name
    text, count = re.subn(pattern, change, path.read_text(), count=1, flags=re.DOTALL)
    assert count == 1, f"{pattern} is not in {name}"
    assert text != path.read_text()
    path.write_text(text)


def header_of(copy: Path, layer: str) -> str:
    """The file with the weights of a layer, by the number that hls4ml gave it."""
    match = re.search(rf"nnet::\w+<\w+, \w+, config\d+\w*>\([^)]*, (w\d+), b\d+\); // {layer}", (copy / "firmware" / "tiny.cpp").read_text())
    assert match is not None
    return f"weights/{match.group(1)}.h"


def one_weight(copy: Path) -> None:
    name = header_of(copy, r"n\d+_rho")
    replace(copy, name, r"(\{)(-?[\d.]+)(, )", r"\g<1>0.25+\2\3")


def file_change(name: str, pattern: str, change: Change) -> Callable[[Path], None]:
    return lambda copy: replace(copy, name, pattern, change)


QUANT = r"(void n\d+_phi0_act\(.*?out\[0\] = ap_ufixed<)(\d+),(-?\d+),AP_(\w+),AP_(\w+)>"
CODE = "nnet_utils/nnet_code_gen.h"
MUTATIONS: dict[str, Callable[[Path], None]] = {
    "weight": one_weight,
    "shift": file_change(CODE, QUANT, r"\g<1>\2,\3+1,AP_\4,AP_\5>"),
    "rounding": file_change(CODE, QUANT, lambda found: found[1] + f"{found[2]},{found[3]},AP_{'RND' if found[4] == 'TRN' else 'TRN'},AP_{found[5]}>"),
    "clamp limit": file_change(CODE, QUANT, r"\g<1>\2-1,\3-1,AP_\4,AP_\5>"),
}


def test_the_selftest_needs_neither_hls4ml_nor_this_program(exported: Path) -> None:
    found = selftest(exported)
    assert (found["code"], found["logits_differing"], found["scores_differing"], found["decisions_differing"]) == (0, 0, 0, 0)
    assert found["files_changed"] == []


@pytest.mark.parametrize("name", ["weight", *(pytest.param(name, marks=pytest.mark.slow) for name in MUTATIONS if name != "weight")])
def test_a_mutation_of_the_firmware_makes_it_fail(copy: Path, name: str) -> None:
    MUTATIONS[name](copy)
    found = selftest(copy)
    assert found["code"] == 1
    assert int(str(found["logits_differing"])) > 0, "the integers must tell, not only the hash"


@pytest.mark.slow  # it compiles the firmware to see that a number of working_points.json is another
@pytest.mark.parametrize("step", [1, -1])
def test_a_changed_threshold_makes_it_fail(copy: Path, step: int) -> None:
    move_threshold(copy, step)
    found = selftest(copy)
    assert found["code"] == 1
    assert int(str(found["decisions_differing"])) > 0
    assert found["logits_differing"] == 0


@pytest.mark.slow
def test_a_mask_that_ends_one_late_makes_it_fail(copy: Path) -> None:
    path = copy / "net_c.cpp"
    text = path.read_text()
    assert text.count("i < count[0][k] ?") == 1
    path.write_text(text.replace("i < count[0][k] ?", "i <= count[0][k] ?"))
    assert int(str(selftest(copy)["logits_differing"])) > 0


def test_firmware_that_does_not_compile_is_an_error(copy: Path) -> None:
    (copy / "firmware" / "tiny.h").write_text("#error broken\n")
    with pytest.raises(RunFailed, match="broken"):
        hls4ml().load(copy)


def test_the_same_graph_gives_the_same_files(tmp_path: Path) -> None:
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        hls4ml().write(nets.mlp(), tmp_path / name)
        contents.append({path.relative_to(tmp_path / name): path.read_bytes() for path in sorted((tmp_path / name).rglob("*")) if path.is_file()})
    assert contents[0] == contents[1]
    assert not any(str(tmp_path).encode() in content for content in contents[0].values())


@pytest.mark.slow
def test_the_project_s_own_testbench_agrees(exported: Path, copy: Path) -> None:
    """What Vitis runs as its C simulation, compiled here: its outputs are the predictions that lie beside it."""
    compile_cpp(find_compiler(), [copy / "tiny_test.cpp", copy / "firmware" / "tiny.cpp"], copy / "csim", ["-O1", "-w", f"-I{copy / 'firmware' / 'ap_types'}"])
    done = subprocess.run(["./csim"], cwd=copy, capture_output=True, text=True, check=True)
    assert "Unable to open" not in done.stdout
    logs = [path for path in (copy / "tb_data").iterdir() if path.name.endswith("results.log")]
    assert len(logs) == 1
    found, expected = np.loadtxt(logs[0]), np.loadtxt(exported / "tb_data" / "tb_output_predictions.dat")
    assert expected.shape == (1000, 2)
    assert np.allclose(found, expected, rtol=1e-5, atol=0)  # it prints six digits


# ------------------------------------------------------------------------------------------------------------------------ CMS Level-1 emulator

DRIVER = """
#include <any>
#include <cstdio>
#include <dlfcn.h>
#include <tuple>
#include "ap_fixed.h"
#include "hls4ml/emulator.h"
int main(int, char** argv) {{
  void* library = dlopen(argv[1], RTLD_LAZY | RTLD_LOCAL);
  if (!library) {{ std::fprintf(stderr, "%s", dlerror()); return 2; }}
  auto create = reinterpret_cast<hls4mlEmulator::Model* (*)()>(dlsym(library, "create_model"));
  auto destroy = reinterpret_cast<void (*)(hls4mlEmulator::Model*)>(dlsym(library, "destroy_model"));
  hls4mlEmulator::Model* model = create();
  try {{ static float wrong[1]; model->prepare_input(static_cast<float*>(wrong)); return 3; }} catch (const std::bad_any_cast&) {{}}
  static {types[0]} a[{sizes[0]}]; static {types[1]} b[{sizes[1]}]; static {types[2]} c[{sizes[2]}]; static {types[3]} out[{sizes[3]}];
  long long n;
  for (;;) {{
    for (auto& v : a) {{ if (std::scanf("%lld", &n) != 1) {{ destroy(model); return 0; }} v.V = n; }}
    for (auto& v : b) {{ if (std::scanf("%lld", &n) != 1) return 4; v.V = n; }}
    for (auto& v : c) {{ if (std::scanf("%lld", &n) != 1) return 4; v.V = n; }}
    model->prepare_input(std::make_tuple(&a[0], &b[0], &c[0]));
    model->predict();
    model->read_result(&out[0]);
    for (auto& v : out) std::printf("%lld ", static_cast<long long>(v.V.to_int64()));
    std::printf("\\n");
  }}
}}
"""


def fraction(type_: str) -> int:
    """Bits below the binary point of `ap_fixed<W,I>`."""
    width, integer = map(int, re.findall(r"-?\d+", type_))
    return width - integer


def test_the_emulator_gives_the_golden_bits_through_dlopen(exported: Path, copy: Path) -> None:
    interface = Path(__file__).parent / "emulator_interface"
    unset = subprocess.run(["make", "-C", str(copy / "emulator")], capture_output=True, text=True, check=False)
    assert "set EMULATOR_EXTRAS" in unset.stderr
    command = ["make", "-C", str(copy / "emulator"), f"EMULATOR_EXTRAS={interface}", "CXXFLAGS=-O1", f"CXX={' '.join(find_compiler())}"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stderr == ""
    arguments = json.loads((copy / "interface.json").read_text())["arguments"]
    types, sizes = [a["type"] for a in arguments], [a["size"] for a in arguments]
    driver = copy / "driver.cpp"
    driver.write_text(DRIVER.format(types=types, sizes=sizes))
    compile_cpp(find_compiler(), [driver], copy / "driver", ["-O1", "-w", f"-I{copy / 'firmware' / 'ap_types'}", f"-I{interface}", "-ldl"])
    graph = SMALL
    x = vectors(graph, n=2000, seed=4).x
    integers, n = input_integers(graph, x), len(x.counts["jets"])
    columns = []
    for node, type_ in zip(graph.inputs, types, strict=False):
        f = graph.structure[node.name].f
        assert f is not None
        columns.append((integers[node.group] << (fraction(type_) - f)).reshape(n, -1))
    columns.append((np.arange(4) < x.counts["jets"][:, None]).astype(np.int64))
    text = "\n".join(" ".join(map(str, row)) for row in np.concatenate(columns, axis=1).tolist())
    done = subprocess.run(["./driver", str(copy / "emulator" / "tiny.so")], cwd=copy, input=text, capture_output=True, text=True, check=True)
    got = np.array([line.split() for line in done.stdout.splitlines()], np.int64)
    f = graph.structure["out"].f
    assert f is not None
    assert np.array_equal(got, evaluate(graph, x) << (fraction(types[-1]) - f))
    # No assertion of ap_types depends on an event, not even on bits that no input step makes.
    anything = np.random.default_rng(0).integers(-(2**40), 2**40, (1000, sum(sizes[:-1])))
    text = "\n".join(" ".join(map(str, row)) for row in anything.tolist())
    done = subprocess.run(["./driver", str(copy / "emulator" / "tiny.so")], cwd=copy, input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr, len(done.stdout.splitlines())) == (0, "", 1000)


def test_the_modes_reach_zero_bits_and_each_limit() -> None:
    """Otherwise equality would show little."""
    graph = nets.modes()
    widths = [node.quant.to.width for node in graph.nodes if isinstance(node, Requant)]
    assert len(widths) == 9
    assert all(w.min() == 0 and w.max() > 3 for w in widths)
    assert isinstance(graph.nodes[2], Requant)
    assert isinstance(graph.nodes[2].quant, Quant)

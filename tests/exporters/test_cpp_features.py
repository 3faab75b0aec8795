"""features.hpp gives what the feed gives: to the bit where no libm enters, within the stated tolerance elsewhere, for every expression that a card may hold."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pytest

from hlt_train import files
from hlt_train.certify import Material, export_graph
from hlt_train.data.card import Card, load_card
from hlt_train.data.dataset import open_dataset
from hlt_train.data.expressions import parse
from hlt_train.data.program import compile_program
from hlt_train.datasets.cells import write_cells
from hlt_train.datasets.events import write_events
from hlt_train.datasets.jets import write_jets
from hlt_train.datasets.topology import write_topology
from hlt_train.describe_inputs import FORMAT, VERSION, features_document
from hlt_train.errors import RunFailed, UsageError
from hlt_train.exporters._compiler import compile_cpp, find_compiler
from hlt_train.exporters._cpp_features import _ELEMENTWISE, _LIBM, JUMPS, RELATIVE, ULP, features_header
from hlt_train.exporters.cpp import cpp
from hlt_train.feature_vectors import feature_vectors, kinds_of
from hlt_train.graph import Concat, Fixed, Graph, Node, Output, Pool, input_node
from hlt_train.graph_document import FORMAT as GRAPH_FORMAT
from hlt_train.graph_document import VERSION as GRAPH_VERSION
from hlt_train.graph_document import from_document
from hlt_train.progress import Progress
from hlt_train.regeneration import check_regenerated
from hlt_train.selftest import run_selftest
from hlt_train.types import Group, Inputs
from tests import graphs
from tests.exporters.cpp_nets import WARNINGS
from tests.exporters.feature_headers import Case, build, case, deviations, text
from tests.exporters.test_cpp_paths import ZIG, snippets

CARDS = 6  # of generated expressions
EACH = 24  # variables of one
SCALARS = {"f": "f4", "g": "f8", "i": "i4", "k": "i8", "u": "u1", "s": "i2", "w": "u4", "o": "?"}
LISTS = {"Jet_f": "f4", "Jet_g": "f8", "Jet_i": "i4", "Jet_o": "?", "Jet_u": "u2", "Mu_f": "f4"}
UNARY = (
    *("abs", "arccos", "arcsin", "arctan", "arctanh", "ceil", "cos", "cosh", "exp", "expm1", "floor", "isfinite", "isinf", "isnan"),
    *("log", "log10", "log1p", "log2", "rint", "sign", "sin", "sinh", "sqrt", "square", "tan", "tanh"),
)
BINARY = ["+", "-", "*", "/", "//", "%", "<", "<=", ">", ">=", "==", "!="]


def columns(n: int = 60, seed: int = 3) -> dict[str, Any]:
    """Branches of every type, values and lists."""
    rng = np.random.default_rng(seed)
    draw = lambda kind, size: rng.normal(20, 30, size).astype(kind) if kind in ("f4", "f8") else rng.integers(0, 2 if kind == "?" else 9, size).astype(kind)  # noqa: E731
    made: dict[str, Any] = {name: draw(kind, n) for name, kind in SCALARS.items()}
    for head in ("Jet_", "Mu_"):
        counts = rng.integers(0, 6, n)
        made |= {name: ak.unflatten(draw(kind, int(counts.sum())), counts) for name, kind in LISTS.items() if name.startswith(head)}
    return made


def expression(rng: np.random.Generator, depth: int, *, listed: str | None) -> str:
    """A text; `listed` names the collection whose elements it is of, None for one value per event."""
    pick = lambda *options: str(options[int(rng.integers(len(options)))])  # noqa: E731
    inner = lambda own=listed: expression(rng, depth - 1, listed=own)  # noqa: E731
    if depth == 0:
        number = pick("1", "2", "0.5", "-3", "pi", "1e-3", "100", "0", "inf", "7")
        own = [name for name in LISTS if name.startswith(listed)] if listed else [*SCALARS]
        return number if rng.random() < 0.2 else pick(*own)
    kind = int(rng.integers(11))
    if kind < 4:
        return f"({inner()} {pick(*BINARY)} {inner(listed if rng.random() < 0.8 else None)})"
    if kind == 4:
        return f"{pick(*UNARY)}({inner()})"
    if kind == 5:
        return f"{pick('arctan2', 'hypot', 'maximum', 'minimum', 'max', 'min')}({inner()}, {inner()})"
    if kind == 6:
        return f"where({inner()} > {inner(None)}, {inner()}, {inner()})"
    if kind == 7:
        return pick(f"clip({inner()}, -2, 30)", f"(-{inner()})", f"({inner()} ** {pick('2', '0.5', '3', '-1', '1.5')})", f"~({inner()} > 1)")
    if kind == 8:
        return f"(({inner()} > {inner()}) {pick('&', '|', '^')} ({inner()} < {inner()}))"
    if listed:
        return f"(({inner()} + 3 * pi) % (2 * pi) - pi)"
    own = pick("Jet_", "Jet_", "Mu_")
    values = expression(rng, depth - 1, listed=own)
    if rng.random() < 0.3:
        values = f"{values}[{expression(rng, 0, listed=own)} > {pick('1', '20')}]"
    if rng.random() < 0.2:
        return f"nth({pick('sort', 'sort_desc')}({values}), {pick('0', '1', '3')}{pick('', ', default=-9.5')})"
    return pick(
        f"sum({values})", f"count({values})", f"any({values} > 2)", f"all({values})", f"min({values})", f"max({values}, default=0)",
        f"mean({values}, default=-1)", f"nth({values}, {pick('0', '1', '3')})",
    )  # fmt: skip


def card(variables: dict[str, str], groups: dict[str, Any], **more: Any) -> Card:
    return Card.model_validate(
        {
            "samples": {"a": {}, "b": {}},
            "labels": {"classes": ["a", "b"], "by": "sample"},
            "new_variables": variables,
            "inputs": groups,
            **more,
        }
    )


def evaluates(text: str, known: dict[str, Any]) -> bool:
    try:
        parse(text).evaluate(known)
    except (UsageError, LookupError, ArithmeticError):  # a sort of float16, -3 as uint16, 1 // 0
        return False
    return True


def generated(seed: int = 0) -> list[Case]:
    """Cards of generated expressions: scalars, constituents of a collection, masked and sorted constituents."""
    rng, known, made = np.random.default_rng(seed), columns(), []
    for _ in range(CARDS):
        variables: dict[str, str] = {}

        def some(n: int, wrap: str, listed: str | None, variables: dict[str, str] = variables) -> list[str]:
            names: list[str] = []
            while len(names) < n:
                text = wrap.format(expression(rng, int(rng.integers(1, 4)), listed=listed))
                if evaluates(text, known) and parse(text).names:
                    names.append(f"v{len(variables)}")
                    variables[names[-1]] = text
            return names

        groups: dict[str, Any] = {"event": some(EACH // 2, "{0}", None)}
        for k, (wrap, length) in enumerate((("where(Jet_o, {0}, {0})", 3), ("where(Jet_o, {0}, {0})[Jet_i > 3]", 2), ("sort_desc(where(Jet_o, {0}, {0}))", 4))):
            groups[f"list{k}"] = {"length": length, "vars": some(EACH // 6, wrap, "Jet_")}
        made.append(case(card(variables, groups), known))
    return made


CHECKED = ["-O1", "-fsanitize=undefined", "-fno-sanitize-recover=all"]
BUILDS = [
    (0, (), CHECKED),
    *(pytest.param(seed, (), CHECKED, marks=pytest.mark.slow) for seed in range(1, 7)),
    pytest.param(0, ZIG, ["-O2"], marks=pytest.mark.slow),
    pytest.param(0, (), ["-O3", "-march=native", "-ffp-contract=fast"], marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("seed", "compiler", "flags"), BUILDS)
def test_generated_expressions_give_what_the_feed_gives(seed: int, compiler: tuple[str, ...], flags: list[str], tmp_path: Path) -> None:
    """One compilation for all of them, in which undefined behaviour ends the process."""
    cases = generated(seed)
    library = build(tmp_path, cases, flags, compiler)
    compared: dict[str, int] = {}
    for k, one in enumerate(cases):
        for name, found in deviations(library, k, one).items():
            compared[found.origin] = compared.get(found.origin, 0) + found.compared
            allowed = found.compared // JUMPS if found.origin == "jumps" else 0
            assert found.beyond <= allowed, f"{one.card.new_variables[name]} ({found.origin}): {found.beyond} of {found.compared} values differ"
    assert all(compared[origin] > 1000 for origin in ("exact", "libm", "jumps")), compared
    if seed != 0:
        return
    used = {step["op"] for one in cases for step in one.program.steps}
    assert len(used & _ELEMENTWISE) > 0.8 * len(_ELEMENTWISE), _ELEMENTWISE - used
    assert used >= {"where", "filter", "sum", "count", "min", "max", "nth", "sort_desc"}


def test_every_operation_once(tmp_path: Path) -> None:
    """What chance may leave out, and the words whose meaning is easily mistaken."""
    texts = {
        "inverted": "~(i > 3)",
        "bits": "(i & 6) | (u ^ 3)",
        "complement": "~i",
        "signed": "+f",
        "inverse": "f ** -1",
        "root": "abs(f) ** 0.5",
        "power": "g ** 1.5",
        "whole": "i ** 3",
        "chain": "0 < f < 20",
        "unequal": "f != g",
        "some": "any(Jet_f > 20)",
        "every": "all(Jet_f)",
        "second": "nth(sort(Jet_f), 1, default=-1)",
        "hardest": "nth(sort_desc(Jet_f[Jet_i > 3]), 0)",
        "twice": "sum(Jet_f[Jet_o][Jet_i[Jet_o] > 2])",
        "number": "count(Jet_f[Jet_f > 10])",
        "mean": "mean(Jet_i, default=0)",
        "most": "max(sort(Jet_g))",
        "remainder": "(i - 5) % 3",
        "quotient": "(i - 5) // 3",
        "unsigned": "u - 3",
        "beyond": "u > -1",
        "constant": "2 * pi",
        "either": "where(o, f, 0.1)",
        **{f"by_{name}": f"{name}(f)" for name in UNARY},
    }
    (one,) = cases = [case(card(texts, {"event": list(texts)}), columns(), special=2000)]
    assert one.program.given == {}
    found = deviations(build(tmp_path, cases, ["-O2"]), 0, one)
    assert {name for name, variable in found.items() if variable.origin != "exact"} == {"power", *(f"by_{name}" for name in UNARY if name in _LIBM)}
    assert {name: variable.beyond for name, variable in found.items() if variable.beyond} == {}


DPHI = "(Jet_phi - nth(Jet_phi, 0, default=0.0) + 3 * pi) % (2 * pi) - pi"


def test_the_azimuth_at_its_edges(tmp_path: Path) -> None:
    """pi, its neighbours, their multiples, both zeros, NaN and infinities in either place; lists from empty to more than a group takes."""
    edges = np.float32([np.pi, np.nextafter(np.float32(np.pi), np.float32(4)), np.nextafter(np.float32(np.pi), np.float32(3)), 0, 1e-45, np.inf, np.nan, 1])
    edges = np.concatenate([edges, -edges, 2 * edges, -3 * edges])
    pairs = np.stack(np.meshgrid(edges, edges), axis=-1).reshape(-1)
    counts = np.concatenate([np.full(len(edges) ** 2, 2), [0, 0, 1, 25]])
    phi = np.concatenate([pairs, edges[:1], edges[:25]])
    one = case(card({"dphi": DPHI}, {"jets": {"length": 10, "vars": ["dphi", "Jet_phi"]}}), {"Jet_phi": ak.unflatten(phi, counts)}, special=0)
    assert len(one.vectors) == len(counts)
    found = deviations(build(tmp_path, [one], ["-O2"]), 0, one)
    assert found["dphi"].origin == "exact"
    assert found["dphi"].compared == int(np.minimum(counts, 10).sum())
    assert found["dphi"].beyond == found["Jet_phi"].beyond == 0


def test_objects_as_examples(tmp_path: Path) -> None:
    """One object of an event: its own values, those of the event, and lists of the event as constituents."""
    texts = {"share": "Jet_f / sum(Jet_f)", "ht": "sum(Jet_f)", "dr": "hypot(Jet_g, g)", "far": "Mu_f * f"}
    groups = {"object": ["share", "ht", "dr", "Jet_i", "f"], "muons": {"length": 2, "vars": ["far", "Mu_f"]}}
    one = case(card(texts, groups, example="Jet"), columns())
    assert one.program.given == {}
    assert one.program.object is not None
    found = deviations(build(tmp_path, [one], ["-O2"]), 0, one)
    assert len(found) == 7
    assert all(variable.beyond == 0 and variable.compared > 200 for variable in found.values())


# --- what has no form


def test_what_has_no_form_is_named_and_left_to_the_caller(tmp_path: Path) -> None:
    texts = {
        "good": "log(f)",
        "half": "log(u)",
        "picked": "sum(Jet_f[Jet_i])",
        "masks": "sum(Jet_f[Jet_f > 1] * Jet_f[Jet_i > 1])",
        "order": "sum(sort(Jet_f) * Jet_g)",
        "nested": "sum(sum(deep, axis=2))",
        "steep": "i ** k",
        "listed": "Jet_f * 2",
    }
    known = columns() | {"deep": ak.Array([[[1.0]]] * 60), "Jet_f": columns()["Jet_f"]}
    one = case(card(texts, {"event": list(texts), "jets": {"length": 3, "vars": ["Jet_f", "good"]}}), known)
    reasons = {
        "half": "NumPy computes log in float16",
        "picked": "an index of numbers is not taken, only a mask",
        "masks": "lists that different masks have cut",
        "order": "more than 4096 elements of a sorted list",
        "nested": "branch deep is a list of lists",
        "steep": "a power of integers needs a constant exponent",
        "listed": "it is a list, used as one value",
        "Jet_f": "with good, which is of the same group: it is no list of constituents",
    }
    assert set(one.program.given) == {*reasons, "good"}
    for name, reason in reasons.items():
        assert reason in one.program.given[name], name
    header = text(one.card, one.program, "net")
    for name, reason in reasons.items():
        assert re.search(rf"^//   {name}: .*{re.escape(reason)}", header, re.MULTILINE), name
    assert "float half = 0;  // half, given" in header
    assert "const float* jets = nullptr;  // group jets, given: [n_jets][2]" in header
    assert deviations(build(tmp_path, [one], ["-O1"]), 0, one)["good"].beyond == 0


def test_names_of_any_kind(tmp_path: Path) -> None:
    """What YAML and ROOT allow and C++ does not: words of the language, of the header, of another alphabet; a comment that wants to end."""
    names = ["class", "x", "b", "j", "derive", "Features", "s0", "m0", "линия", "jet.pt", "n_jet", "log"]
    one = case(card({}, {"event": [n for n in names if n != "jet.pt"], "jets": {"length": 3, "vars": ["jet.pt"]}}), {
        **{n: np.arange(9, dtype=np.float32) for n in names}, "jet.pt": ak.unflatten(np.arange(18, dtype=np.float32), np.full(9, 2))
    })  # fmt: skip
    found = deviations(build(tmp_path, [one], ["-O1"]), 0, one)
    assert len(one.vectors) > 9
    assert all(variable.beyond == 0 for variable in found.values())


@pytest.mark.parametrize(
    "damage",
    [
        lambda p: p["steps"][0].update(op="system('ls')"),
        lambda p: p["steps"][0].update(type="int; }"),
        lambda p: p["steps"][1].update({"as": ["float32", "x()"]}),
        lambda p: p["steps"][1].update(of=[7]),
        lambda p: p["steps"][1].update(of=[-1]),
        lambda p: p["branches"][0].update(list=4),
        lambda p: p["groups"][0].update(values=[99]),
        lambda p: p["groups"].clear(),
        lambda p: p.pop("lists"),
    ],
)
def test_a_program_that_is_none_is_refused(damage: Callable[[Any], Any]) -> None:
    """It may come from a stranger: nothing of it but numbers and looked-up words reaches the compiler."""
    one = case(card({"v": "log(f)"}, {"event": ["v"]}), columns())
    program = json.loads(json.dumps(one.program.document()))
    damage(program)
    with pytest.raises(RunFailed, match=r"program of features\.json is damaged"):
        features_header([("event", None, ["v"])], program, "net")


# --- the whole way: files, card, export, selftest


def network(card: Card) -> Graph:
    """A small network of integers on the groups of a card."""
    rng = np.random.default_rng(4)
    nodes: list[Node] = []
    ends, n = [], 0
    for name, group in card.inputs.items():
        v = len(group.vars)
        f32 = lambda value, v=v: np.full(v, value, np.float32)  # noqa: E731
        described = Group(name, tuple(group.vars), group.length, f32(1.5), f32(0.3), f32(-5), f32(5), f32(0))
        nodes.append(input_node(f"in {name}", described, Fixed(True, 3, 4)))
        ends.append(f"in {name}")
        if group.length is not None:
            nodes.append(Pool(f"sum {name}", (ends[-1],), "sum", name))
            ends[-1] = f"sum {name}"
        n += v
    nodes += [Concat("all", tuple(ends)), graphs.affine(rng, "logits", "all", n, 2, relu=False)]
    return Graph((*nodes, Output("out", ("logits",), ("a", "b"), "none", np.array([1, -1]))))


def material(name: str, write: Callable[..., None], folder: Path) -> Material:
    """What `export` makes of an embedded card and a file of its own kind."""
    loaded = load_card(name)
    write(folder / f"{name}.root", 1500, 1)
    graph = network(loaded)
    with open_dataset(loaded, {sample: [str(folder / f"{name}.root")] for sample in loaded.samples}) as dataset:
        found = dataset.branch_values("validation", {n for node in graph.inputs for n in node.variables}, 1000)
    program = compile_program(loaded, groups_of(graph), kinds_of(found))
    inputs = Inputs(tuple(Group(g, v, n, *(np.ones(len(v), np.float32) * k for k in (0, 1, -5, 5, 0))) for g, n, v in groups_of(graph)), ("a", "b"))
    documents = {"features.json": (FORMAT, VERSION, features_document(graph, inputs, loaded, program))}
    points = {"points": [{"name": "tight", "integer_threshold": 30, "threshold": 0.1}]}
    return Material(graph, points, None, None, documents, {}, feature_vectors(loaded, program, found))


def groups_of(graph: Graph) -> list[tuple[str, int | None, tuple[str, ...]]]:
    return [(node.group, node.length, tuple(node.variables)) for node in graph.inputs]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("features")
    made = material("toy_events", write_events, folder)
    certificates = export_graph(made, {"cpp": cpp()}, folder / "out", n_vectors=3000, keep=50, progress=Progress(quiet=True))
    return folder / "out" / "cpp", certificates["cpp"]


def test_the_certificate_says_how_near_the_features_are(exported: tuple[Path, dict[str, Any]]) -> None:
    found = exported[1]["features"]
    assert found["vectors"] > 1000
    assert found["compared"] > 10 * found["vectors"]
    assert found["beyond_tolerance"] == found["jumped"] == 0
    assert 0 <= found["maximal_ulp"] <= ULP
    assert found["tolerance"] == {"ulp": ULP, "of_largest": 2.0**-RELATIVE, "one_jump_in": JUMPS}
    assert found["exact"] == ["npv", "nJet", "Jet_eta", "Jet_dphi", "Jet_btag"]
    assert found["libm"] == ["log_ht", "log_met", "Jet_logpt"]
    assert found["jumps"] == found["given"] == []
    assert {"features.hpp", "golden_features.bin"} <= set(exported[1]["sha256"])


def test_the_header_is_written_again_from_the_document(exported: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    directory, certificate = exported
    graph = from_document(files.read_document(directory / "graph.json", GRAPH_FORMAT, GRAPH_VERSION))
    check_regenerated(directory, graph, cpp(), certificate["program"])
    copy = Path(shutil.copytree(directory, tmp_path / "cpp"))
    header = (copy / "features.hpp").read_text()
    (copy / "features.hpp").write_text(header.replace("derived::log<float>", "derived::log2<float>", 1))
    with pytest.raises(UsageError, match=r"features\.hpp is not what this program writes"):
        check_regenerated(copy, graph, cpp(), certificate["program"])


MUTATIONS = {
    "a function": ("derived::log<float>", "derived::log2<float>"),
    "a constant of the azimuth": ("0x1.921fb54442d18p+2", "0x1.921fb54442d17p+2"),
    "the remainder's sign": ("if (std::isless(b, T{0}) != std::isless(r, T{0})) r += b;", ""),
    "the length": ("if (j == 10) break;", "if (j == 9) break;"),
    "a branch": ("b.Jet_eta[j]", "b.Jet_phi[j]"),
    "a branch by position": ("b.met = *static_cast<const float*>(branch[1]);", "b.met = *static_cast<const float*>(branch[0]);"),
    "a type": ("static_cast<double>(e11)", "static_cast<double>(0.5f * e11 + 0.5f * e11 + 0x1p-20f)"),
}


@pytest.mark.parametrize("name", [name if k < 2 else pytest.param(name, marks=pytest.mark.slow) for k, name in enumerate(MUTATIONS)])
def test_a_mutated_header_fails_the_selftest(name: str, exported: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(exported[0], tmp_path / "cpp"))
    (copy / "certificate.json").unlink()
    before, after = MUTATIONS[name]
    header = (copy / "features.hpp").read_text()
    assert before in header
    (copy / "features.hpp").write_text(header.replace(before, after))
    done = run_selftest(copy)
    assert not done["passed"]
    assert done["features"]["beyond_tolerance"] > 0
    assert "features.hpp differs from NumPy" in done["output"]


def test_damaged_vectors_of_features_are_an_error(exported: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(exported[0], tmp_path / "cpp"))
    compile_cpp(find_compiler(), [copy / "main.cpp"], copy / "selftest", ["-O0"])
    whole = (copy / "golden_features.bin").read_bytes()
    for damaged in (whole[:-1], whole + b"\0", b"X" + whole[1:], whole[:8] + bytes(8) + whole[16:], b""):
        (copy / "golden_features.bin").write_bytes(damaged)
        done = subprocess.run(["./selftest", "--no-time"], cwd=copy, capture_output=True, text=True, check=False)
        assert (done.returncode, "golden_features.bin" in done.stderr) == (1, True)
    (copy / "golden_features.bin").unlink()
    assert subprocess.run(["./selftest", "--no-time"], cwd=copy, capture_output=True, check=False).returncode == 1


def test_fast_math_is_refused(exported: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "unit.cpp").write_text('#include "features.hpp"\n')
    with pytest.raises(RunFailed, match="compile without -ffast-math"):
        compile_cpp(find_compiler(), [tmp_path / "unit.cpp"], tmp_path / "unit.o", ["-c", "-ffast-math", f"-I{exported[0]}"])


def test_the_documented_way_from_branches_to_a_decision(exported: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """The snippet of the documentation, compiled and run on golden branch values."""
    (snippet,) = (text for text in snippets("cpp") if "features.hpp" in text)
    (tmp_path / "trigger.cpp").write_text(
        snippet
        + """
#include <cstdio>
int main() {
  const float pt[] = {120, 80, 60, 40}, eta[] = {0.1f, -1, 2, 0}, phi[] = {3.1f, -3.1f, 0, 1}, btag[] = {0.9f, 0.8f, 0.1f, 0.7f};
  std::puts(accept(pt, eta, phi, btag, 4, 300, 25, 30, 4) ? "accepted" : "rejected");
}
"""
    )
    compile_cpp(find_compiler(), [tmp_path / "trigger.cpp"], tmp_path / "trigger", ["-O1", f"-I{exported[0]}", *WARNINGS, "-Werror"])
    said = subprocess.run([tmp_path / "trigger"], capture_output=True, text=True, check=True).stdout
    assert said in {"accepted\n", "rejected\n"}


FLAGS = [["-O1", "-fsanitize=address"], ["-O1", "-fsanitize=undefined"], ["-O3", "-march=native", "-ffp-contract=fast"], ["-O0"]]


@pytest.mark.slow
@pytest.mark.parametrize("flags", FLAGS, ids=" ".join)
def test_the_selftest_of_the_features_under_flags(flags: list[str], exported: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Branches lie in blocks of their exact size, so that reading beyond the last element would end the program; nothing is fused."""
    compile_cpp(find_compiler(), [exported[0] / "main.cpp"], tmp_path / "check", [*flags, *(["-fno-sanitize-recover=all"] if "san" in flags[-1] else [])])
    done = subprocess.run([tmp_path / "check", "--no-time"], cwd=exported[0], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^features beyond +0$", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(("name", "write"), [("toy_jets", write_jets), ("toy_topology", write_topology), ("toy_cells", write_cells)])
def test_the_embedded_cards(name: str, write: Callable[..., None], tmp_path: Path) -> None:
    """toy_events is exported as a whole above."""
    made = material(name, write, tmp_path)
    assert made.derived is not None
    assert made.derived.program.given == {}
    one = Case(load_card(name), made.derived.program, made.derived)
    found = deviations(build(tmp_path, [one], ["-O1"]), 0, one)
    assert set(found) == {variable for group in one.card.inputs.values() for variable in group.vars}
    assert {variable for variable, of in found.items() if of.beyond} == set()
    assert {variable for variable, of in found.items() if of.origin != "exact"} == {v for v in found if "log" in one.card.new_variables.get(v, "")}

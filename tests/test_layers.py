"""Who may import whom, read from the source of every module."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"hlt_train": ROOT / "hlt_train", "hlt_train.cli": ROOT / "cli", "hlt_train.datasets": ROOT / "datasets"}
NEVER_JAX = (
    "hlt_train.graph",
    "hlt_train.proof",
    "hlt_train.exporters",
    "hlt_train.trigger",
    "hlt_train.data",
    "hlt_train.report",
    "hlt_train.vectors",
    *(
        f"hlt_train.{name}"
        for name in (
            "nodes",
            "arithmetic",
            "structure",
            "floating",
            "golden",
            "marking",
            "cost",
            "dead_units",
            "graph_document",
            "decisions",
            "certify",
            "selftest",
            "ulp",
        )
    ),
    "hlt_train.files",
    "hlt_train.sparsity",
    "hlt_train.types",
)
JAX = ("jax", "equinox", "optax")


def modules() -> dict[str, Path]:
    found = {}
    for package, folder in FOLDERS.items():
        for path in folder.rglob("*.py"):
            if "templates" in path.parts:
                continue
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join([package, *(p for p in parts if p != "__init__")])] = path
    return found


def imports(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def under(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == p or name.startswith(p + ".") for p in prefixes)


@pytest.mark.parametrize("name", sorted(modules()))
def test_layer(name: str) -> None:
    used = imports(modules()[name])
    if not under(name, ("hlt_train.cli",)):
        assert not [u for u in used if under(u, ("hlt_train.cli",))], "nobody imports cli"
        assert not [u for u in used if under(u, ("click",))], "only cli imports click"
    if under(name, NEVER_JAX):
        assert not [u for u in used if under(u, JAX)], "this room never imports jax"
    if under(name, ("hlt_train.models", "hlt_train.strategies", "hlt_train.precision", "hlt_train.augmentations")):
        assert not [u for u in used if under(u, ("hlt_train.data", "hlt_train.files", "uproot", "pathlib"))], "pure JAX: no I/O"
    if under(name, ("hlt_train.exporters",)):
        assert not [u for u in used if under(u, ("hlt_train.data", "hlt_train.models"))], "exporters see only Graph"
    if not under(name, ("hlt_train.data.read", "hlt_train.data.write", "hlt_train.datasets")):
        assert not [u for u in used if under(u, ("uproot",))], "one reader, one writer"
    if under(
        name,
        (
            "hlt_train.data",
            "hlt_train.models",
            "hlt_train.strategies",
            "hlt_train.precision",
            "hlt_train.augmentations",
            "hlt_train.trigger",
            "hlt_train.exporters",
            "hlt_train.transports",
            "hlt_train.report",
        ),
    ):
        verbs = tuple(f"hlt_train.{v}" for v in ("fit", "distil", "export", "evaluate", "predict", "inspect", "training"))
        assert not [u for u in used if under(u, verbs)], "rooms do not import verbs"


def test_only_devices_says_pmap() -> None:
    def names(path: Path) -> set[str]:
        tree = ast.parse(path.read_text())
        return {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id == "jax"}

    assert [name for name, path in modules().items() if "pmap" in names(path)] in (["hlt_train.devices"], [])


def test_every_module_opens_with_a_docstring() -> None:
    assert [name for name, path in modules().items() if not ast.get_docstring(ast.parse(path.read_text()))] == []


def test_every_package_is_installed() -> None:
    """A package folder that pyproject.toml does not name works when editable and is missing in the wheel."""
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    assert listed == {name for name, path in modules().items() if path.name == "__init__.py"}


def test_help_is_light() -> None:
    heavy = ("jax", "uproot", "awkward", "pydantic", "scipy", "onnx")
    code = f"import sys, hlt_train.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: pass\nprint([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"

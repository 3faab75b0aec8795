"""Which compiler is taken, and what is said when there is none."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from hlt_train.errors import RunFailed, UsageError
from hlt_train.exporters._compiler import compile_cpp, find_compiler, version


def program(directory: Path, name: str, text: str = "#!/bin/sh\nexit 0\n") -> None:
    path = directory / name
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH without any compiler, and no ziglang."""
    found = importlib.util.find_spec
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "ziglang" else found(name, *rest))
    return tmp_path


def test_order_of_search(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("clang++", "g++", "c++", "icpx"):
        program(empty, name)
        expected = {"icpx": "c++"}.get(name, name)
        assert find_compiler() == (expected,)
    monkeypatch.setenv("CXX", "icpx -g")
    assert find_compiler() == ("icpx", "-g")
    assert find_compiler("g++") == ("g++",)


def test_no_compiler_is_an_error_with_the_install_line(empty: Path) -> None:
    with pytest.raises(UsageError, match="nothing is verified") as caught:
        find_compiler()
    assert "pip install ziglang" in caught.value.then
    assert caught.value.exit_code == 2


def test_ziglang_is_the_last_resort(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: object())
    assert find_compiler()[1:] == ("-m", "ziglang", "c++")


def test_a_named_compiler_must_exist(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="the option compiler"):
        find_compiler("nosuch++")
    monkeypatch.setenv("CXX", "nosuch++ -O3")
    with pytest.raises(UsageError, match="CXX"):
        find_compiler()


def test_a_failing_compiler_says_what_it_said(tmp_path: Path) -> None:
    source = tmp_path / "broken.cpp"
    source.write_text("int main() { return nonsense; }\n")
    with pytest.raises(RunFailed, match="nonsense"):
        compile_cpp(find_compiler(), [source], tmp_path / "out")
    source.write_text("int main() { return 0; }\n")
    assert compile_cpp(find_compiler(), [source], tmp_path / "out", ["-O0", "-Wall"]) == ""
    assert version(find_compiler())

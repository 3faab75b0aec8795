"""The fuzzer of the C++ export: guided by coverage, sees what it must see, and finds nothing in what is exported."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest

from tests.exporters.fuzz.run import STUDENTS, compile_target, fuzz

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif((platform.machine(), sys.platform) != ("x86_64", "linux"), reason="the wheel that holds libFuzzer exists for x86-64 Linux only"),
]

SECONDS = 20
RUNS = 2_000_000  # a fault behind one value of four bytes takes 2**32 of them without guidance


@pytest.mark.parametrize("student", STUDENTS)
def test_no_input_makes_a_path_differ_or_touch_what_is_not_its(tmp_path: Path, student: str) -> None:
    found = fuzz(compile_target(STUDENTS[student](), tmp_path), tmp_path / "corpus", f"-max_total_time={SECONDS}", "-seed=1")
    assert found.report == ""
    assert found.executions > 1000
    assert found.edges > found.first
    assert found.corpus > 3


def test_it_is_guided_by_comparisons_and_coverage(tmp_path: Path) -> None:
    """The same number of inputs without the feedback of comparisons does not find the fault."""
    program = compile_target(STUDENTS["float mlp"](), tmp_path, "-DPLANTED")
    guided = fuzz(program, tmp_path / "guided", f"-runs={RUNS}", "-seed=1")
    assert "AddressSanitizer: heap-buffer-overflow" in guided.report
    assert "planted" in guided.report
    assert guided.executions < RUNS
    blind = fuzz(program, tmp_path / "blind", f"-runs={RUNS}", "-seed=1", "-use_value_profile=0", "-use_cmp=0")
    assert blind.report == ""
    assert blind.executions >= RUNS


def one_too_many(header: Path) -> None:
    text = header.read_text()
    assert text.count("(count > length ? length : count)") == 1
    header.write_text(text.replace("(count > length ? length : count)", "(count >= length ? length : count + 1)"))


def one_weight(header: Path) -> None:
    """In the plain path only."""
    before, name, after = header.read_text().partition("d1_w_[18][24] = {\n")
    assert name
    first = after.index("{")
    header.write_text(f"{before}{name}{after[:first]}{{1 + {after[first + 1 :]}")


def test_it_sees_a_constituent_that_does_not_exist(tmp_path: Path) -> None:
    found = fuzz(compile_target(STUDENTS["deepsets"](), tmp_path, change=one_too_many), tmp_path / "corpus", f"-runs={RUNS}", "-seed=1")
    assert "AddressSanitizer: heap-buffer-overflow" in found.report


def test_it_sees_paths_that_differ(tmp_path: Path) -> None:
    found = fuzz(compile_target(STUDENTS["mlp"](), tmp_path, change=one_weight), tmp_path / "corpus", f"-runs={RUNS}", "-seed=1")
    assert "check" in found.report
    assert "deadly signal" in found.report

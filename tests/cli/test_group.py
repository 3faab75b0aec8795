"""The program as installed: exit codes, stdout against stderr, every command's help, the reference page."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from hlt_train.cli import group

ROOT = Path(__file__).parents[2]
COMMANDS = group.list_commands(group.make_context("hlt-train", [], resilient_parsing=True))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(Path(sys.executable).parent / "hlt-train"), *arguments], capture_output=True, text=True, check=False)


def test_version_and_unknown_command() -> None:
    done = run("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"hlt-train, version \d+\.\d+\.\d+\n", done.stdout)
    done = run("distill")
    assert (done.returncode, done.stdout) == (2, "")
    assert "Did you mean distil?" in done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_a_help_text_per_option(name: str) -> None:
    done = CliRunner().invoke(group, [name, "--help"], catch_exceptions=False)
    assert done.exit_code == 0
    command = group.get_command(group.make_context("hlt-train", [], resilient_parsing=True), name)
    assert command is not None
    for parameter in command.params:
        if parameter.param_type_name == "option":
            assert getattr(parameter, "help", None), f"{name} {parameter.opts}: no help"


def test_the_reference_page_is_up_to_date() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "docs" / "make.py"), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

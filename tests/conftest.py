"""The whole suite: annotations are checked at run time, two virtual devices for everyone, warnings are errors (pyproject.toml)."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

# Two virtual CPU devices so that multi-device code is tested on a laptop; NPROC must exceed them or XLA deadlocks in its first collective.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
os.environ.setdefault("NPROC", "4")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

_hook = install_import_hook(["hlt_train"], "beartype.beartype")

settings.register_profile("house", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("house")


@pytest.fixture(autouse=True)
def _quiet_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No colour, 160 columns, none of the caller's HLT_TRAIN_* variables."""
    for name in [n for n in os.environ if n.startswith("HLT_TRAIN_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")

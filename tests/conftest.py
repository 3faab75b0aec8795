"""The whole suite: annotations are checked at run time, two virtual devices for everyone, warnings are errors (pyproject.toml).

Most of the time goes into compiling, and most programs are compiled more than once: what a process has compiled it finds again in a folder of its own, unless a
test asks for `compiled_anew`. Processes that a test starts compile everything themselves.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

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


@pytest.fixture(scope="session", autouse=True)
def _compiled_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One folder of compiled programs per process; not an environment variable, so that no other process sees it: the thread pool is no part of its keys."""
    import jax

    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(scope="module", autouse=True)
def _forgotten_programs() -> Iterator[None]:
    """Otherwise memory grows by what every module compiled, to gigabytes."""
    yield
    import jax

    jax.clear_caches()


@pytest.fixture
def compiled_anew() -> Iterator[None]:
    """For a test that compares runs bit for bit: it compiles everything itself, as a new process would."""
    _remember_programs(False)
    yield
    _remember_programs(True)


def _remember_programs(wanted: bool) -> None:
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    jax.config.update("jax_enable_compilation_cache", wanted)
    compilation_cache.reset_cache()

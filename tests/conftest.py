"""The whole suite: annotations are checked at run time, two virtual devices for everyone, warnings are errors (pyproject.toml).

Most of the time goes into compiling, and most programs are compiled more than once: what the tests and the processes that they start have compiled is found
again in a folder, unless a test asks for `compiled_anew`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.annotations import check_annotations

# Two virtual CPU devices so that multi-device code is tested on a laptop; NPROC must exceed them or XLA deadlocks in its first collective.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
os.environ.setdefault("NPROC", "4")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

ENOUGH = 1.2e9  # bytes of a process, above which it forgets what it has compiled

check_annotations("hlt_train")

settings.register_profile("house", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("house")


@pytest.fixture(autouse=True)
def _quiet_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No colour, 160 columns, none of the caller's HLT_TRAIN_* variables."""
    for name in [n for n in os.environ if n.startswith("HLT_TRAIN_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all processes that share the tests out between them."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session", autouse=True)
def _compiled_once(shared_folder: Path) -> None:
    """Folders of compiled programs: one for the tests, which all have the same thread pool, another for the processes that they start."""
    import jax

    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(shared_folder / "compiled-by-processes")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["PYTHONWARNINGS"] = "ignore:Error reading persistent compilation cache entry"  # see pyproject.toml
    jax.config.update("jax_compilation_cache_dir", str(shared_folder / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(scope="module", autouse=True)
def _forgotten_programs() -> Iterator[None]:
    """Otherwise memory grows by what every module compiled, to gigabytes. As long as there is little of it, the next module finds its small programs ready."""
    yield
    import jax

    if resident_memory() > ENOUGH:
        jax.clear_caches()


def resident_memory() -> float:
    """Bytes of this process; infinite where the system does not say."""
    file = Path("/proc/self/statm")
    return int(file.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if file.exists() else float("inf")


@pytest.fixture
def compiled_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For a test that compares runs bit for bit: it and its processes compile everything themselves."""
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "false")
    _remember_programs(False)
    yield
    _remember_programs(True)


def _remember_programs(wanted: bool) -> None:
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    jax.config.update("jax_enable_compilation_cache", wanted)
    compilation_cache.reset_cache()

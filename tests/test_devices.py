"""The environment that XLA reads, the mesh, and what makes two machines different."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from hlt_train import devices
from hlt_train.errors import UsageError


def printed(code: str, **environment: str) -> list[str]:
    """The words that a process prints whose environment says nothing of XLA and compiled programs but this."""
    clean = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "NPROC", devices.COMPILED, devices.LEAST)}
    done = subprocess.run([sys.executable, "-c", code], env=clean | environment, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout.split()


def prepared(arguments: str, **environment: str) -> list[str]:
    """NPROC, XLA_FLAGS and the number of devices of a process that calls `prepare`."""
    code = f"import os; from hlt_train import devices; devices.prepare({arguments}); import jax; "
    code += "print(os.environ['NPROC'], os.environ.get('XLA_FLAGS', '-').replace(' ', ','), jax.local_device_count())"
    return printed(code, **environment)


def test_thread_pool_is_a_multiple_of_the_devices() -> None:
    nproc, flags, count = prepared("3", NPROC="4")
    assert int(nproc) == 6
    assert flags == "--xla_force_host_platform_device_count=3"
    assert count == "3"


def test_thread_pool_of_an_earlier_run_is_restored() -> None:
    assert prepared("None, 7", NPROC="2")[0] == "7"


def test_one_device_takes_the_cores() -> None:
    assert prepared("")[:2] == [str(devices.cores()), "-"]


def test_gpus_get_deterministic_kernels() -> None:
    """The flags are set where a GPU is expected, before any backend exists, and never twice."""
    code = "import os; from hlt_train import devices; devices.prepare(); devices.prepare(); print(os.environ['XLA_FLAGS'])"
    found = printed(code, JAX_PLATFORMS="cuda,cpu", XLA_FLAGS="--xla_gpu_autotune_level=1")
    assert found == ["--xla_gpu_autotune_level=1", "--xla_gpu_deterministic_ops=true"]


def test_compiled_programs_are_kept_by_the_size_of_the_pool(tmp_path: Path) -> None:
    """JAX's keys do not hold it; a second call changes nothing; without the variable there is no folder."""
    code = "from hlt_train import devices; devices.prepare(); devices.prepare(); import jax; print(jax.config.jax_compilation_cache_dir); "
    code += "assert (jax.config.jax_persistent_cache_min_compile_time_secs == 0) == (jax.config.jax_compilation_cache_dir is not None)"
    found = [Path(*printed(code, NPROC=nproc, JAX_COMPILATION_CACHE_DIR=str(tmp_path))) for nproc in ("2", "3")]
    assert [path.parent for path in found] == [tmp_path] * 2
    assert [path.name.rpartition("-")[2] for path in found] == ["2", "3"]
    assert printed(code, NPROC="2") == ["None"]


def test_mesh() -> None:
    found = devices.mesh(2)
    assert found.axis_names == ("replica", "model")
    assert found.devices.shape == (2, 1)
    assert devices.workers(devices.mesh()) == 1  # a CPU host
    with pytest.raises(UsageError, match="this process has 2"):
        devices.mesh(3)
    with pytest.raises(UsageError, match="model axis"):
        devices.mesh(1, model=2)
    with pytest.raises(UsageError, match="at least 1"):
        devices.prepare(0)


def test_parallel_maps_and_shares() -> None:
    mesh = devices.mesh(2)
    add = devices.parallel(lambda a, b: jax.lax.psum(a, devices.AXIS) + b, mesh, shared=(1,), arguments=2)
    assert np.asarray(add(devices.place(np.array([1.0, 2.0], np.float32), mesh), np.float32(10))).tolist() == [13, 13]
    spread = devices.replicate({"a": np.arange(3), "b": jax.numpy.ones(())}, mesh)
    assert np.asarray(spread["a"]).tolist() == [[0, 1, 2], [0, 1, 2]]
    assert np.asarray(spread["b"]).tolist() == [1, 1]


def test_memory_is_shared_by_virtual_devices() -> None:
    assert devices.memory(devices.mesh(1)) == pytest.approx(2 * devices.memory(devices.mesh(2)), abs=2)


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("nproc", 99, "NPROC"),
        ("devices", 7, "devices"),
        ("cpu_flags", ["avx512f"], "cpu_flags"),
        ("cpu", "another", "cpu"),
        ("xla_flags", ["--x=1"], "xla_flags"),
    ],
)
def test_differences_are_named(key: str, value: Any, named: str) -> None:
    here = devices.environment(devices.mesh())
    assert devices.differences(here, copy.deepcopy(here)) == []
    found = devices.differences({**here, key: value}, here)
    assert len(found) == 1
    assert found[0].startswith(named)


def test_versions_are_named() -> None:
    here = devices.environment(devices.mesh())
    old = {**here, "versions": {**here["versions"], "jax": "0.0.1"}}
    assert devices.differences(old, here) == [f"jax (0.0.1 then, {jax.__version__} now)"]

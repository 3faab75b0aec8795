"""Devices: the environment that XLA reads before it starts, the (replica, model) mesh, and the one place that says pmap.

The mesh spans the devices of all processes of a run (`cluster.py`). A process places data on its own devices only and sees only their results: the leading
axis of what goes in and comes out has one slice per replica of this process, in the order of the mesh. `gathered` gives all of them to everyone.

`prepare` must run before jax creates its backend. It sets `NPROC`, the size of XLA's thread pool, for two reasons: several virtual CPU devices deadlock in
their first collective when the pool is too small, and the bits of a gradient depend on it. What was set is part of `environment()`, goes into the
provenance of a run and is restored when the run is resumed.

Compiled programs that JAX keeps in a folder (`JAX_COMPILATION_CACHE_DIR`) are kept apart by the size of the pool and the kind of processor: their bits depend
on both, and JAX's own keys hold neither.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import platform
import re
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hlt_train import __version__, cluster
from hlt_train.errors import UsageError

__all__ = [
    "AXIS",
    "cores",
    "differences",
    "environment",
    "gathered",
    "memory",
    "mesh",
    "mine",
    "once",
    "parallel",
    "place",
    "prepare",
    "replicate",
    "spread",
    "workers",
]

AXIS = "replica"
PyTree = Any
T = TypeVar("T")
PACKAGES = ("jax", "jaxlib", "numpy", "equinox", "optax", "awkward", "uproot")
COUNT = "--xla_force_host_platform_device_count"
COMPILED, LEAST = "JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
LIGHT: dict[str, bool | int] = {"xla_backend_optimization_level": 1, "xla_cpu_use_fusion_emitters": False}
DETERMINISTIC = ("--xla_gpu_deterministic_ops=true", "--xla_gpu_autotune_level=0")


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpu_expected() -> bool:
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms:
        return "cuda" in platforms or "gpu" in platforms or "rocm" in platforms
    return any(importlib.util.find_spec(f"jax_cuda{version}_plugin") is not None for version in (12, 13))


def prepare(devices: int | None = None, nproc: int | None = None, nodes: cluster.Nodes | None = None, *, inline: bool = False) -> None:
    """Set what XLA reads once: `NPROC`, the number of virtual CPU devices, deterministic kernels on GPUs. Without effect once jax has a backend.

    Args:
        devices: how many devices the run uses, over all processes; None: one per process on a CPU, all GPUs otherwise.
        nproc: the thread-pool size of an earlier run, to be restored; None: the cores (or the caller's NPROC), rounded up to a multiple of the devices.
        nodes: the processes of the run; None: those that the environment names (`cluster.parse`).
        inline: CPUs compute in the thread that calls: for many small computations, each of which is waited for. The bits are the same.
    """
    from jax._src import xla_bridge  # jax has no public way to ask whether its backend exists

    if devices is not None and devices < 1:
        raise UsageError(f"--devices takes a number of at least 1, got {devices}")
    if xla_bridge.backends_are_initialized():
        return
    nodes = nodes or cluster.parse(None)
    processes = 1 if nodes is None else nodes.processes
    if devices is not None and devices % processes:
        raise UsageError(f"--devices {devices} cannot be shared equally by {processes} processes", then="a multiple of the processes: it counts all devices")
    wanted = (devices or processes) // processes
    if nproc is None:
        given = os.environ.get("NPROC", "")
        at_least = int(given) if given.isdecimal() and int(given) > 0 else cores()
        if wanted > 1:
            at_least = max(at_least, 2 * wanted)
        nproc = -(-at_least // wanted) * wanted
    os.environ["NPROC"] = str(nproc)
    if folder := os.environ.get(COMPILED):
        jax.config.update("jax_compilation_cache_dir", str(Path(folder) / f"{_processor()}-{nproc}"))
        if LEAST not in os.environ:  # JAX keeps what took a second: all of ours together takes many
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    flags = os.environ.get("XLA_FLAGS", "").split()
    if _gpu_expected():
        flags += [flag for flag in DETERMINISTIC if not any(f.startswith(flag.partition("=")[0]) for f in flags)]
    elif wanted > 1:
        present = [int(m.group(1)) for f in flags if (m := re.fullmatch(rf"{COUNT}=(\d+)", f))]
        if not present or present[-1] < wanted:
            flags = [f for f in flags if not f.startswith(COUNT)] + [f"{COUNT}={wanted}"]
    if flags:
        os.environ["XLA_FLAGS"] = " ".join(flags)
    if inline:
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    if nodes is not None:
        cluster.join(nodes)


def mesh(devices: int | None = None, model: int = 1) -> Mesh:
    """The mesh of the devices of all processes, axes (replica, model); every process has equally many, next to one another.

    Every replica is a worker; a model axis above 1 has no model that uses it yet and is refused.
    """
    if model != 1:
        raise UsageError(f"models are not sharded over devices yet: the model axis must be 1, got {model}")
    local, processes = jax.local_devices(), jax.process_count()
    wanted = (devices or (processes if local[0].platform == "cpu" else processes * len(local))) // processes
    if wanted > len(local):
        kind = local[0].device_kind
        raise UsageError(f"--devices {wanted * processes}: this process has {len(local)} ({kind})", then=f"--devices {len(local) * processes} or fewer")
    chosen = [d for p in range(processes) for d in [d for d in jax.devices() if d.process_index == p][:wanted]] if processes > 1 else local[:wanted]
    return Mesh(np.asarray(chosen).reshape(-1, 1), (AXIS, "model"))


def workers(mesh: Mesh) -> int:
    """Number of replicas."""
    return int(mesh.devices.shape[0])


def mine(mesh: Mesh) -> slice:
    """The replicas of this process."""
    here = [k for k, device in enumerate(mesh.devices[:, 0]) if device.process_index == jax.process_index()]
    return slice(here[0], here[-1] + 1)


def _local(mesh: Mesh) -> np.ndarray:
    return np.asarray(mesh.devices[mine(mesh), 0])


def parallel(function: Callable[..., Any], mesh: Mesh, *, donate: tuple[int, ...] = (), shared: tuple[int, ...] = (), arguments: int) -> Callable[..., Any]:
    """`function` on every replica at once, with the collective axis `AXIS`.

    Every leaf of an argument has a leading axis of one slice per replica of this process, except the arguments at the positions `shared`, which all replicas
    see whole.
    `donate`: positions of the arguments whose memory the results may take.
    """
    axes = tuple(None if i in shared else 0 for i in range(arguments))
    mapped: Callable[..., Any] = jax.pmap(function, axis_name=AXIS, in_axes=axes, devices=list(mesh.devices[:, 0]), donate_argnums=donate)
    return mapped


def once(function: Callable[..., T]) -> Callable[..., T]:
    """`jax.jit` for a program that runs a few times on little data: on a CPU it is compiled in less than half the time, and runs slower.

    All leaves of its arguments and results are arrays.
    """

    @functools.cache
    def compiled() -> Callable[..., T]:  # not before the backend exists
        return jax.jit(function, compiler_options=LIGHT if jax.default_backend() == "cpu" else None)

    def call(*arguments: Any) -> T:
        return compiled()(*arguments)

    return call


def place(tree: PyTree, mesh: Mesh) -> PyTree:
    """Host arrays with a leading axis of one slice per replica of this process -> the same on their devices, asynchronously."""
    return jax.device_put(tree, NamedSharding(Mesh(_local(mesh), (AXIS,)), PartitionSpec(AXIS)))


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """One copy of every leaf on each replica of this process, stacked on a new leading axis."""
    n = len(_local(mesh))

    def spread(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array):
            return jnp.broadcast_to(leaf[None], (n, *leaf.shape))
        return np.broadcast_to(np.asarray(leaf)[None], (n, *np.shape(leaf)))

    return place(jax.tree.map(spread, tree), mesh)


@functools.cache
def _everywhere(mesh: Mesh) -> Callable[..., Any]:
    return parallel(lambda tree: jax.lax.all_gather(tree, AXIS), mesh, arguments=1)


def spread(tree: PyTree, mesh: Mesh) -> PyTree:
    """Results of the replicas of this process -> of all replicas, as arrays of one device; asynchronously. Every process must call it."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(lambda leaf: leaf.addressable_shards[0].data[0], _everywhere(mesh)(tree))


def gathered(tree: PyTree, mesh: Mesh) -> PyTree:
    """Results of the replicas of this process -> host arrays with a leading axis of all replicas. Every process must call it."""
    return jax.device_get(spread(tree, mesh))


def memory(mesh: Mesh) -> int:
    """Bytes that one replica may count as its own: the device's limit, or the machine's memory (or the container's limit) shared by the virtual devices.

    Other processes of the run are taken to be on machines of their own.
    """
    device = _local(mesh)[0]
    if device.platform != "cpu":
        return int(device.memory_stats()["bytes_limit"])
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdecimal():
        total = min(total, int(text))
    return total // len(_local(mesh))


def _cpu() -> tuple[str, list[str]]:
    """Model name of the processor, and those of its instruction sets on which compiled code depends."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor(), []
    text = info.read_text()
    name = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    wanted = re.compile(r"avx|fma|sse|amx|f16c|bmi|asimd|sve|neon|fp16|bf16")
    return (name.group(1) if name else platform.machine()), sorted(f for f in (flags.group(1).split() if flags else []) if wanted.search(f))


def _processor() -> str:
    """A name for this kind of processor, of letters and digits."""
    name, flags = _cpu()
    return hashlib.sha256(" ".join([name, *flags]).encode()).hexdigest()[:12]


def environment(mesh: Mesh) -> dict[str, Any]:
    """Everything outside the configuration that the bits of a run depend on, for its provenance."""
    name, flags = _cpu()
    return {
        "versions": {"hlt-train": __version__, "python": platform.python_version(), **{p: metadata.version(p) for p in PACKAGES}},
        "platform": mesh.devices[0, 0].platform,
        "device": mesh.devices[0, 0].device_kind,
        "devices": workers(mesh),
        "processes": jax.process_count(),
        "nproc": int(os.environ["NPROC"]) if os.environ.get("NPROC", "").isdecimal() else None,
        "cpu": name,
        "cpu_flags": flags,
        "xla_flags": sorted(f for f in os.environ.get("XLA_FLAGS", "").split() if not f.startswith(COUNT)),
    }


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What differs between two environments, as readable phrases; empty means that the same program gives the same bits."""
    found = [f"{p} ({v} then, {new['versions'].get(p)} now)" for p, v in old["versions"].items() if new["versions"].get(p) != v]
    for key in ("platform", "device", "devices", "processes", "nproc", "cpu", "xla_flags"):
        then = old.get(key, 1 if key == "processes" else None)  # earlier versions had but one process
        if then != new[key]:
            label = "NPROC" if key == "nproc" else key
            found.append(f"{label} ({then} then, {new[key]} now)")
    if old.get("cpu_flags") != new["cpu_flags"]:
        changed = sorted(set(old.get("cpu_flags") or []) ^ set(new["cpu_flags"]))
        found.append(f"cpu_flags ({' '.join(changed)})")
    return found

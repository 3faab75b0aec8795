"""The machine and the versions that a figure or a certificate was made with."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

from hlt_train import __version__

__all__ = ["machine", "versions"]


def machine() -> dict[str, str | int]:
    """Processor, cores, system."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if info.is_file() else []
    return {"cpu": names[0] if names else platform.processor(), "cores": os.cpu_count() or 1, "system": platform.platform(), "architecture": platform.machine()}


def versions() -> dict[str, str]:
    """Python, this program, and the libraries that take part in an export; those that are not installed are left out."""
    found = {"python": platform.python_version(), "hlt-train": __version__}
    for name in ("numpy", "onnx", "onnxruntime", "hls4ml", "qonnx", "alkaid"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found

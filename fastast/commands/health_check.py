"""The health check of a container: fast, and without an effect on measurements.

It imports neither torch nor DALI, writes nothing, and loads the driver's libraries without initializing them:
`nvmlInit` wakes every GPU of a host without persistence mode, `cuInit` occupies memory and raises power.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import shutil

PACKAGES = ("torch", "torchvision", "nvidia.dali", "numpy", "pynvml", "PIL", "safetensors")
# A checkpoint of ResNet-50 with its momentum takes 200 MB.
MIN_FREE_B = 2**28


def run_health_check() -> int:
    """Prints "ok", or one line that names what is broken; returns 0 or 1 (Docker reserves 2)."""
    broken = [*broken_packages(), *broken_driver(), *broken_folder()]
    print("; ".join(broken) or "ok")
    return int(bool(broken))


def broken_packages() -> list[str]:
    """The packages that training imports and that are not installed."""
    return [f"{name} is not installed" for name in PACKAGES if not _is_installed(name)]


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:  # its parent is not there
        return False


def broken_driver(devices: str = "/dev") -> list[str]:
    """The driver's libraries that cannot be loaded although there is a GPU.

    Args:
        devices: the folder of device files.
    """
    if not any(re.fullmatch(r"nvidia\d+", name) for name in os.listdir(devices)):
        return []
    broken = []
    for library, capability in (("libcuda.so.1", "compute"), ("libnvidia-ml.so.1", "utility")):
        try:
            ctypes.CDLL(library)
        except OSError:
            broken.append(f"{library} is missing (in a container: NVIDIA_DRIVER_CAPABILITIES must hold {capability})")
    return broken


def broken_folder(folder: str = ".") -> list[str]:
    """Why runs cannot be stored in a folder, the current one by default."""
    try:
        shown = os.path.abspath(folder)
        free_b = shutil.disk_usage(folder).free
    except OSError as error:
        return [f"the folder {folder} cannot be used: {error.strerror}"]
    if not os.access(folder, os.W_OK | os.X_OK):
        return [f"{shown} is not writable by user {os.geteuid()}"]
    return [f"{shown} has only {free_b / 2**20:.0f} MiB free"] if free_b < MIN_FREE_B else []

"""What every benchmark result carries beside its figures."""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import shlex
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import torchvision

from fastast.atomic_files import write_whole
from fastast.device import device_name
from fastast.run_folder import code_version


def dali_version() -> str | None:
    """DALI's version, or None where it is not installed: some parts of the GPU suite do without."""
    try:
        return importlib.import_module("nvidia.dali").__version__
    except ImportError:
        return None


def provenance(device: torch.device) -> dict[str, Any]:
    """Hardware, versions, commit and time of a measurement."""
    version, commit = code_version()
    return {
        "hardware": {"device": device.type, "name": device_name(device), "threads": torch.get_num_threads()},
        "versions": {
            "fastast": version,
            "commit": commit,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "dali": dali_version(),
        },
        "measured_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def command_line(module: str, parser: argparse.ArgumentParser, args: argparse.Namespace) -> str:
    """The command that gives a result again: every option unlike its default but --out; of paths the last part."""
    words = ["python", "-m", module]
    for key, value in vars(args).items():
        if key == "out" or value == parser.get_default(key):
            continue
        values = [] if value is True else value if isinstance(value, list) else [value]
        words += ["--" + key.replace("_", "-")]
        words += [shlex.quote(v.name if isinstance(v, Path) else str(v)) for v in values]
    return " ".join(words)


def publish(result: dict[str, Any], out: str | None) -> None:
    """Prints a result as JSON, and writes it to `out` if given."""
    text = json.dumps(result, indent=1) + "\n"
    print(text, end="")
    if out:
        write_whole(out, text)


def stamp(result: dict[str, Any]) -> str:
    """Versions, commit and day of a result, for the line below its table."""
    versions = result["versions"]
    return (
        f"torch {versions['torch']}, DALI {versions['dali']}, fastast {versions['fastast']} ({versions['commit']}), "
        f"{result['measured_at'][:10]}"
    )

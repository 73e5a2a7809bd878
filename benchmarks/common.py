"""What every benchmark result carries beside its figures."""

from __future__ import annotations

import json
import platform
from datetime import datetime, timezone
from typing import Any

import nvidia.dali
import torch
import torchvision

from fastast.files import write_whole
from fastast.run import code_version, device_name


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
            "dali": nvidia.dali.__version__,
        },
        "measured_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


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

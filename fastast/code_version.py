"""Which code runs: its version and its commit."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from fastast._version import __version__


def code_version() -> tuple[str, str | None]:
    """The package's version, and the commit of the checkout it runs from.

    Where it is installed, the commit is what FASTAST_COMMIT says (a container image sets it), or None.
    """
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return __version__, os.environ.get("FASTAST_COMMIT") or None
    try:
        described = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return __version__, None
    return __version__, described.stdout.strip()


def version_words() -> str:
    """`code_version` as one line: "0.1.0 (commit 69bcb73fc82d)"."""
    version, commit = code_version()
    return f"{version} (commit {commit})" if commit else version

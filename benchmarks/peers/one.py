"""One run in a process of its own: `python -m benchmarks.peers.one NAME SETTING.json OUT.json`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.peers.loops import InfoBatch, Rule, SelectiveBackprop, run_loop
from benchmarks.peers.original import run_original
from benchmarks.peers.ours import run_ours
from benchmarks.peers.setting import Setting
from fastast.atomic_files import write_whole
from fastast.errors import InputError

PEERS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "PyTorch loop": lambda setting: run_loop(setting, Rule),
    "fastast dense": lambda setting: run_ours(setting, "dense"),
    "AST package": run_original,
    "InfoBatch": lambda setting: run_loop(setting, InfoBatch),
    "Selective Backprop": lambda setting: run_loop(setting, SelectiveBackprop),
    "fastast forward": lambda setting: run_ours(setting, "forward"),
    "fastast memory": lambda setting: run_ours(setting, "memory"),
}


def main() -> int:
    name, setting, out = sys.argv[1:]
    try:
        figures = PEERS[name](Setting(**json.loads(Path(setting).read_text())))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    write_whole(out, json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

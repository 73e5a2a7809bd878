"""Packs a folder in child processes that kill themselves at each step in turn.

    python -m tests.packing.kill_packer SRC OUT

Prints the number of steps. OUT/K is the pack that was killed at step K and then finished. A process of its own, because
forking is only safe in one without threads.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

from fastast.packing.packer import run_pack

STEPS = ("replace", "fsync", "unlink", "rmdir", "mkdir")


def in_child(source: Path, out: Path, die_at: int) -> int:
    """Packs; kills itself before the step of this number (0: never). Returns the signal that ended it, or 0."""
    child = os.fork()
    if child == 0:
        taken = 0

        def counted(real):
            def step(*args, **options):
                nonlocal taken
                taken += 1
                if taken == die_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **options)

            return step

        os.fsync = lambda descriptor: None  # the disk does not lose power here, and waiting for it takes long
        for name in STEPS:
            setattr(os, name, counted(getattr(os, name)))
        options = {"shard_size_mb": 0.03, "workers": 2}
        code = run_pack(source, out, say=lambda line: None, **options)  # type: ignore[arg-type]
        os._exit(code)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def main(source: Path, out: Path) -> int:
    step = 1
    while in_child(source, out / str(step), step) == signal.SIGKILL:
        if step % 4 == 0:  # killed again on its way on
            in_child(source, out / str(step), 4)
        assert in_child(source, out / str(step), 0) == 0
        step += 1
    shutil.copytree(out / str(step), out / "whole")
    assert in_child(source, out / str(step), 0) == 0  # a finished pack is left as it is
    return step


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), Path(sys.argv[2])))

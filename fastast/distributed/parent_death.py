"""Runs a command that is asked to end when the process that started it dies, be it by SIGKILL.

    python parent_death.py PID COMMAND ...

PID is the process that starts this; `with_parent_death_signal` builds the command line. Linux sends SIGTERM at its
death, at which a run saves a checkpoint and ends. This file is run by its path and becomes the command, so it imports
nothing of the package and costs 20 ms.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def with_parent_death_signal(words: list[str]) -> list[str]:
    """The command line that runs a command which ends when this process dies; its first word is a path."""
    return [sys.executable, __file__, str(os.getpid()), *words]


def main(parent: int, words: list[str]) -> None:
    """Asks for a signal at the death of the parent, then becomes the command."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before
        sys.exit(128 + signal.SIGTERM)
    os.execv(words[0], words)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])

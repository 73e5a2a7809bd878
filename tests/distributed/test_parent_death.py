"""A command that is asked to end when its parent dies."""

import os
import signal
import subprocess
import sys
import time

from fastast.distributed import parent_death
from fastast.distributed.parent_death import with_parent_death_signal

CHILD = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (open(sys.argv[1], "w").write("asked to end"), os._exit(0)))
print(os.getpid(), flush=True)
time.sleep(120)
"""
PARENT = """
import subprocess, sys
from fastast.distributed.parent_death import with_parent_death_signal
subprocess.Popen(with_parent_death_signal([sys.executable, *sys.argv[1:]]), start_new_session=True).wait()
"""


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"  # a zombie
    except FileNotFoundError:
        return False


def test_a_child_is_asked_to_end_when_its_parent_is_killed(tmp_path):
    told = tmp_path / "told"
    words = [sys.executable, "-c", PARENT, "-c", CHILD, str(told)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        assert is_alive(child)
        os.kill(parent.pid, signal.SIGKILL)
        deadline = time.monotonic() + 30
        while is_alive(child):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert told.read_text() == "asked to end"


def test_the_process_becomes_the_command():
    words = [sys.executable, "-c", "import os, sys; print(os.getpid()); sys.exit(7)"]
    with subprocess.Popen(with_parent_death_signal(words), stdout=subprocess.PIPE, text=True) as process:
        assert int(process.stdout.read()) == process.pid
    assert process.returncode == 7


def test_the_command_does_not_start_once_the_parent_has_died():
    words = [sys.executable, parent_death.__file__, "1", sys.executable, "-c", "print('ran')"]
    late = subprocess.run(words, capture_output=True)
    assert (late.returncode, late.stdout) == (128 + signal.SIGTERM, b"")

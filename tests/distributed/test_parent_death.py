"""A command that is asked to end when its parent dies."""

import signal
import subprocess
import sys
import time

from fastast.distributed import parent_death
from fastast.distributed.parent_death import with_parent_death_signal

CHILD = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (open(sys.argv[1], "w"), os._exit(0)))
print("ready", flush=True)
time.sleep(120)
"""
PARENT = """
import subprocess, sys
from fastast.distributed.parent_death import with_parent_death_signal
subprocess.Popen(with_parent_death_signal([sys.executable, *sys.argv[1:]]), start_new_session=True).wait()
"""


def test_a_child_is_asked_to_end_when_its_parent_is_killed(tmp_path):
    asked = tmp_path / "asked"
    words = [sys.executable, "-c", PARENT, "-c", CHILD, str(asked)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout.readline() == "ready\n"
        parent.kill()
        deadline = time.monotonic() + 30
        while not asked.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_the_process_becomes_the_command():
    words = [sys.executable, "-c", "import os, sys; print(os.getpid()); sys.exit(7)"]
    with subprocess.Popen(with_parent_death_signal(words), stdout=subprocess.PIPE, text=True) as process:
        assert int(process.stdout.read()) == process.pid
    assert process.returncode == 7


def test_the_command_does_not_start_once_the_parent_has_died():
    words = [sys.executable, parent_death.__file__, "1", sys.executable, "-c", "print('ran')"]
    late = subprocess.run(words, capture_output=True)
    assert (late.returncode, late.stdout) == (128 + signal.SIGTERM, b"")

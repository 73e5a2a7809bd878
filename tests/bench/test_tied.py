"""A run does not outlive its bench."""

import os
import signal
import subprocess
import sys
import time

from fastast.bench.runs import TIED

CHILD = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (open(sys.argv[1], "w").write("asked to end"), os._exit(0)))
print(os.getpid(), flush=True)
time.sleep(120)
"""
PARENT = """
import os, subprocess, sys
process = subprocess.Popen([sys.executable, sys.argv[1], str(os.getpid()), sys.executable, *sys.argv[2:]],
                           start_new_session=True)
process.wait()
"""


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"  # one that nobody waits for
    except FileNotFoundError:
        return False


def test_a_child_is_asked_to_end_when_its_parent_is_killed(tmp_path):
    told = tmp_path / "told"
    words = [sys.executable, "-c", PARENT, str(TIED), "-c", CHILD, str(told)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        assert is_alive(child)
        os.kill(parent.pid, signal.SIGKILL)
        deadline = time.monotonic() + 30
        while is_alive(child):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert told.read_text() == "asked to end"


def test_it_is_the_command_itself_with_its_exit_code():
    words = [sys.executable, str(TIED), str(os.getpid()), sys.executable]
    done = subprocess.run([*words, "-c", "import os, sys; print(os.getpid()); sys.exit(7)"], capture_output=True)
    assert done.returncode == 7
    assert int(done.stdout)
    late = subprocess.run([sys.executable, str(TIED), "1", sys.executable, "-c", "print('ran')"], capture_output=True)
    assert (late.returncode, late.stdout) == (128 + signal.SIGTERM, b"")  # its parent is another: the bench died before

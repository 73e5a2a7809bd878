"""The watchdog ends a hung run and says where it hangs; it leaves a slow or suspended one alone."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from fastast.session.watchdog import Watchdog
from tests.processes import FORKS, beat_for_a_second, hang, running


@pytest.mark.parametrize("writable", [True, False])
def test_a_hung_thread_is_named_and_ends_the_run(tmp_path, writable):
    os.mkfifo(tmp_path / "picture")
    run = tmp_path / "run"
    if writable:
        run.mkdir()
    process = FORKS.Process(target=hang, args=(run, tmp_path / "picture", tmp_path / "stderr"))
    process.start()
    process.join(120)
    assert process.exitcode == 1
    said = (tmp_path / "stderr").read_text()
    assert "in read_the_next_picture" in said
    last = said.splitlines()[-1]
    for part in ("no batch came for 1 s", "network storage", f"fastast train --out {run} --resume"):
        assert part in last
    if writable:
        written = (run / "stall.txt").read_text()
        assert written.splitlines()[0] == last
        assert "in read_the_next_picture" in written


def test_a_working_loop_is_left_alone_until_it_stops():
    stalled = threading.Event()
    with Watchdog(1, stalled.set) as watchdog:
        for _ in range(200):
            time.sleep(0.01)
            watchdog.beat()
        assert not stalled.is_set()
        assert stalled.wait(60)


def test_the_wall_clock_does_not_matter(monkeypatch):
    stalled = threading.Event()
    with Watchdog(2, stalled.set):
        monkeypatch.setattr(time, "time", lambda: 4e9)
        assert not stalled.wait(0.5)
        monkeypatch.setattr(time, "time", lambda: 0.0)
        assert stalled.wait(60)


def test_a_suspended_process_has_not_hung():
    with running(beat_for_a_second) as process:
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(3)
        os.kill(process.pid, signal.SIGCONT)
        process.join(60)
    assert process.exitcode == 0


def test_the_thread_ends_with_the_run():
    before = threading.active_count()
    with Watchdog(100, lambda: None):
        assert threading.active_count() == before + 1
    assert threading.active_count() == before

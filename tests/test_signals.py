"""Signals that ask a run to stop."""

import signal
import time

import pytest

from fastast.signals import SIGNALS, TIME_IS_UP, Stopped, StopRequest


@pytest.fixture
def hangup():
    """Restores what SIGHUP does."""
    before = signal.getsignal(signal.SIGHUP)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("signum", SIGNALS)
def test_every_stop_signal_is_a_request(signum):
    request = StopRequest()
    with request.listening():
        signal.raise_signal(signum)
    with pytest.raises(Stopped) as caught:
        request.check()
    assert (caught.value.reason, caught.value.exit_code) == ("signal", 128 + signum)


def test_time_is_up_by_the_clock_of_the_command():
    began_s = time.monotonic() - 10
    assert StopRequest(9.0, began_s).requested() == TIME_IS_UP
    assert StopRequest(1000.0, began_s).requested() == StopRequest(9.0).requested() == 0


def test_nohup_keeps_its_meaning(hangup):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    request = StopRequest()
    with request.listening():
        signal.raise_signal(signal.SIGHUP)
    request.check()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN

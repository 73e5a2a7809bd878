"""Stops at chosen places, by real signals."""

import signal

from fastast.signals import StopRequest


def stopping_at(checks):
    """A `StopRequest.requested` that raises SIGUSR1 at its n-th call, for one n in each session.

    Args:
        checks: list of n, one for each session; sessions after the last one run to their end.
    """
    requested, left = StopRequest.requested, list(checks)

    def stopped(self):
        self.num_checks = getattr(self, "num_checks", 0) + 1
        if left and self.num_checks == left[0]:
            del left[0]
            signal.raise_signal(signal.SIGUSR1)
        return requested(self)

    return stopped

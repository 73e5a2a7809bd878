"""Fixtures shared with the tests of the loop."""

from tests.train.conftest import driver, no_report

__all__ = ["driver", "no_report"]

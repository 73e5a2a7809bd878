"""Fixtures shared with the energy tests, and runs that end sooner."""

import pytest

from fastast.session import session
from tests.energy.conftest import driver

__all__ = ["driver"]


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    """Drawing the page takes longer than these runs; the shared ones, made once for a module, draw it."""
    monkeypatch.setattr(session, "write_report", lambda folder: None)

"""Fixtures shared with the energy tests."""

from tests.energy.conftest import driver

__all__ = ["driver"]

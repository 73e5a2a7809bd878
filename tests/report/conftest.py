"""A headless browser for all tests of the pages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.report.browser import Browser, find_chromium


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium, started once."""
    program = find_chromium()
    if program is None:
        pytest.skip("no chromium on the PATH (apt-get install chromium): the page cannot be shown")
    running = Browser(program)
    yield running
    running.close()

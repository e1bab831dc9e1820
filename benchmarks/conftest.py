"""Prints the ratios after the tests, where nothing captures them."""

from __future__ import annotations

import pytest

from pairs import REPORT


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in REPORT:
        terminalreporter.write_line(line)

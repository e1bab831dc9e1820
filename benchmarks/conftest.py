"""Prints the ratios after the tests, where nothing captures them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pairs import REPORT

# Processes that race for one store are the tests' and the benchmarks'.
sys.path.append(str(Path(__file__).parents[1] / "tests" / "process"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in REPORT:
        terminalreporter.write_line(line)

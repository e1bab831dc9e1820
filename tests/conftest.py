"""For all tests: Ctrl-C means what it does at a terminal.

A shell starts what it runs in the background with SIGINT ignored, and children inherit that; then
a test that interrupts itself or others would wait for ever.
"""

from __future__ import annotations

import signal

import pytest


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        config.add_cleanup(lambda: signal.signal(signal.SIGINT, before))

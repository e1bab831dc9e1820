"""The command line: ``ringhold demo | init | node | status | lock | fs …``.

``ringhold lock`` is called from shell scripts, often for a command that takes no time: it starts
without what only the others need.
"""

from __future__ import annotations

import sys


def main() -> None:
    if sys.argv[1:2] == ["lock"]:
        from ringhold.cli.lock import main as lock

        sys.exit(lock(sys.argv[2:]))
    else:
        from ringhold.cli.app import app

        app()

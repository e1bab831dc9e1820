"""A storage daemon as `ringhold node` runs it, without the command line around it.

Arguments: directory, port (0 picks one), "uvloop", "asyncio", or "slow": asyncio on a disk whose
fdatasync takes seconds.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time

from ringhold.env import real_env
from ringhold.nodes.server import loop_factory, ready_line, serve

SLOW_S = 3.0
_fdatasync = os.fdatasync


def _slow_fdatasync(fd: int) -> None:
    time.sleep(SLOW_S)
    _fdatasync(fd)


def main() -> None:
    directory, port, loop = sys.argv[1:]
    if loop == "slow":
        os.fdatasync = _slow_fdatasync  # type: ignore[assignment]
    factory = loop_factory() if loop == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(
            serve(
                directory,
                "127.0.0.1",
                int(port),
                real_env(),
                ready=lambda address: print(ready_line(address, None), flush=True),
            )
        )


main()

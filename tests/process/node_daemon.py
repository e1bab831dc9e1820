"""A storage daemon as `ringhold node` runs it, without the command line around it.

Arguments: directory, port (0 picks one), "uvloop" or "asyncio".
"""

from __future__ import annotations

import asyncio
import sys

from ringhold.env import real_env
from ringhold.nodes.server import loop_factory, ready_line, serve


def main() -> None:
    directory, port, loop = sys.argv[1:]
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

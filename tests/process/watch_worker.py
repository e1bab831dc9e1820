"""A process that watches: `watch_worker.py DIRECTORY PREFIX POLL_S [fork]`.

Says `ready` once it waits, then for every change its revision and when it was delivered, in
nanoseconds of CLOCK_MONOTONIC, which all processes share. With `fork` a child that does nothing
stays behind it; its pid is said first.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time

from ringhold.env import real_env
from ringhold.store.sqlite import open_sqlite_store, watching


def say(*words: object) -> None:
    print(*words, flush=True)


def leave_a_child() -> int:
    pid = os.fork()
    if pid == 0:
        # The pipe of the standard output must end with the parent.
        os.close(1)
        signal.pause()
    return pid


async def main() -> None:
    directory, prefix, poll_s, *options = sys.argv[1:]
    watching.POLL_S = float(poll_s)
    store = await open_sqlite_store(directory, real_env(), create=False)
    snapshot = await store.snapshot()
    watch = store.watch(prefix.encode(), snapshot.revision + 1)
    await snapshot.close()
    following = asyncio.ensure_future(anext(watch))
    await asyncio.sleep(0)
    if "fork" in options:
        say(leave_a_child())
    say("ready")
    while True:
        changes = await following
        say(changes.revision, time.monotonic_ns())
        following = asyncio.ensure_future(anext(watch))


if __name__ == "__main__":
    asyncio.run(main())

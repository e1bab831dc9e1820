"""What the processes of the store tests run: `store_worker.py ROLE DIRECTORY [ARGUMENTS]`."""

from __future__ import annotations

import asyncio
import signal
import sys
import time

from ringhold.env import real_env
from ringhold.errors import Conflict
from ringhold.store.base import Absent, Put, Store, Unchanged
from ringhold.store.sqlite import open_sqlite_store


def say(*words: object) -> None:
    print(*words, flush=True)


async def increment(store: Store, counter: bytes) -> None:
    """Adds one to `counter`; says so once it is acknowledged."""
    while True:
        snapshot = await store.snapshot()
        entry = await snapshot.get(counter)
        await snapshot.close()
        compare = Unchanged(counter, entry.revision) if entry else Absent(counter)
        value = int(entry.value) + 1 if entry else 1
        try:
            await store.commit(compares=[compare], puts=[Put(counter, b"%d" % value)])
        except Conflict:
            continue
        say("acknowledged", counter.decode(), value)
        return


async def count(store: Store, *counters: str) -> None:
    """Increments shared counters until it is killed."""
    say("ready")
    while True:
        for counter in counters:
            await increment(store, counter.encode())


async def hold(store: Store, lease_hex: str, key: str) -> None:
    """Takes `key` under a lease of a minute and keeps it."""
    lease = bytes.fromhex(lease_hex)
    await store.grant_lease(lease, 60.0)
    await store.commit(puts=[Put(key.encode(), b"held", lease)])
    say("ready")
    signal.pause()


async def race(store: Store, seconds: str, width: str) -> None:
    """Commits in a loop, `width` at a time, for `seconds` once told to start; says how often."""
    say("ready")
    sys.stdin.readline()
    end = time.monotonic() + float(seconds)
    done = [0] * int(width)

    async def one(place: int) -> None:
        while time.monotonic() < end:
            await store.commit(puts=[Put(b"racer %d" % place, b"%d" % done[place])])
            done[place] += 1

    await asyncio.gather(*(one(place) for place in range(len(done))))
    say("commits", sum(done))


ROLES = {"count": count, "hold": hold, "race": race}


async def main() -> None:
    role, directory, *arguments = sys.argv[1:]
    store = await open_sqlite_store(directory, real_env(), create=False)
    await ROLES[role](store, *arguments)
    await store.close()


if __name__ == "__main__":
    asyncio.run(main())

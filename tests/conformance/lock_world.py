"""Processes for the conformance tests of locks: stores opened each for itself, with a session.

Time is real, plus what a test skips. A `Meddler` stands between the locks of a party and its
store: it counts calls, and lets a test do something, or fail, before and after any of them.

"memory-unasked" is the memory store ending leases as etcd does: by itself, twice a second, and
not when it is asked to. What it shows etcd shows too.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from etcd_engines import ETCD, ETCD_OF_THREE, ETCD_SERVERS, etcd_opener

from ringhold.bridge import Bridge
from ringhold.env import RealClock, RealEnv
from ringhold.locks.grant import AsyncGrant
from ringhold.locks.keys import LockKeys, LockState, read_lock
from ringhold.locks.service import LockService, Terms
from ringhold.locks.session import Session
from ringhold.store.base import Changes, Store
from ringhold.store.keyspace import MAILBOX
from ringhold.store.memory import open_memory_store
from ringhold.store.sqlite import open_sqlite_store
from ringhold.types import Mode

NAME = b"uname"
SOON_S = 10.0
"""For what must happen soon, on a machine however busy."""

_names = itertools.count()


class SkippingClock(RealClock):
    def __init__(self) -> None:
        self.skipped_ns = 0
        self.hurried_ns = 0

    def monotonic_ns(self) -> int:
        return super().monotonic_ns() + self.hurried_ns

    def boottime_ns(self) -> int:
        return super().boottime_ns() + self.skipped_ns


class SkippingEnv(RealEnv):
    def __init__(self) -> None:
        super().__init__()
        self.clock: SkippingClock = SkippingClock()

    def skip(self, seconds: float) -> None:
        self.clock.skipped_ns += int(seconds * 1e9)

    def end_repeating(self) -> None:
        """A commit whose outcome is unknown is not repeated for longer."""
        self.clock.hurried_ns += 10**12


class UnaskedStore:
    """A store that ends leases by itself, as etcd does, whatever it is asked."""

    leases_end_unasked = True

    def __init__(self, store: Store):
        self._store = store
        self._ending = asyncio.create_task(self._end_leases())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def _end_leases(self) -> None:
        while True:
            await asyncio.sleep(UNASKED_S)
            await self._store.expire_leases()

    async def expire_leases(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        self._ending.cancel()
        await asyncio.gather(self._ending, return_exceptions=True)
        await self._store.close()


async def open_unasked_store(name: str, env: RealEnv, *, create: bool) -> Store:
    return cast("Store", UnaskedStore(await open_memory_store(name, env, create=create)))


OPENERS: dict[str, Any] = {
    "memory": open_memory_store,
    "memory-unasked": open_unasked_store,
    "sqlite": open_sqlite_store,
    **{engine: etcd_opener(engine) for engine in ETCD_SERVERS},
}
UNASKED = pytest.param("memory-unasked", marks=pytest.mark.long)
ENGINES = ["memory", UNASKED, "sqlite", *ETCD]
ENGINES_OF_SLOW_TESTS = [
    pytest.param("memory", marks=pytest.mark.long),
    UNASKED,
    "sqlite",
    *ETCD_OF_THREE,
]
UNASKED_S = 0.5
"""How often a store that ends leases by itself does so."""


class Meddler:
    """Passes calls on to a store. `at_call` is called before and after each of them."""

    def __init__(self, store: Store):
        self._store = store
        self.commits = 0
        self.calls: Counter[str] = Counter()
        self.at_call: Callable[[str, bool], Awaitable[None] | None] | None = None
        self.deaf = False
        """Whether letters get lost: nothing below a mailbox is told by a watch."""

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._store, name)
        if name in ("lease_until", "leases_end_unasked"):
            return attribute

        async def call(*args: Any, **options: Any) -> Any:
            self.calls[name] += 1
            await self._meddle(name, False)
            result = await attribute(*args, **options)
            self.commits += name == "commit"
            await self._meddle(name, True)
            return result

        return call

    async def _meddle(self, name: str, after: bool) -> None:
        meddling = None if self.at_call is None else self.at_call(name, after)
        if meddling is not None:
            await meddling

    async def watch(self, prefix: bytes, from_revision: int) -> AsyncIterator[Changes]:
        self.calls["watch"] += 1
        async for changes in self._store.watch(prefix, from_revision):
            if not (self.deaf and prefix.startswith(MAILBOX)):
                yield changes


class Party:
    """One process."""

    def __init__(self, store: Store, env: SkippingEnv, ttl_s: float):
        self.real_store = store
        self.store = Meddler(store)
        self.env = env
        self.session = Session(store, env, ttl_s=ttl_s)
        self.locks = self.service()

    def service(self) -> LockService:
        bridge = Bridge(asyncio.get_running_loop())
        return LockService(cast("Store", self.store), self.env, self.session, bridge)

    async def acquire(
        self,
        owner: int = 1,
        timeout_s: float | None = SOON_S,
        *,
        mode: str = "exclusive",
        reentrant: bool = False,
        delay_s: float = 0.0,
        raw: bytes = NAME,
    ) -> AsyncGrant:
        terms = Terms(raw, raw[1:].decode("utf-8", "replace"), Mode(mode), reentrant, delay_s)
        return await self.locks.acquire(AsyncGrant, terms, owner, timeout_s)

    def start(self, *args: Any, **options: Any) -> asyncio.Task[AsyncGrant]:
        return asyncio.create_task(self.acquire(*args, **options))

    async def state(self, raw: bytes = NAME) -> LockState:
        return await read_lock(self.real_store, LockKeys.of(raw))

    async def queued(self, count: int, raw: bytes = NAME) -> None:
        """Until so many sessions stand in the queue."""
        async with asyncio.timeout(SOON_S):
            while len((await self.state(raw)).queue) != count:  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    async def waiting(self, count: int, raw: bytes = NAME) -> None:
        """Until so many owners wait, in all sessions."""
        async with asyncio.timeout(SOON_S):
            while len(await self.locks.inquiries.waiters(raw)) != count:  # noqa: ASYNC110
                await asyncio.sleep(0.002)

    async def asked(self, raw: bytes = NAME) -> None:
        """Until the session knows that another one wants its lock: whoever asks it for the lock
        from now on stands behind that one."""
        keeper: Any = self.locks.current
        lock = keeper.locks[raw]
        async with asyncio.timeout(SOON_S):
            while all(owner != lock.gate for owner, _ in keeper.table.waiters(raw)):  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    async def die(self) -> None:
        """The store ends the session as if its process had been killed; it hears of it later."""
        state = self.session.current
        assert state is not None
        await self.real_store.revoke_lease(state.id)

    async def close(self) -> None:
        await self.locks.close()
        await self.session.close()
        await self.real_store.close()


class World:
    def __init__(self, engine: str, directory: Path):
        self.engine = engine
        self._place = str(directory / "cluster") if engine == "sqlite" else f"l{next(_names)}"
        self.parties: list[Party] = []

    async def party(self, *, ttl_s: float = 10.0) -> Party:
        # Where the store has a clock of its own, skipping time concerns one process alone.
        shared = self.parties and self.engine not in ETCD_SERVERS
        env = self.parties[0].env if shared else SkippingEnv()
        store = await OPENERS[self.engine](self._place, env, create=not self.parties)
        self.parties.append(Party(store, env, ttl_s))
        return self.parties[-1]

    async def two(self, *, ttl_s: float = 10.0) -> tuple[Party, Party]:
        return await self.party(ttl_s=ttl_s), await self.party(ttl_s=ttl_s)

    async def assert_free(self, raw: bytes = NAME) -> None:
        """Nobody holds or awaits the lock, nothing of a request is left, anybody can have it."""
        async with asyncio.timeout(SOON_S):
            for party in self.parties:
                # A session that is slow to answer is told of as if it held the lock.
                while await party.locks.inquiries.holders(raw):
                    pass
                while await party.locks.inquiries.waiters(raw):
                    pass
        await self.parties[0].queued(0, raw)
        for mode in ("exclusive", "shared", "exclusive"):
            for party in self.parties:
                grant = await party.acquire(99, mode=mode, raw=raw)
                await grant.release()


@asynccontextmanager
async def opened(engine: str, directory: Path) -> AsyncIterator[World]:
    made = World(engine, directory)
    try:
        yield made
    finally:
        for party in made.parties:
            await party.close()


def run_in_world(engine: str, directory: Path, test: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        async with opened(engine, directory) as world, asyncio.timeout(120):
            await test(world)

    asyncio.run(main())


async def soon(task: asyncio.Task[AsyncGrant]) -> AsyncGrant:
    async with asyncio.timeout(SOON_S):
        return await task

"""Processes for the conformance tests of locks: stores opened each for itself, with a session.

Time is real, plus what a test skips. A `Meddler` stands between the locks of a party and its
store: it counts commits, and lets a test do something, or fail, before and after any call.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

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

ENGINES = ["memory", "sqlite"]
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


class Meddler:
    """Passes calls on to a store. `at_call` is called before and after each of them."""

    def __init__(self, store: Store):
        self._store = store
        self.commits = 0
        self.at_call: Callable[[str, bool], Awaitable[None] | None] | None = None
        self.deaf = False
        """Whether letters get lost: nothing below a mailbox is told by a watch."""

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._store, name)
        if name == "lease_until":
            return attribute

        async def call(*args: Any, **options: Any) -> Any:
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
        env = self.parties[0].env if self.parties else SkippingEnv()
        opener = open_sqlite_store if self.engine == "sqlite" else open_memory_store
        store = await opener(self._place, env, create=not self.parties)
        self.parties.append(Party(store, env, ttl_s))
        return self.parties[-1]

    async def two(self, *, ttl_s: float = 10.0) -> tuple[Party, Party]:
        return await self.party(ttl_s=ttl_s), await self.party(ttl_s=ttl_s)

    async def assert_free(self, raw: bytes = NAME) -> None:
        """Nobody holds or awaits the lock, nothing of a request is left, anybody can have it."""
        for party in self.parties:
            assert await party.locks.inquiries.holders(raw) == []
            assert await party.locks.inquiries.waiters(raw) == []
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

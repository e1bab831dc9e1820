"""Two processes for tests: stores opened each for itself, with a session and its slots.

Time is real, plus what a test skips. `Interrupting` is a store that cancels its user.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from etcd_engines import ETCD, ETCD_SERVERS, etcd_opener

from ringhold.env import RealClock, RealEnv
from ringhold.locks.session import Session
from ringhold.locks.slot_grants import SlotService
from ringhold.store.base import Store, prefix_end
from ringhold.store.keyspace import ELECTION, SEMAPHORE
from ringhold.store.memory import open_memory_store
from ringhold.store.sqlite import open_sqlite_store

OPENERS: dict[str, Any] = {
    "memory": open_memory_store,
    "sqlite": open_sqlite_store,
    **{engine: etcd_opener(engine) for engine in ETCD_SERVERS},
}
ENGINES = ["memory", "sqlite", *ETCD]
_names = itertools.count()


class SkippingClock(RealClock):
    def __init__(self) -> None:
        self.skipped_ns = 0

    def boottime_ns(self) -> int:
        return super().boottime_ns() + self.skipped_ns


class SkippingEnv(RealEnv):
    def __init__(self) -> None:
        super().__init__()
        self.clock: SkippingClock = SkippingClock()

    def skip(self, seconds: float) -> None:
        self.clock.skipped_ns += int(seconds * 1e9)


class Party:
    """One process."""

    def __init__(self, store: Store, env: SkippingEnv):
        self.store = store
        self.env = env
        self.session = Session(store, env)
        self.slots = SlotService(store, env, self.session)

    async def keys(self) -> list[bytes]:
        """Whatever semaphores and elections keep in the store."""
        snapshot = await self.store.snapshot()
        try:
            return [
                key
                for letter in (SEMAPHORE, ELECTION)
                for key, _ in await snapshot.range(letter, prefix_end(letter))
            ]
        finally:
            await snapshot.close()

    async def close(self) -> None:
        await self.slots.close()
        await self.session.close()
        await self.store.close()


class World:
    def __init__(self, engine: str, directory: Path):
        self._engine = engine
        self._place = str(directory / "cluster") if engine == "sqlite" else f"p{next(_names)}"
        self.parties: list[Party] = []

    async def party(self) -> Party:
        env = self.parties[0].env if self.parties else SkippingEnv()
        store = await OPENERS[self._engine](self._place, env, create=not self.parties)
        self.parties.append(Party(store, env))
        return self.parties[-1]


def run_in_world(
    engine: str, directory: Path, test: Callable[[Party, Party], Awaitable[None]]
) -> None:
    """Runs `test` with two parties, and closes what they opened."""

    async def main() -> None:
        world = World(engine, directory)
        try:
            async with asyncio.timeout(120):
                await test(await world.party(), await world.party())
        finally:
            for party in world.parties:
                await party.close()

    asyncio.run(main())


class Interrupting:
    """Passes calls on to a store; cancels `victim` before or after the call number `point`."""

    def __init__(self, store: Store, point: int):
        self._store = store
        self._point = point
        self._calls = 0
        self.victim: asyncio.Task[Any] | None = None
        self.struck = ""
        """The call beside which the victim was cancelled, if it was."""
        self.watched = False

    def _count(self, name: str) -> None:
        if self._calls == self._point and self.victim is not None:
            self.struck = name
            self.victim.cancel()
        self._calls += 1

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._store, name)
        if name == "watch":
            self.watched = True
            self._count(name)
            return attribute

        async def call(*args: Any, **options: Any) -> Any:
            self._count(name)
            result = await attribute(*args, **options)
            self._count(name)
            return result

        return call

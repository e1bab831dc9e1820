"""The engines of the store for the conformance suites: each gives a test one empty store.

An engine joins by one more entry in ENGINES. Time is a clock of the test's own, so that leases
expire when a test says so.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from ringhold.env import RealEnv
from ringhold.errors import (
    Conflict,
)
from ringhold.store.base import (
    Compare,
    Put,
    Snapshot,
    Store,
)
from ringhold.store.memory import open_memory_store
from ringhold.store.sqlite import open_sqlite_store
from ringhold.types import Entry

_names = itertools.count()


class Clock:
    """Stands still until a test moves it."""

    def __init__(self) -> None:
        self.now_ns = 10**18

    def monotonic_ns(self) -> int:
        return self.now_ns

    def boottime_ns(self) -> int:
        return self.now_ns

    def wall(self) -> float:
        return self.now_ns / 1e9

    def move(self, seconds: float) -> None:
        self.now_ns += int(seconds * 1e9)


class Env(RealEnv):
    def __init__(self) -> None:
        super().__init__()
        self.hands = Clock()
        self.clock = self.hands  # type: ignore[assignment]

    def stop(self) -> None:
        self._threads.shutdown()


@dataclass
class World:
    """One empty store of an engine, and how to open it again."""

    env: Env
    reopen: Callable[[], Awaitable[Store]]
    store: Store
    opened: list[Store] = field(default_factory=list)

    async def wait(self, seconds: float) -> None:
        """Lets time pass in a store that somebody who waits for leases keeps writing to."""
        for _ in range(int(seconds * 5)):
            self.env.hands.move(0.2)
            await self.store.expire_leases()

    async def another(self) -> Store:
        store = await self.reopen()
        self.opened.append(store)
        return store


@asynccontextmanager
async def memory_world(**options: Any) -> AsyncIterator[World]:
    name = f"conformance-{next(_names)}"
    env = Env()
    store = await open_memory_store(name, env, create=True, **options)
    yield World(env, lambda: open_memory_store(name, env, create=False), store)
    await store.close()
    env.stop()


@asynccontextmanager
async def sqlite_world(**options: Any) -> AsyncIterator[World]:
    directory = tempfile.mkdtemp(prefix="ringhold-store-")
    env = Env()
    try:
        store = await open_sqlite_store(directory, env, create=True, **options)
        yield World(env, lambda: open_sqlite_store(directory, env, create=False, **options), store)
        await store.close()
    finally:
        env.stop()
        shutil.rmtree(directory)


ENGINES = {"memory": memory_world, "sqlite": sqlite_world}


def on(engine: str, test: Callable[[World], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        async with ENGINES[engine](**options) as world:
            try:
                await test(world)
            finally:
                for store in world.opened:
                    await store.close()

    asyncio.run(main())


async def everything(store: Store) -> list[tuple[bytes, Entry]]:
    return await at_snapshot(store, lambda snapshot: snapshot.range(b"", b"\xff" * 9000))


async def at_snapshot(store: Store, read: Callable[[Snapshot], Awaitable[Any]]) -> Any:
    snapshot = await store.snapshot()
    try:
        return await read(snapshot)
    finally:
        await snapshot.close()


async def get(store: Store, key: bytes) -> Entry | None:
    result: Entry | None = await at_snapshot(store, lambda snapshot: snapshot.get(key))
    return result


async def put(store: Store, *keys: bytes, lease: bytes | None = None) -> int:
    return await store.commit(puts=[Put(key, b"value of " + key, lease) for key in keys])


async def conflicts(store: Store, *compares: Compare) -> bool:
    """Whether a commit with `compares` is refused; it must then have changed nothing."""
    before = await everything(store)
    try:
        await store.commit(compares=compares, puts=[Put(b"witness", b"")])
    except Conflict:
        assert await everything(store) == before
        return True
    await store.commit(deletes=[b"witness"])
    return False


def lease_id(number: int) -> bytes:
    return number.to_bytes(12, "big")

"""The engines of the store for the conformance suites: each gives a test one empty store.

An engine joins by one more entry in WORLDS. In memory and in SQLite time is a clock of the test's
own, so that leases expire when a test says so (CLOCKED); etcd has its own.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from etcd_engines import ETCD, ETCD_SERVERS, etcd_opener
from etcd_servers import shared_etcd

from ringhold.env import RealClock, RealEnv
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
    compact: Callable[[int], object] = lambda revision: None
    """Forgets what is older than the revision, in engines that do not by themselves."""
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


@asynccontextmanager
async def etcd_world(engine: str, **options: Any) -> AsyncIterator[World]:
    name = f"conformance-{next(_names)}"
    open_store = etcd_opener(engine)
    env = Env()
    # Deadlines of calls need a clock that goes.
    env.clock = RealClock()
    store = await open_store(name, env, create=True)
    compact = shared_etcd(*ETCD_SERVERS[engine]).compact
    yield World(env, lambda: open_store(name, env, create=False), store, compact)
    await store.close()
    env.stop()


WORLDS: dict[str, Callable[..., AbstractAsyncContextManager[World]]] = {
    "memory": memory_world,
    "sqlite": sqlite_world,
    **{engine: partial(etcd_world, engine) for engine in ETCD_SERVERS},
}
CLOCKED = ["memory", "sqlite"]
ENGINES = [*CLOCKED, *ETCD]


def is_now(engine: str, found: int, revision: int) -> bool:
    """Whether `found` is the newest revision, if `revision` is that of the store's last change. A
    server's moves also when the leases of other stores end."""
    return found == revision if engine in CLOCKED else found >= revision


def on(engine: str, test: Callable[[World], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        async with WORLDS[engine](**options) as world:
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


async def put_all(store: Store, puts: list[Put]) -> None:
    """In commits that every engine takes."""
    for start in range(0, len(puts), 100):
        await store.commit(puts=puts[start : start + 100])


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

"""Stores on etcd for tests that do harm: how they are opened, looked at and waited for."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

from cutting_proxy import CuttingProxy
from etcd_servers import Etcd

from ringhold.env import RealEnv
from ringhold.errors import Conflict, RingholdError, Unavailable
from ringhold.store.base import Absent, Compare, Put, Unchanged
from ringhold.store.etcd import open_etcd_store, parse_etcd_url
from ringhold.store.etcd.reading import EtcdSnapshot
from ringhold.store.etcd.store import EtcdStore
from ringhold.types import Entry

T = TypeVar("T")
WAIT_S = 30.0
LEASE = b"lease of 12b"

_names = itertools.count()


def fresh_name() -> str:
    return f"faults-{next(_names)}"


async def open_store(
    url: str, *, create: bool = False, timeout_s: float = 5.0, env: RealEnv | None = None
) -> EtcdStore:
    return await open_etcd_store(
        parse_etcd_url(url), env or RealEnv(), create=create, commit_timeout=timeout_s
    )


@asynccontextmanager
async def store_at(
    url: str, *, create: bool = True, timeout_s: float = 5.0, env: RealEnv | None = None
) -> AsyncIterator[EtcdStore]:
    store = await open_store(url, create=create, timeout_s=timeout_s, env=env)
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def store_behind(
    server: Etcd, proxy: CuttingProxy, *, timeout_s: float = 5.0, warm: bool = True
) -> AsyncIterator[EtcdStore]:
    """A new store that is reached through the proxy; `warm`: it has committed before, and has a
    lease for its nonces."""
    url = server.url(fresh_name(), endpoints=[proxy.endpoint])
    async with store_at(url, timeout_s=timeout_s) as store:
        if warm:
            await store.commit(puts=[Put(b"warm", b"")])
        try:
            yield store
        finally:
            proxy.lose_nothing()
            proxy.go_on()


async def snapshot_of(store: EtcdStore) -> EtcdSnapshot:
    """One whose revision is fixed."""
    snapshot = await store.snapshot()
    await snapshot.fix()
    return snapshot


async def entry(store: EtcdStore, key: bytes) -> Entry | None:
    snapshot = await store.snapshot()
    try:
        return await snapshot.get(key)
    finally:
        await snapshot.close()


async def value(store: EtcdStore, key: bytes) -> bytes | None:
    found = await entry(store, key)
    return None if found is None else found.value


async def increment(store: EtcdStore, key: bytes) -> int | None:
    """One try: the revision, or None when somebody else was first."""
    found = await entry(store, key)
    number = 0 if found is None else int(found.value)
    compare: Compare = Absent(key) if found is None else Unchanged(key, found.revision)
    try:
        return await store.commit(compares=[compare], puts=[Put(key, b"%d" % (number + 1))])
    except Conflict:
        return None


async def failure(awaitable: Awaitable[object]) -> BaseException:
    """The error that comes of it."""
    try:
        result = await awaitable
    except RingholdError as error:
        return error
    raise AssertionError(f"it went well: {result!r}")


async def until(condition: Callable[[], object], what: str, timeout_s: float = WAIT_S) -> None:
    """Looks again and again, for what nobody announces."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"never came: {what}"
        await asyncio.sleep(0.005)


async def until_works(operation: Callable[[], Awaitable[T]], timeout_s: float = WAIT_S) -> T:
    """Repeats what may fail for now; its result."""
    async with asyncio.timeout(timeout_s):
        while True:
            with suppress(Unavailable):
                return await operation()
            await asyncio.sleep(0.05)


async def settled(task: asyncio.Task[T]) -> T | BaseException:
    """How a task of the test ended."""
    await asyncio.wait([task])
    try:
        return task.result()
    except BaseException as error:
        return error


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs a test, which must leave neither a task nor a thread of the engine."""
    before = set(threading.enumerate())

    async def checked() -> None:
        await main()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"tasks are left: {left}"

    asyncio.run(checked())
    deadline = time.monotonic() + 5
    while left := {each for each in set(threading.enumerate()) - before if is_ours(each)}:
        assert time.monotonic() < deadline, f"threads are left: {left}"
        time.sleep(0.01)


def is_ours(thread: threading.Thread) -> bool:
    # Those of an environment live as long as that, those of a proxy as long as its test.
    return not thread.name.startswith(("ringhold_", "cutting proxy", "listening"))


class FirstEndpoint(RealEnv):
    """With which a store begins at the first endpoint of its URL, not at any."""

    def __init__(self) -> None:
        super().__init__()
        self._drawn = False

    def random_bytes(self, count: int) -> bytes:
        drawn, self._drawn = self._drawn, True
        return super().random_bytes(count) if drawn else bytes(count)


async def begun(proxy: CuttingProxy) -> None:
    """Something more was sent, which nobody answers."""
    requests = proxy.requests
    await until(lambda: proxy.requests > requests, "a request")

"""Goal: who asks for a lock while the store is silent is told that, and not that others have it.

Method: an etcd that is stopped, and the commit lock of an embedded store that stays taken. Every
way to wait for a limited time is tried at once, for locks that nobody else has. `long`: those that
are no locks of a session's, which take back what they asked for, and so wait for the store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from etcd_servers import etcd

import ringhold
from ringhold.errors import StoreUnavailable
from ringhold.store.lock_files import CommitLock

WAIT_S = 0.3


class Silence(NamedTuple):
    url: str
    begin: Callable[[], object]
    end: Callable[[], object]


@contextmanager
def etcd_stopped(tmp_path: Path) -> Iterator[Silence]:
    with etcd() as server:
        (member,) = server.members
        yield Silence(server.url("silent"), member.stop, member.cont)


@contextmanager
def commit_lock_taken(tmp_path: Path) -> Iterator[Silence]:
    directory = tmp_path / "cluster"
    with ExitStack() as taken:

        def take() -> None:
            lock = CommitLock(str(directory / "locks"))
            taken.callback(lock.close)
            lock.acquire()
            lock.sign()

        yield Silence(str(directory), take, taken.close)


async def locks(cluster: ringhold.aio.Cluster) -> dict[str, Awaitable[object]]:
    held = await cluster.lock("held", mode="shared").acquire()
    assert held
    return {
        "try_acquire": cluster.lock("tried").try_acquire(),
        "acquire": cluster.lock("awaited").acquire(timeout=WAIT_S),
        "with": cluster.lock("entered", timeout=WAIT_S).__aenter__(),
        "upgrade": held.upgrade(timeout=WAIT_S),
        "lock_many": cluster.lock_many(["one", "two"]).acquire(timeout=WAIT_S),
    }


async def slots(cluster: ringhold.aio.Cluster) -> dict[str, Awaitable[object]]:
    await cluster.fs._pipe_file("/file", b"")
    return {
        "semaphore": cluster.semaphore("slots", 2).acquire(timeout=WAIT_S),
        "election": cluster.election("leader").campaign(timeout=WAIT_S),
        "fs.lock": cluster.fs.lock("/file", timeout=WAIT_S).__aenter__(),
    }


@pytest.mark.parametrize("ask", [locks, pytest.param(slots, marks=pytest.mark.long)])
@pytest.mark.parametrize("fault", [etcd_stopped, commit_lock_taken])
def test_silence_of_the_store_is_not_taken_for_somebody_else_s_lock(
    fault: Callable[[Path], AbstractContextManager[Silence]],
    ask: Callable[[ringhold.aio.Cluster], Awaitable[dict[str, Awaitable[object]]]],
    tmp_path: Path,
) -> None:
    async def main(silence: Silence) -> None:
        async with await ringhold.aio.create(silence.url, session_ttl=60) as cluster:
            asked = await ask(cluster)
            silence.begin()
            try:
                found = await asyncio.gather(*asked.values(), return_exceptions=True)
            finally:
                silence.end()
            for name, result in zip(asked, found, strict=True):
                assert isinstance(result, StoreUnavailable), (name, result)

    with fault(tmp_path) as silence:
        asyncio.run(main(silence))

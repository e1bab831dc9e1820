"""Goal: a cluster of one event loop, used on another, says so and loses nothing.

Method: a cluster in a directory is used from a thread with a loop of its own while a lock is
held, and again after the loop that opened it has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import ringhold


async def lock(cluster: ringhold.aio.Cluster) -> None:
    await cluster.lock("other").acquire()


async def semaphore(cluster: ringhold.aio.Cluster) -> None:
    await cluster.semaphore("other", 1).acquire()


async def put(cluster: ringhold.aio.Cluster) -> None:
    await cluster.kv.put("key", b"value")


async def get(cluster: ringhold.aio.Cluster) -> None:
    await cluster.kv.get("key")


@pytest.mark.parametrize("use", [lock, semaphore, put, get])
def test_use_on_another_loop_is_refused_and_nothing_is_lost(
    tmp_path: Path, use: Callable[[ringhold.aio.Cluster], Awaitable[Any]]
) -> None:
    def elsewhere(cluster: ringhold.aio.Cluster) -> None:
        with pytest.raises(RuntimeError, match="another event loop"):
            asyncio.run(use(cluster))

    async def main() -> None:
        async with (
            asyncio.timeout(60),
            ringhold.aio.open(str(tmp_path / "c")) as cluster,
            cluster.lock("precious") as grant,
        ):
            await asyncio.to_thread(elsewhere, cluster)
            await use(cluster)
            grant.check()

    asyncio.run(main())


@pytest.mark.parametrize("name", ["kept", "new"])
def test_use_after_the_loop_has_ended(tmp_path: Path, name: str) -> None:
    async def start() -> ringhold.aio.Cluster:
        cluster = await ringhold.aio.open(str(tmp_path / "c"))
        async with cluster.lock("kept"):
            return cluster

    async def use() -> None:
        async with cluster.lock(name, timeout=5):
            raise AssertionError("entered on another loop")

    with asyncio.Runner() as runner:
        cluster = runner.run(start())
        with pytest.raises(RuntimeError, match="another event loop"):
            asyncio.run(use())
        runner.run(cluster.close())

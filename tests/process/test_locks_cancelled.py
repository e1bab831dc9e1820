"""Goal: tasks that are cancelled at any moment of their acquiring, holding or releasing a lock
leave nothing held and nobody in a queue.

Method: a thousand tasks take few locks in turn and each is cancelled at a random moment; where
it was then is counted. Whoever is inside a lock says so in a table that must never have two.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import ringhold
from ringhold import aio

TASKS = 1000
NAMES = ("a", "b", "c", "d", "e")
SPREAD_S = 2.0
AIMS = {1: "holding", 2: "releasing"}
"""Few are inside at a time, and strikes at any moment would seldom hit one of them: two tasks of
fifty are struck when they come there."""


class Crowd:
    """The tasks, and where each of them is."""

    def __init__(self, cluster: aio.Cluster, seed: int):
        self.cluster = cluster
        self.chance = random.Random(seed)
        self.inside: dict[str, int] = {}
        self.together: list[str] = []
        self.place: dict[int, str] = {}
        self.cancelled: Counter[str] = Counter()
        self.tokens: dict[str, int] = {}

    async def live(self, number: int) -> None:
        while True:
            name = self.chance.choice(NAMES)
            lock = self.cluster.lock(name)
            self.place[number] = "acquiring"
            async with lock as grant:
                self.enter(name, number, grant)
                self.move(number, "holding")
                try:
                    await asyncio.sleep(self.chance.choice((0, 0.0005)))
                finally:
                    del self.inside[name]
                self.move(number, "releasing")

    def move(self, number: int, place: str) -> None:
        self.place[number] = place
        if AIMS.get(number % 50) == place:
            task = asyncio.current_task()
            assert task is not None
            delay_s = self.chance.choice((0, self.chance.uniform(0, 0.002)))
            asyncio.get_running_loop().call_later(delay_s, self.strike, number, task)

    def enter(self, name: str, number: int, grant: Any) -> None:
        if name in self.inside:
            self.together.append(f"{name}: {self.inside[name]} and {number}")
        if grant.token <= self.tokens.get(name, 0):
            self.together.append(f"{name}: token {grant.token} after {self.tokens[name]}")
        self.inside[name] = number
        self.tokens[name] = grant.token

    def strike(self, number: int, task: asyncio.Task[None]) -> None:
        if not task.done() and not task.cancelling():
            self.cancelled[self.place.get(number, "not begun")] += 1
            task.cancel()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        tasks = [asyncio.create_task(self.live(number)) for number in range(TASKS)]
        for number, task in enumerate(tasks):
            if number % 50 == 0:
                # Before it has run a single step.
                self.strike(number, task)
            elif number % 50 not in AIMS:
                loop.call_later(self.chance.uniform(0, SPREAD_S), self.strike, number, task)
        async with asyncio.timeout(60):
            ends = await asyncio.gather(*tasks, return_exceptions=True)
        wrong = [end for end in ends if not isinstance(end, asyncio.CancelledError)]
        assert wrong == []


async def left(cluster: aio.Cluster) -> list[ringhold.LockParty]:
    """Whoever holds or awaits one of the locks."""
    parties: list[ringhold.LockParty] = []
    for name in NAMES:
        parties += await cluster.locks.holders(name)
        parties += await cluster.locks.waiters(name)
    return parties


async def cancelled_crowd(cluster: aio.Cluster) -> None:
    crowd = Crowd(cluster, seed=5)
    await crowd.run()
    assert crowd.together == []
    assert crowd.tokens, "nobody ever got a lock"
    async with asyncio.timeout(10):
        while await left(cluster):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    for name in NAMES:
        grant = await cluster.lock(name).acquire(timeout=5)
        assert grant is not None, f"{name} is held by nobody and cannot be had"
        assert grant.token > crowd.tokens.get(name, 0)
        await grant.release()
    # The fault was there. A release that awaits nothing cannot be struck.
    assert crowd.cancelled.total() == TASKS
    assert min(crowd.cancelled["acquiring"], crowd.cancelled["holding"]) >= 5, crowd.cancelled


def test_a_thousand_tasks_cancelled_at_random(tmp_path: Path) -> None:
    async def main() -> None:
        async with ringhold.aio.create(str(tmp_path / "c")) as cluster:
            await cancelled_crowd(cluster)
            # Nothing is left for anybody else either.
            async with ringhold.aio.open(str(tmp_path / "c"), create=False) as other:
                for name in NAMES:
                    async with other.lock(name, timeout=10):
                        pass

    asyncio.run(main())


def test_a_thousand_tasks_cancelled_at_random_in_memory() -> None:
    async def main() -> None:
        async with ringhold.aio.create("memory://cancelled") as cluster:
            await cancelled_crowd(cluster)

    asyncio.run(main())


@pytest.mark.parametrize("mode", ["exclusive", "shared"])
def test_a_cancelled_waiter_frees_those_behind_it(tmp_path: Path, mode: str) -> None:
    """A reader waits only because of the writer in front of it, who gives up."""

    async def main() -> None:
        async with ringhold.aio.create(str(tmp_path / "c")) as cluster:
            holder = await cluster.lock("a", mode="shared", owner=1).acquire()
            assert holder is not None
            writer = asyncio.create_task(cluster.lock("a", owner=2).acquire())
            await waiting(cluster, 1)
            behind = asyncio.create_task(cluster.lock("a", owner=3, mode=mode).acquire())
            await waiting(cluster, 2)
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
            assert writer.cancelled()
            if mode == "exclusive":
                await waiting(cluster, 1)
                await holder.release()
            async with asyncio.timeout(10):
                assert await behind is not None

    asyncio.run(main())


async def waiting(cluster: aio.Cluster, count: int) -> None:
    async with asyncio.timeout(10):
        while len(await cluster.locks.waiters("a")) != count:  # noqa: ASYNC110
            await asyncio.sleep(0.002)

"""Goal: the async face of locks: owned by tasks, cancelled at any time, told of losses.

Method: clusters in memory through the public interface, several tasks each.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import ringhold
from ringhold.errors import Closed, DeadlockError, InvalidInput, LockLost, LockTimeout, NotOwned

_names = itertools.count()


def on_cluster(test: Callable[[ringhold.aio.Cluster], Awaitable[None]]) -> None:
    async def main() -> None:
        async with (
            asyncio.timeout(60),
            ringhold.aio.create(f"memory://lockasync{next(_names)}") as cluster,
        ):
            await test(cluster)

    asyncio.run(main())


def test_tasks_own_locks() -> None:
    async def test(cluster: ringhold.aio.Cluster) -> None:
        lock = cluster.lock("x", timeout=5)
        async with lock as grant:
            assert lock.owned()
            assert await lock.locked()
            assert isinstance(grant.lost, asyncio.Event)
            with pytest.raises(DeadlockError):
                await cluster.lock("x").acquire()

            async def other() -> None:
                assert not lock.owned()
                assert await lock.try_acquire() is None
                with pytest.raises(LockTimeout):
                    async with cluster.lock("x", timeout=0.01):
                        raise AssertionError("entered without the lock")

            await asyncio.create_task(other())
        assert not await lock.locked()
        # Cancelled from outside, as asyncio.timeout does it.
        async with cluster.lock("x", owner=9):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await lock.acquire()
            assert await cluster.locks.waiters("x") == []
        assert await cluster.locks.break_("x") is False
        broken = await lock.acquire()
        assert broken is not None
        assert await cluster.locks.break_("x")
        await broken.lost.wait()
        with pytest.raises(LockLost):
            await lock.release()

    on_cluster(test)


def test_a_grant_is_a_context_manager_that_releases() -> None:
    async def test(cluster: ringhold.aio.Cluster) -> None:
        lock = cluster.lock("x")
        grant = await lock.acquire()
        assert grant
        async with grant as same:
            assert same is grant
            assert lock.owned()
        assert grant.released
        assert not lock.owned()
        with pytest.raises(NotOwned):
            await grant.release()
        async with lock as early:
            await early.release()
        with pytest.raises(NotOwned):
            await lock.release()

    on_cluster(test)


def test_upgrading_downgrading_and_counting() -> None:
    async def test(cluster: ringhold.aio.Cluster) -> None:
        shared = cluster.lock("x", mode="shared", reentrant=True)
        async with shared as grant, shared as inner:
            assert grant.token == inner.token
            before = grant.token
            assert await inner.upgrade(timeout=5) == grant.token > before
            assert grant.mode == inner.mode == "exclusive"
            assert await cluster.lock("x", mode="shared", owner=2).try_acquire() is None
            exclusive = grant.token
            assert await grant.downgrade() > exclusive
            async with cluster.lock("x", mode="shared", owner=2) as other:
                with pytest.raises(LockTimeout):
                    await grant.upgrade(timeout=0.02)
                upgrade = asyncio.create_task(grant.upgrade())
                while not await cluster.locks.waiters("x"):  # noqa: ASYNC110
                    await asyncio.sleep(0)
                with pytest.raises(DeadlockError):
                    await other.upgrade()
            assert await upgrade == grant.token
            for timeout in (-3, float("nan")):
                with pytest.raises(InvalidInput):
                    await grant.upgrade(timeout=timeout)
        with pytest.raises(NotOwned):
            await grant.upgrade()
        assert not await shared.locked()

    on_cluster(test)


def test_a_loss_is_told_by_event_callback_check_and_the_end_of_the_block() -> None:
    async def test(cluster: ringhold.aio.Cluster) -> None:
        told: list[Any] = []

        def fails(grant: ringhold.aio.Grant) -> None:
            told.append(grant)
            raise ZeroDivisionError

        async def lose() -> None:
            async with cluster.lock("x", reentrant=True) as grant:
                inner = await cluster.lock("x", reentrant=True).acquire()
                assert inner is not None
                inner.on_lost(fails)
                inner.on_lost(told.append)
                assert await cluster.locks.break_("x")
                assert grant.lost.is_set()
                assert inner.lost.is_set()
                assert told == [inner, inner]
                with pytest.raises(LockLost):
                    grant.check()
                inner.on_lost(told.append)
                assert len(told) == 3
                with pytest.raises(LockLost):
                    await inner.release()
                told.append(grant.token)

        with pytest.raises(LockLost) as caught:
            await lose()
        assert caught.value.token == told.pop()
        assert len(told) == 3

        async def fail() -> None:
            async with cluster.lock("x") as grant:
                await cluster.locks.break_("x")
                grant.on_lost(told.append)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError) as error:
            await fail()
        assert any("lost" in note for note in error.value.__notes__)
        with pytest.raises(TypeError):
            told[0].on_lost("x")

    on_cluster(test)


@pytest.mark.parametrize("nested", [False, True])
def test_cancel_on_lost_ends_the_block_with_the_loss(nested: bool) -> None:
    async def test(cluster: ringhold.aio.Cluster) -> None:
        lock = cluster.lock("x", cancel_on_lost=True, reentrant=True)
        entered = asyncio.Event()

        async def work() -> str:
            try:
                async with lock:
                    if nested:
                        async with lock:
                            pass
                    entered.set()
                    await asyncio.Event().wait()
            except LockLost:
                # The cancellation is used up: the task goes on.
                await asyncio.sleep(0)
                return "lost"
            return "left"

        task = asyncio.create_task(work())
        await entered.wait()
        assert await cluster.locks.break_("x")
        assert await task == "lost"

    on_cluster(test)


def test_cancel_on_lost_takes_no_other_cancellation_for_its_own() -> None:
    async def test(cluster: ringhold.aio.Cluster) -> None:
        lock = cluster.lock("x", cancel_on_lost=True, owner=5)
        entered = asyncio.Event()

        async def work() -> None:
            async with lock:
                entered.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(work())
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not await lock.locked()
        # Left in time: whatever comes later cancels nobody.
        async with lock as grant:
            await grant.release()
        assert await cluster.lock("x").acquire() is not None
        await cluster.locks.break_("x")
        await asyncio.sleep(0.05)

    on_cluster(test)


def test_a_thousand_cancelled_tasks_leave_nothing() -> None:
    async def test(cluster: ringhold.aio.Cluster) -> None:
        inside = 0

        async def work(number: int) -> None:
            nonlocal inside
            mode = "shared" if number % 3 == 0 else "exclusive"
            async with cluster.lock("x", mode=mode):
                inside += 1
                await asyncio.sleep(0)

        tasks = []
        for number in range(1000):
            tasks.append(asyncio.create_task(work(number)))
            if number % 7 == 0:
                await asyncio.sleep(0)
            tasks[number * 31 % len(tasks)].cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(each) for each in outcomes} <= {type(None), asyncio.CancelledError}
        assert any(isinstance(each, asyncio.CancelledError) for each in outcomes)
        assert inside > 0
        assert await cluster.locks.holders("x") == []
        assert await cluster.locks.waiters("x") == []
        async with cluster.lock("x", timeout=0):
            pass

    on_cluster(test)


def test_one_owner_in_two_tasks_waits_for_one_lock_at_a_time() -> None:
    async def test(cluster: ringhold.aio.Cluster) -> None:
        async with cluster.lock("x", owner=1), cluster.lock("y", owner=1):
            waiting = asyncio.create_task(cluster.lock("x", owner=2).acquire())
            while not await cluster.locks.waiters("x"):  # noqa: ASYNC110
                await asyncio.sleep(0)
            with pytest.raises(InvalidInput):
                await cluster.lock("y", owner=2).acquire()
            with pytest.raises(DeadlockError):
                await cluster.lock("x", owner=2).acquire()
        grant = await waiting
        assert grant is not None
        async with cluster.lock("y", timeout=5):
            grant.check()

    on_cluster(test)


def test_closing_wakes_the_waiters_and_the_upgrading() -> None:
    async def main() -> None:
        cluster = await ringhold.aio.create(f"memory://lockasync{next(_names)}")
        grants = [await cluster.lock("x", mode="shared", owner=owner).acquire() for owner in (1, 2)]
        assert grants[0] is not None
        tasks = [
            asyncio.create_task(cluster.lock("x", owner=3).acquire()),
            asyncio.create_task(grants[0].upgrade()),
        ]
        while len(await cluster.locks.waiters("x")) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0)
        await cluster.close()
        for task in tasks:
            with pytest.raises(Closed):
                await task
        assert grants[0].lost.is_set()
        with pytest.raises((Closed, LockLost)):
            await grants[0].release()

    asyncio.run(main())


def test_a_callback_that_nobody_would_await_is_refused() -> None:
    async def main() -> None:
        cluster = await ringhold.aio.create("memory://lock-callbacks")

        async def tell(told: object) -> None:
            raise AssertionError

        async with cluster, cluster.lock("x") as grant:
            with pytest.raises(TypeError, match="plain function"):
                grant.on_lost(tell)

    asyncio.run(main())

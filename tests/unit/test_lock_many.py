"""Goal: several locks are held together or not at all, and wanting them never deadlocks.

Method: two clusters on one store of each engine, through the public interface; giving up is tried
at every step of the loop, by cancellation at random moments, and by a real SIGINT. What counts as
"nothing held" is that somebody else gets every lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import signal
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from etcd_engines import ETCD_ABOVE, cluster_at
from threads import in_thread

import ringhold
from ringhold.env import real_env
from ringhold.errors import (
    Closed,
    DeadlockError,
    InvalidInput,
    LockLost,
    LockTimeout,
    NotOwned,
)

_names = itertools.count()
WAIT_S = 20


@pytest.fixture(params=["memory", "sqlite", *ETCD_ABOVE])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, dict[str, Any]]:
    return cluster_at(request.param, f"many{next(_names)}", tmp_path)


@pytest.fixture
def url(where: tuple[str, dict[str, Any]]) -> str:
    return where[0]


@pytest.fixture
def cluster(where: tuple[str, dict[str, Any]]) -> Iterator[ringhold.Cluster]:
    url, options = where
    with ringhold.create(url, **options) as made:
        yield made


@pytest.fixture
def other(cluster: ringhold.Cluster, url: str) -> Iterator[ringhold.Cluster]:
    with ringhold.open(url) as made:
        yield made


def assert_free(cluster: ringhold.Cluster, *names: str) -> None:
    """Somebody else gets each lock, and nobody waits for it."""
    for name in names:
        assert cluster.locks.waiters(name) == []
        grant = cluster.lock(name, owner=99).acquire(timeout=WAIT_S)
        assert grant is not None, name
        grant.release()


def test_all_are_held_in_the_order_of_the_names(
    cluster: ringhold.Cluster, other: ringhold.Cluster
) -> None:
    many = cluster.lock_many(["b", b"a", "b", "c", b"b"], timeout=5)
    assert many.names == ("b", "a", "c")
    with many as grants:
        assert grants
        assert isinstance(grants, Sequence)
        assert [grant.name for grant in grants] == ["b", "a", "c"]
        assert grants.tokens == tuple(grant.token for grant in grants)
        assert grants[0].name == "b"
        assert [grant.name for grant in grants[1:]] == ["a", "c"]
        assert len(grants) == len(set(grants.tokens)) == 3
        grants.check()
        for name in "abc":
            assert in_thread(other.lock(name).try_acquire) is None
        assert in_thread(cluster.lock_many(["c", "d"]).try_acquire) is None
    with pytest.raises(NotOwned):
        grants.release()
    with pytest.raises(NotOwned):
        grants.check()
    assert_free(other, *"abcd")


def test_none_is_held_when_one_cannot_be_had(
    cluster: ringhold.Cluster, other: ringhold.Cluster
) -> None:
    with other.lock("b"):
        assert cluster.lock_many(["c", "a", "b"]).try_acquire() is None
        assert cluster.lock_many(["c", "a", "b"]).acquire(timeout=0.05) is None
        begun = time.monotonic()
        assert cluster.lock_many(["a", "b", "c"], timeout=0.3).acquire() is None
        # One timeout for all of them; the upper bound only tells it from one for each.
        assert 0.3 <= time.monotonic() - begun < 10
        with (
            pytest.raises(LockTimeout) as caught,
            cluster.lock_many(["a", "b"], timeout=0.05),
        ):
            raise AssertionError("entered without the locks")
        assert caught.value.name == "b"
        assert_free(other, "a", "c")
    grants = cluster.lock_many(["a", "b", "c"]).acquire(timeout=WAIT_S)
    assert grants is not None
    grants.release()
    assert_free(other, "a", "b", "c")


def test_opposite_orders_do_not_deadlock(
    cluster: ringhold.Cluster, other: ringhold.Cluster
) -> None:
    # The fault is proved first: taken one by one in opposite orders, both wait for each other.
    with cluster.lock("a"), other.lock("b", owner=1):
        both = [
            in_thread(lambda: cluster.lock("b", owner=2).acquire(timeout=0.1)),
            in_thread(lambda: other.lock("a", owner=1).acquire(timeout=0.1)),
        ]
        assert both == [None, None]
    rounds = 8
    failures: list[Any] = []
    inside: list[int] = []

    def work(where: ringhold.Cluster, names: list[str], me: int) -> None:
        try:
            for _ in range(rounds):
                with where.lock_many(names, timeout=60):
                    inside.append(me)
                    assert inside == [me]
                    inside.pop()
        except BaseException as error:
            failures.append(error)

    threads = [
        threading.Thread(target=work, args=(where, names, number))
        for number, (where, names) in enumerate(
            [(cluster, ["a", "b", "c"]), (other, ["c", "b", "a"]), (other, ["b", "a", "c"])]
        )
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert failures == []


def test_a_lock_held_already_is_found_and_stays_held(
    cluster: ringhold.Cluster, other: ringhold.Cluster
) -> None:
    with cluster.lock("b") as grant:
        for attempt in (
            cluster.lock_many(["a", "b", "c"]).acquire,
            cluster.lock_many(["a", "b", "c"]).__enter__,
        ):
            with pytest.raises(DeadlockError):
                attempt()
        grant.check()
        assert cluster.lock("b").owned()
        assert_free(other, "a", "c")
    mine = cluster.lock_many(["a", "b"], owner=5).acquire()
    assert mine is not None
    assert cluster.lock("a", owner=5).owned()
    assert not cluster.lock("a").owned()
    in_thread(mine.release)
    assert_free(other, "a", "b")


def test_all_are_released_even_if_one_was_lost(
    cluster: ringhold.Cluster, other: ringhold.Cluster
) -> None:
    def lose(grants: ringhold.Grants) -> None:
        assert other.locks.break_("b")
        assert grants[1].lost.wait(WAIT_S)

    grants = cluster.lock_many(["a", "b", "c"]).acquire()
    assert grants is not None
    lose(grants)
    with pytest.raises(LockLost):
        grants.check()
    with pytest.raises(LockLost):
        grants.release()
    assert_free(other, "a", "b", "c")
    with pytest.raises(LockLost), cluster.lock_many(["a", "b", "c"]) as grants:
        lose(grants)
    assert_free(other, "a", "b", "c")

    def fail(grants: ringhold.Grants) -> None:
        lose(grants)
        raise ZeroDivisionError

    with (
        pytest.raises(ZeroDivisionError) as caught,
        cluster.lock_many(["a", "b", "c"]) as grants,
    ):
        fail(grants)
    assert any("lost" in note for note in caught.value.__notes__)
    assert_free(other, "a", "b", "c")


def test_released_early_or_one_by_one(cluster: ringhold.Cluster, other: ringhold.Cluster) -> None:
    many = cluster.lock_many(["a", "b"])
    with many as grants:
        grants.release()
    with many as grants:
        grants[0].release()
        assert_free(other, "a")
    with many.acquire() as grants:  # type: ignore[union-attr]
        grants.check()
    assert_free(other, "a", "b")


def test_bad_input(cluster: ringhold.Cluster) -> None:
    with pytest.raises(InvalidInput):
        cluster.lock_many([])
    for wrong in ("abc", b"abc", None, 5, ["a", None], [1], ["a", ["b"]]):
        with pytest.raises(TypeError):
            cluster.lock_many(wrong)  # type: ignore[arg-type]
    for name in ("", b"", "x" * (64 << 10), "\ud800"):
        with pytest.raises(InvalidInput):
            cluster.lock_many(["a", name])
    for options in ({"mode": "x"}, {"timeout": -2}, {"timeout": float("nan")}, {"owner": 0}):
        with pytest.raises(InvalidInput):
            cluster.lock_many(["a"], **options)  # type: ignore[arg-type]
    for options in ({"mode": 1}, {"timeout": "1"}, {"owner": "a"}):
        with pytest.raises(TypeError):
            cluster.lock_many(["a"], **options)  # type: ignore[arg-type]
    many = cluster.lock_many(name for name in ("nul\0\udcff", "x" * 4095))
    with pytest.raises(ValueError, match="blocking"):
        many.acquire(blocking=False, timeout=1)
    with many as grants:
        assert grants[0].name == "nul\0\udcff"
    cluster.close()
    for call in (lambda: cluster.lock_many(["a"]), many.acquire):
        with pytest.raises(Closed):
            call()


def test_an_interrupt_while_it_waits_leaves_nothing_held(
    cluster: ringhold.Cluster, other: ringhold.Cluster
) -> None:
    many = cluster.lock_many(["a", "b", "c"])

    def interrupt() -> None:
        while not other.locks.waiters("b"):
            pass
        os.kill(os.getpid(), signal.SIGINT)

    for attempt in (many.acquire, many.__enter__):
        with other.lock("b", owner=1):
            thread = threading.Thread(target=interrupt)
            thread.start()
            with pytest.raises(KeyboardInterrupt):
                attempt()
            thread.join()
            assert_free(other, "a", "c")
        assert_free(other, "a", "b", "c")


class GrantedThenInterrupted:
    """A lock whose `acquire` is left by an interrupt when the lock is held already."""

    def __init__(self, lock: ringhold.Lock):
        self._lock = lock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lock, name)

    def acquire(self, **options: Any) -> None:
        assert self._lock.acquire(**options)
        raise KeyboardInterrupt


def test_an_interrupt_between_grant_and_its_receipt_leaves_nothing_held(
    cluster: ringhold.Cluster,
) -> None:
    def make(name: bytes) -> Any:
        lock = cluster.lock(name)
        return GrantedThenInterrupted(lock) if name == b"b" else lock

    many = ringhold.LockMany(["a", "b", "c"], make, real_env())
    with pytest.raises(KeyboardInterrupt):
        many.acquire()
    assert_free(cluster, "a", "b", "c")
    with cluster.lock("b") as grant:
        with pytest.raises(DeadlockError):
            many.acquire()
        grant.check()


BEFORE_LEAVING = {"__exit__", "leave_block", "uninterrupted"}
"""An interrupt may strike before the first instruction that could do anything about it."""


def test_interrupts_at_random_moments_leave_nothing_held(cluster: ringhold.Cluster) -> None:
    chance = random.Random(11)
    many = cluster.lock_many(["a", "b", "c"], timeout=30)
    struck = {"in time": 0, "before leaving": 0}
    for _ in range(60):
        entered: list[ringhold.Grants] = []
        moment_s = chance.random() * 0.01
        timer = threading.Timer(moment_s, os.kill, (os.getpid(), signal.SIGINT))
        try:
            timer.start()
            with many as grants:
                entered.append(grants)
            timer.join()
        except KeyboardInterrupt as interrupt:
            innermost = traceback.extract_tb(interrupt.__traceback__)[-1]
            if entered and innermost.name in BEFORE_LEAVING and not entered[0].released:
                struck["before leaving"] += 1
                entered[0].release()
            else:
                struck["in time"] += 1
        finally:
            with contextlib.suppress(KeyboardInterrupt):
                timer.join()
        assert not any(cluster.lock(name).owned() for name in "abc")
        assert_free(cluster, *"abc")
    assert struck["in time"] > 10 * struck["before leaving"]


async def assert_free_async(cluster: ringhold.aio.Cluster, *names: str) -> None:
    for name in names:
        assert await cluster.locks.waiters(name) == []
        grant = await cluster.lock(name, owner=99).acquire(timeout=WAIT_S)
        assert grant is not None, name
        await grant.release()


def test_the_async_face(url: str) -> None:
    async def main() -> None:
        async with (
            ringhold.aio.create(url) as cluster,
            ringhold.aio.open(url) as other,
        ):
            many = cluster.lock_many(["b", "a", "b"], timeout=5)
            async with many as grants:
                assert [grant.name for grant in grants] == ["b", "a"]
                assert len(grants.tokens) == 2
                grants.check()
                assert await other.lock_many(["c", "a"]).try_acquire() is None
                with pytest.raises(LockTimeout):
                    async with other.lock_many(["c", "a"], timeout=0.02):
                        raise AssertionError("entered without the locks")
                with pytest.raises(DeadlockError):
                    await cluster.lock_many(["c", "b"]).acquire()
                await assert_free_async(other, "c")
            await assert_free_async(other, "a", "b", "c")

            async def lose() -> None:
                async with many as grants:
                    assert await other.locks.break_("a")
                    await asyncio.wait_for(grants[1].lost.wait(), WAIT_S)

            with pytest.raises(LockLost):
                await lose()
            await assert_free_async(other, "a", "b", "c")

            async def work(where: ringhold.aio.Cluster, names: list[str]) -> None:
                for _ in range(6):
                    async with where.lock_many(names, timeout=60):
                        await asyncio.sleep(0)

            async with asyncio.TaskGroup() as group:
                group.create_task(work(cluster, ["a", "b", "c"]))
                group.create_task(work(other, ["c", "b", "a"]))
                group.create_task(work(other, ["b", "c", "a"]))

    asyncio.run(main())


@pytest.mark.parametrize("contended", [False, True])
def test_cancelled_at_every_step_of_the_loop(contended: bool) -> None:
    async def main() -> None:
        async with ringhold.aio.create(f"memory://many{next(_names)}") as cluster:
            cancelled = 0
            for steps in itertools.count():
                blocking = await cluster.lock("b", owner=1).acquire() if contended else None
                task = asyncio.create_task(cluster.lock_many(["a", "b", "c"]).acquire())
                for step in range(steps):
                    if step == 15 and blocking is not None:
                        await blocking.release()
                        blocking = None
                    await asyncio.sleep(0)
                done = task.done()
                task.cancel()
                try:
                    grants = await task
                except asyncio.CancelledError:
                    cancelled += 1
                else:
                    assert grants is not None
                    await grants.release()
                if blocking is not None:
                    await blocking.release()
                await assert_free_async(cluster, "a", "b", "c")
                if done:
                    break
            # Locks that are at hand take few steps.
            assert cancelled >= 1

    asyncio.run(main())


def test_cancelled_at_random_moments(url: str) -> None:
    async def main() -> None:
        chance = random.Random(7)
        async with ringhold.aio.create(url) as cluster, ringhold.aio.open(url) as other:
            outcomes = {"cancelled": 0, "held": 0}

            async def one(where: ringhold.aio.Cluster, names: list[str]) -> None:
                try:
                    async with asyncio.timeout(chance.random() * 0.08), where.lock_many(names):
                        outcomes["held"] += 1
                        await asyncio.sleep(chance.random() * 0.002)
                except TimeoutError:
                    outcomes["cancelled"] += 1

            for _ in range(8):
                async with asyncio.TaskGroup() as group:
                    for number in range(6):
                        names = chance.sample(["a", "b", "c", "d"], 3)
                        group.create_task(one((cluster, other)[number % 2], names))
                await assert_free_async(other, "a", "b", "c", "d")
            assert min(outcomes.values()) > 0, outcomes

    asyncio.run(main())

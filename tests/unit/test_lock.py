"""Goal: a lock has the manners of threading.Lock, and a block is never entered without it.

Method: clusters in memory through the public interface; threads for the blocking face, tasks
for the async one; a real SIGINT for the interrupt.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import ringhold
from ringhold.errors import (
    Closed,
    DeadlockError,
    InvalidInput,
    LockLost,
    LockTimeout,
    NotOwned,
)

_names = itertools.count()


@pytest.fixture
def cluster() -> Iterator[ringhold.Cluster]:
    with ringhold.create(f"memory://lock{next(_names)}") as made:
        yield made


def in_thread(function: Callable[[], Any]) -> Any:
    """What `function` returns or raises on a thread of its own."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(function())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    return outcome[0]


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_block_holds_the_lock(cluster: ringhold.Cluster) -> None:
    lock = cluster.lock("x", timeout=5)
    assert not lock.locked()
    with lock as grant:
        assert grant
        assert grant.token & 1
        assert (grant.name, grant.mode) == ("x", "exclusive")
        assert lock.locked()
        assert lock.owned()
        assert in_thread(lock.owned) is False
        assert in_thread(lock.try_acquire) is None
        assert [party.token for party in cluster.locks.holders("x")] == [grant.token]
        grant.check()
    assert not lock.locked()
    assert not lock.owned()


def test_str_and_bytes_name_the_same_lock(cluster: ringhold.Cluster) -> None:
    with cluster.lock("ä"):
        assert in_thread(cluster.lock("ä".encode()).try_acquire) is None
        with cluster.lock("a"), cluster.lock("a\0"), cluster.lock("ä/x"):
            pass


def test_acquire_gives_up_with_none_and_the_block_with_an_error(
    cluster: ringhold.Cluster,
) -> None:
    grant = cluster.lock("x").acquire()
    assert grant is not None
    assert in_thread(lambda: cluster.lock("x").acquire(timeout=0.05)) is None
    assert in_thread(lambda: cluster.lock("x").acquire(blocking=False)) is None
    assert in_thread(lambda: cluster.lock("x", timeout=0.05).acquire()) is None
    entered = []

    def enter() -> None:
        with cluster.lock("x", timeout=0.05):
            entered.append(True)

    error = in_thread(enter)
    assert isinstance(error, LockTimeout)
    assert isinstance(error, TimeoutError)
    assert error.name == "x"
    assert not entered
    grant.release()
    assert in_thread(lambda: cluster.lock("x").acquire(timeout=0)) is not None


def test_what_threading_lock_refuses(cluster: ringhold.Cluster) -> None:
    lock = cluster.lock("x")
    with pytest.raises(ValueError, match="blocking"):
        lock.acquire(blocking=False, timeout=1)
    for timeout in (-2, -0.5, float("nan")):
        with pytest.raises(ValueError, match="timeout"):
            lock.acquire(timeout=timeout)
        with pytest.raises(ValueError, match="timeout"):
            cluster.lock("x", timeout=timeout)
    with pytest.raises(TypeError):
        cluster.lock("x", timeout="1")  # type: ignore[arg-type]
    with pytest.raises(RuntimeError):
        lock.release()


@pytest.mark.parametrize("name", ["", b"", "x" * (64 << 10)])
def test_impossible_names(cluster: ringhold.Cluster, name: Any) -> None:
    for call in (cluster.lock, cluster.locks.holders, cluster.locks.waiters, cluster.locks.break_):
        with pytest.raises(InvalidInput):
            call(name)
    with pytest.raises(TypeError):
        cluster.lock(None)  # type: ignore[arg-type]


def test_other_modes_are_refused(cluster: ringhold.Cluster) -> None:
    for mode in ("shared", "x", ""):
        with pytest.raises(InvalidInput):
            cluster.lock("x", mode=mode)
    with pytest.raises(TypeError):
        cluster.lock("x", mode=1)  # type: ignore[arg-type]


def test_a_thread_cannot_wait_for_itself(cluster: ringhold.Cluster) -> None:
    with cluster.lock("x"):
        with pytest.raises(DeadlockError):
            cluster.lock("x").acquire()
        with pytest.raises(DeadlockError):
            cluster.lock("x").try_acquire()
    with cluster.lock("x"):
        pass


def test_a_given_owner_is_not_a_thread(cluster: ringhold.Cluster) -> None:
    mine = cluster.lock("x", owner=1)
    grant = mine.acquire()
    assert grant is not None
    assert cluster.locks.holders("x")[0].owner == 1
    # Whatever number this thread has, it is another owner than 1.
    assert cluster.lock("x").try_acquire() is None
    assert in_thread(lambda: cluster.lock("x", owner=1).owned()) is True
    assert isinstance(in_thread(mine.acquire), DeadlockError)
    in_thread(mine.release)
    assert not mine.locked()
    for wrong in (0, -1, 1 << 63):
        with pytest.raises(InvalidInput):
            cluster.lock("x", owner=wrong)
    for other in ("a", True, 1.0):
        with pytest.raises(TypeError):
            cluster.lock("x", owner=other)  # type: ignore[arg-type]


def test_a_thread_s_number_is_not_inherited_by_the_next_thread(
    cluster: ringhold.Cluster,
) -> None:
    """The interpreter gives a new thread the identity of one that ended."""
    assert in_thread(lambda: cluster.lock("x").acquire()) is not None
    assert in_thread(lambda: cluster.lock("x").try_acquire()) is None


def test_release_by_another_thread_is_refused_but_a_grant_goes_anywhere(
    cluster: ringhold.Cluster,
) -> None:
    lock = cluster.lock("x")
    grant = lock.acquire()
    assert grant is not None
    assert isinstance(in_thread(lock.release), NotOwned)
    in_thread(grant.release)
    with pytest.raises(NotOwned):
        grant.release()
    with pytest.raises(NotOwned):
        lock.release()
    assert not lock.locked()


def test_released_early_inside_the_block(cluster: ringhold.Cluster) -> None:
    with cluster.lock("x") as grant:
        grant.release()
    with cluster.lock("x") as again, again:
        pass


def test_leaving_after_a_loss_raises(cluster: ringhold.Cluster) -> None:
    told = threading.Event()
    entered = threading.Event()

    def tell(grant: ringhold.Grant) -> None:
        # On a thread where blocking calls are allowed.
        cluster.kv["told"] = b"%d" % grant.token
        told.set()

    def lose() -> None:
        with cluster.lock("x") as grant:
            grant.on_lost(tell)
            entered.set()
            assert grant.lost.wait(10)
            with pytest.raises(LockLost):
                grant.check()

    thread_outcome: list[Any] = []
    thread = threading.Thread(target=lambda: thread_outcome.append(in_thread(lose)))
    thread.start()
    assert entered.wait(10)
    token = cluster.locks.holders("x")[0].token
    assert cluster.locks.break_("x")
    thread.join(10)
    assert isinstance(thread_outcome[0], LockLost)
    assert thread_outcome[0].token == token
    assert told.wait(10)
    assert cluster.kv["told"] == b"%d" % token


def test_a_loss_does_not_hide_the_block_s_own_error(cluster: ringhold.Cluster) -> None:
    def fails() -> None:
        assert cluster.locks.break_("x")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught, cluster.lock("x"):
        fails()
    assert any("lost" in note for note in caught.value.__notes__)


def test_an_interrupt_leaves_neither_lock_nor_place_in_the_queue(
    cluster: ringhold.Cluster,
) -> None:
    holder = cluster.lock("x", owner=1).acquire()
    assert holder is not None

    def interrupt() -> None:
        until(lambda: cluster.locks.waiters("x"))
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        cluster.lock("x").acquire()
    thread.join()
    assert cluster.locks.waiters("x") == []
    holder.release()
    assert not cluster.lock("x").locked()
    with cluster.lock("x", timeout=1):
        pass


def test_closing_wakes_the_waiters(cluster: ringhold.Cluster) -> None:
    holder = cluster.lock("x", owner=1).acquire()
    assert holder is not None
    outcome: list[Any] = []
    thread = threading.Thread(
        target=lambda: outcome.append(in_thread(lambda: cluster.lock("x").acquire()))
    )
    thread.start()
    until(lambda: cluster.locks.waiters("x"))
    cluster.close()
    thread.join(10)
    assert isinstance(outcome[0], Closed)
    assert holder.lost.is_set()
    for call in (lambda: cluster.lock("x"), lambda: cluster.locks.holders("x")):
        with pytest.raises(Closed):
            call()


def test_tasks_own_locks_on_the_async_face() -> None:
    async def main() -> None:
        async with ringhold.aio.create(f"memory://lock{next(_names)}") as cluster:
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
            await cluster.locks.break_("x")
            with pytest.raises(LockLost):
                await lock.release()

    asyncio.run(main())

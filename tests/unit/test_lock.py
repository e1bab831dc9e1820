"""Goal: a lock has the manners of threading.Lock, and a block is never entered without it.

Method: clusters in memory through the public interface of the blocking face, from several
threads; a real SIGINT for the interrupt.
"""

from __future__ import annotations

import copy
import itertools
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from etcd_engines import ETCD_ABOVE, cluster_at
from threads import in_thread

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


@pytest.fixture(params=["memory", *ETCD_ABOVE])
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ringhold.Cluster]:
    url, options = cluster_at(request.param, f"lock{next(_names)}", tmp_path)
    with ringhold.create(url, **options) as made:
        yield made


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


def test_modes_and_delays_are_checked(cluster: ringhold.Cluster) -> None:
    for mode in ("update", "intent_shared", "x", "", "Shared"):
        with pytest.raises(InvalidInput):
            cluster.lock("x", mode=mode)
    for other in (1, None, b"shared"):
        with pytest.raises(TypeError):
            cluster.lock("x", mode=other)  # type: ignore[arg-type]
    for delay in (-1, -0.001, float("nan"), float("inf"), 86_401):
        with pytest.raises(InvalidInput, match="lock_delay"):
            cluster.lock("x", lock_delay=delay)
    for wrong in ("1", None, True):
        with pytest.raises(TypeError, match="lock_delay"):
            cluster.lock("x", lock_delay=wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput):
        cluster.lock("x", mode="shared", lock_delay=1)
    with cluster.lock("x", lock_delay=1) as grant:
        grant.check()
    with cluster.lock("x", lock_delay=86_400), cluster.lock("y", mode="shared", lock_delay=0):
        pass


def test_sharers_are_inside_together_and_keep_writers_out(cluster: ringhold.Cluster) -> None:
    shared = cluster.lock("x", mode="shared")
    with shared as grant, cluster.lock("x", mode="shared", owner=2) as other:
        assert grant.mode == other.mode == "shared"
        assert not grant.token & 1
        assert in_thread(lambda: cluster.lock("x").acquire(timeout=0.02)) is None
        third = in_thread(shared.try_acquire)
        assert third is not None
        third.release()
        assert shared.locked()
        assert {party.mode for party in cluster.locks.holders("x")} == {"shared"}
    with cluster.lock("x") as exclusive:
        assert exclusive.token > grant.token
        assert in_thread(shared.try_acquire) is None


def test_a_reentrant_lock_counts_per_owner(cluster: ringhold.Cluster) -> None:
    lock = cluster.lock("x", reentrant=True, timeout=5)
    with lock as outer, lock as inner:
        assert inner is not outer
        assert inner.token == outer.token
        third = lock.try_acquire()
        assert third is not None
        assert third.token == outer.token
        assert in_thread(lock.try_acquire) is None
        lock.release()
        with pytest.raises(NotOwned):
            third.check()
        inner.check()
        # Another handle of the same name, which is not reentrant.
        with pytest.raises(DeadlockError):
            cluster.lock("x").acquire()
        with pytest.raises(DeadlockError):
            cluster.lock("x", mode="shared").acquire()
    assert not lock.locked()
    # Whoever shares it gets more by upgrading, not by asking again.
    with cluster.lock("x", mode="shared", reentrant=True), pytest.raises(DeadlockError):
        lock.acquire(timeout=1)
    with lock, cluster.lock("x", mode="shared", reentrant=True) as again:
        assert again.mode == "exclusive"


def test_upgrading_and_downgrading(cluster: ringhold.Cluster) -> None:
    shared = cluster.lock("x", mode="shared")
    with shared as grant:
        before = grant.token
        assert grant.upgrade() == grant.token > before
        assert (grant.mode, grant.token & 1) == ("exclusive", 1)
        assert in_thread(shared.try_acquire) is None
        exclusive = grant.token
        assert grant.downgrade() == grant.token > exclusive
        assert (grant.mode, grant.token & 1) == ("shared", 0)
        other = in_thread(shared.try_acquire)
        assert other is not None
        for timeout in (0, 0.02):
            with pytest.raises(LockTimeout) as caught:
                grant.upgrade(timeout=timeout)
            assert caught.value.name == "x"
        assert grant.mode == "shared"
        for timeout in (-2, float("nan")):
            with pytest.raises(ValueError, match="timeout"):
                grant.upgrade(timeout=timeout)
        upgraded: list[Any] = []
        thread = threading.Thread(target=lambda: upgraded.append(in_thread(grant.upgrade)))
        thread.start()
        until(lambda: cluster.locks.waiters("x"))
        assert isinstance(in_thread(other.upgrade), DeadlockError)
        other.release()
        thread.join(10)
        assert upgraded == [grant.token]
    for call in (grant.upgrade, grant.downgrade):
        with pytest.raises(NotOwned):
            call()


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
    for large in (1 << 61, (1 << 62) - 1, 1 << 62, (1 << 63) - 1):
        with cluster.lock("x", owner=large) as held:
            assert cluster.lock("x", owner=large).owned()
            assert [party.token for party in cluster.locks.holders("x")] == [held.token]
            assert cluster.lock("x", owner=large - 1).try_acquire() is None
            assert isinstance(in_thread(cluster.lock("x", owner=large).acquire), DeadlockError)
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


@pytest.fixture
def _many_switches() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_many_switches")
def test_of_threads_that_release_one_grant_one_succeeds(cluster: ringhold.Cluster) -> None:
    lock = cluster.lock("x")
    for _ in range(50):
        grant = lock.acquire()
        assert grant is not None
        outcomes: list[object] = []
        start = threading.Barrier(3)

        def release(
            grant: ringhold.Grant = grant,
            outcomes: list[object] = outcomes,
            start: threading.Barrier = start,
        ) -> None:
            start.wait()
            try:
                grant.release()
                outcomes.append(None)
            except NotOwned as error:
                outcomes.append(error)

        threads = [threading.Thread(target=release) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert len(outcomes) == 3
        assert outcomes.count(None) == 1
        assert not lock.owned()


@pytest.mark.usefixtures("_many_switches")
@pytest.mark.parametrize("reentrant", [False, True])
def test_hammered_by_threads_the_lock_excludes_and_tokens_grow(
    cluster: ringhold.Cluster, reentrant: bool
) -> None:
    count = 0
    tokens: list[int] = []
    readers = 0
    errors: list[BaseException] = []

    def write(rounds: int) -> None:
        nonlocal count
        lock = cluster.lock("x", timeout=30, reentrant=reentrant)
        for _ in range(rounds):
            with lock as grant:
                assert readers == 0
                seen = count
                tokens.append(grant.token)
                if reentrant:
                    with lock as inner:
                        assert inner.token == grant.token
                assert tokens[-1] == grant.token
                count = seen + 1

    def read(rounds: int) -> None:
        nonlocal readers
        # `readers` is only ever raised and lowered by this one thread.
        lock = cluster.lock("x", mode="shared", timeout=30)
        for _ in range(rounds):
            with lock as grant:
                readers += 1
                seen = count
                assert not tokens or grant.token > tokens[-1]
                assert count == seen
                readers -= 1

    def run(function: Callable[[int], None], rounds: int) -> None:
        try:
            function(rounds)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(write, 300)) for _ in range(4)]
    threads.append(threading.Thread(target=run, args=(read, 150)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert count == len(tokens) == 1200
    assert tokens == sorted(set(tokens))
    assert cluster.locks.holders("x") == []
    assert cluster.locks.waiters("x") == []


def test_threads_that_would_wait_for_each_other(cluster: ringhold.Cluster) -> None:
    with cluster.lock("x") as mine:

        def other() -> object:
            with cluster.lock("y"):
                entered.set()
                return cluster.lock("x").acquire(timeout=20)

        entered = threading.Event()
        outcome: list[Any] = []
        thread = threading.Thread(target=lambda: outcome.append(in_thread(other)))
        thread.start()
        assert entered.wait(10)
        until(lambda: cluster.locks.waiters("x"))
        with pytest.raises(DeadlockError):
            cluster.lock("y").acquire()
        mine.check()
    thread.join(10)
    assert isinstance(outcome[0], ringhold.Grant)


def test_a_waiting_thread_hears_of_a_broken_lock_and_waits_on(cluster: ringhold.Cluster) -> None:
    holder = cluster.lock("x", owner=1).acquire()
    assert holder is not None
    outcome: list[Any] = []
    thread = threading.Thread(
        target=lambda: outcome.append(in_thread(lambda: cluster.lock("x").acquire(timeout=20)))
    )
    thread.start()
    until(lambda: cluster.locks.waiters("x"))
    assert cluster.locks.break_("x")
    thread.join(20)
    assert outcome[0].token > holder.token
    assert holder.lost.wait(10)
    with pytest.raises(LockLost):
        holder.release()
    outcome[0].check()


def test_a_callback_for_what_is_lost_already_runs_once(cluster: ringhold.Cluster) -> None:
    grant = cluster.lock("x").acquire()
    assert grant is not None
    assert not grant.lost.is_set()
    assert cluster.locks.break_("x")
    assert grant.lost.wait(10)
    called: list[threading.Thread] = []
    done = threading.Event()

    def tell(told: ringhold.Grant) -> None:
        assert told is grant
        called.append(threading.current_thread())
        done.set()

    grant.on_lost(tell)
    assert done.wait(10)
    assert len(called) == 1
    assert called[0] is not threading.current_thread()
    with pytest.raises(TypeError):
        grant.on_lost(None)  # type: ignore[arg-type]
    with pytest.raises(LockLost):
        grant.check()
    assert not cluster.lock("x").owned()
    # The owner of what was lost may have it anew, and then releases the new one.
    lock = cluster.lock("x", timeout=5)
    with lock as again:
        assert again.token > grant.token
        with pytest.raises(LockLost):
            grant.release()
        again.check()
        assert lock.owned()
    assert not lock.locked()


def test_leaving_a_lost_block_says_so_whatever_was_acquired_inside(
    cluster: ringhold.Cluster,
) -> None:
    inner: list[ringhold.Grant] = []

    def loses(again: bool) -> None:
        with cluster.lock("x", timeout=5) as outer:
            assert cluster.locks.break_("x")
            assert outer.lost.wait(10)
            grant = cluster.lock("x", timeout=5).acquire()
            assert grant is not None
            if again:
                inner.append(grant)
            else:
                grant.release()

    with pytest.raises(LockLost):
        loses(again=False)
    with pytest.raises(LockLost):
        loses(again=True)
    inner[0].check()
    inner[0].release()
    assert not cluster.lock("x").locked()


def test_threads_that_share_an_owner_leave_nothing_held(cluster: ringhold.Cluster) -> None:
    """Each ends the grant that it entered its block with, whoever else of its owner is inside."""
    interval_s = sys.getswitchinterval()
    failures: list[BaseException] = []
    stop = threading.Event()

    def enter() -> None:
        try:
            lock = cluster.lock("x", owner=7, reentrant=True, timeout=30)
            while not stop.is_set():
                with lock as grant, lock as again:
                    assert grant.token == again.token
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=enter) for _ in range(3)]
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        time.sleep(2)
        stop.set()
        for thread in threads:
            thread.join(30)
    finally:
        sys.setswitchinterval(interval_s)
    # One thread may release what another one is about to enter again: that is told, not kept.
    assert all(isinstance(failure, DeadlockError) for failure in failures), failures
    assert cluster.locks.holders("x") == []
    with cluster.lock("x", owner=8, timeout=5), pytest.raises(LockTimeout):
        cluster.lock("x", owner=7, timeout=0).__enter__()
    with cluster.lock("x", owner=7, timeout=5):
        pass


def test_after_close_a_grant_says_that_it_is_closed(cluster: ringhold.Cluster) -> None:
    grant = cluster.lock("x").acquire()
    assert grant is not None
    cluster.close()
    for use in (grant.check, grant.release, grant.upgrade, grant.downgrade):
        with pytest.raises(Closed):
            use()
    assert grant.lost.is_set()


def test_a_deadlock_is_told_in_the_words_of_users(cluster: ringhold.Cluster) -> None:
    shared = [cluster.lock("x", mode="shared", owner=owner).acquire() for owner in (1, 2)]
    assert all(shared)
    outcome: list[Any] = []
    thread = threading.Thread(target=lambda: outcome.append(in_thread(shared[0].upgrade)))
    thread.start()
    until(lambda: cluster.locks.waiters("x"))
    with pytest.raises(DeadlockError) as caught:
        shared[1].upgrade()
    assert caught.value.name == "x"
    assert "lock 'x' would never end: whoever is in the way waits" in str(caught.value)
    shared[1].release()
    thread.join(30)
    assert isinstance(outcome[0], int)
    shared[0].release()


def test_a_grant_within_another_one_cannot_be_downgraded(cluster: ringhold.Cluster) -> None:
    lock = cluster.lock("x", reentrant=True)
    with lock as outer:
        token = outer.token
        with lock as inner, pytest.raises(InvalidInput, match="more than once"):
            inner.downgrade()
        assert (outer.mode, outer.token) == ("exclusive", token)
        assert in_thread(cluster.lock("x", mode="shared").try_acquire) is None
        outer.downgrade()
        assert outer.mode == "shared"


def test_what_belongs_to_a_process_cannot_be_copied(cluster: ringhold.Cluster) -> None:
    with cluster.lock("x") as grant, cluster.semaphore("y", 1) as slot:
        for what in (cluster, cluster.lock("x"), grant, slot, cluster.semaphore("y", 1)):
            with pytest.raises(TypeError, match="open the cluster where it is needed"):
                pickle.dumps(what)
            with pytest.raises(TypeError, match="open the cluster where it is needed"):
                copy.deepcopy(what)
        with pytest.raises(TypeError):
            copy.copy(grant)

"""Goal: a lock takes what its signature allows, refuses the rest with an error that loses nothing,
and notices at once when somebody would wait for himself or two for each other.

Method: every case on both engines through the blocking face; threads are the owners.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from lock_processes import until

import ringhold
from ringhold.errors import Closed, DeadlockError, InvalidInput, NotOwned

PATIENCE_S = 5.0
_numbers = itertools.count()


@pytest.fixture(params=["directory", "memory"])
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ringhold.Cluster]:
    directory = request.param == "directory"
    url = str(tmp_path / "c") if directory else f"memory://manners{next(_numbers)}"
    with ringhold.create(url) as made:
        yield made


class Thread:
    """A thread, and so an owner, that lives on from call to call."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)

    def begin(self, function: Callable[..., Any], *args: Any, **keywords: Any) -> Future[Any]:
        return self._pool.submit(function, *args, **keywords)

    def do(self, function: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
        return self.begin(function, *args, **keywords).result(30)

    def end(self) -> None:
        self._pool.shutdown(wait=False)


@pytest.fixture
def threads() -> Iterator[list[Thread]]:
    made = [Thread() for _ in range(3)]
    yield made
    for thread in made:
        thread.end()


def waiting(cluster: ringhold.Cluster, name: str, count: int) -> None:
    until(lambda: len(cluster.locks.waiters(name)) == count, f"{count} waiters for {name}")


def is_told_of_deadlock(asked: Future[Any]) -> None:
    error = asked.exception(30)
    outcome = f"it got {asked.result()!r}" if error is None else repr(error)
    assert isinstance(error, DeadlockError), f"no DeadlockError at once: {outcome}"


# Again by the same owner


def test_reentrant_acquires_are_counted(cluster: ringhold.Cluster, threads: list[Thread]) -> None:
    lock = cluster.lock("a", reentrant=True)
    other = threads[0]
    tokens = set()
    for _ in range(3):
        grant = lock.acquire()
        assert grant is not None
        tokens.add(grant.token)
    assert len(tokens) == 1, "asking again returns the same token"
    for _ in range(2):
        lock.release()
        assert lock.owned()
        assert other.do(cluster.lock("a").try_acquire) is None
    lock.release()
    assert not lock.owned()
    with pytest.raises(NotOwned):
        lock.release()
    after = other.do(cluster.lock("a").acquire, timeout=PATIENCE_S)
    assert after is not None
    assert after.token > tokens.pop()


def test_reentrant_blocks_nest(cluster: ringhold.Cluster, threads: list[Thread]) -> None:
    lock = cluster.lock("a", reentrant=True, timeout=PATIENCE_S)
    with lock as outer:
        with lock as inner:
            assert inner.token == outer.token
        outer.check()
        assert threads[0].do(cluster.lock("a").try_acquire) is None
    assert threads[0].do(cluster.lock("a").try_acquire) is not None


@pytest.mark.parametrize("mode", ["exclusive", "shared"])
def test_a_second_acquire_by_the_same_owner_is_an_error_at_once(
    cluster: ringhold.Cluster, mode: str
) -> None:
    with cluster.lock("a", mode=mode) as grant:
        for second in ("exclusive", mode):
            begin = time.monotonic()
            with pytest.raises(DeadlockError):
                cluster.lock("a", mode=second).acquire(timeout=30)
            assert time.monotonic() - begin < PATIENCE_S
        grant.check()
    assert not cluster.lock("a").locked()


# Circles


def test_two_who_would_wait_for_each_other(
    cluster: ringhold.Cluster, threads: list[Thread]
) -> None:
    one, other, _ = threads
    assert one.do(cluster.lock("a").acquire) is not None
    assert other.do(cluster.lock("b").acquire) is not None
    first = one.begin(cluster.lock("b").acquire, timeout=PATIENCE_S)
    waiting(cluster, "b", 1)
    second = other.begin(cluster.lock("a").acquire, timeout=PATIENCE_S)
    # Whoever closes the circle is told, and gives back what it has; then the other goes on.
    is_told_of_deadlock(second)
    other.do(cluster.lock("b").release)
    assert first.result(30) is not None
    assert cluster.locks.waiters("a") == []


def test_three_who_would_wait_in_a_circle(cluster: ringhold.Cluster, threads: list[Thread]) -> None:
    names = ["a", "b", "c"]
    for thread, name in zip(threads, names, strict=True):
        assert thread.do(cluster.lock(name).acquire) is not None
    asked = []
    for thread, name in zip(threads, ["b", "c", "a"], strict=True):
        if name != "a":
            asked.append(thread.begin(cluster.lock(name).acquire, timeout=PATIENCE_S))
            waiting(cluster, name, 1)
        else:
            closing = thread.begin(cluster.lock(name).acquire, timeout=PATIENCE_S)
            is_told_of_deadlock(closing)
            thread.do(cluster.lock("c").release)
    assert asked[1].result(30) is not None
    threads[1].do(cluster.lock("b").release)
    assert asked[0].result(30) is not None


def test_of_two_upgrades_one_is_refused(cluster: ringhold.Cluster, threads: list[Thread]) -> None:
    one, other, _ = threads
    shared = cluster.lock("a", mode="shared")
    mine, its = one.do(shared.acquire), other.do(shared.acquire)
    first = one.begin(mine.upgrade)
    waiting(cluster, "a", 1)
    is_told_of_deadlock(other.begin(its.upgrade))
    its.check()
    other.do(its.release)
    first.result(30)
    assert [party.mode for party in cluster.locks.holders("a")] == ["exclusive"]
    assert cluster.lock("a", mode="shared").try_acquire() is None
    one.do(cluster.lock("a").release)
    assert cluster.locks.holders("a") == []


# Shared


def test_readers_are_together_and_a_writer_is_alone(
    cluster: ringhold.Cluster, threads: list[Thread]
) -> None:
    shared = cluster.lock("a", mode="shared")
    readers = [thread.do(shared.acquire, timeout=PATIENCE_S) for thread in threads]
    assert all(reader is not None and reader.token & 1 == 0 for reader in readers)
    assert {reader.mode for reader in readers} == {"shared"}
    assert [party.mode for party in cluster.locks.holders("a")] == ["shared"] * 3
    assert cluster.lock("a").try_acquire() is None
    for thread, reader in zip(threads, readers, strict=True):
        thread.do(reader.release)
    with cluster.lock("a", timeout=PATIENCE_S) as writer:
        assert writer.token > max(reader.token for reader in readers)
        assert threads[0].do(shared.try_acquire) is None


def test_a_reader_waits_behind_a_writer_who_waits(
    cluster: ringhold.Cluster, threads: list[Thread]
) -> None:
    first, writer, late = threads
    shared = cluster.lock("a", mode="shared")
    held = first.do(shared.acquire)
    written = writer.begin(cluster.lock("a").acquire)
    waiting(cluster, "a", 1)
    assert late.do(shared.try_acquire) is None
    read = late.begin(shared.acquire)
    waiting(cluster, "a", 2)
    first.do(held.release)
    grant = written.result(30)
    assert not read.done()
    writer.do(grant.release)
    assert read.result(30).token > grant.token


def test_upgrade_and_downgrade(cluster: ringhold.Cluster, threads: list[Thread]) -> None:
    one, other, _ = threads
    shared = cluster.lock("a", mode="shared")
    grant = one.do(shared.acquire)
    token = grant.token
    one.do(grant.upgrade)
    [holder] = cluster.locks.holders("a")
    assert (holder.mode, holder.token & 1) == ("exclusive", 1)
    assert holder.token > token
    assert other.do(shared.try_acquire) is None
    one.do(grant.downgrade)
    beside = other.do(shared.acquire, timeout=PATIENCE_S)
    assert beside is not None
    assert other.do(cluster.lock("a", owner=7).try_acquire) is None
    one.do(cluster.lock("a", mode="shared").release)
    other.do(beside.release)
    with cluster.lock("a", timeout=PATIENCE_S) as last:
        assert last.token > holder.token


# Giving back


def test_only_the_owner_gives_back_and_only_once(
    cluster: ringhold.Cluster, threads: list[Thread]
) -> None:
    lock = cluster.lock("a")
    grant = lock.acquire()
    assert grant is not None
    with pytest.raises(NotOwned):
        threads[0].do(lock.release)
    grant.check()
    threads[0].do(grant.release)
    for again in (grant.release, lock.release, grant.check):
        with pytest.raises(NotOwned):
            again()
    with cluster.lock("a", timeout=PATIENCE_S):
        pass


def test_nothing_is_given_back_after_the_end(cluster: ringhold.Cluster) -> None:
    lock = cluster.lock("a")
    grant = lock.acquire()
    assert grant is not None
    cluster.close()
    assert grant.lost.wait(PATIENCE_S)
    for late in (grant.release, lock.release, lock.acquire, lock.try_acquire, lock.locked):
        with pytest.raises(Closed):
            late()


# Arguments


@pytest.mark.parametrize(
    "name", ["", b"", "x" * (64 << 10), b"x" * (64 << 10), "\ud800", "a\udbff"]
)
def test_names_that_cannot_be(cluster: ringhold.Cluster, name: Any) -> None:
    with cluster.lock("a") as grant:
        for call in (cluster.lock, cluster.locks.holders, cluster.locks.break_):
            with pytest.raises(InvalidInput):
                call(name)
        grant.check()


@pytest.mark.parametrize("name", ["a\0b", "\0", "ä" * 1000, "\udcff\udc80", b"\xff\0\xfe", "a/b"])
def test_unusual_names_are_names(cluster: ringhold.Cluster, name: Any) -> None:
    with cluster.lock(name, timeout=PATIENCE_S) as grant:
        expected = name if isinstance(name, str) else name.decode("utf-8", "surrogateescape")
        assert grant.name == expected
        assert len(cluster.locks.holders(name)) == 1
        encoded = expected.encode("utf-8", "surrogateescape")
        with pytest.raises(DeadlockError):
            cluster.lock(encoded).try_acquire()
        # A name's beginning is another name.
        for other in (encoded[:-1] or b"b", encoded + b"\0"):
            with cluster.lock(other, timeout=PATIENCE_S):
                pass


@pytest.mark.parametrize("timeout", [float("nan"), -0.5, -2, -1e-9, float("-inf")])
def test_timeouts_that_cannot_be(cluster: ringhold.Cluster, timeout: float) -> None:
    lock = cluster.lock("a")
    with pytest.raises(ValueError, match="timeout"):
        cluster.lock("a", timeout=timeout)
    with pytest.raises(ValueError, match="timeout"):
        lock.acquire(timeout=timeout)
    assert not lock.locked()


@pytest.mark.parametrize("timeout", [0, 0.0, -0.0])
def test_no_time_is_one_try(
    cluster: ringhold.Cluster, threads: list[Thread], timeout: float
) -> None:
    lock = cluster.lock("a")
    grant = lock.acquire(timeout=timeout)
    assert grant is not None
    begin = time.monotonic()
    assert threads[0].do(lock.acquire, timeout=timeout) is None
    assert time.monotonic() - begin < PATIENCE_S
    assert cluster.locks.waiters("a") == []
    grant.release()


@pytest.mark.parametrize("timeout", [float("inf"), -1, 1e9])
def test_all_the_time_of_the_world(
    cluster: ringhold.Cluster, threads: list[Thread], timeout: float
) -> None:
    grant = cluster.lock("a").acquire()
    assert grant is not None
    waiter = threads[0].begin(cluster.lock("a").acquire, timeout=timeout)
    waiting(cluster, "a", 1)
    grant.release()
    assert waiter.result(30).token > grant.token


def test_owners_are_numbers(cluster: ringhold.Cluster) -> None:
    for owner in (1, 2**63 - 1):
        with cluster.lock("a", owner=owner, timeout=PATIENCE_S):
            assert [party.owner for party in cluster.locks.holders("a")] == [owner]
            with pytest.raises(DeadlockError):
                cluster.lock("a", owner=owner).acquire()
    for wrong in (0, -1, 2**63, 2**64):
        with pytest.raises(InvalidInput):
            cluster.lock("a", owner=wrong)
    for other in (True, 1.5, "1"):
        with pytest.raises(TypeError):
            cluster.lock("a", owner=other)  # type: ignore[arg-type]


def test_modes_and_delays_that_cannot_be(cluster: ringhold.Cluster) -> None:
    for mode in ("", "x"):
        with pytest.raises(InvalidInput):
            cluster.lock("a", mode=mode)
    for delay in (-1.0, float("nan")):
        with pytest.raises(InvalidInput):
            cluster.lock("a", lock_delay=delay)


def test_threads_in_a_crowd_that_is_in_a_hurry(cluster: ringhold.Cluster) -> None:
    """Some give up in the very moment in which it would be their turn."""
    inside: list[int] = []
    wrong: list[list[int]] = []
    outcomes: Counter[bool] = Counter()

    def come_and_go(number: int) -> None:
        chance = random.Random(number)
        lock = cluster.lock("a")
        for _ in range(30):
            grant = lock.acquire(timeout=chance.choice((-1, 0, chance.uniform(0, 0.02))))
            outcomes[grant is not None] += 1
            if grant is None:
                continue
            with grant:
                inside.append(number)
                time.sleep(0.0005)
                if inside != [number]:
                    wrong.append(list(inside))
                inside.remove(number)

    crowd = [threading.Thread(target=come_and_go, args=(number,)) for number in range(8)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join(60)
    assert wrong == []
    assert outcomes.total() == 8 * 30
    assert min(outcomes[True], outcomes[False]) > 0, outcomes
    assert cluster.locks.waiters("a") == []
    assert not cluster.lock("a").locked()
    with cluster.lock("a", timeout=PATIENCE_S):
        pass

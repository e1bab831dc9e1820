"""Goal: threads of two processes that wait for each other are told, however they wait.

Method: two openings of one cluster in memory, with a session each. One of the two is kept from
looking for circles, so that it is the other one's thread that gives up.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import ringhold
from ringhold.errors import DeadlockError
from ringhold.locks.deadlocks import Deadlocks, _fitting
from ringhold.locks.keys import Claim
from ringhold.locks.waits import HeldUp

_names = itertools.count()


@pytest.fixture
def clusters() -> Iterator[tuple[ringhold.Cluster, ringhold.Cluster]]:
    url = f"memory://deadlocks{next(_names)}"
    with ringhold.create(url) as one, ringhold.open(url) as other:
        yield one, other


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def session_locks(cluster: ringhold.Cluster) -> Any:
    found = cluster._cluster._lock_service.current
    assert found is not None
    return found


class Crossing(threading.Thread):
    """Takes one lock, and when it is told to another one."""

    def __init__(self, cluster: ringhold.Cluster, first: str, second: str):
        super().__init__()
        self.go = threading.Event()
        self.outcome: object = None
        self._cluster = cluster
        self._names = first, second
        self.start()

    def run(self) -> None:
        first, second = self._names
        with self._cluster.lock(first):
            self.go.wait(10)
            try:
                with self._cluster.lock(second):
                    self.outcome = "got it"
            except DeadlockError as error:
                self.outcome = error


def looks_again(locks: Any) -> None:
    """Has a session look for circles all the time, whether it told last or not."""
    find = locks.deadlocks._find

    async def find_again() -> None:
        await find()
        locks.deadlocks._again = True

    locks.deadlocks._find = find_again


def never_looks(locks: Any) -> None:
    async def find() -> None:
        pass

    locks.deadlocks._find = find


def test_a_record_never_grows_beyond_a_commit() -> None:
    found = [HeldUp(b"x" * 4096, 1, b"y" * 4096, 2, 3, ()) for _ in range(200)]
    told = _fitting(found)
    assert 0 < len(told) < len(found)
    assert sum(len(each.held + each.awaited) for each in told) <= 1 << 19
    assert _fitting(found[:5]) == found[:5]


def test_a_session_stands_by_the_record_that_was_read_only() -> None:
    held_up = HeldUp(b"x", 1, b"y", 2, 3, ())

    class Waiting:
        def held_up(self) -> tuple[list[HeldUp], float]:
            return [held_up], 0.2

    deadlocks = Deadlocks.__new__(Deadlocks)
    deadlocks._waiting = Waiting()  # type: ignore[assignment]
    deadlocks._told, deadlocks._told_at = [held_up], 7
    assert deadlocks.stands_by(Claim(b"me", 7, [(b"x", b"y")], []))
    assert not deadlocks.stands_by(Claim(b"me", 6, [(b"x", b"y")], []))
    assert not deadlocks.stands_by(Claim(b"me", 7, [(b"x", b"z")], []))


def test_two_threads_of_two_processes(clusters: tuple[ringhold.Cluster, ringhold.Cluster]) -> None:
    threads = [
        Crossing(cluster, first, second)
        for cluster, first, second in zip(clusters, "xy", "yx", strict=True)
    ]
    until(lambda: all(cluster.lock(name).locked() for cluster in clusters for name in "xy"))
    for thread in threads:
        thread.go.set()
    for thread in threads:
        thread.join(10)
    told = [thread.outcome for thread in threads if isinstance(thread.outcome, DeadlockError)]
    assert len(told) == 1
    assert told[0].name in ("x", "y")
    assert "is held here" in str(told[0])
    assert sum(thread.outcome == "got it" for thread in threads) == 1


def test_a_thread_that_waits_without_the_loop_is_told(
    clusters: tuple[ringhold.Cluster, ringhold.Cluster],
) -> None:
    """Its session had the lock when it began to wait, and gave it away before its turn."""
    here, there = clusters
    grant = here.lock("y").acquire()
    assert grant is not None
    waiting = Crossing(here, "x", "y")
    until(lambda: here.lock("x").locked())
    other = Crossing(there, "y", "x")
    locks = session_locks(here)
    cached = locks.locks[b"uy"]
    until(lambda: cached.gate in dict(locks.table.waiters(b"uy")))
    waiting.go.set()
    until(lambda: locks._threads)
    never_looks(session_locks(there))
    looks_again(locks)
    grant.release()
    other.go.set()
    waiting.join(10)
    other.join(10)
    assert isinstance(waiting.outcome, DeadlockError)
    assert waiting.outcome.name == "y"
    assert other.outcome == "got it"


def test_a_thread_that_waits_on_the_loop_is_told(
    clusters: tuple[ringhold.Cluster, ringhold.Cluster],
) -> None:
    here, there = clusters
    waiting = Crossing(here, "x", "y")
    other = Crossing(there, "y", "x")
    until(lambda: here.lock("y").locked() and there.lock("x").locked())
    never_looks(session_locks(there))
    looks_again(session_locks(here))
    for thread in (waiting, other):
        thread.go.set()
    waiting.join(10)
    other.join(10)
    assert isinstance(waiting.outcome, DeadlockError)
    assert other.outcome == "got it"

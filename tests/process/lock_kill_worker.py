"""A process that takes locks for ever, and does fenced work under them until it is killed.

``lock_kill_worker.py CLUSTER NOTES NUMBER SESSION_TTL SHARED HOLD``: CLUSTER is a directory or
URL, NOTES a folder with the log of all workers and one counter per lock, NUMBER this worker's own,
SHARED the share of grants that are shared, from 0 to 1, HOLD for how many seconds some are held.
Each line of the log is one write; `lock_history` reads them.

A counter is a resource outside of the store that knows nothing of locks but tokens: it serves
one request at a time (flock(2)), and shows the token to the fence before it does. A client reads
it and later sets it to one more, as if nobody else could have done so meanwhile.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import random
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ringhold
from ringhold.errors import (
    LockLost,
    LockTimeout,
    OutcomeUnknown,
    SessionExpired,
    StaleToken,
    StoreUnavailable,
)

NAMES = ("a", "b", "c", "d")
THREADS = 2
FAILURES = (LockTimeout, LockLost, SessionExpired, StoreUnavailable, OutcomeUnknown)


def now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Counter:
    """A file of accepted increments: one line ``TOKEN VALUE`` each, appended by one write."""

    def __init__(self, path: Path, fence: Any):
        self._path = path
        self._fence = fence

    @contextmanager
    def _served(self, token: int) -> Iterator[int]:
        fd = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            self._fence.admit(token)
            yield fd
        finally:
            os.close(fd)

    def read(self, token: int) -> int:
        with self._served(token) as fd:
            size = os.fstat(fd).st_size
            lines = os.pread(fd, min(size, 100), max(0, size - 100)).split(b"\n")
            return int(lines[-2].split()[1]) if size else 0

    def set(self, token: int, value: int) -> None:
        with self._served(token) as fd:
            os.write(fd, b"%d %d\n" % (token, value))


class Worker:
    def __init__(
        self,
        url: str,
        notes: Path,
        number: int,
        session_ttl: float,
        shared: float,
        hold_s: float,
    ):
        self.cluster = ringhold.open(url, create=False, session_ttl=session_ttl)
        self.number = number
        self.shared = shared
        self.hold_s = hold_s
        self.log = os.open(notes / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self.grants = itertools.count()
        self.counters = {
            name: Counter(notes / f"counter-{name}", self.cluster.fence(name)) for name in NAMES
        }

    def note(self, what: str, grant: int, *rest: object) -> None:
        words = (what, self.number, grant, *rest)
        os.write(self.log, (" ".join(map(str, words)) + "\n").encode())

    def alive(self, grant: Any, number: int) -> None:
        """Notes an instant at which the grant was held, or raises LockLost."""
        asked_ns = now_ns()
        grant.check()
        self.note("alive", number, asked_ns)

    def work(self, chance: random.Random) -> None:
        """One grant from its acquire to its release, whatever happens to it."""
        name = chance.choice(NAMES)
        mode = "shared" if chance.random() < self.shared else "exclusive"
        grant = self.cluster.lock(name, mode=mode).acquire(timeout=30)
        if grant is None:
            raise LockTimeout(f"lock {name} was not granted in 30 s", name=name)
        number = next(self.grants)
        self.note("enter", number, name, mode, grant.token, now_ns())
        value = None
        try:
            try:
                self.alive(grant, number)
                if chance.random() < 0.5:
                    value = self.counters[name].read(grant.token)
                time.sleep(chance.choice((0, 0, self.hold_s)))
                self.alive(grant, number)
                if value is not None and mode == "exclusive":
                    self.counters[name].set(grant.token, value + 1)
                    value += 1
            except StaleToken:
                # The fence knows of a later grant: that this one is lost is found below.
                self.note("stale", number)
            except (StoreUnavailable, OutcomeUnknown) as error:
                # Then the counter did nothing. The grant may live on all the same.
                self.note("failed", -1, type(error).__name__)
            asked_ns = now_ns()
            grant.release()
            self.note("alive", number, asked_ns)
        except LockLost:
            self.note("lost", number)
            if value is not None and mode == "exclusive":
                self.late(name, grant.token, value + 1)

    def late(self, name: str, token: int, value: int) -> None:
        """What a client does that never looks whether its lock was lost. The counter takes it
        only as long as no later holder has shown its token."""
        try:
            self.counters[name].set(token, value)
            self.note("late", -1, name, token, "accepted")
        except StaleToken:
            self.note("late", -1, name, token, "refused")

    def for_ever(self, thread: int) -> None:
        chance = random.Random(self.number * THREADS + thread)
        while True:
            try:
                self.work(chance)
            except FAILURES as error:
                # A store that a stopped process holds up, or a session that ended meanwhile.
                self.note("failed", -1, type(error).__name__)

    def run(self, thread: int) -> None:
        try:
            self.for_ever(thread)
        except BaseException as error:
            # Any other error is one of the locks: the process ends, and the test sees it.
            sys.stderr.write(f"worker {self.number}: {type(error).__name__}: {error}\n")
            sys.stderr.flush()
            os._exit(3)


def main(url: str, notes: str, number: str, session_ttl: str, shared: str, hold: str) -> None:
    ttl_s, hold_s = float(session_ttl), float(hold)
    worker = Worker(url, Path(notes), int(number), ttl_s, float(shared), hold_s)
    threads = [threading.Thread(target=worker.run, args=(n,)) for n in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(*sys.argv[1:])

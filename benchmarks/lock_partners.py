"""Processes that acquire and release one lock as they are told, of a cluster or of filelock."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import filelock

import ringhold

PATIENCE_S = 30
spawn = multiprocessing.get_context("spawn")


def now_ms() -> float:
    """Of a clock that all processes of a host share."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) / 1e6


def partner(kind: str, directory: str, orders: Connection) -> None:
    """A process that acquires and releases one lock as told, and says when."""
    with ExitStack() as stack:
        if kind == "cluster":
            cluster = stack.enter_context(ringhold.open(directory, create=False))
            lock: Any = cluster.lock("ball")
        else:
            lock = filelock.FileLock(Path(directory) / "ball.lock")
        orders.send("ready")
        for order in iter(orders.recv, "end"):
            began = now_ms()
            if order == "acquire":
                lock.acquire()
                orders.send((began, now_ms()))
            elif order == "release":
                lock.release()
                orders.send((began, now_ms()))
            else:
                orders.send(looped(lock, float(order)))


def looped(lock: Any, seconds: float) -> int:
    """How often it had the lock in `seconds`, each time with a larger token."""
    end = now_ms() + seconds * 1e3
    count = last = 0
    while now_ms() < end:
        with lock as grant:
            assert grant.token > last
            last = grant.token
        count += 1
    return count


class Partner:
    def __init__(self, kind: str, directory: Path):
        self.orders, its = spawn.Pipe()
        self.process = spawn.Process(target=partner, args=(kind, str(directory), its))
        self.process.start()
        its.close()
        assert self.answer() == "ready"

    def tell(self, order: str) -> None:
        self.orders.send(order)

    def answer(self) -> Any:
        assert self.orders.poll(PATIENCE_S), "no answer"
        return self.orders.recv()

    def ask(self, order: str) -> Any:
        self.tell(order)
        return self.answer()

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.process.close()
        self.orders.close()


@contextmanager
def partners(kind: str, directory: Path, count: int) -> Iterator[list[Partner]]:
    with ExitStack() as stack:
        started = []
        for _ in range(count):
            started.append(Partner(kind, directory))
            stack.callback(started[-1].end)
        yield started

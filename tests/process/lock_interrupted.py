"""A process whose threads are interrupted while they take and give back a lock.

``lock_interrupted.py URL SECONDS WAY``. With WAY ``signal`` the main thread is struck by SIGALRM,
whose handler raises KeyboardInterrupt as Ctrl-C does; with ``thread`` another thread is struck by
`PyThreadState_SetAsyncExc`. At most once per round, so that a round can tidy up. Two more
threads are never struck and note when they are inside; the struck one, whose notes an
interrupt could cut short, only looks that nobody else is. Prints one JSON object at the end.
"""

from __future__ import annotations

import ctypes
import json
import random
import signal
import sys
import threading
import time
from collections import Counter
from types import FrameType
from typing import Any

import ringhold

NAME = "contended"
DELAY_S_MAX = 0.004


class Struck(KeyboardInterrupt):
    """What strikes."""


class Target:
    """The thread that is struck, round by round."""

    def __init__(self, cluster: ringhold.Cluster, crowd: dict[str, int]):
        self.lock = cluster.lock(NAME)
        self.crowd = crowd
        self.armed = False
        self.place = ""
        self.rounds = 0
        self.struck: Counter[str] = Counter()
        self.left_held = 0
        self.together = 0
        self.chance = random.Random(3)

    def round(self) -> None:
        try:
            self.place = "acquiring"
            self.armed = True
            if self.chance.random() < 0.5:
                with self.lock:
                    self.stay()
            else:
                grant = self.lock.acquire()
                assert grant is not None
                try:
                    self.stay()
                finally:
                    grant.release()
            self.place = "released"
            self.armed = False
        except Struck:
            self.struck[self.place] += 1
        self.armed = False
        self.rounds += 1

    def stay(self) -> None:
        self.place = "holding"
        until = time.monotonic() + self.chance.choice((0, 0.0005, 0.002))
        while True:
            self.together += len(self.crowd)
            if time.monotonic() >= until:
                break
            time.sleep(0)
        self.place = "releasing"

    def tidy_up(self) -> None:
        """What a program does that goes on after Ctrl-C: an interrupt can come in front of the
        first instruction of an ``__exit__``, or behind the last one of an ``acquire``."""
        if self.lock.owned():
            self.left_held += 1
            self.lock.release()


def by_signal(target: Target, end: float) -> None:
    def strike(number: int, frame: FrameType | None) -> None:
        if target.armed:
            target.armed = False
            raise Struck

    signal.signal(signal.SIGALRM, strike)
    while time.monotonic() < end:
        signal.setitimer(signal.ITIMER_REAL, target.chance.uniform(1e-5, DELAY_S_MAX))
        target.round()
        target.tidy_up()
    signal.setitimer(signal.ITIMER_REAL, 0)


def by_thread(target: Target, end: float) -> None:
    """Strikes a thread of the target's own; it confirms each round, struck or not."""
    begin, done = threading.Semaphore(0), threading.Semaphore(0)
    over = threading.Event()

    def live() -> None:
        while True:
            begin.acquire()
            if over.is_set():
                return
            target.round()
            try:
                # One that was sent and did not strike yet does so here at the latest.
                done.release()
                begin.acquire()
            except Struck:
                target.struck["afterwards"] += 1
                done.release()
                begin.acquire()
            target.tidy_up()
            done.release()

    thread = threading.Thread(target=live)
    thread.start()
    assert thread.ident is not None
    chance = random.Random(4)
    while time.monotonic() < end:
        target.place = ""
        begin.release()
        due = time.monotonic() + chance.uniform(1e-5, DELAY_S_MAX)
        aim = chance.choice(("", "acquiring", "holding", "releasing"))
        while time.monotonic() < due if not aim else target.place not in (aim, "released"):
            time.sleep(0)
        if target.armed:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(thread.ident), ctypes.py_object(Struck)
            )
        done.acquire()
        # None is on its way any more: what was sent is dropped, if it has not struck.
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), None)
        begin.release()
        done.acquire()
    over.set()
    begin.release()
    thread.join()


def undisturbed(
    cluster: ringhold.Cluster, crowd: dict[str, int], me: str, end: float, found: Any
) -> None:
    count = last = 0
    while time.monotonic() < end:
        with cluster.lock(NAME, timeout=30) as grant:
            if crowd or grant.token <= last:
                found["together"] += 1
            crowd[me] = last = grant.token
            time.sleep(0)
            if set(crowd) != {me}:
                found["together"] += 1
            del crowd[me]
        count += 1
    found[me] = count


def main(url: str, seconds: str, way: str) -> None:
    with ringhold.create(url) as cluster:
        crowd: dict[str, int] = {}
        found: Counter[str] = Counter()
        target = Target(cluster, crowd)
        end = time.monotonic() + float(seconds)
        others = [
            threading.Thread(target=undisturbed, args=(cluster, crowd, name, end, found))
            for name in ("one", "other")
        ]
        for thread in others:
            thread.start()
        (by_signal if way == "signal" else by_thread)(target, end)
        for thread in others:
            thread.join()
        waiters = len(cluster.locks.waiters(NAME))
        holders = len(cluster.locks.holders(NAME))
        last = cluster.lock(NAME, owner=1).acquire(timeout=5)
        told = {
            "rounds": target.rounds,
            "struck": target.struck,
            "left_held": target.left_held,
            "together": found["together"] + target.together,
            "others": [found["one"], found["other"]],
            "holders": holders,
            "waiters": waiters,
            "free": last is not None,
        }
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

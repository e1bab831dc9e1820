"""A process whose threads are interrupted while they take and give back a lock.

``lock_interrupted.py URL SECONDS WAY``. With WAY ``signal`` the main thread is struck by SIGALRM,
whose handler raises KeyboardInterrupt as Ctrl-C does; with ``thread`` another thread is struck by
`PyThreadState_SetAsyncExc`. At most once per round, so that a round can tidy up. Two more
threads are never struck and note when they are inside; the struck one, whose notes an
interrupt could cut short, only looks that nobody else is. Prints one JSON object at the end.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import json
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any

import ringhold

NAME = "contended"
DELAY_S_MAX = 0.004
STAY_S_MAX = 0.002


def nothing() -> None:
    """What happens on arrival unless something is to."""


class Struck(KeyboardInterrupt):
    """What strikes."""


class Target:
    """The thread that is struck, round by round."""

    def __init__(self, cluster: ringhold.Cluster, crowd: dict[str, int]):
        self.lock = cluster.lock(NAME)
        self.crowd = crowd
        self.place = ""
        self.rounds = 0
        self.struck: Counter[str] = Counter()
        self.left_held = 0
        self.together = 0
        self.chance = random.Random(3)
        self.on_arrival: Callable[[], object] = nothing

    def round(self) -> None:
        self.place = "acquiring"
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

    def stay(self) -> None:
        self.place = "holding"
        self.on_arrival()
        until = time.monotonic() + self.chance.choice((0, STAY_S_MAX / 4, STAY_S_MAX))
        while True:
            self.together += len(self.crowd)
            if time.monotonic() >= until:
                break
            time.sleep(0)
        self.place = "releasing"

    def tidy_up(self) -> None:
        """What a program does that goes on after Ctrl-C: an interrupt can come in front of the
        first instruction of an ``__exit__``, or behind the last one of an ``acquire``."""
        self.rounds += 1
        if self.lock.owned():
            self.left_held += 1
            self.lock.release()


def by_signal(target: Target, end: float) -> None:
    armed = False

    def strike(number: int, frame: FrameType | None) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise Struck

    def set_timer(delay_s_max: float) -> None:
        signal.setitimer(signal.ITIMER_REAL, target.chance.uniform(1e-5, delay_s_max))

    signal.signal(signal.SIGALRM, strike)
    while time.monotonic() < end:
        try:
            armed = True
            if target.chance.random() < 0.5:
                target.on_arrival = nothing
                set_timer(DELAY_S_MAX)
            else:
                target.on_arrival = functools.partial(set_timer, STAY_S_MAX)
            target.round()
            armed = False
        except Struck:
            target.struck[target.place] += 1
        target.tidy_up()
    signal.setitimer(signal.ITIMER_REAL, 0)


class Turn:
    """One round of a thread that is struck from another: how far each of the two is with it.
    Plain flags, since what waits in Python code is itself broken by what strikes there."""

    def __init__(self) -> None:
        self.begun = False
        self.finished = False
        self.struck = False
        self.settled = False
        self.tidy = False


def by_thread(target: Target, end: float) -> None:
    turns: list[Turn | None] = []

    def live() -> None:
        for number in itertools.count():
            while len(turns) <= number:
                time.sleep(1e-5)
            turn = turns[number]
            if turn is None:
                return
            try:
                turn.begun = True
                target.round()
                turn.finished = True
                while not turn.settled:
                    time.sleep(1e-5)
            except Struck:
                target.struck[target.place] += 1
                turn.struck = True
            target.tidy_up()
            turn.tidy = True

    thread = threading.Thread(target=live)
    thread.start()
    assert thread.ident is not None
    ident = ctypes.c_ulong(thread.ident)
    strike = ctypes.pythonapi.PyThreadState_SetAsyncExc
    chance = random.Random(4)
    while time.monotonic() < end:
        turn = Turn()
        target.place = ""
        turns.append(turn)
        while not turn.begun:
            time.sleep(1e-5)
        due = time.monotonic() + chance.uniform(1e-5, DELAY_S_MAX)
        aim = chance.choice(("", "acquiring", "holding", "releasing"))
        while time.monotonic() < due if not aim else target.place not in (aim, "released"):
            time.sleep(0)
        strike(ident, ctypes.py_object(Struck))
        while not (turn.finished or turn.struck):
            time.sleep(1e-5)
        # Whatever has not struck by now never will: this takes it back.
        strike(ident, None)
        turn.settled = True
        while not turn.tidy:
            time.sleep(1e-5)
    turns.append(None)
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

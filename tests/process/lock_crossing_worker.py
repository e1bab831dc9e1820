"""A process whose threads take several locks at a time:
``lock_crossing_worker.py URL SEED SECONDS ORDER``.

ORDER is "random" or "canonical". Each thread takes two or three of the locks, some of them
shared, one inside the other; refused with DeadlockError it gives back what it has and begins
again. It begins when it is told to by a line, tells in a JSON line how it went, and ends when it
is told to by another one.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from contextlib import ExitStack
from typing import Any

import ringhold

LOCKS = 6
THREADS = 3
INSIDE_S = 0.005


class Tally:
    def __init__(self) -> None:
        self.rounds = 0
        self.deadlocks = 0
        self.longest_s = 0.0
        self.refused_s: list[float] = []


def take(cluster: Any, names: list[str], modes: list[str], tally: Tally) -> bool:
    with ExitStack() as held:
        for name, mode in zip(names, modes, strict=True):
            start = time.monotonic()
            try:
                grant = cluster.lock(name, mode=mode).acquire()
            except ringhold.DeadlockError:
                tally.refused_s.append(time.monotonic() - start)
                return False
            finally:
                tally.longest_s = max(tally.longest_s, time.monotonic() - start)
            held.enter_context(grant)
            time.sleep(INSIDE_S)
    return True


def play(cluster: Any, seed: str, end_s: float, order: str, tally: Tally) -> None:
    chance = random.Random(seed)
    while time.monotonic() < end_s:
        names = [str(n) for n in chance.sample(range(LOCKS), chance.choice((2, 3)))]
        if order == "canonical":
            names.sort()
        modes = [chance.choice(("exclusive", "exclusive", "shared")) for _ in names]
        while not take(cluster, names, modes, tally):
            tally.deadlocks += 1
            time.sleep(chance.random() * 0.02)
        tally.rounds += 1


def main(url: str, seed: str, seconds: str, order: str) -> None:
    with ringhold.open(url) as cluster:
        print("ready", flush=True)
        sys.stdin.readline()
        end_s = time.monotonic() + float(seconds)
        tallies = [Tally() for _ in range(THREADS)]
        threads = [
            threading.Thread(target=play, args=(cluster, f"{seed}.{at}", end_s, order, tally))
            for at, tally in enumerate(tallies)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(json.dumps([vars(tally) for tally in tallies]), flush=True)
        sys.stdin.readline()


if __name__ == "__main__":
    main(*sys.argv[1:])

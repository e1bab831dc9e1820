"""A process that commits in loops: `store_racer.py URL SECONDS WRITER…`, each WRITER being "thread"
(on the blocking face) or "task" (on the async face).

Says "ready", starts when told to, and says how many commits each writer made in SECONDS.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time

import ringhold
from ringhold import aio


def main() -> None:
    url, seconds, *writers = sys.argv[1:]
    done = [0] * len(writers)
    threads = [place for place, kind in enumerate(writers) if kind == "thread"]
    tasks = [place for place, kind in enumerate(writers) if kind == "task"]
    end = 0.0

    def begin() -> None:
        nonlocal end
        end = time.monotonic() + float(seconds)

    # The time begins when all are there.
    start = threading.Barrier(len(threads) + (1 if tasks else 0) + 1, action=begin)

    def thread(cluster: ringhold.Cluster, place: int) -> None:
        start.wait()
        while time.monotonic() < end:
            cluster.kv.put(f"racer/{place}", b"%d" % done[place])
            done[place] += 1

    async def task(cluster: aio.Cluster, place: int) -> None:
        while time.monotonic() < end:
            await cluster.kv.put(f"racer/{place}", b"%d" % done[place])
            done[place] += 1

    async def all_tasks() -> None:
        async with aio.open(url, create=False) as cluster:
            start.wait()
            await asyncio.gather(*(task(cluster, place) for place in tasks))

    with ringhold.open(url, create=False) as cluster:
        running = [threading.Thread(target=thread, args=(cluster, place)) for place in threads]
        if tasks:
            running.append(threading.Thread(target=lambda: asyncio.run(all_tasks())))
        for each in running:
            each.start()
        print("ready", flush=True)
        sys.stdin.readline()
        start.wait()
        for each in running:
            each.join()
    print(*done, flush=True)


if __name__ == "__main__":
    main()

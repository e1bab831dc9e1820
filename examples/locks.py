"""Locks between threads, which between processes work the same: ``python examples/locks.py``."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable

import ringhold


def in_threads(count: int, work: Callable[[], None]) -> None:
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def excluding(cluster: ringhold.Cluster) -> None:
    total = 0

    def add() -> None:
        nonlocal total
        for _ in range(25):
            with cluster.lock("total", timeout=30):
                before = total
                total = before + 1

    in_threads(4, add)
    print("added up to", total)


def giving_up(cluster: ringhold.Cluster) -> None:
    def report() -> None:
        try:
            with cluster.lock("report", timeout=0.1):
                print("never reached")
        except ringhold.LockTimeout:
            print("somebody else writes the report")

    with cluster.lock("report"):
        in_threads(1, report)
    print("free again:", not cluster.lock("report").locked())


def sharing(cluster: ringhold.Cluster) -> None:
    all_inside = threading.Barrier(3, timeout=10)
    met = []

    def read() -> None:
        with cluster.lock("catalogue", mode="shared") as grant:
            all_inside.wait()
            met.append(grant.token)

    in_threads(3, read)
    print(len(met), "readers at once")


def losing(cluster: ringhold.Cluster) -> None:
    told = threading.Event()
    try:
        with cluster.lock("job") as grant:
            grant.on_lost(lambda lost: told.set())
            # As an administrator would; a lease that ran out ends in the same way.
            cluster.locks.break_("job")
            told.wait(timeout=10)
            try:
                grant.check()
            except ringhold.LockLost:
                print("lost, and told so")
    except ringhold.LockLost as error:
        print("leaving raises", type(error).__name__, "for", error.name)


def main() -> None:
    with tempfile.TemporaryDirectory() as directory, ringhold.create(f"{directory}/c") as cluster:
        excluding(cluster)
        giving_up(cluster)
        sharing(cluster)
        losing(cluster)


if __name__ == "__main__":
    main()

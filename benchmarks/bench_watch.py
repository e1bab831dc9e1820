"""How soon a watch in another process learns of a commit, and what telling it costs.

The delay runs from the call of a commit in one process to the delivery in another, the commit
included, on the clock that all processes share: with doorbells, and with polling alone, every
20 ms, where the names of the bells were removed. The cost is that of commits while ten openings
watch something else, beside commits that nobody watches. Every commit must be delivered, none
of the others.

Tiny by default; RINGHOLD_BENCH=full takes real sizes. Figures are medians over the rounds with
the smallest and largest.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pairs import FULL, ROUNDS, figure, in_turns, report
from ringhold.env import real_env
from ringhold.store.base import Changes, Put, Store
from ringhold.store.sqlite import open_sqlite_store

COMMITS = 100 if FULL else 10
WATCHED = b"m/"
WATCHERS = 10


async def watch(directory: str) -> None:
    """The other process: says when it waits, then the revision and time of every delivery."""
    store = await open_sqlite_store(directory, real_env(), create=False)
    snapshot = await store.snapshot()
    following = store.watch(WATCHED, snapshot.revision + 1)
    await snapshot.close()
    delivery = asyncio.ensure_future(anext(following))
    await asyncio.sleep(0)
    print("ready", flush=True)
    while True:
        changes = await delivery
        print(changes.revision, time.monotonic_ns(), flush=True)
        delivery = asyncio.ensure_future(anext(following))


@contextlib.contextmanager
def watching(directory: Path, *, bells: bool) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, __file__, str(directory)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for name in (directory / "bells").iterdir():
            if not bells and name.is_fifo():
                name.unlink()
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def create(runner: asyncio.Runner, directory: Path) -> Store:
    return runner.run(open_sqlite_store(str(directory), real_env(), create=True))


def delays_ms(
    runner: asyncio.Runner, store: Store, process: subprocess.Popen[str], count: int
) -> list[float]:
    assert process.stdout is not None
    found = []
    for number in range(count):
        # At all moments between two polls: a delivery is one, and the next is 20 ms later.
        time.sleep(number * 7 % 20 / 1e3)
        called_ns = time.monotonic_ns()
        revision = runner.run(store.commit(puts=[Put(WATCHED + b"%d" % number, b"")]))
        said, delivered_ns = map(int, process.stdout.readline().split())
        assert said == revision
        found.append((delivered_ns - called_ns) / 1e6)
    return found


def test_delivery_to_another_process(benchmark: Any, tmp_path: Path) -> None:
    medians: dict[bool, list[float]] = {True: [], False: []}

    def rounds() -> None:
        with asyncio.Runner() as runner:
            stores = {bells: create(runner, tmp_path / f"bells {bells}") for bells in medians}
            with contextlib.ExitStack() as stack:
                processes = {
                    bells: stack.enter_context(watching(tmp_path / f"bells {bells}", bells=bells))
                    for bells in medians
                }
                for _, bells in itertools.product(range(ROUNDS), medians):
                    delays = delays_ms(runner, stores[bells], processes[bells], COMMITS)
                    medians[bells].append(statistics.median(delays))
            for store in stores.values():
                runner.run(store.close())

    benchmark.pedantic(rounds, rounds=1)
    figure(benchmark, "delivery by a bell", medians[True], "ms")
    figure(benchmark, "delivery by polling", medians[False], "ms")
    ratios = [slow / fast for fast, slow in zip(*medians.values(), strict=True)]
    figure(benchmark, "bell / polling", ratios, "times as soon")


class Watched:
    """A store whose commits concern none of those who watch it."""

    def __init__(self, runner: asyncio.Runner, directory: Path, watchers: int):
        self.runner = runner
        self.store = create(runner, directory)
        self.others: list[Store] = []
        self.tasks: list[asyncio.Task[Changes]] = []
        for number in range(watchers):
            other = runner.run(open_sqlite_store(str(directory), real_env(), create=False))
            self.others.append(other)
            self.tasks.append(runner.run(self._wait(other, b"m/%d/" % number)))

    async def _wait(self, other: Store, prefix: bytes) -> asyncio.Task[Changes]:
        task = asyncio.ensure_future(anext(other.watch(prefix, 1)))
        await asyncio.sleep(0)
        return task

    def commit(self, number: int) -> None:
        async def commits() -> None:
            for place in range(COMMITS):
                await self.store.commit(puts=[Put(b"key %d %d" % (number, place), b"v" * 100)])

        self.runner.run(commits())

    def close(self) -> None:
        assert not any(task.done() for task in self.tasks)
        for store in [*self.others, self.store]:
            self.runner.run(store.close())
        for task in self.tasks:
            task.exception()


def test_commits_beside_watches_they_do_not_concern(
    benchmark: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    # What ringing costs, without what ten pollers in the same process do.
    monkeypatch.setattr("ringhold.store.sqlite.watching.POLL_S", 3600.0)
    name = f"commits beside {WATCHERS} watches"
    with asyncio.Runner() as runner:
        contenders = {
            name: Watched(runner, tmp_path / "watched", WATCHERS),
            "commits nobody watches": Watched(runner, tmp_path / "alone", 0),
        }
        ways: dict[str, Callable[[int], object]] = {
            name: contender.commit for name, contender in contenders.items()
        }
        seconds = benchmark.pedantic(in_turns, (ways,), rounds=1)
        for contender in contenders.values():
            contender.close()
    report(benchmark, seconds, [(name, "commits nobody watches")], COMMITS, "commits")


if __name__ == "__main__":
    asyncio.run(watch(sys.argv[1]))

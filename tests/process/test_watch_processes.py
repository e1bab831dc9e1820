"""Goal: a watch learns of another process's commit at once, of what does not concern it never,
and of everything even when bells are broken.

Method: real processes (watch_worker.py) over one directory. Where the bell is to be proved the
workers poll once an hour, where polling is to be proved the names of the bells are removed.
Whether a process was woken is read from the kernel's count of its context switches.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ringhold.env import real_env
from ringhold.store.base import Put, Store
from ringhold.store.sqlite import open_sqlite_store

WORKER = str(Path(__file__).with_name("watch_worker.py"))
NEVER_S = 3600.0


@contextmanager
def watcher(
    directory: Path, prefix: str, poll_s: float, *options: str
) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, WORKER, str(directory), prefix, str(poll_s), *options],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def line(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    return process.stdout.readline().split()


def run(directory: Path, test: Callable[[Store], Awaitable[None]]) -> None:
    async def main() -> None:
        store = await open_sqlite_store(str(directory), real_env(), create=True)
        try:
            await test(store)
        finally:
            await store.close()

    asyncio.run(main())


def names(directory: Path) -> set[str]:
    return {entry.name for entry in (directory / "bells").iterdir()} - {"changed"}


def switches(process: subprocess.Popen[str]) -> int:
    """How often threads of the process went to sleep so far."""
    status = [path.read_text() for path in Path(f"/proc/{process.pid}/task").glob("*/status")]
    found = re.findall(r"^voluntary_ctxt_switches:\s*(\d+)$", "".join(status), re.MULTILINE)
    assert found
    return sum(map(int, found))


def asleep(process: subprocess.Popen[str]) -> None:
    """Waits until the process sleeps and its count of switches stands still."""
    before = -1
    while before != switches(process):
        before = switches(process)
        time.sleep(0.05)


async def delays_ms(store: Store, process: subprocess.Popen[str], count: int) -> list[float]:
    """From the return of a commit here to its delivery there."""
    found = []
    for number in range(count):
        revision = await store.commit(puts=[Put(b"m/1", b"%d" % number)])
        returned_ns = time.monotonic_ns()
        said, delivered_ns = map(int, await asyncio.to_thread(line, process))
        assert said == revision
        found.append((delivered_ns - returned_ns) / 1e6)
    return found


def test_a_bell_tells_within_milliseconds(tmp_path: Path) -> None:
    async def test(store: Store) -> None:
        with watcher(tmp_path, "m/", NEVER_S) as process:
            assert line(process) == ["ready"]
            assert statistics.median(await delays_ms(store, process, 100)) <= 5.0

    run(tmp_path, test)


def test_what_does_not_concern_a_process_does_not_wake_it(tmp_path: Path) -> None:
    async def test(store: Store) -> None:
        with watcher(tmp_path, "m/", NEVER_S) as process:
            assert line(process) == ["ready"]
            asleep(process)
            before = switches(process)
            for number in range(200):
                await store.commit(puts=[Put(b"other/%d" % (number % 7), b"")])
            assert switches(process) - before <= 5
            # The count does tell: of commits that concern it, one by one, each wakes it, unless
            # it had no time to fall asleep.
            before = switches(process)
            await delays_ms(store, process, 100)
            assert switches(process) - before >= 50

    run(tmp_path, test)


@pytest.mark.parametrize("poll_s", [NEVER_S, 0.020])
def test_polling_delivers_what_a_broken_bell_does_not(poll_s: float, tmp_path: Path) -> None:
    async def test(store: Store) -> None:
        with watcher(tmp_path, "m/", poll_s) as process:
            assert line(process) == ["ready"]
            for name in names(tmp_path):
                (tmp_path / "bells" / name).unlink()
            delivery = asyncio.create_task(delays_ms(store, process, 20))
            if poll_s == NEVER_S:
                # The fault is there: nothing but polling would tell.
                await asyncio.sleep(0.3)
                assert not delivery.done()
                process.kill()
                with pytest.raises(ValueError, match="not enough values"):
                    await delivery
            else:
                async with asyncio.timeout(30):
                    await delivery

    run(tmp_path, test)


@pytest.mark.parametrize("options", [[], ["fork"]], ids=["alone", "leaving a forked child"])
def test_the_bell_of_a_killed_process_is_removed_by_the_next_ring(
    options: list[str], tmp_path: Path
) -> None:
    async def test(store: Store) -> None:
        with watcher(tmp_path, "m/", NEVER_S, *options) as process:
            child = int(line(process)[0]) if options else 0
            try:
                assert line(process) == ["ready"]
                await delays_ms(store, process, 1)
                (name,) = names(tmp_path)
                process.kill()
                process.wait()
                if child:
                    # It inherited the bell's descriptor, and must not keep it alive.
                    os.kill(child, 0)
                assert names(tmp_path) == {name}
                await store.commit(puts=[Put(b"other", b"")])
                assert names(tmp_path) == {name}
                await store.commit(puts=[Put(b"m/1", b"")])
                # Whoever committed is answered first, then rings.
                async with asyncio.timeout(10):
                    while names(tmp_path):  # noqa: ASYNC110
                        await asyncio.sleep(0.001)
            finally:
                if child:
                    os.kill(child, signal.SIGKILL)

    run(tmp_path, test)


def test_a_forked_child_that_ends_leaves_its_parents_bell(tmp_path: Path) -> None:
    async def test(store: Store) -> None:
        with watcher(tmp_path, "m/", NEVER_S, "fork") as process:
            child = int(line(process)[0])
            try:
                assert line(process) == ["ready"]
                await delays_ms(store, process, 3)
            finally:
                os.kill(child, signal.SIGTERM)
            before = names(tmp_path)
            assert len(before) == 1
            await delays_ms(store, process, 3)
            assert names(tmp_path) == before

    run(tmp_path, test)

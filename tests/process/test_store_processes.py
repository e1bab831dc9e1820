"""Goal: processes that share a store directory lose nothing when some of them are killed, and
none of them starves.

Method: real processes (store_worker.py) over one directory, killed with SIGKILL or stopped with
SIGSTOP; afterwards what they said is compared with what the store holds.
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from lock_processes import pause_outside_commit

from ringhold.env import real_env
from ringhold.errors import StoreUnavailable
from ringhold.store.base import Put, Store
from ringhold.store.lock_files import CommitLock
from ringhold.store.sqlite import open_sqlite_store

WORKER = str(Path(__file__).with_name("store_worker.py"))


@contextmanager
def worker(role: str, directory: Path, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, WORKER, role, str(directory), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        process.stdout.close()


def tell(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdin is not None
    print(text, file=process.stdin, flush=True)


def line(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    return process.stdout.readline().split()


def rest(process: subprocess.Popen[str]) -> list[list[str]]:
    """What a killed process had said; a line that it could not finish does not count."""
    assert process.stdout is not None
    return [
        text.split()
        for text in process.stdout.read().splitlines(keepends=True)
        if text.endswith("\n")
    ]


async def create(directory: Path) -> Store:
    return await open_sqlite_store(str(directory), real_env(), create=True)


async def values(store: Store) -> dict[str, int]:
    snapshot = await store.snapshot()
    rows = await snapshot.range(b"", b"\xff")
    await snapshot.close()
    return {key.decode(): int(entry.value) for key, entry in rows}


def test_no_acknowledged_increment_is_lost_whoever_is_killed(tmp_path: Path) -> None:
    asyncio.run(create_and_close(tmp_path))
    counters = ["c0", "c1", "c2"]
    order = random.Random(7)
    said: list[list[str]] = []
    for _ in range(4):
        with (
            worker("count", tmp_path, *counters) as a,
            worker("count", tmp_path, *counters) as b,
            worker("count", tmp_path, *counters[::-1]) as c,
            worker("count", tmp_path, *counters) as d,
        ):
            processes = [a, b, c, d]
            for process in processes:
                assert line(process) == ["ready"]
            order.shuffle(processes)
            for process in processes:
                # Killed somewhere within the commits that follow a few answers of its own.
                said.extend(line(process) for _ in range(4))
                time.sleep(order.random() * 0.05)
                process.kill()
                process.wait()
                said.extend(rest(process))
    acknowledged: dict[str, list[int]] = defaultdict(list)
    for kind, counter, value in said:
        assert kind == "acknowledged"
        acknowledged[counter].append(int(value))

    async def check() -> None:
        store = await open_sqlite_store(str(tmp_path), real_env(), create=False)
        final = await values(store)
        await store.close()
        for counter in counters:
            # No value was acknowledged twice, so none was overwritten; the killed may each
            # have committed one more without having said so.
            assert len(set(acknowledged[counter])) == len(acknowledged[counter])
            assert max(acknowledged[counter]) <= final[counter]
            assert len(acknowledged[counter]) <= final[counter]
            assert final[counter] <= len(acknowledged[counter]) + 16

    asyncio.run(check())
    assert sum(map(len, acknowledged.values())) > 50


async def create_and_close(directory: Path) -> None:
    await (await create(directory)).close()


def test_the_lease_of_a_killed_process_ends_at_once(tmp_path: Path) -> None:
    lease = os.urandom(12)

    async def main() -> None:
        store = await create(tmp_path)
        session_file = tmp_path / "locks" / "sessions" / lease.hex()
        with worker("hold", tmp_path, lease.hex(), "1") as holder:
            assert line(holder) == ["ready"]
            assert session_file.exists()
            await store.expire_leases()
            snapshot = await store.snapshot()
            assert await snapshot.get(b"1") is not None
            watch = store.watch(b"1", snapshot.revision + 1)
            await snapshot.close()
            holder.kill()
            killed = time.monotonic()
            freed = asyncio.create_task(anext(watch))  # type: ignore[arg-type]
            while not freed.done():
                await store.expire_leases()
                await asyncio.sleep(0.005)
            # Its lease has most of a minute to run.
            assert time.monotonic() - killed < 30
            assert (await freed).events[0].value is None
            assert not session_file.exists()
            await watch.aclose()  # type: ignore[attr-defined]
        await store.close()

    asyncio.run(main())


def test_the_lease_of_a_stopped_process_lives_on(tmp_path: Path) -> None:
    lease = os.urandom(12)

    async def main() -> None:
        store = await create(tmp_path)
        with worker("hold", tmp_path, lease.hex(), "1") as holder:
            assert line(holder) == ["ready"]
            pause_outside_commit(holder.pid, tmp_path)
            await store.expire_leases()
            await store.renew_lease(lease)
        await store.close()

    asyncio.run(main())


def raced(directory: Path, *widths: int, seconds: float = 3.0) -> list[int]:
    """The commits of processes that start together, each with so many at a time."""
    asyncio.run(create_and_close(directory))
    with ExitStack() as stack:
        processes = [
            stack.enter_context(worker("race", directory, seconds, width)) for width in widths
        ]
        for process in processes:
            assert line(process) == ["ready"]
        for process in processes:
            tell(process, "start")
        return [int(line(process)[1]) for process in processes]


def test_four_processes_in_a_loop_share_the_commit_lock(tmp_path: Path) -> None:
    commits = raced(tmp_path, 1, 1, 1, 1)
    assert min(commits) > 0
    assert min(commits) >= max(commits) / 5, commits


def test_a_process_that_always_has_more_to_commit_lets_others_in(tmp_path: Path) -> None:
    greedy, *patient = raced(tmp_path, 32, 1, 1, seconds=2.0)
    # The greedy one commits up to 32 each time it has the lock; turns are what is shared.
    assert min(patient) >= greedy / 32 / 5, (greedy, patient)


def test_a_commit_lock_that_is_not_given_back_is_reported_with_its_holder(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        store = await open_sqlite_store(str(tmp_path), real_env(), create=True, commit_timeout=0.3)
        revision = await store.commit(puts=[Put(b"1", b"1")])
        # The lock of a process that was stopped in the middle of a commit.
        holder = CommitLock(str(tmp_path / "locks"))
        holder.acquire()
        with pytest.raises(StoreUnavailable, match=f"process {os.getpid()} "):
            await store.commit(puts=[Put(b"1", b"2")])
        snapshot = await store.snapshot()
        assert snapshot.revision == revision
        await snapshot.close()
        holder.release()
        # What was refused stays refused.
        assert await store.commit(puts=[Put(b"1", b"3")]) == revision + 1
        holder.acquire()
        with pytest.raises(StoreUnavailable):
            await store.commit(puts=[Put(b"1", b"4")])
        async with asyncio.timeout(5):
            await store.close()
        holder.close()

    asyncio.run(main())

"""Goal: a process that is stopped inside a commit costs nobody else a lease, and nobody is granted
anything early because of it.

Method: a library preloaded into a process stops it in the sync of a commit: the commit lock is
held, frames are written, nobody else can commit. It goes on after more than a TTL.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import sysconfig
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringhold.env import real_env
from ringhold.errors import Conflict, SessionExpired
from ringhold.store.base import Absent, Put, Store
from ringhold.store.lock_files import CommitLock
from ringhold.store.sqlite import open_sqlite_store

HERE = Path(__file__).parent
TTL_S = 2.0
MINE, SILENT = b"m" * 12, b"s" * 12

COMMITTER = """
    import asyncio, sys
    from ringhold.env import real_env
    from ringhold.store.base import Put
    from ringhold.store.sqlite import open_sqlite_store

    async def main():
        store = await open_sqlite_store(sys.argv[1], real_env(), create=False)
        for line in sys.stdin:
            print(await store.commit(puts=[Put(b"stopped", line.encode())]), flush=True)
        await store.close()

    asyncio.run(main())
"""


@pytest.fixture(scope="module")
def stop_sync(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("preload") / "stop_sync.so"
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    source = HERE / "stop_sync.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


class Committer:
    """A process that commits when told to, and is stopped inside a commit when asked for."""

    def __init__(self, directory: Path, library: Path):
        self._flag = directory.with_name("stop")
        self._directory = directory
        self._process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(COMMITTER), str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "LD_PRELOAD": str(library),
                "STOP_SYNC": str(self._flag),
                "STOP_SYNC_SUFFIX": "store.db-wal",
            },
        )

    def tell(self) -> None:
        assert self._process.stdin is not None
        print("commit", file=self._process.stdin, flush=True)

    def answer(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def stop_inside_a_commit(self) -> None:
        wal = self._directory / "store" / "store.db-wal"
        before = wal.stat().st_size
        self._flag.touch()
        self.tell()
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOWAIT)
        lock = CommitLock(str(self._directory / "locks"))
        try:
            assert not lock.try_acquire()
            assert lock.holder() == self._process.pid
        finally:
            lock.close()
        assert wal.stat().st_size > before

    def go_on(self) -> None:
        self._flag.unlink()
        self._process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def committer(tmp_path: Path, stop_sync: Path) -> Iterator[Committer]:
    directory = tmp_path / "data"
    asyncio.run(make(directory))
    process = Committer(directory, stop_sync)
    try:
        process.tell()
        assert process.answer() == 2
        yield process
    finally:
        process.end()


async def make(directory: Path) -> None:
    await (await open_sqlite_store(str(directory), real_env(), create=True)).close()


async def holds(store: Store, key: bytes) -> bool:
    snapshot = await store.snapshot()
    try:
        return await snapshot.get(key) is not None
    finally:
        await snapshot.close()


def test_leases_outlive_a_process_that_is_stopped_inside_a_commit(
    tmp_path: Path, committer: Committer
) -> None:
    async def main() -> None:
        directory = str(tmp_path / "data")
        mine = await open_sqlite_store(directory, real_env(), create=False)
        rival = await open_sqlite_store(directory, real_env(), create=False)
        try:
            await mine.grant_lease(MINE, TTL_S)
            await mine.grant_lease(SILENT, TTL_S)
            await mine.commit(puts=[Put(b"mine", b"", MINE), Put(b"silent", b"", SILENT)])
            granted = time.monotonic()
            committer.stop_inside_a_commit()
            renewal = asyncio.create_task(mine.renew_lease(MINE))
            attempt = asyncio.create_task(
                rival.commit(compares=[Absent(b"mine")], puts=[Put(b"mine", b"stolen")])
            )
            while time.monotonic() < granted + 2 * TTL_S:
                # A session that asks is told that it need not give up.
                until_ns = mine.lease_until(MINE)
                assert until_ns is not None
                assert until_ns > time.clock_gettime_ns(time.CLOCK_BOOTTIME)
                await asyncio.sleep(0.02)
            assert not renewal.done()
            assert not attempt.done()
            resumed = time.monotonic()
            committer.go_on()
            await renewal
            with pytest.raises(Conflict):
                await attempt
            assert await asyncio.to_thread(committer.answer) > 2
            # Who never renewed has its whole TTL once more, and then no longer.
            while await holds(rival, b"silent"):
                await rival.expire_leases()
                await mine.renew_lease(MINE)
                await asyncio.sleep(0.05)
            assert time.monotonic() > resumed + TTL_S - 0.1
            assert await holds(rival, b"mine")
            with pytest.raises(SessionExpired):
                await mine.renew_lease(SILENT)
        finally:
            await mine.close()
            await rival.close()

    asyncio.run(main())


def test_a_process_that_dies_inside_a_commit_costs_nobody_a_lease(
    tmp_path: Path, committer: Committer
) -> None:
    async def main() -> None:
        store = await open_sqlite_store(str(tmp_path / "data"), real_env(), create=False)
        try:
            await store.grant_lease(MINE, TTL_S)
            await store.commit(puts=[Put(b"mine", b"", MINE)])
            committer.stop_inside_a_commit()
            waiting = asyncio.create_task(store.commit(puts=[Put(b"next", b"")]))
            await asyncio.sleep(0.6 * TTL_S)
            assert not waiting.done()
            committer.end()
            revision = await waiting
            assert await holds(store, b"mine")
            snapshot = await store.snapshot()
            assert snapshot.revision == revision
            entry = await snapshot.get(b"stopped")
            assert entry is not None
            # The frames were written, so the commit may count although nobody was told.
            assert entry.revision in (2, revision - 1)
            await snapshot.close()
        finally:
            await store.close()

    asyncio.run(main())

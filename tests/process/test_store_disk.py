"""Goal: a full disk, a store that was removed and a wall clock that is set forward or back do what
the caller is told, and nothing else: leases live on, what frees something can be done, and nothing
hangs.

Method: a tmpfs filled to its last block; directories removed under an open store; a process whose
wall clock is shifted by a preloaded library.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import textwrap
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import apsw
import pytest

import ringhold
from ringhold.env import real_env
from ringhold.errors import InvalidInput, StoreUnavailable
from ringhold.store.base import Put, Store
from ringhold.store.sqlite import open_sqlite_store

HERE = Path(__file__).parent
LEASE = b"l" * 12


def on_store(
    directory: Path, test: Callable[[Store], Awaitable[None]], *, create: bool = True
) -> None:
    async def main() -> None:
        store = await open_sqlite_store(str(directory), real_env(), create=create)
        try:
            async with asyncio.timeout(60):
                await test(store)
        finally:
            await store.close()

    asyncio.run(main())


# A full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def fill(disk: Path) -> Path:
    """Leaves not one free block."""
    filler = disk / "filler"
    with pytest.raises(OSError, match="No space left"), open(filler, "ab", 0) as file:
        file.writelines(itertools.repeat(bytes(4096)))
    assert os.statvfs(disk).f_bavail == 0
    return filler


async def put_until_refused(store: Store) -> None:
    async def put_all() -> None:
        for number in range(10_000):
            await store.commit(puts=[Put(b"more%d" % number, b"x" * 1000)])

    with pytest.raises(StoreUnavailable, match="full"):
        await put_all()


@pytest.mark.system
def test_on_a_full_disk_leases_are_renewed_and_deletions_made(small_disk: Path) -> None:
    async def test(store: Store) -> None:
        kept = [b"%03d" % number for number in range(300)]
        await store.commit(puts=[Put(key, b"x" * 500) for key in kept])
        await store.grant_lease(LEASE, 60.0)
        await store.grant_lease(b"2" * 12, 60.0)
        await store.commit(puts=[Put(b"bound", b"", LEASE), Put(b"bound2", b"", b"2" * 12)])
        filler = fill(small_disk)
        await put_until_refused(store)
        for _ in range(200):
            await store.renew_lease(LEASE)
        for key in kept[:200]:
            await store.commit(deletes=[key])
        await store.revoke_lease(b"2" * 12)
        await store.commit(deletes=[b"bound"])
        for _ in range(200):
            await store.renew_lease(LEASE)
        # Beside others that put, and are refused.
        outcomes = await asyncio.gather(
            store.commit(puts=[Put(b"large", b"x" * (1 << 20))]),
            store.commit(deletes=[kept[200]]),
            store.renew_lease(LEASE),
            return_exceptions=True,
        )
        assert isinstance(outcomes[0], StoreUnavailable)
        assert isinstance(outcomes[1], int)
        assert outcomes[2] is None
        filler.unlink()
        await store.commit(puts=[Put(b"large", b"x" * (1 << 18))])
        snapshot = await store.snapshot()
        found = [key for key, _ in await snapshot.range(b"0", b"4")]
        await snapshot.close()
        assert found == kept[201:]
        await store.revoke_lease(LEASE)

    on_store(small_disk / "data", test)
    connection = apsw.Connection(str(small_disk / "data" / "store" / "store.db"))
    assert connection.execute("PRAGMA integrity_check").get == "ok"
    connection.close()


@pytest.mark.system
def test_a_disk_filled_by_puts_alone_can_be_emptied_again(small_disk: Path) -> None:
    async def test(store: Store) -> None:
        await put_until_refused(store)
        fill(small_disk)
        snapshot = await store.snapshot()
        keys = [key for key, _ in await snapshot.range(b"more", b"more~")]
        await snapshot.close()
        assert len(keys) > 100
        for key in keys:
            await store.commit(deletes=[key])
        await store.commit(puts=[Put(b"after", b"x" * 1000)])

    on_store(small_disk / "data", test)


# A store that is gone


def test_a_store_removed_while_open_is_unavailable(tmp_path: Path) -> None:
    directory = tmp_path / "data"

    async def test(store: Store) -> None:
        await store.grant_lease(LEASE, 60.0)
        await store.commit(puts=[Put(b"a", b"")])
        shutil.rmtree(directory)
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: store.commit(puts=[Put(b"b", b"")]),
            lambda: store.commit(deletes=[b"a"]),
            lambda: store.renew_lease(LEASE),
            lambda: store.revoke_lease(LEASE),
            lambda: store.grant_lease(b"2" * 12, 60.0),
        ]
        for call in calls * 2:
            with pytest.raises((StoreUnavailable, FileNotFoundError), match="data"):
                await call()
        with pytest.raises(StoreUnavailable, match="data"):
            store.lease_until(LEASE)

    on_store(directory, test)
    assert not directory.exists()


def test_a_store_put_in_the_place_of_an_open_one_is_not_written(tmp_path: Path) -> None:
    directory = tmp_path / "data"

    async def test(store: Store) -> None:
        await store.commit(puts=[Put(b"a", b"")])
        fifos = shutil.ignore_patterns("*.free", "bells")
        shutil.copytree(directory, tmp_path / "backup", ignore=fifos)
        shutil.move(directory, tmp_path / "old")
        shutil.move(tmp_path / "backup", directory)
        with pytest.raises(StoreUnavailable, match="replaced"):
            await store.commit(puts=[Put(b"b", b"")])

    async def check(store: Store) -> None:
        snapshot = await store.snapshot()
        assert [key for key, _ in await snapshot.range(b"", b"z")] == [b"a"]
        await snapshot.close()

    on_store(directory, test)
    on_store(directory, check, create=False)


# Clocks


SHIFTED = """
    import json, os, sys, time
    import ringhold

    def shift(seconds):
        with open(os.environ["SHIFT_WALL"], "w") as file:
            file.write(str(seconds))

    before = time.time(), time.clock_gettime(time.CLOCK_BOOTTIME)
    with ringhold.open(sys.argv[1], session_ttl=2) as cluster:
        with cluster.lock("held") as grant:
            seen = []
            for seconds in (3600, -3600, 0):
                shift(seconds)
                seen.append(time.time() - before[0])
                until = time.monotonic() + 1.5
                while time.monotonic() < until:
                    grant.check()
                    time.sleep(0.02)
                cluster.kv["at"] = str(seconds).encode()
            print(json.dumps([seen, time.clock_gettime(time.CLOCK_BOOTTIME) - before[1]]))
"""


@pytest.fixture(scope="module")
def shift_wall(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("preload") / "shift_wall.so"
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    source = HERE / "shift_wall.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


def test_a_wall_clock_stepped_by_an_hour_costs_no_lock(tmp_path: Path, shift_wall: Path) -> None:
    shift = tmp_path / "shift"
    shift.write_text("0")
    with ringhold.open(tmp_path / "data", create=True, session_ttl=2) as other:
        started = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(SHIFTED), str(tmp_path / "data")],
            env={**os.environ, "LD_PRELOAD": str(shift_wall), "SHIFT_WALL": str(shift)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            while process.poll() is None and not other.locks.holders("held"):
                time.sleep(0.01)
            # To somebody whose clock is right, the lock is taken all the while, and no longer.
            with other.lock("held", timeout=30):
                output, errors = process.communicate(timeout=30)
        finally:
            process.kill()
            process.wait()
    assert process.returncode == 0, errors
    seen, passed_s = json.loads(output)
    assert [round(step / 3600) for step in seen] == [1, -1, 0]
    assert 4.5 <= passed_s < time.monotonic() - started


# Durability


def test_a_durability_that_cannot_be_had_is_refused_before_anything_is_made(
    tmp_path: Path,
) -> None:
    for make in (ringhold.open, ringhold.create):
        for durability, word in (("memory", "memory://"), ("none", "'full'"), ("", "'process'")):
            with pytest.raises(InvalidInput, match=word):
                make(tmp_path / "data", durability=durability)
        with pytest.raises(TypeError, match="durability"):
            make(tmp_path / "data", durability=1)  # type: ignore[arg-type]
        for durability in ("full", "process"):
            with pytest.raises(InvalidInput, match="memory://durable"):
                make("memory://durable", durability=durability)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("durability", [None, "full", "process"])
def test_every_durability_of_a_directory_outlives_kill(
    tmp_path: Path, durability: str | None
) -> None:
    script = """
        import os, signal, sys
        import ringhold
        cluster = ringhold.open(sys.argv[1], durability=sys.argv[2] or None)
        for number in range(100):
            cluster.kv["last"] = b"%d" % number
        os.kill(os.getpid(), signal.SIGKILL)
    """
    program = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "data")]
    done = subprocess.run([*program, durability or ""], check=False)
    assert done.returncode == -9
    with ringhold.open(tmp_path / "data", durability=durability) as cluster:
        assert cluster.kv["last"] == b"99"


def test_memory_has_the_durability_it_has() -> None:
    with ringhold.open("memory://levels", durability="memory") as cluster:
        cluster.kv["a"] = b"1"
    with ringhold.open("memory://levels") as cluster:
        assert cluster.kv["a"] == b"1"


def test_tokens_of_a_later_process_in_memory_are_larger(tmp_path: Path) -> None:
    script = """
        import ringhold
        with ringhold.open("memory://tokens") as cluster, cluster.lock("a") as grant:
            print(grant.token)
    """
    tokens = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)],
            check=True,
            capture_output=True,
            text=True,
        )
        tokens.append(int(done.stdout))
    assert tokens == sorted(set(tokens))


def test_unsynced_commits_are_not_synced(tmp_path: Path) -> None:
    """That "process" is what it says: no sync for each commit, some for the revisions."""
    counts = {}
    for durability in ("full", "process"):
        script = """
            import sys
            import ringhold
            with ringhold.open(sys.argv[1], durability=sys.argv[2]) as cluster:
                for number in range(200):
                    cluster.kv["a"] = b"1"
        """
        directory = tmp_path / durability
        trace = tmp_path / f"{durability}.syncs"
        library = count_syncs(tmp_path)
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script), str(directory), durability],
            env={**os.environ, "LD_PRELOAD": str(library), "COUNT_SYNCS": str(trace)},
            check=True,
        )
        counts[durability] = trace.stat().st_size
    assert counts["full"] >= 200
    assert counts["process"] < 50


def count_syncs(directory: Path) -> Path:
    library = directory / "count_syncs.so"
    if not library.exists():
        source = directory / "count_syncs.c"
        source.write_text(COUNT_SYNCS)
        compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
        subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


COUNT_SYNCS = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

int fdatasync(int fd)
{
    int trace = open(getenv("COUNT_SYNCS"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (trace >= 0) {
        (void)!write(trace, ".", 1);
        close(trace);
    }
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    return real(fd);
}
"""

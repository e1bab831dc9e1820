"""Goal: whatever is wrong with a store's files, disk or process, the caller gets an error that
says so, nothing acknowledged is lost and nothing half-done appears.

Method: real damage. Bytes are overwritten, limits set, syncs made to fail in a child process by
a preloaded library, processes forked. Each fault is first shown to be there.
"""

from __future__ import annotations

import asyncio
import os
import re
import resource
import shutil
import subprocess
import sys
import sysconfig
import textwrap
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import apsw
import pytest

from ringhold.env import real_env
from ringhold.errors import (
    ChecksumMismatch,
    Closed,
    Corrupt,
    InvalidInput,
    RingholdError,
    StoreUnavailable,
)
from ringhold.store.base import Put, Store
from ringhold.store.sqlite import open_sqlite_store
from ringhold.store.sqlite.schema import FORMAT_VERSION

HERE = Path(__file__).parent


async def open_store(directory: Path, *, create: bool = False) -> Store:
    return await open_sqlite_store(str(directory), real_env(), create=create)


def make(directory: Path, *keys: bytes) -> Path:
    """A closed store with `keys`; the path of its database, with everything in it."""

    async def main() -> None:
        store = await open_store(directory, create=True)
        await store.commit(puts=[Put(key, key[:1] * 3000) for key in keys])
        await store.close()

    asyncio.run(main())
    database = directory / "store" / "store.db"
    connection = apsw.Connection(str(database))
    assert connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").get == (0, 0, 0)
    connection.close()
    return database


def opening_fails(directory: Path, error: type[Exception], *words: str) -> None:
    with pytest.raises(error) as caught:
        asyncio.run(open_store(directory))
    for word in (str(directory), *words):
        assert word in str(caught.value)


async def keys_of(store: Store) -> list[bytes]:
    snapshot = await store.snapshot()
    try:
        return [key for key, _ in await snapshot.range(b"", b"\xff")]
    finally:
        await snapshot.close()


# Files that are not a store


def test_no_store(tmp_path: Path) -> None:
    opening_fails(tmp_path, FileNotFoundError, "store.db")
    opening_fails(tmp_path / "missing", FileNotFoundError)
    assert list(tmp_path.iterdir()) == []


def test_a_creation_that_was_interrupted_is_told_and_can_be_finished(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "locks").mkdir()
    connection = apsw.Connection(str(tmp_path / "store" / "store.db"))
    connection.execute("PRAGMA journal_mode = WAL").get  # noqa: B018
    connection.close()
    opening_fails(tmp_path, FileNotFoundError, "never completely created")
    make(tmp_path, b"a")
    asyncio.run(open_and_close(tmp_path))


async def open_and_close(directory: Path) -> None:
    await (await open_store(directory)).close()


@pytest.mark.parametrize("create", [False, True])
def test_a_file_that_is_no_database_is_corrupt(tmp_path: Path, create: bool) -> None:
    database = make(tmp_path, b"a")
    database.write_bytes(b"not a database, but long enough to be looked at. " * 200)
    with pytest.raises(Corrupt, match="damaged") as caught:
        asyncio.run(open_store(tmp_path, create=create))
    assert caught.value.what == str(database)


def test_another_application_s_database_is_refused(tmp_path: Path) -> None:
    database = make(tmp_path, b"a")
    for suffix in ("", "-wal", "-shm"):
        database.with_name("store.db" + suffix).unlink(missing_ok=True)
    connection = apsw.Connection(str(database))
    connection.execute("CREATE TABLE other (x); PRAGMA application_id = 77")
    connection.close()
    opening_fails(tmp_path, Corrupt, "another application", "0x4d")
    with pytest.raises(Corrupt):
        asyncio.run(open_store(tmp_path, create=True))


def test_a_newer_format_is_refused_with_both_versions(tmp_path: Path) -> None:
    database = make(tmp_path, b"a")
    connection = apsw.Connection(str(database))
    connection.execute("PRAGMA user_version = 9")
    connection.close()
    opening_fails(tmp_path, InvalidInput, "version 9", f"version {FORMAT_VERSION}")


def test_a_store_of_another_time_namespace_is_refused(tmp_path: Path) -> None:
    database = make(tmp_path, b"a")
    connection = apsw.Connection(str(database))
    connection.execute("UPDATE meta SET value = 'time:[1]' WHERE name = 'time_namespace'")
    connection.close()
    opening_fails(tmp_path, InvalidInput, "time namespace time:[1]")


@pytest.mark.system
def test_a_process_in_another_time_namespace_is_refused(tmp_path: Path) -> None:
    make(tmp_path, b"a")
    script = """
        import asyncio, sys
        from ringhold.env import real_env
        from ringhold.store.sqlite import open_sqlite_store
        asyncio.run(open_sqlite_store(sys.argv[1], real_env(), create=False))
    """
    program = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    subprocess.run(program, check=True)
    shifted = subprocess.run(
        ["unshare", "--time", "--boottime", "100000", "--fork", *program],
        capture_output=True,
        text=True,
        check=False,
    )
    assert shifted.returncode == 1
    assert "InvalidInput" in shifted.stderr
    assert "time namespace" in shifted.stderr


def test_damage_within_the_database_is_corrupt_when_met(tmp_path: Path) -> None:
    database = make(tmp_path, *(b"%03d" % number for number in range(200)))
    data = bytearray(database.read_bytes())
    for page in range(4096 * 9, len(data) - 4096, 4096):
        data[page : page + 64] = b"\xa5" * 64
    database.write_bytes(data)

    async def main() -> None:
        store = await open_store(tmp_path)
        try:
            with pytest.raises(Corrupt):
                await keys_of(store)
            with pytest.raises(RingholdError):
                await store.commit(puts=[Put(b"%03d" % number, b"") for number in range(200)])
        finally:
            await store.close()

    asyncio.run(main())


def test_a_truncated_database_is_corrupt(tmp_path: Path) -> None:
    database = make(tmp_path, *(b"%03d" % number for number in range(200)))
    with open(database, "r+b") as file:
        file.truncate(4096)
    opening_fails(tmp_path, Corrupt)


def test_a_path_that_cannot_be_a_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotADirectoryError, match="file"):
        asyncio.run(open_store(tmp_path / "file" / "below", create=True))
    with pytest.raises(NotADirectoryError, match="file"):
        asyncio.run(open_store(tmp_path / "file", create=True))


def test_a_store_whose_locks_are_gone_names_them(tmp_path: Path) -> None:
    make(tmp_path, b"a")
    shutil.rmtree(tmp_path / "locks")
    opening_fails(tmp_path, FileNotFoundError, "locks")


@pytest.mark.system
def test_a_read_only_file_system_is_named(tmp_path: Path) -> None:
    make(tmp_path / "data", b"a")
    target = tmp_path / "mounted"
    target.mkdir()
    subprocess.run(["mount", "--bind", tmp_path / "data", target], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", target], check=True)
        with pytest.raises(OSError, match=r"Read-only file system.*mounted"):
            asyncio.run(open_store(target))
    finally:
        subprocess.run(["umount", target], check=True)


# Bits that flip


def flipped(database: Path, pattern: bytes) -> Iterator[None]:
    """Flips one bit in one place after another where the database file has `pattern`."""
    intact = database.read_bytes()
    places = [match.start() for match in re.finditer(re.escape(pattern), intact)]
    assert len(places) == 2  # among the keys and in the log
    for place in places:
        damaged = bytearray(intact)
        damaged[place + len(pattern) // 2] ^= 1
        database.write_bytes(damaged)
        for suffix in ("-wal", "-shm"):
            database.with_name("store.db" + suffix).unlink(missing_ok=True)
        yield


def test_a_flipped_bit_in_a_value_is_an_error_wherever_it_is_read(tmp_path: Path) -> None:
    database = make(tmp_path, b"a", b"damaged", b"z")

    async def failures() -> list[str]:
        store = await open_store(tmp_path)
        snapshot = await store.snapshot()
        watch = store.watch(b"", 2)
        reads: dict[str, Callable[[], Awaitable[object]]] = {
            "get": lambda: snapshot.get(b"damaged"),
            "get_many": lambda: snapshot.get_many([b"a", b"damaged"]),
            "long get_many": lambda: snapshot.get_many([b"a"] * 200 + [b"damaged"]),
            "range": lambda: snapshot.range(b"", b"\xff"),
            "watch": lambda: anext(watch),
        }
        failed = {}
        for name, read in reads.items():
            try:
                await read()
            except ChecksumMismatch as error:
                failed[name] = error
        for error in failed.values():
            assert "key b'damaged'" in str(error)
            assert str(database) in error.what
        entry = await snapshot.get(b"a")
        assert entry is not None
        assert entry.value == b"a" * 3000
        await snapshot.close()
        await store.close()
        return list(failed)

    found = [asyncio.run(failures()) for _ in flipped(database, b"d" * 3000)]
    assert sorted(found) == [["get", "get_many", "long get_many", "range"], ["watch"]]


# Disks that refuse


@pytest.fixture
def no_growth() -> Iterator[Callable[[int], None]]:
    """Limits the size of files this process writes, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [60_000, 1 << 20])
def test_a_commit_the_disk_has_no_room_for_changes_nothing(
    tmp_path: Path, no_growth: Callable[[int], None], size: int
) -> None:
    async def main() -> None:
        store = await open_store(tmp_path, create=True)
        revision = await store.commit(puts=[Put(b"a", b"1")])
        wal = tmp_path / "store" / "store.db-wal"
        no_growth(max(1 << 16, wal.stat().st_size + 4096))
        for number in range(2):
            with pytest.raises(RingholdError) as caught:
                await store.commit(puts=[Put(b"b%d" % number, b"x" * size)], nonce=b"%d" % number)
            assert "disk I/O error" in str(caught.value)
        assert await keys_of(store) == [b"a"]
        no_growth(resource.RLIM_INFINITY)
        assert await store.commit(puts=[Put(b"c", b"2")]) == revision + 1
        await store.commit(puts=[Put(b"b0", b"x" * size)], nonce=b"0")
        assert await keys_of(store) == [b"a", b"b0", b"c"]
        await store.close()
        store = await open_store(tmp_path)
        assert await keys_of(store) == [b"a", b"b0", b"c"]
        await store.close()

    asyncio.run(main())


@pytest.mark.system
def test_a_full_disk_is_store_unavailable(tmp_path: Path) -> None:
    async def main() -> None:
        store = await open_store(tmp_path, create=True)
        revision = await store.commit(puts=[Put(b"a", b"1")])
        for number in range(3):
            with pytest.raises(StoreUnavailable, match="full"):
                await store.commit(puts=[Put(b"b%d" % number, b"x" * (1 << 20))])
        assert await keys_of(store) == [b"a"]
        assert await store.commit(puts=[Put(b"c", b"2")]) == revision + 1
        await store.close()
        store = await open_store(tmp_path)
        assert await keys_of(store) == [b"a", b"c"]
        await store.close()

    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "none", tmp_path], check=True)
    try:
        asyncio.run(main())
    finally:
        subprocess.run(["umount", tmp_path], check=True)


FAILED_SYNC = """
    import asyncio, os, sys
    from ringhold.env import real_env
    from ringhold.errors import OutcomeUnknown, StoreUnavailable
    from ringhold.store.base import Absent, Put
    from ringhold.store.sqlite import open_sqlite_store

    async def main():
        store = await open_sqlite_store(sys.argv[1], real_env(), create=True)
        first = await store.commit(puts=[Put(b"a", b"1")])
        await store.grant_lease(b"l" * 12, 60.0)
        open(os.environ["FAIL_SYNC"], "w").close()
        many = await asyncio.gather(
            *(store.commit(puts=[Put(b"m%d" % n, b"")], nonce=b"%d" % n) for n in range(5)),
            return_exceptions=True,
        )
        assert [type(error) for error in many] == [OutcomeUnknown] * 5, many
        assert len({id(error) for error in many}) == 5
        for call in (store.renew_lease(b"l" * 12), store.grant_lease(b"m" * 12, 1.0)):
            try:
                await call
            except StoreUnavailable:
                continue
            raise AssertionError("acknowledged without a sync")
        os.unlink(os.environ["FAIL_SYNC"])
        for n in range(5):
            await store.commit(compares=[Absent(b"m%d" % n)], puts=[Put(b"m%d" % n, b"")],
                               nonce=b"%d" % n)
        await store.renew_lease(b"l" * 12)
        snapshot = await store.snapshot()
        print(snapshot.revision - first, [k.decode() for k, _ in await snapshot.range(b"", b"z")])
        await snapshot.close()
        await store.close()

    asyncio.run(main())
"""


@pytest.fixture(scope="module")
def fail_sync(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("preload") / "fail_sync.so"
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    source = HERE / "fail_sync.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


def test_a_commit_whose_sync_failed_is_unknown_and_can_be_repeated(
    tmp_path: Path, fail_sync: Path
) -> None:
    environment = {
        **os.environ,
        "LD_PRELOAD": str(fail_sync),
        "FAIL_SYNC": str(tmp_path / "fail"),
        "FAIL_SYNC_SUFFIX": "store.db-wal",
    }
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FAILED_SYNC), str(tmp_path / "data")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "5 ['a', 'm0', 'm1', 'm2', 'm3', 'm4']"


# Forks


def in_child(test: Callable[[], None]) -> None:
    """Runs `test` in a forked child that leaves through the interpreter's normal exit."""
    pid = os.fork()
    if pid == 0:
        try:
            test()
        except BaseException as error:
            print(f"in the forked child: {error!r}", file=sys.stderr)
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_forked_child_cannot_use_the_store_and_does_not_harm_it(tmp_path: Path) -> None:
    async def main() -> None:
        parent = os.getpid()
        store = await open_store(tmp_path, create=True)
        await store.grant_lease(b"l" * 12, 60.0)
        await store.commit(puts=[Put(b"a", b"1", b"l" * 12)])
        assert store.lease_until(b"l" * 12) is not None
        snapshot = await store.snapshot()
        committing = [
            asyncio.create_task(store.commit(puts=[Put(b"p%d" % n, b"")])) for n in range(10)
        ]
        await asyncio.sleep(0)

        def child() -> None:
            calls: list[Callable[[], Awaitable[object]]] = [
                store.snapshot,
                store.commit,
                lambda: store.renew_lease(b"l" * 12),
                store.expire_leases,
                lambda: snapshot.get(b"a"),
            ]
            for call in calls:
                with pytest.raises(Closed, match=f"process {parent}") as caught:
                    drive(call())
                assert caught.value.pid == parent
            with pytest.raises(Closed):
                store.watch(b"", 1)
            with pytest.raises(Closed, match=f"process {parent}"):
                store.lease_until(b"l" * 12)
            drive(snapshot.close())
            drive(store.close())
            targets = {os.readlink(f"/proc/self/fd/{n}") for n in map(int, listed())}
            assert not [target for target in targets if "/locks/" in target]

        in_child(child)
        assert store.lease_until(b"l" * 12) is not None
        entry = await snapshot.get(b"a")
        assert entry is not None
        await snapshot.close()
        await asyncio.gather(*committing)
        other = await open_store(tmp_path)
        await other.expire_leases()
        assert len(await keys_of(other)) == 11
        await other.close()
        await store.commit(puts=[Put(b"z", b"")])
        await store.close()

    asyncio.run(main())


def listed() -> list[str]:
    return [name for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")]


def drive(awaitable: Awaitable[object]) -> object:
    """Runs a coroutine that never waits, without an event loop."""
    iterator = awaitable.__await__()
    try:
        next(iterator)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waits")


FORK_AND_EXIT = """
    import asyncio, os, sys
    from ringhold.env import real_env
    from ringhold.store.base import Put
    from ringhold.store.sqlite import open_sqlite_store

    async def main():
        store = await open_sqlite_store(sys.argv[1], real_env(), create=True)
        await store.commit(puts=[Put(b"a", b"1")])
        snapshot = await store.snapshot()
        return store, snapshot

    store, snapshot = asyncio.run(main())
    pid = os.fork()
    if pid == 0:
        sys.exit(0)  # finalizers, atexit and module teardown run in the child
    assert os.waitpid(pid, 0)[1] == 0
    locks = [line for line in open("/proc/locks") if f" {os.getpid()} " in line]
    print("POSIX" in "".join(locks))
"""


def test_a_forked_child_that_exits_leaves_sqlite_s_locks_to_the_parent(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FORK_AND_EXIT), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "True"


def test_a_program_that_forgets_to_close_its_store_ends(tmp_path: Path) -> None:
    script = """
        import asyncio, sys
        from ringhold.env import real_env
        from ringhold.store.base import Put
        from ringhold.store.sqlite import open_sqlite_store

        async def main():
            store = await open_sqlite_store(sys.argv[1], real_env(), create=True)
            print(await store.commit(puts=[Put(b"a", b"1")]))

        asyncio.run(main())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")

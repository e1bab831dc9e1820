"""Goal: revisions never come again, though commits are not synced or a backup is put in place of
the database, and whoever follows the log is not misled by the revisions that are skipped.

Method: `apply` on a real file, told of another boot or another file; and whole stores, copied and
moved as users do it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import apsw
import pytest

from ringhold.env import real_env
from ringhold.errors import ChecksumMismatch, Compacted
from ringhold.store.base import Put, Store
from ringhold.store.lock_files import file_identity
from ringhold.store.requests import NONCE_REVISIONS, checked_commit
from ringhold.store.sqlite import open_sqlite_store
from ringhold.store.sqlite.apply import GrantLease, Now, RevokeLeases, apply
from ringhold.store.sqlite.lineage import CEILING_STEP, RESTORE_JUMP
from ringhold.store.sqlite.rows import read_lineage, read_meta
from ringhold.store.sqlite.schema import connect, create_tables, set_synced

BOOT, NEXT_BOOT = b"b" * 16, b"c" * 16
LEASE = b"l" * 12


@pytest.fixture
def connection(tmp_path: Path) -> apsw.Connection:
    path = str(tmp_path / "store.db")
    connection = connect(path, create=True)
    create_tables(connection, path)
    return connection


def put(key: bytes, nonce: bytes | None = None) -> Any:
    return checked_commit([], [Put(key, b"v")], [], nonce)


def commit(connection: apsw.Connection, boot: bytes = BOOT, file: int = 1, **options: Any) -> Any:
    return apply(connection, [put(b"a")], Now(1, boot, file), **options).outcomes[0]


class Syncs:
    """A connection that notes whether its transactions were synced."""

    def __init__(self, connection: apsw.Connection):
        self._connection = connection
        self.levels: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, statement: str, *arguments: Any) -> Any:
        if statement == "COMMIT":
            self.levels.append(self._connection.execute("PRAGMA synchronous").get)
        return self._connection.execute(statement, *arguments)


def test_an_unsynced_commit_uses_only_revisions_below_a_synced_ceiling(
    connection: apsw.Connection,
) -> None:
    set_synced(connection, False)
    noted: Any = Syncs(connection)
    for number in range(2 * CEILING_STEP // 250):
        # 250 commits in each transaction.
        batch = [put(b"a")] * 250
        newest = apply(noted, batch, Now(number, BOOT, 1), synced=False).outcomes[-1]
        assert read_lineage(connection).ceiling >= newest  # type: ignore[union-attr]
    assert connection.execute("PRAGMA synchronous").get == 1
    assert noted.levels.count(2) == 2
    assert noted.levels[:3] == [2, 1, 1]


def test_a_batch_larger_than_a_step_still_stays_below_the_ceiling(
    connection: apsw.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ringhold.store.sqlite.apply.CEILING_STEP", 7)
    set_synced(connection, False)
    newest = apply(connection, [put(b"a")] * 40, Now(1, BOOT, 1), synced=False).outcomes[-1]
    assert newest == 41
    assert read_lineage(connection).ceiling >= 41  # type: ignore[union-attr]


def test_the_next_boot_goes_on_above_the_ceiling(connection: apsw.Connection) -> None:
    set_synced(connection, False)
    assert commit(connection, synced=False) == 2
    ceiling = read_lineage(connection).ceiling  # type: ignore[union-attr]
    assert commit(connection, synced=False) == 3
    assert commit(connection, NEXT_BOOT, synced=False) == ceiling + 1
    assert commit(connection, NEXT_BOOT, synced=False) == ceiling + 2
    assert read_lineage(connection).ceiling > ceiling + 2  # type: ignore[union-attr]


def test_a_store_that_always_synced_skips_nothing(connection: apsw.Connection) -> None:
    assert [commit(connection), commit(connection, NEXT_BOOT), commit(connection)] == [2, 3, 4]


def test_another_file_jumps_once(connection: apsw.Connection) -> None:
    assert commit(connection) == 2
    assert commit(connection, file=2) == 3 + RESTORE_JUMP
    assert commit(connection, file=2) == 4 + RESTORE_JUMP
    assert commit(connection, NEXT_BOOT, file=3) == 5 + 2 * RESTORE_JUMP


def test_a_gap_is_still_a_gap_after_the_ceiling_was_raised_in_it(
    connection: apsw.Connection,
) -> None:
    set_synced(connection, False)
    ttl_ns = 10**10
    apply(connection, [GrantLease(LEASE, ttl_ns, 1)], Now(1, BOOT, 1), synced=False)
    assert read_lineage(connection).ceiling == 0  # type: ignore[union-attr]
    later = Now(10 * ttl_ns, BOOT, 1)
    assert apply(connection, [put(b"a")], later, synced=False).ended == []
    assert read_lineage(connection).ceiling > 0  # type: ignore[union-attr]
    row = connection.execute("SELECT deadline_ns FROM lease").get
    assert row == 11 * ttl_ns


def test_a_store_from_before_lineages_is_taken_up(connection: apsw.Connection) -> None:
    ttl_ns = 10**10
    apply(connection, [put(b"a"), GrantLease(LEASE, ttl_ns, 1)], Now(1, BOOT, 1))
    connection.execute("DELETE FROM meta WHERE name IN ('lineage', 'commit_ns')")
    now = Now(100 * ttl_ns, BOOT, 7)
    applied = apply(connection, [put(b"a")], now)
    assert (applied.outcomes, applied.ended) == ([3], [])
    assert read_meta(connection)["commit_ns"] == now.boottime_ns
    assert read_lineage(connection).file == 7  # type: ignore[union-attr]


@pytest.mark.parametrize("column", ["value", "sum"])
def test_a_damaged_lineage_stops_every_commit(connection: apsw.Connection, column: str) -> None:
    commit(connection)
    for damage in ("x'00'", "7", "NULL" if column == "sum" else "'text'"):
        connection.execute(f"UPDATE meta SET {column} = {damage} WHERE name = 'lineage'")
        with pytest.raises(ChecksumMismatch, match="lineage"):
            commit(connection)
        with pytest.raises(ChecksumMismatch, match="lineage"):
            commit(connection, NEXT_BOOT)


def test_a_damaged_moment_stops_every_commit(connection: apsw.Connection) -> None:
    commit(connection)
    connection.execute("UPDATE meta SET value = value + 1 WHERE name = 'commit_ns'")
    with pytest.raises(ChecksumMismatch, match="commit_ns"):
        commit(connection)


def test_nothing_is_written_for_a_commit_that_writes_nothing(connection: apsw.Connection) -> None:
    commit(connection)
    before = connection.total_changes()
    apply(connection, [checked_commit([], [], [], None)], Now(5, BOOT, 1))
    assert connection.total_changes() == before
    apply(connection, [RevokeLeases(())], Now(6, BOOT, 1))
    assert read_meta(connection)["commit_ns"] == 6


def test_nonces_outlive_a_jump(connection: apsw.Connection) -> None:
    (first,) = apply(connection, [put(b"a", b"nonce")], Now(1, BOOT, 1)).outcomes
    assert NONCE_REVISIONS < RESTORE_JUMP
    assert commit(connection, file=2) > RESTORE_JUMP
    (again,) = apply(connection, [put(b"a", b"nonce")], Now(1, BOOT, 2)).outcomes
    assert again == first


# The log and those who follow it


def on_store(directory: Path, test: Callable[[Store], Awaitable[None]], create: bool) -> None:
    async def main() -> None:
        store = await open_sqlite_store(str(directory), real_env(), create=create)
        try:
            await test(store)
        finally:
            await store.close()

    asyncio.run(main())


async def seen(store: Store, since: int, count: int) -> list[int]:
    watch = store.watch(b"", since)
    try:
        async with asyncio.timeout(10):
            return [(await anext(watch)).revision for _ in range(count)]
    finally:
        await watch.aclose()  # type: ignore[attr-defined]


def restored(directory: Path, backup: Path) -> None:
    """A backup in place of what is there, as `rm -r` and `cp -a` do it."""
    shutil.rmtree(directory)
    shutil.copytree(backup, directory)


def test_a_restored_store_never_gives_a_revision_again(tmp_path: Path) -> None:
    live, backup = tmp_path / "live", tmp_path / "backup"
    given: list[int] = []

    async def work(store: Store) -> None:
        given.extend([await store.commit(puts=[Put(b"a", b"")]) for _ in range(5)])

    on_store(live, work, create=True)
    shutil.copytree(live, backup)
    on_store(live, work, create=False)
    for _ in range(2):
        restored(live, backup)
        before = len(given)
        on_store(live, work, create=False)
        on_store(live, work, create=False)
        assert given[before:] == list(range(given[before], given[before] + 10))
        shutil.rmtree(backup)
        shutil.copytree(live, backup)
    assert given == sorted(set(given))


def test_the_jump_is_there_because_the_file_is_another_though_its_inode_may_be_the_same(
    tmp_path: Path,
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")
    identity, inode = file_identity(str(path)), path.stat().st_ino
    path.rename(tmp_path / "moved")
    assert file_identity(str(tmp_path / "moved")) == identity
    (tmp_path / "moved").unlink()
    path.write_bytes(b"")
    # ext4 gives the number of a removed file to the next one.
    assert file_identity(str(path)) != identity or path.stat().st_ino != inode


def test_a_store_that_was_moved_skips_nothing(tmp_path: Path) -> None:
    revisions: list[int] = []

    async def work(store: Store) -> None:
        revisions.append(await store.commit(puts=[Put(b"a", b"")]))

    on_store(tmp_path / "here", work, create=True)
    os.rename(tmp_path / "here", tmp_path / "there")
    on_store(tmp_path / "there", work, create=False)
    assert revisions == [2, 3]


def test_a_watch_that_saw_everything_goes_on_behind_the_skipped_revisions(tmp_path: Path) -> None:
    async def before(store: Store) -> None:
        for _ in range(3):
            await store.commit(puts=[Put(b"a", b"")])

    async def after(store: Store) -> None:
        waiting = asyncio.create_task(seen(store, 5, 2))
        late = asyncio.create_task(seen(store, 2, 5))
        foreign = asyncio.create_task(seen(store, 9, 1))
        await asyncio.sleep(0)
        first = await store.commit(puts=[Put(b"a", b"")])
        await store.commit(puts=[Put(b"a", b"")])
        assert first >= 5 + RESTORE_JUMP
        assert await waiting == [first, first + 1]
        assert await late == [2, 3, 4, first, first + 1]
        # It saw revisions of the history that the backup took back.
        with pytest.raises(Compacted):
            await foreign
        for skipped in (6, first - 1):
            with pytest.raises(Compacted):
                await seen(store, skipped, 1)
        assert await seen(store, first, 1) == [first]

    on_store(tmp_path / "a", before, create=True)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    on_store(tmp_path / "b", after, create=False)


def test_the_log_spans_the_last_skipped_revisions_only(tmp_path: Path) -> None:
    last: list[int] = []

    async def work(store: Store) -> None:
        last.extend([await store.commit(puts=[Put(b"a", b"")]) for _ in range(3)])

    async def check(store: Store) -> None:
        await store.commit(puts=[Put(b"b", b"")])
        assert await seen(store, last[-1], 1) == [last[-1]]
        with pytest.raises(Compacted):
            await seen(store, 2, 1)

    on_store(tmp_path / "0", work, create=True)
    for number in range(3):
        shutil.copytree(tmp_path / f"{number}", tmp_path / f"{number + 1}")
        on_store(tmp_path / f"{number + 1}", work, create=False)
    shutil.copytree(tmp_path / "3", tmp_path / "4")
    on_store(tmp_path / "4", check, create=False)


def test_the_same_backup_restored_twice_never_gives_a_revision_again(tmp_path: Path) -> None:
    revisions: list[int] = []

    async def work(store: Store) -> None:
        revisions.extend([await store.commit(puts=[Put(b"a", b"")]) for _ in range(20)])

    on_store(tmp_path / "live", work, create=True)
    shutil.copytree(tmp_path / "live", tmp_path / "backup")
    for _ in range(3):
        shutil.rmtree(tmp_path / "live")
        shutil.copytree(tmp_path / "backup", tmp_path / "live")
        on_store(tmp_path / "live", work, create=False)
    assert revisions == sorted(set(revisions))

"""Goal: what the embedded engine does under its promises: batches, the log, checkpoints.

Method: the store itself on real files, with its bounds lowered; what happened is read from the
database and its write-ahead log.
"""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import apsw
import pytest

from ringhold.env import real_env
from ringhold.errors import (
    ChecksumMismatch,
    Compacted,
    Conflict,
    Corrupt,
    OutcomeUnknown,
    SessionExpired,
    StoreUnavailable,
)
from ringhold.store.base import Absent, Born, Put, Store, Unchanged
from ringhold.store.lock_files import CommitLock
from ringhold.store.requests import checked_commit
from ringhold.store.sqlite import checkpoints, open_sqlite_store, writer
from ringhold.store.sqlite.apply import GrantLease, Now, RenewLease, apply
from ringhold.store.sqlite.schema import BUSY_TIMEOUT_MS, connect, create_tables
from ringhold.store.view import View, transact

LEASE = b"l" * 12
BOOT = b"b" * 16


@pytest.fixture
def connection(tmp_path: Path) -> apsw.Connection:
    path = str(tmp_path / "store.db")
    connection = connect(path, create=True)
    create_tables(connection, path)
    return connection


def put(key: bytes, *compares: Any, lease: bytes | None = None) -> Any:
    return checked_commit(compares, [Put(key, b"v", lease)], [], None)


def kinds(outcomes: Sequence[Any]) -> list[Any]:
    return [outcome if isinstance(outcome, int) else type(outcome) for outcome in outcomes]


def test_requests_of_a_batch_see_one_another_and_failed_ones_leave_nothing(
    connection: apsw.Connection,
) -> None:
    batch = [
        put(b"a", Absent(b"a")),
        put(b"a", Absent(b"a")),
        put(b"a", Unchanged(b"a", 2)),
        put(b"b", lease=LEASE),
        GrantLease(LEASE, 10, 1),
        put(b"b", lease=LEASE),
    ]
    applied = apply(connection, batch, Now(100, BOOT))
    assert kinds(applied.outcomes) == [2, Conflict, 3, SessionExpired, 3, 4]
    rows = list(connection.execute("SELECT k, created, revision FROM kv"))
    assert rows == [(b"a", 2, 3), (b"b", 4, 4)]
    assert list(connection.execute("SELECT revision FROM log")) == [(2,), (3,), (4,)]


def test_leases_end_by_deadline_or_with_the_boot_before_any_compare(
    connection: apsw.Connection,
) -> None:
    apply(connection, [GrantLease(LEASE, 10, 1), put(b"a", lease=LEASE)], Now(100, BOOT))
    assert kinds(apply(connection, [put(b"x", Absent(b"a"))], Now(109, BOOT)).outcomes) == [
        Conflict
    ]
    applied = apply(connection, [put(b"x", Absent(b"a"))], Now(110, BOOT))
    assert kinds(applied.outcomes) == [4]
    assert applied.ended == [LEASE]
    apply(connection, [GrantLease(LEASE, 10**9, 1)], Now(200, BOOT))
    # After a restart of the machine boot time starts again: the deadline means nothing.
    applied = apply(connection, [RenewLease(LEASE)], Now(1, b"B" * 16))
    assert kinds(applied.outcomes) == [SessionExpired]
    assert applied.ended == [LEASE]


def test_a_failure_within_a_batch_leaves_nothing_of_it(connection: apsw.Connection) -> None:
    connection.execute(
        "CREATE TRIGGER fault BEFORE INSERT ON kv WHEN NEW.k = x'66' "
        "BEGIN SELECT RAISE(ABORT, 'planned'); END"
    )
    with pytest.raises(Exception, match="planned"):
        apply(connection, [put(b"a"), put(b"f")], Now(100, BOOT))
    assert not connection.in_transaction
    assert connection.execute("SELECT count(*) FROM kv").get == 0
    assert connection.execute("SELECT count(*) FROM log").get == 0


def test_the_log_keeps_its_size_in_revisions_and_in_bytes(
    connection: apsw.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ringhold.store.sqlite.apply.LOG_BYTES_MAX", 100_000)

    def state() -> tuple[int, int, int]:
        meta = dict(connection.execute("SELECT name, value FROM meta"))
        actual = connection.execute("SELECT coalesce(sum(length(v)), 0) FROM log").get
        assert meta["log_bytes"] == actual
        oldest = connection.execute("SELECT min(revision) FROM log").get
        assert oldest == meta["compacted"] + 1 or meta["compacted"] == 0
        return meta["revision"], meta["compacted"], actual

    for number in range(50):
        apply(connection, [put(b"%d" % number)], Now(1, BOOT), log_revisions=10)
    revision, compacted, _ = state()
    assert 10 <= revision - compacted < 20
    large = [checked_commit([], [Put(b"large", b"x" * 9_000)], [], None)]
    for _ in range(30):
        apply(connection, large, Now(1, BOOT))
        assert state()[2] <= 100_000
    assert state()[2] > 30_000


def page_accesses(connection: apsw.Connection) -> int:
    return sum(
        connection.status(counter)[0]
        for counter in (apsw.SQLITE_DBSTATUS_CACHE_HIT, apsw.SQLITE_DBSTATUS_CACHE_MISS)
    )


def test_large_values_do_not_slow_what_is_committed_after_them(
    connection: apsw.Connection,
) -> None:
    def cost(prefix: bytes) -> int:
        before = page_accesses(connection)
        puts = [Put(prefix + b"%d" % number, b"x") for number in range(500)]
        apply(connection, [checked_commit([], puts, [], None)], Now(1, BOOT))
        return page_accesses(connection) - before

    cost(b"a")
    small = cost(b"b")
    # Searches for what follows pass these, in the keys as in the log.
    large = [Put(b"m%d" % number, b"x" * (1 << 20)) for number in range(4)]
    apply(connection, [checked_commit([], large, [], None)], Now(1, BOOT))
    assert cost(b"l") < 2 * small
    assert cost(b"n") < 2 * small


def test_a_damaged_record_refuses_its_own_request_only(connection: apsw.Connection) -> None:
    apply(connection, [put(b"a"), put(b"b")], Now(1, BOOT))
    connection.execute("UPDATE kv SET revision = revision + 64, created = 66 WHERE k = x'61'")
    batch = [
        put(b"x", Unchanged(b"a", 66)),
        put(b"x", Born(b"a", 66)),
        checked_commit([], [Put(b"c", b""), Put(b"a", b"")], [], None),
        put(b"b", Unchanged(b"b", 3)),
        checked_commit([], [], [b"a"], None),
        put(b"a", Absent(b"a")),
    ]
    outcomes = apply(connection, batch, Now(1, BOOT)).outcomes
    assert kinds(outcomes) == [ChecksumMismatch] * 3 + [4, 5, 6]
    assert "key b'a'" in str(outcomes[0])
    rows = connection.execute("SELECT k, created, revision FROM kv ORDER BY k")
    assert list(rows) == [(b"a", 6, 6), (b"b", 3, 4)]


def test_a_damaged_value_can_be_overwritten(connection: apsw.Connection) -> None:
    apply(connection, [put(b"a")], Now(1, BOOT))
    connection.execute("UPDATE kv SET v = x'00'")
    assert kinds(apply(connection, [put(b"a", Unchanged(b"a", 2))], Now(1, BOOT)).outcomes) == [3]
    assert connection.execute("SELECT v FROM kv").get == b"v"


@pytest.mark.parametrize("name", ["revision", "compacted", "log_bytes"])
def test_a_damaged_number_of_the_store_stops_every_commit(
    connection: apsw.Connection, name: str
) -> None:
    apply(connection, [put(b"a")], Now(1, BOOT))
    connection.execute("UPDATE meta SET value = value + 1 WHERE name = ?", (name,))
    with pytest.raises(ChecksumMismatch, match=name):
        apply(connection, [put(b"b")], Now(1, BOOT))
    assert not connection.in_transaction
    assert connection.execute("SELECT count(*) FROM kv").get == 1


@pytest.mark.parametrize("column", ["created", "revision", "lease", "value_sum", "sum", "v"])
def test_a_row_that_lost_a_column_s_type_is_corrupt(tmp_path: Path, column: str) -> None:
    async def test(store: Store) -> None:
        await store.commit(puts=[Put(b"a", b"\xff\xfe")])
        connection = apsw.Connection(str(tmp_path / "store" / "store.db"))
        for damage in ("x'00'", "7.5", "CAST(x'fffd' AS TEXT)"):
            connection.execute(f"UPDATE kv SET {column} = {damage}")
            snapshot = await store.snapshot()
            with pytest.raises(Corrupt, match="damaged"):
                await snapshot.get(b"a")
            with pytest.raises(Corrupt, match="damaged"):
                await snapshot.range(b"", b"b")
            await snapshot.close()
            if column != "v":
                with pytest.raises(Corrupt, match="damaged"):
                    await store.commit(compares=[Unchanged(b"a", 2)])
        connection.close()

    on_store(tmp_path, test)


def test_leases_go_before_a_large_commit_and_hold_it_up_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[list[str]] = []

    def recording(connection: apsw.Connection, batch: Any, now: Now, **options: Any) -> Any:
        batches.append([type(request).__name__ for request in batch])
        return apply(connection, batch, now, **options)

    monkeypatch.setattr(writer, "apply", recording)

    async def test(store: Store) -> None:
        await store.grant_lease(LEASE, 60.0)
        batches.clear()
        lock = CommitLock(str(tmp_path / "locks"))
        lock.acquire()
        large = [Put(b"%d" % number, b"x" * (1 << 20)) for number in range(5)]
        tasks = [
            asyncio.ensure_future(store.commit(puts=large)),
            asyncio.ensure_future(store.commit(puts=[Put(b"small", b"")])),
            *(asyncio.ensure_future(store.renew_lease(LEASE)) for _ in range(300)),
        ]
        await asyncio.sleep(0)
        lock.close()
        await asyncio.gather(*tasks)

    on_store(tmp_path, test)
    assert batches[0] == ["RenewLease"] * 256
    assert batches[1:3] == [["CommitRequest"], ["RenewLease"] * 44 + ["CommitRequest"]]


def on_store(directory: Path, test: Any) -> None:
    async def main() -> None:
        store = await open_sqlite_store(str(directory), real_env(), create=True)
        await test(store)
        await store.close()

    asyncio.run(main())


def test_what_is_queued_together_is_committed_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def counting(connection: apsw.Connection, batch: Any, now: Now, **options: Any) -> Any:
        sizes.append(len(batch))
        return apply(connection, batch, now, **options)

    monkeypatch.setattr(writer, "apply", counting)

    async def test(store: Store) -> None:
        async def some(task: int) -> None:
            for number in range(10):
                await store.commit(puts=[Put(b"%d.%d" % (task, number), b"")])

        await asyncio.gather(*(some(task) for task in range(32)))

    on_store(tmp_path, test)
    assert sum(sizes) == 320
    # A fifth of an fsync for each commit at most.
    assert len(sizes) <= 320 / 5


def frames(directory: Path) -> int:
    return (directory / "store" / "store.db-wal").stat().st_size // 4120


def test_the_write_ahead_log_stays_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "CHECKPOINT_PAGES", 40)

    async def test(store: Store) -> None:
        for number in range(200):
            await store.commit(puts=[Put(b"%d" % number, b"")])
        assert frames(tmp_path) < 80

    on_store(tmp_path, test)


def test_a_reader_delays_the_reset_of_the_log_only_while_it_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "CHECKPOINT_PAGES", 40)
    monkeypatch.setattr(checkpoints, "RESTART_PAGES", 200)
    monkeypatch.setattr(checkpoints, "RESTART_WAIT_MS", 1)

    async def test(store: Store) -> None:
        await store.commit(puts=[Put(b"a", b"")])
        snapshot = await store.snapshot()
        for number in range(100):
            await store.commit(puts=[Put(b"%d" % number, b"")])
        grown = frames(tmp_path)
        assert grown > 300
        assert len(await snapshot.range(b"", b"\xff")) == 1
        await snapshot.close()
        for number in range(200):
            await store.commit(puts=[Put(b"%d" % number, b"")])
        assert frames(tmp_path) <= grown + 40

    on_store(tmp_path, test)


def test_views_that_overlap_without_a_gap_do_not_grow_the_log_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "CHECKPOINT_PAGES", 40)
    monkeypatch.setattr(checkpoints, "RESTART_PAGES", 120)

    async def test(store: Store) -> None:
        async def write(view: View) -> None:
            await view.get(b"elsewhere")
            view.put(b"%d" % view.revision, b"")

        async def some() -> None:
            for _ in range(60):
                await transact(store, real_env(), write)

        await asyncio.gather(*(some() for _ in range(16)))
        assert frames(tmp_path) < 500

    on_store(tmp_path, test)


def test_a_store_nobody_closed_gives_up_its_thread(tmp_path: Path) -> None:
    async def main() -> list[threading.Thread]:
        before = set(threading.enumerate())
        store = await open_sqlite_store(str(tmp_path), real_env(), create=True)
        await store.commit(puts=[Put(b"a", b"")])
        threads = [t for t in threading.enumerate() if t not in before]
        del store
        return [thread for thread in threads if thread.name == "ringhold-store"]

    (thread,) = asyncio.run(main())
    gc.collect()
    thread.join(5)
    assert not thread.is_alive()


def test_a_watch_far_behind_is_compacted_rather_than_shown_a_gap(tmp_path: Path) -> None:
    async def main() -> None:
        store = await open_sqlite_store(str(tmp_path), real_env(), create=True, log_revisions=8)
        watch = store.watch(b"", 1)
        first = await store.commit(puts=[Put(b"a", b"")])
        assert (await anext(watch)).revision == first
        for _ in range(40):
            await store.commit(puts=[Put(b"a", b"")])
        with pytest.raises(Compacted):
            await anext(watch)
        await store.close()

    asyncio.run(main())


def told(directory: Path, test: Any) -> list[str]:
    """What the loop's exception handler is told while `test` runs on a store."""
    messages: list[str] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: messages.append(f"{context['message']}: {context['exception']}")
        )
        store = await open_sqlite_store(str(directory), real_env(), create=True)
        async with asyncio.timeout(20):
            await test(store)
            await store.close()

    asyncio.run(main())
    return messages


class Faulty:
    """A connection whose methods fail with what `faults` holds for them, one after the other."""

    def __init__(self, connection: apsw.Connection, faults: dict[str, list[Exception]]):
        self._connection = connection
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        return self._fail(name) if self._faults.get(name) else getattr(self._connection, name)

    def _fail(self, name: str) -> Any:
        def method(*arguments: Any) -> None:
            raise self._faults[name].pop()

        return method


@pytest.mark.parametrize(
    "fault", [apsw.CorruptError("planned"), apsw.NoMemError("planned"), RuntimeError("planned")]
)
def test_a_checkpoint_that_fails_is_told_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    monkeypatch.setattr(checkpoints, "CHECKPOINT_PAGES", 1)
    faults = {"wal_checkpoint": [fault] * 3}
    connections: list[Any] = []

    def faulty(path: str) -> Any:
        connections.append(Faulty(connect(path), faults))
        return connections[-1]

    monkeypatch.setattr(writer, "connect", faulty)

    async def test(store: Store) -> None:
        for number in range(30):
            assert await store.commit(puts=[Put(b"%d" % number, b"")]) == 2 + number
        assert not faults["wal_checkpoint"]
        assert frames(tmp_path) < 60

    messages = told(tmp_path, test)
    assert len(messages) == 3
    assert all("checkpoint" in message and "planned" in message for message in messages)
    assert len(connections) == (4 if isinstance(fault, RuntimeError) else 1)


def test_a_failed_checkpoint_leaves_the_busy_timeout_of_commits(
    connection: apsw.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "CHECKPOINT_PAGES", 1)
    timeouts: list[int] = []

    class Recording(Faulty):
        def set_busy_timeout(self, milliseconds: int) -> None:
            timeouts.append(milliseconds)

    for fault in (apsw.MisuseError("planned"), apsw.BusyError("planned"), MemoryError("planned")):
        recording: Any = Recording(connection, {"wal_checkpoint": [fault]})
        due = checkpoints.Checkpoints(recording)
        apply(connection, [put(b"a")], Now(1, BOOT))
        if isinstance(fault, MemoryError):
            with pytest.raises(MemoryError):
                due.run_if_due()
        else:
            assert due.run_if_due() is (None if isinstance(fault, apsw.BusyError) else fault)
    assert timeouts == [checkpoints.RESTART_WAIT_MS, BUSY_TIMEOUT_MS] * 3


def test_a_connection_that_cannot_be_closed_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults: dict[str, list[Exception]] = {"close": [apsw.BusyError("planned")] * 2}
    monkeypatch.setattr(writer, "connect", lambda path: Faulty(connect(path), faults))
    failing: list[Exception] = [KeyError("unforeseen")]

    def failing_once(*arguments: Any, **options: Any) -> Any:
        if failing:
            raise failing.pop()
        return apply(*arguments, **options)

    monkeypatch.setattr(writer, "apply", failing_once)

    async def test(store: Store) -> None:
        # Without a connection the failure of the first one would close nothing.
        with pytest.raises(StoreUnavailable, match="unforeseen") as caught:
            await store.commit(puts=[Put(b"a", b"")])
        assert isinstance(caught.value.__cause__, KeyError)
        assert await store.commit(puts=[Put(b"a", b"")]) == 2

    messages = told(tmp_path, test)
    assert len(messages) == 2
    assert all("did not close: planned" in message for message in messages)


def test_a_commit_that_fails_in_an_unforeseen_way_is_unknown(connection: apsw.Connection) -> None:
    def hook(*arguments: Any) -> int:
        raise KeyError("after the commit")

    connection.set_wal_hook(hook)
    with pytest.raises(OutcomeUnknown):
        apply(connection, [put(b"a")], Now(1, BOOT))
    assert connection.execute("SELECT count(*) FROM kv").get == 1


def test_the_thread_goes_on_after_a_lock_that_could_not_be_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(lock: CommitLock) -> None:
        raise RuntimeError("planned")

    async def test(store: Store) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(CommitLock, "acquire", refuse)
            with pytest.raises(StoreUnavailable, match="planned"):
                await store.commit(puts=[Put(b"a", b"")])
        assert await store.commit(puts=[Put(b"a", b"")]) == 2

    assert told(tmp_path, test) == []


def test_after_the_lock_files_fail_everything_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def refuse(lock: CommitLock) -> None:
        reached.set()
        go_on.wait(20)
        raise OSError(9, "planned")

    async def test(store: Store) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(CommitLock, "release", refuse)
            # What was committed before the failure is answered as committed.
            first = asyncio.ensure_future(store.commit(puts=[Put(b"a", b"")]))
            assert await asyncio.to_thread(reached.wait, 20)
            queued = asyncio.ensure_future(store.commit(puts=[Put(b"b", b"")]))
            await asyncio.sleep(0)
            go_on.set()
            assert await first == 2
            for call in (queued, store.commit(), store.grant_lease(LEASE, 1.0)):
                with pytest.raises(StoreUnavailable, match="planned") as caught:
                    await call
                assert isinstance(caught.value.__cause__, OSError)
        # Other openings are not kept waiting by the one that failed.
        other = await open_sqlite_store(str(tmp_path), real_env(), create=False)
        assert await other.commit(puts=[Put(b"c", b"")]) == 3
        await other.close()

    (message,) = told(tmp_path, test)
    assert "thread" in message
    assert "planned" in message


def test_a_batch_that_was_begun_when_the_thread_ended_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(*arguments: Any, **options: Any) -> Any:
        raise SystemExit("planned")

    async def test(store: Store) -> None:
        monkeypatch.setattr(writer, "apply", end)
        with pytest.raises(OutcomeUnknown, match="planned"):
            await store.commit(puts=[Put(b"a", b"")])

    assert len(told(tmp_path, test)) == 1


def test_creation_gives_up_on_a_lock_that_is_not_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ringhold.store.sqlite.store.CREATE_WAIT_S", 0.1)
    (tmp_path / "locks").mkdir()
    lock = CommitLock(str(tmp_path / "locks"))
    lock.acquire()
    lock.sign()

    async def create() -> None:
        async with asyncio.timeout(10):
            store = await open_sqlite_store(str(tmp_path), real_env(), create=True)
        await store.close()

    with pytest.raises(StoreUnavailable, match=rf"process {os.getpid()} took it last"):
        asyncio.run(create())
    lock.close()
    asyncio.run(create())

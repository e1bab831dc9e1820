"""Snapshots: read transactions on pooled connections, bounded in age.

Guarantees that a snapshot shows one revision, at least as new as every commit that returned
before, and that none keeps the write-ahead log from being reset for longer than
SNAPSHOT_AGE_MAX_S: after that its reads raise Compacted. Every entry is verified when it is
read; ChecksumMismatch names the key of a damaged one.

Reads run on the loop's thread: they cost microseconds from the page cache, a hop to another
thread costs many times that. Only a read that turns out to be long moves to a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import apsw

from ringhold.env import Env
from ringhold.errors import Closed, Compacted
from ringhold.store.requests import (
    SNAPSHOT_AGE_MAX_S,
    check_key,
    check_keys,
    check_limit,
    check_range,
)
from ringhold.store.sqlite.opening import Opening
from ringhold.store.sqlite.rows import check_kv, check_value, read_meta
from ringhold.store.sqlite.schema import connect, translated
from ringhold.types import Entry

A = TypeVar("A")
T = TypeVar("T")

IDLE_MAX = 16
"""Connections kept open while nobody reads."""

INLINE_ROWS = 128
INLINE_BYTES = 1 << 18
"""What is read on the loop's thread at most before a thread takes over."""

# A value whose stored type is damaged is compared as the bytes it has, not decoded as text.
_COLUMNS = "k, CAST(v AS BLOB), created, revision, lease, value_sum, sum"
_GET = f"SELECT {_COLUMNS} FROM kv WHERE k = ?"
_RANGE = f"SELECT {_COLUMNS} FROM kv WHERE k >= ? AND k < ? ORDER BY k LIMIT ?"
_RANGE_DOWN = f"SELECT {_COLUMNS} FROM kv WHERE k >= ? AND k < ? ORDER BY k DESC LIMIT ?"


class Readers:
    """The read connections of one store."""

    def __init__(self, opening: Opening, env: Env):
        self.opening = opening
        self.env = env
        self._idle: list[apsw.Connection] = []
        self._snapshots: dict[SqliteSnapshot, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def take(self) -> apsw.Connection:
        """A connection for one user; to be given back with `give`."""
        return self._idle.pop() if self._idle else self._connected()

    def _connected(self) -> apsw.Connection:
        with self.reading():
            return connect(self.opening.path, read_only=True)

    def give(self, connection: apsw.Connection) -> None:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        if len(self._idle) < IDLE_MAX:
            self._idle.append(connection)
        else:
            connection.close()

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        try:
            yield
        except (apsw.Error, UnicodeDecodeError) as error:
            raise translated(error, self.opening.path) from error

    def snapshot(self) -> SqliteSnapshot:
        connection = self.take()
        try:
            with self.reading():
                connection.execute("BEGIN")
                revision = read_meta(connection)["revision"]
        except BaseException:
            connection.close()
            raise
        deadline_ns = self.env.clock.monotonic_ns() + int(SNAPSHOT_AGE_MAX_S * 1e9)
        snapshot = SqliteSnapshot(self, connection, revision, deadline_ns)
        self._watch_age(snapshot)
        return snapshot

    def _watch_age(self, snapshot: SqliteSnapshot) -> None:
        self._snapshots[snapshot] = None
        if self._timer is None:
            self._arm(SNAPSHOT_AGE_MAX_S)

    def _arm(self, delay_s: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._drop_old)

    def _drop_old(self) -> None:
        self._timer = None
        now_ns = self.env.clock.monotonic_ns()
        while self._snapshots:
            oldest = next(iter(self._snapshots))
            if oldest.deadline_ns > now_ns:
                self._arm((oldest.deadline_ns - now_ns) / 1e9)
                return
            oldest.drop()

    def forget(self, snapshot: SqliteSnapshot) -> None:
        self._snapshots.pop(snapshot, None)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for snapshot in list(self._snapshots):
            snapshot.drop()
        while self._idle:
            self._idle.pop().close()


class SqliteSnapshot:
    """A read transaction. Several tasks may read it; long reads take turns in a thread."""

    def __init__(
        self, readers: Readers, connection: apsw.Connection, revision: int, deadline_ns: int
    ):
        self._readers = readers
        self._connection: apsw.Connection | None = connection
        self._revision = revision
        self._turn = asyncio.Lock()
        self._long_reads = 0
        self._doomed: apsw.Connection | None = None
        self._closed = False
        self.deadline_ns = deadline_ns

    @property
    def revision(self) -> int:
        return self._revision

    async def fix(self) -> int:
        return self._revision

    async def get(self, key: bytes) -> Entry | None:
        check_key(key)
        await self._alone()
        with self._readers.reading():
            row = self._open().execute(_GET, (key,)).get
            return None if row is None else self._verified(row)[1]

    async def get_many(self, keys: Sequence[bytes]) -> list[Entry | None]:
        check_keys(keys)
        await self._alone()
        connection = self._open()

        def read(wanted: Sequence[bytes]) -> list[Entry | None]:
            rows = (connection.execute(_GET, (key,)).get for key in wanted)
            return [None if row is None else self._verified(row)[1] for row in rows]

        if len(keys) <= INLINE_ROWS:
            with self._readers.reading():
                return read(keys)
        return await self._long(read, keys)

    async def range(
        self, start: bytes, end: bytes, *, limit: int | None = None, reverse: bool = False
    ) -> list[tuple[bytes, Entry]]:
        check_range(start, end)
        check_limit(limit)
        await self._alone()
        connection = self._open()
        query = _RANGE_DOWN if reverse else _RANGE
        with self._readers.reading():
            cursor = connection.execute(query, (start, end, -1 if limit is None else limit))
            try:
                found, whole = self._read_some(cursor)
                if not whole:
                    found += await self._long(self._read_rest, cursor)
            finally:
                # An open cursor would keep the read transaction beyond the snapshot.
                cursor.close()
        return found

    def _verified(self, row: tuple[Any, ...]) -> tuple[bytes, Entry]:
        key, value = row[:2]
        check_kv(key, row[2:], self._readers.opening.path)
        check_value(key, value, row[5], self._readers.opening.path)
        return key, Entry(value, row[3], row[2])

    def _read_some(self, cursor: apsw.Cursor) -> tuple[list[tuple[bytes, Entry]], bool]:
        """The first entries, and whether they are all."""
        found: list[tuple[bytes, Entry]] = []
        size = 0
        for row in cursor:
            found.append(self._verified(row))
            size += len(row[1])
            if len(found) == INLINE_ROWS or size > INLINE_BYTES:
                return found, False
        return found, True

    def _read_rest(self, cursor: apsw.Cursor) -> list[tuple[bytes, Entry]]:
        return [self._verified(row) for row in cursor]

    async def _alone(self) -> None:
        """Waits while a thread uses the connection."""
        while self._turn.locked():
            async with self._turn:
                pass

    async def _long(self, read: Callable[[A], list[T]], argument: A) -> list[T]:
        """Runs `read` in a thread. The connection outlives it, even if the snapshot does not."""
        self._long_reads += 1
        try:
            async with self._turn:
                self._open()
                with self._readers.reading():
                    return await self._readers.env.blocking(read, argument)
        finally:
            self._long_reads -= 1
            if self._doomed is not None and not self._long_reads:
                self._doomed.close()

    def _open(self) -> apsw.Connection:
        self._readers.opening.check()
        if self._connection is None:
            if self._closed:
                raise Closed(f"the snapshot of revision {self._revision} is closed")
            raise Compacted(
                f"the snapshot of revision {self._revision} is older than {SNAPSHOT_AGE_MAX_S:g} s",
                revision=self._revision,
            )
        return self._connection

    def drop(self) -> None:
        """Ends the read transaction; later reads raise Compacted."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        self._readers.forget(self)
        if self._long_reads:
            self._doomed = connection
        else:
            self._readers.give(connection)

    async def close(self) -> None:
        if not self._readers.opening.is_inherited():
            self._closed = True
            self.drop()

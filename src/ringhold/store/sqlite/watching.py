"""Watches: the log read forward, woken by commits that concern them.

This process's commits wake them directly, those of others by the doorbell, and polling finds
what neither told. Guarantees whole revisions, in order, each once. While nobody waits nothing
polls; a watch costs nothing but its place in the log and its name at the doorbell, and closing
it leaves nothing behind. Every change is verified when it is read.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Set
from itertools import groupby
from typing import Any

import apsw

from ringhold.errors import RingholdError
from ringhold.store.base import Changes, prefix_end
from ringhold.store.requests import no_longer_kept
from ringhold.store.sqlite.doorbell import PREFIX_BYTES, Doorbell, Prefixes, tag
from ringhold.store.sqlite.readers import Readers
from ringhold.store.sqlite.rows import check_log, read_lineage, read_meta
from ringhold.types import Event, EventKind

POLL_S = 0.020
POLL_KEYS = 1_000
"""Changed keys looked at by one poll: beyond them every watch looks itself."""

BATCH_REVISIONS = 64
"""Revisions read at a time, so that a watch that is late does not stop the loop."""


class Watches:
    """The watches of one store; they share one doorbell, one connection and one timer.

    Methods are the loop's, but `committed`.
    """

    def __init__(self, readers: Readers, bells_directory: str):
        self._readers = readers
        self._loop = asyncio.get_running_loop()
        self._bell = Doorbell(bells_directory, readers.opening, readers.env, self._rung)
        self._followed: Counter[bytes] = Counter()
        self._prefixes = Prefixes()
        self._connection: apsw.Connection | None = None
        self._version = -1
        # Up to this revision nothing concerns a watch that waits and was not woken; 0 when
        # that is not known. A watch that begins to wait has read as far or further.
        self._polled = 0
        self._waiting: dict[bytes, dict[asyncio.Future[int], None]] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def follow(self, prefix: bytes, from_revision: int) -> AsyncIterator[Changes]:
        announced = prefix[:PREFIX_BYTES]
        # Before the first read: what is committed after it, whoever commits has been told of.
        self._announce(announced)
        try:
            while True:
                self._readers.opening.check()
                following, found = self._read(prefix, from_revision)
                for changes in found:
                    yield changes
                    self._readers.opening.check()
                if following == from_revision:
                    # Nothing runs on the loop between the read above and the registration
                    # within: what is committed after that read wakes the watch.
                    following = max(following, await self._wait(announced))
                elif not found:
                    await asyncio.sleep(0)
                from_revision = following
        finally:
            self._withdraw(announced)

    def _announce(self, prefix: bytes) -> None:
        self._readers.opening.check()
        self._followed[prefix] += 1
        if self._followed[prefix] == 1:
            self._prefixes.add(prefix)
            self._bell.announce(prefix)

    def _withdraw(self, prefix: bytes) -> None:
        self._followed[prefix] -= 1
        if not self._followed[prefix]:
            del self._followed[prefix]
            self._prefixes.remove(prefix)
            self._bell.withdraw(prefix)

    def _read(self, prefix: bytes, from_revision: int) -> tuple[int, list[Changes]]:
        """The next revision to ask for, and the changes below `prefix` before it."""
        connection = self._readers.take()
        try:
            with self._readers.reading():
                connection.execute("BEGIN")
                return _read_log(connection, prefix, from_revision)
        finally:
            self._readers.give(connection)

    async def _wait(self, prefix: bytes) -> int:
        """Returns when something below `prefix` may have been committed since the log was read,
        at the revision that is returned or later."""
        future: asyncio.Future[int] = self._loop.create_future()
        waiting = self._waiting.setdefault(prefix, {})
        waiting[future] = None
        if self._timer is None:
            self._arm()
        try:
            return await future
        finally:
            del waiting[future]
            if not waiting:
                del self._waiting[prefix]
            if not self._waiting:
                self._disarm()

    def _arm(self) -> None:
        self._timer = self._loop.call_later(POLL_S, self._poll)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _poll(self) -> None:
        self._arm()
        try:
            if self._connection is None:
                self._connection = self._readers.take()
            with self._readers.reading():
                self._look(self._connection)
        except RingholdError as error:
            for waiting in self._waiting.values():
                for future in waiting:
                    if not future.done():
                        future.set_exception(error)

    def _look(self, connection: apsw.Connection) -> None:
        """Wakes the watches that commits since the last poll concern; one read for all of them."""
        version: int = connection.execute("PRAGMA data_version").get
        if version == self._version:
            return
        connection.execute("BEGIN")
        try:
            meta = read_meta(connection)
            is_kept = self._polled and self._polled >= meta["compacted"]
            keys = _keys_after(connection, self._polled) if is_kept else None
        finally:
            connection.execute("ROLLBACK")
        self._wake(self._waiting if keys is None else self._prefixes.of(keys))
        self._version, self._polled = version, meta["revision"]

    def committed(self, changed: Set[bytes]) -> None:
        """To be called when this process has committed, from any thread. Never waits."""
        self._bell.ring(changed)
        concerned = self._prefixes.of(changed)
        if concerned:
            try:
                self._loop.call_soon_threadsafe(self._wake, concerned)
            except RuntimeError:
                # The loop ended before the store was closed: nobody waits any more.
                if not self._loop.is_closed():
                    raise

    def _rung(self, tags: bytes | None) -> None:
        self._wake([prefix for prefix in self._waiting if tags is None or tag(prefix) in tags])

    def _wake(self, prefixes: Iterable[bytes]) -> None:
        for prefix in prefixes:
            for future in self._waiting.get(prefix, ()):
                if not future.done():
                    future.set_result(self._polled + 1)

    def close(self) -> None:
        """Ends all watches: each raises Closed."""
        self._wake(self._waiting)
        self._disarm()
        self._bell.take_down()
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _keys_after(connection: apsw.Connection, revision: int) -> set[bytes] | None:
    """The keys changed after `revision`; None when they are too many to look at."""
    # A key whose stored type is damaged is compared as the bytes it has, not decoded as text.
    query = "SELECT CAST(k AS BLOB) FROM log WHERE revision > ? LIMIT ?"
    keys: list[tuple[Any, ...]] = connection.execute(query, (revision, POLL_KEYS)).fetchall()
    return None if len(keys) == POLL_KEYS else {key for (key,) in keys}


def _read_log(
    connection: apsw.Connection, prefix: bytes, from_revision: int
) -> tuple[int, list[Changes]]:
    meta = read_meta(connection)
    if from_revision <= meta["compacted"]:
        raise no_longer_kept(from_revision, meta["compacted"])
    bound = None
    lineage = read_lineage(connection)
    if lineage is not None:
        from_revision, bound = lineage.follow(from_revision)
    end = min(meta["revision"] + 1, from_revision + BATCH_REVISIONS)
    if bound is not None:
        end = min(end, bound)
    rows = connection.execute(
        "SELECT revision, place, k, v, sum FROM log"
        " WHERE revision >= ? AND revision < ? AND k >= ? AND k < ? ORDER BY revision, place",
        (from_revision, end, prefix, prefix_end(prefix)),
    )
    found = [
        Changes(revision, tuple(_event(row, connection.filename) for row in group))
        for revision, group in groupby(rows, key=lambda row: row[0])
    ]
    return max(end, from_revision), found


def _event(row: tuple[Any, ...], path: str) -> Event:
    revision, place, key, value, expected = row
    check_log(revision, place, key, value, expected, path)
    kind = EventKind.DELETE if value is None else EventKind.PUT
    return Event(kind, key, value, revision)

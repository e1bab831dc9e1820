"""Watches: the log read forward, woken by this process's commits and by polling for others'.

Guarantees whole revisions, in order, each once. While nobody waits nothing polls; a watch costs
nothing but its place in the log, and closing it leaves nothing behind. Every change is verified
when it is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import groupby
from typing import Any

import apsw

from ringhold.errors import RingholdError
from ringhold.store.base import Changes, prefix_end
from ringhold.store.requests import no_longer_kept
from ringhold.store.sqlite.readers import Readers
from ringhold.store.sqlite.rows import check_log, read_lineage, read_meta
from ringhold.types import Event, EventKind

POLL_S = 0.010
BATCH_REVISIONS = 64
"""Revisions read at a time, so that a watch that is late does not stop the loop."""


class Watches:
    """The watches of one store; they share one connection and one timer."""

    def __init__(self, readers: Readers):
        self._readers = readers
        self._connection: apsw.Connection | None = None
        self._version = -1
        self._waiting: dict[asyncio.Future[None], None] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def follow(self, prefix: bytes, from_revision: int) -> AsyncIterator[Changes]:
        while True:
            self._readers.opening.check()
            following, found = self._read(prefix, from_revision)
            for changes in found:
                yield changes
                self._readers.opening.check()
            if following == from_revision:
                # Nothing runs between the read above and the registration within: what is
                # committed after that read is seen by a later poll.
                await self._wait()
            elif not found:
                await asyncio.sleep(0)
            from_revision = following

    def _read(self, prefix: bytes, from_revision: int) -> tuple[int, list[Changes]]:
        """The next revision to ask for, and the changes below `prefix` before it."""
        connection = self._readers.take()
        try:
            with self._readers.reading():
                connection.execute("BEGIN")
                return _read_log(connection, prefix, from_revision)
        finally:
            self._readers.give(connection)

    async def _wait(self) -> None:
        """Returns when something may have been committed since the log was read."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[future] = None
        if self._timer is None:
            self._arm()
        try:
            await future
        finally:
            self._waiting.pop(future, None)
            if not self._waiting:
                self._disarm()

    def _arm(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(POLL_S, self._poll)

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
                version: int = self._connection.execute("PRAGMA data_version").get
        except RingholdError as error:
            for future in list(self._waiting):
                if not future.done():
                    future.set_exception(error)
            return
        if version != self._version:
            self._version = version
            self.wake()

    def wake(self) -> None:
        """To be called when this process committed."""
        for future in list(self._waiting):
            if not future.done():
                future.set_result(None)

    def close(self) -> None:
        """Ends all watches: each raises Closed."""
        self.wake()
        self._disarm()
        if self._connection is not None:
            self._connection.close()
            self._connection = None


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

"""The store for callers that may block: reads and commits on the calling thread, in any thread.

Guarantees what `base.Transactional` does, by coroutines that never suspend, so that they need no
event loop (`base.run_direct`). A commit may wait for other processes, as `Writer.commit` says.

A thread that is interrupted anywhere in a read leaves a connection to the collector, which ends
its transaction; none is ever pooled while it is in use.
"""

from __future__ import annotations

from collections.abc import Iterable

import apsw

from ringhold.env import Env, ThreadEnv
from ringhold.store.base import Compare, Put
from ringhold.store.requests import checked_commit
from ringhold.store.sqlite.opening import Opening
from ringhold.store.sqlite.readers import IDLE_MAX, Readers, SqliteSnapshot
from ringhold.store.sqlite.writer import Writer


class _ThreadReaders(Readers):
    """Read connections for any thread. Snapshots here last as long as one call, and have no
    timer that bounds their age."""

    def take(self) -> apsw.Connection:
        try:
            return self._idle.pop()
        except IndexError:
            return self._connected()

    def give(self, connection: apsw.Connection) -> None:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        if self.opening.closed or len(self._idle) >= IDLE_MAX:
            connection.close()
            return
        self._idle.append(connection)
        if self.opening.closed:
            self.close()

    def _watch_age(self, snapshot: SqliteSnapshot) -> None:
        return

    def close(self) -> None:
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return
            connection.close()


class DirectFace:
    """One opening's; see `base.Transactional`."""

    def __init__(self, opening: Opening, env: Env, writer: Writer):
        self.env = ThreadEnv(env)
        self._opening = opening
        self._writer = writer
        self._readers = _ThreadReaders(opening, self.env)

    async def snapshot(self) -> SqliteSnapshot:
        self._opening.check()
        return self._readers.snapshot()

    async def commit(
        self,
        *,
        compares: Iterable[Compare] = (),
        puts: Iterable[Put] = (),
        deletes: Iterable[bytes] = (),
        nonce: bytes | None = None,
    ) -> int:
        self._opening.check()
        return self._writer.commit(checked_commit(compares, puts, deletes, nonce))

    def close(self) -> None:
        """To be called once the opening is closed: connections in use are closed after it."""
        self._readers.close()

"""Checkpoints: the write-ahead log is copied into the database, and begins again.

They happen here only, under the commit lock, when the log has grown. No commit depends on one.
"""

from __future__ import annotations

import apsw

from ringhold.store.sqlite.schema import BUSY_TIMEOUT_MS

CHECKPOINT_PAGES = 1_000
RESTART_PAGES = 16_000
RESTART_WAIT_MS = 20


class Checkpoints:
    """Keeps the write-ahead log short; belongs to one connection that writes.

    A passive checkpoint copies what it can and waits for nobody; the log starts again from its
    beginning at a commit that finds everything copied and no reader in it. Where readers follow
    one another without a gap that never happens, so a log that has grown far waits for them,
    briefly.
    """

    def __init__(self, connection: apsw.Connection):
        self._connection = connection
        self._pages = 0
        self._copied = 0
        connection.set_wal_hook(self._committed)

    def _committed(self, connection: apsw.Connection, name: str, pages: int) -> int:
        if pages < self._pages:
            self._copied = 0
        self._pages = pages
        return int(apsw.SQLITE_OK)

    @property
    def due(self) -> bool:
        return self._pages - self._copied >= CHECKPOINT_PAGES

    def run_if_due(self) -> apsw.Error | None:
        """To be called with the commit lock held, outside a transaction.

        Returns the error of a checkpoint that failed, unless readers were in its way.
        """
        if not self.due:
            return None
        restart = self._pages >= RESTART_PAGES
        mode = apsw.SQLITE_CHECKPOINT_RESTART if restart else apsw.SQLITE_CHECKPOINT_PASSIVE
        # The next try is due after as many pages again, whether this one succeeds or not: a
        # commit that is durable in the log does not depend on it.
        self._copied = self._pages
        try:
            self._connection.set_busy_timeout(RESTART_WAIT_MS)
            try:
                self._connection.wal_checkpoint("main", mode)
            finally:
                self._connection.set_busy_timeout(BUSY_TIMEOUT_MS)
        except apsw.BusyError:
            return None
        except apsw.Error as error:
            return error
        return None

"""What the database says about leases at this moment, to whichever thread asks.

Guarantees that nobody waits for a commit here, whoever is stuck in one: one read transaction on a
connection of its own, and one look at the signature in the commit lock's file, which says by
which moment a commit under way judges leases.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any

import apsw

from ringhold.env import Clock
from ringhold.errors import StoreUnavailable
from ringhold.store import lock_files
from ringhold.store.leases import LeaseTime, needs_commit
from ringhold.store.sqlite.opening import Opening
from ringhold.store.sqlite.rows import read_meta
from ringhold.store.sqlite.schema import connect, translated

READS_MAX = 5
"""Commits that may come or go while one reads, before no more is said than the deadline."""

_ALL = "SELECT id, ttl_ns, deadline_ns, boot_id FROM lease"


class LeaseTimes:
    """For one opening of a store. Every method may be called from any thread."""

    def __init__(self, opening: Opening, lock_path: str, clock: Clock, boot_id: bytes):
        self._opening = opening
        self._lock_path = lock_path
        self._clock = clock
        self._boot_id = boot_id
        self._turn = threading.Lock()
        self._connection: apsw.Connection | None = None

    def until(self, lease: bytes) -> int | None:
        """See `Store.lease_until`."""
        deadline_ns = 0
        for _ in range(READS_MAX):
            # In this order: a commit that begins after `now_ns` was read judges by a later
            # moment, and one that began before it is in the signature.
            now_ns = self._clock.boottime_ns()
            begun_ns = self._begun_ns()
            committed_ns, rows = self._read()
            found = next((row for row in rows if row[0] == lease), None)
            if found is None or found[3] != self._boot_id:
                return None
            ttl_ns, deadline_ns = found[1:3]
            if self._begun_ns() == begun_ns:
                shortest_ttl_ns = min(row[1] for row in rows)
                begun_ns = min(begun_ns, now_ns)
                time = LeaseTime(deadline_ns, ttl_ns, shortest_ttl_ns, committed_ns, begun_ns)
                return time.until(now_ns)
        # Commits come and go: there is no gap, and which of them was read is not known.
        return deadline_ns

    def look(self) -> tuple[bool, list[bytes]]:
        """Whether leases wait for a commit to be judged by, and the ids of all."""
        committed_ns, rows = self._read()
        if not rows:
            return False, []
        now_ns = self._clock.boottime_ns()
        is_due = any(row[2] <= now_ns or row[3] != self._boot_id for row in rows)
        shortest_ttl_ns = min(row[1] for row in rows)
        is_due = is_due or needs_commit(now_ns - committed_ns, shortest_ttl_ns)
        return is_due, [row[0] for row in rows]

    def _begun_ns(self) -> int:
        try:
            return lock_files.begun_ns(self._lock_path)
        except OSError as error:
            raise StoreUnavailable(
                f"the locks of {self._opening.path} are gone: {error}"
            ) from error

    def _read(self) -> tuple[int, Sequence[tuple[Any, ...]]]:
        """When the newest commit began, and all leases."""
        self._opening.check()
        with self._turn:
            self._opening.check()
            try:
                if self._connection is None:
                    self._connection = connect(self._opening.path, read_only=True)
                connection = self._connection
                connection.execute("BEGIN")
                try:
                    return read_meta(connection).get("commit_ns", 0), list(connection.execute(_ALL))
                finally:
                    connection.execute("ROLLBACK")
            except (apsw.Error, UnicodeDecodeError) as error:
                raise translated(error, self._opening.path) from error

    def close(self) -> None:
        """To be called once the opening is marked as closed."""
        with self._turn:
            if self._connection is not None:
                self._connection.close()
                self._connection = None


def commit_lock_path(directory: str) -> str:
    """The file of `CommitLock(directory)` that is signed."""
    return os.path.join(directory, "commit")

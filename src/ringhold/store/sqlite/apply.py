"""The engine's core: `apply` turns a batch of requests into one SQLite transaction.

A synchronous function of a connection, a batch and a moment; it knows no thread, loop, lock or
clock. Requests of a batch are answered in order, each seeing what those before it did; one that
fails leaves nothing. All of them become durable with one fsync.

Leases that are due end first, each at a revision of its own, so that no compare can be won
through a key of an expired lease.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import apsw

from ringhold.errors import (
    ChecksumMismatch,
    Conflict,
    InvalidInput,
    OutcomeUnknown,
    RingholdError,
    SessionExpired,
)
from ringhold.store.base import (
    Absent,
    Born,
    Compare,
    Empty,
    NoneBornAfter,
    Put,
    Unchanged,
)
from ringhold.store.requests import LOG_REVISIONS, NONCE_REVISIONS, CommitRequest, lease_gone
from ringhold.store.sqlite.rows import (
    check_kv,
    kv_sum,
    log_sum,
    meta_sum,
    read_meta,
    sum_of,
)
from ringhold.store.sqlite.schema import translated

COMPACT_EVERY = 256
"""Revisions between two compactions: often enough that each is short."""

LOG_BYTES_MAX = 256 << 20
"""Values the log keeps at most: large ones push old revisions out before their time."""


_SELECT = "SELECT created, revision, lease, value_sum, sum FROM kv WHERE k = ?"
_INSERT = (
    "INSERT INTO kv (k, created, revision, lease, value_sum, sum, v)"
    " VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)"
)
_UPDATE = (
    "UPDATE kv SET created = ?2, revision = ?3, lease = ?4, value_sum = ?5, sum = ?6, v = ?7"
    " WHERE k = ?1"
)
_INSERT_LOG = "INSERT INTO log (revision, place, k, sum, v) VALUES (?, ?, ?, ?, ?)"
_UPDATE_META = (
    "UPDATE meta SET value = CASE name WHEN 'revision' THEN ?1 ELSE ?3 END,"
    " sum = CASE name WHEN 'revision' THEN ?2 ELSE ?4 END"
    " WHERE name IN ('revision', 'log_bytes')"
)


class _Row(NamedTuple):
    created: int
    revision: int


@dataclass(frozen=True, slots=True)
class Now:
    """A moment by which leases are judged."""

    boottime_ns: int
    boot_id: bytes


@dataclass(frozen=True, slots=True)
class GrantLease:
    lease: bytes
    ttl_ns: int
    pid: int


@dataclass(frozen=True, slots=True)
class RenewLease:
    lease: bytes


@dataclass(frozen=True, slots=True)
class RevokeLeases:
    leases: tuple[bytes, ...]


Request = CommitRequest | GrantLease | RenewLease | RevokeLeases
Outcome = int | RingholdError


@dataclass(slots=True)
class Applied:
    """The outcomes of a batch in its order, the leases that ended with it, the changed keys."""

    outcomes: list[Outcome] = field(default_factory=list)
    ended: list[bytes] = field(default_factory=list)
    changed: set[bytes] = field(default_factory=set)


def apply(
    connection: apsw.Connection,
    batch: Sequence[Request],
    now: Now,
    *,
    log_revisions: int = LOG_REVISIONS,
) -> Applied:
    """Answers `batch` in one durable transaction, or raises and changes nothing.

    Raises StoreUnavailable or Corrupt when nothing happened, OutcomeUnknown when the commit
    itself failed in a way that may have left it in the write-ahead log; the connection must
    then be given up.
    """
    try:
        connection.execute("BEGIN IMMEDIATE")
        try:
            transaction = _Transaction(connection, now)
            transaction.expire_due()
            for request in batch:
                transaction.answer(request)
            transaction.finish(log_revisions)
        except BaseException:
            _roll_back(connection)
            raise
    except (apsw.Error, UnicodeDecodeError) as error:
        raise translated(error, connection.filename) from error
    try:
        connection.execute("COMMIT")
    except apsw.FullError as error:
        # The disk refused a frame, so the frame that marks the commit was never written.
        _roll_back(connection)
        raise translated(error, connection.filename) from error
    except Exception as error:
        raise OutcomeUnknown(
            f"the store {connection.filename} failed while committing: {error}"
        ) from error
    return transaction.applied


def _roll_back(connection: apsw.Connection) -> None:
    if connection.in_transaction:
        connection.execute("ROLLBACK")


class _Transaction:
    def __init__(self, connection: apsw.Connection, now: Now):
        self._execute = connection.execute
        self._connection = connection
        self._now = now
        self._meta = read_meta(connection)
        self._before = self._meta["revision"]
        self._revision = self._before
        self._log_bytes = self._meta["log_bytes"]
        self.applied = Applied()

    def answer(self, request: Request) -> None:
        try:
            outcome: Outcome = self._answer(request)
        except (Conflict, SessionExpired, InvalidInput, ChecksumMismatch) as error:
            outcome = error
        self.applied.outcomes.append(outcome)

    def _answer(self, request: Request) -> int:
        match request:
            case CommitRequest():
                return self._commit(request)
            case GrantLease():
                self._grant(request)
            case RenewLease(lease):
                self._renew(lease)
            case RevokeLeases(leases):
                for lease in leases:
                    self._end(lease)
        return self._revision

    def _commit(self, request: CommitRequest) -> int:
        if request.nonce is not None:
            done = self._execute("SELECT revision FROM nonce WHERE nonce = ?", (request.nonce,)).get
            if done is not None:
                return int(done)
        for index, compare in enumerate(request.compares):
            if not self._holds(compare):
                raise Conflict(f"{compare!r} does not hold", index=index, compare=compare)
        for lease in dict.fromkeys(put.lease for put in request.puts):
            if lease is not None and not self._is_live(lease):
                raise lease_gone(lease)
        if request.writes:
            self._write(request.puts, request.deletes)
            if request.nonce is not None:
                self._execute("INSERT INTO nonce VALUES (?, ?)", (request.nonce, self._revision))
        return self._revision

    def _holds(self, compare: Compare) -> bool:
        match compare:
            case Absent(key):
                return bool(self._execute("SELECT 1 FROM kv WHERE k = ?", (key,)).get is None)
            case Unchanged(key, revision):
                row = self._row(key)
                return row is not None and row.revision == revision
            case Born(key, revision):
                row = self._row(key)
                return row is not None and row.created == revision
            case Empty(start, end):
                query = "SELECT 1 FROM kv WHERE k >= ? AND k < ? LIMIT 1"
                return bool(self._execute(query, (start, end)).get is None)
            case NoneBornAfter(start, end, revision):
                query = "SELECT 1 FROM kv WHERE k >= ? AND k < ? AND created > ? LIMIT 1"
                return bool(self._execute(query, (start, end, revision)).get is None)

    def _row(self, key: bytes) -> _Row | None:
        """What is known of `key` without its value, verified."""
        found = self._execute(_SELECT, (key,)).get
        if found is None:
            return None
        check_kv(key, found, self._connection.filename)
        return _Row(found[0], found[1])

    def _write(self, puts: Sequence[Put], deletes: Sequence[bytes]) -> None:
        # Before anything is written: a damaged record refuses this request, not its batch.
        before = [self._row(put.key) for put in puts]
        self._revision += 1
        revision = self._revision
        events: list[tuple[int, int, bytes, int, bytes | None]] = []
        for put, row in zip(puts, before, strict=True):
            value_sum = sum_of(put.value)
            created = revision if row is None else row.created
            new_sum = kv_sum(put.key, created, revision, put.lease, value_sum)
            values = (created, revision, put.lease, value_sum, new_sum, put.value)
            self._execute(_INSERT if row is None else _UPDATE, (put.key, *values))
            place = len(events)
            log_row_sum = log_sum(revision, place, put.key, value_sum)
            events.append((revision, place, put.key, log_row_sum, put.value))
            self._log_bytes += len(put.value)
        for key in deletes:
            self._execute("DELETE FROM kv WHERE k = ?", (key,))
            if self._connection.changes():
                place = len(events)
                events.append((revision, place, key, log_sum(revision, place, key, None), None))
        self._connection.executemany(_INSERT_LOG, events)
        self.applied.changed.update(event[2] for event in events)

    def _is_live(self, lease: bytes) -> bool:
        return bool(self._execute("SELECT 1 FROM lease WHERE id = ?", (lease,)).get)

    def _grant(self, request: GrantLease) -> None:
        if self._is_live(request.lease):
            raise InvalidInput(f"lease {request.lease.hex()} exists already")
        deadline_ns = self._now.boottime_ns + request.ttl_ns
        self._execute(
            "INSERT INTO lease (id, ttl_ns, deadline_ns, boot_id, pid) VALUES (?, ?, ?, ?, ?)",
            (request.lease, request.ttl_ns, deadline_ns, self._now.boot_id, request.pid),
        )

    def _renew(self, lease: bytes) -> None:
        self._execute(
            "UPDATE lease SET deadline_ns = ? + ttl_ns WHERE id = ?",
            (self._now.boottime_ns, lease),
        )
        if not self._connection.changes():
            raise lease_gone(lease)

    def _end(self, lease: bytes) -> None:
        self._execute("DELETE FROM lease WHERE id = ?", (lease,))
        if not self._connection.changes():
            return
        self.applied.ended.append(lease)
        keys = [key for (key,) in self._execute("SELECT k FROM kv WHERE lease = ?", (lease,))]
        if keys:
            self._write((), sorted(keys))

    def expire_due(self) -> None:
        due = self._execute(
            "SELECT id FROM lease WHERE deadline_ns <= ? OR boot_id <> ?",
            (self._now.boottime_ns, self._now.boot_id),
        )
        for lease in [lease for (lease,) in due]:
            self._end(lease)

    def finish(self, log_revisions: int) -> None:
        if self._revision == self._before:
            return
        if self._has_passed(min(COMPACT_EVERY, log_revisions)) or self._log_bytes > LOG_BYTES_MAX:
            self._compact(self._revision - log_revisions)
        if self._has_passed(LOG_REVISIONS):
            floor = self._revision - NONCE_REVISIONS
            self._execute("DELETE FROM nonce WHERE revision <= ?", (floor,))
        revision_sum = meta_sum("revision", self._revision)
        bytes_sum = meta_sum("log_bytes", self._log_bytes)
        self._execute(_UPDATE_META, (self._revision, revision_sum, self._log_bytes, bytes_sum))

    def _has_passed(self, step: int) -> bool:
        return self._before // step != self._revision // step

    def _compact(self, floor: int) -> None:
        """Removes the log up to `floor`, and beyond it while its values take too much."""
        rows = self._execute(
            "SELECT revision, sum(coalesce(length(v), 0)) FROM log"
            " WHERE revision < ? GROUP BY revision ORDER BY revision",
            (self._revision,),
        )
        limit = LOG_BYTES_MAX // 2 if self._log_bytes > LOG_BYTES_MAX else LOG_BYTES_MAX
        for revision, size in rows:
            if revision > floor and self._log_bytes <= limit:
                break
            self._log_bytes -= size
            floor = max(floor, revision)
        rows.close()
        if floor > self._meta["compacted"]:
            self._execute("DELETE FROM log WHERE revision <= ?", (floor,))
            self._execute(
                "UPDATE meta SET value = ?, sum = ? WHERE name = 'compacted'",
                (floor, meta_sum("compacted", floor)),
            )

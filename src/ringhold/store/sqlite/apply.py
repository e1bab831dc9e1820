"""The engine's core: `apply` turns a batch of requests into one SQLite transaction.

A synchronous function of a connection, a batch and a moment; it knows no thread, loop, lock or
clock. Requests of a batch are answered in order, each seeing what those before it did; one that
fails leaves nothing. All of them become durable with one fsync.

Leases that are due end first, each at a revision of its own, so that no compare can be won
through a key of an expired lease. After a gap in which nothing was committed none is due: each
gets its whole TTL again (`leases`).

Revisions go on where the newest ended, or higher where it is not known which was the newest
(`lineage`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
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
from ringhold.store.leases import is_gap, may_be_gap
from ringhold.store.requests import LOG_REVISIONS, NONCE_REVISIONS, CommitRequest, lease_gone
from ringhold.store.sqlite.lineage import CEILING_STEP, Lineage
from ringhold.store.sqlite.reserve import keep_reserve, pages_of, restart_log
from ringhold.store.sqlite.rows import (
    check_kv,
    kv_sum,
    lineage_sum,
    log_sum,
    meta_sum,
    read_lineage,
    read_meta,
    sum_of,
)
from ringhold.store.sqlite.schema import set_synced, translated

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
    "UPDATE meta SET"
    " value = CASE name WHEN 'revision' THEN ?1 WHEN 'log_bytes' THEN ?3 ELSE ?5 END,"
    " sum = CASE name WHEN 'revision' THEN ?2 WHEN 'log_bytes' THEN ?4 ELSE ?6 END"
    " WHERE name IN ('revision', 'log_bytes', 'commit_ns')"
)
_PUT_META = "INSERT OR REPLACE INTO meta (name, value, sum) VALUES (?, ?, ?)"


class _Row(NamedTuple):
    created: int
    revision: int


@dataclass(frozen=True, slots=True)
class Now:
    """A moment by which leases are judged, and the file that is written (`file_identity`)."""

    boottime_ns: int
    boot_id: bytes
    file: int = 0


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
    """Without leases it only notes that the store could be written."""

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
    synced: bool = True,
) -> Applied:
    """Answers `batch` in one transaction, or raises and changes nothing.

    synced: as the connection was made, whether the transaction is durable at a power cut.

    Raises StoreUnavailable or Corrupt when nothing happened, OutcomeUnknown when the commit
    itself failed in a way that may have left it in the write-ahead log; the connection must
    then be given up.
    """
    try:
        try:
            return _commit(connection, batch, now, log_revisions, synced)
        except apsw.FullError:
            restart_log(connection)
        try:
            return _commit(connection, batch, now, log_revisions, synced)
        except apsw.FullError as error:
            return _commit_freeing(connection, batch, now, log_revisions, synced, error)
    except (apsw.Error, UnicodeDecodeError) as error:
        raise translated(error, connection.filename) from error


def _commit_freeing(
    connection: apsw.Connection,
    batch: Sequence[Request],
    now: Now,
    log_revisions: int,
    synced: bool,
    error: apsw.FullError,
) -> Applied:
    """On a full disk: what puts nothing, for which the reserve is kept. The rest is refused."""
    freeing = [request for request in batch if _frees(request)]
    if not freeing:
        raise error
    applied = _commit(connection, freeing, now, log_revisions, synced)
    done = iter(applied.outcomes)
    applied.outcomes = [
        next(done) if _frees(request) else translated(error, connection.filename)
        for request in batch
    ]
    return applied


def _frees(request: Request) -> bool:
    if isinstance(request, CommitRequest):
        return not request.puts
    return not isinstance(request, GrantLease)


def _commit(
    connection: apsw.Connection,
    batch: Sequence[Request],
    now: Now,
    log_revisions: int,
    synced: bool,
) -> Applied:
    transaction = _begin(connection, batch, now, log_revisions)
    while not synced and transaction.is_above_ceiling():
        _roll_back(connection)
        _raise_ceiling(connection, now, transaction.revision)
        transaction = _begin(connection, batch, now, log_revisions)
    try:
        connection.execute("COMMIT")
    except apsw.FullError:
        # The disk refused a frame, so the frame that marks the commit was never written.
        _roll_back(connection)
        raise
    except Exception as error:
        raise OutcomeUnknown(
            f"the store {connection.filename} failed while committing: {error}"
        ) from error
    return transaction.applied


def _begin(
    connection: apsw.Connection, batch: Sequence[Request], now: Now, log_revisions: int
) -> _Transaction:
    """A transaction with all of `batch` done, to be committed."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        puts = not all(map(_frees, batch))
        pages_before = pages_of(connection) if puts else 0
        transaction = _Transaction(connection, now)
        transaction.expire_due()
        for request in batch:
            transaction.answer(request)
        transaction.finish(log_revisions)
        if puts:
            keep_reserve(connection, pages_before)
    except BaseException:
        _roll_back(connection)
        raise
    return transaction


def _raise_ceiling(connection: apsw.Connection, now: Now, revision: int) -> None:
    """Far above `revision`, in a synced transaction, whatever the connection's own are."""
    set_synced(connection, True)
    try:
        connection.execute("BEGIN IMMEDIATE")
        try:
            _Transaction(connection, now).raise_ceiling(revision)
            connection.execute("COMMIT")
        finally:
            _roll_back(connection)
    finally:
        set_synced(connection, False)


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
        self._changes = connection.total_changes()
        self._asked_to_write = False
        self.applied = Applied()
        self._lineage = self._continued(read_lineage(connection))

    def _continued(self, lineage: Lineage | None) -> Lineage:
        """The lineage of this commit; revisions are skipped where it does not follow the last."""
        boot, file = sum_of(self._now.boot_id), self._now.file
        if lineage is None:
            # Nothing is known of the last commit, so everything before this one is a gap.
            self._put_meta("commit_ns", 0)
            return self._put_lineage(Lineage(boot, file))
        if (lineage.boot, lineage.file) == (boot, file):
            return lineage
        following = lineage.after(self._revision, boot, file)
        if following.skipped_last > self._revision:
            # One range of skipped revisions is remembered: the log must not span another.
            if lineage.skipped_last > self._meta["compacted"]:
                self._compact(lineage.skipped_last)
            self._revision = following.skipped_last
        return self._put_lineage(following)

    def _put_lineage(self, lineage: Lineage) -> Lineage:
        packed = lineage.pack()
        self._execute(_PUT_META, ("lineage", packed, lineage_sum(packed)))
        return lineage

    def _put_meta(self, name: str, value: int) -> None:
        self._execute(_PUT_META, (name, value, meta_sum(name, value)))

    def is_above_ceiling(self) -> bool:
        """Whether it gives revisions that a power cut could make given again."""
        return self._revision > max(self._before, self._lineage.ceiling)

    @property
    def revision(self) -> int:
        """The newest."""
        return self._revision

    def raise_ceiling(self, revision: int) -> None:
        """Writes all but the moment, so that a gap is still one to the next commit."""
        self._put_lineage(replace(self._lineage, ceiling=revision + CEILING_STEP))
        self._put_meta("revision", self._revision)
        self._put_meta("log_bytes", self._log_bytes)

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
                self._asked_to_write = True
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
        self._bridge_gap()
        due = self._execute(
            "SELECT id FROM lease WHERE deadline_ns <= ? OR boot_id <> ?",
            (self._now.boottime_ns, self._now.boot_id),
        )
        for lease in [lease for (lease,) in due]:
            self._end(lease)

    def _bridge_gap(self) -> None:
        gap_ns = self._now.boottime_ns - self._meta.get("commit_ns", 0)
        if not may_be_gap(gap_ns):
            return
        shortest_ttl_ns = self._execute("SELECT min(ttl_ns) FROM lease").get
        if shortest_ttl_ns is not None and is_gap(gap_ns, shortest_ttl_ns):
            self._execute(
                "UPDATE lease SET deadline_ns = ? + ttl_ns WHERE boot_id = ?",
                (self._now.boottime_ns, self._now.boot_id),
            )

    def finish(self, log_revisions: int) -> None:
        is_new = self._revision > self._before
        if is_new:
            self._shorten_log(log_revisions)
        if is_new or self._asked_to_write or self._connection.total_changes() != self._changes:
            revision, log_bytes = self._revision, self._log_bytes
            now_ns = self._now.boottime_ns
            self._execute(
                _UPDATE_META,
                (
                    revision,
                    meta_sum("revision", revision),
                    log_bytes,
                    meta_sum("log_bytes", log_bytes),
                    now_ns,
                    meta_sum("commit_ns", now_ns),
                ),
            )

    def _shorten_log(self, log_revisions: int) -> None:
        back = self._lineage.back
        if self._has_passed(min(COMPACT_EVERY, log_revisions)) or self._log_bytes > LOG_BYTES_MAX:
            self._compact(back(self._revision, log_revisions))
        if self._has_passed(LOG_REVISIONS):
            floor = back(self._revision, NONCE_REVISIONS)
            self._execute("DELETE FROM nonce WHERE revision <= ?", (floor,))

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
            self._put_meta("compacted", floor)
            self._meta["compacted"] = floor

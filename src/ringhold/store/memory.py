"""The memory engine: the whole contract of `base.Store` within one process, nothing on disk.

Stores are shared by name among everything in the process, on any event loop. A store lives as
long as the process. Durability ends with the process; everything else is promised as by the
other engines, and one conformance suite runs on all of them.

The first revision comes from the wall clock, so that the tokens of a process are larger than
those that an earlier one gave under the same name and that something outside remembers. That
holds as long as the clock was not set back in between and the earlier one did not commit 4000
times a second on average, all its life. Stores of one name in two processes that live at the
same time have nothing to do with one another.

Snapshots are kept apart from commits by `versions`, several threads by a lock held for
microseconds.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field

from ringhold.env import Env, process_id
from ringhold.errors import Closed, Compacted, Conflict, InvalidInput
from ringhold.store.base import (
    EMBEDDED_LIMITS,
    Absent,
    Born,
    Changes,
    Compare,
    Empty,
    NoneBornAfter,
    Put,
    Store,
    Unchanged,
)
from ringhold.store.leases import LeaseTime, is_gap, may_be_gap, needs_commit
from ringhold.store.requests import (
    LOG_REVISIONS,
    NONCE_REVISIONS,
    SNAPSHOT_AGE_MAX_S,
    CommitRequest,
    check_bytes,
    check_key,
    check_keys,
    check_lease,
    check_limit,
    check_range,
    check_revision,
    checked_commit,
    lease_gone,
    no_longer_kept,
    revision_at,
    ttl_in_ns,
)
from ringhold.store.versions import Versions
from ringhold.types import Entry, Event, EventKind

WATCH_BATCH = 64
"""Revisions a watch takes from the log at a time, so that a late one does not stop the loop."""


@dataclass(slots=True)
class _Lease:
    ttl_ns: int
    deadline_ns: int
    keys: dict[bytes, None] = field(default_factory=dict)


class _Memory:
    """The state all stores of one name share; every method holds the lock and never waits."""

    def __init__(self, log_revisions: int, revision: int) -> None:
        self.lock = threading.Lock()
        self.revision = revision
        self.compacted = revision - 1
        self.versions = Versions()
        self.snapshots: dict[MemorySnapshot, None] = {}
        self.waiters: dict[_Waiter, None] = {}
        # One record for every revision after `compacted`, the empty store's own included.
        self._log: deque[Changes] = deque([Changes(revision, ())])
        self._log_revisions = log_revisions
        self._first = revision
        # When something was written last; see `leases`.
        self._written_ns = 0
        self._leases: dict[bytes, _Lease] = {}
        self._lease_of: dict[bytes, bytes] = {}
        self._nonces: dict[bytes, int] = {}

    def commit(self, request: CommitRequest, now_ns: int) -> int:
        self.expire(now_ns)
        if request.nonce is not None and request.nonce in self._nonces:
            return self._nonces[request.nonce]
        for index, compare in enumerate(request.compares):
            if not self._holds(compare):
                raise Conflict(f"{compare!r} does not hold", index=index, compare=compare)
        for put in request.puts:
            if put.lease is not None and put.lease not in self._leases:
                raise lease_gone(put.lease)
        if request.writes:
            self._written_ns = now_ns
            self._write(request.puts, request.deletes)
            if request.nonce is not None:
                self._nonces[request.nonce] = self.revision
        return self.revision

    def _holds(self, compare: Compare) -> bool:
        match compare:
            case Absent(key):
                return self.versions.newest(key) is None
            case Unchanged(key, revision):
                entry = self.versions.newest(key)
                return entry is not None and entry.revision == revision
            case Born(key, revision):
                entry = self.versions.newest(key)
                return entry is not None and entry.created == revision
            case Empty(start, end):
                return next(self.versions.between(start, end, self.revision), None) is None
            case NoneBornAfter(start, end, revision):
                found = self.versions.between(start, end, self.revision)
                return all(entry.created <= revision for _, entry in found)

    def _write(self, puts: Sequence[Put], deletes: Iterable[bytes]) -> None:
        self.revision += 1
        events = [self._put(put) for put in puts]
        for key in deletes:
            if self.versions.newest(key) is not None:
                self.versions.set(key, self.revision, None)
                self._bind(key, None)
                events.append(Event(EventKind.DELETE, key, None, self.revision))
        self._log.append(Changes(self.revision, tuple(events)))
        while len(self._log) > self._log_revisions:
            self.compacted = self._log.popleft().revision
        while self._nonces and next(iter(self._nonces.values())) < self.revision - NONCE_REVISIONS:
            del self._nonces[next(iter(self._nonces))]
        self.trim()
        for waiter in self.waiters:
            waiter.tell(self._log[-1])

    def _put(self, put: Put) -> Event:
        before = self.versions.newest(put.key)
        created = before.created if before is not None else self.revision
        self.versions.set(put.key, self.revision, Entry(put.value, self.revision, created))
        self._bind(put.key, put.lease)
        return Event(EventKind.PUT, put.key, put.value, self.revision)

    def _bind(self, key: bytes, lease: bytes | None) -> None:
        before = self._lease_of.pop(key, None)
        if before is not None and before in self._leases:
            self._leases[before].keys.pop(key, None)
        if lease is not None:
            self._lease_of[key] = lease
            self._leases[lease].keys[key] = None

    def trim(self) -> None:
        oldest = next(iter(self.snapshots)).revision if self.snapshots else self.revision
        self.versions.trim(oldest)

    def changes(self, from_revision: int, prefix: bytes) -> tuple[int, list[Changes]]:
        """The next revision to ask for, and the changes below `prefix` before it."""
        if from_revision == 1 and self.compacted < self._first:
            from_revision = self._first  # From the beginning, which is still kept.
        if from_revision <= self.compacted:
            raise no_longer_kept(from_revision, self.compacted)
        found = []
        end = min(self.revision + 1, from_revision + WATCH_BATCH)
        for revision in range(from_revision, end):
            record = self._log[revision - self.compacted - 1]
            events = tuple(event for event in record.events if event.key.startswith(prefix))
            if events:
                found.append(Changes(revision, events))
        return max(end, from_revision), found

    def grant(self, lease: bytes, ttl_ns: int, now_ns: int) -> None:
        self.expire(now_ns)
        if lease in self._leases:
            raise InvalidInput(f"lease {lease.hex()} exists already")
        self._leases[lease] = _Lease(ttl_ns, now_ns + ttl_ns)
        self._written_ns = now_ns

    def renew(self, lease: bytes, now_ns: int) -> None:
        self.expire(now_ns)
        if lease not in self._leases:
            raise lease_gone(lease)
        found = self._leases[lease]
        found.deadline_ns = now_ns + found.ttl_ns
        self._written_ns = now_ns

    def revoke(self, lease: bytes, now_ns: int) -> None:
        self.expire(now_ns)
        self._end(lease)
        self._written_ns = now_ns

    def _end(self, lease: bytes) -> None:
        found = self._leases.pop(lease, None)
        if found is not None and found.keys:
            self._write((), sorted(found.keys))

    def expire(self, now_ns: int) -> None:
        """Ends what is due; called before everything that writes."""
        if self._bridge_gap(now_ns):
            return
        due = [lease for lease, found in self._leases.items() if found.deadline_ns <= now_ns]
        for lease in due:
            self._end(lease)
        if due:
            self._written_ns = now_ns

    def expire_for_waiter(self, now_ns: int) -> None:
        """As a commit that writes, if one is needed for the leases to run out."""
        shortest_ttl_ns = self._shortest_ttl_ns()
        if shortest_ttl_ns is None:
            return
        self.expire(now_ns)
        if needs_commit(now_ns - self._written_ns, shortest_ttl_ns):
            self._written_ns = now_ns

    def _bridge_gap(self, now_ns: int) -> bool:
        gap_ns = now_ns - self._written_ns
        if not may_be_gap(gap_ns):
            return False
        shortest_ttl_ns = self._shortest_ttl_ns()
        if shortest_ttl_ns is None or not is_gap(gap_ns, shortest_ttl_ns):
            return False
        for found in self._leases.values():
            found.deadline_ns = now_ns + found.ttl_ns
        self._written_ns = now_ns
        return True

    def _shortest_ttl_ns(self) -> int | None:
        return min((found.ttl_ns for found in self._leases.values()), default=None)

    def lease_until(self, lease: bytes, now_ns: int) -> int | None:
        shortest_ttl_ns = self._shortest_ttl_ns()
        found = self._leases.get(lease)
        if found is None or shortest_ttl_ns is None:
            return None
        written_ns = self._written_ns
        return LeaseTime(
            found.deadline_ns, found.ttl_ns, shortest_ttl_ns, written_ns, written_ns
        ).until(now_ns)


class _Waiter:
    """A watch that waits for a change below `prefix`; told from whichever thread commits."""

    def __init__(self, prefix: bytes) -> None:
        self._prefix = prefix
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self.waits = False
        self.following = 0
        """The revision to read on from: while the watch waits, nothing before it concerns it."""

    def tell(self, changes: Changes) -> None:
        if not self.waits or changes.revision < self.following:
            return
        if any(event.key.startswith(self._prefix) for event in changes.events):
            self.waits = False
            self.wake()
        else:
            self.following = changes.revision + 1

    def wake(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._event.set)
        except RuntimeError:
            # The watch's loop ended without closing it: nobody waits any more.
            if not self._loop.is_closed():
                raise

    async def wait(self) -> None:
        await self._event.wait()
        self._event.clear()


_stores: dict[str, _Memory] = {}
_stores_lock = threading.Lock()


async def open_memory_store(
    name: str, env: Env, *, create: bool, log_revisions: int = LOG_REVISIONS
) -> Store:
    """The store `name` of this process. FileExistsError with `create` if it exists,
    FileNotFoundError without if it does not."""
    with _stores_lock:
        if create and name in _stores:
            raise FileExistsError(f"the memory store {name!r} exists already")
        if not create and name not in _stores:
            raise FileNotFoundError(f"there is no memory store {name!r} in this process")
        if create:
            _stores[name] = _Memory(log_revisions, revision_at(env.clock.wall()))
        return MemoryStore(name, _stores[name], env)


class MemorySnapshot:
    def __init__(self, store: MemoryStore, memory: _Memory, revision: int, deadline_ns: int):
        self._store = store
        self._memory = memory
        self._revision = revision
        self._closed = False
        self.deadline_ns = deadline_ns

    @property
    def revision(self) -> int:
        return self._revision

    async def fix(self) -> int:
        return self._revision

    def _check(self) -> None:
        """Called with the lock held: between this and the read nothing may be trimmed."""
        self._store.check_open()
        self._store.drop_old_snapshots()
        if self._closed:
            raise Closed(f"the snapshot of revision {self._revision} is closed")
        if self not in self._memory.snapshots:
            raise Compacted(
                f"the snapshot of revision {self._revision} is older than {SNAPSHOT_AGE_MAX_S:g} s",
                revision=self._revision,
            )

    async def get(self, key: bytes) -> Entry | None:
        check_key(key)
        with self._memory.lock:
            self._check()
            return self._memory.versions.at(key, self._revision)

    async def get_many(self, keys: Sequence[bytes]) -> list[Entry | None]:
        check_keys(keys)
        with self._memory.lock:
            self._check()
            return [self._memory.versions.at(key, self._revision) for key in keys]

    async def range(
        self, start: bytes, end: bytes, *, limit: int | None = None, reverse: bool = False
    ) -> list[tuple[bytes, Entry]]:
        check_range(start, end)
        check_limit(limit)
        with self._memory.lock:
            self._check()
            found = self._memory.versions.between(start, end, self._revision, reverse=reverse)
            if limit is None:
                return list(found)
            return [item for item, _ in zip(found, range(limit), strict=False)]

    async def close(self) -> None:
        self._closed = True
        with self._memory.lock:
            if self in self._memory.snapshots:
                del self._memory.snapshots[self]
                self._memory.trim()


class MemoryStore:
    """One opening of a memory store; see `open_memory_store`."""

    limits = EMBEDDED_LIMITS

    def __init__(self, name: str, memory: _Memory, env: Env):
        self._name = name
        self._memory = memory
        self._env = env
        self._pid = process_id()
        self._closed = False
        self._watches: dict[_Waiter, None] = {}

    def check_open(self) -> None:
        if self._pid != process_id():
            raise Closed(
                f"the memory store {self._name!r} belongs to the process {self._pid}, "
                "which this one was forked from",
                pid=self._pid,
            )
        if self._closed:
            raise Closed(f"the memory store {self._name!r} is closed")

    def drop_old_snapshots(self) -> None:
        now_ns = self._env.clock.monotonic_ns()
        snapshots = self._memory.snapshots
        while snapshots and next(iter(snapshots)).deadline_ns <= now_ns:
            del snapshots[next(iter(snapshots))]

    async def snapshot(self) -> MemorySnapshot:
        self.check_open()
        deadline_ns = self._env.clock.monotonic_ns() + int(SNAPSHOT_AGE_MAX_S * 1e9)
        with self._memory.lock:
            snapshot = MemorySnapshot(self, self._memory, self._memory.revision, deadline_ns)
            self._memory.snapshots[snapshot] = None
        return snapshot

    async def commit(
        self,
        *,
        compares: Iterable[Compare] = (),
        puts: Iterable[Put] = (),
        deletes: Iterable[bytes] = (),
        nonce: bytes | None = None,
    ) -> int:
        self.check_open()
        request = checked_commit(compares, puts, deletes, nonce)
        # Others run between any two commits, as they do where a commit waits for a disk.
        await asyncio.sleep(0)
        self.check_open()
        with self._memory.lock:
            self.drop_old_snapshots()
            return self._memory.commit(request, self._env.clock.boottime_ns())

    def watch(self, prefix: bytes, from_revision: int) -> AsyncIterator[Changes]:
        self.check_open()
        check_bytes(prefix, "a prefix")
        check_revision(from_revision)
        return self._watch(prefix, max(1, from_revision))

    async def _watch(self, prefix: bytes, from_revision: int) -> AsyncIterator[Changes]:
        waiter = _Waiter(prefix)
        self._watches[waiter] = None
        try:
            while True:
                self.check_open()
                with self._memory.lock:
                    self._memory.waiters[waiter] = None
                    following, found = self._memory.changes(from_revision, prefix)
                    waiter.following, waiter.waits = following, following == from_revision
                for changes in found:
                    yield changes
                    self.check_open()
                if following == from_revision:
                    await waiter.wait()
                elif not found:
                    await asyncio.sleep(0)
                from_revision = waiter.following
        finally:
            self._watches.pop(waiter, None)
            with self._memory.lock:
                self._memory.waiters.pop(waiter, None)

    async def grant_lease(self, lease: bytes, ttl_s: float) -> None:
        self.check_open()
        check_lease(lease)
        ttl_ns = ttl_in_ns(ttl_s)
        with self._memory.lock:
            self._memory.grant(lease, ttl_ns, self._env.clock.boottime_ns())

    async def renew_lease(self, lease: bytes) -> None:
        self.check_open()
        check_lease(lease)
        with self._memory.lock:
            self._memory.renew(lease, self._env.clock.boottime_ns())

    async def revoke_lease(self, lease: bytes) -> None:
        self.check_open()
        check_lease(lease)
        with self._memory.lock:
            self._memory.revoke(lease, self._env.clock.boottime_ns())

    @property
    def leases_end_unasked(self) -> bool:
        return False

    async def expire_leases(self) -> None:
        self.check_open()
        with self._memory.lock:
            self._memory.expire_for_waiter(self._env.clock.boottime_ns())

    def lease_until(self, lease: bytes) -> int | None:
        self.check_open()
        check_lease(lease)
        with self._memory.lock:
            return self._memory.lease_until(lease, self._env.clock.boottime_ns())

    async def close(self) -> None:
        self._closed = True
        for waiter in self._watches:
            waiter.wake()

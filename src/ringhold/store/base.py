"""The coordination store: the only arbiter between processes.

A revisioned key-value map with compare-and-commit, leases and watch. What is promised:

- A commit happens entirely or not at all, at one revision; revisions only grow. Commits of one
  opening under way at the same time, of which none writes what another compares or writes, may
  share a revision. Commits are durable when `commit` returns, as far as the opening was asked for,
  and strictly serializable among all processes of a store.
- A snapshot shows exactly one revision.
- A watch delivers every revision that touches its prefix, whole, in order, once.
- A lease that was found gone stays gone; all keys bound to it disappear at one revision,
  before any later commit evaluates its compares.

What is not promised: that a lease expires on time (it may be late, never early), and that a
snapshot is the newest revision a moment later. Safety must therefore rest on the compares of
a commit alone.

Keys and values are bytes. Ranges are half open, [start, end), in byte order.

A commit of an embedded engine has at most OPERATIONS_MAX compares, puts and deletes together and
COMMIT_BYTES_MAX bytes in their keys and values: while it is made durable everybody else waits,
leases included. Of etcd's there are fewer, as far as it was told (`etcd.commits.check_size`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from ringhold.env import Env
from ringhold.types import Entry, Event

T = TypeVar("T")

KEY_BYTES_MAX = 8192
OPERATIONS_MAX = 100_000
COMMIT_BYTES_MAX = 64 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """Up to how many compares, and puts and deletes, a commit of names, entries and the like may
    have, so that it can be planned: it has not too many bytes then either.

    `operations`: compares and changes together, where that is less than the sum of both.
    """

    compares: int
    changes: int
    operations: int | None = None

    def allow(self, compares: int, changes: int) -> bool:
        """Whether so many are not too many."""
        return (
            compares <= self.compares
            and changes <= self.changes
            and (self.operations is None or compares + changes <= self.operations)
        )


EMBEDDED_LIMITS = Limits(OPERATIONS_MAX, OPERATIONS_MAX, OPERATIONS_MAX)


@dataclass(frozen=True, slots=True)
class Absent:
    """`key` does not exist."""

    key: bytes


@dataclass(frozen=True, slots=True)
class Unchanged:
    """`key` exists and was last changed at `revision`."""

    key: bytes
    revision: int


@dataclass(frozen=True, slots=True)
class Born:
    """`key` exists and was created at `revision`, however often it changed since."""

    key: bytes
    revision: int


@dataclass(frozen=True, slots=True)
class Empty:
    """No key exists in [start, end)."""

    start: bytes
    end: bytes


@dataclass(frozen=True, slots=True)
class NoneBornAfter:
    """No key in [start, end) was created after `revision`."""

    start: bytes
    end: bytes
    revision: int


Compare = Absent | Unchanged | Born | Empty | NoneBornAfter
"""Those of ranges cost etcd a look at every key in the range, and its value: give it ranges of few
keys, like those of one lock, or of what was read key by key (`view.View.range`)."""


@dataclass(frozen=True, slots=True)
class Put:
    """Sets `key`; with `lease` the key disappears with that lease, without it for good.

    A put onto an existing key keeps its `created` revision and replaces its lease.
    """

    key: bytes
    value: bytes
    lease: bytes | None = None


@dataclass(frozen=True, slots=True)
class Changes:
    """All events of one revision below a watched prefix; never empty."""

    revision: int
    events: tuple[Event, ...]


def prefix_end(prefix: bytes) -> bytes:
    """The end of the range of all keys that start with `prefix`."""
    stripped = prefix.rstrip(b"\xff")
    if not stripped:
        return b"\xff" * (KEY_BYTES_MAX + 1)
    return stripped[:-1] + bytes([stripped[-1] + 1])


class Snapshot(Protocol):
    """A view of the store at one `revision`, of a moment between its making and its first read.
    Close it: the engine keeps old versions for it.

    Reads raise Compacted when the snapshot has grown older than the engine's bound, and
    ChecksumMismatch naming the key when an entry is not what was written.
    """

    @property
    def revision(self) -> int:
        """RuntimeError before anything was read, in engines that learn it by reading."""

    async def fix(self) -> int:
        """The revision: of now, where nothing was read yet."""

    async def get(self, key: bytes) -> Entry | None: ...

    async def get_many(self, keys: Sequence[bytes]) -> list[Entry | None]:
        """One entry or None for every key, in the order of `keys`."""

    async def range(
        self, start: bytes, end: bytes, *, limit: int | None = None, reverse: bool = False
    ) -> list[tuple[bytes, Entry]]:
        """The entries of [start, end) in key order (descending with `reverse`)."""

    async def close(self) -> None: ...


class Transactional(Protocol):
    """The part of a store that operations on keys need, one view at a time.

    Cancelling `commit`
    takes it back if it was not begun, and waits for its outcome otherwise.
    """

    async def snapshot(self) -> Snapshot:
        """A snapshot at least as new as every commit that returned before the call."""

    async def commit(
        self,
        *,
        compares: Iterable[Compare] = (),
        puts: Iterable[Put] = (),
        deletes: Iterable[bytes] = (),
        nonce: bytes | None = None,
    ) -> int:
        """Applies `puts` and `deletes` at one new revision if all `compares` hold; returns it.

        Without puts and deletes the compares are still evaluated, and the current revision is
        returned. Deleting a key that does not exist is allowed. A commit whose `nonce` (1 to 64
        bytes) was committed before is not applied again: the revision of then is returned.
        Nonces are remembered at least as long as the log of revisions; on etcd, whose history has
        an end set by others, for nearly two minutes.

        Raises Conflict (`index`, `compare`: the first that failed, in the order given),
        SessionExpired (a put names a lease that is gone; compares are judged first),
        InvalidInput (a key put and deleted or put twice, too large, more than the engine's
        limits: it names which), Corrupt (a record it needs is damaged; deleting that key mends it),
        StoreUnavailable (nothing happened), OutcomeUnknown (repeat with the same nonce to learn
        what happened).
        """


class DirectFace(Transactional, Protocol):
    """A store as blocking callers use it: from any thread, by coroutines that never suspend.

    Each of its snapshots is for one thread.
    """

    @property
    def env(self) -> Env:
        """For what runs together with it: its coroutines never suspend either."""


@runtime_checkable
class HasDirectFace(Protocol):
    """A store whose operations on keys may run on the calling thread."""

    @property
    def direct(self) -> DirectFace: ...


@runtime_checkable
class BlindToDeath(Protocol):
    """A store that does not learn of a process's death, so that its leases run on."""

    def end_lease(self, lease: bytes, timeout_s: float) -> None:
        """Revokes the lease by blocking the calling thread, any one: also when no loop runs any
        more and no thread can be started. Closed, StoreUnavailable."""


def run_direct(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that uses a direct face and its `env` alone."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    coroutine.close()
    raise RuntimeError("a coroutine of the direct face suspended")


class Store(Transactional, Protocol):
    """An open store. Every method but `close` raises Closed after `close`.

    All methods are coroutine-safe on the loop that opened the store.
    """

    @property
    def leases_end_unasked(self) -> bool:
        """Whether the store ends overdue leases by itself, about in time.

        If so nobody needs to call `expire_leases`, and who waits for a lease to end learns of it
        by a watch on the keys that go with it.
        """

    @property
    def limits(self) -> Limits: ...

    def watch(self, prefix: bytes, from_revision: int) -> AsyncIterator[Changes]:
        """Yields the changes below `prefix` of all revisions >= `from_revision`, for ever.

        Raises Compacted when those revisions are no longer all kept. Closing the iterator
        (``aclose``) ends the watch.
        """

    async def grant_lease(self, lease: bytes, ttl_s: float) -> None:
        """Creates `lease` (12 bytes, never used before), to be renewed within `ttl_s` seconds.

        The lease belongs to this process: on engines that can see it, its death ends the lease
        at once. InvalidInput when the lease exists.
        """

    async def renew_lease(self, lease: bytes) -> None:
        """Extends the lease by its TTL from now. SessionExpired when it is gone."""

    async def revoke_lease(self, lease: bytes) -> None:
        """Ends the lease and deletes its keys. A lease that is gone is no error."""

    async def expire_leases(self) -> None:
        """Ends the leases that are overdue or whose process is dead; cheap when there are none.

        Called, at least every 50 ms, by whoever waits for somebody else's lease to end: leases
        are judged by time in which the store could be written (`leases`), so in a store that
        nobody writes to it is this call that lets time pass. Does nothing where
        `leases_end_unasked`.
        """

    def lease_until(self, lease: bytes) -> int | None:
        """The moment on `Clock.boottime_ns` before which nobody can end the lease by time.

        None when the lease is gone. At least its stored deadline; later, though nothing renewed
        it, once the store could not be written for so long that the next commit, whoever makes
        it, gives every lease its whole TTL again. May be asked again and again, from any thread:
        it waits for no commit, however stuck. Raises Closed, Corrupt, StoreUnavailable.

        Nothing is said about a lease being revoked, or its process dying.
        """

    async def close(self) -> None:
        """Waits for queued commits and ends the watches. Leases granted here are left to expire."""

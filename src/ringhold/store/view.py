"""One implementation for every operation: reads and writes against a view, committed at its end.

A view is a read set, a write set and an overlay over one snapshot. An operation is written once,
against a view; alone it runs in a view of its own (`transact`), inside a transaction in the
transaction's. Every read becomes a compare of the commit, so a view that commits is serializable
at its commit revision. A view without writes and requirements needs no commit: it read one
revision.

Predicates: a range read is guarded against insertions (none born after the snapshot) and, key
by key, against changes and deletions of what it returned.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

from ringhold.env import Env
from ringhold.errors import Compacted, Conflict
from ringhold.store.base import (
    Absent,
    Compare,
    Empty,
    Limits,
    NoneBornAfter,
    Put,
    Snapshot,
    Transactional,
    Unchanged,
)
from ringhold.store.paging import in_pieces
from ringhold.store.repeat import until_known
from ringhold.types import Entry

T = TypeVar("T")

NOT_COMMITTED = 0
"""The revision of an entry that only this view has written so far."""


class View:
    """Reads at `snapshot`, sees its own writes, and knows what its commit must compare."""

    def __init__(self, snapshot: Snapshot):
        self._snapshot = snapshot
        self._reads: dict[bytes, Entry | None] = {}
        self._ranges: dict[Compare, None] = {}
        self._required: dict[Compare, None] = {}
        self._writes: MutableMapping[bytes, Put | None] = {}

    @property
    def revision(self) -> int:
        return self._snapshot.revision

    @property
    def reads(self) -> Mapping[bytes, Entry | None]:
        """What it has read of the store, None where there was nothing."""
        return self._reads

    async def fix(self) -> int:
        return await self._snapshot.fix()

    @contextmanager
    def savepoint(self) -> Iterator[View]:
        """A view to do one operation in, whose writes and requirements become this view's when
        the block is left, and nobody's when it is left by an exception.

        Its reads and guards stay this view's either way: the exception depended on them. What
        others write to this view meanwhile is no part of it.
        """
        inner = View(self._snapshot)
        inner._reads, inner._ranges = self._reads, self._ranges
        writes: dict[bytes, Put | None] = {}
        inner._writes = ChainMap(writes, self._writes)
        yield inner
        self._writes.update(writes)
        self._required.update(inner._required)

    async def get(self, key: bytes) -> Entry | None:
        return (await self.get_many([key]))[0]

    async def get_many(self, keys: Sequence[bytes]) -> list[Entry | None]:
        unread = [k for k in dict.fromkeys(keys) if k not in self._reads and k not in self._writes]
        if unread:
            entries = await self._snapshot.get_many(unread)
            self._reads.update(zip(unread, entries, strict=True))
        return [self._seen(key) for key in keys]

    def _seen(self, key: bytes) -> Entry | None:
        if key not in self._writes:
            return self._reads[key]
        put = self._writes[key]
        if put is None:
            return None
        before = self._reads.get(key)
        return Entry(put.value, NOT_COMMITTED, before.created if before else NOT_COMMITTED)

    async def range(
        self, start: bytes, end: bytes, *, limit: int | None = None
    ) -> list[tuple[bytes, Entry]]:
        """The entries of [start, end) in key order, at most `limit`, own writes included."""
        if limit == 0:
            return []
        found: dict[bytes, Entry] = {}
        position = start
        while True:
            # Keys deleted in this view may leave a limited read short of its limit: read on.
            batch = await self._snapshot.range(position, end, limit=limit)
            whole = limit is None or len(batch) < limit
            stop = end if whole else batch[-1][0] + b"\0"
            guard = NoneBornAfter(position, stop, self.revision) if batch else Empty(position, end)
            self._ranges[guard] = None
            async for piece in in_pieces(batch):
                self._reads.update(piece)
                found.update(piece)
            for key in list(self._writes):
                if position <= key < stop:
                    seen = self._seen(key)
                    if seen is None:
                        found.pop(key, None)
                    else:
                        found[key] = seen
            position = stop
            if whole or limit is None or len(found) >= limit:
                return sorted(found.items())[:limit]

    async def peek_many(self, keys: Sequence[bytes]) -> list[Entry | None]:
        """As `get_many`, but without a compare: for values whose change does not matter."""
        unread = [k for k in keys if k not in self._reads and k not in self._writes]
        entries = dict(zip(unread, await self._snapshot.get_many(unread), strict=True))
        return [entries[key] if key in entries else self._seen(key) for key in keys]

    def absorb(self, later: View) -> None:
        """Takes over what `later`, a view of a newer snapshot, read, requires and writes.

        Every read is compared at the commit, so that it does not matter at which revision it
        was made; this view must not have touched the keys itself.
        """
        self._reads.update(later._reads)
        self._ranges.update(later._ranges)
        self._required.update(later._required)
        self._writes.update(later._writes)

    def put(self, key: bytes, value: bytes, *, lease: bytes | None = None) -> None:
        self._writes[key] = Put(key, value, lease)

    def delete(self, key: bytes) -> None:
        self._writes[key] = None

    def require(self, compare: Compare) -> None:
        """Adds a compare that no read of this view stands for."""
        self._required[compare] = None

    def fits(self, limits: Limits, compares: int = 0, changes: int = 0) -> bool:
        """Whether one commit takes this view with so many compares and changes more."""
        compares += len(self._required) + len(self._reads) + len(self._ranges)
        return limits.allow(compares, changes + len(self._writes))

    @property
    def has_writes(self) -> bool:
        return bool(self._writes)

    async def compares(self) -> list[Compare]:
        points: list[Compare] = []
        async for piece in in_pieces(list(self._reads.items())):
            points += [
                Absent(key) if entry is None else Unchanged(key, entry.revision)
                for key, entry in piece
            ]
        return [*self._required, *points, *self._ranges]

    async def commit(self, store: Transactional, nonce: bytes | None = None) -> int:
        """The revision at which everything of this view became visible. Conflict: nothing did.

        Ends reading: the snapshot is closed first, since a read transaction that waits for its
        commit would keep the engine's write-ahead log from being reset, and under steady load
        there would always be one.
        """
        if not self._writes and not self._required:
            revision = await self._snapshot.fix()
            await self._snapshot.close()
            return revision
        await self._snapshot.close()
        return await store.commit(
            compares=await self.compares(),
            puts=[put for put in self._writes.values() if put is not None],
            deletes=[key for key, put in self._writes.items() if put is None],
            nonce=nonce,
        )


async def commit_known(
    view: View, store: Transactional, env: Env, nonce: bytes, *, timeout_s: float = 30.0
) -> int:
    """Commits `view`; an answer that got lost is asked for again with the same nonce.

    OutcomeUnknown only when the store did not answer for `timeout_s`.
    """
    return await until_known(lambda: view.commit(store, nonce), env, timeout_s=timeout_s)


async def transact(
    store: Transactional,
    env: Env,
    operation: Callable[[View], Awaitable[T]],
    *,
    timeout_s: float = 30.0,
) -> T:
    """Runs `operation` in views of its own until one commits; returns what it returned.

    `operation` may run several times and must not have effects outside its view. Raises
    Conflict when it lost against others for longer than `timeout_s`.
    """
    deadline_ns = env.clock.monotonic_ns() + int(timeout_s * 1e9)
    pause_s = 0.001
    while True:
        snapshot = await store.snapshot()
        try:
            view = View(snapshot)
            result = await operation(view)
            await commit_known(view, store, env, env.random_bytes(16))
            return result
        except (Conflict, Compacted):
            if env.clock.monotonic_ns() >= deadline_ns:
                raise
        finally:
            await snapshot.close()
        # Jitter keeps two that met once from meeting again.
        await env.sleep(pause_s * (0.5 + env.random_bytes(1)[0] / 256))
        pause_s = min(pause_s * 2, 0.1)

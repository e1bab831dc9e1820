"""Small state of the user's in the store: one implementation, run in a view.

Guarantees: every operation is atomic and linearizable; several of them in one view are
serializable. Keys are UTF-8 text with surrogateescape, so any bytes round-trip; values are
bytes of up to `VALUE_BYTES_MAX`. A watch delivers every change of its prefix, in order, once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from ringhold.env import Env
from ringhold.errors import Conflict, InvalidInput
from ringhold.store.base import (
    Absent,
    Changes,
    Compare,
    HasDirectFace,
    Put,
    Store,
    Transactional,
    Unchanged,
    prefix_end,
)
from ringhold.store.keyspace import KEY_VALUE
from ringhold.store.repeat import commit_sure
from ringhold.store.view import View, transact
from ringhold.types import VALUE_BYTES_MAX, Entry, EventKind, decode_name, encode_name

T = TypeVar("T")
Value = bytes | bytearray | memoryview
Bound = str | bytes


@dataclass(frozen=True, slots=True)
class KeyEvent:
    """One change of one key; `value` is None for a deletion."""

    kind: EventKind
    key: str
    value: bytes | None
    revision: int


@dataclass(frozen=True, slots=True)
class KeyRange:
    """A checked range of keys of the store; empty when `start` >= `end`."""

    start: bytes
    end: bytes
    limit: int | None


def store_key(key: str | bytes) -> bytes:
    return KEY_VALUE + encode_name(key, "key")


def user_key(key: bytes) -> str:
    return decode_name(key[len(KEY_VALUE) :])


def check_value(value: Value) -> bytes:
    """`value` as bytes of its own. TypeError for text and anything else without bytes."""
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise TypeError(f"value must be bytes, not {type(value).__name__}")
    data = bytes(value)
    if len(data) > VALUE_BYTES_MAX:
        raise InvalidInput(f"value of {len(data)} bytes exceeds {VALUE_BYTES_MAX} bytes")
    return data


def check_revision(revision: int | None, what: str) -> int | None:
    if revision is None:
        return None
    if isinstance(revision, bool) or not isinstance(revision, int):
        raise TypeError(f"{what} must be an int, not {type(revision).__name__}")
    if revision < 0:
        raise InvalidInput(f"{what} must not be negative, not {revision}")
    return revision


def _bound(value: Bound, what: str) -> bytes:
    # Unlike a key, the end of a range may be empty.
    return encode_name(value, what) if value or not isinstance(value, (str, bytes)) else b""


def key_range(prefix: Bound, start: Bound | None, end: Bound | None, limit: int | None) -> KeyRange:
    """The keys that begin with `prefix` and lie in [start, end)."""
    low = KEY_VALUE + _bound(prefix, "prefix")
    high = prefix_end(low)
    if start is not None:
        low = max(low, KEY_VALUE + _bound(start, "start"))
    if end is not None:
        high = min(high, KEY_VALUE + _bound(end, "end"))
    if limit is not None:
        if isinstance(limit, bool) or not isinstance(limit, int):
            raise TypeError(f"limit must be an int, not {type(limit).__name__}")
        if limit < 0:
            raise InvalidInput(f"limit must not be negative, not {limit}")
    return KeyRange(low, high, limit)


async def read_entry(view: View, key: str | bytes) -> Entry | None:
    return await view.get(store_key(key))


async def read_range(view: View, wanted: KeyRange) -> list[tuple[str, Entry]]:
    if wanted.start >= wanted.end or wanted.limit == 0:
        return []
    found = await view.range(wanted.start, wanted.end, limit=wanted.limit)
    return [(user_key(key), entry) for key, entry in found]


def write(view: View, key: str | bytes, value: Value, if_revision: int | None = None) -> None:
    """Buffers a put; `if_revision` is compared with the store at the commit (0: absent)."""
    raw = store_key(key)
    data = check_value(value)
    compare = _revision_compare(raw, check_revision(if_revision, "if_revision"))
    if compare is not None:
        view.require(compare)
    view.put(raw, data)


def _revision_compare(raw: bytes, if_revision: int | None) -> Compare | None:
    if if_revision is None:
        return None
    return Absent(raw) if if_revision == 0 else Unchanged(raw, if_revision)


def remove(view: View, key: str | bytes) -> None:
    """Buffers a deletion; a key that does not exist is no error."""
    view.delete(store_key(key))


class PointOperations:
    """Operations on single keys: each call is a commit, or a read at one revision."""

    def __init__(self, store: Transactional, env: Env, check: Callable[[], None]):
        self._store = store
        self._env = env
        self._check = check

    async def _read(self, operation: Callable[[View], Awaitable[T]]) -> T:
        self._check()
        snapshot = await self._store.snapshot()
        try:
            return await operation(View(snapshot))
        finally:
            await snapshot.close()

    async def entry(self, key: str | bytes) -> Entry | None:
        """The value of `key` with the revisions of its last change and its creation, or None."""
        raw = store_key(key)
        return await self._read(lambda view: view.get(raw))

    async def get(self, key: str | bytes, default: T | None = None) -> bytes | T | None:
        """The value of `key`, or `default`."""
        entry = await self.entry(key)
        return default if entry is None else entry.value

    async def put(self, key: str | bytes, value: Value, *, if_revision: int | None = None) -> int:
        """Sets `key`; the revision of this change.

        `if_revision`: only if the key was last changed at that revision, 0 for absent;
        Conflict otherwise, and nothing is changed.
        """
        self._check()
        raw = store_key(key)
        data = check_value(value)
        compare = _revision_compare(raw, check_revision(if_revision, "if_revision"))
        try:
            # Nothing was read: no snapshot, no view.
            return await commit_sure(
                self._store,
                self._env,
                compares=() if compare is None else (compare,),
                puts=(Put(raw, data),),
            )
        except Conflict as conflict:
            wanted = "absent" if if_revision == 0 else f"at revision {if_revision}"
            raise Conflict(
                f"key {key!r} is not {wanted}", index=conflict.index, compare=conflict.compare
            ) from None

    async def delete(self, key: str | bytes) -> None:
        """Removes `key`; one that does not exist is no error."""
        self._check()
        await commit_sure(self._store, self._env, deletes=(store_key(key),))

    async def pop(self, key: str | bytes) -> bytes | None:
        """Removes `key` and returns the value it had, None if it did not exist."""
        self._check()
        raw = store_key(key)

        async def operation(view: View) -> bytes | None:
            entry = await view.get(raw)
            if entry is None:
                return None
            view.delete(raw)
            return entry.value

        return await transact(self._store, self._env, operation)


class KeyValue(PointOperations):
    """``cluster.kv`` of the async face."""

    direct: PointOperations | None
    """The same on the calling thread, by `base.DirectFace`; None where the engine has none."""

    def __init__(self, store: Store, env: Env, check: Callable[[], None]):
        super().__init__(store, env, check)
        self._watched = store
        self.direct = None
        if isinstance(store, HasDirectFace):
            self.direct = PointOperations(store.direct, store.direct.env, check)

    async def range(
        self,
        prefix: Bound = "",
        *,
        start: Bound | None = None,
        end: Bound | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[tuple[str, Entry]]:
        """Yields (key, Entry) in the order of the keys' bytes, all at one revision.

        Keys that begin with `prefix` and lie in [start, end), at most `limit` of them.
        """
        wanted = key_range(prefix, start, end, limit)
        for item in await self._read(lambda view: read_range(view, wanted)):
            yield item

    async def revision(self) -> int:
        """The store's current revision, to be given to `watch` as `since`."""

        return await self._read(lambda view: view.fix())

    async def watch(self, prefix: Bound, *, since: int | None = None) -> AsyncIterator[KeyEvent]:
        """Yields every change of a key that begins with `prefix`, after revision `since`.

        Without `since`: those after the first step of the iteration. Raises Compacted when
        changes after `since` are no longer all kept, and Closed when the cluster is closed.
        """
        wanted = KEY_VALUE + _bound(prefix, "prefix")
        after = check_revision(since, "since")
        self._check()
        if after is None:
            after = await self.revision()
        async for changes in self._watched.watch(wanted, after + 1):
            for event in _key_events(changes):
                yield event


def _key_events(changes: Changes) -> list[KeyEvent]:
    return [
        KeyEvent(event.kind, user_key(event.key), event.value, event.revision)
        for event in changes.events
    ]

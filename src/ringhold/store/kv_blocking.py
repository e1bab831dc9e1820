"""``cluster.kv`` of the blocking face: the async one with subscripts.

Operations on single keys run on the calling thread where the engine lets them (a hop to the loop
and back takes longer than a read), ranges and watches on the loop, behind a bridge.
"""

from __future__ import annotations

import abc
import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from ringhold.bridge import Bridge
from ringhold.home import Home, Openable
from ringhold.store.base import run_direct
from ringhold.store.kv import Bound, KeyEvent, KeyValue, PointOperations, Value
from ringhold.types import Entry

T = TypeVar("T")


class KeyEvents:
    """The changes of a prefix, one after the other: an iterator that waits for the next one."""

    def __init__(self, bridge: Bridge, events: AsyncIterator[KeyEvent]):
        self._bridge = bridge
        self._events = events
        self._next: asyncio.Task[KeyEvent | None] | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> KeyEvent:
        async def following() -> KeyEvent | None:
            # An interrupt ends the waiting, not the watch: who asks again gets the same event.
            if self._next is None:
                self._next = asyncio.ensure_future(self._following())
            event = await asyncio.shield(self._next)
            self._next = None
            return event

        event = self._bridge.run(following())
        if event is None:
            raise StopIteration
        return event

    async def _following(self) -> KeyEvent | None:
        return await anext(self._events, None)

    def close(self) -> None:
        """Ends the watch."""

        async def end() -> None:
            if self._next is not None:
                self._next.cancel()
                await asyncio.gather(self._next, return_exceptions=True)
            await self._events.aclose()  # type: ignore[attr-defined]

        self._bridge.run(end())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class ReadableKeys(Protocol):
    """What can be read of keys on the async face."""

    async def entry(self, key: str | bytes, /) -> Entry | None: ...

    def range(
        self,
        prefix: Bound = "",
        *,
        start: Bound | None = None,
        end: Bound | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[tuple[str, Entry]]: ...


class Subscripts(abc.ABC):
    """Keys that are read and written by subscript, over what reads them on the async face."""

    @property
    @abc.abstractmethod
    def _keys(self) -> ReadableKeys: ...

    @property
    @abc.abstractmethod
    def _bridge(self) -> Bridge: ...

    def __getitem__(self, key: str | bytes) -> bytes:
        entry = self.entry(key)
        if entry is None:
            raise KeyError(key)
        return entry.value

    def __setitem__(self, key: str | bytes, value: Value) -> None:
        self.put(key, value)

    def __contains__(self, key: str | bytes) -> bool:
        return self.entry(key) is not None

    # Without this, Python would iterate by asking for kv[0], kv[1], …
    __iter__ = None

    @abc.abstractmethod
    def put(self, key: str | bytes, value: Value) -> object:
        """Sets `key`."""

    def entry(self, key: str | bytes) -> Entry | None:
        """The value of `key` with the revisions of its last change and its creation, or None.

        In a transaction, what it wrote itself has revision 0 so far.
        """
        return self._bridge.run(self._keys.entry(key))

    def get(self, key: str | bytes, default: T | None = None) -> bytes | T | None:
        """The value of `key`, or `default`."""
        entry = self.entry(key)
        return default if entry is None else entry.value

    def range(
        self,
        prefix: Bound = "",
        *,
        start: Bound | None = None,
        end: Bound | None = None,
        limit: int | None = None,
    ) -> Iterator[tuple[str, Entry]]:
        """Yields (key, Entry) in the order of the keys' bytes, all at one revision.

        Keys that begin with `prefix` and lie in [start, end), at most `limit` of them. In a
        transaction own writes are included, and the range is guarded against phantoms.
        """
        found = _collected(self._keys.range(prefix, start=start, end=end, limit=limit))
        return iter(self._bridge.run(found))


class KeyValueOwner(Openable, Protocol):
    """A cluster of the async face, as far as its keys need it."""

    kv: KeyValue


class BlockingKeyValue(Subscripts):
    """Small state in the store: ``kv[key]``, `get`, `put`, `delete`, `entry`, `range`, `watch`."""

    def __init__(self, home: Home[KeyValueOwner]):
        self._home = home

    @property
    def _kv(self) -> KeyValue:
        return self._home.cluster().kv

    @property
    def _keys(self) -> KeyValue:
        return self._kv

    @property
    def _bridge(self) -> Bridge:
        return self._home.bridge()

    def _run(self, operation: Callable[[PointOperations], Coroutine[Any, Any, T]]) -> T:
        kv = self._kv
        if kv.direct is None:
            return self._bridge.run(operation(kv))
        self._bridge.check_callable()
        return run_direct(operation(kv.direct))

    def __delitem__(self, key: str | bytes) -> None:
        if self._run(lambda kv: kv.pop(key)) is None:
            raise KeyError(key)

    def entry(self, key: str | bytes) -> Entry | None:
        return self._run(lambda kv: kv.entry(key))

    def put(self, key: str | bytes, value: Value, *, if_revision: int | None = None) -> int:
        """Sets `key` and returns the revision of this change.

        `if_revision`: only if the key was last changed at that revision, 0 for absent;
        Conflict otherwise, and nothing is changed.
        """
        return self._run(lambda kv: kv.put(key, value, if_revision=if_revision))

    def delete(self, key: str | bytes) -> None:
        """Removes `key`; one that does not exist is no error."""
        self._run(lambda kv: kv.delete(key))

    def watch(self, prefix: Bound, *, since: int | None = None) -> KeyEvents:
        """Every change of a key that begins with `prefix`, after revision `since`.

        Without `since`: every change after this call. Raises Compacted when changes after
        `since` are no longer all kept, and Closed when the cluster is closed.
        """
        after = self._bridge.run(self._kv.revision()) if since is None else since
        return KeyEvents(self._bridge, self._kv.watch(prefix, since=after))


async def _collected(items: AsyncIterator[T]) -> list[T]:
    return [item async for item in items]

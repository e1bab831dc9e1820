"""Snapshots: reads of etcd at one revision.

The first read of a snapshot is of the newest revision that etcd's members agree on, and fixes it;
all later ones name that revision, and whichever member has it may answer alone. So to read once
takes one round trip.

Many keys are read by as many requests. A transaction that only reads would be one, but where it is
cancelled or late etcd 3.5 ends itself before 3.5.5 (its issue 14110).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from ringhold.errors import Closed, Compacted
from ringhold.store.etcd import wire
from ringhold.store.etcd.calls import RANGE, Connection, Refused
from ringhold.store.etcd.names import Names
from ringhold.store.etcd.wire import RangeRequest, SortOrder
from ringhold.store.requests import check_key, check_keys, check_limit, check_range
from ringhold.types import Entry

PAGE_FIRST = 32
PAGE_MAX = 500
PAGE_BYTES = 2 << 20
"""About so many bytes an answer should bring: values have up to 1 MiB, and one that takes long is
given up."""


class _Page:
    """How many entries to ask for, by what the last answer brought."""

    def __init__(self) -> None:
        self.entries = PAGE_FIRST

    def brought(self, kvs: Sequence[wire.KeyValue]) -> None:
        size = sum(len(kv.value) for kv in kvs)
        if size > PAGE_BYTES:
            self.entries = max(1, self.entries * PAGE_BYTES // size)
        elif size < PAGE_BYTES // 4:
            self.entries = min(2 * self.entries, PAGE_MAX)


class Reader:
    """Reads for the snapshots of one store."""

    def __init__(
        self, connection: Connection, names: Names, timeout_s: float, check: Callable[[], None]
    ):
        self.names = names
        self.check = check
        self.each = connection.each
        self._connection = connection
        self._timeout_s = timeout_s

    async def read(self, request: RangeRequest) -> wire.RangeResponse:
        """StoreUnavailable; Refused for what a snapshot has to explain."""
        return await self._connection.until(RANGE, request, self._timeout_s)

    def refusal(self, refused: Refused, revision: int) -> Exception:
        if refused.says("has been compacted"):
            return Compacted(
                f"etcd does not keep the revision {revision} of the snapshot any more",
                revision=revision,
            )
        return self._connection.refusal(refused)


class EtcdSnapshot:
    """etcd keeps what it shows until it is compacted beyond it.

    For one loop, or, of the direct face, for one thread: the face itself is for all of them.
    """

    def __init__(self, reader: Reader):
        self._reader = reader
        self._names = reader.names
        self._revision = 0
        """0 until a read has fixed it; `_fixing` while one does."""
        self._fixing: asyncio.Event | None = None
        self._closed = False

    @property
    def revision(self) -> int:
        if not self._revision:
            raise RuntimeError("the revision of a snapshot on etcd is known after its first read")
        return self._revision

    async def fix(self) -> int:
        if not self._revision:
            self._check()
            await self._range(self._names.format_key)
        return self._revision

    def _check(self) -> None:
        self._reader.check()
        if self._closed:
            raise Closed(f"the snapshot of revision {self._revision} is closed")

    async def get(self, key: bytes) -> Entry | None:
        check_key(key)
        self._check()
        return self._entry(await self._range(self._names.key(key)))

    async def get_many(self, keys: Sequence[bytes]) -> list[Entry | None]:
        check_keys(keys)
        self._check()
        # The first read alone, if it has to fix the revision.
        first = 0 if self._revision else 1
        found = [await self.get(key) for key in keys[:first]]
        return found + await self._reader.each(self.get, keys[first:])

    async def range(
        self, start: bytes, end: bytes, *, limit: int | None = None, reverse: bool = False
    ) -> list[tuple[bytes, Entry]]:
        check_range(start, end)
        check_limit(limit)
        self._check()
        found: list[tuple[bytes, Entry]] = []
        page = _Page()
        while start < end and (limit is None or len(found) < limit):
            left = page.entries if limit is None else min(page.entries, limit - len(found))
            first, last = self._names.key(start), self._names.key(end)
            order = SortOrder.DESCEND if reverse else SortOrder.NONE
            answer = await self._range(first, last, left, order)
            page.brought(answer.kvs)
            found += [self._names.entry(kv) for kv in answer.kvs]
            if not answer.more:
                break
            if reverse:
                end = found[-1][0]
            else:
                start = found[-1][0] + b"\0"
        return found

    def _entry(self, answer: wire.RangeResponse) -> Entry | None:
        return self._names.entry(answer.kvs[0])[1] if answer.kvs else None

    async def _range(
        self, key: bytes, end: bytes = b"", limit: int = 0, order: SortOrder = SortOrder.NONE
    ) -> wire.RangeResponse:
        def request(*, alone: bool) -> RangeRequest:
            return RangeRequest(key, end, limit, self._revision, order, alone)

        try:
            while not self._revision:
                if self._fixing is None:
                    return await self._first(request(alone=False))
                await self._fixing.wait()
            try:
                return await self._reader.read(request(alone=True))
            except Refused as refused:
                if not refused.says("future revision"):
                    raise
                # This member is behind the others: they have to be asked.
                return await self._reader.read(request(alone=False))
        except Refused as refused:
            raise self._reader.refusal(refused, self._revision) from None

    async def _first(self, request: RangeRequest) -> wire.RangeResponse:
        """Fixes the revision, of which `request` says none."""
        fixing = self._fixing = asyncio.Event()
        try:
            answer = await self._reader.read(request)
            self._revision = answer.header.revision
            return answer
        finally:
            self._fixing = None
            fixing.set()

    async def close(self) -> None:
        self._closed = True

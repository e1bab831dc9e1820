"""Reading a file: the manifest by parts, and every byte verified before it is handed out.

A reader sees the one version of the file that was there when it was made, however often the
file is replaced afterwards, for as long as `gc` leaves that version's data (its grace). After
that a read raises OSError (ESTALE); it never mixes two versions.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from ringhold.errors import ChecksumMismatch, Corrupt, NodeDown, Unavailable
from ringhold.files import records
from ringhold.files.mend import Mender
from ringhold.files.paths import file_error, join_path
from ringhold.files.place import ChunkRef, Placement, chunk_ref
from ringhold.files.records import Extent, Inode, RunRecord
from ringhold.files.stored import decoded, missing
from ringhold.files.tasks import cancel_and_wait
from ringhold.files.tree import Status
from ringhold.store import keyspace
from ringhold.types import Entry

Peek = Callable[[Sequence[bytes]], Awaitable[list[Entry | None]]]
"""Reads keys of the store, as they are now or as a transaction sees them."""

ZEROS = bytes(1 << 20)


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes [start, end) of the file, all in `extent`, or in a hole."""

    start: int
    end: int
    extent: Extent | None


def spans_of(extents: Sequence[Extent], start: int, end: int) -> list[Span]:
    """Cuts [start, end) along sorted `extents`; what none covers becomes a hole."""
    spans: list[Span] = []
    for extent in extents:
        first = max(start, extent.file_offset)
        last = min(end, extent.file_offset + extent.length)
        if first >= last:
            continue
        if start < first:
            spans.append(Span(start, first, None))
        spans.append(Span(first, last, extent))
        start = last
    if start < end:
        spans.append(Span(start, end, None))
    return spans


class FileReader:
    """One version of one file. Several tasks may read at once."""

    def __init__(
        self,
        status: Status,
        peek: Peek,
        placement: Placement,
        mender: Mender,
        room: asyncio.Semaphore,
    ):
        self.status = status
        self.size = status.inode.size
        self._peek = peek
        self._placement = placement
        self._mender = mender
        self._room = room
        self._extents: dict[int, tuple[Extent, ...]] = {}
        self._runs: dict[bytes, RunRecord] = {}

    @property
    def path(self) -> str:
        return join_path(self.status.parts)

    async def read(self, start: int, end: int) -> list[memoryview]:
        """The bytes [start, end) of the file in pieces; short only at the end of the file.

        ChecksumMismatch or Corrupt when every copy of a chunk is bad, NodeDown when none can be
        reached, OSError (ESTALE) when this version's data is gone. They name the path.
        """
        end = min(end, self.size)
        if start >= end:
            return []
        inode = self.status.inode
        if inode.data is None:
            return [memoryview(inode.inline or b"")[start:end]]
        spans = await self._spans(inode, inode.data, start, end)
        if len(spans) == 1:
            return await self._piece(spans[0])
        fetches = [asyncio.ensure_future(self._piece(span)) for span in spans]
        try:
            pieces = await asyncio.gather(*fetches)
        finally:
            await cancel_and_wait(fetches)
        return [view for piece in pieces for view in piece]

    async def refs(self) -> list[tuple[int, ChunkRef]]:
        """Every chunk of the file with the file offset of its first byte used."""
        inode = self.status.inode
        if inode.data is None:
            return []
        spans = await self._spans(inode, inode.data, 0, self.size)
        return [(span.start, self._ref(span.extent)) for span in spans if span.extent]

    async def _spans(self, inode: Inode, data: bytes, start: int, end: int) -> list[Span]:
        if inode.block_bytes <= 0:
            raise Corrupt(f"{self.path}: its inode names data but no block size", what=self.path)
        blocks = range(start // inode.block_bytes, -(-end // inode.block_bytes))
        unknown = [block for block in blocks if block not in self._extents]
        if unknown:
            await self._load(data, unknown)
        extents = [extent for block in blocks for extent in self._extents[block]]
        return spans_of(extents, start, end)

    async def _load(self, data: bytes, blocks: Sequence[int]) -> None:
        keys = [keyspace.extents_key(data, block) for block in blocks]
        loaded: dict[int, tuple[Extent, ...]] = {}
        for block, key, entry in zip(blocks, keys, await self._peek(keys), strict=True):
            if entry is None:
                # A hole is a gap in a record; a lost record must not pass for one.
                await self._check_not_stale()
                raise missing(key)
            loaded[block] = decoded(records.decode_extents, key, entry.value).extents
        runs = dict.fromkeys(extent.run for extents in loaded.values() for extent in extents)
        run_ids = [run for run in runs if run not in self._runs]
        run_keys = [keyspace.run_key(run) for run in run_ids]
        for run, key, entry in zip(run_ids, run_keys, await self._peek(run_keys), strict=True):
            if entry is None:
                await self._check_not_stale()
                what = f"run {run.hex()}"
                raise Corrupt(f"{self.path}: its {what} has no record: run fsck", what=what)
            self._runs[run] = decoded(records.decode_run, key, entry.value)
        self._extents.update(loaded)

    async def _check_not_stale(self) -> None:
        """ESTALE when the file does not have this reader's data any more."""
        ino_key = keyspace.inode_key(self.status.ino)
        entry = (await self._peek([ino_key]))[0]
        inode = None if entry is None else decoded(records.decode_inode, ino_key, entry.value)
        if inode is None or inode.data != self.status.inode.data:
            raise file_error(errno.ESTALE, self.status.parts)

    def _ref(self, extent: Extent) -> ChunkRef:
        return chunk_ref(extent.run, extent.number, self._runs[extent.run])

    async def _piece(self, span: Span) -> list[memoryview]:
        length = span.end - span.start
        if span.extent is None:
            zeros = memoryview(ZEROS)
            return [zeros[: min(len(ZEROS), length - at)] for at in range(0, length, len(ZEROS))]
        ref = self._ref(span.extent)
        offset = span.extent.offset + span.start - span.extent.file_offset
        try:
            async with self._room:
                fetched = await self._placement.get_chunk(ref, offset, length)
        except NodeDown as error:
            raise NodeDown(f"{self.path}: {error}", node=error.node) from error
        except Unavailable as error:
            raise Unavailable(f"{self.path}: {error}") from error
        except Corrupt as error:
            await self._check_not_stale()
            kind = ChecksumMismatch if isinstance(error, ChecksumMismatch) else Corrupt
            raise kind(f"{self.path}: {error}", what=f"{self.path}: {ref.chunk}") from error
        if any(fault.bad for fault in fetched.faults):
            self._mender.mend(ref, fetched, self.path)
        return [fetched.data]

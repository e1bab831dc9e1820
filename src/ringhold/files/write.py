"""Writing a file: chunks first, one commit last.

A stream is cut into chunks, and 64 of them make a run. Up to four chunks of a stream are under
way at once. Nothing is visible before the commit, and all of it after. A stream that is
discarded, cancelled or fails leaves nothing but chunks that no record names; those known to be
unnamed are deleted right away, the rest is `gc`'s.

What is not promised: that a commit which was cancelled while it was under way did not happen.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from ringhold.core import digest as digest_of
from ringhold.env import Buffer
from ringhold.errors import Closed, OutcomeUnknown, RingholdError, SessionExpired
from ringhold.files.contents import (
    Contents,
    SessionState,
    StagedChunk,
    StagedRun,
    inline_contents,
)
from ringhold.files.place import Placement
from ringhold.files.records import INLINE_BYTES_MAX, ChunkRecord
from ringhold.files.tasks import cancel_and_wait
from ringhold.nodes.base import CHUNKS_PER_RUN, partition_of

CHUNKS_UNDER_WAY_MAX = 4


def contiguous(data: Buffer) -> Buffer:
    """`data` itself, or a copy in order of what a memoryview with strides shows."""
    view = memoryview(data)
    return data if view.c_contiguous else view.tobytes()


class SessionSource(Protocol):
    """`ringhold.locks.session.Session`."""

    async def ensure(self) -> SessionState: ...


class ChunkStream:
    """Cuts what is written into chunks on their nodes and in the end tells the `Contents`.

    `room` bounds the chunks under way of all streams together. Not for two tasks at once.
    """

    def __init__(
        self,
        placement: Placement,
        session: SessionSource,
        chunk_bytes: int,
        room: asyncio.Semaphore,
    ):
        self._placement = placement
        self._session = session
        self._chunk_bytes = chunk_bytes
        self._room = room
        self._size = 0
        self._buffer = bytearray()
        self._filled = 0
        self._puts: list[asyncio.Task[None]] = []
        self.runs: list[StagedRun] = []

    @property
    def size(self) -> int:
        return self._size

    async def write(self, data: Buffer) -> None:
        """Takes all of `data`; returns when there is room for more, not when it is durable.

        Raises what an earlier chunk failed with.
        """
        data = contiguous(data)
        if not memoryview(data).nbytes:
            return
        view = memoryview(data).cast("B")
        self._size += len(view)
        while len(view):
            if not self._filled and isinstance(data, bytes) and len(view) >= self._chunk_bytes:
                # Immutable and whole chunks: sent from where they lie, without a copy.
                await self._send(view[: self._chunk_bytes])
                view = view[self._chunk_bytes :]
                continue
            if not self._filled:
                self._buffer = bytearray(min(self._chunk_bytes, max(len(view), 64 << 10)))
            count = self._take(view)
            view = view[count:]
            if self._filled == self._chunk_bytes:
                await self._flush()

    def _take(self, view: memoryview) -> int:
        end = min(self._filled + len(view), self._chunk_bytes)
        if end > len(self._buffer):
            grown = min(self._chunk_bytes, max(end, 2 * len(self._buffer)))
            self._buffer.extend(bytes(grown - len(self._buffer)))
        count = end - self._filled
        self._buffer[self._filled : end] = view[:count]
        self._filled = end
        return count

    async def _flush(self) -> None:
        data = memoryview(self._buffer)[: self._filled]
        self._buffer, self._filled = bytearray(), 0
        await self._send(data)

    async def _send(self, data: memoryview) -> None:
        while len(waiting := [put for put in self._puts if not put.done()]) >= CHUNKS_UNDER_WAY_MAX:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        self._raise_failed()
        run = await self._run_with_room()
        number = len(run.chunks)
        run.chunks.append(StagedChunk(ChunkRecord(len(data), digest_of(data)), []))
        self._puts.append(asyncio.ensure_future(self._put(run, number, data)))

    async def _put(self, run: StagedRun, number: int, data: memoryview) -> None:
        async with self._room:
            await self._placement.put_chunk(run, number, data)

    def _raise_failed(self) -> None:
        unfinished: list[asyncio.Task[None]] = []
        for put in self._puts:
            if put.done():
                put.result()
            else:
                unfinished.append(put)
        self._puts = unfinished

    async def _run_with_room(self) -> StagedRun:
        if self.runs and len(self.runs[-1].chunks) < CHUNKS_PER_RUN:
            return self.runs[-1]
        session = await self._session.ensure()
        if self.runs and self.runs[0].session.id != session.id:
            lost = self.runs[0].session
            raise SessionExpired(
                "the session that wrote the first chunks of this file is gone: write it again",
                session=lost.id,
            )
        run_id = session.next_id()
        partition = partition_of(run_id)
        table, revision = await self._placement.table(partition)
        run = StagedRun(run_id, session, partition, self._placement.replicas, table, revision)
        self.runs.append(run)
        return run

    async def finish(self) -> Contents:
        """Waits until all chunks are durable and returns what a commit makes visible."""
        if self._size <= INLINE_BYTES_MAX:
            return inline_contents([memoryview(self._buffer)[: self._filled]])
        if self._filled:
            await self._flush()
        while waiting := [put for put in self._puts if not put.done()]:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_EXCEPTION)
            self._raise_failed()
        self._raise_failed()
        for run in self.runs:
            await self._placement.complete(run)
        data = self.runs[0].session.next_id()
        block_bytes = CHUNKS_PER_RUN * self._chunk_bytes
        return Contents(self._size, data=data, block_bytes=block_bytes, runs=tuple(self.runs))

    async def stop(self) -> None:
        """Ends the puts under way; what they placed so far stays on the nodes."""
        puts, self._puts = self._puts, []
        self._buffer, self._filled = bytearray(), 0
        await cancel_and_wait(puts)


class FileWriter:
    """A file being written; visible at `close`, whole, or never.

    `commit` makes contents visible, `abandon` gets rid of chunks that no commit named.
    """

    def __init__(
        self,
        stream: ChunkStream,
        commit: Callable[[Contents], Awaitable[None]],
        abandon: Callable[[Sequence[StagedRun]], None],
        path: str,
    ):
        self.path = path
        self._stream = stream
        self._commit = commit
        self._abandon = abandon
        self._state = _State.OPEN

    @property
    def size(self) -> int:
        return self._stream.size

    @property
    def open(self) -> bool:
        return self._state is _State.OPEN

    def check_open(self) -> None:
        """Closed once it was ended, by its user or with the cluster."""
        if not self.open:
            raise Closed(f"{self.path} is not open for writing: {self._state.value}")

    async def write(self, data: Buffer) -> None:
        """Appends `data`. After an error or a cancellation nothing can be made of the file."""
        self.check_open()
        try:
            await self._stream.write(data)
        except BaseException:
            # Part of `data` may be missing: closing it now would publish a file with a gap.
            await self._end(_State.FAILED)
            raise

    async def close(self) -> None:
        """Makes the file visible. A second call does nothing; Closed after a discard."""
        if self._state is _State.PUBLISHED:
            return
        self.check_open()
        self._state = _State.CLOSING
        try:
            contents = await self._stream.finish()
        except BaseException:
            await self._end(_State.FAILED)
            raise
        try:
            await self._commit(contents)
        except (RingholdError, OSError) as error:
            known = not isinstance(error, OutcomeUnknown)
            await self._end(_State.FAILED, abandon=known)
            raise
        except BaseException:
            await self._end(_State.FAILED, abandon=False)
            raise
        self._state = _State.PUBLISHED

    async def discard(self) -> None:
        """Ends the file without making it visible. Does nothing once it is closed."""
        if self._state is _State.OPEN:
            await self._end(_State.DISCARDED)

    async def _end(self, state: _State, *, abandon: bool = True) -> None:
        self._state = state
        await self._stream.stop()
        if abandon:
            self._abandon(self._stream.runs)


class _State(enum.Enum):
    OPEN = "it is open"
    CLOSING = "it is being closed"
    PUBLISHED = "it was closed"
    DISCARDED = "it was discarded"
    FAILED = "it failed before"

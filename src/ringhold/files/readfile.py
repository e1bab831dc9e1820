"""Files open for reading, as Python's `io` knows them, and their counterpart for coroutines.

An open file is one version of the file, whatever happens to its path meanwhile. Read in order,
it fetches ahead; read here and there, it fetches what is asked for and a little more.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Coroutine
from typing import Any, Protocol, Self, TypeVar

from ringhold.files.read import FileReader
from ringhold.files.tasks import cancel_and_wait

T = TypeVar("T")

SEGMENTS_AHEAD = 3
RANDOM_BYTES_MIN = 256 << 10


class Runner(Protocol):
    """How an open file reaches the cluster's loop: `ringhold.bridge.Bridge`."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop: ...

    @property
    def foreign(self) -> bool: ...

    def check_process(self) -> None: ...

    def run(self, coroutine: Coroutine[Any, Any, T], /) -> T: ...

    async def hop(self, coroutine: Coroutine[Any, Any, T], /) -> T: ...


class ReadAhead:
    """Reads a file by segments; one who reads on in order finds the next ones under way.

    On the cluster's loop, for one user at a time.
    """

    def __init__(self, reader: FileReader, segment_bytes: int):
        self.reader = reader
        self._segment_bytes = segment_bytes
        self._next = 0
        self._ahead: dict[int, asyncio.Task[list[memoryview]]] = {}

    async def fetch(self, start: int, length: int) -> list[memoryview]:
        """At least one byte from `start` on, and what more came with it; [] at the end."""
        if start >= self.reader.size:
            return []
        segment = start // self._segment_bytes
        if start != self._next and segment not in self._ahead:
            await self.stop()
            end = start + max(length, RANDOM_BYTES_MIN)
            self._next = min(end, self.reader.size)
            return await self.reader.read(start, end)
        self._look_ahead(segment)
        task = self._ahead[segment]
        try:
            pieces = await asyncio.shield(task)
        finally:
            if task.done():
                self._ahead.pop(segment, None)
        self._next = min((segment + 1) * self._segment_bytes, self.reader.size)
        return _from(pieces, start - segment * self._segment_bytes)

    def _look_ahead(self, segment: int) -> None:
        last = (self.reader.size - 1) // self._segment_bytes
        # The first segment alone says nothing of what comes next.
        ahead = SEGMENTS_AHEAD if segment or self._ahead else 0
        for number in range(segment, min(last, segment + ahead) + 1):
            if number not in self._ahead:
                start = number * self._segment_bytes
                reading = self.reader.read(start, start + self._segment_bytes)
                self._ahead[number] = asyncio.ensure_future(reading)

    @property
    def busy(self) -> bool:
        return bool(self._ahead)

    async def stop(self) -> None:
        tasks, self._ahead = list(self._ahead.values()), {}
        await cancel_and_wait(tasks)


def _from(pieces: list[memoryview], skip: int) -> list[memoryview]:
    kept: list[memoryview] = []
    for piece in pieces:
        if skip < len(piece):
            kept.append(piece[skip:])
        skip = max(0, skip - len(piece))
    return kept


class ReadFile(io.RawIOBase):
    """A file open for reading: one version, whatever happens to the path meanwhile."""

    mode = "rb"

    def __init__(self, fs: Any, reader: FileReader, runner: Runner, segment_bytes: int):
        super().__init__()
        self.fs = fs
        self.path = reader.path
        self.size = reader.size
        self.blocksize = segment_bytes
        self.details: dict[str, Any] = fs._details(reader.status)
        self._runner = runner
        self._ahead = ReadAhead(reader, segment_bytes)
        self._position = 0
        self._buffer = memoryview(b"")
        self._rest: list[memoryview] = []
        self._buffer_start = 0

    @property
    def name(self) -> str:
        return self.path

    def info(self) -> dict[str, Any]:
        return self.details

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        self._check_open()
        return self._position

    @property
    def loc(self) -> int:
        return self._position

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file.")

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._check_open()
        origins = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}
        if whence not in origins:
            raise ValueError(f"invalid whence ({whence}, should be 0, 1 or 2)")
        position = origins[whence] + offset
        if position < 0:
            raise ValueError(f"seek to {position}, before the start of {self.path}")
        self._position = position
        return position

    def _view(self, wanted: int) -> memoryview:
        """What is at hand from the position on; fetches at least one byte if there is one."""
        skip = self._position - self._buffer_start
        while skip >= len(self._buffer) and self._rest and skip >= 0:
            self._buffer_start += len(self._buffer)
            skip -= len(self._buffer)
            self._buffer = self._rest.pop(0)
        if not 0 <= skip < len(self._buffer):
            pieces = self._runner.run(self._ahead.fetch(self._position, wanted))
            self._buffer = pieces[0] if pieces else memoryview(b"")
            self._rest = pieces[1:]
            self._buffer_start = self._position
            skip = 0
        return self._buffer[skip:]

    def readinto(self, buffer: Any, /) -> int:
        self._check_open()
        target = memoryview(buffer).cast("B")
        done = 0
        while done < len(target):
            view = self._view(len(target) - done)[: len(target) - done]
            if not len(view):
                break
            target[done : done + len(view)] = view
            done += len(view)
            self._position += len(view)
        return done

    def read(self, size: int | None = -1, /) -> bytes:
        """`size` bytes, fewer only at the end of the file; all of the rest without `size`."""
        self._check_open()
        left = max(0, self.size - self._position)
        wanted = left if size is None or size < 0 else min(size, left)
        if wanted > self.blocksize:
            return self._read_at_once(wanted)
        parts: list[memoryview] = []
        while wanted:
            view = self._view(wanted)[:wanted]
            parts.append(view)
            wanted -= len(view)
            self._position += len(view)
        return bytes(parts[0]) if len(parts) == 1 else b"".join(parts)

    def _read_at_once(self, wanted: int) -> bytes:
        reading = self._ahead.reader.read(self._position, self._position + wanted)
        pieces = self._runner.run(reading)
        self._position += wanted
        return b"".join(pieces)

    def readall(self) -> bytes:
        return self.read()

    def write(self, data: Any, /) -> int:
        raise io.UnsupportedOperation(f"{self.path} is open for reading and cannot be written")

    def read1(self, size: int = -1, /) -> bytes:
        return self.read(self.blocksize if size < 0 else size)

    def readinto1(self, buffer: Any, /) -> int:
        return self.readinto(buffer)

    def readline(self, size: int | None = -1, /) -> bytes:
        self._check_open()
        limit = self.size if size is None or size < 0 else size
        parts: list[bytes] = []
        while limit > 0:
            view = self._view(limit)[:limit]
            if not len(view):
                break
            # Looked at in short pieces: lines are short, and what is at hand may be megabytes.
            piece = bytes(view[: 8 << 10])
            end = piece.find(b"\n") + 1
            piece = piece[:end] if end else piece
            parts.append(piece)
            self._position += len(piece)
            limit -= len(piece)
            if end:
                break
        return b"".join(parts)

    def close(self) -> None:
        if self.closed:
            return
        super().close()
        self._buffer, self._rest = memoryview(b""), []
        if self._ahead.busy and not self._runner.foreign and self._runner.loop.is_running():
            self._runner.run(self._ahead.stop())

    def __del__(self) -> None:
        # Nothing to finish for a reader; segments under way end by themselves.
        super().close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.fs, self.path, self._position)


def _reopen(fs: Any, path: str, position: int) -> Any:
    file = fs.open(path, "rb")
    file.seek(position)
    return file


class AsyncReadFile:
    """A file open for reading, on any loop; not for two tasks at once."""

    def __init__(self, reader: FileReader, runner: Runner, segment_bytes: int):
        self.path = reader.path
        self.size = reader.size
        self._runner = runner
        self._ahead = ReadAhead(reader, segment_bytes)
        self._position = 0
        self._closed = False

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origins = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}
        position = origins[whence] + offset
        if position < 0:
            raise ValueError(f"seek to {position}, before the start of {self.path}")
        self._position = position
        return position

    async def read(self, size: int = -1) -> bytes:
        """`size` bytes, fewer only at the end of the file; all of the rest without `size`."""
        if self._closed:
            raise ValueError("I/O operation on closed file.")
        left = max(0, self.size - self._position)
        wanted = left if size < 0 else min(size, left)
        parts: list[memoryview] = []
        while wanted:
            for piece in await self._runner.hop(self._ahead.fetch(self._position, wanted)):
                part = piece[:wanted]
                parts.append(part)
                wanted -= len(part)
                self._position += len(part)
        return b"".join(parts)

    async def close(self) -> None:
        self._closed = True
        await self._runner.hop(self._ahead.stop())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

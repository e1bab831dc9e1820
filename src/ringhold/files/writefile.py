"""Files open for writing, as Python's `io` knows them, and their counterpart for coroutines.

A file is published by `close`, whole. Leaving its ``with`` block by an exception discards it,
and so does the garbage collector, with a ResourceWarning: what nobody closed, nobody finished.
The layers around it, text and compression, keep that promise, and a ``with`` block of a library
that merely calls `close` (see `leaving`) counts like the file's own.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import io
import logging
import warnings
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self

from ringhold.env import Buffer
from ringhold.errors import Closed
from ringhold.files.leaving import blocks_being_left, left_by_exception
from ringhold.files.readfile import Runner
from ringhold.files.write import FileWriter, contiguous

logger = logging.getLogger("ringhold")

PENDING_BYTES_MAX = 256 << 10


def _log_discard(path: str) -> None:
    logger.warning("%s is discarded: an exception left the block that closed it", path)


class _Publishing(io.RawIOBase):
    """A file that the end of its ``with`` block publishes, or an exception that leaves it
    discards."""

    @abc.abstractmethod
    def discard(self) -> None:
        """Ends the file without publishing it."""

    def _mark_closed(self) -> None:
        # `close` calls `flush`, which raises once the cluster is closed, and is done all the same.
        with contextlib.suppress(Closed):
            super().close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()


class WriteFile(_Publishing):
    """A file being written; see the module for when it becomes visible."""

    def __init__(self, fs: Any, writer: FileWriter, runner: Runner, mode: str):
        super().__init__()
        self.fs = fs
        self.path = writer.path
        self.mode = mode
        self._writer = writer
        self._runner = runner
        self._pending = bytearray()
        self._opened_below = blocks_being_left()

    @property
    def name(self) -> str:
        return self.path

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._writer.size + len(self._pending)

    @property
    def loc(self) -> int:
        return self.tell()

    def write(self, data: Buffer, /) -> int:  # type: ignore[override]
        """Takes all of `data`; returns its length in bytes."""
        self.check_open()
        self._runner.check_process()
        data = contiguous(data)
        length = memoryview(data).nbytes
        # A trip to the loop costs more than a small copy.
        if length < PENDING_BYTES_MAX:
            self._pending += data
            if len(self._pending) < PENDING_BYTES_MAX:
                return length
            data, self._pending = self._pending, bytearray()
        self._runner.run(self._write(data))
        return length

    async def _write(self, data: Buffer) -> None:
        if self._pending:
            pending, self._pending = self._pending, bytearray()
            await self._writer.write(pending)
        await self._writer.write(data)

    def check_open(self) -> None:
        """ValueError after `close` or `discard`; Closed once the cluster was closed."""
        if self.closed:
            raise ValueError("I/O operation on closed file.")
        self._writer.check_open()

    def flush(self, force: bool = False) -> None:
        """Does nothing, with `force` neither: a file becomes durable and visible by `close`."""
        self.check_open()

    def read(self, size: int | None = -1, /) -> bytes:
        raise self._not_readable()

    def readinto(self, buffer: Any, /) -> int:
        raise self._not_readable()

    def _not_readable(self) -> io.UnsupportedOperation:
        return io.UnsupportedOperation(f"{self.path} is open for writing and cannot be read")

    def close(self) -> None:
        """Publishes the file, or discards it when fsspec, contextlib or pandas calls it because
        an exception leaves their ``with`` block. Called by name, also in an ``except`` clause
        or an `__exit__`, it publishes."""
        if not self.closed:
            if left_by_exception(self._opened_below):
                _log_discard(self.path)
                self._end(self._writer.discard())
            else:
                self._end(self._publish())

    async def _publish(self) -> None:
        if self._pending:
            pending, self._pending = self._pending, bytearray()
            await self._writer.write(pending)
        await self._writer.close()

    def discard(self) -> None:
        """Ends the file without publishing it."""
        if not self.closed:
            self._end(self._writer.discard())

    def commit(self) -> None:
        """As `close`; fsspec's name for it."""
        self.close()

    def _end(self, ending: Coroutine[Any, Any, None]) -> None:
        self._mark_closed()
        self._opened_below = ()
        self._runner.run(ending)

    def __del__(self) -> None:
        if not self.closed:
            self._mark_closed()
            _collected(self, self._writer, self._runner)

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError(f"{self.path} is open for writing and cannot be pickled")


def _collected(file: object, writer: FileWriter, runner: Runner) -> None:
    """Discards what was never closed. Runs on any thread: it may not wait for the loop."""
    if not writer.open or runner.foreign:
        return
    if runner.loop.is_running():
        runner.loop.call_soon_threadsafe(_start_discard, writer)
    warnings.warn(
        f"{writer.path} was opened for writing and never closed: nothing of it was kept",
        ResourceWarning,
        stacklevel=3,
        source=file,
    )


_discards: dict[asyncio.Task[None], None] = {}


def _start_discard(writer: FileWriter) -> None:
    task = asyncio.ensure_future(writer.discard())
    _discards[task] = None
    task.add_done_callback(lambda task: _discards.pop(task, None))


class TextFile(io.TextIOWrapper):
    """Text over an open file; an exception discards what is being written."""

    def __init__(self, buffer: Any, **options: Any):
        super().__init__(buffer, **options)
        self._binary = buffer

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None and self._binary.writable():
            self._binary.discard()
        else:
            self.close()

    def __del__(self) -> None:
        # TextIOWrapper closes its buffer when it is collected, which would publish it.
        if not self._binary.closed and self._binary.writable():
            self._binary.__del__()


class CompressedFile(_Publishing):
    """What compresses into an open file, and that file: ended together."""

    def __init__(self, compressor: Any, file: WriteFile):
        super().__init__()
        self._compressor = compressor
        self._file = file
        self.path = file.path
        self.mode = file.mode

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer, /) -> int:  # type: ignore[override]
        self._file.check_open()
        data = contiguous(data)
        self._compressor.write(data)
        return memoryview(data).nbytes

    def flush(self, force: bool = False) -> None:
        """Does nothing, as for the file underneath."""
        self._file.flush()

    def read(self, size: int | None = -1, /) -> bytes:
        return self._file.read(size)

    def readinto(self, buffer: Any, /) -> int:
        return self._file.readinto(buffer)

    def close(self) -> None:
        if not self.closed:
            self._mark_closed()
            try:
                self._compressor.close()
            except BaseException:
                self._file.discard()
                raise
            self._file.close()

    def discard(self) -> None:
        if not self.closed:
            self._mark_closed()
            self._file.discard()

    def __del__(self) -> None:
        if not self.closed:
            self._mark_closed()
            self._file.__del__()


class AsyncWriteFile:
    """A file being written, on any loop; not for two tasks at once."""

    def __init__(self, writer: FileWriter, runner: Runner):
        self.path = writer.path
        self._writer = writer
        self._runner = runner
        self._opened_below = blocks_being_left()

    def tell(self) -> int:
        return self._writer.size

    async def write(self, data: Buffer) -> int:
        await self._runner.hop(self._writer.write(data))
        return memoryview(data).nbytes

    async def close(self) -> None:
        """As `WriteFile.close`."""
        if left_by_exception(self._opened_below):
            _log_discard(self.path)
            await self.discard()
        else:
            await self._runner.hop(self._writer.close())

    async def discard(self) -> None:
        """Ends the file without publishing it."""
        await self._runner.hop(self._writer.discard())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await (self.close() if kind is None else self.discard())

    def __del__(self) -> None:
        _collected(self, self._writer, self._runner)

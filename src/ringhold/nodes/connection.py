"""One connection that carries frames both ways, for the daemon and its clients alike.

Guaranteed: a frame is sent whole or the connection ends. Memory is bounded: what cannot be sent
waits for the peer (and for no longer than `STALL_S` without progress), what cannot be held is not
read. A damaged frame ends this connection and touches no other.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol, cast

from ringhold.env import Buffer, finish
from ringhold.errors import Corrupt
from ringhold.nodes.protocol import Frame, FrameReader, Head

STALL_S = 5.0
_SLICE_BYTES = 1 << 20
_SMALL_BYTES = 64 << 10


class Budget:
    """Bytes that may be held at once, given out first come, first served."""

    def __init__(self, total: int):
        self._free = total
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def request(self, count: int) -> asyncio.Future[None]:
        """Done once `count` bytes are the caller's. Cancel it, or `give` them back."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((count, future))
        self._serve()
        return future

    async def take(self, count: int) -> None:
        future = self.request(count)
        try:
            await future
        except asyncio.CancelledError:
            self.withdraw(count, future)
            raise

    def withdraw(self, count: int, future: asyncio.Future[None]) -> None:
        """Takes back a request, whether it was served or not."""
        if future.done() and not future.cancelled():
            self.give(count)
        else:
            future.cancel()
            self._serve()

    def give(self, count: int) -> None:
        self._free += count
        self._serve()

    def _serve(self) -> None:
        while self._waiting:
            count, future = self._waiting[0]
            if not future.done():
                if count > self._free:
                    return
                self._free -= count
                future.set_result(None)
            self._waiting.popleft()


class Owner(Protocol):
    """Who a connection tells what happens."""

    def admit(self, head: Head) -> bool:
        """Whether the frame may be received now; if not, `proceed` is called later."""

    def frame_received(self, frame: Frame) -> None: ...

    def frame_damaged(self, error: Corrupt) -> None:
        """The stream makes no sense any more; nothing further is read."""

    def connection_ended(self, error: Exception | None) -> None: ...


class Connection(asyncio.BufferedProtocol):
    """See the module. `owner` is set before the connection is made."""

    def __init__(self) -> None:
        self.owner: Owner | None = None
        self.transport: asyncio.Transport | None = None
        self.bytes_received = 0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reader = FrameReader()
        self._stopped = False
        self._sending = asyncio.Lock()
        self._writable = asyncio.Event()
        self._writable.set()

    # What the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have the methods of asyncio's, but not its base class.
        self.transport = cast("asyncio.Transport", transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._reader.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        self.bytes_received += nbytes
        self._reader.received(nbytes)
        self.proceed()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._stopped = True
        self._writable.set()
        if not self.ended.done():
            self.ended.set_result(None)
        if self.owner is not None:
            self.owner.connection_ended(exc)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # What the owner calls

    @property
    def is_open(self) -> bool:
        return self.transport is not None and not self.ended.done() and not self._closing

    @property
    def _closing(self) -> bool:
        return self.transport is None or self.transport.is_closing()

    def proceed(self) -> None:
        """Goes on with what was received; reading pauses while the owner does not admit."""
        owner, transport = self.owner, self.transport
        if owner is None or transport is None:
            return
        try:
            while not self._stopped:
                step = self._reader.advance()
                if step is None:
                    transport.resume_reading()
                    return
                if isinstance(step, Frame):
                    owner.frame_received(step)
                elif owner.admit(step):
                    self._reader.accept()
                else:
                    transport.pause_reading()
                    return
        except Corrupt as error:
            self.stop_reading()
            owner.frame_damaged(error)

    def stop_reading(self) -> None:
        self._stopped = True
        if self.transport is not None and not self._closing:
            self.transport.pause_reading()

    async def send(self, head: bytes, body: Buffer = b"") -> None:
        """Sends one frame: `head` as of `encode_frame`, then `body`, which must not change until
        this returns. ConnectionError when the connection ends before that.

        Cancelled before its turn, nothing is sent; later, the frame is completed first.
        """
        view = memoryview(body)
        small = len(head) + len(view) <= _SMALL_BYTES
        if small and self._writable.is_set() and not self._sending.locked():
            self._write(head + view if len(view) else head)
            return
        async with self._sending:
            await self._wait_writable()
            await finish(asyncio.ensure_future(self._send_slices(head, view)))

    async def _send_slices(self, head: bytes, body: memoryview) -> None:
        self._write(head)
        for start in range(0, len(body), _SLICE_BYTES):
            self._write(body[start : start + _SLICE_BYTES])
            await self._wait_writable()

    def _write(self, data: Buffer) -> None:
        if self.transport is None or self._closing:
            raise ConnectionResetError("the connection was closed")
        self.transport.write(data)

    async def _wait_writable(self) -> None:
        try:
            async with asyncio.timeout(STALL_S):
                await self._writable.wait()
        except TimeoutError:
            self.abort()
            raise ConnectionResetError(f"the peer took nothing for {STALL_S} s") from None
        if self.ended.done():
            raise ConnectionResetError("the connection ended")

    def close(self) -> None:
        """Ends the connection after what was written is sent."""
        if self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

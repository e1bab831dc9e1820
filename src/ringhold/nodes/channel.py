"""The requests under way on one connection of a client.

A peer that is dead or stopped takes bytes, into the kernel's buffers, and sends none. While
answers are awaited and nothing at all arrives for `SILENCE_S`, the owner is told, once for every
such time: it finds out whether the peer lives. What is merely slow, a put whose fsync takes
seconds, is not for this module to judge.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

from ringhold.env import Buffer
from ringhold.errors import Corrupt, NodeDown
from ringhold.nodes.base import Identity
from ringhold.nodes.connection import Connection
from ringhold.nodes.protocol import (
    ErrorAnswer,
    Frame,
    Head,
    Operation,
    Status,
    decode_error,
    decode_meta,
    encode_frame,
)

SILENCE_S = 0.5


class Channel:
    """See the module. `on_silence` is called with the channel; it must not block."""

    def __init__(
        self, node: str, address: str, connection: Connection, on_silence: Callable[[Channel], None]
    ):
        self.connection = connection
        self.identity: Identity | None = None
        self.fell_silent = False
        self._node = node
        self._address = address
        self._on_silence = on_silence
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Frame]] = {}
        self._end: NodeDown | None = None
        self._watch: asyncio.TimerHandle | None = None

    def down(self, reason: str) -> NodeDown:
        return NodeDown(f"node {self._node} at {self._address}: {reason}", node=self._node)

    # What the connection tells

    def admit(self, head: Head) -> bool:
        return True

    def frame_received(self, frame: Frame) -> None:
        if not frame.head.request:
            error = decode_error(decode_meta(frame.meta, ErrorAnswer), self._node)
            self._fail(self.down(f"refused this connection: {error}"))
            return
        future = self._waiting.pop(frame.head.request, None)
        # An answer that nobody waits for any more is of a request that was cancelled.
        if future is not None and not future.done():
            future.set_result(frame)

    def frame_damaged(self, error: Corrupt) -> None:
        down = self.down(f"sent something that is no frame: {error}")
        down.__cause__ = error
        self._fail(down)

    def connection_ended(self, error: Exception | None) -> None:
        down = self.down("closed the connection" if error is None else f"connection lost: {error}")
        down.__cause__ = error
        self._fail(down)

    def _fail(self, error: NodeDown) -> None:
        self._end = self._end or error
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(self._ended(self._end))
        self.connection.abort()

    def _ended(self, error: NodeDown) -> NodeDown:
        """An error of its own for each of those who waited."""
        own = NodeDown(str(error), node=self._node)
        own.__cause__ = error.__cause__
        return own

    # Silence

    def _watch_silence(self) -> None:
        loop, heard = asyncio.get_running_loop(), self.connection.bytes_received
        self._watch = loop.call_later(SILENCE_S, self._heard_since, heard)

    def _heard_since(self, heard: int) -> None:
        self._watch = None
        if not self._waiting:
            return
        silent = self.connection.bytes_received == heard
        self._watch_silence()
        if silent:
            self._on_silence(self)

    def fail_silent(self, reason: str) -> NodeDown:
        """Ends the connection, whose peer does not answer anything."""
        self.fell_silent = True
        error = self.down(reason)
        self._fail(error)
        return error

    # What the node asks for

    @property
    def is_open(self) -> bool:
        return self._end is None and self.connection.is_open

    async def call(
        self, operation: Operation, meta: bytes, body: Buffer = b"", *, timeout_s: float
    ) -> Frame:
        """The answer. NodeDown, or the error that the daemon answered."""
        if self._end is not None:
            raise self._ended(self._end)
        number = next(self._numbers)
        future: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        if self._watch is None:
            self._watch_silence()
        size = memoryview(body).nbytes
        heard = self.connection.bytes_received
        try:
            async with asyncio.timeout(timeout_s):
                head = encode_frame(operation, Status.REQUEST, number, meta, size)
                await self._send(head, body)
                frame = await future
        except TimeoutError:
            if self.connection.bytes_received != heard:
                raise self.down(f"no answer within {timeout_s:.1f} s") from None
            # Nothing at all came: it is not this request that is slow, the peer is gone.
            raise self.fail_silent(f"is silent for {timeout_s:.1f} s") from None
        finally:
            self._waiting.pop(number, None)
            if future.done() and not future.cancelled():
                future.exception()
        if frame.head.status is Status.ERROR:
            raise decode_error(decode_meta(frame.meta, ErrorAnswer), self._node)
        if frame.head.operation is not operation or frame.head.status is not Status.ANSWER:
            raise self.down(f"answered {frame.head.operation.name} to {operation.name}")
        return frame

    async def _send(self, head: bytes, body: Buffer) -> None:
        try:
            await self.connection.send(head, body)
        except ConnectionError as error:
            raise self.down(str(self._end or error)) from error

    async def close(self, reason: str) -> None:
        self._fail(self.down(reason))
        await self.connection.ended

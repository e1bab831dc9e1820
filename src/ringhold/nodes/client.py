"""A storage node reached through its daemon.

Guaranteed: every method ends, in an answer or in an error, within its time limit and a few
seconds; a peer that is dead, stopped, or not the node it should be raises NodeDown. What NodeDown
leaves open is whether the request was carried out, which no request minds: all may be repeated.
A cancelled request does not disturb the others on the connection.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence

from ringhold.env import Buffer, Env
from ringhold.errors import Closed, Corrupt, InvalidInput, NodeDown
from ringhold.nodes import chunk_file
from ringhold.nodes.base import (
    CHUNK_BYTES_MAX,
    PARTITIONS,
    ChunkId,
    ChunkPart,
    ChunkState,
    Identity,
)
from ringhold.nodes.connection import Connection
from ringhold.nodes.protocol import (
    CHUNKS_PER_REQUEST_MAX,
    ChunksRequest,
    ErrorAnswer,
    Frame,
    GetAnswer,
    GetRequest,
    Head,
    Hello,
    ListAnswer,
    ListRequest,
    Operation,
    PutRequest,
    Status,
    decode_error,
    decode_meta,
    encode_frame,
    encode_meta,
    pack_chunks,
    unpack_chunks,
)

CONNECT_S = 3.0
REQUEST_S = 10.0
BYTES_PER_S_MIN = 5_000_000
VERIFY_CHUNKS = 4
BACK_OFF_S = (0.2, 1.0)
_STATES = (ChunkState.GOOD, ChunkState.MISSING, ChunkState.DAMAGED)


class _Channel:
    """The requests under way on one connection."""

    def __init__(self, node: str, address: str, connection: Connection):
        self.connection = connection
        self.identity: Identity | None = None
        self._node = node
        self._address = address
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Frame]] = {}
        self._end: NodeDown | None = None

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

    # What the node asks for

    @property
    def is_open(self) -> bool:
        return self._end is None and self.connection.is_open

    async def call(
        self, operation: Operation, meta: bytes, body: Buffer = b"", *, timeout_s: float = REQUEST_S
    ) -> Frame:
        """The answer. NodeDown, or the error that the daemon answered."""
        if self._end is not None:
            raise self._ended(self._end)
        number = next(self._numbers)
        future: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
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
            silent = self.down(f"is silent for {timeout_s:.1f} s")
            self._fail(silent)
            raise silent from None
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


class RemoteNode:
    """The node served at `address` ("host:port"); see `ringhold.nodes.base.Node`.

    It connects when first used, and again after a failure, but not within a short time of it:
    until then every call raises NodeDown at once.
    """

    def __init__(
        self,
        address: str,
        name: str,
        env: Env,
        *,
        expected: Identity | None = None,
        timeout_s: float = REQUEST_S,
    ):
        host, colon, port = address.rpartition(":")
        if not host or not colon or not port.isdecimal() or not 0 < int(port) < 65536:
            raise InvalidInput(f"address {address!r} of node {name} is not host:port")
        self.address = address
        self._host, self._port = host.strip("[]"), int(port)
        self._name = name
        self._env = env
        self._expected = expected
        self._timeout_s = timeout_s
        self._channel: _Channel | None = None
        self._connecting = asyncio.Lock()
        self._closed = False
        self._last_error: NodeDown | None = None
        self._back_off_s = 0.0
        self._retry_ns = 0

    @property
    def name(self) -> str:
        return self._name

    @property
    def is_down(self) -> bool:
        """Whether the last attempt to reach the node failed."""
        return self._last_error is not None or (
            self._channel is not None and not self._channel.is_open
        )

    # Connecting

    async def _connected(self) -> _Channel:
        if self._closed:
            raise Closed(f"node {self.name} at {self.address} was closed")
        if self._channel is not None and self._channel.is_open:
            return self._channel
        async with self._connecting:
            if self._channel is not None and self._channel.is_open:
                return self._channel
            if self._last_error is not None and self._env.clock.monotonic_ns() < self._retry_ns:
                raise NodeDown(str(self._last_error), node=self.name) from self._last_error
            try:
                self._channel = await self._connect()
            except NodeDown as error:
                self._note_failure(error)
                raise
            self._last_error, self._back_off_s = None, 0.0
            if self._closed:
                await self._channel.close("was closed")
                raise Closed(f"node {self.name} at {self.address} was closed")
            return self._channel

    def _note_failure(self, error: NodeDown) -> None:
        first, longest = BACK_OFF_S
        self._last_error = error
        self._back_off_s = min(longest, max(first, 2 * self._back_off_s))
        self._retry_ns = self._env.clock.monotonic_ns() + int(self._back_off_s * 1e9)

    async def _connect(self) -> _Channel:
        connection = Connection()
        channel = _Channel(self.name, self.address, connection)
        connection.owner = channel
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_S):
                await loop.create_connection(lambda: connection, self._host, self._port)
            hello = encode_meta(Hello(self._expected))
            answer = await channel.call(Operation.HELLO, hello, timeout_s=CONNECT_S)
            channel.identity = decode_meta(answer.meta, Hello).identity
        except BaseException as error:
            connection.abort()
            if isinstance(error, NodeDown):
                raise
            if isinstance(error, (OSError, Corrupt)):
                raise channel.down(f"cannot be reached: {error or 'no answer'}") from error
            raise
        return channel

    async def _serving(self) -> _Channel:
        """A connection to the node that is expected."""
        channel = await self._connected()
        if self._expected is not None and channel.identity != self._expected:
            error = channel.down(f"is {channel.identity}, not {self._expected}")
            self._note_failure(error)
            await channel.close("is another node")
            raise error
        return channel

    def _timeout_for(self, byte_count: int) -> float:
        return self._timeout_s + byte_count / BYTES_PER_S_MIN

    # Requests

    async def identity(self) -> Identity | None:
        channel = await self._connected()
        answer = await channel.call(Operation.IDENTITY, b"", timeout_s=self._timeout_s)
        return decode_meta(answer.meta, Hello).identity

    async def adopt(self, identity: Identity) -> None:
        if self._expected is not None and identity != self._expected:
            raise InvalidInput(f"node {self.name} was opened as {self._expected}, not {identity}")
        channel = await self._connected()
        meta = encode_meta(Hello(identity))
        answer = await channel.call(Operation.ADOPT, meta, timeout_s=self._timeout_s)
        channel.identity = decode_meta(answer.meta, Hello).identity

    async def put(self, chunk: ChunkId, data: Buffer, digest: bytes) -> None:
        view = chunk_file.check_put_arguments(chunk, data, digest)
        meta = encode_meta(PutRequest(chunk.run, chunk.number, digest))
        channel = await self._serving()
        timeout_s = self._timeout_for(len(view))
        await channel.call(Operation.PUT, meta, view, timeout_s=timeout_s)

    async def get(self, chunk: ChunkId, offset: int = 0, length: int | None = None) -> ChunkPart:
        chunk_file.check_chunk_id(chunk)
        chunk_file.covering_blocks(0, offset, length)
        meta = encode_meta(GetRequest(chunk.run, chunk.number, offset, length))
        channel = await self._serving()
        timeout_s = self._timeout_for(CHUNK_BYTES_MAX if length is None else length)
        frame = await channel.call(Operation.GET, meta, timeout_s=timeout_s)
        answer = decode_meta(frame.meta, GetAnswer)
        return ChunkPart(answer.header, answer.offset, frame.body)

    async def has(self, chunks: Sequence[ChunkId]) -> list[bool]:
        answers = await self._about(Operation.HAS, chunks, CHUNKS_PER_REQUEST_MAX, 0)
        return [bool(byte) for byte in answers]

    async def verify(self, chunks: Sequence[ChunkId]) -> list[ChunkState]:
        answers = await self._about(Operation.VERIFY, chunks, VERIFY_CHUNKS, CHUNK_BYTES_MAX)
        return [_STATES[byte] for byte in answers]

    async def delete(self, chunks: Sequence[ChunkId]) -> None:
        await self._about(Operation.DELETE, chunks, CHUNKS_PER_REQUEST_MAX, 4096)

    async def _about(
        self, operation: Operation, chunks: Sequence[ChunkId], batch: int, chunk_bytes: int
    ) -> bytes:
        """A byte for every chunk, except of DELETE, which answers nothing."""
        for chunk in chunks:
            chunk_file.check_chunk_id(chunk)
        answers = []
        for start in range(0, len(chunks), batch):
            part = chunks[start : start + batch]
            channel = await self._serving()
            meta = encode_meta(ChunksRequest(pack_chunks(part)))
            timeout_s = self._timeout_for(len(part) * chunk_bytes)
            body = bytes((await channel.call(operation, meta, timeout_s=timeout_s)).body)
            expected = 0 if operation is Operation.DELETE else len(part)
            if len(body) != expected or any(byte >= len(_STATES) for byte in body):
                raise channel.down(f"answered {operation.name} with {len(body)} bytes")
            answers.append(body)
        return b"".join(answers)

    async def list_chunks(self, partition: int | None = None) -> list[ChunkId]:
        if partition is not None and not 0 <= partition < PARTITIONS:
            raise InvalidInput(f"partition {partition} is not in 0 … {PARTITIONS - 1}")
        found: list[ChunkId] = []
        start: int | None = 0
        while start is not None:
            channel = await self._serving()
            meta = encode_meta(ListRequest(partition, start))
            frame = await channel.call(Operation.LIST, meta, timeout_s=self._timeout_s)
            found += unpack_chunks(frame.body)
            following = decode_meta(frame.meta, ListAnswer).next_start
            if following is not None and following <= start:
                raise channel.down("lists its chunks in circles")
            start = following
        return sorted(found)

    async def close(self) -> None:
        """Ends the connection; requests under way raise NodeDown, later ones Closed."""
        self._closed = True
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close("was closed")

"""A storage node reached through its daemon.

Guaranteed: every method ends, in an answer or in an error, within its time limit and a few
seconds; a peer that is dead, stopped, or not the node it should be raises NodeDown. What NodeDown
leaves open is whether the request was carried out, which no request minds: all may be repeated.
A cancelled request does not disturb the others on the connection.

Who is down, and who is slow. A daemon answers a handshake at once, whatever it has to do besides
and however slow its disk is. So, while answers are awaited and nothing arrives on the connection
for half a second or more, the client greets the daemon on a second connection. Answered, it is
alive, and the requests go on to their own time limits, longer for those that wait for an fsync.
Not answered within another second, the daemon is down, and all requests under way raise NodeDown.
After that, calls raise NodeDown at once for a while, which doubles with every further failure up
to a second, and up to `BACK_OFF_SILENT_S` for a peer that is silent; one answered request ends
this. A peer known to be silent is given only `CONNECT_AGAIN_S` to answer the next handshake, so
that whoever happens to find out pays little.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ringhold.env import Buffer, Env, process_id
from ringhold.errors import Closed, InvalidInput, NodeDown, RingholdError
from ringhold.nodes import chunk_file
from ringhold.nodes.address import node_address
from ringhold.nodes.base import (
    CHUNK_BYTES_MAX,
    PARTITIONS,
    ChunkId,
    ChunkPart,
    ChunkState,
    Identity,
)
from ringhold.nodes.channel import Channel
from ringhold.nodes.connection import Connection
from ringhold.nodes.protocol import (
    CHUNKS_PER_REQUEST_MAX,
    ChunksRequest,
    Frame,
    GetAnswer,
    GetRequest,
    Hello,
    ListAnswer,
    ListRequest,
    Operation,
    PutRequest,
    decode_meta,
    encode_meta,
    pack_chunks,
    unpack_chunks,
)

CONNECT_S = 1.0
CONNECT_AGAIN_S = 0.25
REQUEST_S = 10.0
WRITE_FACTOR = 3
BYTES_PER_S_MIN = 5_000_000
VERIFY_CHUNKS = 4
BACK_OFF_S = (0.2, 1.0)
BACK_OFF_SILENT_S = 4.0
_STATES = (ChunkState.GOOD, ChunkState.MISSING, ChunkState.DAMAGED)


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
        self._host, self._port = node_address(address, name)
        self.address = address
        self._name = name
        self._env = env
        self._expected = expected
        self._timeout_s = timeout_s
        self._channel: Channel | None = None
        self._connecting = asyncio.Lock()
        self._closed = False
        self._last_error: NodeDown | None = None
        self._silent = False
        self._back_off_s = 0.0
        self._retry_ns = 0
        self._greeting: asyncio.Task[None] | None = None
        self._pid = process_id()

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

    async def _connected(self) -> Channel:
        if self._pid != process_id():
            raise Closed(
                f"node {self.name} at {self.address} was opened by process {self._pid}: a forked "
                "child must open its own",
                pid=self._pid,
            )
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
                limit_s = CONNECT_AGAIN_S if self._silent else CONNECT_S
                self._channel = await self._connect(limit_s)
            except NodeDown as error:
                self._note_failure(error, silent=isinstance(error.__cause__, TimeoutError))
                raise
            self._last_error, self._silent = None, False
            if self._closed:
                await self._channel.close("was closed")
                raise Closed(f"node {self.name} at {self.address} was closed")
            return self._channel

    def _note_failure(self, error: NodeDown, *, silent: bool = False) -> None:
        first, longest = BACK_OFF_S
        if silent:
            longest = BACK_OFF_SILENT_S
        self._last_error, self._silent = error, silent
        self._back_off_s = min(longest, max(first, 2 * self._back_off_s))
        self._retry_ns = self._env.clock.monotonic_ns() + int(self._back_off_s * 1e9)

    async def _connect(self, limit_s: float) -> Channel:
        connection = Connection()
        channel = Channel(self.name, self.address, connection, self._greet_again)
        connection.owner = channel
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(limit_s):
                await loop.create_connection(lambda: connection, self._host, self._port)
                hello = encode_meta(Hello(self._expected))
                answer = await channel.call(Operation.HELLO, hello, timeout_s=2 * limit_s)
            channel.identity = decode_meta(answer.meta, Hello).identity
        except BaseException as error:
            connection.abort()
            if isinstance(error, NodeDown):
                raise
            if isinstance(error, TimeoutError):
                silent = f"is silent: it answered no handshake within {limit_s:.2f} s"
                raise channel.down(silent) from error
            if isinstance(error, (OSError, RingholdError)):
                raise channel.down(f"cannot be reached: {error}") from error
            raise
        return channel

    def _greet_again(self, silent: Channel) -> None:
        if self._greeting is None and not self._closed and silent is self._channel:
            self._greeting = asyncio.ensure_future(self._find_out(silent))

    async def _find_out(self, silent: Channel) -> None:
        """Ends the channel unless its daemon answers a handshake, or anything meanwhile."""
        heard = silent.connection.bytes_received
        try:
            second = await self._connect(CONNECT_S)
            await second.close("was only asked whether it lives")
        except NodeDown:
            if silent.is_open and silent.connection.bytes_received == heard:
                silent.fail_silent("is silent: neither requests nor a handshake were answered")
        finally:
            self._greeting = None

    async def _serving(self) -> Channel:
        """A connection to the node that is expected."""
        channel = await self._connected()
        if self._expected is not None and channel.identity != self._expected:
            error = channel.down(f"is {channel.identity or 'no node yet'}, not {self._expected}")
            self._note_failure(error)
            await channel.close("is another node")
            raise error
        return channel

    async def _call(
        self,
        channel: Channel,
        operation: Operation,
        meta: bytes,
        body: Buffer = b"",
        *,
        timeout_s: float,
    ) -> Frame:
        try:
            frame = await channel.call(operation, meta, body, timeout_s=timeout_s)
        except NodeDown as error:
            if channel.fell_silent and channel is self._channel:
                self._channel = None
                self._note_failure(error, silent=True)
            raise
        except (OSError, RingholdError):
            self._back_off_s = 0.0  # it was answered, with an error
            raise
        self._back_off_s = 0.0
        return frame

    def _timeout_for(self, byte_count: int, *, syncs: bool = False) -> float:
        return self._timeout_s * (WRITE_FACTOR if syncs else 1) + byte_count / BYTES_PER_S_MIN

    # Requests

    async def identity(self) -> Identity | None:
        channel = await self._connected()
        answer = await self._call(channel, Operation.IDENTITY, b"", timeout_s=self._timeout_s)
        return decode_meta(answer.meta, Hello).identity

    async def adopt(self, identity: Identity) -> None:
        if self._expected is not None and identity != self._expected:
            raise InvalidInput(f"node {self.name} was opened as {self._expected}, not {identity}")
        channel = await self._connected()
        meta = encode_meta(Hello(identity))
        answer = await self._call(channel, Operation.ADOPT, meta, timeout_s=self._timeout_s)
        channel.identity = decode_meta(answer.meta, Hello).identity

    async def put(self, chunk: ChunkId, data: Buffer, digest: bytes) -> None:
        view = chunk_file.check_put_arguments(chunk, data, digest)
        meta = encode_meta(PutRequest(chunk.run, chunk.number, digest))
        channel = await self._serving()
        timeout_s = self._timeout_for(len(view), syncs=True)
        await self._call(channel, Operation.PUT, meta, view, timeout_s=timeout_s)

    async def get(self, chunk: ChunkId, offset: int = 0, length: int | None = None) -> ChunkPart:
        chunk_file.check_chunk_id(chunk)
        chunk_file.covering_blocks(0, offset, length)
        meta = encode_meta(GetRequest(chunk.run, chunk.number, offset, length))
        channel = await self._serving()
        timeout_s = self._timeout_for(CHUNK_BYTES_MAX if length is None else length)
        frame = await self._call(channel, Operation.GET, meta, timeout_s=timeout_s)
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
            syncs = operation is Operation.DELETE
            timeout_s = self._timeout_for(len(part) * chunk_bytes, syncs=syncs)
            frame = await self._call(channel, operation, meta, timeout_s=timeout_s)
            body = bytes(frame.body)
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
            frame = await self._call(channel, Operation.LIST, meta, timeout_s=self._timeout_s)
            found += unpack_chunks(frame.body)
            following = decode_meta(frame.meta, ListAnswer).next_start
            if following is not None and following <= start:
                raise channel.down("lists its chunks in circles")
            start = following
        return sorted(found)

    async def close(self) -> None:
        """Ends the connection; requests under way raise NodeDown, later ones Closed."""
        self._closed = True
        if self._pid != process_id():
            return  # the socket, and the loop that knows it, are the parent's
        greeting = self._greeting
        if greeting is not None:
            greeting.cancel()
            await asyncio.wait([greeting])
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close("was closed")

"""The frames that clients and storage daemons exchange, byte by byte.

    0   4  magic "RHn\\x00"            16  4  length of the meta part
    4   1  protocol version            20  4  zero
    5   1  operation                   24  8  length of the body
    6   2  0 request, 1 answer,        32  8  XXH3-64 of the meta part
           2 error                     40  8  XXH3-64 of bytes 0 … 39
    8   8  request id                  48     meta (msgpack array), body (raw bytes)

Integers are little-endian. The first frame of a connection is HELLO; then any number of requests
may be under way, answered in any order under their request id. Id 0 is nobody's: an error under
it concerns the connection, which is closed after it.

Guaranteed: nothing is allocated for a frame before its header's checksum and lengths were
checked; a header or meta part that was changed on its way is not acted upon. The body has no
checksum of its own here: what it means is verified end to end, against the manifest's digest.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from ringhold.core import checksum
from ringhold.env import Buffer
from ringhold.errors import ChecksumMismatch, Closed, Corrupt, InvalidInput, NodeDown, RingholdError
from ringhold.nodes.base import CHUNK_BYTES_MAX, RUN_BYTES, ChunkId, Identity
from ringhold.nodes.chunk_file import check_chunk_id

MAGIC = b"RHn\x00"
VERSION = 1
HEAD_BYTES = 48
META_BYTES_MAX = 1 << 20
BODY_BYTES_MAX = CHUNK_BYTES_MAX + (64 << 10)
PACKED_CHUNK_BYTES = RUN_BYTES + 1
CHUNKS_PER_REQUEST_MAX = 4096

T = TypeVar("T")

_HEAD = struct.Struct("<4sBBHQIIQQQ")
_STAGE_BYTES = 64 << 10
_DIRECT_BYTES_MIN = 16 << 10


class Operation(enum.IntEnum):
    HELLO = 1
    IDENTITY = 2
    ADOPT = 3
    PUT = 4
    GET = 5
    HAS = 6
    VERIFY = 7
    DELETE = 8
    LIST = 9


class Status(enum.IntEnum):
    REQUEST = 0
    ANSWER = 1
    ERROR = 2


class Hello(msgspec.Struct, frozen=True, array_like=True):
    """HELLO, both ways: whom the client expects, and who the node is. ADOPT: who it shall be."""

    identity: Identity | None


class PutRequest(msgspec.Struct, frozen=True, array_like=True):
    run: bytes
    number: int
    digest: bytes


class GetRequest(msgspec.Struct, frozen=True, array_like=True):
    run: bytes
    number: int
    offset: int
    length: int | None


class GetAnswer(msgspec.Struct, frozen=True, array_like=True):
    """`header` is the chunk file's first page; the body is the data from `offset` on."""

    header: bytes
    offset: int


class ChunksRequest(msgspec.Struct, frozen=True, array_like=True):
    """HAS, VERIFY, DELETE. `chunks` as of `pack_chunks`; the answer's body is a byte for each."""

    chunks: bytes


class ListRequest(msgspec.Struct, frozen=True, array_like=True):
    """One partition, or all from subdirectory `start` on."""

    partition: int | None
    start: int


class ListAnswer(msgspec.Struct, frozen=True, array_like=True):
    """The body is packed chunks. `next_start` is None when there are no more."""

    next_start: int | None


class ErrorAnswer(msgspec.Struct, frozen=True, array_like=True):
    kind: str
    message: str
    errno: int = 0
    what: str = ""


encode_meta = msgspec.msgpack.Encoder().encode


def decode_meta(data: Buffer, kind: type[T]) -> T:
    """The meta part as `kind`; Corrupt when it is none."""
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Corrupt(f"frame: {kind.__name__} cannot be read: {error}", what="frame") from error


@dataclass(frozen=True, slots=True)
class Head:
    """A frame's header, checked."""

    operation: Operation
    status: Status
    request: int
    meta_bytes: int
    body_bytes: int
    meta_checksum: int


@dataclass(frozen=True, slots=True)
class Frame:
    head: Head
    meta: Buffer
    body: memoryview


def encode_frame(
    operation: Operation, status: Status, request: int, meta: bytes, body_bytes: int = 0
) -> bytes:
    """Header and meta part; a body of `body_bytes` bytes is to follow them."""
    if len(meta) > META_BYTES_MAX or body_bytes > BODY_BYTES_MAX:
        raise InvalidInput(
            f"frame with {len(meta)} bytes of meta and {body_bytes} of body exceeds "
            f"{META_BYTES_MAX} or {BODY_BYTES_MAX} bytes"
        )
    head = bytearray(
        _HEAD.pack(
            MAGIC, VERSION, operation, status, request, len(meta), 0, body_bytes, checksum(meta), 0
        )
    )
    head[40:48] = checksum(memoryview(head)[:40]).to_bytes(8, "little")
    return bytes(head) + meta


def parse_head(data: Buffer) -> Head:
    """The header in `data`, 48 bytes. Corrupt or ChecksumMismatch name the field."""
    magic, version, operation, status, request, meta, zero, body, meta_sum, head_sum = _HEAD.unpack(
        data
    )
    if magic != MAGIC:
        raise Corrupt(f"frame: magic is {magic!r}, should be {MAGIC!r}", what="frame")
    if checksum(memoryview(data)[:40]) != head_sum:
        raise ChecksumMismatch("frame: header does not match its checksum", what="frame")
    if version != VERSION:
        raise Corrupt(f"frame: protocol version {version}, this one is {VERSION}", what="frame")
    if zero or operation not in _OPERATIONS or status not in _STATUSES:
        raise Corrupt(
            f"frame: operation {operation}, status {status}, reserved {zero} are not known",
            what="frame",
        )
    if meta > META_BYTES_MAX or body > BODY_BYTES_MAX:
        raise Corrupt(
            f"frame: {meta} bytes of meta and {body} of body exceed {META_BYTES_MAX} or "
            f"{BODY_BYTES_MAX} bytes",
            what="frame",
        )
    return Head(_OPERATIONS[operation], _STATUSES[status], request, meta, body, meta_sum)


_OPERATIONS = {int(operation): operation for operation in Operation}
_STATUSES = {int(status): status for status in Status}


class FrameReader:
    """Makes frames of a stream of bytes, without I/O and with at most 64 KiB copied per frame.

    `buffer` says where the next bytes go, `received` how many came. `advance` then gives, one
    after the other, what they complete: first the Head of a frame, for which memory is taken
    only in `accept`; then the Frame; None when more bytes are needed.
    """

    def __init__(self) -> None:
        self._stage = memoryview(bytearray(_STAGE_BYTES))
        self._start = 0
        self._end = 0
        self._direct = False
        self._head: Head | None = None
        self._content: memoryview | None = None
        self._filled = 0

    def buffer(self) -> memoryview:
        content = self._content
        self._direct = (
            content is not None
            and self._start == self._end
            and len(content) - self._filled >= _DIRECT_BYTES_MIN
        )
        if self._direct and content is not None:
            return content[self._filled :]
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end == len(self._stage):
            rest = bytes(self._stage[self._start : self._end])
            self._stage[: len(rest)] = rest
            self._start, self._end = 0, len(rest)
        return self._stage[self._end :]

    def received(self, count: int) -> None:
        if self._direct:
            self._filled += count
        else:
            self._end += count

    def advance(self) -> Head | Frame | None:
        if self._head is None:
            if self._end - self._start < HEAD_BYTES:
                return None
            self._head = parse_head(self._stage[self._start : self._start + HEAD_BYTES])
            self._start += HEAD_BYTES
        if self._content is None:
            return self._head
        count = min(self._end - self._start, len(self._content) - self._filled)
        if count:
            self._content[self._filled : self._filled + count] = self._stage[
                self._start : self._start + count
            ]
            self._filled += count
            self._start += count
        if self._filled < len(self._content):
            return None
        return self._complete(self._head, self._content)

    def accept(self) -> None:
        """Takes the memory for the frame whose head `advance` gave."""
        head = self._head
        if head is None:
            raise InvalidInput("there is no frame to accept")
        self._content = memoryview(bytearray(head.meta_bytes + head.body_bytes))
        self._filled = 0

    def _complete(self, head: Head, content: memoryview) -> Frame:
        self._head = self._content = None
        meta, body = content[: head.meta_bytes], content[head.meta_bytes :]
        if checksum(meta) != head.meta_checksum:
            raise ChecksumMismatch("frame: meta part does not match its checksum", what="frame")
        return Frame(head, meta, body)


def pack_chunks(chunks: Sequence[ChunkId]) -> bytes:
    return b"".join(chunk.run + bytes([chunk.number]) for chunk in chunks)


def unpack_chunks(packed: Buffer) -> list[ChunkId]:
    """The inverse of `pack_chunks`; Corrupt for what it cannot have made."""
    data = bytes(packed)
    if len(data) % PACKED_CHUNK_BYTES:
        raise Corrupt(f"frame: {len(data)} bytes are no list of chunks", what="frame")
    chunks = [
        ChunkId(data[at : at + RUN_BYTES], data[at + RUN_BYTES])
        for at in range(0, len(data), PACKED_CHUNK_BYTES)
    ]
    for chunk in chunks:
        check_chunk_id(chunk)
    return chunks


def encode_error(error: Exception) -> ErrorAnswer:
    """What the other side is told of `error`; kinds it has no use for become NodeDown."""
    message = str(error)
    if isinstance(error, Closed):
        return ErrorAnswer("NodeDown", message)
    for kind, known in _ERROR_KINDS.items():
        if type(error) is known:
            return ErrorAnswer(kind, message, what=getattr(error, "what", ""))
    if isinstance(error, OSError) and not isinstance(error, RingholdError) and error.errno:
        return ErrorAnswer("OSError", error.strerror or message, error.errno)
    return ErrorAnswer("NodeDown", f"{type(error).__name__}: {message}")


def decode_error(answer: ErrorAnswer, node: str) -> Exception:
    """The error that `answer` tells of, as if raised here by the node called `node`."""
    if answer.kind == "OSError":
        # OSError makes the subclass that fits the number, FileNotFoundError among them.
        return OSError(answer.errno, f"{answer.message} (at node {node})")
    kind = _ERROR_KINDS.get(answer.kind, NodeDown)
    if issubclass(kind, Corrupt):
        return kind(answer.message, what=answer.what)
    if kind is NodeDown:
        return NodeDown(answer.message, node=node)
    return kind(answer.message)


_ERROR_KINDS: dict[str, type[RingholdError]] = {
    "InvalidInput": InvalidInput,
    "ChecksumMismatch": ChecksumMismatch,
    "Corrupt": Corrupt,
    "NodeDown": NodeDown,
}

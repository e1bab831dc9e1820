"""What the store keeps about files, as msgpack arrays: fields are only ever appended.

A file of up to `INLINE_BYTES_MAX` bytes lives in its inode. A larger one has a data id, which
names its extents (one record per `block_bytes` of the file); extents name chunks of runs, and
a run's record holds the digest of each chunk.
"""

from __future__ import annotations

import enum

import msgspec

INLINE_BYTES_MAX = 4096
ROOT_INO = 1
INODES_PER_LEASE = 1024


class FileKind(enum.IntEnum):
    DIRECTORY = 1
    FILE = 2


class Algorithm(enum.IntEnum):
    """How a chunk's digest is computed; stored beside every digest."""

    XXH3_128 = 1


class DirectoryEntry(msgspec.Struct, frozen=True, array_like=True):
    """Key D<directory><name>."""

    ino: int
    kind: FileKind


class Inode(msgspec.Struct, frozen=True, array_like=True):
    """Key I<ino>. Times are wall clock nanoseconds; `parent` is set for directories only."""

    kind: FileKind
    mode: int
    uid: int
    gid: int
    links: int
    size: int
    created_ns: int
    modified_ns: int
    parent: int = 0
    inline: bytes | None = None
    data: bytes | None = None
    block_bytes: int = 0


class Extent(msgspec.Struct, frozen=True, array_like=True):
    """`length` bytes of the file from `file_offset` lie in chunk `number` of `run` at `offset`."""

    file_offset: int
    length: int
    run: bytes
    number: int
    offset: int = 0


class Extents(msgspec.Struct, frozen=True, array_like=True):
    """Key X<data><block>; sorted, without overlap. What no extent covers reads as zeros.

    A run of a data id lies in one of its blocks only, so that blocks can be copied and deleted
    one after the other, each run counted once.
    """

    extents: tuple[Extent, ...]


class ChunkRecord(msgspec.Struct, frozen=True, array_like=True):
    length: int
    digest: bytes


class RunRecord(msgspec.Struct, frozen=True, array_like=True):
    """Key C<run>. `references` counts the data ids that use the run; `dead` means that its
    chunks are being deleted and that nothing may refer to it again."""

    partition: int
    replicas: int
    chunks: tuple[ChunkRecord, ...]
    algorithm: Algorithm = Algorithm.XXH3_128
    references: int = 1
    dead: bool = False


class GarbageRecord(msgspec.Struct, frozen=True, array_like=True):
    """Key G<deleted ms><data>. `path` is where the file was, `runs` are dead and not yet gone.

    With a `session`, the data is not deleted but being written by it: see `staging`.
    """

    ino: int
    path: bytes
    size: int
    runs: tuple[bytes, ...] = ()
    session: bytes = b""


class RepairRecord(msgspec.Struct, frozen=True, array_like=True):
    """Key K<copies><run>. The chunk numbers that lacked a copy, and on which nodes."""

    missing: tuple[tuple[int, str], ...]


encode = msgspec.msgpack.Encoder().encode
decode_entry = msgspec.msgpack.Decoder(DirectoryEntry).decode
decode_inode = msgspec.msgpack.Decoder(Inode).decode
decode_extents = msgspec.msgpack.Decoder(Extents).decode
decode_run = msgspec.msgpack.Decoder(RunRecord).decode
decode_garbage = msgspec.msgpack.Decoder(GarbageRecord).decode
decode_repair = msgspec.msgpack.Decoder(RepairRecord).decode

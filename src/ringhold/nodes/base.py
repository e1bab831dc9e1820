"""What a storage node does: it keeps immutable chunks, and nothing else.

A chunk is written once under an id that is never reused. A `put` that returned is durable
(data and name fsynced). A node never changes a chunk and deletes one only when told to.

Every node carries an identity, written when it was adopted by a cluster. Without the expected
identity nothing is put: a directory whose disk is not mounted, that was wiped or belongs to
somebody else answers NodeDown until it is given a new incarnation.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from ringhold.core import checksum
from ringhold.env import Buffer

PARTITION_BITS = 12
PARTITIONS = 1 << PARTITION_BITS
RUN_BYTES = 16
CHUNKS_PER_RUN = 64
CHUNK_BYTES_MIN = 64 << 10
CHUNK_BYTES_MAX = 16 << 20
BLOCK_BYTES = 64 << 10


@dataclass(frozen=True, slots=True, order=True)
class ChunkId:
    """`run` (16 bytes: session id, counter) and the chunk's `number` in it, 0 … 63."""

    run: bytes
    number: int

    def __str__(self) -> str:
        return f"{self.run.hex()}.{self.number:02d}"


def partition_of(run: bytes) -> int:
    """The partition of a run: the top bits of its XXH3-64."""
    return checksum(run) >> (64 - PARTITION_BITS)


class Identity(msgspec.Struct, frozen=True, array_like=True):
    """Which node of which cluster a directory is; `incarnation` grows with each replacement."""

    cluster: bytes
    name: str
    incarnation: int

    def __str__(self) -> str:
        return (
            f"node {self.name!r} of cluster {self.cluster.hex()[:8]}…, "
            f"incarnation {self.incarnation}"
        )


class ChunkState(enum.Enum):
    """What `Node.verify` found."""

    GOOD = "good"
    MISSING = "missing"
    DAMAGED = "damaged"


@dataclass(frozen=True, slots=True)
class ChunkPart:
    """An answer to `Node.get`, not yet verified: see `chunk_file.verify_part`.

    `header` is the chunk file's header page as stored, `data` the bytes of the whole blocks
    that cover the range asked for, `offset` (a multiple of BLOCK_BYTES) where they begin.
    """

    header: bytes
    offset: int
    data: Buffer


class Node(Protocol):
    """One storage node, reached as a directory or through a daemon.

    Every method raises NodeDown when the node does not serve, or is not who it should be.
    """

    @property
    def name(self) -> str: ...

    async def identity(self) -> Identity | None:
        """Whose node this is; None when no cluster has adopted it yet."""

    async def adopt(self, identity: Identity) -> None:
        """Makes an empty directory the node `identity`. FileExistsError when it is not empty,
        unless it already is this very node."""

    async def put(self, chunk: ChunkId, data: Buffer, digest: bytes) -> None:
        """Stores `data` durably under `chunk`. `digest` is its XXH3-128.

        An existing chunk counts only after its data was verified against `digest`; a damaged
        one is replaced. ChecksumMismatch when `data` does not match `digest` on arrival.
        """

    async def get(self, chunk: ChunkId, offset: int = 0, length: int | None = None) -> ChunkPart:
        """The blocks that cover [offset, offset + length). FileNotFoundError when missing,
        Corrupt when not even the header can be read as one of this chunk."""

    async def has(self, chunks: Sequence[ChunkId]) -> list[bool]:
        """Whether a file of that name is there; says nothing about its contents."""

    async def verify(self, chunks: Sequence[ChunkId]) -> list[ChunkState]:
        """Reads and checks every byte of `chunks` where they lie."""

    async def delete(self, chunks: Sequence[ChunkId]) -> None:
        """Removes `chunks`; those that are missing are no error."""

    async def list_chunks(self, partition: int | None = None) -> list[ChunkId]:
        """The chunks of one partition, or all, sorted."""

    async def close(self) -> None: ...

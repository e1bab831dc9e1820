"""A storage node in memory: for `memory://` clusters and as the model the others are tested by.

It keeps whole chunk files, header page included, so that damage to stored bytes is found the
same way as on a disk. Nothing survives the process.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from ringhold.env import Buffer
from ringhold.errors import Closed, Corrupt, InvalidInput, NodeDown
from ringhold.nodes import chunk_file
from ringhold.nodes import identity as identity_file
from ringhold.nodes.base import (
    PARTITIONS,
    ChunkId,
    ChunkPart,
    ChunkState,
    Identity,
    partition_of,
)
from ringhold.nodes.chunk_file import HEADER_BYTES


class MemoryFiles:
    """What a memory node stores; outlives the node objects that are opened on it."""

    def __init__(self) -> None:
        self.identity: Identity | None = None
        self.chunks: dict[ChunkId, bytes] = {}
        self.quarantine: list[tuple[ChunkId, bytes]] = []


class MemoryNode:
    """See `ringhold.nodes.base.Node` for the methods."""

    def __init__(
        self, name: str, *, files: MemoryFiles | None = None, expected: Identity | None = None
    ):
        self._name = name
        self._files = MemoryFiles() if files is None else files
        self._expected = expected
        self._closed = False

    @property
    def name(self) -> str:
        return self._name

    def _opened(self) -> MemoryFiles:
        if self._closed:
            raise Closed(f"node {self.name} was closed")
        return self._files

    def _serving(self) -> MemoryFiles:
        files = self._opened()
        reason = None
        if files.identity is None:
            reason = "no cluster has adopted it"
        elif self._expected is not None and files.identity != self._expected:
            reason = f"is {files.identity}, not {self._expected}"
        if reason is not None:
            raise NodeDown(f"node {self.name} in memory: {reason}", node=self.name)
        return files

    async def identity(self) -> Identity | None:
        return self._opened().identity

    async def adopt(self, identity: Identity) -> None:
        if self._expected is not None and identity != self._expected:
            raise InvalidInput(f"node {self.name} was opened as {self._expected}, not {identity}")
        identity_file.encode(identity)
        files = self._opened()
        if files.identity == identity:
            return
        if files.identity is not None or files.chunks:
            raise FileExistsError(
                errno.EEXIST, f"node {self.name} belongs to {files.identity}, not {identity}"
            )
        files.identity = identity

    async def put(self, chunk: ChunkId, data: Buffer, digest: bytes) -> None:
        view = chunk_file.check_put(chunk, data, digest)
        files = self._serving()
        existing = files.chunks.get(chunk)
        if existing is not None:
            if _is_good(existing, chunk, digest):
                return
            files.quarantine.append((chunk, existing))
        files.chunks[chunk] = chunk_file.encode_header(chunk, view, digest) + bytes(view)

    async def get(self, chunk: ChunkId, offset: int = 0, length: int | None = None) -> ChunkPart:
        chunk_file.check_chunk_id(chunk)
        content = self._serving().chunks.get(chunk)
        if content is None:
            raise FileNotFoundError(errno.ENOENT, f"node {self.name} has no chunk {chunk}")
        header = chunk_file.parse_header(content, chunk)
        start, end = chunk_file.covering_blocks(header.length, offset, length)
        data = memoryview(content)[HEADER_BYTES + start : HEADER_BYTES + end]
        if len(data) != end - start:
            raise Corrupt(f"chunk {chunk} of node {self.name} is truncated", what=str(chunk))
        return ChunkPart(content[:HEADER_BYTES], start, data)

    async def has(self, chunks: Sequence[ChunkId]) -> list[bool]:
        for chunk in chunks:
            chunk_file.check_chunk_id(chunk)
        files = self._serving()
        return [chunk in files.chunks for chunk in chunks]

    async def verify(self, chunks: Sequence[ChunkId]) -> list[ChunkState]:
        for chunk in chunks:
            chunk_file.check_chunk_id(chunk)
        files = self._serving()
        return [_state(files, chunk) for chunk in chunks]

    async def delete(self, chunks: Sequence[ChunkId]) -> None:
        for chunk in chunks:
            chunk_file.check_chunk_id(chunk)
        files = self._serving()
        for chunk in chunks:
            files.chunks.pop(chunk, None)

    async def list_chunks(self, partition: int | None = None) -> list[ChunkId]:
        if partition is not None and not 0 <= partition < PARTITIONS:
            raise InvalidInput(f"partition {partition} is not in 0 … {PARTITIONS - 1}")
        chunks = sorted(self._serving().chunks)
        if partition is None:
            return chunks
        return [chunk for chunk in chunks if partition_of(chunk.run) == partition]

    async def close(self) -> None:
        self._closed = True


def _is_good(content: bytes, chunk: ChunkId, digest: bytes | None) -> bool:
    try:
        chunk_file.verify_whole(content, chunk, digest)
    except Corrupt:
        return False
    return True


def _state(files: MemoryFiles, chunk: ChunkId) -> ChunkState:
    content = files.chunks.get(chunk)
    if content is None:
        return ChunkState.MISSING
    return ChunkState.GOOD if _is_good(content, chunk, None) else ChunkState.DAMAGED


_process_wide: dict[str, MemoryFiles] = {}


def memory_files(location: str) -> MemoryFiles:
    """The files of the node `location` ("memory://<cluster>/<name>") of this process."""
    return _process_wide.setdefault(location, MemoryFiles())


def forget_memory_files(location: str) -> None:
    """Gives back the memory of a node; nodes still open on it keep what they have."""
    _process_wide.pop(location, None)

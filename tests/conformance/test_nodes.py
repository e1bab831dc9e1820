"""Goal: every kind of storage node does the same, and none ever acknowledges damaged bytes.

Method: one suite over a directory with unnamed files, a directory that goes through tmp/, the
node in memory, and a client of a daemon in a process of its own. Stored bytes are reached behind
the node's back, to damage them.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from ringhold.core import digest
from ringhold.env import real_env
from ringhold.errors import ChecksumMismatch, Closed, Corrupt, InvalidInput, NodeDown
from ringhold.nodes.base import (
    BLOCK_BYTES,
    CHUNK_BYTES_MAX,
    ChunkId,
    ChunkState,
    Identity,
    Node,
    partition_of,
)
from ringhold.nodes.chunk_file import HEADER_BYTES, encode_header, read_range, verify_part
from ringhold.nodes.client import RemoteNode
from ringhold.nodes.directory import DirectoryNode
from ringhold.nodes.memory import MemoryFiles, MemoryNode
from ringhold.nodes.mount import chunk_path

DAEMON = Path(__file__).parents[1] / "process" / "node_daemon.py"
IDENTITY = Identity(b"C" * 16, "n1", 3)
DATA = os.urandom(2 * BLOCK_BYTES + 77)
DIGEST = digest(DATA)


def chunk_id(number: int = 0, run: int = 0) -> ChunkId:
    return ChunkId(run.to_bytes(16, "big"), number)


class Place(ABC):
    """Where a node lives, and its stored bytes."""

    @abstractmethod
    def open(self, expected: Identity | None = IDENTITY) -> Node: ...

    @abstractmethod
    def read(self, chunk: ChunkId) -> bytes: ...

    @abstractmethod
    def write(self, chunk: ChunkId, content: bytes) -> None: ...

    @abstractmethod
    def quarantined(self) -> int: ...

    @abstractmethod
    def make_foreign(self) -> None:
        """Puts something into a place that was not adopted."""

    def flip(self, chunk: ChunkId, position: int) -> None:
        content = bytearray(self.read(chunk))
        content[position] ^= 0x10
        self.write(chunk, bytes(content))

    def end(self) -> None:
        return


class DirectoryPlace(Place):
    def __init__(self, path: Path, unnamed_files: bool):
        self.path = path
        self.unnamed_files = unnamed_files

    def open(self, expected: Identity | None = IDENTITY) -> Node:
        return DirectoryNode(
            str(self.path), "n1", real_env(), expected=expected, unnamed_files=self.unnamed_files
        )

    def read(self, chunk: ChunkId) -> bytes:
        return (self.path / chunk_path(chunk)).read_bytes()

    def write(self, chunk: ChunkId, content: bytes) -> None:
        (self.path / chunk_path(chunk)).write_bytes(content)

    def quarantined(self) -> int:
        return len(list((self.path / "quarantine").iterdir()))

    def make_foreign(self) -> None:
        self.path.mkdir(exist_ok=True)
        (self.path / "thesis.txt").write_text("mine")

    def end(self) -> None:
        assert not list(self.path.glob("tmp/*"))


class MemoryPlace(Place):
    def __init__(self) -> None:
        self.files = MemoryFiles()

    def open(self, expected: Identity | None = IDENTITY) -> Node:
        return MemoryNode("n1", files=self.files, expected=expected)

    def read(self, chunk: ChunkId) -> bytes:
        return self.files.chunks[chunk]

    def write(self, chunk: ChunkId, content: bytes) -> None:
        self.files.chunks[chunk] = content

    def quarantined(self) -> int:
        return len(self.files.quarantine)

    def make_foreign(self) -> None:
        self.files.chunks[chunk_id()] = b"mine"


class DaemonPlace(DirectoryPlace):
    def __init__(self, path: Path):
        super().__init__(path, True)
        self.process = subprocess.Popen(
            [sys.executable, str(DAEMON), str(path), "0", "asyncio"], stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        self.address = json.loads(self.process.stdout.readline())["address"]

    def open(self, expected: Identity | None = IDENTITY) -> Node:
        return RemoteNode(self.address, "n1", real_env(), expected=expected)

    def end(self) -> None:
        self.process.terminate()
        assert self.process.wait(20) == 0
        assert self.process.stdout is not None
        self.process.stdout.close()
        super().end()


@pytest.fixture(params=["directory", "directory-tmp", "memory", "daemon"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    path = tmp_path / "node"
    made: Place
    if request.param == "memory":
        made = MemoryPlace()
    elif request.param == "daemon":
        made = DaemonPlace(path)
    else:
        made = DirectoryPlace(path, request.param == "directory")
    yield made
    made.end()


def run(place: Place, scenario: Callable[[Node], Awaitable[None]], *, adopt: bool = True) -> None:
    async def main() -> None:
        node = place.open()
        try:
            if adopt:
                await node.adopt(IDENTITY)
            await scenario(node)
        finally:
            await node.close()

    asyncio.run(main())


def test_what_was_put_can_be_read(place: Place) -> None:
    async def scenario(node: Node) -> None:
        for number, size in enumerate([0, 1, 4096, BLOCK_BYTES, BLOCK_BYTES + 1, 1 << 20]):
            data = os.urandom(size)
            await node.put(chunk_id(number), data, digest(data))
            part = await node.get(chunk_id(number))
            assert verify_part(part, chunk_id(number), digest(data), size) == data
            content = encode_header(chunk_id(number), data, digest(data)) + data
            assert place.read(chunk_id(number)) == content

    run(place, scenario)


def test_the_largest_chunk(place: Place) -> None:
    async def scenario(node: Node) -> None:
        data = bytearray(os.urandom(CHUNK_BYTES_MAX))
        await node.put(chunk_id(), memoryview(data), digest(data))
        part = await node.get(chunk_id())
        assert verify_part(part, chunk_id(), digest(data), len(data)) == data
        with pytest.raises(InvalidInput, match="exceeds"):
            await node.put(chunk_id(1), bytes(CHUNK_BYTES_MAX + 1), DIGEST)

    run(place, scenario)


def test_ranges(place: Place) -> None:
    async def scenario(node: Node) -> None:
        await node.put(chunk_id(), DATA, DIGEST)
        size = len(DATA)
        for offset, length in [
            (0, 0),
            (0, 1),
            (BLOCK_BYTES - 1, 2),
            (BLOCK_BYTES, BLOCK_BYTES),
            (2 * BLOCK_BYTES + 10, 5),
            (size - 1, 1),
            (0, size),
        ]:
            part = await node.get(chunk_id(), offset, length)
            view = read_range(part, chunk_id(), DIGEST, size, offset, length)
            assert view == DATA[offset : offset + length]
            assert len(part.data) <= length + 2 * BLOCK_BYTES
        for offset in (size, size + 1, 1 << 40):
            part = await node.get(chunk_id(), offset, 10)
            assert not len(part.data)
        with pytest.raises(InvalidInput):
            await node.get(chunk_id(), -1)
        with pytest.raises(InvalidInput):
            await node.get(chunk_id(), 0, -1)

    run(place, scenario)


def test_missing_chunks(place: Place) -> None:
    async def scenario(node: Node) -> None:
        with pytest.raises(FileNotFoundError, match=str(chunk_id(5))):
            await node.get(chunk_id(5))
        assert await node.has([chunk_id(5)]) == [False]
        assert await node.verify([chunk_id(5)]) == [ChunkState.MISSING]
        await node.delete([chunk_id(5)])
        assert await node.has([]) == []
        assert await node.verify([]) == []
        await node.delete([])

    run(place, scenario)


def test_put_refuses_data_that_was_changed_on_its_way(place: Place) -> None:
    async def scenario(node: Node) -> None:
        with pytest.raises(ChecksumMismatch, match=str(chunk_id())):
            await node.put(chunk_id(), DATA[:-1] + bytes([DATA[-1] ^ 1]), DIGEST)
        assert await node.has([chunk_id()]) == [False]

    run(place, scenario)


def test_ids_that_cannot_be(place: Place) -> None:
    async def scenario(node: Node) -> None:
        for wrong in (ChunkId(b"short", 0), ChunkId(bytes(16), 64), ChunkId(bytes(16), -1)):
            with pytest.raises(InvalidInput):
                await node.put(wrong, DATA, DIGEST)
            with pytest.raises(InvalidInput):
                await node.get(wrong)
            for ask in (node.has, node.verify, node.delete):
                with pytest.raises(InvalidInput):
                    await ask([wrong])
        with pytest.raises(InvalidInput):
            await node.put(chunk_id(), DATA, b"short")
        for partition in (-1, 4096):
            with pytest.raises(InvalidInput):
                await node.list_chunks(partition)

    run(place, scenario)


def test_putting_again_counts_only_when_the_data_is_good(place: Place) -> None:
    async def scenario(node: Node) -> None:
        await node.put(chunk_id(), DATA, DIGEST)
        await node.put(chunk_id(), DATA, DIGEST)
        assert place.quarantined() == 0
        whole = place.read(chunk_id())
        damages: list[bytes] = [
            whole[: HEADER_BYTES + 70000] + b"\xff" + whole[HEADER_BYTES + 70001 :],
            b"\0" + whole[1:],
            whole[:-1],
            whole + b"x",
            b"",
            # A whole file, of other contents: its header alone would look right.
            encode_header(chunk_id(), b"other", digest(b"other")) + b"other",
        ]
        for count, damaged in enumerate(damages, 1):
            assert damaged != whole
            place.write(chunk_id(), damaged)
            await node.put(chunk_id(), DATA, DIGEST)
            assert place.read(chunk_id()) == whole
            assert place.quarantined() == count
        assert await node.list_chunks() == [chunk_id()]

    run(place, scenario)


def test_damage_is_found_by_verify_and_by_who_reads(place: Place) -> None:
    async def scenario(node: Node) -> None:
        for position in (0, 50, 90, 200, HEADER_BYTES, HEADER_BYTES + len(DATA) - 1):
            await node.put(chunk_id(), DATA, DIGEST)
            assert await node.verify([chunk_id()]) == [ChunkState.GOOD]
            place.flip(chunk_id(), position)
            assert await node.verify([chunk_id()]) == [ChunkState.DAMAGED]
            with pytest.raises(Corrupt, match=str(chunk_id())):
                verify_part(await node.get(chunk_id()), chunk_id(), DIGEST, len(DATA))
        place.write(chunk_id(), place.read(chunk_id())[: HEADER_BYTES + 100])
        assert await node.verify([chunk_id()]) == [ChunkState.DAMAGED]

    run(place, scenario)


def test_a_truncated_and_a_swapped_file_give_no_data(place: Place) -> None:
    async def scenario(node: Node) -> None:
        await node.put(chunk_id(0), DATA, DIGEST)
        await node.put(chunk_id(1), DATA, DIGEST)
        place.write(chunk_id(1), place.read(chunk_id(0)))
        with pytest.raises(Corrupt, match="number is 0, should be 1"):
            await node.get(chunk_id(1))
        for size in (0, 100, HEADER_BYTES - 1, HEADER_BYTES + BLOCK_BYTES):
            place.write(chunk_id(0), place.read(chunk_id(0))[:size])
            with pytest.raises(Corrupt, match="truncated"):
                await node.get(chunk_id(0))
            await node.put(chunk_id(0), DATA, DIGEST)

    run(place, scenario)


def test_list_has_delete(place: Place) -> None:
    async def scenario(node: Node) -> None:
        chunks = sorted(chunk_id(number, run) for run in range(1, 30) for number in (0, 63))
        async with asyncio.TaskGroup() as puts:
            for chunk in chunks:
                puts.create_task(node.put(chunk, b"small", digest(b"small")))
        assert await node.list_chunks() == chunks
        partition = partition_of(chunks[0].run)
        expected = [chunk for chunk in chunks if partition_of(chunk.run) == partition]
        assert await node.list_chunks(partition) == expected
        await node.delete(chunks[::2])
        assert await node.has(chunks) == [bool(i % 2) for i in range(len(chunks))]
        assert await node.list_chunks() == chunks[1::2]
        await node.delete(chunks)
        assert await node.list_chunks() == []

    run(place, scenario)


def test_the_same_chunk_put_by_many_at_once(place: Place) -> None:
    async def scenario(node: Node) -> None:
        await node.put(chunk_id(), DATA, DIGEST)
        place.flip(chunk_id(), HEADER_BYTES)
        async with asyncio.TaskGroup() as puts:
            for _ in range(8):
                puts.create_task(node.put(chunk_id(), DATA, DIGEST))
                puts.create_task(node.put(chunk_id(1), DATA, DIGEST))
        assert await node.verify([chunk_id(), chunk_id(1)]) == [ChunkState.GOOD] * 2

    run(place, scenario)


def test_many_puts_and_gets_at_once(place: Place) -> None:
    async def scenario(node: Node) -> None:
        async def one(number: int) -> None:
            data = os.urandom(1 + number * 7919)
            await node.put(chunk_id(number % 64, number), data, digest(data))
            part = await node.get(chunk_id(number % 64, number))
            assert verify_part(part, chunk_id(number % 64, number), digest(data), len(data)) == data

        async with asyncio.TaskGroup() as tasks:
            for number in range(100):
                tasks.create_task(one(number))

    run(place, scenario)


def test_nothing_is_served_before_adoption(place: Place) -> None:
    async def scenario(node: Node) -> None:
        stranger = place.open(expected=None)
        for one in (node, stranger):
            with pytest.raises(NodeDown):
                await one.put(chunk_id(), DATA, DIGEST)
            with pytest.raises(NodeDown):
                await one.get(chunk_id())
            with pytest.raises(NodeDown):
                await one.list_chunks()
        await stranger.close()

    run(place, scenario, adopt=False)


def test_adoption(place: Place) -> None:
    async def scenario(node: Node) -> None:
        anyone = place.open(expected=None)
        await anyone.adopt(IDENTITY)
        assert await anyone.identity() == IDENTITY
        await anyone.adopt(IDENTITY)
        for other in (
            Identity(IDENTITY.cluster, "n1", 4),
            Identity(IDENTITY.cluster, "n2", 3),
            Identity(b"D" * 16, "n1", 3),
        ):
            with pytest.raises(FileExistsError):
                await anyone.adopt(other)
            wrong = place.open(expected=other)
            with pytest.raises(NodeDown, match="not node 'n"):
                await wrong.put(chunk_id(), DATA, DIGEST)
            with pytest.raises(NodeDown):
                await wrong.get(chunk_id())
            with pytest.raises(InvalidInput):
                await wrong.adopt(IDENTITY)
            await wrong.close()
        assert await anyone.identity() == IDENTITY
        await anyone.put(chunk_id(), DATA, DIGEST)
        for bad in (Identity(b"", "", 1), Identity(b"", "n", 0), Identity(b"", "\ud800", 1)):
            with pytest.raises((InvalidInput, UnicodeEncodeError)):
                await anyone.adopt(bad)
        await anyone.close()

    run(place, scenario, adopt=False)


def test_a_place_with_other_content_is_not_adopted(place: Place) -> None:
    async def scenario(node: Node) -> None:
        place.make_foreign()
        with pytest.raises(FileExistsError):
            await node.adopt(IDENTITY)
        with pytest.raises(NodeDown):
            await node.put(chunk_id(1), DATA, DIGEST)

    run(place, scenario, adopt=False)


def test_after_close_there_is_nothing(place: Place) -> None:
    async def scenario(node: Node) -> None:
        await node.put(chunk_id(), DATA, DIGEST)
        await node.close()
        await node.close()
        for ask in (node.get(chunk_id()), node.put(chunk_id(), DATA, DIGEST), node.list_chunks()):
            with pytest.raises(Closed):
                await ask

    run(place, scenario)


def test_a_cancelled_put_disturbs_no_other(place: Place) -> None:
    async def scenario(node: Node) -> None:
        data = os.urandom(4 << 20)
        tasks = [
            asyncio.ensure_future(node.put(chunk_id(number), data, digest(data)))
            for number in range(12)
        ]
        for turn, task in enumerate(tasks):
            if turn % 2:
                for _ in range(turn):
                    await asyncio.sleep(0)
                task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert results[::2] == [None] * 6
        states = await node.verify([chunk_id(number) for number in range(12)])
        assert states[::2] == [ChunkState.GOOD] * 6
        assert ChunkState.DAMAGED not in states

    run(place, scenario)

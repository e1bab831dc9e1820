"""A file system put together by hand: memory store, nodes whose faults a test chooses.

Every fault is a switch on a node (`down`, `gate`, `broken`), or a change of what it keeps.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from etcd_engines import etcd_opener

from ringhold.env import Buffer, Env, real_env
from ringhold.errors import NodeDown
from ringhold.files import metadata
from ringhold.files.core import FileCore
from ringhold.locks.session import Session
from ringhold.locks.slot_grants import SlotService
from ringhold.nodes import chunk_file, records
from ringhold.nodes.base import (
    PARTITIONS,
    ChunkId,
    ChunkPart,
    ChunkState,
    Identity,
    partition_of,
)
from ringhold.nodes.records import ClusterRecord, Holder, NodeRecord, Partition
from ringhold.store import keyspace
from ringhold.store.base import Put, Store
from ringhold.store.memory import open_memory_store

CHUNK = 64 << 10

engine = "memory"
"""Where the store of the next file system is: `conftest.on_every_engine`."""


class ScriptedNode:
    """Keeps chunk files in memory, as bytes of the real format; fails as told."""

    def __init__(self, name: str, incarnation: int = 1):
        self.name = name
        self.incarnation = incarnation
        self.files: dict[ChunkId, bytearray] = {}
        self.down = False
        self.gate: asyncio.Event | None = None
        self.broken: Exception | None = None
        self.puts: list[ChunkId] = []
        self.gets: list[tuple[ChunkId, int, int | None]] = []

    def _check(self) -> None:
        if self.down:
            raise NodeDown(f"node {self.name} is down", node=self.name)

    async def identity(self) -> Identity | None:
        self._check()
        return Identity(b"", self.name, self.incarnation)

    async def adopt(self, identity: Identity) -> None:
        raise AssertionError("nobody adopts a scripted node")

    async def put(self, chunk: ChunkId, data: Buffer, digest: bytes) -> None:
        self._check()
        self.puts.append(chunk)
        await asyncio.sleep(0)
        if self.gate is not None:
            await self.gate.wait()
        if self.broken is not None:
            raise self.broken
        view = chunk_file.check_put(chunk, data, digest)
        self.files[chunk] = bytearray(chunk_file.encode_header(chunk, view, digest) + view)

    async def get(self, chunk: ChunkId, offset: int = 0, length: int | None = None) -> ChunkPart:
        self._check()
        self.gets.append((chunk, offset, length))
        if chunk not in self.files:
            raise FileNotFoundError(f"{chunk} on {self.name}")
        content = self.files[chunk]
        size = len(content) - chunk_file.HEADER_BYTES
        start, end = chunk_file.covering_blocks(size, offset, length)
        header = bytes(content[: chunk_file.HEADER_BYTES])
        base = chunk_file.HEADER_BYTES
        return ChunkPart(header, start, bytes(content[base + start : base + end]))

    async def has(self, chunks: Sequence[ChunkId]) -> list[bool]:
        self._check()
        return [chunk in self.files for chunk in chunks]

    async def verify(self, chunks: Sequence[ChunkId]) -> list[ChunkState]:
        self._check()
        states: list[ChunkState] = []
        for chunk in chunks:
            if chunk not in self.files:
                states.append(ChunkState.MISSING)
                continue
            try:
                chunk_file.verify_whole(self.files[chunk], chunk)
            except chunk_file.Corrupt:
                states.append(ChunkState.DAMAGED)
            else:
                states.append(ChunkState.GOOD)
        return states

    async def delete(self, chunks: Sequence[ChunkId]) -> None:
        self._check()
        for chunk in chunks:
            self.files.pop(chunk, None)

    async def list_chunks(self, partition: int | None = None) -> list[ChunkId]:
        self._check()
        return sorted(
            chunk
            for chunk in self.files
            if partition is None or partition_of(chunk.run) == partition
        )

    async def close(self) -> None:
        return None

    def damage(self, chunk: ChunkId, offset: int = chunk_file.HEADER_BYTES) -> None:
        """Flips a bit."""
        self.files[chunk][offset] ^= 1


class ScriptedPool:
    """The nodes of a test; a node of another incarnation than asked for does not serve."""

    def __init__(self, nodes: Sequence[ScriptedNode]):
        self.nodes = {node.name: node for node in nodes}

    async def get(self, name: str, incarnation: int) -> ScriptedNode:
        node = self.nodes[name]
        if node.incarnation != incarnation:
            raise NodeDown(f"node {name} is another incarnation", node=name)
        return node


class YieldingStore:
    """A store each call of which suspends before it does its work and after it has."""

    def __init__(self, store: Store):
        self._store = store

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if name in ("watch", "limits"):
            return method

        async def yielding(*args: Any, **options: Any) -> Any:
            await asyncio.sleep(0)
            result = await method(*args, **options)
            if name != "snapshot":
                await asyncio.sleep(0)
            return result

        return yielding


class Fixture:
    """`core` and what it is made of."""

    def __init__(
        self, core: FileCore, store: Store, env: Env, pool: ScriptedPool, session: Session,
        locks: SlotService,
    ):  # fmt: skip
        self.core = core
        self.store = store
        self.env = env
        self.pool = pool
        self.session = session
        self.locks = locks

    @property
    def nodes(self) -> list[ScriptedNode]:
        return list(self.pool.nodes.values())

    async def keys(self, prefix: bytes) -> list[bytes]:
        snapshot = await self.store.snapshot()
        try:
            found = await snapshot.range(prefix, prefix[:-1] + bytes([prefix[-1] + 1]))
        finally:
            await snapshot.close()
        return [key for key, _ in found]

    async def replace_node(self, name: str, *, wipe: bool = True) -> None:
        """The node comes back under a new incarnation: its copies do not count any more."""
        node = self.pool.nodes[name]
        node.incarnation += 1
        if wipe:
            node.files.clear()
        puts = partition_puts(self.nodes)
        await self.store.commit(puts=puts)


async def until(condition: Callable[[], bool]) -> None:
    """Lets everybody else run until `condition` holds."""
    for _ in range(100_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("the awaited condition never came true")


def partition_puts(nodes: Sequence[ScriptedNode]) -> list[Put]:
    tables: list[Partition] = []
    for partition in range(PARTITIONS):
        turned = [nodes[(partition + i) % len(nodes)] for i in range(len(nodes))]
        tables.append(Partition(tuple(Holder(node.name, node.incarnation) for node in turned)))
    size = keyspace.PARTITIONS_PER_PAGE
    return [
        Put(keyspace.partition_page_key(first), records.encode_page(tables[first : first + size]))
        for first in range(0, PARTITIONS, size)
    ]


@contextlib.asynccontextmanager
async def file_system(
    *, nodes: int = 3, replicas: int = 3, yielding: bool = False
) -> AsyncIterator[Fixture]:
    env = real_env()
    open_store = open_memory_store if engine == "memory" else etcd_opener(engine)
    store: Any = await open_store(env.random_bytes(8).hex(), env, create=True)
    if yielding:
        store = YieldingStore(store)
    made = [ScriptedNode(f"n{i}") for i in range(nodes)]
    pool = ScriptedPool(made)
    cluster = ClusterRecord(b"c" * 16, replicas, CHUNK, 0.0)
    await store.commit(
        puts=[
            Put(keyspace.CLUSTER, records.encode(cluster)),
            *(
                Put(keyspace.node_key(n.name.encode()), records.encode(NodeRecord(n.name, 1)))
                for n in made
            ),
            *partition_puts(made),
            *metadata.first_records(0, 0, 0),
        ]
    )
    session = Session(store, env, ttl_s=5.0)
    locks = SlotService(store, env, session)
    core = FileCore(store, env, session, pool, locks, cluster)
    fixture = Fixture(core, store, env, pool, session, locks)
    try:
        yield fixture
    finally:
        await core.close()
        await session.close()
        await store.close()

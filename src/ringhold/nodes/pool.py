"""The storage nodes of a cluster by name, as the store knows them, opened when first asked for.

Guaranteed: `get` gives a node only for the incarnation that the store names at some time during
the call, and that node refuses service (NodeDown) unless its directory carries the same. A node
that cannot be reached is looked up again, since its daemon may have come back at another address.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass

import msgspec

from ringhold.env import Env
from ringhold.errors import Closed, Corrupt, NodeDown
from ringhold.nodes.base import Identity, Node
from ringhold.nodes.client import RemoteNode
from ringhold.nodes.directory import DirectoryNode
from ringhold.nodes.memory import MemoryNode, memory_files
from ringhold.nodes.records import NodeRecord, decode_node
from ringhold.store import keyspace
from ringhold.store.base import Store, prefix_end
from ringhold.types import decode_name, encode_name

LOOK_AGAIN_NS = 200_000_000
MEMORY = "memory://"


@dataclass(slots=True)
class _Opened:
    record: NodeRecord
    node: Node
    looked_ns: int

    def serves(self, record: NodeRecord) -> bool:
        """Whether `record` means the node that is open."""
        mine = self.record
        return (mine.incarnation, mine.path, mine.address) == (
            record.incarnation,
            record.path,
            record.address,
        )


def open_node(
    record: NodeRecord, cluster: bytes, env: Env, base_directory: str | None = None
) -> Node:
    """The node that `record` describes; nothing is touched before its first use."""
    expected = Identity(cluster, record.name, record.incarnation)
    if record.address is not None:
        return RemoteNode(record.address, record.name, env, expected=expected)
    if record.path is None:
        raise Corrupt(
            f"the record of node {record.name} has neither path nor address", what=record.name
        )
    if record.path.startswith(MEMORY):
        return MemoryNode(record.name, files=memory_files(record.path), expected=expected)
    path = os.path.join(base_directory or "", record.path)
    return DirectoryNode(path, record.name, env, expected=expected)


class NodePool:
    """Nodes belong to the pool: `close` closes them, nobody else does."""

    def __init__(self, store: Store, env: Env, cluster: bytes, base_directory: str | None = None):
        self._store = store
        self._env = env
        self._cluster = cluster
        self._base_directory = base_directory
        self._opened: dict[str, _Opened] = {}
        self._looking = asyncio.Lock()
        self._closed = False

    async def get(self, name: str, incarnation: int) -> Node:
        """The node `name` in its life `incarnation`.

        NodeDown when the store knows no such node or another incarnation. The node itself raises
        NodeDown where it is down or not the one expected.
        """
        known = self._current(name, incarnation)
        if known is None:
            async with self._looking:
                known = self._current(name, incarnation) or await self._look(name, incarnation)
        return known.node

    def _current(self, name: str, incarnation: int) -> _Opened | None:
        """What is open under that name, unless the store should be asked again."""
        if self._closed:
            raise Closed("the cluster was closed")
        known = self._opened.get(name)
        if known is None or known.record.incarnation != incarnation:
            return None
        down = isinstance(known.node, RemoteNode) and known.node.is_down
        if down and self._env.clock.monotonic_ns() - known.looked_ns > LOOK_AGAIN_NS:
            return None
        return known

    async def _look(self, name: str, incarnation: int) -> _Opened:
        record = await self.record(name)
        if record is None:
            raise NodeDown(f"node {name} is not one of this cluster", node=name)
        if record.incarnation != incarnation:
            raise NodeDown(
                f"node {name} is at incarnation {record.incarnation}, not {incarnation}: it was "
                "replaced",
                node=name,
            )
        now = self._env.clock.monotonic_ns()
        known = self._opened.get(name)
        if known is not None and known.serves(record):
            known.looked_ns = now
            return known
        node = open_node(record, self._cluster, self._env, self._base_directory)
        opened = self._opened[name] = _Opened(record, node, now)
        if known is not None:
            await known.node.close()
        return opened

    async def record(self, name: str) -> NodeRecord | None:
        """What the store says of `name` now."""
        snapshot = await self._store.snapshot()
        try:
            entry = await snapshot.get(keyspace.node_key(encode_name(name, "node name")))
        finally:
            await snapshot.close()
        return None if entry is None else _decode(name, entry.value)

    async def records(self) -> list[NodeRecord]:
        """All nodes of the cluster, by name."""
        snapshot = await self._store.snapshot()
        try:
            found = await snapshot.range(keyspace.NODE, prefix_end(keyspace.NODE))
        finally:
            await snapshot.close()
        return [
            _decode(decode_name(key[len(keyspace.NODE) :]), entry.value) for key, entry in found
        ]

    async def names(self) -> list[str]:
        return [record.name for record in await self.records()]

    async def close(self) -> None:
        self._closed = True
        opened, self._opened = self._opened, {}
        async with asyncio.TaskGroup() as closing:
            for one in opened.values():
                closing.create_task(one.node.close())


def _decode(name: str, value: bytes) -> NodeRecord:
    try:
        return decode_node(value)
    except msgspec.MsgspecError as error:
        raise Corrupt(f"the record of node {name} cannot be read: {error}", what=name) from error

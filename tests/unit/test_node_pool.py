"""Goal: the pool opens the node that the store names, in the life that the caller means, and
follows it to another address or incarnation.

Method: records are written to a store in memory; nodes are in memory, in directories, or nowhere.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ringhold.core import digest
from ringhold.env import real_env
from ringhold.errors import Closed, Corrupt, NodeDown
from ringhold.nodes.base import ChunkId, Identity
from ringhold.nodes.client import RemoteNode
from ringhold.nodes.directory import DirectoryNode
from ringhold.nodes.memory import forget_memory_files
from ringhold.nodes.pool import NodePool
from ringhold.nodes.records import NodeRecord, encode
from ringhold.store import keyspace
from ringhold.store.base import Put, Store
from ringhold.store.memory import open_memory_store

CLUSTER = b"C" * 16
CHUNK = ChunkId(bytes(16), 0)


async def write(store: Store, record: NodeRecord) -> None:
    await store.commit(puts=[Put(keyspace.node_key(record.name.encode()), encode(record))])


def test_nodes_are_opened_where_their_records_say(tmp_path: Path) -> None:
    async def main() -> None:
        store = await open_memory_store(f"pool-{tmp_path}", real_env(), create=True)
        pool = NodePool(store, real_env(), CLUSTER, str(tmp_path))
        assert await pool.names() == []
        await write(store, NodeRecord("here", 1, path="nodes/here"))
        await write(store, NodeRecord("there", 1, path=str(tmp_path / "there")))
        await write(store, NodeRecord("far", 1, address="127.0.0.1:1"))
        await write(store, NodeRecord("ram", 1, path="memory://pool/ram"))
        assert await pool.names() == ["far", "here", "ram", "there"]
        (tmp_path / "nodes").mkdir()
        for name, path in (("here", "nodes/here"), ("there", "there")):
            node = await pool.get(name, 1)
            assert isinstance(node, DirectoryNode)
            assert node.path == str(tmp_path / path)
            assert await pool.get(name, 1) is node
        for name in ("here", "ram"):
            node = await pool.get(name, 1)
            with pytest.raises(NodeDown):
                await node.put(CHUNK, b"x", digest(b"x"))
            await node.adopt(Identity(CLUSTER, name, 1))
            await node.put(CHUNK, b"x", digest(b"x"))
        assert isinstance(await pool.get("far", 1), RemoteNode)
        await pool.close()
        again = NodePool(store, real_env(), CLUSTER, str(tmp_path))
        assert await (await again.get("ram", 1)).has([CHUNK]) == [True]
        await again.close()
        with pytest.raises(Closed):
            await pool.get("here", 1)
        await store.close()

    try:
        asyncio.run(main())
    finally:
        forget_memory_files("memory://pool/ram")


def test_unknown_nodes_and_lives_are_down(tmp_path: Path) -> None:
    async def main() -> None:
        store = await open_memory_store(f"pool-{tmp_path}", real_env(), create=True)
        pool = NodePool(store, real_env(), CLUSTER, str(tmp_path))
        with pytest.raises(NodeDown, match="not one of this cluster") as caught:
            await pool.get("n1", 1)
        assert caught.value.node == "n1"
        await write(store, NodeRecord("n1", 1, path="old"))
        first = await pool.get("n1", 1)
        await first.adopt(Identity(CLUSTER, "n1", 1))
        with pytest.raises(NodeDown, match="incarnation 1, not 2"):
            await pool.get("n1", 2)
        await write(store, NodeRecord("n1", 2, path="new"))
        second = await pool.get("n1", 2)
        assert second is not first
        with pytest.raises(NodeDown, match="incarnation 2, not 1"):
            await pool.get("n1", 1)
        with pytest.raises(Closed):
            await first.has([])
        await write(store, NodeRecord("n2", 1))
        with pytest.raises(Corrupt, match="neither path nor address"):
            await pool.get("n2", 1)
        await store.commit(puts=[Put(keyspace.node_key(b"n3"), b"\xc1")])
        with pytest.raises(Corrupt, match="n3"):
            await pool.get("n3", 1)
        await pool.close()
        await store.close()

    asyncio.run(main())


def test_a_node_that_is_down_is_followed_to_its_new_place(tmp_path: Path) -> None:
    async def main() -> None:
        store = await open_memory_store(f"pool-{tmp_path}", real_env(), create=True)
        pool = NodePool(store, real_env(), CLUSTER, str(tmp_path))
        await write(store, NodeRecord("n1", 1, address="127.0.0.1:1"))
        gone = await pool.get("n1", 1)
        with pytest.raises(NodeDown):
            await gone.has([CHUNK])
        await write(store, NodeRecord("n1", 1, path="found"))
        found = gone
        async with asyncio.timeout(10):
            while found is gone:
                await asyncio.sleep(0.01)
                found = await pool.get("n1", 1)
        await found.adopt(Identity(CLUSTER, "n1", 1))
        assert await found.has([CHUNK]) == [False]
        await pool.close()
        await store.close()

    asyncio.run(main())

"""What upkeep looks at: records by the page, the partition table, what lies on the nodes."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from ringhold.errors import RingholdError
from ringhold.files import records
from ringhold.files.place import ChunkRef, Placement, chunk_ref
from ringhold.files.records import RunRecord
from ringhold.files.stored import decoded
from ringhold.files.tasks import for_each
from ringhold.nodes import records as node_records
from ringhold.nodes.base import ChunkId, Node
from ringhold.nodes.records import Holder, PartitionRecord
from ringhold.store import keyspace
from ringhold.store.base import Snapshot, Store, prefix_end
from ringhold.types import Entry

logger = logging.getLogger("ringhold")

Progress = Callable[[int, int], object]
"""Called with (done, total); on the cluster's loop, so it must not wait."""

PAGE = 1000
NODES_AT_ONCE = 8


def no_progress(done: int, total: int) -> None:
    return None


async def entries(
    snapshot: Snapshot, prefix: bytes, *, start: bytes | None = None
) -> AsyncIterator[tuple[bytes, Entry]]:
    """All entries below `prefix` at one revision, read by the page."""
    position, end = start or prefix, prefix_end(prefix)
    while True:
        page = await snapshot.range(position, end, limit=PAGE)
        for key, entry in page:
            yield key, entry
        if len(page) < PAGE:
            return
        position = page[-1][0] + b"\0"


async def pages(store: Store, prefix: bytes) -> AsyncIterator[list[tuple[bytes, Entry]]]:
    """The entries below `prefix` by the page, each page at a revision of its own: for walks that
    take longer than a snapshot lives."""
    position, end = prefix, prefix_end(prefix)
    while True:
        snapshot = await store.snapshot()
        try:
            page = await snapshot.range(position, end, limit=PAGE)
        finally:
            await snapshot.close()
        if page:
            yield page
        if len(page) < PAGE:
            return
        position = page[-1][0] + b"\0"


async def read_tables(snapshot: Snapshot) -> dict[int, PartitionRecord]:
    """Every partition's record."""
    tables: dict[int, PartitionRecord] = {}
    async for key, entry in entries(snapshot, keyspace.PARTITION):
        partition = int.from_bytes(key[len(keyspace.PARTITION) :], "big")
        tables[partition] = decoded(node_records.decode_partition, key, entry.value)
    return tables


async def tables_now(store: Store) -> dict[int, PartitionRecord]:
    snapshot = await store.snapshot()
    try:
        return await read_tables(snapshot)
    finally:
        await snapshot.close()


def holders_of(tables: dict[int, PartitionRecord]) -> list[Holder]:
    """Every node that holds a partition, by name."""
    found = {holder for table in tables.values() for holder in table.holders}
    return sorted(found, key=lambda holder: (holder.name, holder.incarnation))


@dataclass(slots=True)
class Inventory:
    """Which chunks lie on which nodes, by name alone; `unreachable` nodes did not say."""

    chunks: dict[Holder, set[ChunkId]] = field(default_factory=dict)
    unreachable: dict[Holder, str] = field(default_factory=dict)

    def has(self, holder: Holder, chunk: ChunkId) -> bool:
        return chunk in self.chunks.get(holder, ())


async def take_inventory(placement: Placement, holders: Sequence[Holder]) -> Inventory:
    inventory = Inventory()

    async def ask(holder: Holder) -> None:
        try:
            node: Node = await placement.node(holder)
            inventory.chunks[holder] = set(await node.list_chunks())
        except (RingholdError, OSError) as error:
            logger.warning("node %s does not list its chunks: %s", holder.name, error)
            inventory.unreachable[holder] = str(error)

    await for_each(holders, ask, at_once=NODES_AT_ONCE)
    return inventory


def chunks_of(run: bytes, record: RunRecord) -> list[ChunkRef]:
    return [chunk_ref(run, number, record) for number in range(len(record.chunks))]


async def live_runs(store: Store) -> AsyncIterator[tuple[bytes, RunRecord]]:
    """Every run that is not being deleted, while others go on writing and deleting."""
    async for page in pages(store, keyspace.RUN):
        for key, entry in page:
            record = decoded(records.decode_run, key, entry.value)
            if not record.dead:
                yield key[len(keyspace.RUN) :], record

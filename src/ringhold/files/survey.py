"""What upkeep looks at: records by the page, the partition table, what lies on the nodes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from ringhold.errors import ChecksumMismatch, Corrupt, RingholdError
from ringhold.files import records
from ringhold.files.place import ChunkRef, Placement, chunk_ref
from ringhold.files.records import RunRecord
from ringhold.files.stored import decoded
from ringhold.files.tasks import for_each
from ringhold.nodes import records as node_records
from ringhold.nodes.base import ChunkId, ChunkState, Node
from ringhold.nodes.chunk_file import verify_part
from ringhold.nodes.records import Holder, Partition
from ringhold.store import keyspace
from ringhold.store.base import KEY_BYTES_MAX, Snapshot, Store, prefix_end
from ringhold.types import Entry

logger = logging.getLogger("ringhold")

Progress = Callable[[int, int], object]
"""Called with (done, total); on the cluster's loop, so it must not wait."""

Damaged = Callable[[bytes, ChecksumMismatch], object]
"""Called with the key of an entry that cannot be read."""

PAGE = 1000
CHUNKS_PER_REQUEST = 16
NODES_AT_ONCE = 8


def no_progress(done: int, total: int) -> None:
    return None


async def entries(
    snapshot: Snapshot, prefix: bytes, *, damaged: Damaged | None = None
) -> AsyncIterator[tuple[bytes, Entry]]:
    """All entries below `prefix` at one revision, read by the page.

    Those whose stored bytes do not match their checksum are given to `damaged` and left out;
    ChecksumMismatch without it.
    """
    position, end, limit = prefix, prefix_end(prefix), PAGE
    while True:
        try:
            page = await snapshot.range(position, end, limit=limit)
        except ChecksumMismatch as error:
            if damaged is None:
                raise
            # Page by page up to the bad entry, which comes first in the end.
            if limit > 1:
                limit = max(1, limit // 8)
                continue
            key = await _first_unreadable(snapshot, position, error)
            damaged(key, error)
            position, limit = key + b"\0", PAGE
            continue
        for key, entry in page:
            yield key, entry
        # A page may be read without ever giving up the loop: see `store.paging`.
        await asyncio.sleep(0)
        if len(page) < limit:
            return
        position = page[-1][0] + b"\0"


async def _first_unreadable(snapshot: Snapshot, start: bytes, error: ChecksumMismatch) -> bytes:
    """The key of the first entry from `start` on, which cannot be read.

    Nothing but reading tells it: an end of the range above the key fails and one that is not
    does not, which gives the key byte by byte.
    """

    async def is_below(end: bytes) -> bool:
        try:
            await snapshot.range(start, end, limit=1)
        except ChecksumMismatch:
            return True
        return False

    key = start[:1]
    while not await is_below(key + b"\0"):
        if len(key) > KEY_BYTES_MAX:
            raise error
        low, high = 0, 255
        while low < high:
            middle = (low + high + 1) // 2
            if await is_below(key + bytes([middle])):
                high = middle - 1
            else:
                low = middle
        key += bytes([low])
    return key


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


async def read_tables(snapshot: Snapshot) -> dict[int, Partition]:
    """Every partition."""
    tables: dict[int, Partition] = {}
    async for key, entry in entries(snapshot, keyspace.PARTITION_PAGE):
        tables.update(numbered(key, decoded(node_records.decode_page, key, entry.value)))
    return tables


def numbered(key: bytes, page: Sequence[Partition]) -> dict[int, Partition]:
    """The partitions of the page under `key` by their numbers."""
    first = key[len(keyspace.PARTITION_PAGE)] * keyspace.PARTITIONS_PER_PAGE
    return dict(enumerate(page, first))


async def tables_now(store: Store) -> dict[int, Partition]:
    snapshot = await store.snapshot()
    try:
        return await read_tables(snapshot)
    finally:
        await snapshot.close()


def holders_of(tables: dict[int, Partition]) -> list[Holder]:
    """Every node that holds a partition, by name."""
    found = {holder for table in tables.values() for holder in table.holders}
    return sorted(found, key=by_name)


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


async def states_of(node: Node, refs: Sequence[ChunkRef]) -> list[ChunkState]:
    """What `node` has of `refs`, every byte read where it lies and compared with the manifest."""
    states = await node.verify([ref.chunk for ref in refs])
    return [
        await _against_manifest(node, ref, state) for ref, state in zip(refs, states, strict=True)
    ]


async def _against_manifest(node: Node, ref: ChunkRef, state: ChunkState) -> ChunkState:
    """A file that is whole in itself may still be the wrong one."""
    if state is not ChunkState.GOOD:
        return state
    try:
        verify_part(await node.get(ref.chunk, 0, 0), ref.chunk, ref.digest, ref.length)
    except FileNotFoundError:
        return ChunkState.MISSING
    except Corrupt as error:
        logger.warning(
            "chunk %s on %s is not the one of the manifest: %s", ref.chunk, node.name, error
        )
        return ChunkState.DAMAGED
    return state


def due_chunks(
    runs: Sequence[tuple[bytes, RunRecord]], tables: dict[int, Partition]
) -> dict[Holder, list[ChunkRef]]:
    """Which chunks of `runs` should lie on which node; the nodes by name."""
    due: dict[Holder, list[ChunkRef]] = {}
    for run, record in runs:
        table = tables.get(record.partition)
        if table is None:
            continue
        for ref in chunks_of(run, record):
            for holder in table.for_chunk(ref.chunk.number, record.replicas):
                due.setdefault(holder, []).append(ref)
    return {holder: due[holder] for holder in sorted(due, key=by_name)}


def by_name(holder: Holder) -> tuple[str, int]:
    return holder.name, holder.incarnation


def chunks_of(run: bytes, record: RunRecord) -> list[ChunkRef]:
    return [chunk_ref(run, number, record) for number in range(len(record.chunks))]


async def live_runs(store: Store) -> AsyncIterator[tuple[bytes, RunRecord]]:
    """Every run that is not being deleted, while others go on writing and deleting."""
    async for page in pages(store, keyspace.RUN):
        for key, entry in page:
            record = decoded(records.decode_run, key, entry.value)
            if not record.dead:
                yield key[len(keyspace.RUN) :], record

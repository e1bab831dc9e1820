"""The nodes of an open cluster: what is known of them, and how one is replaced."""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from dataclasses import dataclass

import msgspec

from ringhold.assembly.location import Location
from ringhold.assembly.plan import check_spec, node_record
from ringhold.env import Env
from ringhold.errors import InvalidInput, NodeDown, RingholdError
from ringhold.files.stored import decoded
from ringhold.files.survey import read_tables
from ringhold.nodes import records
from ringhold.nodes.base import PARTITIONS, Identity, Node
from ringhold.nodes.directory import DirectoryNode
from ringhold.nodes.pool import open_node
from ringhold.nodes.records import ClusterRecord, Holder, NodeRecord, Partition
from ringhold.store.base import Snapshot, Store, prefix_end
from ringhold.store.batches import BYTES_MAX
from ringhold.store.keyspace import (
    NODE,
    PARTITIONS_PER_PAGE,
    REPAIR,
    SESSION,
    node_key,
    partition_page_key,
)
from ringhold.store.view import View, transact
from ringhold.types import NodeSpec

PROBE_S = 2.0
PAGES_BYTES_MAX = BYTES_MAX - (64 << 10)
"""The rest is for the node's record."""


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """A storage node.

    name, zone, weight: as given when it was made
    path: its directory on this host, or None
    address: its daemon's "host:port", or None
    incarnation: 1, and one more for every replacement
    partitions: how many of the 4096 partitions it holds a copy of
    up: whether it serves under the identity it should have
    error: why it does not, else ""
    """

    name: str
    zone: str | None
    weight: float
    path: str | None
    address: str | None
    incarnation: int
    partitions: int
    up: bool
    error: str


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """A cluster at one revision.

    url: where it lies, without a password
    identity: 32 hexadecimal digits, drawn when it was made
    created: seconds since 1970
    replicas: copies of every chunk
    chunk_size: bytes
    revision: of the store
    sessions: open ones, this one included
    repairs: runs of chunks known to lack a copy
    nodes: sorted by name
    """

    url: str
    identity: str
    created: float
    replicas: int
    chunk_size: int
    revision: int
    sessions: int
    repairs: int
    nodes: tuple[NodeStatus, ...]


class Administration:
    """What ``cluster.nodes()``, ``.status()`` and ``.replace_node()`` do."""

    def __init__(self, location: Location, store: Store, env: Env, record: ClusterRecord):
        self._location = location
        self._store = store
        self._env = env
        self._record = record

    async def nodes(self) -> tuple[NodeSpec, ...]:
        snapshot = await self._store.snapshot()
        try:
            found = await _node_records(snapshot)
        finally:
            await snapshot.close()
        return tuple(
            NodeSpec(
                record.name,
                self._location.node_path(record.path),
                record.address,
                record.weight,
                record.zone,
            )
            for record in found
        )

    async def status(self) -> ClusterStatus:
        snapshot = await self._store.snapshot()
        try:
            found = await _node_records(snapshot)
            partitions: Counter[str] = Counter()
            for table in (await read_tables(snapshot)).values():
                partitions.update(holder.name for holder in table.holders)
            sessions = await snapshot.range(SESSION, prefix_end(SESSION))
            repairs = await snapshot.range(REPAIR, prefix_end(REPAIR))
        finally:
            await snapshot.close()
        async with asyncio.TaskGroup() as group:
            probes = [group.create_task(self._probe(record)) for record in found]
        errors = [probe.result() for probe in probes]
        return ClusterStatus(
            url=self._location.url,
            identity=self._record.identity.hex(),
            created=self._record.created_s,
            replicas=self._record.replicas,
            chunk_size=self._record.chunk_bytes,
            revision=snapshot.revision,
            sessions=len(sessions),
            repairs=len(repairs),
            nodes=tuple(
                NodeStatus(
                    name=record.name,
                    zone=record.zone,
                    weight=record.weight,
                    path=self._location.node_path(record.path),
                    address=record.address,
                    incarnation=record.incarnation,
                    partitions=partitions[record.name],
                    up=not error,
                    error=error,
                )
                for record, error in zip(found, errors, strict=True)
            ),
        )

    def _open_node(self, record: NodeRecord) -> Node:
        return open_node(record, self._record.identity, self._env, self._location.directory)

    async def _probe(self, record: NodeRecord) -> str:
        """Why the node does not serve; "" when it does."""
        node = self._open_node(record)
        wanted = Identity(self._record.identity, record.name, record.incarnation)
        try:
            async with asyncio.timeout(PROBE_S):
                found = await node.identity()
                if found == wanted and await _has_failed(node):
                    return "an fsync failed: fs.scrub() verifies it and lets it serve again"
        except TimeoutError:
            return f"no answer within {PROBE_S} s"
        except (RingholdError, OSError) as error:
            return str(error)
        finally:
            await node.close()
        if found is None:
            return "no cluster has adopted it"
        return "" if found == wanted else f"it is {found}, not {wanted}"

    async def replace_node(self, name: str, path: str | None, address: str | None) -> None:
        """Brings an empty directory or daemon into service in place of the node `name`.

        It gets a new incarnation in every partition it holds and in the node's record, so copies
        that the old one acknowledged do not count any more. A node that still is the present
        incarnation, at another place or address, keeps it and its chunks.

        One commit, unless names of nodes are so long that the pages of the partitions do not fit
        into one. Then the record comes last: until it does neither incarnation serves, and the
        same call repeated goes on where it stopped.
        """
        before = await self._node_record(name)
        given = NodeSpec(name, path, address, before.weight, before.zone)
        after = self._successor(before, check_spec(self._location, given))
        if await self._is_moved(before, after):
            await self._move(before, after)
            return
        node = self._open_node(after)
        try:
            await node.adopt(Identity(self._record.identity, name, after.incarnation))
        finally:
            await node.close()

        first = 0
        while first < PARTITIONS:
            rewrite = functools.partial(_rewrite_pages, before=before, after=after, first=first)
            first = await transact(self._store, self._env, rewrite)

    async def _is_moved(self, before: NodeRecord, after: NodeRecord) -> bool:
        """Whether what is at the place of `after` is the node `before` itself."""
        if (before.path, before.address) == (after.path, after.address):
            return False
        node = self._open_node(after)
        try:
            found = await node.identity()
        except NodeDown:
            return False
        finally:
            await node.close()
        return found == Identity(self._record.identity, before.name, before.incarnation)

    async def _move(self, before: NodeRecord, after: NodeRecord) -> None:
        moved = msgspec.structs.replace(before, path=after.path, address=after.address)

        async def rewrite(view: View) -> None:
            await _require_unchanged(view, before)
            view.put(node_key(before.name.encode()), records.encode(moved))

        await transact(self._store, self._env, rewrite)

    def _successor(self, before: NodeRecord, given: NodeSpec) -> NodeRecord:
        incarnation = before.incarnation + 1
        if given.path is None and given.address is None:
            return NodeRecord(
                before.name,
                incarnation,
                before.path,
                before.address,
                before.weight,
                before.zone,
            )
        return node_record(self._location, given, incarnation)

    async def _node_record(self, name: str) -> NodeRecord:
        if not isinstance(name, str):
            raise TypeError(f"a node's name must be str, not {type(name).__name__}")
        snapshot = await self._store.snapshot()
        try:
            found = {record.name: record for record in await _node_records(snapshot)}
        finally:
            await snapshot.close()
        if name not in found:
            raise InvalidInput(f"there is no node {name!r}; there are {', '.join(found)}")
        return found[name]


async def _node_records(snapshot: Snapshot) -> list[NodeRecord]:
    found = await snapshot.range(NODE, prefix_end(NODE))
    return sorted(
        (records.decode_node(entry.value) for _, entry in found), key=lambda record: record.name
    )


async def _has_failed(node: Node) -> bool:
    return isinstance(node, DirectoryNode) and await node.is_marked_failed()


async def _rewrite_pages(view: View, *, before: NodeRecord, after: NodeRecord, first: int) -> int:
    """Gives the node its new incarnation in the pages from that of partition `first` on, as many
    as fit into a commit, and with the last one in its own record; where to go on."""
    await _require_unchanged(view, before)
    size = 0
    numbers = range(first, PARTITIONS, PARTITIONS_PER_PAGE)
    keys = [partition_page_key(partition) for partition in numbers]
    for partition, key, found in zip(numbers, keys, await view.get_many(keys), strict=True):
        if found is None:
            continue
        page = decoded(records.decode_page, key, found.value)
        renewed = [_renewed(table, before, after) for table in page]
        if renewed == list(page):
            continue
        value = records.encode_page(renewed)
        size += len(value)
        if size > PAGES_BYTES_MAX and size > len(value):
            return partition
        view.put(key, value)
    view.put(node_key(after.name.encode()), records.encode(after))
    return PARTITIONS


def _renewed(table: Partition, before: NodeRecord, after: NodeRecord) -> Partition:
    return Partition(
        tuple(
            Holder(after.name, after.incarnation) if holder.name == before.name else holder
            for holder in table.holders
        )
    )


async def _require_unchanged(view: View, before: NodeRecord) -> None:
    entry = await view.get(node_key(before.name.encode()))
    if entry is None or records.decode_node(entry.value) != before:
        raise InvalidInput(f"node {before.name!r} was replaced by somebody else meanwhile")

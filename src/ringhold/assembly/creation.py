"""How a cluster is made: everything that can fail first, last the commit that makes it one.

Guarantees: a cluster whose creation did not come to its end is never opened, and creating it
again goes on where the first one stopped. Of several creators at once one makes the cluster.

Key M written in the last commit is what makes a store a cluster. Before it there is a draft with
the cluster's identity, since nodes adopted under one identity refuse another, and with the
creator's session, by which others see whether it still lives.
"""

from __future__ import annotations

import errno
import logging
import os

import msgspec

from ringhold.assembly.location import Found, Location, look, make_directory
from ringhold.assembly.plan import Plan
from ringhold.env import Env
from ringhold.errors import Conflict, InvalidInput
from ringhold.files.metadata import first_records
from ringhold.files.records import INLINE_BYTES_MAX
from ringhold.locks.session import Session
from ringhold.nodes import records
from ringhold.nodes.base import PARTITIONS, Identity
from ringhold.nodes.pool import open_node
from ringhold.nodes.records import ClusterRecord, NodeRecord
from ringhold.store.base import Absent, Compare, Put, Store, Unchanged, prefix_end
from ringhold.store.batches import CHANGES_MAX, in_batches
from ringhold.store.etcd import EtcdAddress
from ringhold.store.keyspace import (
    CLUSTER,
    NODE,
    PARTITION_PAGE,
    PARTITIONS_PER_PAGE,
    node_key,
    partition_page_key,
    session_key,
)
from ringhold.store.memory import open_memory_store
from ringhold.store.repeat import commit_sure
from ringhold.store.sqlite import open_sqlite_store

logger = logging.getLogger("ringhold")

IDENTITY_BYTES = 16
WAIT_POLL_S = 0.02
WAIT_FOR_STORE_S = 2.0
DURABILITIES = ("full", "process", "memory")
DRAFT = CLUSTER + b"draft"


class DraftRecord(msgspec.Struct, frozen=True, array_like=True):
    """Key M…draft: a cluster that `session` is making."""

    identity: bytes
    session: bytes


decode_draft = msgspec.msgpack.Decoder(DraftRecord).decode


def is_synced(location: Location, durability: str | None) -> bool:
    """Whether each commit waits for the disk, as `durability` asks: see `ringhold.open`.

    TypeError, or InvalidInput for what cannot be had at `location`.
    """
    if durability is None:
        return not location.memory
    if not isinstance(durability, str):
        raise TypeError(f"durability must be str or None, not {type(durability).__name__}")
    if durability not in DURABILITIES:
        levels = ", ".join(map(repr, DURABILITIES))
        raise InvalidInput(f"durability must be one of {levels}, not {durability!r}")
    if location.etcd is not None and durability != "full":
        raise InvalidInput(
            f"durability {durability!r}: etcd answers a commit when most of its members have it on "
            "disk, and nothing less can be asked of it; 'full' is what a cluster in etcd has"
        )
    if location.memory and durability != "memory":
        raise InvalidInput(
            f"{location.url} is gone with its process, which is not durability {durability!r}: "
            "open a directory for that"
        )
    if location.directory is not None and durability == "memory":
        # A database that is never synced may be damaged by a power cut, and with it what other
        # openings made durable.
        raise InvalidInput(
            "a directory keeps what is committed to it: durability 'memory' is what memory://name "
            "has, and 'process' the fastest that a directory has"
        )
    return durability == "full"


async def open_store(location: Location, env: Env, *, create: bool, synced: bool) -> Store:
    if location.etcd is not None:
        return await _open_in_etcd(location.etcd, env, create=create)
    if location.directory is not None:
        return await open_sqlite_store(location.directory, env, create=create, synced=synced)
    return await open_memory_store(location.memory, env, create=create)


async def _open_in_etcd(address: EtcdAddress, env: Env, *, create: bool) -> Store:
    try:
        from ringhold.store.etcd import open_etcd_store
    except ModuleNotFoundError as error:
        if error.name != "grpc":
            raise
        raise InvalidInput(
            f"{address.url}: clusters in etcd need grpcio: pip install 'ringhold[etcd]'"
        ) from error
    try:
        return await open_etcd_store(address, env, create=create)
    except FileNotFoundError as error:
        if error.filename != address.url:
            raise  # About a certificate or a password.
        raise FileNotFoundError(
            errno.ENOENT,
            f"there is no such cluster in etcd: `ringhold init {address.url}` makes one, with "
            f"`--node NAME=PLACE` for files of more than {INLINE_BYTES_MAX} bytes",
            address.url,
        ) from error


async def cluster_record(store: Store) -> ClusterRecord | None:
    """The cluster in `store`, None when its creation has not come to its end."""
    snapshot = await store.snapshot()
    try:
        entry = await snapshot.get(CLUSTER)
    finally:
        await snapshot.close()
    return None if entry is None else records.decode_cluster(entry.value)


def exists(location: Location) -> FileExistsError:
    return FileExistsError(errno.EEXIST, "there is a cluster already", location.url)


async def create_store(location: Location, env: Env, synced: bool) -> Store:
    """The store of a cluster to be made, new or left by a creation that stopped halfway.

    FileExistsError when there is a cluster, or a directory with anything else in it.
    """
    if location.directory is not None:
        found = await look(env, location.directory)
        if found is Found.FOREIGN:
            raise FileExistsError(
                errno.EEXIST,
                "the directory is not empty and holds no cluster",
                location.directory,
            )
        if found is Found.MISSING:
            await make_directory(env, location.directory)
    try:
        return await open_store(location, env, create=True, synced=synced)
    except FileExistsError:
        store = await open_store(location, env, create=False, synced=synced)
    try:
        if await cluster_record(store) is not None:
            raise exists(location)
    except BaseException:
        await store.close()
        raise
    return store


async def make_cluster(
    location: Location, env: Env, store: Store, session: Session, plan: Plan
) -> ClusterRecord:
    """Makes `store` the store of a new cluster. FileExistsError when somebody else did."""
    draft, revision = await _draft(location, env, store, session)
    for record in plan.nodes:
        await _make_parent(location, env, record)
        node = open_node(record, draft.identity, env, location.directory)
        try:
            await node.adopt(Identity(draft.identity, record.name, record.incarnation))
        finally:
            await node.close()
    made = ClusterRecord(
        draft.identity, plan.replicas, plan.chunk_bytes, env.clock.wall(), records.FORMAT
    )
    mine: list[Compare] = [Absent(CLUSTER), Unchanged(DRAFT, revision)]
    # The file system's root belongs to whoever makes the cluster.
    last = [
        Put(CLUSTER, records.encode(made)),
        *first_records(int(made.created_s * 1e9), os.getuid(), os.getgid()),
    ]
    described = _describe(plan)
    left = [key for key in await _left_keys(store) if key not in described]
    *batches, final = in_batches(
        [*left, *described.values()], count_max=CHANGES_MAX - len(last) - 1
    )
    try:
        for puts, deletes in batches:
            await commit_sure(store, env, compares=mine, puts=puts, deletes=deletes)
        puts, deletes = final
        await commit_sure(store, env, compares=mine, puts=[*last, *puts], deletes=[DRAFT, *deletes])
    except Conflict:
        raise exists(location) from None
    return made


def _describe(plan: Plan) -> dict[bytes, Put]:
    """The records of the nodes and of the partitions, by their keys."""
    pages = range(0, PARTITIONS, PARTITIONS_PER_PAGE)
    puts = [Put(node_key(record.name.encode()), records.encode(record)) for record in plan.nodes]
    puts += [
        Put(
            partition_page_key(first),
            records.encode_page(plan.partitions[first : first + PARTITIONS_PER_PAGE]),
        )
        for first in pages
    ]
    return {put.key: put for put in puts}


async def _left_keys(store: Store) -> list[bytes]:
    """What a creation that did not come to its end wrote of nodes and partitions."""
    snapshot = await store.snapshot()
    try:
        found = await snapshot.range(NODE, prefix_end(NODE))
        found += await snapshot.range(PARTITION_PAGE, prefix_end(PARTITION_PAGE))
    finally:
        await snapshot.close()
    return [key for key, _ in found]


async def _make_parent(location: Location, env: Env, record: NodeRecord) -> None:
    """The folder of the nodes inside; one outside must have its parent, or a disk is missing."""
    if location.directory is None or record.path != location.node_inside(record.name):
        return
    try:
        await env.disk.mkdir(os.path.dirname(os.path.join(location.directory, record.path)))
    except FileExistsError:
        logger.debug("the folder of the nodes of %s is there already", location.url)
    fd = await env.disk.open(location.directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        await env.disk.fsync_dir(fd)
    finally:
        await env.disk.close(fd)


async def _draft(
    location: Location, env: Env, store: Store, session: Session
) -> tuple[DraftRecord, int]:
    """Claims the making of the cluster: the draft, and the revision it was claimed at."""
    state = await session.ensure()
    await store.expire_leases()
    snapshot = await store.snapshot()
    try:
        found = await snapshot.get(DRAFT)
        identity = env.random_bytes(IDENTITY_BYTES)
        if found is not None:
            before = decode_draft(found.value)
            if await snapshot.get(session_key(before.session)) is not None:
                raise FileExistsError(
                    errno.EEXIST, "another process is creating this cluster", location.url
                )
            identity = before.identity
            logger.info("taking up the creation of the cluster %s again", location.url)
    finally:
        await snapshot.close()
    draft = DraftRecord(identity, state.id)
    claimed = Absent(DRAFT) if found is None else Unchanged(DRAFT, found.revision)
    try:
        revision = await commit_sure(
            store,
            env,
            compares=[Absent(CLUSTER), claimed],
            puts=[Put(DRAFT, records.encode(draft))],
        )
    except Conflict:
        raise FileExistsError(
            errno.EEXIST, "another process is creating this cluster", location.url
        ) from None
    return draft, revision


async def open_existing(location: Location, env: Env, synced: bool) -> tuple[Store, ClusterRecord]:
    """The store of a cluster, and its record; waits for one that is being made right now.

    FileNotFoundError when there is none, or when its creation was never finished; InvalidInput
    when another version of Ringhold made it in another format.
    """
    store = await _wait_for_store(location, env, synced)
    try:
        record = await _wait_for_record(location, env, store)
        if record.format != records.FORMAT:
            raise InvalidInput(
                f"the cluster {location.url} has format version {record.format}; this Ringhold "
                f"reads version {records.FORMAT}"
            )
        return store, record
    except BaseException:
        await store.close()
        raise


async def _wait_for_store(location: Location, env: Env, synced: bool) -> Store:
    deadline_ns = env.clock.monotonic_ns() + int(WAIT_FOR_STORE_S * 1e9)
    while True:
        try:
            return await open_store(location, env, create=False, synced=synced)
        except FileNotFoundError:
            # Its directory is there: another process may be about to make the store.
            if location.directory is None or env.clock.monotonic_ns() >= deadline_ns:
                raise
        await env.sleep(WAIT_POLL_S)


async def _wait_for_record(location: Location, env: Env, store: Store) -> ClusterRecord:
    deadline_ns = env.clock.monotonic_ns() + int(WAIT_FOR_STORE_S * 1e9)
    while True:
        record = await cluster_record(store)
        if record is not None:
            return record
        await store.expire_leases()
        if env.clock.monotonic_ns() >= deadline_ns and not await _being_made(store):
            raise FileNotFoundError(
                errno.ENOENT,
                "the creation of this cluster was never finished; create it again to finish it",
                location.url,
            )
        await env.sleep(WAIT_POLL_S)


async def _being_made(store: Store) -> bool:
    snapshot = await store.snapshot()
    try:
        if await snapshot.get(CLUSTER) is not None:
            return True
        draft = await snapshot.get(DRAFT)
        if draft is None:
            return False
        return await snapshot.get(session_key(decode_draft(draft.value).session)) is not None
    finally:
        await snapshot.close()

"""Freeing what deletes left behind, and what writers that died left behind.

Deleted data goes in three steps, so that a crash between any two leaves nothing dangling and
nothing lost:

1. a commit removes extents and marks the runs that nobody else uses as dead;
2. the nodes delete the chunks;
3. when every holder has answered, a commit for each run removes its record; with the last one of
   the last extents the garbage record goes.

Of long files these steps are repeated, a few blocks at a time. Data that a live session is still
writing (see `staging`) is left alone.

A detached tree is taken apart level by level, each step one commit that leaves every inode
either in the tree or under a garbage record of its own.

Orphans are chunks no record names. A node lists its chunks *first*; then the session that made
the id and the run's record are read at one revision, and only if both are absent the chunk is
deleted. A run can be named only by a commit that compares its session alive, and ids are never
reused: so absent and absent is for ever. Read the other way round, a run that was written in
between would look like an orphan.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from ringhold.env import Env
from ringhold.errors import Closed, RingholdError
from ringhold.files import records
from ringhold.files.metadata import TREE_DATA_PREFIX
from ringhold.files.place import Placement
from ringhold.files.records import FileKind, GarbageRecord, RunRecord
from ringhold.files.stored import decoded
from ringhold.files.survey import (
    NODES_AT_ONCE,
    Progress,
    holders_of,
    no_progress,
    pages,
    tables_now,
)
from ringhold.files.tasks import for_each
from ringhold.nodes.base import ChunkId
from ringhold.nodes.records import Holder
from ringhold.store import keyspace
from ringhold.store.base import Store, prefix_end
from ringhold.store.view import View, transact

logger = logging.getLogger("ringhold")

SESSION_BYTES = 12
CHILDREN_PER_COMMIT_MAX = 256
"""As far as the store takes them in a commit: by 30 it takes twice as long, measured on SQLite."""

BLOCKS_PER_COMMIT = 30
RUNS_WAITING_MAX = 1000
"""How many dead runs a garbage record names at most, while nodes do not answer."""

RUNS_PER_LOOK = 500
RECORDS_AT_ONCE = 8


@dataclass(slots=True)
class GcReport:
    """What `gc` did. `waiting`: garbage records left for later, since a node did not answer."""

    trees: int = 0
    files: int = 0
    runs: int = 0
    chunks: int = 0
    bytes: int = 0
    orphans: int = 0
    waiting: int = 0
    unreachable: list[str] = field(default_factory=list)

    def _missed(self, holder: Holder) -> None:
        if holder.name not in self.unreachable:
            self.unreachable.append(holder.name)


class Collector:
    """One pass of garbage collection. Any number of processes may run one at once."""

    def __init__(
        self, store: Store, env: Env, placement: Placement, progress: Progress = no_progress
    ):
        self._store = store
        self._env = env
        self._placement = placement
        self._progress = progress
        self.report = GcReport()

    async def collect(self, grace_s: float) -> GcReport:
        """Frees what was deleted more than `grace_s` seconds ago, and all orphans."""
        now_ms = int(self._env.clock.wall() * 1000)
        until_ms = max(0, now_ms - int(grace_s * 1000)) + 1
        while trees := [key for key in await self._due(until_ms) if _is_tree(key)]:
            await for_each(trees, self._take_tree_apart, at_once=RECORDS_AT_ONCE)
        due = await self._due(until_ms)
        done = 0

        async def free(key: bytes) -> None:
            nonlocal done
            await self._free(key)
            done += 1
            self._progress(done, len(due))

        await for_each(due, free, at_once=RECORDS_AT_ONCE)
        await self._collect_orphans()
        return self.report

    async def _due(self, until_ms: int) -> list[bytes]:
        end = keyspace.GARBAGE + until_ms.to_bytes(8, "big")
        due: list[bytes] = []
        async for page in pages(self._store, keyspace.GARBAGE):
            due += [key for key, _ in page if key < end]
            if page[-1][0] >= end:
                break
        return due

    # -- detached trees -------------------------------------------------------------------

    async def _take_tree_apart(self, key: bytes) -> None:
        limits = self._store.limits
        # A child is two compares and up to three changes; the rest is for the directory.
        children = min((limits.compares - 8) // 2, (limits.changes - 8) // 3)
        step = functools.partial(
            _tree_step, key=key, children_max=max(1, min(children, CHILDREN_PER_COMMIT_MAX))
        )
        while await transact(self._store, self._env, step):
            continue
        self.report.trees += 1

    # -- data -----------------------------------------------------------------------------

    async def discard(self, mark: bytes) -> bool:
        """Frees what this process wrote under `mark` and will never make a file's; whether all
        of it is gone."""
        await self._free(mark, writing=True)
        return not self.report.waiting

    async def _free(self, key: bytes, *, writing: bool = False) -> None:
        release = functools.partial(_release_runs, key=key, writing=writing)
        tried: dict[bytes, bool] = {}
        found = False
        while True:
            garbage, more = await transact(self._store, self._env, release)
            if garbage is None:
                break
            found = True
            for run in garbage.runs:
                if run not in tried:
                    tried[run] = await self._free_run(key, run)
            left = sum(not gone for gone in tried.values())
            if not more or left > RUNS_WAITING_MAX:
                break
        self.report.files += found
        if not all(tried.values()):
            self.report.waiting += 1

    async def _free_run(self, garbage_key: bytes, run: bytes) -> bool:
        """Whether the run is gone for good; not, while a holder of it does not answer."""
        key = keyspace.run_key(run)
        snapshot = await self._store.snapshot()
        try:
            entry = await snapshot.get(key)
        finally:
            await snapshot.close()
        if entry is None:
            await transact(
                self._store, self._env, lambda view: _drop_from_garbage(view, garbage_key, run)
            )
            return True
        record = decoded(records.decode_run, key, entry.value)
        table, revision = await self._placement.table(record.partition, fresh=True)
        chunks = [ChunkId(run, number) for number in range(len(record.chunks))]
        answers = await for_each(
            table.holders, lambda holder: self._delete(holder, chunks), at_once=NODES_AT_ONCE
        )
        if not all(answers):
            return False
        done = await transact(
            self._store,
            self._env,
            lambda view: _forget_run(view, garbage_key, run, record.partition, revision),
        )
        if done:
            self.report.runs += 1
            self.report.bytes += sum(chunk.length for chunk in record.chunks)
        return done

    async def _delete(self, holder: Holder, chunks: Sequence[ChunkId]) -> bool:
        try:
            node = await self._placement.node(holder)
            await node.delete(chunks)
        except Closed:
            raise
        except (RingholdError, OSError) as error:
            logger.info("node %s does not delete: %s", holder.name, error)
            self.report._missed(holder)
            return False
        self.report.chunks += len(chunks)
        return True

    # -- orphans --------------------------------------------------------------------------

    async def _collect_orphans(self) -> None:
        await self._store.expire_leases()
        holders = holders_of(await tables_now(self._store))
        await for_each(holders, self._collect_orphans_of, at_once=NODES_AT_ONCE)

    async def _collect_orphans_of(self, holder: Holder) -> None:
        try:
            node = await self._placement.node(holder)
            listed = await node.list_chunks()
        except Closed:
            raise
        except (RingholdError, OSError) as error:
            logger.info("node %s does not list its chunks: %s", holder.name, error)
            self.report._missed(holder)
            return
        by_run: dict[bytes, list[ChunkId]] = {}
        for chunk in listed:
            by_run.setdefault(chunk.run, []).append(chunk)
        runs = list(by_run)
        for start in range(0, len(runs), RUNS_PER_LOOK):
            unnamed = await self._unnamed(runs[start : start + RUNS_PER_LOOK])
            chunks = [chunk for run in unnamed for chunk in by_run[run]]
            if chunks and await self._delete(holder, chunks):
                logger.info("deleted %d orphans on node %s", len(chunks), holder.name)
                self.report.orphans += len(chunks)

    async def _unnamed(self, runs: Sequence[bytes]) -> list[bytes]:
        """Those of `runs`, which were seen on a node before, that nothing will ever name."""
        snapshot = await self._store.snapshot()
        try:
            sessions = await snapshot.get_many(
                [keyspace.session_key(run[:SESSION_BYTES]) for run in runs]
            )
            named = await snapshot.get_many([keyspace.run_key(run) for run in runs])
        finally:
            await snapshot.close()
        return [
            run
            for run, session, record in zip(runs, sessions, named, strict=True)
            if session is None and record is None
        ]


def _is_tree(key: bytes) -> bool:
    return key[len(keyspace.GARBAGE) + 8 :].startswith(TREE_DATA_PREFIX)


async def _tree_step(view: View, *, key: bytes, children_max: int) -> bool:
    """Takes some children out of a detached directory, or the directory away when it has none;
    whether there is more to do."""
    found = await view.get(key)
    if found is None:
        return False
    garbage = decoded(records.decode_garbage, key, found.value)
    deleted_ms = int.from_bytes(key[1:9], "big")
    prefix = keyspace.entry_prefix(garbage.ino)
    children = await view.range(prefix, prefix_end(prefix), limit=children_max)
    inode_keys: list[bytes] = []
    named = []
    for entry_key, entry in children:
        child = decoded(records.decode_entry, entry_key, entry.value)
        named.append((entry_key, child))
        inode_keys.append(keyspace.inode_key(child.ino))
    inodes = await view.get_many(inode_keys)
    for (entry_key, child), inode_key, found in zip(named, inode_keys, inodes, strict=True):
        path = garbage.path + b"/" + entry_key[len(prefix) :]
        view.delete(entry_key)
        if child.kind is FileKind.DIRECTORY:
            data, size = TREE_DATA_PREFIX + child.ino.to_bytes(8, "big"), 0
        else:
            if found is None:
                continue
            inode = decoded(records.decode_inode, inode_key, found.value)
            if inode.links > 1:
                fewer = msgspec.structs.replace(inode, links=inode.links - 1)
                view.put(inode_key, records.encode(fewer))
                continue
            view.delete(inode_key)
            if inode.data is None:
                continue
            data, size = inode.data, inode.size
        below = GarbageRecord(child.ino, path, size)
        view.put(keyspace.garbage_key(deleted_ms, data), records.encode(below))
    if len(children) == children_max:
        return True
    view.delete(keyspace.inode_key(garbage.ino))
    view.delete(keyspace.directory_time_key(garbage.ino))
    view.delete(key)
    return False


async def _release_runs(
    view: View, *, key: bytes, writing: bool
) -> tuple[GarbageRecord | None, bool]:
    """Removes extents of the first blocks of deleted data and marks the runs nobody else uses as
    dead; the garbage record as it is then, and whether there are more blocks.

    None when it is gone, or the data still being written, unless by the caller (`writing`).
    """
    found = await view.get(key)
    if found is None:
        return None, False
    garbage = decoded(records.decode_garbage, key, found.value)
    if garbage.session and not writing:
        session = await view.get(keyspace.session_key(garbage.session))
        if session is not None:
            return None, False
    prefix = _extents_prefix(key)
    extents = await view.range(prefix, prefix_end(prefix), limit=BLOCKS_PER_COMMIT)
    more = len(extents) == BLOCKS_PER_COMMIT
    # A run lies in one block only, so each is counted once.
    used: dict[bytes, None] = {}
    for extents_key, entry in extents:
        record = decoded(records.decode_extents, extents_key, entry.value)
        used.update(dict.fromkeys(extent.run for extent in record.extents))
        view.delete(extents_key)
    run_keys = [keyspace.run_key(run) for run in used]
    dead: list[bytes] = []
    for run, run_key, found in zip(used, run_keys, await view.get_many(run_keys), strict=True):
        if found is None:
            continue
        counted = decoded(records.decode_run, run_key, found.value)
        references = counted.references - 1
        fewer = msgspec.structs.replace(counted, references=references, dead=references <= 0)
        view.put(run_key, records.encode(fewer))
        if fewer.dead:
            dead.append(run)
    garbage = msgspec.structs.replace(garbage, runs=(*garbage.runs, *dead))
    if not garbage.runs and not more:
        view.delete(key)
    elif extents:
        view.put(key, records.encode(garbage))
    return garbage, more


def _extents_prefix(garbage_key: bytes) -> bytes:
    return keyspace.extents_prefix(garbage_key[len(keyspace.GARBAGE) + 8 :])


async def _forget_run(
    view: View, garbage_key: bytes, run: bytes, partition: int, table_revision: int
) -> bool:
    """Removes a run whose chunks all holders have deleted, if these are still all holders."""
    page = await view.get(keyspace.partition_page_key(partition))
    if page is None or page.revision != table_revision:
        return False
    run_key = keyspace.run_key(run)
    entry = await view.get(run_key)
    if entry is not None:
        record: RunRecord = decoded(records.decode_run, run_key, entry.value)
        view.delete(run_key)
        keys = [keyspace.repair_key(copies, run) for copies in range(record.replicas + 1)]
        for key, repair in zip(keys, await view.peek_many(keys), strict=True):
            if repair is not None:
                view.delete(key)
    await _drop_from_garbage(view, garbage_key, run)
    return True


async def _drop_from_garbage(view: View, garbage_key: bytes, run: bytes) -> None:
    found = await view.get(garbage_key)
    if found is None:
        return
    garbage = decoded(records.decode_garbage, garbage_key, found.value)
    left = tuple(other for other in garbage.runs if other != run)
    prefix = _extents_prefix(garbage_key)
    if left or await view.range(prefix, prefix_end(prefix), limit=1):
        view.put(garbage_key, records.encode(msgspec.structs.replace(garbage, runs=left)))
    else:
        view.delete(garbage_key)

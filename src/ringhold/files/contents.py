"""What a file is about to contain, and the part of its commit that makes it so.

`Contents` is built outside any view: its chunks already lie, durable, on the nodes. Putting it
into a view adds the manifest (X, C), a repair record (K) for every run with copies short, and
the compares that keep it true:

- the partition's page is the one the chunks were placed by, so copies on a node that was
  replaced meanwhile are never counted (`PartitionMoved` says so before the commit does);
- the session that made the run ids is alive, which is what lets `gc` call a chunk without a
  record and without a session an orphan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ringhold.errors import SessionExpired
from ringhold.files import records
from ringhold.files.records import (
    ChunkRecord,
    Extent,
    Extents,
    RepairRecord,
    RunRecord,
)
from ringhold.nodes.records import Holder, Partition
from ringhold.store import keyspace
from ringhold.store.base import Born, Put, Unchanged
from ringhold.store.view import View


class SessionState(Protocol):
    """What files need of a session: who it is, that it lives, and ids that never repeat."""

    @property
    def id(self) -> bytes: ...

    @property
    def born(self) -> Born: ...

    def next_id(self) -> bytes: ...


class PartitionMoved(Exception):
    """The page of `run`'s partition changed since its chunks were placed."""

    def __init__(self, run: StagedRun):
        super().__init__(f"the page of partition {run.partition} has changed")
        self.run = run


@dataclass(slots=True)
class StagedChunk:
    """A chunk on its nodes: `holders` are those that acknowledged it."""

    record: ChunkRecord
    holders: list[Holder]


@dataclass(slots=True)
class StagedRun:
    """A run whose chunks are placed and that no commit names yet.

    `table` and `table_revision` are the partition, and its page's, as when they were placed.
    """

    run: bytes
    session: SessionState
    partition: int
    replicas: int
    table: Partition
    table_revision: int
    chunks: list[StagedChunk] = field(default_factory=list)
    mark: bytes | None = None
    """The key of the mark under which the run is in the store already: see `staging`."""

    def short_copies(self) -> tuple[int, list[tuple[int, str]]]:
        """The copies of the chunk that has fewest, and every (chunk, node) without one."""
        fewest = self.replicas
        missing: list[tuple[int, str]] = []
        for number, chunk in enumerate(self.chunks):
            wanted = self.table.for_chunk(number, self.replicas)
            lacking = [holder.name for holder in wanted if holder not in chunk.holders]
            missing += [(number, name) for name in lacking]
            copies = len(wanted) - len(lacking)
            fewest = min(fewest, copies)
        return fewest, missing

    def record(self) -> RunRecord:
        return RunRecord(
            self.partition, self.replicas, tuple(chunk.record for chunk in self.chunks)
        )


@dataclass(frozen=True, slots=True)
class Contents:
    """The whole contents of a file: `inline`, or `data` with runs of `block_bytes` each."""

    size: int
    inline: bytes | None = None
    data: bytes | None = None
    block_bytes: int = 0
    runs: tuple[StagedRun, ...] = ()

    async def put(self, view: View) -> None:
        """Adds manifest and compares to `view`. PartitionMoved, SessionExpired: nothing added."""
        if self.data is None:
            return
        await self.require(view)
        for block in range(len(self.runs)):
            for put in self.manifest(block):
                view.put(put.key, put.value)

    async def follow(self, run: StagedRun) -> None:
        """Told that `run` has other copies by now. Does nothing: `put` notes what is short."""

    def manifest(self, block: int) -> list[Put]:
        """The records of one block of the file and of its run."""
        assert self.data is not None
        run = self.runs[block]
        extents = extents_of_run(run, block * self.block_bytes)
        return [
            Put(keyspace.extents_key(self.data, block), records.encode(extents)),
            Put(keyspace.run_key(run.run), records.encode(run.record())),
            *self.repair_record(run),
        ]

    @staticmethod
    def repair_record(run: StagedRun) -> list[Put]:
        """The one that notes which copies of `run` are short, if any are."""
        fewest, lacking = run.short_copies()
        if not lacking:
            return []
        key = keyspace.repair_key(fewest, run.run)
        return [Put(key, records.encode(RepairRecord(tuple(lacking))))]

    async def require(self, view: View) -> None:
        """Adds the compares that keep the manifest true, and tells early, and by name, what they
        would refuse: PartitionMoved, SessionExpired."""
        keys = dict.fromkeys(run.session.born.key for run in self.runs)
        keys.update(dict.fromkeys(keyspace.partition_page_key(run.partition) for run in self.runs))
        found = dict(zip(keys, await view.peek_many(list(keys)), strict=True))
        for run in self.runs:
            session = found[run.session.born.key]
            page_key = keyspace.partition_page_key(run.partition)
            page = found[page_key]
            # An older snapshot (a transaction's) may show less than what is known already.
            gone = session is None and view.revision >= run.session.born.revision
            if gone or (session is not None and session.created > run.session.born.revision):
                raise session_gone(run.session)
            if page is None or page.revision > run.table_revision:
                raise PartitionMoved(run)
        for run in self.runs:
            view.require(run.session.born)
            page_key = keyspace.partition_page_key(run.partition)
            view.require(Unchanged(page_key, run.table_revision))


def session_gone(session: SessionState) -> SessionExpired:
    return SessionExpired(
        "the session that wrote the file's chunks is gone: write it again", session=session.id
    )


def extents_of_run(run: StagedRun, file_offset: int) -> Extents:
    extents: list[Extent] = []
    for number, chunk in enumerate(run.chunks):
        extents.append(Extent(file_offset, chunk.record.length, run.run, number))
        file_offset += chunk.record.length
    return Extents(tuple(extents))


def no_contents() -> Contents:
    return Contents(0, inline=b"")


def inline_contents(parts: Sequence[bytes | bytearray | memoryview]) -> Contents:
    data = b"".join(parts)
    return Contents(len(data), inline=data)

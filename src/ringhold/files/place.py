"""Where chunks go and where they come from: the partition's holders; only verified bytes.

Putting: to all R holders at once. With W = R // 2 + 1 copies acknowledged the others get a short
grace and are then given up; whoever commits the manifest says in the same commit which copies
are short. A holder that is down counts as failed at once.

Getting: from one holder after the other until a copy verifies against the manifest's digest.
Chunks are immutable, so any copy that verifies is right and no quorum is read. A copy found
missing or damaged on a node that is up is mended in the background (see `Mender`).

The partition table is cached by the page: a stale page costs a try elsewhere or a refused commit,
never a wrong answer, since a manifest's commit compares the page unchanged.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ringhold.env import Buffer, Env
from ringhold.errors import (
    Closed,
    Corrupt,
    NodeDown,
    NoQuorum,
    NotEnoughNodes,
    RingholdError,
    Unavailable,
)
from ringhold.files.contents import StagedRun
from ringhold.files.records import INLINE_BYTES_MAX, RunRecord
from ringhold.files.stored import decoded, missing
from ringhold.files.tasks import cancel_and_wait
from ringhold.nodes import records as node_records
from ringhold.nodes.base import ChunkId, Node
from ringhold.nodes.chunk_file import read_range
from ringhold.nodes.records import Holder, Partition
from ringhold.store import keyspace
from ringhold.store.base import Store

logger = logging.getLogger("ringhold")

GRACE_S_MIN = 0.5
GRACE_FACTOR = 3
AVOID_NS = 1_000_000_000
"""How long a node that was found down is asked last."""


class StagedCopiesLost(NodeDown):
    """Every node that had a chunk of a file being written was replaced before its commit."""


class NodeSource(Protocol):
    """The nodes by name: `ringhold.nodes.pool.NodePool`."""

    async def get(self, name: str, incarnation: int) -> Node: ...


@dataclass(frozen=True, slots=True)
class ChunkRef:
    """A chunk as its manifest knows it."""

    chunk: ChunkId
    partition: int
    replicas: int
    length: int
    digest: bytes


def chunk_ref(run: bytes, number: int, record: RunRecord) -> ChunkRef:
    if not 0 <= number < len(record.chunks):
        what = f"run {run.hex()}"
        raise Corrupt(f"{what} has {len(record.chunks)} chunks, not chunk {number}", what=what)
    chunk = record.chunks[number]
    return ChunkRef(
        ChunkId(run, number), record.partition, record.replicas, chunk.length, chunk.digest
    )


@dataclass(frozen=True, slots=True)
class Fault:
    """Why one holder could not give its copy. `bad`: it is up, and its copy missing or wrong."""

    holder: Holder
    bad: bool
    error: Exception


@dataclass(frozen=True, slots=True)
class Fetched:
    data: memoryview
    faults: tuple[Fault, ...]


class Placement:
    """Puts and gets copies of chunks, by the table that the store keeps."""

    def __init__(self, store: Store, env: Env, pool: NodeSource, replicas: int):
        self.replicas = replicas
        self.quorum = replicas // 2 + 1
        self._store = store
        self._env = env
        self._pool = pool
        self._pages: dict[bytes, tuple[tuple[Partition, ...], int]] = {}
        self._down_since: dict[Holder, int] = {}

    async def table(self, partition: int, *, fresh: bool = False) -> tuple[Partition, int]:
        """A partition's holders and the revision of its page.

        Corrupt when there is none, NotEnoughNodes in a cluster without nodes.
        """
        key = keyspace.partition_page_key(partition)
        known = self._pages.get(key)
        if known is None or fresh:
            known = self._pages[key] = await self._read_page(key)
        page, revision = known
        table = page[partition % keyspace.PARTITIONS_PER_PAGE]
        if not any(each.holders for each in page):
            raise NotEnoughNodes(
                f"the cluster was made without storage nodes: it keeps files of up to "
                f"{INLINE_BYTES_MAX} bytes",
                wanted=self.replicas,
            )
        if not table.holders:
            raise Corrupt(f"partition {partition} has no holders", what=f"partition {partition}")
        return table, revision

    async def _read_page(self, key: bytes) -> tuple[tuple[Partition, ...], int]:
        snapshot = await self._store.snapshot()
        try:
            entry = await snapshot.get(key)
        finally:
            await snapshot.close()
        if entry is None:
            raise missing(key)
        return decoded(node_records.decode_page, key, entry.value), entry.revision

    async def node(self, holder: Holder) -> Node:
        return await self._pool.get(holder.name, holder.incarnation)

    async def put_chunk(self, run: StagedRun, number: int, data: Buffer) -> None:
        """Makes chunk `number` of `run` durable on its holders and notes who has it.

        NoQuorum when fewer than W acknowledged.
        """
        chunk = ChunkId(run.run, number)
        while True:
            table = run.table
            faults = await self._put_missing(run, number, data)
            reached = self._count(run, number)
            if reached >= self.quorum:
                return
            # Perhaps they failed because they were replaced since the table was read, and
            # another chunk of the run may have found that out meanwhile.
            if table is run.table:
                await self._follow_table(run)
            if table is run.table:
                raise self._no_quorum(chunk, reached, faults)

    async def _put_missing(self, run: StagedRun, number: int, data: Buffer) -> list[Fault]:
        staged = run.chunks[number]
        holders = run.table.for_chunk(number, run.replicas)
        wanted = [holder for holder in holders if holder not in staged.holders]
        enough = self.quorum - self._count(run, number)
        chunk = ChunkId(run.run, number)
        acked, faults = await self._put_copies(wanted, enough, chunk, data, staged.record.digest)
        staged.holders += acked
        return faults

    async def follow(self, run: StagedRun) -> None:
        """Reads the partition's page again and adds the copies it asks for; those placed stay.

        NoQuorum when its holders cannot be given W copies of every chunk.
        """
        while await self._follow_table(run):
            await self.complete(run, self.replicas)

    async def complete(self, run: StagedRun, copies: int | None = None) -> None:
        """Gives every chunk with fewer than `copies` (W) copies on its present holders the rest.

        StagedCopiesLost when none can be read any more, NoQuorum as for `follow`.
        A chunk was placed by the table of its time, and the run's table may be newer by now.
        """
        for number, staged in enumerate(run.chunks):
            wanted = min(copies or self.quorum, len(run.table.holders))
            if self._count(run, number) >= wanted:
                continue
            chunk, record = ChunkId(run.run, number), staged.record
            ref = ChunkRef(chunk, run.partition, run.replicas, record.length, record.digest)
            try:
                fetched = await self.get_chunk(ref, holders=staged.holders)
            except (Unavailable, Corrupt) as error:
                names = ", ".join(holder.name for holder in staged.holders)
                raise StagedCopiesLost(
                    f"{names} had chunk {chunk} and was replaced before the file was complete, "
                    f"write it again: {error}",
                    node=staged.holders[0].name if staged.holders else "",
                ) from error
            faults = await self._put_missing(run, number, fetched.data)
            reached = self._count(run, number)
            if reached < self.quorum:
                raise self._no_quorum(chunk, reached, faults)

    async def _follow_table(self, run: StagedRun) -> bool:
        """Whether the run's partition has other holders than were known."""
        table, revision = await self.table(run.partition, fresh=True)
        run.table_revision = revision
        if table == run.table:
            return False
        run.table = table
        return True

    @staticmethod
    def _count(run: StagedRun, number: int) -> int:
        wanted = run.table.for_chunk(number, run.replicas)
        return sum(holder in run.chunks[number].holders for holder in wanted)

    def _no_quorum(self, chunk: ChunkId, reached: int, faults: Sequence[Fault]) -> NoQuorum:
        reasons = "; ".join(f"{fault.holder.name}: {fault.error}" for fault in faults)
        error = NoQuorum(
            f"chunk {chunk} reached {reached} of {self.quorum} nodes: {reasons or 'too few nodes'}",
            wanted=self.quorum,
            reached=reached,
        )
        error.__cause__ = faults[0].error if faults else None
        return error

    async def _put_copies(
        self,
        holders: Sequence[Holder],
        enough: int,
        chunk: ChunkId,
        data: Buffer,
        digest: bytes,
    ) -> tuple[list[Holder], list[Fault]]:
        """Who acknowledged `data`, and why the others did not; `enough` end the waiting."""
        started_ns = self._env.clock.monotonic_ns()
        copies = [
            asyncio.ensure_future(self._put_copy(holder, chunk, data, digest)) for holder in holders
        ]
        try:
            while pending := [copy for copy in copies if not copy.done()]:
                if self._acknowledged(copies) >= enough:
                    taken_s = (self._env.clock.monotonic_ns() - started_ns) / 1e9
                    await asyncio.wait(pending, timeout=max(GRACE_S_MIN, GRACE_FACTOR * taken_s))
                    break
                await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel_and_wait([copy for copy in copies if not copy.done()])
        acked: list[Holder] = []
        faults: list[Fault] = []
        for holder, copy in zip(holders, copies, strict=True):
            if copy.cancelled():
                late = Unavailable(f"node {holder.name} did not acknowledge in time")
                faults.append(Fault(holder, False, late))
            elif (error := copy.result()) is None:
                acked.append(holder)
            else:
                faults.append(Fault(holder, False, error))
        return acked, faults

    @staticmethod
    def _acknowledged(copies: Sequence[asyncio.Task[Exception | None]]) -> int:
        return sum(copy.done() and copy.result() is None for copy in copies)

    async def _put_copy(
        self, holder: Holder, chunk: ChunkId, data: Buffer, digest: bytes
    ) -> Exception | None:
        try:
            node = await self.node(holder)
            await node.put(chunk, data, digest)
        except Closed:
            raise
        except (RingholdError, OSError) as error:
            self._note(holder, error)
            return error
        return None

    def _note(self, holder: Holder, error: Exception) -> None:
        if isinstance(error, NodeDown):
            self._down_since[holder] = self._env.clock.monotonic_ns()

    def _in_order(self, holders: Sequence[Holder]) -> list[Holder]:
        """`holders`, those last that were down a moment ago."""
        now_ns = self._env.clock.monotonic_ns()

        def down(holder: Holder) -> bool:
            since_ns = self._down_since.get(holder)
            return since_ns is not None and now_ns - since_ns < AVOID_NS

        return sorted(holders, key=down)

    async def get_chunk(
        self,
        ref: ChunkRef,
        offset: int = 0,
        length: int | None = None,
        *,
        holders: Sequence[Holder] | None = None,
    ) -> Fetched:
        """The verified bytes of [offset, offset + length), from whoever has them.

        Looks at `holders` only, if given, else at all of the partition. Raises the error
        `failure` makes of the faults when nobody has them.
        """
        length = ref.length - offset if length is None else length
        if holders is not None:
            return await self._get_from(ref, offset, length, holders)
        table, revision = await self.table(ref.partition)
        try:
            return await self._get_from(ref, offset, length, self._by_nearness(ref, table))
        except (Unavailable, Corrupt):
            table, newest = await self.table(ref.partition, fresh=True)
            if newest == revision:
                raise
        return await self._get_from(ref, offset, length, self._by_nearness(ref, table))

    def _by_nearness(self, ref: ChunkRef, table: Partition) -> list[Holder]:
        # The rest of the partition comes last: a table that grew or shrank leaves good
        # copies on members that are no longer this chunk's holders.
        holders = table.for_chunk(ref.chunk.number, ref.replicas)
        return self._in_order(holders) + [h for h in table.holders if h not in holders]

    async def _get_from(
        self, ref: ChunkRef, offset: int, length: int, holders: Sequence[Holder]
    ) -> Fetched:
        faults: list[Fault] = []
        for holder in holders:
            try:
                node = await self.node(holder)
                part = await node.get(ref.chunk, offset, length)
                data = read_range(part, ref.chunk, ref.digest, ref.length, offset, length)
            except (FileNotFoundError, Corrupt) as error:
                faults.append(Fault(holder, True, error))
            except Closed:
                raise
            except (RingholdError, OSError) as error:
                # Perhaps it is not down but replaced: the next one to ask reads the table anew.
                self._pages.pop(keyspace.partition_page_key(ref.partition), None)
                self._note(holder, error)
                faults.append(Fault(holder, False, error))
            else:
                return Fetched(data, tuple(faults))
        raise failure(ref.chunk, faults)


def failure(chunk: ChunkId, faults: Sequence[Fault]) -> RingholdError:
    """One error for copies none of which could be read.

    Unavailable while any node is down, since its copy may be good; else Corrupt, of the most
    telling kind that was seen.
    """
    reasons = "; ".join(f"{fault.holder.name}: {fault.error}" for fault in faults)
    away = [fault for fault in faults if not fault.bad]
    error: RingholdError
    if away:
        error = NodeDown(
            f"no copy of chunk {chunk} can be read: {reasons}", node=away[0].holder.name
        )
        error.__cause__ = away[0].error
        return error
    damaged = [fault.error for fault in faults if isinstance(fault.error, Corrupt)]
    kind = type(damaged[0]) if damaged else Corrupt
    error = kind(f"every copy of chunk {chunk} is bad: {reasons}", what=str(chunk))
    error.__cause__ = damaged[0] if damaged else (faults[0].error if faults else None)
    return error

"""Bringing every chunk back to R copies.

First the repair records, which are ordered by the copies left, so that what is nearest to being
lost comes first; then an inventory of every node against every run record, which finds what
nobody wrote down: nodes that were wiped, replaced, or lost files. Copies are made from a verified
source only.

`repair` goes by names: it finds copies that are missing. What is there and rotten, `scrub` finds.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from ringhold.env import Env
from ringhold.errors import Closed, RingholdError
from ringhold.files import records
from ringhold.files.place import ChunkRef, Placement
from ringhold.files.records import RunRecord
from ringhold.files.stored import decoded
from ringhold.files.survey import (
    NODES_AT_ONCE,
    Inventory,
    Progress,
    chunks_of,
    holders_of,
    live_runs,
    no_progress,
    pages,
    tables_now,
    take_inventory,
)
from ringhold.files.tasks import for_each
from ringhold.nodes.records import Holder, Partition
from ringhold.store import keyspace
from ringhold.store.base import Store
from ringhold.store.view import View, transact

logger = logging.getLogger("ringhold")

CHUNKS_AT_ONCE = 8


@dataclass(slots=True)
class RepairReport:
    """What `repair` did. `checked` and `restored` count copies; `failed` names copies that could
    not be made now, `lost` chunks no good copy of which can be found on the nodes that are up."""

    checked: int = 0
    restored: int = 0
    bytes: int = 0
    failed: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    unreachable: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every chunk has all its copies, as far as this pass saw."""
        return not (self.failed or self.lost or self.unreachable)


@dataclass(frozen=True, slots=True)
class Gap:
    """A chunk that holders lack; `copies` are those that have it."""

    ref: ChunkRef
    copies: int
    missing: tuple[Holder, ...]


class Restorer:
    """Makes copies of chunks on holders that lack them; shared by repair and scrub."""

    def __init__(self, placement: Placement):
        self._placement = placement
        self.restored = 0
        self.bytes = 0
        self.failed: list[str] = []
        self.lost: list[str] = []

    async def restore(self, gap: Gap) -> bool:
        """Whether every missing copy was made."""
        try:
            good = await self._placement.get_chunk(gap.ref)
        except Closed:
            raise
        except (RingholdError, OSError) as error:
            logger.warning("chunk %s cannot be restored: %s", gap.ref.chunk, error)
            self.lost.append(f"{gap.ref.chunk}: {error}")
            return False
        whole = True
        for holder in gap.missing:
            try:
                node = await self._placement.node(holder)
                await node.put(gap.ref.chunk, good.data, gap.ref.digest)
            except Closed:
                raise
            except (RingholdError, OSError) as error:
                self.failed.append(f"{gap.ref.chunk} on {holder.name}: {error}")
                whole = False
            else:
                logger.warning("restored chunk %s on node %s", gap.ref.chunk, holder.name)
                self.restored += 1
                self.bytes += gap.ref.length
        return whole


class Repairer:
    """One pass of repair. Any number of processes may run one at once."""

    def __init__(
        self, store: Store, env: Env, placement: Placement, progress: Progress = no_progress
    ):
        self._store = store
        self._env = env
        self._placement = placement
        self._progress = progress
        self._restorer = Restorer(placement)
        self.report = RepairReport()

    async def repair(self) -> RepairReport:
        tables = await tables_now(self._store)
        inventory = await take_inventory(self._placement, holders_of(tables))
        await self._repair_noted(tables, inventory)
        await self._repair_found(tables, inventory)
        restorer, report = self._restorer, self.report
        report.restored, report.bytes = restorer.restored, restorer.bytes
        report.failed = sorted(set(restorer.failed))
        report.lost = sorted(set(restorer.lost))
        report.unreachable = sorted({holder.name for holder in inventory.unreachable})
        return report

    async def _repair_noted(self, tables: dict[int, Partition], inventory: Inventory) -> None:
        """The runs that have a repair record, those with fewest copies first."""
        async for page in pages(self._store, keyspace.REPAIR):
            for key, entry in page:
                run = key[len(keyspace.REPAIR) + 1 :]
                record = await self._run(run)
                if record is not None:
                    gaps = self._gaps(run, record, tables, inventory)
                    if not all(await for_each(gaps, self._close, at_once=CHUNKS_AT_ONCE)):
                        continue
                    if self._unseen(run, record, tables, inventory):
                        continue
                await self._forget(key, entry.revision)

    def _unseen(
        self,
        run: bytes,
        record: RunRecord,
        tables: dict[int, Partition],
        inventory: Inventory,
    ) -> bool:
        """Whether a holder of the run did not say what it has."""
        table = tables.get(record.partition)
        return table is None or any(holder in inventory.unreachable for holder in table.holders)

    async def _run(self, run: bytes) -> RunRecord | None:
        key = keyspace.run_key(run)
        snapshot = await self._store.snapshot()
        try:
            entry = await snapshot.get(key)
        finally:
            await snapshot.close()
        record = None if entry is None else decoded(records.decode_run, key, entry.value)
        return None if record is None or record.dead else record

    async def _forget(self, key: bytes, revision: int) -> None:
        """Deletes a repair record, unless it was written anew meanwhile."""

        async def operation(view: View) -> None:
            entry = await view.get(key)
            if entry is not None and entry.revision == revision:
                view.delete(key)

        await transact(self._store, self._env, operation)

    async def _repair_found(self, tables: dict[int, Partition], inventory: Inventory) -> None:
        gaps: list[Gap] = []
        async for run, record in live_runs(self._store):
            gaps += self._gaps(run, record, tables, inventory)
            self.report.checked += len(record.chunks) * record.replicas
        gaps.sort(key=lambda gap: (gap.copies, gap.ref.chunk))
        done = 0

        async def close(gap: Gap) -> None:
            nonlocal done
            await self._close(gap)
            done += 1
            self._progress(done, len(gaps))

        await for_each(gaps, close, at_once=CHUNKS_AT_ONCE)

    async def _close(self, gap: Gap) -> bool:
        # Runs written after the inventory look like gaps; the nodes know better.
        missing = await self._still_missing(gap)
        if not missing:
            return True
        return await self._restorer.restore(Gap(gap.ref, gap.copies, tuple(missing)))

    async def _still_missing(self, gap: Gap) -> list[Holder]:
        async def lacks(holder: Holder) -> bool:
            try:
                node = await self._placement.node(holder)
                return not (await node.has([gap.ref.chunk]))[0]
            except Closed:
                raise
            except (RingholdError, OSError):
                # `restore` will fail on it in the same way, and report it.
                return True

        answers = await for_each(gap.missing, lacks, at_once=NODES_AT_ONCE)
        return [holder for holder, lack in zip(gap.missing, answers, strict=True) if lack]

    @staticmethod
    def _gaps(
        run: bytes,
        record: RunRecord,
        tables: dict[int, Partition],
        inventory: Inventory,
    ) -> list[Gap]:
        """The chunks of a run that holders which are up lack, as the inventory saw it."""
        table = tables.get(record.partition)
        if table is None:
            return []
        gaps: list[Gap] = []
        for ref in chunks_of(run, record):
            due = table.for_chunk(ref.chunk.number, record.replicas)
            up = [holder for holder in due if holder not in inventory.unreachable]
            missing = tuple(holder for holder in up if not inventory.has(holder, ref.chunk))
            if missing:
                gaps.append(Gap(ref, len(up) - len(missing), missing))
        return gaps

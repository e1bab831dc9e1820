"""Reading back every byte of every copy, and mending what is not what was written.

Each node reads and checks its own files, so nothing but verdicts crosses the wire. A file that
is whole in itself and still the wrong one is found by comparing the digest in its header with
the manifest's. A bad copy is replaced from a good one; the node keeps the bad file aside.

A directory of this host that stopped acknowledging after a failed fsync is verified whole and,
if that succeeds, serves again. (A daemon does the same by itself when it is started again.)
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from ringhold.errors import Closed, RingholdError
from ringhold.files.place import ChunkRef, Placement
from ringhold.files.records import RunRecord
from ringhold.files.repair import Gap, Restorer
from ringhold.files.survey import (
    CHUNKS_PER_REQUEST,
    NODES_AT_ONCE,
    Progress,
    due_chunks,
    holders_of,
    live_runs,
    no_progress,
    states_of,
    tables_now,
)
from ringhold.files.tasks import for_each
from ringhold.nodes.base import ChunkState
from ringhold.nodes.directory import DirectoryNode
from ringhold.nodes.records import Holder
from ringhold.store.base import Store

logger = logging.getLogger("ringhold")

RUNS_PER_ROUND = 500


@dataclass(slots=True)
class ScrubReport:
    """What `scrub` found. `checked` counts copies; `damaged` and `missing` name chunk and node,
    `mended` counts those made good again; `failed` and `lost` as for `repair`."""

    checked: int = 0
    bytes: int = 0
    damaged: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    mended: int = 0
    failed: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    unreachable: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether every copy was read and found good."""
        return not (self.damaged or self.missing or self.unreachable)


class Scrubber:
    """One pass over all chunks."""

    def __init__(self, store: Store, placement: Placement, progress: Progress = no_progress):
        self._store = store
        self._placement = placement
        self._progress = progress
        self._restorer = Restorer(placement)
        self._total = 0
        self.report = ScrubReport()

    async def scrub(self) -> ScrubReport:
        holders = holders_of(await tables_now(self._store))
        await for_each(holders, self._recover, at_once=NODES_AT_ONCE)
        runs = [run async for run in live_runs(self._store)]
        self._total = sum(len(record.chunks) * record.replicas for _, record in runs)
        for start in range(0, len(runs), RUNS_PER_ROUND):
            await self._scrub_runs(runs[start : start + RUNS_PER_ROUND])
        report = self.report
        report.mended = self._restorer.restored
        report.failed = sorted(set(self._restorer.failed))
        report.lost = sorted(set(self._restorer.lost))
        report.unreachable = sorted(set(report.unreachable))
        return report

    async def _recover(self, holder: Holder) -> None:
        try:
            node = await self._placement.node(holder)
            if isinstance(node, DirectoryNode) and await node.is_marked_failed():
                await node.verify_all()
        except Closed:
            raise
        except (RingholdError, OSError) as error:
            logger.warning("node %s stays failed: %s", holder.name, error)
            self.report.unreachable.append(holder.name)

    async def _scrub_runs(self, runs: Sequence[tuple[bytes, RunRecord]]) -> None:
        due = due_chunks(runs, await tables_now(self._store))
        bad: dict[ChunkRef, list[Holder]] = {}

        async def look(holder: Holder) -> None:
            for ref in await self._scrub_node(holder, due[holder]):
                bad.setdefault(ref, []).append(holder)

        await for_each(due, look, at_once=NODES_AT_ONCE)
        gaps = [
            Gap(ref, ref.replicas - len(holders), tuple(holders)) for ref, holders in bad.items()
        ]
        gaps.sort(key=lambda gap: (gap.copies, gap.ref.chunk))
        await for_each(gaps, self._restorer.restore, at_once=NODES_AT_ONCE)

    async def _scrub_node(self, holder: Holder, refs: Sequence[ChunkRef]) -> list[ChunkRef]:
        """The chunks of which this node's copy is missing or not what the manifest says."""
        bad: list[ChunkRef] = []
        try:
            node = await self._placement.node(holder)
            for start in range(0, len(refs), CHUNKS_PER_REQUEST):
                batch = refs[start : start + CHUNKS_PER_REQUEST]
                for ref, state in zip(batch, await states_of(node, batch), strict=True):
                    if state is not ChunkState.GOOD:
                        self._note(f"{ref.chunk} on {node.name}", state)
                        bad.append(ref)
                    self.report.checked += 1
                    self.report.bytes += ref.length
                self._progress(self.report.checked, self._total)
        except Closed:
            raise
        except (RingholdError, OSError) as error:
            logger.warning("node %s cannot be scrubbed: %s", holder.name, error)
            self.report.unreachable.append(holder.name)
        return bad

    def _note(self, where: str, state: ChunkState) -> None:
        if state is ChunkState.MISSING:
            self.report.missing.append(where)
        else:
            self.report.damaged.append(where)
        logger.warning("chunk %s is %s", where, state.value)

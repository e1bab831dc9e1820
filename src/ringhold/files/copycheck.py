"""Whether every chunk has all its copies, each read whole where it lies; changes nothing.

A chunk whose file is deleted while the nodes are asked is left out: its copies may go.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from ringhold.errors import Closed, RingholdError
from ringhold.files import records
from ringhold.files.place import ChunkRef, Placement
from ringhold.files.records import RunRecord
from ringhold.files.stored import decoded
from ringhold.files.survey import (
    CHUNKS_PER_REQUEST,
    NODES_AT_ONCE,
    Progress,
    chunks_of,
    due_chunks,
    states_of,
)
from ringhold.files.tasks import for_each
from ringhold.nodes.base import ChunkId, ChunkState
from ringhold.nodes.records import Holder, Partition
from ringhold.store import keyspace
from ringhold.store.base import Store

logger = logging.getLogger("ringhold")

RUNS_PER_LOOK = 500


@dataclass(slots=True)
class CopyFaults:
    """`short`: chunks with what is wrong with their copies; `unseen`: copies per silent node."""

    short: list[tuple[ChunkId, str]] = field(default_factory=list)
    unseen: dict[str, int] = field(default_factory=dict)


class CopyCheck:
    """One look at the copies of `runs`, which lie where `tables` says."""

    def __init__(
        self,
        store: Store,
        placement: Placement,
        runs: Mapping[bytes, RunRecord],
        tables: dict[int, Partition],
        progress: Progress,
    ):
        self._store = store
        self._placement = placement
        self._runs = {run: record for run, record in runs.items() if not record.dead}
        self._tables = tables
        self._progress = progress
        self._done = 0
        self._total = 0
        self._bad: dict[ChunkId, dict[Holder, ChunkState]] = {}
        self._unseen: Counter[str] = Counter()

    async def check(self) -> CopyFaults:
        due = due_chunks(list(self._runs.items()), self._tables)
        self._total = sum(len(refs) for refs in due.values())

        async def look(holder: Holder) -> None:
            await self._look(holder, due[holder])

        await for_each(due, look, at_once=NODES_AT_ONCE)
        faults = CopyFaults(unseen=dict(sorted(self._unseen.items())))
        for run, record in self._runs.items():
            faults.short += self._short(run, record)
        gone = await self._gone(list(dict.fromkeys(chunk.run for chunk, _ in faults.short)))
        faults.short = [(chunk, told) for chunk, told in faults.short if chunk.run not in gone]
        return faults

    async def _look(self, holder: Holder, refs: list[ChunkRef]) -> None:
        for start in range(0, len(refs), CHUNKS_PER_REQUEST):
            batch = refs[start : start + CHUNKS_PER_REQUEST]
            try:
                states = await states_of(await self._placement.node(holder), batch)
            except Closed:
                raise
            except (RingholdError, OSError) as error:
                logger.warning("node %s does not say what it has: %s", holder.name, error)
                self._unseen[holder.name] += len(refs) - start
                return
            for ref, state in zip(batch, states, strict=True):
                if state is not ChunkState.GOOD:
                    self._bad.setdefault(ref.chunk, {})[holder] = state
            self._done += len(batch)
            self._progress(self._done, self._total)

    def _short(self, run: bytes, record: RunRecord) -> list[tuple[ChunkId, str]]:
        """The chunks of a run that are known to have fewer copies than they should."""
        table = self._tables.get(record.partition)
        if table is None:
            return []
        short: list[tuple[ChunkId, str]] = []
        for ref in chunks_of(run, record):
            due = table.for_chunk(ref.chunk.number, record.replicas)
            bad = self._bad.get(ref.chunk, {})
            told = [f"{bad[holder].value} on {holder.name}" for holder in due if holder in bad]
            if len(due) < record.replicas:
                told.append(f"its partition has {len(due)} nodes")
            if told:
                silent = [holder.name for holder in due if holder.name in self._unseen]
                told += [f"not known on {name}" for name in silent]
                short.append((ref.chunk, f"not {record.replicas} good copies: {', '.join(told)}"))
        return short

    async def _gone(self, runs: list[bytes]) -> set[bytes]:
        """Those of `runs` that are no longer to be kept."""
        gone: set[bytes] = set()
        for start in range(0, len(runs), RUNS_PER_LOOK):
            batch = runs[start : start + RUNS_PER_LOOK]
            keys = [keyspace.run_key(run) for run in batch]
            snapshot = await self._store.snapshot()
            try:
                entries = await snapshot.get_many(keys)
            finally:
                await snapshot.close()
            for run, key, entry in zip(batch, keys, entries, strict=True):
                if entry is None or decoded(records.decode_run, key, entry.value).dead:
                    gone.add(run)
        return gone

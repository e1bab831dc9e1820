"""Read repair: a copy that a read found missing or damaged is replaced from a good one.

It runs behind the read, in tasks the mender owns and `close` waits for. Nothing depends on its
success: `repair` and `scrub` find the same copy again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from ringhold.errors import RingholdError
from ringhold.files import records
from ringhold.files.place import ChunkRef, Fetched, Placement
from ringhold.files.stored import decoded
from ringhold.files.tasks import cancel_and_wait
from ringhold.nodes.base import ChunkId
from ringhold.nodes.records import Holder
from ringhold.store import keyspace
from ringhold.store.base import Store

logger = logging.getLogger("ringhold")

MENDS_MAX = 4


class Mender:
    """Mends in the background; a chunk once at a time."""

    def __init__(self, store: Store, placement: Placement):
        self._store = store
        self._placement = placement
        self._room = asyncio.Semaphore(MENDS_MAX)
        self._tasks: dict[ChunkId, asyncio.Task[None]] = {}
        self._closed = False

    def mend(self, ref: ChunkRef, fetched: Fetched, path: str) -> None:
        """Starts replacing the copies that `fetched` found bad on nodes that are up."""
        bad = [fault for fault in fetched.faults if fault.bad]
        for fault in bad:
            logger.warning(
                "%s: copy of chunk %s on node %s is bad, another one was read: %s",
                path, ref.chunk, fault.holder.name, fault.error,
            )  # fmt: skip
        if self._closed or ref.chunk in self._tasks:
            return
        whole = fetched.data if len(fetched.data) == ref.length else None
        task = asyncio.ensure_future(self._mend(ref, [f.holder for f in bad], whole))
        self._tasks[ref.chunk] = task
        task.add_done_callback(lambda _: self._tasks.pop(ref.chunk, None))

    async def _mend(
        self, ref: ChunkRef, holders: Sequence[Holder], whole: memoryview | None
    ) -> None:
        async with self._room:
            try:
                table, _ = await self._placement.table(ref.partition)
                due = table.for_chunk(ref.chunk.number, ref.replicas)
                if not await self._is_alive(ref):
                    return
                if whole is None:
                    whole = (await self._placement.get_chunk(ref)).data
                for holder in holders:
                    if holder in due:
                        node = await self._placement.node(holder)
                        await node.put(ref.chunk, whole, ref.digest)
                        logger.warning("chunk %s on node %s was mended", ref.chunk, holder.name)
            except (RingholdError, OSError) as error:
                logger.warning("chunk %s could not be mended: %s", ref.chunk, error)

    async def _is_alive(self, ref: ChunkRef) -> bool:
        """Whether the chunk is still to be kept: one being deleted must not come back."""
        key = keyspace.run_key(ref.chunk.run)
        snapshot = await self._store.snapshot()
        try:
            entry = await snapshot.get(key)
        finally:
            await snapshot.close()
        return entry is not None and not decoded(records.decode_run, key, entry.value).dead

    async def settle(self) -> None:
        """Waits until everything found bad so far was mended or given up."""
        while self._tasks:
            await asyncio.wait(list(self._tasks.values()))

    async def close(self) -> None:
        """Waits for what is under way; ends it when that is cancelled."""
        self._closed = True
        try:
            await self.settle()
        finally:
            await cancel_and_wait(list(self._tasks.values()))

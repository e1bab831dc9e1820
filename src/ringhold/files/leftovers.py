"""What was written for a file and will never be one, deleted in the background.

Nothing depends on its success: what is left is `gc`'s once the session that wrote it has ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from typing import Any

from ringhold.env import Env
from ringhold.errors import RingholdError
from ringhold.files.contents import StagedRun
from ringhold.files.gc import Collector
from ringhold.files.place import Placement
from ringhold.files.tasks import cancel_and_wait
from ringhold.nodes.base import ChunkId
from ringhold.store.base import Store

logger = logging.getLogger("ringhold")


class Leftovers:
    """Tasks that `settle` waits for and `close` ends; once `closing`, nothing more is begun."""

    def __init__(self, store: Store, env: Env, placement: Placement):
        self._store = store
        self._env = env
        self._placement = placement
        self._tasks: dict[asyncio.Task[object], None] = {}
        self.closing = False

    def abandon(self, runs: Sequence[StagedRun]) -> None:
        """Deletes chunks that no commit of a file ever named or will name."""
        if runs:
            self._start(self._delete_chunks(list(runs)))

    def discard(self, mark: bytes) -> None:
        """Deletes what was written ahead under `mark`; nothing, if a file has it by now."""
        self._start(self._discard(mark))

    def _start(self, work: Coroutine[Any, Any, object]) -> None:
        if self.closing:
            work.close()
            return
        task = asyncio.ensure_future(work)
        self._tasks[task] = None
        task.add_done_callback(lambda task: self._tasks.pop(task, None))

    async def _discard(self, mark: bytes) -> bool:
        """Whether nothing is left under `mark`."""
        try:
            return await Collector(self._store, self._env, self._placement).discard(mark)
        except RingholdError as error:
            logger.info("what was written of a file is left to gc: %s", error)
            return False

    async def _delete_chunks(self, runs: Sequence[StagedRun]) -> None:
        marks = dict.fromkeys(run.mark for run in runs if run.mark is not None)
        kept = [mark for mark in marks if not await self._discard(mark)]
        for run in runs:
            if run.mark in kept:
                continue
            chunks = [ChunkId(run.run, number) for number in range(len(run.chunks))]
            for holder in run.table.holders:
                try:
                    node = await self._placement.node(holder)
                    await node.delete(chunks)
                except (RingholdError, OSError) as error:
                    logger.info(
                        "chunks of run %s on node %s are left to gc: %s",
                        run.run.hex(), holder.name, error,
                    )  # fmt: skip

    async def settle(self) -> None:
        while self._tasks:
            await asyncio.wait(list(self._tasks))

    async def close(self) -> None:
        self.closing = True
        await cancel_and_wait(list(self._tasks))

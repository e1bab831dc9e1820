"""Getting one lock once: the fast path, the queue, and leaving nothing behind on giving up."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from typing import Any

from ringhold.env import Env, finish
from ringhold.errors import Closed, Compacted, Conflict, OutcomeUnknown, RingholdError
from ringhold.locks.records import COUNTER_BYTES, LockKeys, LockRecord, encode
from ringhold.locks.session import SessionState
from ringhold.store.base import Absent, Born, Compare, Empty, Put, Store
from ringhold.store.repeat import commit_sure
from ringhold.types import Entry

logger = logging.getLogger("ringhold")

EXPIRY_POLL_S = 0.05
"""How often a waiter looks for leases that are overdue or whose process died."""


def closed() -> Closed:
    return Closed("the cluster is closed")


async def read_lock(
    store: Store, keys: LockKeys
) -> tuple[int, Entry | None, list[tuple[bytes, Entry]]]:
    """A revision, and at it the holder's entry and the waiters' in order of arrival."""
    snapshot = await store.snapshot()
    try:
        found = await snapshot.range(keys.prefix, keys.end)
    finally:
        await snapshot.close()
    holder = next((entry for key, entry in found if key == keys.holder), None)
    queue = [(key, entry) for key, entry in found if key.startswith(keys.queue)]
    queue.sort(key=lambda item: item[1].created)
    return snapshot.revision, holder, queue


class LockRequest:
    """One attempt of one owner to get one lock within one session."""

    def __init__(
        self,
        store: Store,
        env: Env,
        state: SessionState,
        name: bytes,
        *,
        label: str,
        owner: int,
        number: int,
        closing: asyncio.Event,
    ):
        self._store = store
        self._env = env
        self._state = state
        self._label = label
        self._closing = closing
        self._keys = LockKeys.of(name)
        request = state.id + number.to_bytes(COUNTER_BYTES, "big")
        self._queue_key = self._keys.waiter(request)
        opener = state.record
        record = LockRecord(request, owner, opener.pid, opener.host, env.clock.wall())
        self._value = encode(record)
        self._queued = False
        self._granted_at = 0

    async def run(self, *, wait: bool) -> int:
        """The revision of the granting commit. TimeoutError when it would have to `wait`."""
        try:
            return await self._run(wait=wait)
        except BaseException:
            if self._queued or self._granted_at:
                await finish(asyncio.ensure_future(self._withdraw()))
            raise

    async def _run(self, *, wait: bool) -> int:
        free = Empty(self._keys.prefix, self._keys.end)
        try:
            return await self._take(compares=[free])
        except Conflict:
            pass
        # The holder may be a process that just died: nobody else may have noticed.
        await self._store.expire_leases()
        try:
            return await self._take(compares=[free])
        except Conflict:
            if not wait:
                raise TimeoutError from None
        put = Put(self._queue_key, self._value, self._state.id)
        self._queued = True
        queued_at = await self._outlive(commit_sure(self._store, self._env, puts=[put]))
        return await self._wait_in_queue(Born(self._queue_key, queued_at))

    async def _wait_in_queue(self, own: Born) -> int:
        while True:
            self._state.check()
            revision, holder, queue = await read_lock(self._store, self._keys)
            mine = next((e for key, e in queue if key == self._queue_key), None)
            if mine is None or mine.created != own.revision:
                self._state.lose()
                self._state.check()
            if holder is None and queue[0][0] == self._queue_key:
                try:
                    return await self._take(
                        compares=[Absent(self._keys.holder), own], deletes=[self._queue_key]
                    )
                except Conflict:
                    continue
            await self._wait_for_change(revision + 1)

    async def _wait_for_change(self, from_revision: int) -> None:
        """Until a key of this lock changes; ends dead sessions' leases meanwhile."""
        change = asyncio.ensure_future(self._next_change(from_revision))
        closing = asyncio.ensure_future(self._closing.wait())
        try:
            while not (change.done() or closing.done()):
                await self._store.expire_leases()
                self._state.check()
                await asyncio.wait(
                    [change, closing],
                    timeout=EXPIRY_POLL_S,
                    return_when=asyncio.FIRST_COMPLETED,
                )
        finally:
            for task in (change, closing):
                task.cancel()
            results = await asyncio.gather(change, closing, return_exceptions=True)
        if self._closing.is_set():
            raise closed()
        if isinstance(results[0], Exception) and not isinstance(results[0], Compacted):
            raise results[0]

    async def _next_change(self, from_revision: int) -> None:
        changes = self._store.watch(self._keys.prefix, from_revision)
        try:
            async for _ in changes:
                return
            raise closed()
        finally:
            aclose = getattr(changes, "aclose", None)
            if aclose is not None:
                await aclose()

    async def _take(self, *, compares: Sequence[Compare], deletes: Sequence[bytes] = ()) -> int:
        put = Put(self._keys.holder, self._value, self._state.id)
        return await self._outlive(
            commit_sure(self._store, self._env, compares=compares, puts=[put], deletes=deletes),
            granted=True,
        )

    async def _outlive(self, commit: Coroutine[Any, Any, int], *, granted: bool = False) -> int:
        """The outcome of `commit`, which is learned even when this task is cancelled."""

        def note(revision: int) -> None:
            if granted:
                self._granted_at = revision

        try:
            return await finish(asyncio.ensure_future(commit), undo=note)
        except OutcomeUnknown:
            # Nobody can say whether the key is there; without its lease it will not stay.
            self._state.lose()
            raise

    async def _withdraw(self) -> None:
        """Takes back whatever this request left in the store."""
        deletes = [self._queue_key]
        compares = []
        if self._granted_at:
            deletes.append(self._keys.holder)
            compares.append(Born(self._keys.holder, self._granted_at))
        try:
            await commit_sure(
                self._store, self._env, compares=compares, deletes=deletes, timeout_s=1.0
            )
        except Conflict:
            # The grant was broken in between, so it is nobody's to take back any more.
            self._granted_at = 0
            await self._withdraw()
        except RingholdError as error:
            if not isinstance(error, Closed):
                logger.warning("lock %r: a request could not be withdrawn: %s", self._label, error)
            self._state.lose()

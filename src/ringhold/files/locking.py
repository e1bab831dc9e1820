"""Locks on files: exclusive, by inode, so that they follow a file that is moved.

A slot of its own for each grant (`ringhold.locks.slots`), never kept by the session when it is
released: each grant has a key with a revision of its own, which every commit of a change under it
compares. A cached lock would have one revision for many grants.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from ringhold.errors import DeadlockError
from ringhold.locks.slot_grants import SlotGrant, SlotService
from ringhold.locks.slot_handles import AsyncSlotHandle, SlotHandle
from ringhold.locks.slots import Slots
from ringhold.owner import current_owner, thread_owner
from ringhold.store.keyspace import FILE_LOCK

WHAT = "the lock on"


def file_slots(ino: int, path: str) -> Slots:
    """The one slot of the lock on the file with the inode `ino`; `path` is told to people."""
    return Slots.of(WHAT, FILE_LOCK, ino.to_bytes(8, "big"), path, 1)


class AsyncFileLock(AsyncSlotHandle):
    """``async with fs.lock(path) as grant``: raises LockTimeout, LockLost, FileNotFoundError,
    and DeadlockError when the caller holds the lock already."""

    what = WHAT

    def __init__(
        self,
        service: SlotService,
        path: str,
        number: Callable[[], Awaitable[int]],
        timeout: float | None,
    ):
        super().__init__(service, path, timeout)
        self._number = number

    async def slots(self) -> Slots:
        self._slots = file_slots(await self._number(), self.name)
        return self._slots

    async def grant(self, timeout_s: float | None) -> SlotGrant:
        slots, owner = await self.slots(), current_owner()
        held = self.service.last(slots, owner)
        if held is not None and not held.is_lost:
            raise DeadlockError(
                f"the lock on {self.name!r} is held by this very owner, which would wait for "
                "itself",
                name=self.name,
            )
        return await self.service.acquire(slots, owner, timeout_s)

    def owned(self) -> bool:
        """Whether the caller holds the lock, as far as this process knows; no I/O."""
        return self.owned_by(current_owner())

    def owned_by(self, owner: int) -> bool:
        grant = self.last_of(owner)
        return grant is not None and not grant.is_lost

    async def locked(self) -> bool:
        """Whether anybody, in any process, holds the lock."""
        return bool((await self.service.use(await self.slots())).holders)


class FileLock(SlotHandle[AsyncFileLock]):
    """A lock on a file for the blocking face: ``with fs.lock(path, timeout=5) as grant``. Raises
    DeadlockError when the calling thread holds the lock already."""

    def owned(self) -> bool:
        """Whether the calling thread holds the lock, as far as this process knows; no I/O."""
        self._bridge.check_process()
        return self._face.owned_by(thread_owner())

    def locked(self) -> bool:
        """Whether anybody, in any process, holds the lock."""
        return self._bridge.run(self._face.locked())

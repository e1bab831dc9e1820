"""Locks on files: exclusive, by inode, so that they follow a file that is moved.

A slot of its own for each grant (`ringhold.locks.slots`), never kept by the session when it is
released: each grant has a key with a revision of its own, which every commit of a change under it
compares. A cached lock would have one revision for many grants.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType

from ringhold.bridge import Bridge
from ringhold.errors import DeadlockError, LockTimeout, NotOwned
from ringhold.home import Bound
from ringhold.locks.arguments import check_timeout
from ringhold.locks.held import Entered, leave_block, leave_held
from ringhold.locks.semaphore import released
from ringhold.locks.slot_grants import BlockingSlotGrant, SlotGrant, SlotService
from ringhold.locks.slots import Slots
from ringhold.owner import current_owner, thread_owner
from ringhold.store.keyspace import FILE_LOCK


def file_slots(ino: int, path: str) -> Slots:
    """The one slot of the lock on the file with the inode `ino`; `path` is told to people."""
    return Slots.of("the lock on", FILE_LOCK, ino.to_bytes(8, "big"), path, 1)


class AsyncFileLock:
    """``async with fs.lock(path) as grant``: raises LockTimeout, LockLost, FileNotFoundError."""

    def __init__(
        self,
        service: SlotService,
        path: str,
        number: Callable[[], Awaitable[int]],
        timeout: float | None,
    ):
        self.name = path
        self.service = service
        self.timeout = check_timeout(timeout)
        self._number = number
        self._slots: Slots | None = None
        self._entered: Entered[SlotGrant] = Entered()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    async def _resolved(self) -> Slots:
        self._slots = file_slots(await self._number(), self.name)
        return self._slots

    async def acquire(
        self,
        blocking: bool = True,
        timeout: float | None = None,  # noqa: ASYNC109 - the name is that of threading.Lock
    ) -> SlotGrant | None:
        """The grant, or None when it gave up. `timeout` in seconds, -1 for ever; the lock's own
        when not given. DeadlockError when the caller holds the lock already."""
        if not blocking and timeout is not None:
            raise ValueError("a timeout makes no sense without blocking")
        wait_s = self.timeout if timeout is None else check_timeout(timeout)
        try:
            return await self.grant(wait_s if blocking else 0)
        except LockTimeout:
            return None

    async def grant(self, timeout_s: float | None) -> SlotGrant:
        """As `acquire`, but raises LockTimeout."""
        slots = await self._resolved()
        held = self.service.last(slots, current_owner())
        if held is not None and not held.is_lost:
            raise DeadlockError(
                f"the lock on {self.name!r} is held by this very owner, which would wait for "
                "itself",
                name=self.name,
            )
        return await self.service.acquire(slots, current_owner(), timeout_s)

    async def try_acquire(self) -> SlotGrant | None:
        """The grant, or None at once when somebody else holds the lock or waits for it."""
        return await self.acquire(blocking=False)

    async def release(self) -> None:
        """Ends the caller's grant. NotOwned when there is none, LockLost when it had ended."""
        grant = self.last_of(current_owner())
        if grant is None:
            raise NotOwned(f"the lock on {self.name!r} is not held by the caller", name=self.name)
        await grant.release()

    def last_of(self, owner: int) -> SlotGrant | None:
        return None if self._slots is None else self.service.last(self._slots, owner)

    def owned(self) -> bool:
        """Whether the caller holds the lock, as far as this process knows; no I/O."""
        return self.owned_by(current_owner())

    def owned_by(self, owner: int) -> bool:
        grant = self.last_of(owner)
        return grant is not None and not grant.is_lost

    async def locked(self) -> bool:
        """Whether anybody, in any process, holds the lock."""
        return bool((await self.service.use(await self._resolved())).holders)

    async def __aenter__(self) -> SlotGrant:
        grant = await self.grant(self.timeout)
        self._entered.push(current_owner(), grant)
        return grant

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        caller = current_owner()
        grant = self._entered.last(caller)
        self._entered.discard(caller, grant)
        await leave_held(grant, error)


class FileLock:
    """A lock on a file for the blocking face: ``with fs.lock(path, timeout=5) as grant``."""

    def __init__(self, bound: Bound[AsyncFileLock]):
        self._bound = bound
        self.name = bound.face.name
        self._entered: Entered[BlockingSlotGrant] = Entered()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    @property
    def _lock(self) -> AsyncFileLock:
        return self._bound.face

    @property
    def _bridge(self) -> Bridge:
        return self._bound.bridge

    def acquire(
        self, blocking: bool = True, timeout: float | None = None
    ) -> BlockingSlotGrant | None:
        """The grant, or None when it gave up. `timeout` in seconds, -1 for ever; the lock's own
        when not given. DeadlockError when the calling thread holds the lock already."""

        async def acquire() -> BlockingSlotGrant | None:
            grant = await self._lock.acquire(blocking, timeout)
            return None if grant is None else self._wrapped(grant)

        return self._bridge.run(acquire(), undo=released)

    def _wrapped(self, grant: SlotGrant) -> BlockingSlotGrant:
        return BlockingSlotGrant(grant, self._bridge, self._lock.service.calls)

    def try_acquire(self) -> BlockingSlotGrant | None:
        """The grant, or None at once when somebody else holds the lock or waits for it."""
        return self.acquire(blocking=False)

    def release(self) -> None:
        """Ends this thread's grant. NotOwned when there is none, LockLost when it had ended."""
        self._bound.check_begun(lambda lock: lock.last_of(thread_owner()) is not None)
        self._bridge.finish(self._lock.release)

    def owned(self) -> bool:
        """Whether the calling thread holds the lock, as far as this process knows; no I/O."""
        self._bridge.check_process()
        return self._lock.owned_by(thread_owner())

    def locked(self) -> bool:
        """Whether anybody, in any process, holds the lock."""
        return self._bridge.run(self._lock.locked())

    def __enter__(self) -> BlockingSlotGrant:
        got: list[BlockingSlotGrant] = []

        async def enter() -> BlockingSlotGrant:
            got.append(self._wrapped(await self._lock.grant(self._lock.timeout)))
            return got[0]

        try:
            grant = self._bridge.run(enter(), undo=released)
            self._entered.push(thread_owner(), grant)
            return grant
        except BaseException:
            # An interrupt may come after the call has ended and before the block begins.
            if got:
                self._entered.discard(thread_owner(), got[0])
                if not got[0].held.released:
                    got[0].release()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        leave_block(self._entered, thread_owner(), error)

"""What the handles of slots have in common: semaphores, locks on files and elections.

Guarantees those of `ringhold.locks.slots`, and that a ``with`` block is entered holding a slot
or not at all, also by a thread that is interrupted, and that leaving it ends that very grant.
"""

from __future__ import annotations

import abc
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, ClassVar, Protocol, TypeVar

from ringhold.errors import LockTimeout, NotOwned
from ringhold.home import Bound, Home, Named
from ringhold.locks.arguments import check_timeout, wait_s
from ringhold.locks.held import Entered, leave_block, leave_held
from ringhold.locks.slot_grants import BlockingSlotGrant, SlotGrant, SlotService
from ringhold.locks.slots import Slots
from ringhold.owner import current_owner, thread_owner


class AsyncSlotHandle(abc.ABC):
    """A handle of the async face. The owner is the calling task unless one was given."""

    what: ClassVar[str]
    _slots: Slots | None = None
    """None while nobody has asked for them, so that nothing can be held."""

    def __init__(
        self, service: SlotService, name: str, timeout: float | None, owner: int | None = None
    ):
        self.service = service
        self.name = name
        self.timeout = check_timeout(timeout)
        self.owner = owner
        self._entered: Entered[SlotGrant] = Entered()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    @abc.abstractmethod
    async def slots(self) -> Slots:
        """What it takes slots of; notes it, too."""

    def _caller(self) -> int:
        return current_owner() if self.owner is None else self.owner

    async def acquire(
        self,
        blocking: bool = True,
        timeout: float | None = None,  # noqa: ASYNC109 - the name is that of threading.Lock
    ) -> SlotGrant | None:
        """The grant, or None when it gave up. `timeout` in seconds, -1 for ever; the one given
        at the beginning when not given. ValueError for a timeout with ``blocking=False``, and
        the errors of the class."""
        try:
            return await self.grant(wait_s(self.timeout, blocking, timeout))
        except LockTimeout:
            return None

    async def grant(self, timeout_s: float | None) -> SlotGrant:
        """As `acquire`, but raises LockTimeout."""
        return await self.service.acquire(await self.slots(), self._caller(), timeout_s)

    async def try_acquire(self) -> SlotGrant | None:
        """The grant, or None at once when nothing is free or somebody waits already."""
        return await self.acquire(blocking=False)

    async def release(self) -> None:
        """Ends the caller's latest grant. NotOwned when there is none, LockLost when it ended."""
        grant = self.last_of(current_owner())
        if grant is None:
            raise NotOwned(f"{self.what} {self.name!r} is not held by the caller", name=self.name)
        await grant.release()

    def last_of(self, caller: int) -> SlotGrant | None:
        owner = caller if self.owner is None else self.owner
        return None if self._slots is None else self.service.last(self._slots, owner)

    async def __aenter__(self) -> SlotGrant:
        grant = await self.grant(self.timeout)
        self._entered.push(self._caller(), grant)
        return grant

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        caller = self._caller()
        grant = self._entered.last(caller)
        self._entered.discard(caller, grant)
        await leave_held(grant, error)


class _Served(Named, Protocol):
    service: SlotService


F = TypeVar("F", bound=_Served)
H = TypeVar("H", bound=AsyncSlotHandle)


class SlotBound(Bound[F]):
    """Something of the blocking face that takes slots."""

    def _taken(
        self,
        take: Callable[[F], Awaitable[SlotGrant]],
        got: list[BlockingSlotGrant] | None = None,
    ) -> BlockingSlotGrant:
        """What `take` gets. An interrupt gives it back, or else, if it comes when the call has
        ended, leaves it in `got`."""
        bridge, face = self._bridge, self._face

        async def taking() -> BlockingSlotGrant:
            grant = BlockingSlotGrant(await take(face), bridge, face.service.calls)
            if got is not None:
                got.append(grant)
            return grant

        return bridge.run(taking(), undo=_released)


async def _released(grant: BlockingSlotGrant) -> None:
    await grant.held.release()


class SlotHandle(SlotBound[H]):
    """A handle of the blocking face. The owner is the calling thread unless one was given."""

    def __init__(self, home: Home[Any], make: Callable[[Any], H]):
        super().__init__(home, make)
        self._entered: Entered[BlockingSlotGrant] = Entered()

    def _caller(self) -> int:
        owner = self._face.owner
        return thread_owner() if owner is None else owner

    def acquire(
        self, blocking: bool = True, timeout: float | None = None
    ) -> BlockingSlotGrant | None:
        """The grant, or None when it gave up. `timeout` in seconds, -1 for ever; the one given
        at the beginning when not given. ValueError for a timeout with ``blocking=False``, and
        the errors of the class."""
        timeout_s = wait_s(self._face.timeout, blocking, timeout)
        try:
            return self._taken(lambda face: face.grant(timeout_s))
        except LockTimeout:
            return None

    def try_acquire(self) -> BlockingSlotGrant | None:
        """The grant, or None at once when nothing is free or somebody waits already."""
        return self.acquire(blocking=False)

    def release(self) -> None:
        """Ends this thread's latest grant. NotOwned when there is none, LockLost when it ended."""
        self._check_begun(lambda face: face.last_of(thread_owner()) is not None)
        self._bridge.finish(self._face.release)

    def __enter__(self) -> BlockingSlotGrant:
        owner = self._caller()
        got: list[BlockingSlotGrant] = []
        try:
            grant = self._taken(lambda face: face.grant(face.timeout), got)
            self._entered.push(owner, grant)
            return grant
        except BaseException:
            for grant in got:
                self._entered.discard(owner, grant)
                if not grant.held.released:
                    grant.release()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        leave_block(self._entered, self._caller(), error)

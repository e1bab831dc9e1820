"""Semaphores across processes: at most `limit` holders at a time, first come first served.

Guarantees are those of `ringhold.locks.slots`. A holder's death frees its slot at once on the
same host, elsewhere when its session's lease runs out. One owner may hold several slots, so that
nobody is told when it waits for itself.
"""

from __future__ import annotations

from types import TracebackType

from ringhold.bridge import Bridge
from ringhold.errors import InvalidInput, LockTimeout, NotOwned
from ringhold.home import Bound
from ringhold.locks.arguments import check_owner, check_timeout, user_name
from ringhold.locks.held import Entered, leave_block, leave_held
from ringhold.locks.records import LockParty
from ringhold.locks.slot_grants import BlockingSlotGrant, SlotGrant, SlotService
from ringhold.locks.slots import LIMIT_MAX, Slots
from ringhold.owner import current_owner, thread_owner
from ringhold.store.keyspace import SEMAPHORE
from ringhold.types import decode_name


def check_limit(limit: int) -> int:
    """TypeError, InvalidInput."""
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise TypeError(f"limit must be an int, not {type(limit).__name__}")
    if not 1 <= limit <= LIMIT_MAX:
        raise InvalidInput(f"limit must be 1 to {LIMIT_MAX}, not {limit}")
    return limit


class AsyncSemaphore:
    """``async with cluster.semaphore("x", 3) as grant``: raises LockTimeout, LockLost."""

    def __init__(
        self,
        service: SlotService,
        name: str | bytes,
        limit: int,
        *,
        timeout: float | None = -1,
        owner: int | None = None,
    ):
        raw = user_name(name)
        self.name = decode_name(raw[1:])
        self.limit = check_limit(limit)
        self.timeout = check_timeout(timeout)
        self._slots = Slots.of("semaphore", SEMAPHORE, raw, self.name, limit)
        self.service = service
        self.owner = check_owner(owner)
        self._entered: Entered[SlotGrant] = Entered()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} limit={self.limit}>"

    def _caller(self) -> int:
        return current_owner() if self.owner is None else self.owner

    async def acquire(
        self,
        blocking: bool = True,
        timeout: float | None = None,  # noqa: ASYNC109 - the name is that of threading.Lock
    ) -> SlotGrant | None:
        """The grant, or None when it gave up. `timeout` in seconds, -1 for ever; the semaphore's
        own when not given. ValueError for a timeout with ``blocking=False``. InvalidInput when
        the semaphore is in use with another limit."""
        if not blocking and timeout is not None:
            raise ValueError("a timeout makes no sense without blocking")
        wait_s = self.timeout if timeout is None else check_timeout(timeout)
        try:
            return await self.grant(wait_s if blocking else 0)
        except LockTimeout:
            return None

    async def grant(self, timeout_s: float | None) -> SlotGrant:
        """As `acquire`, but raises LockTimeout."""
        return await self.service.acquire(self._slots, self._caller(), timeout_s)

    async def try_acquire(self) -> SlotGrant | None:
        """The grant, or None at once when no slot is free or somebody waits for one."""
        return await self.acquire(blocking=False)

    async def release(self) -> None:
        """Ends the caller's latest grant. NotOwned when there is none, LockLost when it ended."""
        grant = self.last_of(self._caller())
        if grant is None:
            raise NotOwned(f"semaphore {self.name!r} is not held by the caller", name=self.name)
        await grant.release()

    def last_of(self, caller: int) -> SlotGrant | None:
        owner = caller if self.owner is None else self.owner
        return self.service.last(self._slots, owner)

    async def holders(self) -> list[LockParty]:
        """Who holds a slot, in any process, in the order of their grants."""
        return (await self.service.use(self._slots)).parties(waiting=False)

    async def waiters(self) -> list[LockParty]:
        """Who waits for a slot, in the order in which they will get one."""
        return (await self.service.use(self._slots)).parties(waiting=True)

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


class Semaphore:
    """At most `limit` holders across processes, in the manners of `threading.Semaphore`.

    >>> with cluster.semaphore("uploads", 3, timeout=5) as grant:  # doctest: +SKIP
    ...     upload()
    """

    def __init__(self, bound: Bound[AsyncSemaphore]):
        self._bound = bound
        self._entered: Entered[BlockingSlotGrant] = Entered()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} limit={self.limit}>"

    @property
    def _semaphore(self) -> AsyncSemaphore:
        return self._bound.face

    @property
    def _bridge(self) -> Bridge:
        return self._bound.bridge

    @property
    def name(self) -> str:
        return self._semaphore.name

    @property
    def limit(self) -> int:
        return self._semaphore.limit

    def _caller(self) -> int:
        return thread_owner() if self._semaphore.owner is None else self._semaphore.owner

    def acquire(
        self, blocking: bool = True, timeout: float | None = None
    ) -> BlockingSlotGrant | None:
        """The grant, or None when it gave up. `timeout` in seconds, -1 for ever; the semaphore's
        own when not given. ValueError for a timeout with ``blocking=False``. InvalidInput when
        the semaphore is in use with another limit."""

        async def acquire() -> BlockingSlotGrant | None:
            grant = await self._semaphore.acquire(blocking, timeout)
            return None if grant is None else self._wrapped(grant)

        return self._bridge.run(acquire(), undo=released)

    def _wrapped(self, grant: SlotGrant) -> BlockingSlotGrant:
        return BlockingSlotGrant(grant, self._bridge, self._semaphore.service.calls)

    def try_acquire(self) -> BlockingSlotGrant | None:
        """The grant, or None at once when no slot is free or somebody waits for one."""
        return self.acquire(blocking=False)

    def release(self) -> None:
        """Ends this thread's latest grant. NotOwned when there is none, LockLost when it ended."""
        self._bound.check_begun(lambda semaphore: semaphore.last_of(thread_owner()) is not None)
        self._bridge.finish(self._semaphore.release)

    def holders(self) -> list[LockParty]:
        """Who holds a slot, in any process, in the order of their grants."""
        return self._bridge.run(self._semaphore.holders())

    def waiters(self) -> list[LockParty]:
        """Who waits for a slot, in the order in which they will get one."""
        return self._bridge.run(self._semaphore.waiters())

    def __enter__(self) -> BlockingSlotGrant:
        owner = self._caller()
        got: list[BlockingSlotGrant] = []

        async def enter() -> BlockingSlotGrant:
            got.append(self._wrapped(await self._semaphore.grant(self._semaphore.timeout)))
            return got[0]

        try:
            grant = self._bridge.run(enter(), undo=released)
            self._entered.push(owner, grant)
            return grant
        except BaseException:
            # An interrupt may come after the call has ended and before the block begins.
            if got:
                self._entered.discard(owner, got[0])
                if not got[0].held.released:
                    got[0].release()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        leave_block(self._entered, self._caller(), error)


async def released(grant: BlockingSlotGrant | None) -> None:
    """Undoes an acquisition that was interrupted."""
    if grant is not None:
        await grant.held.release()

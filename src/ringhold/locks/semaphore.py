"""Semaphores across processes: at most `limit` holders at a time, first come first served.

Guarantees are those of `ringhold.locks.slots`. A holder's death frees its slot at once on the
same host, elsewhere when its session's lease runs out. One owner may hold several slots, so that
nobody is told when it waits for itself.
"""

from __future__ import annotations

from ringhold.errors import InvalidInput
from ringhold.locks.arguments import check_owner, user_name
from ringhold.locks.records import LockParty
from ringhold.locks.slot_grants import SlotService
from ringhold.locks.slot_handles import AsyncSlotHandle, SlotHandle
from ringhold.locks.slots import LIMIT_MAX, Slots
from ringhold.store.keyspace import SEMAPHORE
from ringhold.types import decode_name


def check_limit(limit: int) -> int:
    """TypeError, InvalidInput."""
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise TypeError(f"limit must be an int, not {type(limit).__name__}")
    if not 1 <= limit <= LIMIT_MAX:
        raise InvalidInput(f"limit must be 1 to {LIMIT_MAX}, not {limit}")
    return limit


class AsyncSemaphore(AsyncSlotHandle):
    """``async with cluster.semaphore("x", 3) as grant``: raises LockTimeout, LockLost, and
    InvalidInput when the semaphore is in use with another limit."""

    what = "semaphore"
    _slots: Slots

    def __init__(
        self,
        service: SlotService,
        name: str | bytes,
        limit: int,
        *,
        timeout: float | None = -1,
        owner: int | None = None,
    ):
        raw = user_name(name, "semaphore")
        super().__init__(service, decode_name(raw[1:]), timeout, check_owner(owner))
        self.limit = check_limit(limit)
        self._slots = Slots.of(self.what, SEMAPHORE, raw, self.name, limit)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} limit={self.limit}>"

    async def slots(self) -> Slots:
        return self._slots

    async def holders(self) -> list[LockParty]:
        """Who holds a slot, in any process, in the order of their grants."""
        return (await self.service.use(self._slots)).parties(waiting=False)

    async def waiters(self) -> list[LockParty]:
        """Who waits for a slot, in the order in which they will get one."""
        return (await self.service.use(self._slots)).parties(waiting=True)


class Semaphore(SlotHandle[AsyncSemaphore]):
    """At most `limit` holders across processes, in the manners of `threading.Semaphore`. Raises
    InvalidInput when the semaphore is in use with another limit.

    >>> with cluster.semaphore("uploads", 3, timeout=5) as grant:  # doctest: +SKIP
    ...     upload()
    """

    @property
    def limit(self) -> int:
        return self._made.limit

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} limit={self.limit}>"

    def holders(self) -> list[LockParty]:
        """Who holds a slot, in any process, in the order of their grants."""
        return self._bridge.run(self._face.holders())

    def waiters(self) -> list[LockParty]:
        """Who waits for a slot, in the order in which they will get one."""
        return self._bridge.run(self._face.waiters())

"""Elections across processes: one leader at a time, and who that is.

An election is a semaphore of one slot whose holder has a value of its own to tell. Leadership ends
with the leader's session, and each term has a larger token than the one before. The candidate is
the `AsyncElection` or `Election` object: any thread or task may resign for it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from types import TracebackType

from ringhold.errors import DeadlockError, LockTimeout, NotOwned
from ringhold.locks.arguments import check_timeout, user_name
from ringhold.locks.held import leave_held
from ringhold.locks.records import LockParty
from ringhold.locks.slot_grants import BlockingSlotGrant, SlotGrant, SlotService
from ringhold.locks.slot_handles import SlotBound
from ringhold.locks.slots import Slots, SlotUse, decode
from ringhold.owner import current_owner
from ringhold.store.keyspace import ELECTION
from ringhold.types import VALUE_BYTES_MAX, decode_name, encode_name


@dataclass(frozen=True, slots=True)
class Leader:
    """Who leads. `since`: the beginning of the term in seconds since 1970; `value`: its own."""

    session: str
    pid: int
    host: str
    token: int
    since: float
    value: str


def check_value(value: str) -> bytes:
    """TypeError, InvalidInput."""
    if not isinstance(value, str):
        raise TypeError(f"value must be str, not {type(value).__name__}")
    # Unlike a name, a value may be empty.
    return encode_name(value, "value", bytes_max=VALUE_BYTES_MAX // 2) if value else b""


def _leader(use: SlotUse) -> Leader | None:
    if not use.holders:
        return None
    party = use.parties(waiting=False)[0]
    return Leader(
        session=party.session,
        pid=party.pid,
        host=party.host,
        token=party.token,
        since=party.since,
        value=decode_name(decode(use.holders[0].value).value),
    )


class AsyncElection:
    """``async with cluster.election("x", value=address) as grant``: leads within the block."""

    def __init__(self, service: SlotService, name: str | bytes, *, value: str = ""):
        raw = user_name(name, "election")
        self.name = decode_name(raw[1:])
        self.value = value
        self._value = check_value(value)
        self.service = service
        self._slots = Slots.of("election", ELECTION, raw, self.name, 1)
        self._campaigning = False
        self._grant: SlotGrant | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    async def campaign(
        self,
        timeout: float | None = -1,  # noqa: ASYNC109 - the name is that of threading.Lock
    ) -> SlotGrant | None:
        """Waits to become the leader; the grant, or None when it gave up. `timeout` in seconds,
        -1 for ever. DeadlockError when this candidate leads or campaigns already."""
        try:
            return await self.lead(check_timeout(timeout))
        except LockTimeout:
            return None

    async def lead(self, timeout_s: float | None) -> SlotGrant:
        """As `campaign`, but raises LockTimeout."""
        grant = self._grant
        leads = grant is not None and not (grant.released or grant.is_lost)
        if leads or self._campaigning:
            raise DeadlockError(
                f"this candidate leads election {self.name!r} or campaigns for it already, "
                "and would wait for itself",
                name=self.name,
            )
        self._campaigning = True
        try:
            grant = await self.service.acquire(self._slots, current_owner(), timeout_s, self._value)
        finally:
            self._campaigning = False
        self._grant = grant
        return grant

    async def resign(self) -> None:
        """Ends this candidate's term. NotOwned when it does not lead, LockLost when that ended."""
        if self._grant is None or self._grant.released:
            raise NotOwned(f"this candidate does not lead election {self.name!r}", name=self.name)
        await self._grant.release()

    @property
    def leading(self) -> bool:
        """Whether this candidate has a term, lost or not, that it did not end."""
        return self._grant is not None and not self._grant.released

    async def leader(self) -> Leader | None:
        """Who leads, in any process."""
        return _leader(await self.service.use(self._slots))

    async def candidates(self) -> list[LockParty]:
        """Who waits to lead, in the order in which they will."""
        return (await self.service.use(self._slots)).parties(waiting=True)

    async def observe(self) -> AsyncIterator[Leader | None]:
        """Yields who leads now, None for nobody, then whenever that changes, for ever.

        What changed back in between two steps of the iteration may be left out.
        """
        leader = await self.leader()
        while True:
            yield leader
            leader = await self.other_leader(leader)

    async def other_leader(self, told: Leader | None) -> Leader | None:
        """Who leads, once that is not `told`."""
        while True:
            use = await self.service.use(self._slots)
            leader = _leader(use)
            if leader != told:
                return leader
            await self.service.until_change(self._slots, use.revision + 1)

    async def __aenter__(self) -> SlotGrant:
        return await self.lead(None)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._grant is not None:
            await leave_held(self._grant, error)


class Election(SlotBound[AsyncElection]):
    """One leader at a time across processes; this object is one candidate.

    >>> with cluster.election("scheduler", value="10.0.0.7:80") as grant:  # doctest: +SKIP
    ...     schedule(token=grant.token)
    """

    @property
    def value(self) -> str:
        return self._made.value

    def campaign(self, timeout: float | None = -1) -> BlockingSlotGrant | None:
        """Waits to become the leader; the grant, or None when it gave up. `timeout` in seconds,
        -1 for ever. DeadlockError when this candidate leads or campaigns already."""
        timeout_s = check_timeout(timeout)
        try:
            return self._taken(lambda election: election.lead(timeout_s))
        except LockTimeout:
            return None

    def resign(self) -> None:
        """Ends this candidate's term. NotOwned when it does not lead, LockLost when that ended."""
        self._check_begun(lambda election: election.leading)
        self._bridge.finish(self._face.resign)

    def leader(self) -> Leader | None:
        """Who leads, in any process."""
        return self._bridge.run(self._face.leader())

    def candidates(self) -> list[LockParty]:
        """Who waits to lead, in the order in which they will."""
        return self._bridge.run(self._face.candidates())

    def observe(self) -> Iterator[Leader | None]:
        """Yields who leads now, None for nobody, then whenever that changes, for ever.

        What changed back in between two steps of the iteration may be left out.
        """
        leader = self.leader()
        while True:
            yield leader
            leader = self._bridge.run(self._face.other_leader(leader))

    def __enter__(self) -> BlockingSlotGrant:
        got: list[BlockingSlotGrant] = []
        try:
            return self._taken(lambda election: election.lead(None), got)
        except BaseException:
            for grant in got:
                if not grant.held.released:
                    grant.release()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._check_begun(lambda election: election.leading)
        self._bridge.finish(lambda: self._face.__aexit__(kind, error, traceback))

"""The semaphores and elections of one session: taking a slot, holding it, giving it back.

Guarantees: of the grants of one name at most `limit` are unlost at a time, and each has a larger
token than every one made before it. A grant ends with its session.
"""

from __future__ import annotations

import asyncio
import itertools

from ringhold.bridge import Unpicklable, check_loop
from ringhold.env import Env
from ringhold.errors import Closed, Conflict, LockTimeout, SessionExpired
from ringhold.locks.arguments import told_s
from ringhold.locks.held import Held, HeldBlocking, ThreadCalls
from ringhold.locks.session import Session, SessionState
from ringhold.locks.slots import SlotRequest, Slots, SlotUse, read_slots, until_change
from ringhold.store.base import Born, Store
from ringhold.store.repeat import NONCE_BYTES, check_answers, commit_sure


class SlotGrant(Held):
    """A slot held. `held` is the compare that it still is; `token` fences what lies outside."""

    def __init__(
        self, service: SlotService, slots: Slots, owner: int, state: SessionState, held: Born
    ):
        super().__init__(slots.what, slots.name, slots.mode, slots.token(held.revision), state)
        self.held = held
        self.stack = (slots.prefix, owner)
        self._service = service
        # A release repeated after an error that left its outcome open must find that it was
        # done, not that the slot is gone: always the same nonce.
        self._nonce = service.env.random_bytes(NONCE_BYTES)

    async def give_back(self) -> bool:
        return await self._service.give_back(self, self._nonce)


class BlockingSlotGrant(HeldBlocking):
    """A slot held, for the blocking face: truthy, and a context manager that releases.

    `token` (int) is larger than that of every grant of the name that had ended; `lost` is set when
    the grant ended before its release.
    """


class SlotService(Unpicklable):
    """The slots of one session."""

    def __init__(self, store: Store, env: Env, session: Session):
        self.env = env
        self.calls = ThreadCalls(env)
        self._store = store
        self._session = session
        self._numbers = itertools.count()
        self._held: dict[tuple[bytes, int], list[SlotGrant]] = {}
        self._waiting = 0
        self._idle = asyncio.Event()
        self._closing = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def last(self, slots: Slots, owner: int) -> SlotGrant | None:
        """The owner's latest grant, lost or not, that was not released."""
        stack = self._held.get((slots.prefix, owner))
        return stack[-1] if stack else None

    def unreleased(self, slots: Slots) -> list[SlotGrant]:
        """The grants in this process that nobody gave back, lost ones included."""
        stacks = [stack for (prefix, _), stack in self._held.items() if prefix == slots.prefix]
        return [grant for stack in stacks for grant in stack]

    async def acquire(
        self, slots: Slots, owner: int, timeout_s: float | None, value: bytes = b""
    ) -> SlotGrant:
        """Waits for a slot for up to `timeout_s` (None: for ever, 0: tries once). LockTimeout
        when others had it all the time, StoreUnavailable when the store does not answer."""
        self._check_open()
        check_loop(self._loop)
        self._waiting += 1
        self._idle.clear()
        try:
            async with asyncio.timeout(timeout_s or None):
                state, held = await self._take(slots, owner, value, wait=timeout_s != 0)
        except TimeoutError:
            if timeout_s:
                await check_answers(self._store)
            raise LockTimeout(
                f"{slots.what} {slots.name!r} was not granted within {told_s(timeout_s)} s",
                name=slots.name,
            ) from None
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._idle.set()
        grant = SlotGrant(self, slots, owner, state, held)
        self._held.setdefault(grant.stack, []).append(grant)
        return grant

    async def _take(
        self, slots: Slots, owner: int, value: bytes, *, wait: bool
    ) -> tuple[SessionState, Born]:
        while True:
            state = await self._session.ensure()
            request = SlotRequest(
                self._store,
                self.env,
                state,
                slots,
                owner=owner,
                value=value,
                number=next(self._numbers),
                closing=self._closing,
            )
            try:
                return state, await request.run(wait=wait)
            except SessionExpired:
                # The place in the queue went with the session; start with a new one.
                state.lose()

    async def give_back(self, grant: SlotGrant, nonce: bytes) -> bool:
        """See `Held.give_back`."""
        self._check_open()
        held = not grant.is_lost
        if held:
            try:
                await commit_sure(
                    self._store,
                    self.env,
                    compares=[grant.held],
                    deletes=[grant.held.key],
                    nonce=nonce,
                )
            except Conflict:
                held = False
        stack = self._held[grant.stack]
        stack.remove(grant)
        if not stack:
            del self._held[grant.stack]
        return held

    async def use(self, slots: Slots) -> SlotUse:
        """Who holds and awaits slots, in any process."""
        self._check_open()
        await self._store.expire_leases()
        return await read_slots(self._store, slots)

    async def until_change(self, slots: Slots, from_revision: int) -> None:
        """Until a holder or waiter comes or goes at `from_revision` or later."""
        await until_change(
            self._store, slots.prefix, from_revision, self._closing, self._check_open
        )

    def _check_open(self) -> None:
        if self._closing.is_set():
            raise Closed("the cluster is closed")

    async def close(self) -> None:
        """Ends all waiting with Closed. Grants end with the session, which is closed next."""
        self._closing.set()
        if self._waiting:
            await self._idle.wait()

"""Exclusive locks straight on the store: leased, first come first served, fenced.

Guarantees: of two grants of one name that are both unlost, one was released before the other was
made; the later one has the larger token. Nobody overtakes a waiter: a newcomer takes the lock
at once only if neither holder nor waiter exists. Whoever gives up waiting - timeout,
cancellation, interrupt - leaves nothing behind; what cannot be cleaned up ends the session,
and its lease takes the keys away.

Not guaranteed: that a holder knows at once that it lost its lock. A commit that compares
`Grant.held` is safe without knowing; anything outside of the store needs the token.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable

from ringhold.env import Env, finish
from ringhold.errors import (
    Closed,
    Conflict,
    DeadlockError,
    LockTimeout,
    NotOwned,
    SessionExpired,
    Unavailable,
)
from ringhold.locks.grant import Grant as Grant
from ringhold.locks.records import LockKeys, LockParty, party_of
from ringhold.locks.request import LockRequest, closed, read_lock
from ringhold.locks.session import Session
from ringhold.store.base import Born, Store
from ringhold.store.repeat import NONCE_BYTES, commit_sure
from ringhold.types import Entry, decode_name

logger = logging.getLogger("ringhold")

VERIFY_S = 1.0
"""How often a process looks whether its grants were broken by somebody else."""


class LockService:
    """The locks of one session. Names are bytes as they stand in the store's keys."""

    def __init__(self, store: Store, env: Env, session: Session):
        self._store = store
        self._env = env
        self._session = session
        self._requests = itertools.count()
        self._held: dict[tuple[bytes, int], Grant] = {}
        self._waiting: dict[tuple[bytes, int], None] = {}
        self._idle = asyncio.Event()
        self._calls: dict[asyncio.Future[object], None] = {}
        self._verifier: asyncio.Task[None] | None = None
        self.closing = asyncio.Event()

    def random_nonce(self) -> bytes:
        return self._env.random_bytes(NONCE_BYTES)

    def call_in_thread(self, function: Callable[[], object]) -> None:
        call = asyncio.ensure_future(self._env.blocking(function))
        self._calls[call] = None
        call.add_done_callback(self._called)

    def _called(self, call: asyncio.Future[object]) -> None:
        del self._calls[call]
        if not call.cancelled() and call.exception() is not None:
            logger.error("a callback for the loss of a lock failed", exc_info=call.exception())

    def held(self, name: bytes, owner: int) -> Grant | None:
        """The grant of `owner` in this process, unless it was lost; does no I/O."""
        grant = self._held.get((name, owner))
        return None if grant is None or grant.is_lost else grant

    def last(self, name: bytes, owner: int) -> Grant | None:
        """As `held`, but also a grant that was lost and not yet given back."""
        return self._held.get((name, owner))

    def held_by_anyone(self, name: bytes) -> Grant | None:
        """The grant of `name` that some owner in this process holds."""
        for (held_name, _), grant in self._held.items():
            if held_name == name and not grant.is_lost:
                return grant
        return None

    def unreleased(self, name: bytes) -> list[Grant]:
        """The grants of `name` in this process that nobody gave back, lost ones included: what
        is done under them must be refused rather than done without the lock."""
        return [grant for (held_name, _), grant in self._held.items() if held_name == name]

    async def acquire(
        self, name: bytes, owner: int, timeout_s: float | None = None, label: str | None = None
    ) -> Grant:
        """Waits for the lock `name` for up to `timeout_s` (None: for ever, 0: tries once).

        Raises LockTimeout, and DeadlockError when `owner` holds or awaits it already. `label`
        names the lock to people.
        """
        key = (name, owner)
        label = decode_name(name) if label is None else label
        self._check_open()
        if key in self._waiting or self.held(name, owner) is not None:
            raise DeadlockError(
                f"lock {label!r} is held or awaited by this very owner, "
                "which would wait for itself",
                name=label,
            )
        self._waiting[key] = None
        self._idle.clear()
        try:
            async with asyncio.timeout(timeout_s or None):
                while True:
                    state = await self._session.ensure()
                    request = LockRequest(
                        self._store,
                        self._env,
                        state,
                        name,
                        label=label,
                        owner=owner,
                        number=next(self._requests),
                        closing=self.closing,
                    )
                    try:
                        revision = await request.run(wait=timeout_s != 0)
                        break
                    except SessionExpired:
                        # The place in the queue went with the session; start with a new one.
                        state.lose()
        except TimeoutError:
            raise LockTimeout(
                f"lock {label!r} was not granted within {timeout_s} s", name=label
            ) from None
        finally:
            del self._waiting[key]
            if not self._waiting:
                self._idle.set()
        nonce = self._env.random_bytes(NONCE_BYTES)
        grant = Grant(self, name, label, owner, state, revision, nonce)
        self._held[key] = grant
        grant.state.on_loss(grant, grant.mark_lost)
        if self._verifier is None:
            self._verifier = asyncio.ensure_future(self._verify())
        return grant

    async def release(self, grant: Grant) -> None:
        """See `Grant.release`."""
        if grant.released or grant.releasing:
            raise NotOwned(f"lock {grant.name!r} was released already", name=grant.name)
        self._check_open()
        lost = grant.is_lost
        grant.releasing = True
        try:
            await finish(asyncio.ensure_future(self._release(grant, lost=lost)))
        finally:
            grant.releasing = False

    async def _release(self, grant: Grant, *, lost: bool) -> None:
        if not lost:
            # Always the same nonce: a release repeated after an error that left its outcome
            # open must find that it was done, not that the lock is gone.
            try:
                await commit_sure(
                    self._store,
                    self._env,
                    compares=[grant.held],
                    deletes=[grant.held.key],
                    nonce=grant.release_nonce,
                )
            except Conflict:
                lost = True
        self._forget(grant)
        grant.releasing = False
        if lost:
            grant.mark_lost()
        grant.mark_released()
        if lost:
            grant.check()

    def _forget(self, grant: Grant) -> None:
        grant.state.forget(grant)
        if self._held.get(grant.key) is grant:
            del self._held[grant.key]

    async def _verify(self) -> None:
        """Looks now and then whether the grants of this process still stand in the store."""
        try:
            while self._held:
                await self._env.sleep(VERIFY_S)
                await self._verify_once([g for g in self._held.values() if not g.is_lost])
        except Closed:
            logger.debug("the store was closed while locks were held")
        finally:
            self._verifier = None

    async def _verify_once(self, grants: list[Grant]) -> None:
        try:
            snapshot = await self._store.snapshot()
            try:
                entries = await snapshot.get_many([grant.held.key for grant in grants])
            finally:
                await snapshot.close()
        except Unavailable as error:
            logger.info("looking after held locks: %s", error)
            return
        for grant, entry in zip(grants, entries, strict=True):
            if entry is None or entry.created != grant.held.revision:
                grant.mark_lost()

    async def holders(self, name: bytes) -> list[LockParty]:
        """Who holds `name`, in any process."""
        holder, _ = await self._state_of(LockKeys.of(name))
        return [] if holder is None else [party_of(holder, holds=True)]

    async def waiters(self, name: bytes) -> list[LockParty]:
        """Who waits for `name`, in the order in which they will get it."""
        _, queue = await self._state_of(LockKeys.of(name))
        return [party_of(entry, holds=False) for _, entry in queue]

    async def break_(self, name: bytes) -> bool:
        """Takes the lock from whoever holds it; whether somebody did.

        The holder's commits fail from now on; it learns of the loss within about a second.
        """
        keys = LockKeys.of(name)
        holder, _ = await self._state_of(keys)
        if holder is None:
            return False
        try:
            await commit_sure(
                self._store,
                self._env,
                compares=[Born(keys.holder, holder.created)],
                deletes=[keys.holder],
            )
        except Conflict:
            return False
        grant = self.held_by_anyone(name)
        if grant is not None and grant.held.revision == holder.created:
            grant.mark_lost()
        return True

    async def _state_of(self, keys: LockKeys) -> tuple[Entry | None, list[tuple[bytes, Entry]]]:
        """The holder's entry, and the waiters' in order of arrival."""
        self._check_open()
        await self._store.expire_leases()
        return (await read_lock(self._store, keys))[1:]

    def _check_open(self) -> None:
        if self.closing.is_set():
            raise closed()

    async def close(self) -> None:
        """Ends all waiting with Closed. Grants end with the session, which is closed next."""
        self.closing.set()
        if self._waiting:
            await self._idle.wait()
        if self._verifier is not None:
            self._verifier.cancel()
            await asyncio.gather(self._verifier, return_exceptions=True)

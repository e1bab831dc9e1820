"""Who holds and awaits a lock, in any process, and taking it away.

The store knows which sessions have a lock, and only they know who in them uses it: they are asked,
by letter. Nothing here waits for a session that does not answer for longer than half a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ringhold.env import Env
from ringhold.errors import Conflict, SessionExpired
from ringhold.locks.cache import SessionLocks
from ringhold.locks.keys import (
    PARTIES_MAX,
    Holding,
    LockKeys,
    LockState,
    Use,
    Waiting,
    look_letter,
    read_lock,
)
from ringhold.locks.records import LockParty, revision_of, token_of
from ringhold.owner import told_owner
from ringhold.store.base import Born, Put, Store
from ringhold.store.repeat import commit_sure
from ringhold.types import Mode

if TYPE_CHECKING:
    from ringhold.locks.service import LockService


class Inquiries:
    """Asks the sessions of a store on behalf of one of them."""

    def __init__(self, store: Store, env: Env, service: LockService):
        self._store = store
        self._env = env
        self._service = service

    async def holders(self, raw: bytes) -> list[LockParty]:
        """Who holds the lock, in any process; sessions that merely keep it are left out."""
        state = await self._state_of(raw)
        uses = await self._uses(raw, state)
        found: list[LockParty] = []
        for holding in state.holders:
            use = uses[holding.session]
            found += [_silent(holding)] if use is None else use.holders
        return found

    async def holder_under(self, raw: bytes, token: int) -> bytes | None:
        """The session in which the lock is held under `token`, in any process; one that does not
        answer is taken to hold it under all its tokens."""
        locks = self._service.current
        if locks is not None and any(
            party.token == token for party in self.use_of(locks, raw).holders
        ):
            return locks.state.id
        for party in await self.holders(raw):
            silent = not party.owner and revision_of(party.token) == revision_of(token)
            if party.token == token or silent:
                return bytes.fromhex(party.session)
        return None

    async def waiters(self, raw: bytes) -> list[LockParty]:
        """Who waits for the lock, in any process, in the order in which they will get it."""
        state = await self._state_of(raw)
        uses = await self._uses(raw, state)
        found: list[LockParty] = []
        for session, use in uses.items():
            waiting = state.awaited_by(session)
            if use is not None:
                found += use.waiters
            elif waiting is not None:
                found.append(_silent(waiting))
        return found

    async def _uses(self, raw: bytes, state: LockState) -> dict[bytes, Use | None]:
        """Who uses the lock within each session, first those that have it, then the queue.

        None for a session that does not answer.
        """
        sessions = dict.fromkeys(
            [holding.session for holding in state.holders]
            + [waiting.session for waiting in state.queue]
        )
        locks = self._service.current
        answers = await asyncio.gather(*(self._ask(session, raw) for session in sessions))
        uses = dict(zip(sessions, answers, strict=True))
        if locks is not None and locks.state.id not in uses:
            # Somebody here may be about to join the queue.
            uses[locks.state.id] = self.use_of(locks, raw)
        return uses

    async def _ask(self, session: bytes, raw: bytes) -> Use | None:
        locks = await self._service.open_locks()
        if session == locks.state.id:
            return self.use_of(locks, raw)
        if session in self._service.lost:
            return Use([], [])  # Its keys stand until somebody writes; what it held is lost.
        return await self._service.mailboxes[locks].ask(session, raw)

    def use_of(self, locks: SessionLocks, raw: bytes) -> Use:
        state = locks.state

        def party(owner: int, mode: Mode, token: int) -> LockParty:
            record = state.record
            return LockParty(
                session=state.id.hex(),
                owner=told_owner(owner),
                mode=mode.value,
                token=token,
                pid=record.pid,
                host=record.host,
                since=record.opened_s,
            )

        holders, waiters = ([], []) if state.expired else locks.parties(raw)
        held = []
        for owner, mode in holders:
            grant = self._service.held.get((raw, owner))
            held.append(party(owner, mode, 0 if grant is None else grant.token))
        return Use(held, [party(owner, mode, 0) for owner, mode in waiters])

    async def break_(self, raw: bytes) -> bool:
        """Takes the lock from whoever holds it; whether somebody did.

        The holders' commits fail from now on. Those of this session know it when this returns,
        others learn of it by a letter. A lock that is merely kept stays where it is.
        """
        if not await self.holders(raw):
            return False
        keys = LockKeys.of(raw)
        until = None
        while True:
            state = await read_lock(self._store, keys)
            # Of more sharers than one commit takes, those who held it when the first were broken.
            held = [each for each in state.holders if until is None or each.since <= until]
            if not held:
                break
            if not await self._break(keys, held[:PARTIES_MAX]):
                await self._store.expire_leases()
            elif len(held) <= PARTIES_MAX:
                break
            elif until is None:
                until = state.revision
        if self._service.current is not None:
            await self._service.current.broken(raw)
        return True

    async def _break(self, keys: LockKeys, holders: Sequence[Holding]) -> bool:
        """False when the holders changed meanwhile."""
        try:
            await commit_sure(
                self._store,
                self._env,
                compares=[Born(holding.key, holding.since) for holding in holders],
                puts=[
                    Put(look_letter(holding.session, keys.name), b"", holding.session)
                    for holding in holders
                ],
                deletes=[*(holding.key for holding in holders), keys.delay],
            )
        except (Conflict, SessionExpired):
            return False
        return True

    async def _state_of(self, raw: bytes) -> LockState:
        self._service.check_open()
        await self._store.expire_leases()
        return await read_lock(self._store, LockKeys.of(raw))


def _silent(party: Holding | Waiting) -> LockParty:
    """A session that does not tell who in it holds or awaits the lock."""
    record = party.record
    return LockParty(
        session=party.session.hex(),
        owner=0,
        mode=party.mode.value,
        token=token_of(party.since) if isinstance(party, Holding) else 0,
        pid=record.pid,
        host=record.host,
        since=record.since_s,
    )

"""Deadlocks among sessions: told, found, made sure of, and ended by one who gives up.

Once a session has waited for `PATIENCE_S` it looks whether something that others want is held
up by a wait of its own (`waits`). If so it tells by its record w<session>, under its lease, and
then reads the records of all sessions and the queues they speak of at one revision (`cycles`).
Whoever of a circle tells last finds it. Nothing is told of a wait that holds nobody up.

A record may be out of date: who waits gives up, or another thread gives back what is held, and
the store learns of it later. So whoever finds a circle asks all sessions in it whether what they
told is still true, by the very same grants and waits. If it is, it was at the moment of the
snapshot, which lies between telling and asking: the circle was there. Then it takes its part out
of its record, in a commit that compares those of all others, and the wait raises DeadlockError.
Of two who find the same circle, or two that have a session in common, one commits first and the
other looks again. So a circle costs one wait, and no wait is ended but for a circle.

Not guaranteed: that a circle is found in time when a session of it does not answer; whoever found
it looks again until it is gone.

Source: InnoDB builds its graph from a snapshot and verifies it before it picks a victim
(lock0wait.cc); that a deadlock is stable, and so may be put together from observations before
and after a moment, is in K. M. Chandy and L. Lamport, "Distributed Snapshots" (ACM TOCS, 1985).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from ringhold.env import Env
from ringhold.errors import (
    Closed,
    Conflict,
    DeadlockError,
    OutcomeUnknown,
    RingholdError,
    SessionExpired,
)
from ringhold.locks.cycles import Cycle, WaitEdge, WaitRecord, Waits, encode_waits
from ringhold.locks.keys import Claim
from ringhold.locks.session import SessionState
from ringhold.locks.waits import HeldUp
from ringhold.store.base import Compare, Put, Store
from ringhold.store.keyspace import waits_key
from ringhold.store.repeat import commit_sure

logger = logging.getLogger("ringhold")

PATIENCE_S = 0.2
"""How long a wait lasts before it is thought of, and how often is looked after that."""

LOOK_S = 0.5
"""How often who has told looks again though nothing has changed."""

RECORD_BYTES_MAX = 512 << 10
"""Of the names in a record. Beyond it holds are left out, and circles through them not found."""

Ask = Callable[[bytes, Claim], Awaitable[bool]]
"""Whether a session stands by a claim."""


class Waiting(Protocol):
    """Who waits in a session."""

    def queues(self) -> bool:
        """Whether the session stands in any queue."""

    def awaits(self, name: bytes, since: int) -> bool:
        """Whether somebody waits behind the session's place of `since` in a queue."""

    def held_up(self) -> tuple[list[HeldUp], float]:
        """Locks wanted by others that waits of `PATIENCE_S` hold up; when to look again, in s."""

    def refuse(self, held_up: HeldUp, error: DeadlockError) -> None:
        """Ends the wait that `held_up` ends with."""


class Deadlocks:
    """See the module. All methods run on the session's loop."""

    def __init__(self, store: Store, env: Env, state: SessionState, waiting: Waiting):
        self.ask: Ask = _silence
        self._store = store
        self._env = env
        self._state = state
        self._waiting = waiting
        self._key = waits_key(state.id)
        self._told: list[HeldUp] = []
        self._told_at = 0
        """The revision of the record that says `_told`; 0 when that is not known."""
        self._again = False
        """To look for a circle at once though nothing has changed here."""
        self._looked_ns = 0
        self._ended = False
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def queued(self) -> None:
        """The session has begun to wait for some lock."""
        if self._timer is None:
            self._schedule(PATIENCE_S)

    def settled(self) -> None:
        """Some wait may be over. If none holds anybody up any more the record goes at once;
        other changes can wait, or a busy session would tell of each."""
        if self._told and not self._waiting.held_up()[0]:
            self._schedule(0)

    def _schedule(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._task is None and not self._ended:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        self._timer = None
        found, look_s = self._waiting.held_up()
        found = _fitting(found)
        idle_ns = self._env.clock.monotonic_ns() - self._looked_ns
        if found != self._told or self._again or (found and idle_ns >= LOOK_S * 1e9):
            self._task = asyncio.ensure_future(self._tell(found))
            self._task.add_done_callback(self._done)
        elif found or self._waiting.queues():
            self._schedule(look_s)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled() and task.exception() is not None:
            logger.error("looking for deadlocks failed", exc_info=task.exception())
            self._state.lose()
        else:
            self._schedule(PATIENCE_S)

    async def _tell(self, found: list[HeldUp]) -> None:
        try:
            if found != self._told or not self._told_at:
                await self._commit([], found)
            self._again = False
            if found:
                await self._find()
        except Conflict:
            self._again = True  # Another circle was ended, or this one, or somebody moved.
        except SessionExpired:
            self._state.lose()
        except Closed:
            self._ended = True
        except OutcomeUnknown:
            self._told_at, self._again = 0, True
        except RingholdError as error:
            logger.info("looking for deadlocks: %s", error)
            self._again = True

    async def _commit(self, compares: Sequence[Compare], told: list[HeldUp]) -> None:
        """Replaces the session's record."""
        edges = [WaitEdge(each.held, each.since, each.awaited, each.queued) for each in told]
        puts = [Put(self._key, encode_waits(WaitRecord(edges)), self._state.id)] if told else []
        deletes = [] if told else [self._key]
        self._told_at = await commit_sure(
            self._store, self._env, compares=compares, puts=puts, deletes=deletes
        )
        self._told = told

    async def _find(self) -> None:
        self._looked_ns = self._env.clock.monotonic_ns()
        snapshot = await self._store.snapshot()
        try:
            waits = Waits(snapshot)
            await waits.read()
            cycle = await waits.cycle_of(self._state.id)
        finally:
            await snapshot.close()
        if cycle is not None:
            self._again = True
            if await self._is_sure(cycle):
                await self._end(cycle)

    async def _is_sure(self, cycle: Cycle) -> bool:
        claims = cycle.claims(self._state.id)
        own = claims.pop(self._state.id)
        answers = await asyncio.gather(
            *(self.ask(session, claim) for session, claim in claims.items()),
            return_exceptions=True,
        )
        return all(answer is True for answer in answers) and self.stands_by(own)

    def stands_by(self, claim: Claim) -> bool:
        """Whether what this session told has been true ever since, and it still waits where its
        keys say so."""
        if claim.pairs and claim.revision != self._told_at:
            return False
        now, _ = self._waiting.held_up()
        true = {(each.held, each.awaited): None for each in self._told if each in now}
        told = all((held, awaited) in true for held, awaited in claim.pairs)
        return told and all(self._waiting.awaits(*place) for place in claim.places)

    async def _end(self, cycle: Cycle) -> None:
        given_up = next(each for each in self._told if (each.held, each.awaited) == cycle.own)
        rest = [each for each in self._told if each is not given_up]
        await self._commit(cycle.compares(), rest)
        self._again = False
        found, _ = self._waiting.held_up()
        if given_up in found:
            self._waiting.refuse(given_up, DeadlockError(str(cycle)))

    def end(self) -> None:
        """The session is lost or closed."""
        self._ended = True
        self._schedule(0)
        if self._task is not None:
            self._task.cancel()

    async def ended(self) -> None:
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)


def _fitting(found: list[HeldUp]) -> list[HeldUp]:
    sizes = itertools.accumulate(len(each.held) + len(each.awaited) for each in found)
    return [each for each, size in zip(found, sizes, strict=True) if size <= RECORD_BYTES_MAX]


async def _silence(_session: bytes, _claim: Claim) -> bool:
    return False

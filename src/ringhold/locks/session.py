"""The session of an open cluster: one lease that locks, files and transactions hang on.

Guarantees: a session's id is drawn at random and never used again. A session that was once
found expired stays expired, in every thread; whatever was bound to it is lost, and the next
operation opens a new one. The deadline counts from the moment a renewal was *sent*, on the clock
that runs on while the machine sleeps, less a margin; it therefore passes before the store can
end the lease, and is judged where it matters (`SessionState.check`), since after a pause of the
process user code may run before any timer.

A store that cannot be written cannot end a lease either, and judges leases by the time during
which it could be written. So when the deadline passes while a renewal sent before it is still
unanswered, or was refused with StoreUnavailable, the store is asked how long the lease is safe,
and until then the session lives on, suspended. Who did not ask in time, or stood still for a
whole TTL, is held to the deadline.

Not guaranteed: that `check` is still true a moment later. What must hold compares
`SessionState.born` in its commit.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from ringhold.bridge import stand_still
from ringhold.env import Env, process_id
from ringhold.errors import (
    Closed,
    InvalidInput,
    RingholdError,
    SessionExpired,
    StoreUnavailable,
)
from ringhold.locks import farewell
from ringhold.store.base import Born, Put, Store
from ringhold.store.keyspace import session_key
from ringhold.store.repeat import commit_sure

logger = logging.getLogger("ringhold")

SESSION_BYTES = 12
COUNTER_END = 1 << 32
TTL_S_MIN = 1.0
TTL_S_MAX = 86_400.0
RETRY_PAUSE_S = 0.1
PAUSE_S_MAX = 0.5
"""Timers stand still while the machine sleeps, the deadline does not: look at the clock often."""

LOOK_NS = 100_000_000
"""Between two looks at a session that lives on beyond its deadline."""


class SessionRecord(msgspec.Struct, frozen=True, array_like=True):
    """Key S<session>: who opened it, for people; nothing is decided by it."""

    pid: int
    host: str
    opened_s: float


encode_record = msgspec.msgpack.Encoder().encode
decode_record = msgspec.msgpack.Decoder(SessionRecord).decode


class Phase(enum.StrEnum):
    """What a session may be relied on for."""

    ACTIVE = "active"
    SUSPENDED = "suspended"
    """What is held stays; nothing new is granted without asking the store."""
    EXPIRED = "expired"
    """For ever."""


@dataclass(frozen=True, slots=True)
class _Timing:
    ttl_ns: int
    margin_ns: int

    def deadline_ns(self, sent_ns: int) -> int:
        return sent_ns + self.ttl_ns - self.margin_ns

    def fresh_until_ns(self, sent_ns: int) -> int:
        # The next renewal is due after a quarter and overdue after another one; with TTLs from
        # TTL_S_MIN on that is no later than a margin before the deadline.
        return sent_ns + self.ttl_ns // 2


class SessionState:
    """One session. `born` is the compare that it is alive; `next_id` gives ids never reused.

    `fresh_until_ns`: before this moment on `Clock.boottime_ns` a lock may be granted from the
    cache. An attribute, since every such grant looks at it, in any thread; 0 once the session
    is lost or a renewal failed.
    """

    def __init__(
        self,
        session_id: bytes,
        born: Born,
        record: SessionRecord,
        env: Env,
        timing: _Timing,
        sent_ns: int,
        lease_until: Callable[[bytes], int | None],
    ):
        self.id = session_id
        self.born = born
        self.record = record
        self.ttl_s = timing.ttl_ns / 1e9
        self.fresh_until_ns = timing.fresh_until_ns(sent_ns)
        self._env = env
        self._timing = timing
        self._lease_until = lease_until
        self._deadline_ns = timing.deadline_ns(sent_ns)
        self._seen_ns = env.clock.boottime_ns()
        # Whether the store was asked in time and has not answered since. What opened the
        # session counts if the answer took longer than the deadline.
        self._unanswered = self._seen_ns >= self._deadline_ns
        self._lost = False
        self.forsaken = False
        self._counter = 0
        self._announced = False
        self._on_loss: dict[object, Callable[[], object]] = {}
        self._wake = asyncio.Event()

    @property
    def deadline_ns(self) -> int:
        """On `Clock.boottime_ns`; from then on the session is expired unless the store could
        not answer a renewal sent before."""
        return self._deadline_ns

    @property
    def state(self) -> Phase:
        """Callable from any thread."""
        if self.expired:
            return Phase.EXPIRED
        fresh = self._env.clock.boottime_ns() < self.fresh_until_ns
        return Phase.ACTIVE if fresh else Phase.SUSPENDED

    @property
    def expired(self) -> bool:
        """Whether the session is lost; once true it stays true. Callable from any thread."""
        if self._lost:
            if self.forsaken:
                stand_still()
            return True
        # In this order: a renewal answered meanwhile raises the deadline before it takes back
        # that one is unanswered.
        now_ns, unanswered = self._env.clock.boottime_ns(), self._unanswered
        if now_ns >= self._deadline_ns and not (unanswered and self._lives_on(now_ns)):
            self._mark_lost()
        return self._lost

    def _lives_on(self, now_ns: int) -> bool:
        """Whether the store says so, to a process that was there to hear its answer."""
        if now_ns - self._seen_ns >= self._timing.ttl_ns:
            return False
        try:
            until_ns = self._lease_until(self.id)
        except RingholdError as error:
            logger.info("the lease of session %s cannot be judged: %s", self.id.hex(), error)
            return False
        return until_ns is not None and self._env.clock.boottime_ns() < until_ns

    def _mark_lost(self) -> None:
        # Never taken back: a renewal that comes at this very moment must not revive what
        # another thread was just told is lost. Hence 0 also after the flag (see `renewed`).
        self.fresh_until_ns = 0
        self._lost = True
        self.fresh_until_ns = 0

    def check(self) -> None:
        """Raises SessionExpired once the deadline has passed."""
        if self.expired:
            raise SessionExpired(
                f"session {self.id.hex()} has expired; the next operation opens a new one",
                session=self.id,
            )

    def next_id(self) -> bytes:
        """16 bytes: the session's id and a big-endian counter. SessionExpired when used up."""
        self.check()
        if self.exhausted:
            raise SessionExpired(f"session {self.id.hex()} has given all its ids", session=self.id)
        counter = self._counter
        self._counter += 1
        return self.id + counter.to_bytes(4, "big")

    @property
    def exhausted(self) -> bool:
        return self._counter >= COUNTER_END

    def on_loss(self, key: object, callback: Callable[[], object]) -> None:
        """Calls `callback` on the loop when the session is lost, until `forget(key)`; at once when
        that was announced already."""
        if self._announced:
            callback()
        else:
            self._on_loss[key] = callback

    def forget(self, key: object) -> None:
        self._on_loss.pop(key, None)

    def lose(self) -> None:
        """Gives the session up: its lease is revoked as soon as the store answers."""
        self._mark_lost()
        self._wake.set()

    def forsake(self) -> None:
        """The process ends, and nothing may be relied on any more. Callable from any thread."""
        self.forsaken = True
        self._mark_lost()

    def renewing(self, sent_ns: int) -> None:
        """A renewal is sent at this moment."""
        if sent_ns < self._deadline_ns:
            self._unanswered = True

    def renewed(self, sent_ns: int) -> None:
        """The renewal sent at that moment was answered."""
        if self.expired:
            return
        self._deadline_ns = self._timing.deadline_ns(sent_ns)
        if self._env.clock.boottime_ns() < self._deadline_ns:
            # Otherwise the answer came too late to count; what the store says counts on.
            self._unanswered = False
        self.fresh_until_ns = self._timing.fresh_until_ns(sent_ns)
        if self._lost:
            self.fresh_until_ns = 0

    def refused(self, *, unavailable: bool) -> None:
        """The renewal failed; `unavailable`: because the store could not answer."""
        self.fresh_until_ns = 0
        if not unavailable:
            self._unanswered = False

    def seen(self, now_ns: int) -> None:
        """The loop runs at this moment. To be told after `expired` was judged."""
        self._seen_ns = now_ns

    def announce_loss(self) -> None:
        self._announced = True
        self._mark_lost()
        self._wake.set()
        callbacks = list(self._on_loss.values())
        self._on_loss.clear()
        for callback in callbacks:
            callback()

    async def pause(self, until_ns: int) -> None:
        """Until `until_ns` on the boot clock, the session is given up, or PAUSE_S_MAX passed."""
        pause_s = min((until_ns - self._env.clock.boottime_ns()) / 1e9, PAUSE_S_MAX)
        if pause_s <= 0 or self._lost:
            return
        sleeper = asyncio.ensure_future(self._env.sleep(pause_s))
        waiter = asyncio.ensure_future(self._wake.wait())
        try:
            await asyncio.wait([sleeper, waiter], return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeper.cancel()
            waiter.cancel()
            await asyncio.gather(sleeper, waiter, return_exceptions=True)


def check_ttl(ttl_s: float) -> None:
    """TypeError, InvalidInput."""
    if isinstance(ttl_s, bool) or not isinstance(ttl_s, (int, float)):
        raise TypeError(f"session_ttl must be a number of seconds, not {type(ttl_s).__name__}")
    if not TTL_S_MIN <= ttl_s <= TTL_S_MAX:
        raise InvalidInput(f"session_ttl must be {TTL_S_MIN} to {TTL_S_MAX} s, not {ttl_s!r}")


class Session:
    """Opens a session on first use, renews it, and opens another after it expired."""

    def __init__(self, store: Store, env: Env, *, ttl_s: float = 10.0):
        check_ttl(ttl_s)
        self._store = store
        self._env = env
        self._ttl_s = float(ttl_s)
        ttl_ns = int(ttl_s * 1e9)
        self._timing = _Timing(ttl_ns, max(250_000_000, ttl_ns // 20))
        self._current: SessionState | None = None
        self._opening: asyncio.Task[SessionState] | None = None
        self._keepers: dict[SessionState, asyncio.Task[None]] = {}
        self._closed = False

    @property
    def current(self) -> SessionState | None:
        """The open session, if there is one; opens none."""
        state = self._current
        return None if state is None or state.expired else state

    async def ensure(self) -> SessionState:
        """The session that is alive now; opens one if there is none."""
        if self._closed:
            raise Closed("the cluster is closed")
        state = self._current
        # One that is only exhausted keeps being renewed: locks may hang on it.
        if state is not None and not (state.expired or state.exhausted):
            return state
        if self._opening is None:
            self._opening = asyncio.ensure_future(self._open())
            self._opening.add_done_callback(self._opened)
        # Whoever is cancelled leaves it to the others who wait for it, or who come later.
        return await asyncio.shield(self._opening)

    def _opened(self, opening: asyncio.Task[SessionState]) -> None:
        self._opening = None
        if not opening.cancelled() and opening.exception() is not None:
            logger.debug("a session could not be opened: %s", opening.exception())

    async def _open(self) -> SessionState:
        session_id = self._env.random_bytes(SESSION_BYTES)
        key = session_key(session_id)
        record = SessionRecord(process_id(), os.uname().nodename, self._env.clock.wall())
        sent_ns = self._env.clock.boottime_ns()
        await self._store.grant_lease(session_id, self._ttl_s)
        try:
            put = Put(key, encode_record(record), session_id)
            revision = await commit_sure(self._store, self._env, puts=[put])
        except RingholdError:
            # If that fails as well, or this was cancelled, it runs out: nobody renews it.
            with contextlib.suppress(RingholdError):
                await self._store.revoke_lease(session_id)
            raise
        born = Born(key, revision)
        lease_until = self._store.lease_until
        state = SessionState(
            session_id, born, record, self._env, self._timing, sent_ns, lease_until
        )
        self._current = state
        farewell.owe(state, self._store)
        keeper = asyncio.ensure_future(self._keep(state, sent_ns))
        self._keepers[state] = keeper
        keeper.add_done_callback(lambda _: self._keepers.pop(state, None))
        return state

    async def _keep(self, state: SessionState, sent_ns: int) -> None:
        # Two tasks, since a renewal that hangs in the store must not delay the news of the loss.
        async with asyncio.TaskGroup() as group:
            group.create_task(self._renew(state, sent_ns))
            group.create_task(self._watch_deadline(state))

    async def _watch_deadline(self, state: SessionState) -> None:
        while not state.expired:
            now_ns = self._env.clock.boottime_ns()
            state.seen(now_ns)
            due_ns = state.deadline_ns if now_ns < state.deadline_ns else now_ns + LOOK_NS
            due_ns = min(due_ns, now_ns + int(PAUSE_S_MAX * 1e9))
            await state.pause(due_ns)
            self._warn_if_late(state, self._env.clock.boottime_ns() - due_ns)
        if not state.forsaken:
            logger.warning("session %s is lost, and with it what it held", state.id.hex())
        state.announce_loss()

    def _warn_if_late(self, state: SessionState, late_ns: int) -> None:
        if late_ns > self._timing.ttl_ns // 2:
            logger.warning(
                "the event loop that renews session %s stood still for %.1f s: code held the GIL "
                "or blocked the loop, or the process or the machine was stopped; after %g s "
                "the session is lost with everything it holds",
                state.id.hex(),
                late_ns / 1e9,
                self._ttl_s,
            )

    async def _renew(self, state: SessionState, sent_ns: int) -> None:
        interval_ns = self._timing.ttl_ns // 4
        pause_ns = int(RETRY_PAUSE_S * 1e9)
        next_ns = sent_ns + interval_ns
        while not state.expired:
            await state.pause(next_ns)
            sent_ns = self._env.clock.boottime_ns()
            if state.expired or sent_ns < next_ns:
                continue
            state.renewing(sent_ns)
            try:
                await self._store.renew_lease(state.id)
            except SessionExpired:
                state.lose()
            except RingholdError as error:
                # Told once in a row: a full disk refuses ten times a second.
                level = logging.WARNING if state.fresh_until_ns else logging.DEBUG
                logger.log(level, "renewal of session %s failed: %s", state.id.hex(), error)
                state.refused(unavailable=isinstance(error, StoreUnavailable))
                next_ns = self._env.clock.boottime_ns() + pause_ns
            else:
                state.renewed(sent_ns)
                # A store slower than the interval must not be asked without a pause.
                next_ns = max(sent_ns + interval_ns, self._env.clock.boottime_ns() + pause_ns)
        await self._revoke_lost(state)
        farewell.settle(state)

    async def _revoke_lost(self, state: SessionState) -> None:
        # Others need not wait for the lease to run out. It does so by itself after one TTL,
        # since nobody renews it any more; then trying is over.
        give_up_ns = self._env.clock.boottime_ns() + self._timing.ttl_ns
        while self._env.clock.boottime_ns() < give_up_ns:
            try:
                await self._store.revoke_lease(state.id)
                return
            except Closed:
                return
            except RingholdError as error:
                logger.info("lease of lost session %s: %s", state.id.hex(), error)
            await self._env.sleep(RETRY_PAUSE_S)

    async def close(self) -> None:
        """Ends the session and everything bound to it; later calls of `ensure` raise Closed."""
        self._closed = True
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.gather(self._opening, return_exceptions=True)
        keepers = list(self._keepers.items())
        for _, keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*(keeper for _, keeper in keepers), return_exceptions=True)
        for state, _ in keepers:
            alive = not state.expired
            farewell.settle(state)
            state.announce_loss()
            if alive:
                try:
                    await self._store.revoke_lease(state.id)
                except StoreUnavailable as error:
                    logger.warning("session %s is left to expire: %s", state.id.hex(), error)

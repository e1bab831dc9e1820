"""What a session does in the store to get a lock and to give it back.

Guarantees: of two sessions that hold a lock in modes that exclude each other, one gave it back
before the other got it: every commit that makes a holder compares that nobody is in its way.
Sessions are served in the order of their arrival, upgrades first. A releaser hands the lock to
the next session in the same commit, under that session's lease; if that session is dead the
commit fails and the one behind it is tried. Whoever finds the holder gone takes the lock itself,
if it is first in the queue.

Not guaranteed: that a letter is read. Waiters look by themselves now and then, so a lost letter
costs time and nothing else.

All methods run on the session's loop; those for one lock never at the same time.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence

from ringhold.env import Env
from ringhold.errors import Conflict, DeadlockError, OutcomeUnknown, SessionExpired
from ringhold.locks.cached_lock import Broken, CachedLock, Demand, Refused
from ringhold.locks.following import LOOK_S, Following
from ringhold.locks.keys import (
    EXCLUSIVE,
    PARTIES_MAX,
    SHARED,
    DelayRecord,
    HolderRecord,
    Holding,
    LockState,
    WaiterRecord,
    Waiting,
    decode_delay,
    encode,
    first_base,
    last_base,
    look_letter,
    read_lock,
    served_together,
)
from ringhold.locks.session import SessionState
from ringhold.store.base import Born, Compare, Empty, NoneBornAfter, Put, Store, Unchanged
from ringhold.store.repeat import commit_sure
from ringhold.types import Entry, Mode

TICK_S = 0.04
"""How often a waiting session looks for holders that died and letters that were lost, if the
store does not end leases by itself."""

TRY_S = 0.5
"""How long another session is waited for that has a lock somebody would rather not wait for."""

REMIND_S = 1.0
"""How often it asks the holders again."""


class Claims:
    """`queued` is told whenever the session has joined a queue."""

    def __init__(self, store: Store, env: Env, state: SessionState, queued: Callable[[], None]):
        self._store = store
        self._env = env
        self._state = state
        self._me = state.id
        opener = state.record
        self._pid, self._host = opener.pid, opener.host
        self._expired_ns = 0
        self._queued = queued
        self._unasked = store.leases_end_unasked

    # Getting it

    async def fetch(self, lock: CachedLock, demand: Demand) -> None:
        """Until the session holds the lock as demanded, or nobody demands it any more.

        Raises Refused when somebody would rather not wait any longer; the place in the queue
        stays for those who would.
        """
        wanted = demand()
        if wanted is not None and lock.mode is None and lock.queued is None:
            try:
                await self._take(lock, wanted.mode, [Empty(lock.keys.prefix, lock.keys.end)])
                return
            except Conflict:
                lock.wanted = None  # Somebody is there, if he lives: see who.
                await self._expire_others()
        async with self._following(lock) as following:
            await self._fetch_queued(lock, demand, following)

    async def _fetch_queued(self, lock: CachedLock, demand: Demand, following: Following) -> None:
        reminded_ns, queued_ns = 0, self._now()
        while True:
            lock.wake.clear()
            if lock.mode is None:
                lock.look = False  # This is the look that a letter asks for.
            state = await read_lock(self._store, lock.keys)
            own = state.held_by(self._me)
            if own is not None and lock.queued is not None:
                self._adopt(lock, own.mode, own.since)
                lock.wanted = self._first_other(state)
                return
            if lock.queued is not None and state.awaited_by(self._me) is None:
                await self._find_queue_left(lock)
            if lock.mode is not None and (own is None or own.since != lock.since):
                await self._check_session()
                raise Broken
            wanted = demand()
            if wanted is None:
                if await self._leave_queue(lock, state):
                    return
                continue
            mode, patient, trying = wanted
            if lock.mode is mode:
                lock.wanted = self._first_other(state)
                return  # Who wanted more has given up.
            blockers, left_s = state.before(self._me, mode), LOOK_S
            if not blockers and state.delay is not None and not state.holders:
                left_s = await self._delay_left_s(lock, state.delay)
                if left_s <= 0 and await self._take_seen(lock, mode, state):
                    return
                if left_s > 0 and not patient:
                    raise Refused
            elif not blockers:
                if await self._take_seen(lock, mode, state):
                    return
                continue
            if lock.queued is None:
                if not patient and any(isinstance(other, Waiting) for other in blockers):
                    raise Refused
                await self._enqueue(lock, mode, patient, state)
                reminded_ns = queued_ns = self._now()
                continue
            try_left_s = TRY_S - (self._now() - queued_ns) / 1e9 if trying else LOOK_S
            if try_left_s <= 0:
                raise Refused
            if self._now() - reminded_ns > REMIND_S * 1e9:
                reminded_ns = self._now()
                await self._remind(lock, state.holders)
            awaited = [lock.queued.key, *(blocker.key for blocker in blockers)]
            following.await_end(awaited, state.revision)
            await self._tick(lock, min(left_s, try_left_s))

    async def _delay_left_s(self, lock: CachedLock, entry: Entry) -> float:
        """How long to wait since the last holder disappeared without giving the lock back."""
        record, now_ns = decode_delay(entry.value), self._now()
        if 0 < record.noticed_ns <= now_ns:
            return record.delay_s - (now_ns - record.noticed_ns) / 1e9
        noticed = Put(lock.keys.delay, encode(DelayRecord(record.delay_s, now_ns)))
        with contextlib.suppress(Conflict):  # Somebody else noticed it, or it is over.
            await self._commit([Unchanged(lock.keys.delay, entry.revision)], [noticed], [])
        return record.delay_s

    def _now(self) -> int:
        return self._env.clock.boottime_ns()

    async def _take_seen(self, lock: CachedLock, mode: Mode, state: LockState) -> bool:
        """Takes the lock as `state` shows it free; False when it has changed."""
        keys = lock.keys
        compares: list[Compare] = [keys.nobody(b"x")]
        if mode is EXCLUSIVE:
            compares += keys.no_sharer_but(self._me)
        if lock.queued is not None:
            compares.append(lock.queued)
        else:
            compares.append(NoneBornAfter(keys.prefix + b"q", keys.prefix + b"r", state.revision))
        if lock.mode is SHARED:
            compares.append(lock.held(self._me))
        try:
            await self._take(lock, mode, compares)
        except Conflict:
            return False
        lock.wanted = self._first_other(state)
        return True

    async def _take(self, lock: CachedLock, mode: Mode, compares: Sequence[Compare]) -> None:
        keys = lock.keys
        deletes = [keys.delay, look_letter(self._me, lock.name)]
        if lock.mode is SHARED:
            deletes.append(keys.holder(SHARED, self._me))
        if lock.queued is not None:
            deletes.append(lock.queued.key)
        puts = [Put(keys.holder(mode, self._me), self._holder(), self._me)]
        revision = await self._commit(compares, puts, deletes)
        self._adopt(lock, mode, revision)

    def _adopt(self, lock: CachedLock, mode: Mode, since: int) -> None:
        """The session holds the lock in `mode` since the revision `since`."""
        lock.queued = None
        lock.mode, lock.since = mode, since
        lock.base = first_base(since)
        lock.base_end = last_base(lock.base)
        lock.granted_ns = self._now()

    def _first_other(self, state: LockState) -> Waiting | None:
        return next((each for each in state.queue if each.session != self._me), None)

    async def _find_queue_left(self, lock: CachedLock) -> None:
        """The session's place in the queue is gone: it was refused, or its lease has ended."""
        lock.queued = None
        await self._check_session()
        raise Refused

    async def _leave_queue(self, lock: CachedLock, state: LockState) -> bool:
        """False when the lock was granted instead, or a holder has died.

        The holders are told: for the sake of this session they keep newcomers of theirs waiting.
        """
        if lock.queued is None:
            return True
        letters = self._letters(lock, state.holders[:PARTIES_MAX])
        try:
            await self._commit([lock.queued], letters, [lock.queued.key])
        except Conflict:
            return False
        except SessionExpired:
            await self._expect_other()
            return False
        lock.queued = None
        await self._remind(lock, state.holders[PARTIES_MAX:])
        return True

    async def _enqueue(self, lock: CachedLock, mode: Mode, patient: bool, state: LockState) -> None:
        """Joins the queue and asks the holders; does nothing when they have changed."""
        others = [holding for holding in state.holders if holding.session != self._me]
        first = others[:PARTIES_MAX]
        compares: list[Compare] = [Born(holding.key, holding.since) for holding in first]
        deletes = []
        if lock.mode is SHARED:
            # Its sharers here have finished, and others may be first.
            compares.append(lock.held(self._me))
            deletes.append(lock.keys.holder(SHARED, self._me))
        key = lock.keys.waiter(self._me)
        puts = [self._waiter(key, mode, patient), *self._letters(lock, first)]
        try:
            revision = await self._commit(compares, puts, deletes)
        except Conflict:
            return
        except SessionExpired:
            await self._expect_other()
            return
        if lock.mode is SHARED:
            lock.mode = None
        self._joined(lock, key, revision)
        await self._remind(lock, others[PARTIES_MAX:])

    def _joined(self, lock: CachedLock, key: bytes, revision: int) -> None:
        lock.queued = Born(key, revision)
        self._queued()

    def _waiter(self, key: bytes, mode: Mode, patient: bool) -> Put:
        since_s = self._env.clock.wall()
        record = WaiterRecord(mode.value, not patient, self._pid, self._host, since_s)
        return Put(key, encode(record), self._me)

    def _holder(self) -> bytes:
        return encode(HolderRecord(self._pid, self._host, self._env.clock.wall()))

    def _letters(self, lock: CachedLock, to: Sequence[Holding | Waiting]) -> list[Put]:
        """One to each session, under its own lease: it goes when the session does."""
        sessions = dict.fromkeys(each.session for each in to if each.session != self._me)
        return [Put(look_letter(each, lock.name), b"", each) for each in sessions]

    async def _remind(self, lock: CachedLock, to: Sequence[Holding | Waiting]) -> None:
        for start in range(0, len(to), PARTIES_MAX):
            try:
                await self._commit([], self._letters(lock, to[start : start + PARTIES_MAX]), [])
            except SessionExpired:
                await self._expect_other()

    async def _check_session(self) -> None:
        """SessionExpired when the store does not know the session any more."""
        snapshot = await self._store.snapshot()
        try:
            entry = await snapshot.get(self._state.born.key)
        finally:
            await snapshot.close()
        if entry is None or entry.created != self._state.born.revision:
            self._state.lose()
        self._state.check()

    async def _expect_other(self) -> None:
        """A lease that a commit needed is gone: another session's, or SessionExpired."""
        await self._check_session()
        await self._store.expire_leases()

    async def _tick(self, lock: CachedLock, look_s: float = LOOK_S) -> None:
        """Waits for news of the lock, then ends the leases of who died. SessionExpired."""
        self._state.check()
        look_s = min(look_s, LOOK_S) if self._unasked else TICK_S
        timer = asyncio.get_running_loop().call_later(look_s, lock.wake.set)
        try:
            await lock.wake.wait()
        finally:
            timer.cancel()
        await self._expire_others()

    def _following(self, lock: CachedLock) -> Following:
        return Following(self._store, lock.keys.prefix, lock.wake.set)

    async def _expire_others(self) -> None:
        if self._unasked:
            return
        now_ns = self._now()
        if now_ns - self._expired_ns > TICK_S * 0.9e9:
            self._expired_ns = now_ns
            await self._store.expire_leases()

    # More of it

    async def upgrade(self, lock: CachedLock, demand: Demand) -> None:
        """From shared to exclusive, before all who wait; DeadlockError if another session is
        about to do the same."""
        async with self._following(lock) as following:
            await self._upgrade_queued(lock, demand, following)

    async def _upgrade_queued(self, lock: CachedLock, demand: Demand, following: Following) -> None:
        queue_key = lock.keys.waiter(self._me, upgrade=True)
        reminded_ns = 0
        while True:
            lock.wake.clear()
            state = await self._own_state(lock)
            lock.wanted = self._first_other(state)
            others = [holding for holding in state.holders if holding.session != self._me]
            if not others:
                compares: list[Compare] = [lock.held(self._me)]
                compares += lock.keys.no_sharer_but(self._me)
                try:
                    await self._take(lock, EXCLUSIVE, compares)
                except Conflict:
                    continue
                return
            if demand() is None:
                if await self._leave_queue(lock, state):
                    return
                continue
            if lock.queued is None:
                if any(waiting.upgrade for waiting in state.queue):
                    raise DeadlockError("another session waits to upgrade the same lock")
                await self._enqueue_upgrade(lock, queue_key, others)
                reminded_ns = self._now()
                continue
            if self._now() - reminded_ns > REMIND_S * 1e9:
                reminded_ns = self._now()
                await self._remind(lock, others)
            awaited = [lock.queued.key, *(holding.key for holding in others)]
            following.await_end(awaited, state.revision)
            await self._tick(lock)

    async def _enqueue_upgrade(
        self, lock: CachedLock, key: bytes, others: Sequence[Holding]
    ) -> None:
        compares: list[Compare] = [lock.held(self._me), lock.keys.nobody(b"q0")]
        letters = self._letters(lock, others[:PARTIES_MAX])
        puts = [self._waiter(key, EXCLUSIVE, True), *letters]
        try:
            revision = await self._commit(compares, puts, [])
        except Conflict:
            return
        except SessionExpired:
            await self._expect_other()
            return
        self._joined(lock, key, revision)
        await self._remind(lock, others[PARTIES_MAX:])

    # Giving it back

    async def examine(self, lock: CachedLock) -> None:
        """Notes who waits for the lock. Broken when the session does not hold it any more."""
        lock.look = False
        lock.wanted = self._first_other(await self._own_state(lock))

    async def _own_state(self, lock: CachedLock) -> LockState:
        state = await read_lock(self._store, lock.keys)
        own = state.held_by(self._me)
        if own is None or own.since != lock.since:
            await self._check_session()
            raise Broken
        return state

    async def refuse(self, lock: CachedLock) -> None:
        """Sends those away who would not wait. Broken as in `examine`."""
        state = await self._own_state(lock)
        away = [waiting for waiting in state.queue if waiting.record.impatient]
        for waiting in away:
            try:
                await self._commit(
                    [Born(waiting.key, waiting.since)],
                    self._letters(lock, [waiting]),
                    [waiting.key],
                )
            except (Conflict, SessionExpired):
                continue
        lock.wanted = next(
            (each for each in state.queue if each.session != self._me and each not in away), None
        )

    async def give(self, lock: CachedLock, demand: Demand, *, keep_shared: bool) -> None:
        """Hands the lock to who is next; without anybody only if it is to be dropped.

        `keep_shared`: the session goes on sharing it. Otherwise it queues again, in the same
        commit, if the lock is demanded here.
        """
        while True:
            state = await self._own_state(lock)
            lock.wanted = self._first_other(state)
            if lock.wanted is None and not lock.drop:
                return
            if keep_shared and lock.wanted is not None and lock.wanted.mode is EXCLUSIVE:
                return  # The gate is open to sharers: it has to be closed first.
            try:
                if lock.mode is SHARED:
                    await self._give_share(lock, state)
                elif lock.wanted is None:
                    await self._drop(lock)
                else:
                    await self._hand_over(lock, state, demand, keep_shared=keep_shared)
            except Conflict:
                continue
            except SessionExpired:
                await self._expect_other()
                continue
            return

    async def _give_share(self, lock: CachedLock, state: LockState) -> None:
        # Whoever is first sees for himself whether this was the last one in his way.
        own = lock.held(self._me)
        letters = self._letters(lock, [] if lock.wanted is None else [lock.wanted])
        await self._commit([own], letters, [own.key, look_letter(self._me, lock.name)])
        self._gave(lock)

    async def _drop(self, lock: CachedLock) -> None:
        own = lock.held(self._me)
        deletes = [own.key, lock.keys.delay, look_letter(self._me, lock.name)]
        await self._commit([own, lock.keys.nobody(b"q")], [], deletes)
        self._gave(lock)

    async def _hand_over(
        self, lock: CachedLock, state: LockState, demand: Demand, *, keep_shared: bool
    ) -> None:
        keys, own = lock.keys, lock.held(self._me)
        granted = served_together([each for each in state.queue if each.session != self._me])
        granted, told = granted[:PARTIES_MAX], granted[PARTIES_MAX:]
        compares: list[Compare] = [own]
        deletes = [own.key, keys.delay, look_letter(self._me, lock.name)]
        puts = self._letters(lock, granted)
        for waiting in granted:
            compares.append(Born(waiting.key, waiting.since))
            deletes.append(waiting.key)
            record = waiting.record
            holder = HolderRecord(record.pid, record.host, self._env.clock.wall())
            key = keys.holder(waiting.mode, waiting.session)
            puts.append(Put(key, encode(holder), waiting.session))
        again = None if keep_shared else demand()
        queue_key = keys.waiter(self._me)
        if keep_shared:
            puts.append(Put(keys.holder(SHARED, self._me), self._holder(), self._me))
        elif again is not None and again.patient:
            puts.append(self._waiter(queue_key, again.mode, True))
        revision = await self._commit(compares, puts, deletes)
        self._gave(lock)
        if keep_shared:
            self._adopt(lock, SHARED, revision)
            lock.look = True  # For those who wait behind the sharers that were just let in.
        elif again is not None and again.patient:
            self._joined(lock, queue_key, revision)
        # Sharers with nobody exclusive before them: told to look, they take their shares.
        await self._remind(lock, told)

    def _gave(self, lock: CachedLock) -> None:
        lock.mode, lock.wanted, lock.drop, lock.delay_s = None, None, False, 0.0

    # Terms

    async def set_delay(self, lock: CachedLock, delay_s: float) -> None:
        """Makes the delay after a disappearance at least `delay_s`, while the lock is held."""
        if lock.delay_s < delay_s:
            put = Put(lock.keys.delay, encode(DelayRecord(delay_s, 0)))
            await self._commit([lock.held(self._me)], [put], [])
            lock.delay_s = delay_s

    async def drop_delay(self, lock: CachedLock) -> None:
        """The session ends as it should: nobody is to be kept waiting for it."""
        if lock.delay_s:
            await self._commit([lock.held(self._me)], [], [lock.keys.delay])
            lock.delay_s = 0.0

    async def _commit(
        self, compares: Sequence[Compare], puts: Sequence[Put], deletes: Sequence[bytes]
    ) -> int:
        try:
            return await commit_sure(
                self._store, self._env, compares=compares, puts=puts, deletes=deletes
            )
        except OutcomeUnknown:
            # Nobody can say what is there; without its lease it will not stay.
            self._state.lose()
            raise

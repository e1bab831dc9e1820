"""The work on the locks of one session: what each needs in the store, and who is woken.

Guarantees: what one lock needs in the store is done by one task, step after step. The session
gives a lock back only while its gate is closed (see `cache`). Whoever the table grants a lock is
woken, wherever he waits.

`release`, `tell`, `table` and `locks` serve any thread; everything else runs on the session's
loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import itertools
import logging
import threading
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from ringhold.core import LockTable
from ringhold.env import Env
from ringhold.errors import (
    Closed,
    DeadlockError,
    LockLost,
    LockTimeout,
    NotOwned,
    RingholdError,
    SessionExpired,
)
from ringhold.locks.cached_lock import Broken, CachedLock, Refused, Wanted
from ringhold.locks.claims import Claims
from ringhold.locks.deadlocks import PATIENCE_S, Deadlocks
from ringhold.locks.keys import EXCLUSIVE, SHARED
from ringhold.locks.session import SessionState
from ringhold.locks.waits import HeldUp, LocalWaits, OwnerWait
from ringhold.owner import next_owner
from ringhold.store.base import Store
from ringhold.types import Mode, TableGrant, encode_name

A = TypeVar("A")

logger = logging.getLogger("ringhold")

MIN_HOLD_S = 0.010
"""How long a session keeps a lock that others want before it gives it back: handing it over at
every release would make each acquisition cost a commit."""

CACHED_MAX = 10_000
"""Idle locks beyond this number are given back, the oldest first."""

TRIMMED_AT_ONCE = 8
CHECK_S = 1.0
"""How often a waiter looks by itself whether it was granted what it waits for."""

RETRY_S = 0.1

Key = tuple[bytes, int]
"""A lock's name and an owner."""

Step = Callable[[CachedLock], Awaitable[None]]


@dataclass(slots=True, eq=False)
class Waiter:
    since_ns: int
    future: asyncio.Future[None]
    mode: Mode
    patient: bool
    upgrade: bool

    @property
    def waits(self) -> bool:
        """Whether it does, and for as long as it takes."""
        return self.patient and not self.future.done()


class ThreadWaiter:
    """A thread that waits for a grant; whoever makes room wakes it, without the loop."""

    __slots__ = ("_asleep", "error", "since_ns")

    def __init__(self, since_ns: int) -> None:
        self.since_ns = since_ns
        self.error: RingholdError | None = None
        self._asleep = threading.Lock()
        self._asleep.acquire()

    @property
    def waits(self) -> bool:
        return self.error is None

    def wake(self, error: RingholdError | None = None) -> None:
        self.error = error or self.error
        with contextlib.suppress(RuntimeError):  # It was woken already.
            self._asleep.release()

    def sleep(self, seconds: float) -> None:
        self._asleep.acquire(timeout=seconds)


class Keeper:
    """See the module. `on_broken` is told of a lock that somebody took from this session;
    `grant_of` tells under which grant an owner holds a name."""

    def __init__(
        self,
        store: Store,
        env: Env,
        state: SessionState,
        on_broken: Callable[[CachedLock], None],
        grant_of: Callable[[Key], object],
    ):
        self.state = state
        self.table = LockTable(hash_seed=int.from_bytes(env.random_bytes(8), "little"))
        self.locks: dict[bytes, CachedLock] = {}
        self.deadlocks = Deadlocks(store, env, state, self)
        self.claims = Claims(store, env, state, self.deadlocks.queued)
        self._env = env
        self._grant_of = grant_of
        self._on_broken = on_broken
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[Key, Waiter] = {}
        self._threads: dict[Key, ThreadWaiter] = {}
        self._tasks: dict[CachedLock, asyncio.Task[None]] = {}
        self._ended = False
        self._end_error: RingholdError | None = None

    def release(self, name: bytes, owner: int) -> None:
        """Undoes one acquisition and wakes who got the lock by that."""
        grants = self.table.release(name, owner)
        if grants:
            self.tell(grants)

    def tell(self, grants: Iterable[TableGrant]) -> None:
        """Wakes those whom the table granted something."""
        rest = []
        for grant in grants:
            waiter = self._threads.get((encode_name(grant.name, "lock name"), grant.owner))
            if waiter is None:
                rest.append(grant)
            else:
                waiter.wake()
        if rest:
            self._call_loop(self._deliver, rest)

    def _call_loop(self, function: Callable[[A], object], argument: A) -> None:
        try:
            self._loop.call_soon_threadsafe(function, argument)
        except RuntimeError:
            logger.debug("the event loop that a lock was to be seen to on has ended")

    def _deliver(self, grants: Iterable[TableGrant]) -> None:
        for text, owner, _, _ in grants:
            name = encode_name(text, "lock name")
            waiter = self._threads.get((name, owner))
            lock = self.locks.get(name)
            if waiter is not None:
                waiter.wake()
            elif lock is not None and lock.gate == owner:
                lock.wake.set()
            else:
                self._settle((name, owner))

    def _settle(self, key: Key) -> None:
        """Wakes the waiter if the table says that it holds what it waits for."""
        waiter = self._waiting.get(key)
        if waiter is not None and not waiter.future.done() and self._has(key, waiter.mode):
            waiter.future.set_result(None)

    def _has(self, key: Key, mode: Mode) -> bool:
        held = self.table.mode(*key)
        return held is mode or held is EXCLUSIVE

    async def _lock_of(self, name: bytes) -> CachedLock:
        """The lock, with its gate closed if it is new."""
        while True:
            lock = self.locks.get(name)
            if lock is not None:
                return lock
            gate = next_owner()
            if self.table.try_acquire(name, gate):
                lock = self.locks[name] = CachedLock(name, gate)
                return lock
            # A thread is about to undo what it got from a lock that was forgotten meanwhile.
            await asyncio.sleep(0.001)

    def look(self, name: bytes) -> None:
        """Somebody says that there is news of the lock."""
        lock = self.locks.get(name)
        if lock is not None:
            lock.look = True
            self.poke(lock)

    def poke(self, lock: CachedLock) -> None:
        """Has whoever works on the lock look again."""
        lock.wake.set()
        if lock not in self._tasks and not lock.dead and not self._ended:
            task = asyncio.ensure_future(self._work(lock))
            self._tasks[lock] = task
            task.add_done_callback(functools.partial(self._worked, lock))

    def parties(self, name: bytes) -> tuple[list[tuple[int, Mode]], list[tuple[int, Mode]]]:
        """Who holds and who awaits the lock within this process."""
        lock = self.locks.get(name)
        gate = 0 if lock is None else lock.gate
        holders = [party for party in self.table.holders(name) if party[0] != gate]
        return holders, [party for party in self.table.waiters(name) if party[0] != gate]

    # Deadlocks with other sessions

    def queues(self) -> bool:
        """See `deadlocks.Waiting`."""
        return any(lock.queued is not None for lock in self._tasks)

    def awaits(self, name: bytes, since: int) -> bool:
        """See `deadlocks.Waiting`."""
        lock = self.locks.get(name)
        if lock is None or lock.queued is None or lock.queued.revision != since:
            return False
        wanted = self._demand(lock)
        return wanted is not None and wanted.patient

    def held_up(self) -> tuple[list[HeldUp], float]:
        """See `deadlocks.Waiting`."""
        wanted = [lock for lock in self._tasks if lock.mode is not None and lock.wanted is not None]
        if not (wanted and self.queues()):
            return [], PATIENCE_S
        patience_ns = int(PATIENCE_S * 1e9)
        now_ns = self._env.clock.monotonic_ns()
        waits = self._owner_waits()
        local = LocalWaits(self.table, self.locks, waits, self._grant_of, now_ns - patience_ns)
        found = [held_up for lock in wanted for held_up in local.holding_up(lock)]
        unripe_ns = local.first_unripe_ns
        left_ns = patience_ns if unripe_ns is None else unripe_ns + patience_ns - now_ns
        return found, left_ns / 1e9

    def _owner_waits(self) -> dict[int, OwnerWait]:
        found = {}
        waiters: list[tuple[Key, Waiter | ThreadWaiter]] = [*self._waiting.items()]
        waiters += list(self._threads.items())
        for (name, owner), waiter in waiters:
            if waiter.waits:
                found[owner] = OwnerWait(name, waiter.since_ns, waiter)
        return found

    def refuse(self, held_up: HeldUp, error: DeadlockError) -> None:
        """See `deadlocks.Waiting`."""
        name, waiter = held_up.awaited, held_up.waiter
        if isinstance(waiter, ThreadWaiter):
            waiter.wake(error)
        elif isinstance(waiter, Waiter) and not waiter.future.done():
            waiter.future.set_exception(error)
            self._deliver(self.table.cancel(name, held_up.owner))
        self.poke(self.locks[name])

    # The work on one lock

    def _worked(self, lock: CachedLock, task: asyncio.Task[None]) -> None:
        del self._tasks[lock]
        if not task.cancelled() and task.exception() is not None:
            logger.error("the work on a lock failed", exc_info=task.exception())
            self.state.lose()
        elif lock.wake.is_set():
            self.poke(lock)

    async def _work(self, lock: CachedLock) -> None:
        while not (self._ended or lock.dead):
            lock.wake.clear()
            step = self._next_step(lock)
            if step is None:
                return
            try:
                await step(lock)
            except Refused:
                refusal = LockTimeout("the lock is held or awaited")
                self._fail(lock, refusal, lambda waiter: not waiter.patient)
            except DeadlockError as error:
                self._fail(lock, error, lambda waiter: waiter.upgrade)
            except Broken:
                await self._replace(lock)
            except (SessionExpired, Closed):
                self.state.lose()
                return
            except RingholdError as error:
                self._fail(lock, error, lambda waiter: True)
                await self._env.sleep(RETRY_S)
            self.deadlocks.settled()
            # Reads of the store need not suspend: let others run between two steps.
            await asyncio.sleep(0)

    def _next_step(self, lock: CachedLock) -> Step | None:
        waiters = self._queued_here(lock)
        if lock.mode is None:
            if waiters or lock.queued is not None:
                return self._fetch
            self._forget(lock)
            return None
        if lock.look:
            return self.claims.examine
        if waiters and lock.mode is SHARED and waiters[0][1] is EXCLUSIVE:
            upgrades = self.table.mode(lock.name, waiters[0][0]) is not None
            return self._upgrade if upgrades else self._exchange
        return self._sweep if lock.wanted is not None or lock.drop else None

    def _queued_here(self, lock: CachedLock) -> list[tuple[int, Mode]]:
        return [party for party in self.table.waiters(lock.name) if party[0] != lock.gate]

    def _demand(self, lock: CachedLock) -> Wanted | None:
        """In which mode the lock is wanted next here, and by whom."""
        owners = self._queued_here(lock)
        if not owners:
            return None
        waiters = [self._waiting.get((lock.name, owner)) for owner, _ in owners]
        # Who does not wait on the loop waits on a thread, and as long as it takes.
        patience = [waiter is None or waiter.patient for waiter in waiters]
        return Wanted(owners[0][1], any(patience), not all(patience))

    def _upgrade_demand(self, lock: CachedLock) -> Wanted | None:
        owners = self._queued_here(lock)
        waits = bool(owners) and self.table.mode(lock.name, owners[0][0]) is not None
        return Wanted(EXCLUSIVE, True, False) if waits else None

    async def _fetch(self, lock: CachedLock) -> None:
        await self.claims.fetch(lock, functools.partial(self._demand, lock))
        self._set_gate(lock)
        if len(self.locks) > CACHED_MAX:
            self._trim()

    async def _upgrade(self, lock: CachedLock) -> None:
        await self.claims.upgrade(lock, functools.partial(self._upgrade_demand, lock))
        self._set_gate(lock)

    async def _exchange(self, lock: CachedLock) -> None:
        """Shared here, wanted exclusively by somebody else here: when the sharers are done."""
        try:
            if await self._close_gate(lock, EXCLUSIVE, lambda: self._writer_waits(lock)):
                await self.claims.fetch(lock, functools.partial(self._demand, lock))
        finally:
            self._set_gate(lock)

    async def _sweep(self, lock: CachedLock) -> None:
        """Gives the lock back, to others or because it has been idle."""
        wanted = lock.wanted
        if wanted is not None and wanted.record.impatient and self._in_use(lock):
            await self.claims.refuse(lock)
            return
        if not (lock.drop or self._queued_here(lock)):
            # Waiters here keep their place before the gate only if it queues at once.
            kept_s = (self._env.clock.boottime_ns() - lock.granted_ns) / 1e9
            if kept_s < MIN_HOLD_S:
                await self._env.sleep(MIN_HOLD_S - kept_s)
        share = (
            lock.mode is EXCLUSIVE
            and not lock.drop
            and wanted is not None
            and wanted.mode is SHARED
            and self._in_use(lock)
        )
        try:
            mode = SHARED if share else EXCLUSIVE
            if await self._close_gate(lock, mode, lambda: lock.wanted is not None or lock.drop):
                demand = functools.partial(self._demand, lock)
                await self.claims.give(lock, demand, keep_shared=share)
        finally:
            self._set_gate(lock)

    def _in_use(self, lock: CachedLock) -> bool:
        return bool(self.table.holders(lock.name)) and self.parties(lock.name) != ([], [])

    def _writer_waits(self, lock: CachedLock) -> bool:
        queued = self._queued_here(lock)
        return bool(queued) and queued[0][1] is EXCLUSIVE

    async def _close_gate(self, lock: CachedLock, mode: Mode, needed: Callable[[], bool]) -> bool:
        """Waits until the gate holds the name in `mode`; False when that was called off, or is
        not `needed` any more."""
        lock.stop = False
        try:
            if self.table.request(lock.name, lock.gate, mode):
                return True
        except DeadlockError:
            return False  # Somebody here waits to upgrade: that comes first.
        try:
            while not self._has((lock.name, lock.gate), mode):
                if lock.stop or not needed():
                    return False
                if lock.look:
                    # Nobody should be kept waiting who would not, or for who went away.
                    lock.look = False
                    await self.claims.refuse(lock)
                    continue
                if not await self._woken(lock):
                    lock.look = True
        finally:
            if not self._ended:
                self._deliver(self.table.cancel(lock.name, lock.gate))
        return True

    async def _woken(self, lock: CachedLock) -> bool:
        """False when it is time to look without being told."""
        lock.wake.clear()
        try:
            async with asyncio.timeout(CHECK_S):
                return await lock.wake.wait()
        except TimeoutError:
            return False

    def _set_gate(self, lock: CachedLock) -> None:
        """Opens the gate as far as the session holds the lock."""
        if self._ended or lock.dead:
            return
        key = (lock.name, lock.gate)
        if lock.mode is EXCLUSIVE:
            while self.table.mode(*key) is not None:
                self._deliver(self.table.release(*key))
        elif lock.mode is SHARED and self.table.mode(*key) is EXCLUSIVE:
            self._deliver(self.table.downgrade(*key, SHARED))

    def _forget(self, lock: CachedLock) -> None:
        # In this order: a thread that gets the name from now on finds the lock dead.
        lock.dead = True
        del self.locks[lock.name]
        while self.table.mode(lock.name, lock.gate) is not None:
            self._deliver(self.table.release(lock.name, lock.gate))

    def _trim(self) -> None:
        """Has some of the oldest locks given back, if they are idle."""
        for lock in list(itertools.islice(self.locks.values(), TRIMMED_AT_ONCE)):
            # To the end, so that others are looked at next time.
            self.locks[lock.name] = self.locks.pop(lock.name)
            if lock not in self._tasks and not self._in_use(lock):
                lock.drop = True
                self.poke(lock)

    async def _replace(self, lock: CachedLock) -> None:
        """The lock was taken from the session: who held it lost it, who waits waits on."""
        lock.dead = True
        self._on_broken(lock)
        owners = self._queued_here(lock)
        for owner, _ in self.table.waiters(lock.name):
            self.table.cancel(lock.name, owner)
        for owner, _ in self.table.holders(lock.name):
            # A thread may release at this very moment.
            with contextlib.suppress(NotOwned):
                while self.table.mode(lock.name, owner) is not None:
                    self.table.release(lock.name, owner)
        del self.locks[lock.name]
        fresh = await self._lock_of(lock.name)
        for owner, mode in owners:
            waiter = self._waiting.get((lock.name, owner))
            if waiter is None or waiter.future.done():
                # A thread finds the lock dead and asks on the loop.
                self._wake_thread((lock.name, owner), None)
                continue
            if waiter.upgrade:
                waiter.future.set_exception(LockLost("the lock was broken"))
            elif self.table.request(lock.name, owner, mode):
                waiter.future.set_result(None)
        self.poke(fresh)

    def _fail(
        self, lock: CachedLock, error: RingholdError, concerned: Callable[[Waiter], bool]
    ) -> None:
        """Tells those who wait here; each gets an error of its own."""
        for owner, _ in self._queued_here(lock):
            waiter = self._waiting.get((lock.name, owner))
            told = copy.copy(error)
            told.__cause__ = error.__cause__
            if waiter is None and not isinstance(error, (LockTimeout, DeadlockError)):
                self._wake_thread((lock.name, owner), told)
            elif waiter is not None and not waiter.future.done() and concerned(waiter):
                waiter.future.set_exception(told)
                # At once: until its task runs the request would be seen to again and again.
                self._deliver(self.table.cancel(lock.name, owner))

    def _wake_thread(self, key: Key, error: RingholdError | None) -> None:
        waiter = self._threads.get(key)
        if waiter is not None:
            waiter.wake(error)

"""The locks of one session: what it holds in the store, dealt out within the process.

The C lock table decides who in this process has a lock. What the session does not hold in the
store is kept from everybody by the lock's *gate*, an owner of the table of its own: it holds the
name exclusively while the session has nothing, shared while the session shares the lock, and not
at all while the session has it alone. To give a lock back the gate queues for it like anybody
else, so that who is inside finishes first and nobody who comes later gets in.

Guarantees: a grant within the process is one of the table, made while the gate was open; the
session gives a lock back only while its gate is closed. What one lock needs in the store is done
by one task, step after step, so users who give up never cancel a commit of it.

`release`, `tell`, `table` and `locks` serve any thread; everything else runs on the session's
loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
from typing import TypeVar

from ringhold.errors import (
    Conflict,
    DeadlockError,
    InvalidInput,
    LockLost,
    LockTimeout,
    RingholdError,
)
from ringhold.locks.cached_lock import CachedLock
from ringhold.locks.keeper import CHECK_S, MIN_HOLD_S, Keeper, Key, ThreadWaiter, Waiter
from ringhold.locks.keys import EXCLUSIVE, SHARED
from ringhold.types import Mode

A = TypeVar("A")

logger = logging.getLogger("ringhold")


class SessionLocks(Keeper):
    """See the module."""

    def acquire_here(self, lock: CachedLock, key: Key, mode: Mode, timeout_s: float | None) -> bool:
        """Waits on the calling thread for a lock that the session has; False when it is to be
        asked for on the loop instead.

        Raises DeadlockError, LockTimeout, and what the store raises if the session gave the lock
        away meanwhile and cannot have it again. Leaves nothing behind when it raises.
        """
        if key in self._threads:
            raise DeadlockError("it is awaited by this very owner")
        if timeout_s == 0 and not self._in_the_way(lock, mode):
            return False
        now = self._env.clock.monotonic_ns
        end_ns = None if timeout_s is None else now() + int(timeout_s * 1e9)
        waiter = self._threads[key] = ThreadWaiter(now())
        try:
            granted = bool(self.table.request(*key, mode))
            while not (granted or self._ended or lock.dead):
                # The session may have given the lock away, or kept a share of it only, meanwhile.
                self._call_loop(self.poke, lock)
                if waiter.error is not None:
                    raise waiter.error
                left_s = CHECK_S if end_ns is None else (end_ns - now()) / 1e9
                if left_s <= 0:
                    raise LockTimeout("the lock was not granted in time")
                waiter.sleep(min(left_s, CHECK_S))
                granted = self._has(key, mode)
            fresh = self._env.clock.boottime_ns() < self.state.fresh_until_ns
            if granted and fresh and not (lock.dead or lock.exhausted):
                return True
            self._withdraw_here(lock, key)
            return False
        except BaseException:
            self._withdraw_here(lock, key)
            raise
        finally:
            self._threads.pop(key, None)

    def _withdraw_here(self, lock: CachedLock, key: Key) -> None:
        self.tell(self.table.cancel(*key))
        if self.table.mode(*key) is not None:
            self.release(*key)
        self._call_loop(self.poke, lock)

    # The loop

    async def acquire(self, key: Key, mode: Mode, *, patient: bool, delay_s: float) -> CachedLock:
        """Waits until the owner holds the name.

        Raises DeadlockError, LockTimeout (not `patient`, and there is somebody to wait for),
        SessionExpired, and what the store raises. Leaves nothing behind when it raises.
        """
        while True:
            self._check_ended()
            lock = await self._lock_of(key[0])
            if lock.exhausted:
                await self._renew(lock)
                continue
            granted = bool(self.table.try_acquire(*key, mode))
            if not granted and not patient and self._in_the_way(lock, mode):
                raise LockTimeout("the lock is held or awaited")
            if not granted and not self.table.request(*key, mode):
                await self._wait(lock, self._waiter(mode, patient, False), key)
            found = self.locks.get(key[0])
            if found is None or not self._has(key, mode):
                continue  # The lock was taken from the session before this task ran again.
            if found.exhausted:
                self.release(*key)
            elif found.delay_s >= delay_s or await self._set_delay(found, key, delay_s):
                return found

    def _in_the_way(self, lock: CachedLock, mode: Mode) -> bool:
        """Whether somebody here holds or awaits the lock, or others wait for somebody here.

        Not so while the session merely gives it away: that may be over for those who got it.
        """
        parties = self.table.holders(lock.name) + self.table.waiters(lock.name)
        users = [other for owner, other in parties if owner != lock.gate]
        closing = any(owner == lock.gate for owner, _ in self.table.waiters(lock.name))
        return closing or any(EXCLUSIVE in (mode, other) for other in users)

    async def _set_delay(self, lock: CachedLock, key: Key, delay_s: float) -> bool:
        """False, and the lock is released, when it was taken from the session meanwhile."""
        try:
            await self.claims.set_delay(lock, delay_s)
        except BaseException as error:
            if not (lock.dead or self._ended):
                self.release(*key)
                self.look(lock.name)
            if isinstance(error, Conflict):
                return False
            raise
        return not lock.dead

    async def _renew(self, lock: CachedLock) -> None:
        """Gets the lock afresh from the store: its tokens are used up."""
        lock.drop = True
        self.poke(lock)
        await self._env.sleep(MIN_HOLD_S)
        self.state.check()

    async def upgrade(self, key: Key) -> CachedLock:
        """From shared to exclusive; DeadlockError when somebody else is about to do the same."""
        lock = self.locks[key[0]]
        if lock.exhausted:
            raise InvalidInput("a lock was upgraded too often within one grant: release it first")
        # The gate must not be taken for another upgrade: this one comes before what it wants.
        self._deliver(self.table.cancel(lock.name, lock.gate))
        lock.stop = True
        lock.wake.set()
        if not self.table.request(*key, EXCLUSIVE):
            await self._wait(lock, self._waiter(EXCLUSIVE, True, True), key)
        if self.locks.get(key[0]) is not lock:
            raise LockLost("the lock was broken")
        self.release(*key)  # It counted as an acquisition; the mode stays.
        return lock

    def downgrade(self, key: Key) -> CachedLock:
        """From exclusive to shared."""
        self._deliver(self.table.downgrade(*key, SHARED))
        return self.locks[key[0]]

    def _waiter(self, mode: Mode, patient: bool, upgrade: bool) -> Waiter:
        future: asyncio.Future[None] = self._loop.create_future()
        return Waiter(self._env.clock.monotonic_ns(), future, mode, patient, upgrade)

    async def _wait(self, lock: CachedLock, waiter: Waiter, key: Key) -> None:
        self._waiting[key] = waiter
        self.poke(lock)
        try:
            while not waiter.future.done():
                await asyncio.wait([waiter.future], timeout=CHECK_S)
                # A thread that was interrupted after its release may have told nobody.
                self._settle(key)
            waiter.future.result()
        except BaseException:
            if not self._ended:
                self._withdraw(key, waiter)
            raise
        finally:
            del self._waiting[key]

    def _withdraw(self, key: Key, waiter: Waiter) -> None:
        """Takes a request back, and what it may have got meanwhile."""
        self._deliver(self.table.cancel(*key))
        held = self.table.mode(*key)
        if waiter.upgrade and held is EXCLUSIVE:
            self._deliver(self.table.downgrade(*key, SHARED))
            self.release(*key)
        elif held is not None and not waiter.upgrade:
            self.release(*key)
        lock = self.locks.get(key[0])
        if lock is not None:
            if lock.wanted is None and not (lock.drop or self._writer_waits(lock)):
                # The gate waited for this one: whoever asks from now on must not find it there.
                self._deliver(self.table.cancel(lock.name, lock.gate))
                lock.stop = True
            self.poke(lock)

    async def broken(self, name: bytes) -> None:
        """Until what this session held of a lock that was just broken is known to be lost."""
        lock = self.locks.get(name)
        if lock is None:
            return
        self.look(name)
        since = lock.since
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CHECK_S):
                while not lock.dead and lock.mode and lock.since == since:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)

    def _check_ended(self) -> None:
        if self._end_error is not None:
            raise copy.copy(self._end_error)

    def end(self, error: RingholdError) -> None:
        """The session is lost or closed: who waits gets a copy of `error`."""
        self._ended, self._end_error = True, error
        for waiter in self._waiting.values():
            if not waiter.future.done():
                waiter.future.set_exception(copy.copy(error))
        for asleep in list(self._threads.values()):
            asleep.wake()
        for task in self._tasks.values():
            task.cancel()
        self.deadlocks.end()

    async def ended(self) -> None:
        """Waits until nothing is done in the store any more; to be called after `end`."""
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        await self.deadlocks.ended()

    async def drop_delays(self) -> None:
        """To be called after `ended`, before a session ends that was not lost."""
        for lock in list(self.locks.values()):
            try:
                await self.claims.drop_delay(lock)
            except RingholdError as error:
                logger.info("others will wait for lock %r: %s", lock.name, error)

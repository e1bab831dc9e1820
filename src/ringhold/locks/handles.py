"""Locks as users hold them: `AsyncLock` for tasks, `Lock` with the manners of `threading.Lock`.

Guarantees: a ``with`` block is entered holding the lock or not at all, and leaving it after the
grant was lost raises LockLost. The owner is the calling thread or task unless one was given;
only the owner's handle releases (`release`), a grant is released from anywhere, once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, TypeVar

from ringhold.bridge import Bridge
from ringhold.env import forks
from ringhold.errors import LockLost, LockTimeout, NotOwned, RingholdError
from ringhold.home import Home, Openable
from ringhold.locks.arguments import (
    check_delay,
    check_mode,
    check_owner,
    check_timeout,
    user_name,
    wait_s,
)
from ringhold.locks.grant import AnyGrant, AsyncGrant, Grant
from ringhold.locks.records import LockParty
from ringhold.locks.service import LockService, Terms
from ringhold.owner import current_owner, thread_owner
from ringhold.types import decode_name

LEFT_S_MIN = 0.001
"""Zero would mean not to wait at all, which is something else than a wait that is over."""


G = TypeVar("G", bound=AnyGrant)
Block = tuple[G, "Block[G] | None"]
"""The grant that a block was entered with, and the block around it."""


class AsyncLock:
    """A lock of the async face. ``async with lock as grant`` raises LockTimeout, LockLost.

    With `cancel_on_lost` the task in the block is cancelled when the grant is lost, and leaving
    the block raises LockLost in the place of that CancelledError.
    """

    def __init__(
        self,
        service: LockService,
        name: str | bytes,
        *,
        mode: str = "exclusive",
        timeout: float | None = -1,
        lock_delay: float = 0.0,
        owner: int | None = None,
        reentrant: bool = False,
        cancel_on_lost: bool = False,
    ):
        raw = user_name(name)
        self.name = decode_name(raw[1:])
        self.timeout = check_timeout(timeout)
        self.service = service
        kind = check_mode(mode)
        delay_s = check_delay(lock_delay, kind)
        self.terms = Terms(raw, self.name, kind, bool(reentrant), delay_s)
        self.owner = check_owner(owner)
        self._cancel_on_lost = cancel_on_lost
        self._watched: dict[int, list[_CancelOnLost]] = {}
        self._entered: dict[int, Block[AsyncGrant]] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    def _caller(self) -> int:
        return current_owner() if self.owner is None else self.owner

    async def acquire(
        self,
        blocking: bool = True,
        timeout: float | None = None,  # noqa: ASYNC109 - the name is that of threading.Lock
    ) -> AsyncGrant | None:
        """The grant, or None when it gave up. `timeout` in seconds, -1 for ever; the lock's own
        when not given. ValueError for a timeout with ``blocking=False``. DeadlockError when the
        wait would never end, at once when this task holds the lock and it is not reentrant.
        StoreUnavailable when the store does not answer: nobody knows then who has the lock."""
        try:
            return await self.grant(wait_s(self.timeout, blocking, timeout))
        except LockTimeout:
            return None

    async def grant(self, timeout_s: float | None) -> AsyncGrant:
        """As `acquire`, but raises LockTimeout."""
        return await self.service.acquire(AsyncGrant, self.terms, self._caller(), timeout_s)

    async def try_acquire(self) -> AsyncGrant | None:
        """The grant, or None when somebody else holds the lock or waits for it.

        A session that merely keeps the lock is asked for it, and waited for half a second at most.
        """
        return await self.acquire(blocking=False)

    async def release(self) -> None:
        """Ends the caller's latest grant. NotOwned when there is none, LockLost when it ended."""
        await self._last_of(self._caller()).release()

    def _last_of(self, owner: int) -> AsyncGrant:
        grant = self.service.last(self.terms.raw, owner)
        if not isinstance(grant, AsyncGrant):
            raise NotOwned(f"lock {self.name!r} is not held by the caller", name=self.name)
        return grant

    def owned(self) -> bool:
        """Whether the caller holds the lock, as far as this process knows; no I/O."""
        return self.owned_by(self._caller())

    def owned_by(self, owner: int) -> bool:
        grant = self.service.last(self.terms.raw, owner)
        return grant is not None and not grant.is_lost

    async def locked(self) -> bool:
        """Whether anybody, in any process, holds the lock."""
        return bool(await self.service.inquiries.holders(self.terms.raw))

    async def __aenter__(self) -> AsyncGrant:
        grant = await self.grant(self.timeout)
        if self._cancel_on_lost:
            self._watched.setdefault(self._caller(), []).append(_CancelOnLost(grant))
        task = current_owner()
        self._entered[task] = (grant, self._entered.get(task))
        return grant

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        owner = self._caller()
        if self._cancel_on_lost:
            watched = self._watched[owner]
            if watched.pop().ends_with(error):
                error = None
            if not watched:
                del self._watched[owner]
        task = current_owner()
        grant, around = self._entered.pop(task)
        if around is not None:
            self._entered[task] = around
        grant.leave(error)


class _CancelOnLost:
    """Cancels the current task when a grant is lost, as `asyncio.timeout` does at its end."""

    def __init__(self, grant: AsyncGrant):
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelled = False
        self._left = False
        grant.on_lost(self._cancel)

    def _cancel(self, grant: AsyncGrant) -> None:
        if not self._left:
            self._cancelled = True
            self._task.cancel()

    def ends_with(self, error: BaseException | None) -> bool:
        """At the end of the block: whether `error` is the cancellation made here."""
        self._left = True
        if not self._cancelled:
            return False
        left = self._task.uncancel()
        return left == 0 and isinstance(error, asyncio.CancelledError)


class AsyncLocks:
    """``cluster.locks``: who holds and awaits a user's locks."""

    def __init__(self, service: LockService):
        self._service = service

    async def holders(self, name: str | bytes) -> list[LockParty]:
        """Who holds the lock `name`, in any process.

        Sessions that have the lock are asked; one that does not answer within half a second,
        because it is stopped, is told as a holder with the owner 0.
        """
        return await self._service.inquiries.holders(user_name(name))

    async def waiters(self, name: str | bytes) -> list[LockParty]:
        """Who waits for the lock `name`, in the order in which they will get it."""
        return await self._service.inquiries.waiters(user_name(name))

    async def break_(self, name: str | bytes) -> bool:
        """Takes the lock `name` from its holders; whether there were any."""
        return await self._service.inquiries.break_(user_name(name))


class Lock:
    """A lock of the blocking face, used as `threading.Lock` is.

    >>> with cluster.lock("report", timeout=5) as grant:  # doctest: +SKIP
    ...     publish(token=grant.token)
    """

    def __init__(self, home: Home[Any], make: Callable[[Any], AsyncLock]):
        self._home = home
        self._make = make
        self._bind()
        self.name = self._lock.name
        self._entered: dict[int, Block[Grant]] = {}
        """What each thread entered its blocks with, so that leaving one ends that very grant."""

    def _bind(self) -> None:
        """To the cluster of this process: after a fork it is another one."""
        self._lock = self._make(self._home.cluster())
        self._generation = forks.generation
        self._service = self._lock.service
        self._terms = self._lock.terms
        self._owner = self._lock.owner

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    def _bound(self) -> Bridge:
        if self._generation != forks.generation:
            self._bind()
        return self._service.bridge

    def _caller(self) -> int:
        return thread_owner() if self._owner is None else self._owner

    def _at_hand(self) -> Grant | None:
        """The grant if that takes neither waiting nor asking anybody."""
        if self._generation != forks.generation:
            self._bind()
        owner = self._owner
        return self._service.try_cached(
            Grant, self._terms, thread_owner() if owner is None else owner
        )

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> Grant | None:
        """The grant, or None when it gave up. `timeout` in seconds, -1 for ever; the lock's own
        when not given. ValueError for a timeout with ``blocking=False``. DeadlockError when the
        wait would never end, at once when this thread holds the lock and it is not reentrant.
        StoreUnavailable when the store does not answer: nobody knows then who has the lock."""
        timeout_s = wait_s(self._lock.timeout, blocking, timeout)
        grant = self._at_hand()
        if grant is not None:
            return grant
        try:
            return self._wait(timeout_s, [])
        except LockTimeout:
            return None

    def _wait(self, timeout_s: float | None, got: list[Grant]) -> Grant:
        """LockTimeout. `got` tells a caller that an interrupt kept from getting the grant."""
        bridge = self._bound()
        service, owner = self._service, self._caller()
        began_ns = service.clock()
        grant = service.wait_here(Grant, self._terms, owner, timeout_s)
        if grant is not None:
            return grant
        if timeout_s:
            timeout_s = max(timeout_s - (service.clock() - began_ns) / 1e9, LEFT_S_MIN)
        return bridge.run(self._acquire(owner, timeout_s, got), undo=_undo)

    async def _acquire(self, owner: int, timeout_s: float | None, got: list[Grant]) -> Grant:
        grant = await self._service.acquire(Grant, self._terms, owner, timeout_s)
        got.append(grant)
        return grant

    def try_acquire(self) -> Grant | None:
        """The grant, or None when somebody else holds the lock or waits for it.

        A session that merely keeps the lock is asked for it, and waited for half a second at most.
        """
        return self.acquire(blocking=False)

    def release(self) -> None:
        """Ends this thread's latest grant. NotOwned when there is none, LockLost when it ended."""
        grant = self._last()
        if grant is None:
            self._bound()
            raise NotOwned(f"lock {self.name!r} is not held by the caller", name=self.name)
        grant.release()

    def _last(self) -> Grant | None:
        # In a forked child that is a grant of the parent's, which says so when it is used.
        grant = self._service.last(self._terms.raw, self._caller())
        return grant if isinstance(grant, Grant) else None

    def locked(self) -> bool:
        """Whether anybody, in any process, holds the lock."""
        return self._bound().run(self._lock.locked())

    def owned(self) -> bool:
        """Whether the calling thread holds the lock, as far as this process knows; no I/O."""
        self._bound()
        return self._lock.owned_by(self._caller())

    def __enter__(self) -> Grant:
        grant: Grant | None = None
        got: list[Grant] = []
        try:
            grant = self._at_hand()
            if grant is None:
                grant = self._wait(self._lock.timeout, got)
            thread, entered = thread_owner(), self._entered
            entered[thread] = (grant, entered.get(thread))
            return grant
        except BaseException:
            # An interrupt may come after the lock was granted and before the block begins.
            grant = grant or (got[0] if got else None)
            if grant is not None:
                self._leave_block(thread_owner(), grant)
                if not grant.released:
                    grant.release()
            raise

    def _leave_block(self, thread: int, grant: Grant | None) -> Grant | None:
        """Ends the thread's latest block, if it is that of `grant` where one is given."""
        latest = self._entered.get(thread)
        if latest is None or (grant is not None and latest[0] is not grant):
            return None
        if latest[1] is None:
            del self._entered[thread]
        else:
            self._entered[thread] = latest[1]
        return latest[0]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        grant: Grant | None = None
        try:
            thread, entered = thread_owner(), self._entered
            latest = entered.get(thread)
            grant = self._last() if latest is None else latest[0]
            if latest is not None and latest[1] is not None:
                entered[thread] = latest[1]
            elif latest is not None:
                del entered[thread]
            if grant is not None:
                grant.leave(error)
        except RingholdError:
            raise
        except BaseException:
            # An interrupt: the lock is given back all the same.
            left = self._leave_block(thread_owner(), grant)
            grant = grant or left
            if grant is not None:
                grant.leave(error)
            raise


async def _undo(grant: AnyGrant) -> None:
    """After an interrupt: what was got all the same is given back."""
    try:
        grant.give_back()
    except (LockLost, NotOwned):
        return


class LocksOwner(Openable, Protocol):
    """A cluster of the async face, as far as its locks need it."""

    locks: AsyncLocks


class Locks:
    """``cluster.locks``: who holds and awaits a user's locks."""

    def __init__(self, home: Home[LocksOwner]):
        self._home = home

    @property
    def _locks(self) -> AsyncLocks:
        return self._home.cluster().locks

    @property
    def _bridge(self) -> Bridge:
        return self._home.bridge()

    def holders(self, name: str | bytes) -> list[LockParty]:
        """Who holds the lock `name`, in any process.

        Sessions that have the lock are asked; one that does not answer within half a second,
        because it is stopped, is told as a holder with the owner 0.
        """
        return self._bridge.run(self._locks.holders(name))

    def waiters(self, name: str | bytes) -> list[LockParty]:
        """Who waits for the lock `name`, in the order in which they will get it."""
        return self._bridge.run(self._locks.waiters(name))

    def break_(self, name: str | bytes) -> bool:
        """Takes the lock `name` from its holders; whether there were any."""
        return self._bridge.run(self._locks.break_(name))

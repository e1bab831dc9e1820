"""A held lock: what proves it, and how its holder learns that it is gone.

Guarantees: the holder learns of a loss in four ways: `check` raises, `lost` is set, callbacks run
once, and leaving the block raises LockLost, which never hides the block's own exception. A loss
is final, and so is a release, which happens once.

A grant that the session has at hand is made and given back on the thread that asks, without the
event loop; an interrupt between any two instructions leaves it held by nobody.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from ringhold.bridge import Unpicklable
from ringhold.env import forks
from ringhold.errors import InvalidInput, LockLost, NotOwned, RingholdError
from ringhold.locks.held import tell_loss
from ringhold.locks.keys import EXCLUSIVE, SHARED, TOKEN_STEP
from ringhold.store.base import Born
from ringhold.types import Mode, TableGrant

if TYPE_CHECKING:
    from ringhold.locks.cache import SessionLocks
    from ringhold.locks.cached_lock import CachedLock
    from ringhold.locks.service import LockService

logger = logging.getLogger("ringhold")

G = TypeVar("G", bound="AnyGrant")

_making_events = threading.Lock()
_nesting = threading.Lock()
"""Held while grants of one owner are put on top of each other or taken apart."""


def _after_fork() -> None:
    global _making_events, _nesting
    _making_events, _nesting = threading.Lock(), threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


class AnyGrant(Unpicklable):
    """What the grants of both faces share; any thread may use it.

    `token` (int) is larger than that of every earlier grant of the name that excludes this one.
    """

    _gone = False
    _released = False
    _outer: AnyGrant | None = None
    _event: Any = None
    _callbacks: list[Callable[[Any], object]] | None = None

    def __init__(
        self,
        service: LockService,
        locks: SessionLocks,
        lock: CachedLock,
        key: tuple[bytes, int],
        exclusive: bool,
        name: str,
        outer: AnyGrant | None,
    ):
        self.token: int
        if outer is not None:
            self.token, self._outer = outer.token, outer
        elif exclusive:
            # Nobody else counts here: this very grant excludes them.
            lock.base = base = lock.base + TOKEN_STEP
            self.token = base | 1
        else:
            # Above every exclusive one so far, below every one to come.
            self.token = lock.base + TOKEN_STEP
        self.name = name
        self._service = service
        self._locks = locks
        self._lock = lock
        self._key = key
        self._mode = EXCLUSIVE if exclusive else SHARED

    def __repr__(self) -> str:
        state = "released" if self._released else "lost" if self.is_lost else "held"
        return f"<{type(self).__name__} {self.name!r} {self.mode} token={self.token} {state}>"

    @property
    def mode(self) -> str:
        """``"exclusive"`` or ``"shared"``."""
        return self._mode.value

    @property
    def is_lost(self) -> bool:
        """Whether it ended before its release."""
        return self._gone or (not self._released and (self._lock.dead or self._locks.state.expired))

    @property
    def released(self) -> bool:
        return self._released

    @property
    def outer(self) -> AnyGrant | None:
        """The grant of the same owner that this one came on top of."""
        return self._outer

    def within(self, locks: SessionLocks) -> bool:
        return self._locks is locks

    def of(self, lock: CachedLock) -> bool:
        return self._lock is lock

    def again(self, kind: type[G]) -> G | None:
        """Another grant of the same owner, with the same token; None when this one has ended
        meanwhile, on another thread of that owner."""
        key, held, locks = self._key, self._service.held, self._locks
        if not locks.table.try_acquire(*key, self._mode):
            return None
        exclusive = self._mode is EXCLUSIVE
        grant = kind(self._service, locks, self._lock, key, exclusive, self.name, self)
        with _nesting:
            if key in held and held[key] is self and not self._released:
                held[key] = grant
                return grant
        locks.release(*key)
        return None

    def cover(self, lost: AnyGrant) -> None:
        """`lost` is of the same owner, and will be found when this one has ended."""
        self._outer = lost

    @property
    def held(self) -> Born:
        """The compare of a commit that the session still holds the lock."""
        return self._lock.held(self._locks.state.id)

    def check(self) -> None:
        """Raises LockLost when the grant ended, NotOwned when it was released; does no I/O."""
        service = self._service
        if service.closed or service.generation != forks.generation:
            service.check_holder(self.name)
        if self.is_lost:
            if self._event is not None:
                self._event.set()
            raise self._loss()
        if self._released:
            raise NotOwned(f"lock {self.name!r} was released already", name=self.name)

    def _loss(self) -> LockLost:
        return LockLost(
            f"lock {self.name!r} (token {self.token}) was lost before its release",
            name=self.name,
            token=self.token,
        )

    def _make_event(self, kind: Callable[[], Any]) -> Any:
        with _making_events:
            if self._event is None:
                self._event = kind()
        if self.is_lost:
            self._event.set()
        return self._event

    def _add_callback(self, callback: Callable[[Any], object]) -> None:
        """On the loop."""
        if self.is_lost:
            callback(self)
        elif self._callbacks is None:
            self._callbacks = [callback]
        else:
            self._callbacks.append(callback)

    def mark_lost(self) -> None:
        """Called on the loop when the session, or the lock's key, was found gone."""
        if self._released or (self._gone and self._callbacks is None):
            return
        self._gone = True
        if self._event is not None:
            self._event.set()
        callbacks, self._callbacks = self._callbacks or (), None
        for callback in callbacks:
            try:
                callback(self)
            except Exception:
                logger.exception("a callback for the loss of lock %r failed", self.name)

    def give_back(self) -> None:
        """Ends the grant, once; LockLost when it had ended before."""
        service, key, locks = self._service, self._key, self._locks
        held = service.held
        name, owner = key
        release = locks.table.release
        fresh = service.clock() < locks.state.fresh_until_ns and not self._lock.dead
        lost = not fresh and self.is_lost
        grants: list[TableGrant] = []
        # Interrupts and other threads come after calls only: from the look at what is held to
        # the release in the table there is none.
        if key in held and held[key] is self and self._outer is None:
            del held[key]
            self._released = True
            if not lost:
                grants = release(name, owner)
        else:
            with _nesting:
                self._unlink()
                self._released = True
                if not lost:
                    grants = release(name, owner)
        if grants:
            locks.tell(grants)
        if lost:
            self._gone = True
            raise self._loss()

    def _unlink(self) -> None:
        """Takes this one from among the grants of its owner. NotOwned if it is not there."""
        held, key = self._service.held, self._key
        latest = held.get(key)
        if self._released or latest is None:
            raise NotOwned(f"lock {self.name!r} was released already", name=self.name)
        above = latest
        while above is not self and above._outer is not None:
            if above._outer is self:
                above._outer = self._outer
                return
            above = above._outer
        if latest is self and self._outer is not None:
            held[key] = self._outer
        elif latest is self:
            del held[key]

    def leave(self, error: BaseException | None) -> None:
        """Ends a ``with`` block."""
        if self._released:
            return
        service = self._service
        if service.closed or service.generation != forks.generation:
            service.check_holder(self.name)
        try:
            self.give_back()
        except LockLost as lost:
            tell_loss(lost, error)

    def _now_in(self, mode: Mode, lock: CachedLock) -> None:
        """After an upgrade or downgrade: a new token for all grants of this owner."""
        if mode is EXCLUSIVE:
            lock.base = base = lock.base + TOKEN_STEP
            token = base | 1
        else:
            token = lock.base + TOKEN_STEP
        grant = self._service.held.get(self._key)
        while grant is not None and grant._lock is lock and not grant._gone:
            grant.token, grant._mode = token, mode
            grant = grant._outer

    async def _upgrade(self, timeout_s: float | None) -> int:
        self.check()
        if self._mode is not EXCLUSIVE:
            lock = await self._service.upgrade(self._locks, self._key, timeout_s, self.name)
            self._now_in(EXCLUSIVE, lock)
        return self.token

    async def _downgrade(self) -> int:
        self.check()
        if self._outer is not None and not self._outer.is_lost:
            raise InvalidInput(
                f"lock {self.name!r} is held more than once by this owner: downgrading would take "
                "exclusivity from the block around this one"
            )
        if self._mode is not SHARED:
            # First the token: once it is shared others may come in.
            token_lock = self._lock
            self._now_in(SHARED, token_lock)
            self._locks.downgrade(self._key)
        return self.token


class AsyncGrant(AnyGrant):
    """A held lock of the async face: truthy, and a context manager that releases."""

    @property
    def lost(self) -> asyncio.Event:
        """Set when the grant ended before its release."""
        event: asyncio.Event = self._make_event(asyncio.Event)
        return event

    def on_lost(self, callback: Callable[[AsyncGrant], object]) -> None:
        """Calls ``callback(grant)`` on the loop once the grant is lost; at once if it is."""
        if not callable(callback) or inspect.iscoroutinefunction(callback):
            raise TypeError("callback must be a plain function: nobody would await a coroutine")
        self._add_callback(callback)

    async def release(self) -> None:
        """Gives the lock back; works from anywhere, once (NotOwned). LockLost if it had ended."""
        self._service.check_holder(self.name)
        self.give_back()

    async def upgrade(
        self,
        timeout: float | None = -1,  # noqa: ASYNC109 - as `acquire`
    ) -> int:
        """From shared to exclusive; the new token. LockTimeout and DeadlockError (somebody else
        is about to do the same) leave it shared."""
        return await self._upgrade(self._service.wait_s(timeout))

    async def downgrade(self) -> int:
        """From exclusive to shared; the new token. InvalidInput for a grant within another one of
        the same owner, which would lose its exclusivity."""
        return await self._downgrade()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.leave(error)


class Grant(AnyGrant):
    """A held lock of the blocking face: truthy, and a context manager that releases."""

    @property
    def lost(self) -> threading.Event:
        """Set when the grant ended before its release."""
        event: threading.Event = self._make_event(threading.Event)
        return event

    def on_lost(self, callback: Callable[[Grant], object]) -> None:
        """Calls ``callback(grant)`` once, on a thread of Ringhold, when the grant is lost."""
        if not callable(callback):
            raise TypeError("callback must be callable")

        async def register() -> None:
            self._add_callback(lambda _: self._service.calls.run(lambda: callback(self)))

        self._service.bridge.run(register())

    def release(self) -> None:
        """Gives the lock back; works from any thread, once (NotOwned). LockLost if it had ended."""
        service = self._service
        if service.closed or service.generation != forks.generation:
            service.check_holder(self.name)
        try:
            self.give_back()
        except RingholdError:
            raise
        except BaseException:
            # An interrupt: the lock is given back all the same.
            if not self._released:
                self.give_back()
            raise

    def upgrade(self, timeout: float | None = -1) -> int:
        """From shared to exclusive; the new token. LockTimeout and DeadlockError (somebody else
        is about to do the same) leave it shared."""
        wait_s = self._service.wait_s(timeout)
        return self._service.bridge.run(self._upgrade(wait_s))

    def downgrade(self) -> int:
        """From exclusive to shared; the new token. InvalidInput for a grant within another one of
        the same owner, which would lose its exclusivity."""
        return self._service.bridge.run(self._downgrade())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.leave(error)
        except RingholdError:
            raise
        except BaseException:
            self.leave(error)  # An interrupt: the lock is given back all the same.
            raise

"""Locks as users hold them: `AsyncLock` for tasks, `Lock` with the manners of `threading.Lock`.

Guarantees: a ``with`` block is entered holding the lock or not at all, and leaving it after the
grant was lost raises LockLost. The owner is the calling thread or task unless one was given;
only the owner's handle releases (`release`), a grant is released from anywhere, once.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Protocol, Self

from ringhold.bridge import Bridge
from ringhold.errors import InvalidInput, LockLost, LockTimeout, NotOwned
from ringhold.home import Home, Openable
from ringhold.locks.grant import Grant as AsyncGrant
from ringhold.locks.grant import leave
from ringhold.locks.lock import LockService
from ringhold.locks.records import EXCLUSIVE, LockParty
from ringhold.owner import current_owner, thread_owner
from ringhold.types import decode_name, encode_name

OWNER_MAX = (1 << 63) - 1
USER_NAME_BYTES_MAX = 4095
NameSource = bytes | Callable[[], Awaitable[bytes]]


def user_name(name: str | bytes) -> bytes:
    """The name of a user's lock in the store, apart from the locks of files."""
    return b"u" + encode_name(name, "lock name", bytes_max=USER_NAME_BYTES_MAX)


def check_timeout(timeout: float | None, what: str = "timeout") -> float | None:
    """Seconds to wait, None for ever (given as None or -1)."""
    if timeout is None or timeout == -1:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"{what} must be a number of seconds, not {type(timeout).__name__}")
    if math.isnan(timeout) or timeout < 0:
        raise InvalidInput(f"{what} must be -1 or not negative, not {timeout!r}")
    return None if math.isinf(timeout) else float(timeout)


def check_owner(owner: int | None) -> int | None:
    if owner is None:
        return None
    if isinstance(owner, bool) or not isinstance(owner, int):
        raise TypeError(f"owner must be an int, not {type(owner).__name__}")
    if not 1 <= owner <= OWNER_MAX:
        raise InvalidInput(f"owner must be 1 to {OWNER_MAX}, not {owner}")
    # Numbers given by users must not meet those handed out to threads and tasks.
    return -owner


def check_mode(mode: str) -> None:
    if not isinstance(mode, str):
        raise TypeError(f"mode must be str, not {type(mode).__name__}")
    if mode != EXCLUSIVE:
        raise InvalidInput(f"lock mode must be {EXCLUSIVE!r}, not {mode!r}")


class AsyncLock:
    """A lock of the async face. ``async with lock as grant`` raises LockTimeout, LockLost."""

    def __init__(
        self,
        service: LockService,
        name: NameSource,
        *,
        label: str,
        mode: str = EXCLUSIVE,
        timeout: float | None = -1,
        owner: int | None = None,
    ):
        check_mode(mode)
        self.name = label
        self.timeout = check_timeout(timeout)
        self._service = service
        self._source = name
        self._name = name if isinstance(name, bytes) else None
        self._owner = check_owner(owner)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    def _caller(self) -> int:
        return current_owner() if self._owner is None else self._owner

    async def _resolve(self) -> bytes:
        if not isinstance(self._source, bytes):
            self._name = await self._source()
            return self._name
        return self._source

    async def acquire(
        self,
        blocking: bool = True,
        timeout: float | None = None,  # noqa: ASYNC109 - the name is that of threading.Lock
    ) -> AsyncGrant | None:
        """The grant, or None when it gave up. `timeout` in seconds, -1 for ever; the lock's own
        when not given. ValueError for a timeout with ``blocking=False``."""
        if not blocking and timeout is not None:
            raise ValueError("a timeout makes no sense without blocking")
        wait_s = self.timeout if timeout is None else check_timeout(timeout)
        try:
            return await self.grant(wait_s if blocking else 0)
        except LockTimeout:
            return None

    async def grant(self, timeout_s: float | None) -> AsyncGrant:
        """As `acquire`, but raises LockTimeout."""
        owner = self._caller()
        return await self._service.acquire(await self._resolve(), owner, timeout_s, self.name)

    async def try_acquire(self) -> AsyncGrant | None:
        """The grant, or None at once when somebody else holds the lock or waits for it."""
        return await self.acquire(blocking=False)

    async def release(self) -> None:
        """Ends the caller's grant. NotOwned when there is none, LockLost when it had ended."""
        grant = self.last()
        if grant is None:
            raise NotOwned(f"lock {self.name!r} is not held by the caller", name=self.name)
        await grant.release()

    def last(self) -> AsyncGrant | None:
        """The caller's grant, lost or not, unless it was released."""
        return self.last_of(self._caller())

    def last_of(self, caller: int) -> AsyncGrant | None:
        owner = caller if self._owner is None else self._owner
        return None if self._name is None else self._service.last(self._name, owner)

    def owned(self) -> bool:
        """Whether the caller holds the lock, as far as this process knows; no I/O."""
        return self.owned_by(self._caller())

    def owned_by(self, caller: int) -> bool:
        if self._name is None:
            return False
        owner = caller if self._owner is None else self._owner
        return self._service.held(self._name, owner) is not None

    async def locked(self) -> bool:
        """Whether anybody, in any process, holds the lock."""
        return bool(await self._service.holders(await self._resolve()))

    async def __aenter__(self) -> AsyncGrant:
        return await self.grant(self.timeout)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        grant = self.last()
        if grant is not None:
            await leave(grant, error)


class AsyncLocks:
    """``cluster.locks``: who holds and awaits a user's locks."""

    def __init__(self, service: LockService):
        self._service = service

    async def holders(self, name: str | bytes) -> list[LockParty]:
        """Who holds the lock `name`, in any process."""
        return await self._service.holders(user_name(name))

    async def waiters(self, name: str | bytes) -> list[LockParty]:
        """Who waits for the lock `name`, in the order in which they will get it."""
        return await self._service.waiters(user_name(name))

    async def break_(self, name: str | bytes) -> bool:
        """Takes the lock `name` from its holder; whether there was one."""
        return await self._service.break_(user_name(name))


def async_user_lock(
    service: LockService,
    name: str | bytes,
    *,
    mode: str,
    timeout: float | None,
    owner: int | None,
) -> AsyncLock:
    raw = user_name(name)
    return AsyncLock(
        service, raw, label=decode_name(raw[1:]), mode=mode, timeout=timeout, owner=owner
    )


class Grant:
    """A held lock of the blocking face: truthy, and a context manager that releases.

    `token` (int) is larger than that of every earlier grant of the name; `lost` is set when
    the grant ended before its release.
    """

    def __init__(self, grant: AsyncGrant, bridge: Bridge):
        self._grant = grant
        self._bridge = bridge
        self.lost = threading.Event()
        self.token = grant.token
        self.name = grant.name
        self.mode = grant.mode

    def __repr__(self) -> str:
        return repr(self._grant)

    async def attach(self) -> Self:
        self._grant.on_lost(lambda _: self.lost.set())
        return self

    @property
    def held(self) -> AsyncGrant:
        """The grant behind this one, for what runs on Ringhold's loop."""
        return self._grant

    def check(self) -> None:
        """Raises LockLost when the grant ended, NotOwned when it was released; does no I/O."""
        self._bridge.check_process()
        try:
            self._grant.check()
        except LockLost:
            self.lost.set()
            raise

    def on_lost(self, callback: Callable[[Grant], object]) -> None:
        """Calls ``callback(grant)`` once, on a thread of Ringhold, when the grant is lost."""
        if not callable(callback):
            raise TypeError("callback must be callable")

        async def register() -> None:
            self._grant.on_lost(lambda grant: grant.call_in_thread(lambda: callback(self)))

        self._bridge.run(register())

    def release(self) -> None:
        """Gives the lock back; works from any thread, once (NotOwned)."""
        self._bridge.finish(self._grant.release)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bridge.finish(lambda: leave(self._grant, error))


class Lock:
    """A lock of the blocking face, used as `threading.Lock` is.

    >>> with cluster.lock("report", timeout=5) as grant:  # doctest: +SKIP
    ...     publish(token=grant.token)
    """

    def __init__(self, home: Home[Any], make: Callable[[Any], AsyncLock]):
        cluster = home.cluster()
        self._home = home
        self._make = make
        self._made = cluster, make(cluster)
        self.name = self._made[1].name

    def __repr__(self) -> str:
        return f"<Lock {self.name!r}>"

    @property
    def _lock(self) -> AsyncLock:
        cluster = self._home.cluster()
        if self._made[0] is not cluster:
            self._made = cluster, self._make(cluster)
        return self._made[1]

    @property
    def _bridge(self) -> Bridge:
        return self._home.bridge()

    def _check_begun_here(self) -> None:
        """Closed, naming the parent, for what this thread acquired before a fork."""
        cluster, lock = self._made
        if cluster.life.foreign and lock.last_of(thread_owner()) is not None:
            cluster.life.check()

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> Grant | None:
        """The grant, or None when it gave up. `timeout` in seconds, -1 for ever; the lock's own
        when not given. ValueError for a timeout with ``blocking=False``. DeadlockError when
        this thread holds the lock."""
        return self._bridge.run(self._acquire(blocking, timeout), undo=_release)

    async def _acquire(self, blocking: bool, wait_s: float | None) -> Grant | None:
        grant = await self._lock.acquire(blocking, wait_s)
        return None if grant is None else await self._wrap(grant)

    async def _wrap(self, grant: AsyncGrant) -> Grant:
        return await Grant(grant, self._bridge).attach()

    def try_acquire(self) -> Grant | None:
        """The grant, or None at once when somebody else holds the lock or waits for it."""
        return self.acquire(blocking=False)

    def release(self) -> None:
        """Ends this thread's grant. NotOwned when there is none, LockLost when it had ended."""
        self._check_begun_here()
        self._bridge.finish(self._lock.release)

    def locked(self) -> bool:
        """Whether anybody, in any process, holds the lock."""
        return self._bridge.run(self._lock.locked())

    def owned(self) -> bool:
        """Whether the calling thread holds the lock, as far as this process knows; no I/O."""
        return self._lock.owned_by(thread_owner())

    def __enter__(self) -> Grant:
        entered: list[Grant] = []
        try:
            return self._bridge.run(self._enter(entered), undo=_release)
        except BaseException:
            # An interrupt may come after the call has ended and before the block begins.
            if entered and not entered[0].held.released:
                self._bridge.finish(entered[0].held.release)
            raise

    async def _enter(self, entered: list[Grant]) -> Grant:
        grant = await self._wrap(await self._lock.grant(self._lock.timeout))
        entered.append(grant)
        return grant

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._check_begun_here()
        self._bridge.finish(lambda: self._lock.__aexit__(kind, error, traceback))


async def _release(grant: Grant | None) -> None:
    if grant is not None:
        await grant.held.release()


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
        """Who holds the lock `name`, in any process."""
        return self._bridge.run(self._locks.holders(name))

    def waiters(self, name: str | bytes) -> list[LockParty]:
        """Who waits for the lock `name`, in the order in which they will get it."""
        return self._bridge.run(self._locks.waiters(name))

    def break_(self, name: str | bytes) -> bool:
        """Takes the lock `name` from its holder; whether there was one."""
        return self._bridge.run(self._locks.break_(name))

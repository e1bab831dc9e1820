"""Several locks at once: all of them or none.

Guarantees: two that want some of the same locks never deadlock, since everybody takes them in
one order, that of the names' bytes; one timeout bounds them all; whoever gives up in the middle
holds nothing. The locks are ordinary ones: who takes a single one of them is in the same queue.

Source: J. W. Havender, "Avoiding deadlock in multitasking systems" (IBM Systems Journal, 1968).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Generic, Self, TypeVar, overload

from ringhold.env import Env, finish
from ringhold.errors import InvalidInput, LockLost, LockTimeout, NotOwned, RingholdError
from ringhold.locks.arguments import check_timeout, told_s, user_name, wait_s
from ringhold.locks.grant import AsyncGrant, Grant
from ringhold.locks.handles import AsyncLock, Lock
from ringhold.locks.held import Entered, leave_block, tell_loss, uninterrupted
from ringhold.owner import current_owner, thread_owner

AnyGrant = TypeVar("AnyGrant", AsyncGrant, Grant)
AnyLock = TypeVar("AnyLock", AsyncLock, Lock)
Several = TypeVar("Several")
Names = Iterable[str | bytes]


def distinct_names(names: Names) -> list[bytes]:
    """The names in the store, without repetitions. TypeError, InvalidInput."""
    if isinstance(names, (str, bytes)) or not isinstance(names, Iterable):
        raise TypeError(f"names must be several names, not {type(names).__name__}")
    raw = list(dict.fromkeys(user_name(name) for name in names))
    if not raw:
        raise InvalidInput("names must not be empty")
    return raw


class _Deadline:
    """What is left of one timeout for several waits."""

    def __init__(self, env: Env, timeout_s: float | None):
        self._clock = env.clock
        self.timeout_s = timeout_s
        self._end_ns = 0 if timeout_s is None else self._clock.monotonic_ns() + timeout_s * 1e9

    def left_s(self) -> float:
        if self.timeout_s is None:
            return -1
        return max(0.0, (self._end_ns - self._clock.monotonic_ns()) / 1e9)


class _Grants(Sequence[AnyGrant], Generic[AnyGrant]):
    """The grants of several locks, in the order of the names they were asked for by."""

    def __init__(self, grants: Sequence[AnyGrant]):
        self._grants: tuple[AnyGrant, ...] = tuple(grants)
        self._released = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {list(self._grants)!r}>"

    def __len__(self) -> int:
        return len(self._grants)

    @overload
    def __getitem__(self, index: int) -> AnyGrant: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[AnyGrant, ...]: ...
    def __getitem__(self, index: int | slice) -> AnyGrant | tuple[AnyGrant, ...]:
        return self._grants[index]

    def __iter__(self) -> Iterator[AnyGrant]:
        return iter(self._grants)

    @property
    def released(self) -> bool:
        return self._released

    @property
    def tokens(self) -> tuple[int, ...]:
        """The fencing tokens, in the order of the names."""
        return tuple(grant.token for grant in self._grants)

    def check(self) -> None:
        """Raises LockLost when one of the locks ended, NotOwned when they were released."""
        for grant in self._grants:
            grant.check()

    def _check_unreleased(self) -> None:
        if self._released:
            raise NotOwned("these locks were released already", name=self._grants[0].name)


class _Many(Generic[AnyLock, Several]):
    """Locks by their names in the store, in the order they were given in."""

    def __init__(
        self,
        names: Names,
        make: Callable[[bytes], AnyLock],
        env: Env,
        *,
        timeout: float | None = -1,
    ):
        self.timeout = check_timeout(timeout)
        self._locks: dict[bytes, AnyLock] = {raw: make(raw[1:]) for raw in distinct_names(names)}
        self._env = env
        self._entered: Entered[Several] = Entered()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {list(self.names)!r}>"

    @property
    def names(self) -> tuple[str, ...]:
        """The names, each once, in the order they were given in."""
        return tuple(lock.name for lock in self._locks.values())


def _raise_first(failures: Sequence[BaseException]) -> None:
    if failures:
        for other in failures[1:]:
            failures[0].add_note(f"besides: {other}")
        raise failures[0]


def _timed_out(lock: AsyncLock | Lock, timeout_s: float | None) -> LockTimeout:
    return LockTimeout(
        f"lock {lock.name!r}, one of several, was not granted within {told_s(timeout_s)} s; "
        "none of them is held",
        name=lock.name,
    )


class AsyncGrants(_Grants[AsyncGrant]):
    """Several locks held: truthy, a sequence of grants, and a context manager that releases."""

    async def release(self) -> None:
        """Gives all of them back, once (NotOwned); LockLost if one had ended, after the others.

        Those that were released one by one before are left out.
        """
        self._check_unreleased()
        try:
            await _release_async(self._grants)
        except LockLost:
            self._released = True
            raise
        self._released = True

    async def leave(self, error: BaseException | None) -> None:
        """Ends a ``with`` block that they were held for."""
        if self.released:
            return
        try:
            await self.release()
        except LockLost as lost:
            tell_loss(lost, error)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.leave(error)


async def _release_async(grants: Iterable[AsyncGrant]) -> None:
    releases = asyncio.gather(*(grant.release() for grant in grants), return_exceptions=True)
    results = await finish(releases)
    _raise_first(
        [r for r in results if isinstance(r, BaseException) and not isinstance(r, NotOwned)]
    )


class AsyncLockMany(_Many[AsyncLock, AsyncGrants]):
    """``async with cluster.lock_many(["a", "b"]) as grants``: raises LockTimeout, LockLost."""

    async def acquire(
        self,
        blocking: bool = True,
        timeout: float | None = None,  # noqa: ASYNC109 - the name is that of threading.Lock
    ) -> AsyncGrants | None:
        """All the grants, in the order of the names, or None when it gave up; nothing is held
        then. `timeout` in seconds for all of them together, -1 for ever; that of `lock_many`
        when not given. ValueError for a timeout with ``blocking=False``."""
        try:
            return await self.grant(wait_s(self.timeout, blocking, timeout))
        except LockTimeout:
            return None

    async def grant(self, timeout_s: float | None) -> AsyncGrants:
        """As `acquire`, but raises LockTimeout."""
        deadline = _Deadline(self._env, timeout_s)
        while True:
            got: dict[bytes, AsyncGrant] = {}
            try:
                for raw in sorted(self._locks):
                    lock = self._locks[raw]
                    grant = await lock.acquire(timeout=deadline.left_s())
                    if grant is None:
                        raise _timed_out(lock, timeout_s)
                    got[raw] = grant
                grants = AsyncGrants([got[raw] for raw in self._locks])
                grants.check()
                return grants
            except LockLost:
                # Some were lost while others were waited for; all are taken anew.
                with contextlib.suppress(LockLost):
                    await _release_async(got.values())
            except BaseException as error:
                try:
                    await _release_async(got.values())
                except RingholdError as failure:
                    error.add_note(f"besides: {failure}")
                raise

    async def try_acquire(self) -> AsyncGrants | None:
        """All the grants, or None at once when one of the locks cannot be had."""
        return await self.acquire(blocking=False)

    async def __aenter__(self) -> AsyncGrants:
        grants = await self.grant(self.timeout)
        self._entered.push(current_owner(), grants)
        return grants

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        owner = current_owner()
        grants = self._entered.last(owner)
        self._entered.discard(owner, grants)
        await grants.leave(error)


class Grants(_Grants[Grant]):
    """Several locks held: truthy, a sequence of grants, and a context manager that releases."""

    def release(self) -> None:
        """Gives all of them back, once (NotOwned); LockLost if one had ended, after the others.

        Those that were released one by one before are left out.
        """
        self._check_unreleased()
        try:
            _release_blocking(self._grants)
        except LockLost:
            self._released = True
            raise
        self._released = True

    def leave(self, error: BaseException | None) -> None:
        """Ends a ``with`` block that they were held for."""
        if self.released:
            return
        try:
            self.release()
        except LockLost as lost:
            tell_loss(lost, error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.leave(error)


def _release_blocking(grants: Iterable[Grant]) -> None:
    failures: list[RingholdError] = []

    def release_all() -> None:
        for grant in grants:
            try:
                # NotOwned: released by itself, or before an interrupt began this again.
                with contextlib.suppress(NotOwned):
                    grant.release()
            except RingholdError as failure:
                failures.append(failure)

    uninterrupted(release_all)
    _raise_first(failures)


class LockMany(_Many[Lock, Grants]):
    """Several locks at once, all or none.

    >>> with cluster.lock_many(["a", "b"], timeout=5) as grants:  # doctest: +SKIP
    ...     move(tokens=grants.tokens)
    """

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> Grants | None:
        """All the grants, in the order of the names, or None when it gave up; nothing is held
        then. `timeout` in seconds for all of them together, -1 for ever; that of `lock_many`
        when not given. ValueError for a timeout with ``blocking=False``."""
        try:
            return self._grant(wait_s(self.timeout, blocking, timeout), [])
        except LockTimeout:
            return None

    def _grant(self, timeout_s: float | None, out: list[Grants]) -> Grants:
        """`out` tells a caller that an interrupt kept from getting the result."""
        deadline = _Deadline(self._env, timeout_s)
        while True:
            got: dict[bytes, Grant] = {}
            taking: Lock | None = None
            try:
                for raw in sorted(self._locks):
                    lock = self._locks[raw]
                    taking = None if lock.owned() else lock
                    grant = lock.acquire(timeout=deadline.left_s())
                    if grant is None:
                        raise _timed_out(lock, timeout_s)
                    got[raw] = grant
                    taking = None
                out.append(Grants([got[raw] for raw in self._locks]))
                out[0].check()
                return out[0]
            except LockLost:
                # Some were lost while others were waited for; all are taken anew.
                out.clear()
                with contextlib.suppress(LockLost):
                    _release_blocking(got.values())
            except BaseException as error:
                out.clear()
                try:
                    _release_blocking(got.values())
                    # An interrupt may have come when it was granted and not yet noted.
                    if taking is not None and taking.owned():
                        taking.release()
                except RingholdError as failure:
                    error.add_note(f"besides: {failure}")
                raise

    def try_acquire(self) -> Grants | None:
        """All the grants, or None at once when one of the locks cannot be had."""
        return self.acquire(blocking=False)

    def __enter__(self) -> Grants:
        owner = thread_owner()
        got: list[Grants] = []
        try:
            grants = self._grant(self.timeout, got)
            self._entered.push(owner, grants)
            return grants
        except BaseException:
            # An interrupt may come after the last lock was granted and before the block begins.
            for grants in got:
                self._entered.discard(owner, grants)
                if not grants.released:
                    grants.release()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        leave_block(self._entered, thread_owner(), error)

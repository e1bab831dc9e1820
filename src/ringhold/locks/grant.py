"""A held lock: what proves it, and how its holder learns that it is gone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from ringhold.errors import LockLost, NotOwned
from ringhold.locks.records import EXCLUSIVE, LockKeys, token_of
from ringhold.locks.session import SessionState
from ringhold.store.base import Born

logger = logging.getLogger("ringhold")


class GrantService(Protocol):
    """`ringhold.locks.lock.LockService`, as its grants need it."""

    async def release(self, grant: Grant) -> None: ...

    def call_in_thread(self, function: Callable[[], object]) -> None: ...


class Grant:
    """A held lock. `held` is the compare that it still is; `token` fences what lies outside."""

    def __init__(
        self,
        service: GrantService,
        name: bytes,
        label: str,
        owner: int,
        state: SessionState,
        revision: int,
        release_nonce: bytes,
    ):
        self.token = token_of(revision)
        self.name = label
        self.mode = EXCLUSIVE
        self.owner = owner
        self.held = Born(LockKeys.of(name).holder, revision)
        self.lost = asyncio.Event()
        self.key = (name, owner)
        self.state = state
        self.release_nonce = release_nonce
        self._service = service
        self.releasing = False
        self._gone = False
        self._released = False
        self._callbacks: list[Callable[[Grant], object]] = []

    def __repr__(self) -> str:
        state = "released" if self._released else "lost" if self.is_lost else "held"
        return f"<Grant {self.name!r} token={self.token} {state}>"

    @property
    def is_lost(self) -> bool:
        """Whether it ended before its release. Callable from any thread."""
        return self._gone or (not self._released and self.state.expired)

    @property
    def released(self) -> bool:
        return self._released

    def check(self) -> None:
        """Raises LockLost when the grant ended, NotOwned when it was released; does no I/O."""
        if self.is_lost:
            raise LockLost(
                f"lock {self.name!r} (token {self.token}) was lost before its release",
                name=self.name,
                token=self.token,
            )
        if self._released:
            raise NotOwned(f"lock {self.name!r} was released already", name=self.name)

    def on_lost(self, callback: Callable[[Grant], object]) -> None:
        """Calls `callback(grant)` on the loop once the grant is lost; at once if it is."""
        if self.lost.is_set():
            callback(self)
        else:
            self._callbacks.append(callback)

    def call_in_thread(self, function: Callable[[], object]) -> None:
        """Runs `function` where it may block, without anybody waiting for it."""
        self._service.call_in_thread(function)

    def mark_lost(self) -> None:
        """Called on the loop, when the key or the session was found gone."""
        if self.releasing or self._released or self.lost.is_set():
            return
        self._gone = True
        self.lost.set()
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            try:
                callback(self)
            except Exception:
                logger.exception("a callback for the loss of lock %r failed", self.name)

    def mark_released(self) -> None:
        self._released = True
        self._callbacks.clear()

    async def release(self) -> None:
        """Gives the lock back; works from anywhere, once. LockLost if it had ended before."""
        await self._service.release(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await leave(self, error)


async def leave(grant: Grant, error: BaseException | None) -> None:
    """Releases at the end of a ``with`` block; a loss never hides the block's own exception."""
    if grant.released:
        return
    try:
        await grant.release()
    except LockLost as lost:
        if error is None:
            raise
        error.add_note(f"besides: {lost}")

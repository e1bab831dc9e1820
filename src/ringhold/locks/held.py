"""What is held until it is released or lost, whatever it is: the state that its holder asks.

Guarantees: whoever holds something learns of its loss in four ways - `check` raises, `lost` is
set, callbacks run once, and leaving the block raises LockLost, which never hides the block's own
exception. A loss is final; so is a release, which happens once.
"""

from __future__ import annotations

import abc
import asyncio
import logging
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

from ringhold.bridge import INTERRUPTS_MAX, Bridge, Unpicklable
from ringhold.env import Env, finish
from ringhold.errors import LockLost, NotOwned, RingholdError
from ringhold.locks.session import SessionState

logger = logging.getLogger("ringhold")


class ThreadCalls:
    """Runs users' callbacks where they may block, without anybody waiting for them."""

    def __init__(self, env: Env):
        self._env = env
        self._running: dict[asyncio.Future[object], None] = {}

    def run(self, function: Callable[[], object]) -> None:
        call = asyncio.ensure_future(self._env.blocking(function))
        self._running[call] = None
        call.add_done_callback(self._ended)

    def _ended(self, call: asyncio.Future[object]) -> None:
        del self._running[call]
        if not call.cancelled() and call.exception() is not None:
            logger.error("a callback for a loss failed", exc_info=call.exception())


class Held(Unpicklable, abc.ABC):
    """Something held within a session. `what` names its kind to people, `name` itself."""

    def __init__(self, what: str, name: str, mode: str, token: int, state: SessionState):
        self.name = name
        self.mode = mode
        self.token = token
        self.state = state
        self.lost = asyncio.Event()
        self._what = what
        self._gone = False
        self._releasing = False
        self._released = False
        self._callbacks: list[Callable[[Any], object]] = []
        state.on_loss(self, self.mark_lost)

    def __repr__(self) -> str:
        state = "released" if self._released else "lost" if self.is_lost else "held"
        return f"<{type(self).__name__} {self._what} {self.name!r} token={self.token} {state}>"

    @property
    def is_lost(self) -> bool:
        """Whether it ended before its release. Callable from any thread."""
        return self._gone or (not self._released and self.state.expired)

    @property
    def released(self) -> bool:
        return self._released

    def check(self) -> None:
        """Raises LockLost when it ended, NotOwned when it was released; does no I/O."""
        if self.is_lost:
            raise LockLost(
                f"{self._what} {self.name!r} (token {self.token}) was lost before its release",
                name=self.name,
                token=self.token,
            )
        self._check_unreleased()

    def _check_unreleased(self) -> None:
        if self._released:
            raise NotOwned(f"{self._what} {self.name!r} was released already", name=self.name)

    def on_lost(self, callback: Callable[[Self], object]) -> None:
        """Calls ``callback(grant)`` on the loop once it is lost; at once if it is."""
        if not callable(callback):
            raise TypeError("callback must be callable")
        if self.lost.is_set():
            callback(self)
        else:
            self._callbacks.append(callback)

    def mark_lost(self) -> None:
        """Called on the loop, when the key or the session was found gone."""
        if self._releasing or self._released or self.lost.is_set():
            return
        self._gone = True
        self.lost.set()
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            try:
                callback(self)
            except Exception:
                logger.exception("a callback for the loss of %s %r failed", self._what, self.name)

    async def release(self) -> None:
        """Gives it back; works from anywhere, once (NotOwned). LockLost if it had ended."""
        if self._releasing:
            raise NotOwned(f"{self._what} {self.name!r} is being released", name=self.name)
        self._check_unreleased()
        self._releasing = True
        try:
            await finish(asyncio.ensure_future(self._release()))
        finally:
            self._releasing = False

    async def _release(self) -> None:
        lost = not await self.give_back()
        self._releasing = False
        self.state.forget(self)
        if lost:
            self.mark_lost()
        self._released = True
        self._callbacks.clear()
        if lost:
            self.check()

    @abc.abstractmethod
    async def give_back(self) -> bool:
        """Frees it for others; whether it was still held. Repeated after an error."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await leave_held(self, error)


def tell_loss(lost: LockLost, error: BaseException | None) -> None:
    """At the end of a ``with`` block: raises `lost`, or notes it on the block's own exception,
    which it never hides."""
    if error is None:
        raise lost
    error.add_note(f"besides: {lost}")


async def leave_held(held: Held, error: BaseException | None) -> None:
    """Releases at the end of a ``with`` block."""
    if held.released:
        return
    try:
        await held.release()
    except LockLost as lost:
        tell_loss(lost, error)


class HeldBlocking(Unpicklable):
    """The blocking face of something held: truthy, and a context manager that releases."""

    def __init__(self, held: Held, bridge: Bridge, calls: ThreadCalls):
        """Called on the loop."""
        self.held = held
        self.lost = threading.Event()
        self.name = held.name
        self.mode = held.mode
        self.token = held.token
        self._bridge = bridge
        self._calls = calls
        held.on_lost(lambda _: self.lost.set())

    def __repr__(self) -> str:
        return repr(self.held)

    def check(self) -> None:
        """Raises LockLost when it ended, NotOwned when it was released; does no I/O."""
        self._bridge.check_process()
        try:
            self.held.check()
        except LockLost:
            self.lost.set()
            raise

    def on_lost(self, callback: Callable[[Self], object]) -> None:
        """Calls ``callback(grant)`` once, on a thread of Ringhold, when it is lost."""
        if not callable(callback):
            raise TypeError("callback must be callable")

        async def register() -> None:
            self.held.on_lost(lambda _: self._calls.run(lambda: callback(self)))

        self._bridge.run(register())

    def release(self) -> None:
        """Gives it back; works from any thread, once (NotOwned). LockLost if it had ended."""
        self._bridge.finish(self.held.release)

    def leave(self, error: BaseException | None) -> None:
        """Ends a ``with`` block that it was held for."""
        self._bridge.finish(lambda: leave_held(self.held, error))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.leave(error)


def uninterrupted(action: Callable[[], object]) -> None:
    """Runs `action`, which may be begun again, to its end; an interrupt is raised after that."""
    interrupted: BaseException | None = None
    for _ in range(INTERRUPTS_MAX):
        try:
            action()
            break
        except RingholdError:
            raise
        except BaseException as interrupt:
            interrupted = interrupt
    if interrupted is not None:
        raise interrupted


T = TypeVar("T")


class Entered(Generic[T]):
    """What the blocks of each owner were entered with, so that leaving one ends that very one."""

    def __init__(self) -> None:
        self._stacks: dict[int, list[T]] = {}

    def push(self, owner: int, item: T) -> None:
        self._stacks.setdefault(owner, []).append(item)

    def last(self, owner: int) -> T:
        """NotOwned when `owner` is in no block."""
        stack = self._stacks.get(owner)
        if stack is None:
            raise NotOwned("the block was entered by another thread or task")
        return stack[-1]

    def discard(self, owner: int, item: T) -> None:
        """Removes `item` if it is there."""
        left = [entered for entered in self._stacks.get(owner, ()) if entered is not item]
        if left:
            self._stacks[owner] = left
        else:
            self._stacks.pop(owner, None)


class Leavable(Protocol):
    def leave(self, error: BaseException | None) -> None: ...


AnyLeavable = TypeVar("AnyLeavable", bound=Leavable)


def leave_block(entered: Entered[AnyLeavable], owner: int, error: BaseException | None) -> None:
    """Ends the block that `owner` entered last, also when the thread is interrupted meanwhile."""
    item = entered.last(owner)

    def leave() -> None:
        try:
            item.leave(error)
        finally:
            entered.discard(owner, item)

    uninterrupted(leave)

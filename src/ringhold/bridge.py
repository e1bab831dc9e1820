"""Between threads and event loops: how a thread waits for a coroutine that runs elsewhere.

Guarantees: a call that is interrupted (KeyboardInterrupt, cancellation) cancels the coroutine
behind it and waits until that has ended; what it produced all the same is given back through
`undo`. Context variables of the caller are seen by the coroutine. A blocking call on the very
loop that would have to answer raises RuntimeError instead of waiting for ever.

After a fork the child has none of the parent's threads: every call there raises Closed. The
loop object itself is kept, never closed, since its epoll descriptor is shared with the parent
and unregistering anything from it would blind the parent's loop.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextvars
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, TypeVar

from ringhold.env import process_id
from ringhold.errors import Closed
from ringhold.owner import calling_owner, current_owner, thread_owner

T = TypeVar("T")
Undo = Callable[[T], Awaitable[object]]


class Life:
    """Whether an object may still be used: it was not closed, and this is its own process."""

    __slots__ = ("_closed", "_pid", "_what")

    def __init__(self, what: str):
        self._what = what
        self._pid = process_id()
        self._closed = False

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def foreign(self) -> bool:
        """Whether this process was forked from the one the object belongs to."""
        return process_id() != self._pid

    def close(self) -> None:
        self._closed = True

    def check(self) -> None:
        if self.foreign:
            raise Closed(
                f"{self._what} belongs to process {self._pid}; process {process_id()} was forked "
                "from it and must open its own",
                pid=self._pid,
            )
        if self._closed:
            raise Closed(f"{self._what} is closed")


class Bridge:
    """Runs coroutines on `loop` for callers elsewhere."""

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self.loop = loop
        self._life = Life("Ringhold's event loop")

    def check_process(self) -> None:
        """Closed in a process that was forked from the one the loop runs in."""
        self._life.check()

    def check_callable(self) -> None:
        """RuntimeError when the calling thread runs the loop that would have to answer."""
        self._life.check()
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            return
        if running is self.loop:
            raise RuntimeError(
                "a blocking call on Ringhold's own event loop would wait for itself; "
                "use the coroutine of the same name"
            )

    def run(self, coroutine: Coroutine[Any, Any, T], undo: Undo[T] | None = None) -> T:
        """Blocks the calling thread for the result of `coroutine`.

        When the thread is interrupted although a result was there, `undo` gives that back.
        """
        try:
            self.check_callable()
        except BaseException:
            coroutine.close()
            raise
        call = _Call(self.loop, coroutine, thread_owner())
        try:
            call.start()
            concurrent.futures.wait([call.outcome])
            return call.result()
        except KeyboardInterrupt as interrupt:
            call.wait_cancelled()
            if undo is not None and call.succeeded:
                giving_back = _Call(self.loop, _given_back(undo, call.result()), thread_owner())
                giving_back.finish()
                giving_back.note_failure(interrupt)
            raise

    async def hop(self, coroutine: Coroutine[Any, Any, T], undo: Undo[T] | None = None) -> T:
        """Awaits `coroutine`, which runs on `loop`, from whatever loop the caller is on."""
        try:
            self._life.check()
        except BaseException:
            coroutine.close()
            raise
        if asyncio.get_running_loop() is self.loop:
            return await coroutine
        call = _Call(self.loop, coroutine, current_owner())
        call.start()
        cancelled = await _wait_for(call, cancel=True)
        if cancelled is None:
            return call.result()
        if undo is not None and call.succeeded:
            giving_back = _Call(self.loop, _given_back(undo, call.result()), current_owner())
            giving_back.start()
            await _wait_for(giving_back, cancel=False)
            giving_back.note_failure(cancelled)
        raise cancelled


async def _given_back(undo: Undo[T], result: T) -> None:
    await undo(result)


async def _wait_for(call: _Call[T], *, cancel: bool) -> asyncio.CancelledError | None:
    """Waits until `call` has ended, whatever happens; how the waiting task was cancelled."""
    waiter = asyncio.wrap_future(call.outcome)
    cancelled: asyncio.CancelledError | None = None
    while not waiter.done():
        try:
            await asyncio.wait([waiter])
        except asyncio.CancelledError as error:
            cancelled = error
            if cancel:
                call.cancel()
    if not waiter.cancelled():
        # The outcome is read from the call; the wrapper must not complain that nobody looked.
        waiter.exception()
    return cancelled


class _Call(Generic[T]):
    """One coroutine on the loop, and somebody elsewhere who waits for its outcome."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T], owner: int
    ):
        self.outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._loop = loop
        self._coroutine = coroutine
        self._context = contextvars.copy_context()
        self._context.run(calling_owner.set, owner)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._start)
        except RuntimeError:
            self._coroutine.close()
            raise Closed("Ringhold's event loop has ended") from None

    def _start(self) -> None:
        self._task = self._loop.create_task(self._run(), context=self._context)

    async def _run(self) -> None:
        try:
            self.outcome.set_result(await self._coroutine)
        except BaseException as error:
            # It belongs to the waiting thread, KeyboardInterrupt and SystemExit too: raised
            # here they would end the loop under everybody else.
            self.outcome.set_exception(error)

    @property
    def succeeded(self) -> bool:
        return self.outcome.exception() is None

    def note_failure(self, error: BaseException) -> None:
        """Tells in `error`, which is being raised anyhow, that this call failed besides."""
        failure = self.outcome.exception()
        if failure is not None:
            error.add_note(f"besides, giving back what was obtained failed: {failure!r}")

    def result(self) -> T:
        try:
            return self.outcome.result()
        except asyncio.CancelledError:
            raise Closed("Ringhold's event loop ended during the call") from None

    def cancel(self) -> None:
        self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
        elif not self.outcome.done():
            # Callbacks run in order: the interrupt came before `_start` was handed over.
            self._coroutine.close()
            self.outcome.set_exception(asyncio.CancelledError())

    def wait_cancelled(self) -> None:
        """Cancels, and waits for the end however often this thread is interrupted meanwhile."""
        while True:
            try:
                self.cancel()
                concurrent.futures.wait([self.outcome])
                return
            except KeyboardInterrupt:
                continue

    def finish(self) -> None:
        """Runs to the end, which no interrupt of this thread prevents."""
        self.start()
        while True:
            try:
                concurrent.futures.wait([self.outcome])
                return
            except KeyboardInterrupt:
                continue


class _LoopThread:
    """The loop that belongs to Ringhold in this process, on a daemon thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.bridge = Bridge(self.loop)
        self._thread = threading.Thread(target=self._main, name="ringhold-loop", daemon=True)
        self._thread.start()

    def _main(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            self.loop.close()

    def stop(self) -> None:
        """At interpreter exit: ends what still runs there, so that no task dies unfinished."""
        asyncio.run_coroutine_threadsafe(self._cancel_all(), self.loop)
        self._thread.join(timeout=2.0)

    async def _cancel_all(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.loop.shutdown_asyncgens()
        self.loop.stop()


_starting = threading.Lock()
_loop_thread: _LoopThread | None = None
_inherited: list[_LoopThread] = []


def process_bridge() -> Bridge:
    """The bridge to Ringhold's own loop in this process, which is started on first use."""
    global _loop_thread
    with _starting:
        if _loop_thread is None:
            _loop_thread = _LoopThread()
        return _loop_thread.bridge


def _after_fork() -> None:
    global _loop_thread, _starting
    _starting = threading.Lock()
    if _loop_thread is not None:
        _inherited.append(_loop_thread)
        _loop_thread = None


def _at_exit() -> None:
    if _loop_thread is not None:
        _loop_thread.stop()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)

"""Between threads and event loops: how a thread waits for a coroutine that runs elsewhere.

Guarantees: a call that is interrupted (cancellation, KeyboardInterrupt or whatever else a signal
handler raises) cancels the coroutine behind it and waits until that has ended; what it produced
all the same is given back through `undo`. What gives something back (`finish`) is not cancelled:
the interrupt is raised after it. Context variables of the caller are seen by the coroutine. A
blocking call on the very loop that would have to answer raises RuntimeError instead of waiting
for ever.

Not guaranteed: Python runs a signal's handler between any two instructions, also before the
first one of an ``__exit__`` and after the last one of an ``acquire``. What is raised there no
library can turn back; a ``with`` block leaves the first of these two windows only.

After a fork the child has none of the parent's threads: every call there raises Closed, and
what is used in the child needs the bridge of a loop of its own (see `home`). The
loop object itself is kept, never closed, since its epoll descriptor is shared with the parent
and unregistering anything from it would blind the parent's loop.
"""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import functools
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, NoReturn, TypeVar, cast

from ringhold.env import forks, process_id
from ringhold.errors import Closed
from ringhold.owner import calling_owner, current_owner, thread_owner

logger = logging.getLogger("ringhold")

STANDSTILL_S = 3.0
"""Longer than the end of a process takes, but no deadlock if what ends it waits for the thread."""

INTERRUPTS_MAX = 8
"""How often something that must be done is begun again after an interrupt came in between."""

T = TypeVar("T")
Undo = Callable[[T], Awaitable[object]]


class Unpicklable:
    """What belongs to one process, and is one: no copy of it could be used."""

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"a {type(self).__name__} of Ringhold cannot be pickled or copied: open the cluster "
            "where it is needed"
        )


class Life(Unpicklable):
    """Whether an object may still be used: it was not closed, and this is its own process."""

    __slots__ = ("_closed", "_generation", "pid", "what")

    def __init__(self, what: str):
        self.what = what
        self.pid = process_id()
        self._generation = forks.generation
        self._closed = False

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def foreign(self) -> bool:
        """Whether this process was forked from the one the object belongs to."""
        return self._generation != forks.generation

    def close(self) -> None:
        self._closed = True

    def check(self) -> None:
        if self.foreign:
            raise Closed(
                f"{self.what} belongs to process {self.pid}; process {process_id()} was forked "
                "from it and must open its own",
                pid=self.pid,
            )
        self.check_open()

    def check_open(self) -> None:
        """Closed when it was closed, in this process or before it was forked."""
        if self._closed:
            raise Closed(f"{self.what} is closed")


def check_loop(loop: asyncio.AbstractEventLoop) -> None:
    """RuntimeError in a task of another loop than `loop`, which must be running."""
    if asyncio.get_running_loop() is not loop:
        raise RuntimeError(
            "this cluster was opened on another event loop: a cluster of ringhold.aio is used on "
            "the loop that opened it; open one for each loop"
        )


class Bridge:
    """Runs coroutines on `loop` for callers elsewhere."""

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self.loop = loop
        self._life = Life("Ringhold's event loop")

    @property
    def foreign(self) -> bool:
        """Whether the loop runs in the process this one was forked from."""
        return self._life.foreign

    @property
    def pid(self) -> int:
        """The process that the loop runs in."""
        return self._life.pid

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
        if running is not self.loop:
            return
        if _loop_thread is not None and _loop_thread.loop is running:
            raise RuntimeError(
                "a blocking call on Ringhold's own event loop would wait for itself; "
                "use the coroutine of the same name"
            )
        raise RuntimeError(
            "a blocking call on the event loop that ringhold.aio opened the cluster on would wait "
            "for itself; await the coroutine, whose name in a file system begins with an "
            "underscore (await fs._ls(path)), or fs.open_async, and enter blocks by async with"
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
        call = _Call(self.loop, lambda: coroutine, thread_owner())
        try:
            call.start()
            call.wait()
            return call.result()
        except BaseException as interrupt:
            if call.raised(interrupt):
                raise
            call.wait_cancelled()
            if undo is not None and call.error is None:
                produced = call.result()
                self.finish(lambda: _given_back(undo, produced))
            raise

    def finish(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Blocks the calling thread for what ``make()`` returns, to the end.

        For what gives something back: when the thread is interrupted, even before it came to
        call anything, the coroutine runs to its end all the same, and then the interrupt is
        raised.
        """
        self.check_callable()
        interrupted: BaseException | None = None
        for _ in range(INTERRUPTS_MAX):
            call: _Call[T] | None = None
            try:
                call = _Call(self.loop, make, thread_owner())
                call.start()
                call.wait()
                break
            except Closed:
                raise
            except BaseException as interrupt:
                interrupted = interrupt
                if call is not None and call.wait_begun():
                    break
        if interrupted is not None:
            raise interrupted
        assert call is not None
        return call.result()

    async def hop(self, coroutine: Coroutine[Any, Any, T], undo: Undo[T] | None = None) -> T:
        """Awaits `coroutine`, which runs on `loop`, from whatever loop the caller is on."""
        try:
            self._life.check()
        except BaseException:
            coroutine.close()
            raise
        if asyncio.get_running_loop() is self.loop:
            return await coroutine
        call = _Call(self.loop, lambda: coroutine, current_owner())
        cancelled = await call.awaited(cancel=True)
        if cancelled is None:
            return call.result()
        if undo is not None and call.error is None:
            produced = call.result()
            giving_back = _Call(self.loop, lambda: _given_back(undo, produced), current_owner())
            await giving_back.awaited(cancel=False)
            if giving_back.error is not None:
                cancelled.add_note(f"besides, giving it back failed: {giving_back.error!r}")
        raise cancelled


async def _given_back(undo: Undo[T], result: T) -> None:
    await undo(result)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class _Call(Generic[T]):
    """One coroutine on the loop, and somebody elsewhere who waits for its outcome.

    The loop makes the coroutine, so that a thread interrupted before it handed the call over
    leaves none behind. The waiting thread holds on to a plain lock: `concurrent.futures` waits in
    Python code that a signal handler may leave in the middle, its condition variable in pieces.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        make: Callable[[], Coroutine[Any, Any, T]],
        owner: int,
    ):
        self.error: BaseException | None = None
        self._value: T | None = None
        self._done = False
        self._until_done = threading.Lock()
        self._until_done.acquire()
        self._on_done: Callable[[], object] | None = None
        self._loop = loop
        self._make = make
        self._coroutine: Coroutine[Any, Any, T] | None = None
        self._context = contextvars.copy_context()
        self._context.run(calling_owner.set, owner)
        self._begun = False
        self._task: asyncio.Task[None] | None = None

    # On the loop

    def _start(self) -> None:
        if self._task is not None or self._done:
            return
        self._coroutine = self._make()
        self._task = self._loop.create_task(self._run(self._coroutine), context=self._context)
        self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        # A task cancelled before its first step never ran a line of `_run`.
        self._drop()

    def _drop(self) -> None:
        if not self._done:
            (self._coroutine or self._make()).close()
            self._settle(None, asyncio.CancelledError())

    async def _run(self, coroutine: Coroutine[Any, Any, T]) -> None:
        try:
            self._settle(await coroutine, None)
        except BaseException as error:
            # It belongs to the waiting thread, KeyboardInterrupt and SystemExit too: raised
            # here they would end the loop under everybody else.
            self._settle(None, error)

    def _settle(self, value: T | None, error: BaseException | None) -> None:
        self._value, self.error = value, error
        self._done = True
        self._until_done.release()
        if self._on_done is not None:
            self._on_done()

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
        else:
            # Callbacks run in order: the interrupt came before `_start` was handed over.
            self._drop()

    # Elsewhere

    def start(self) -> None:
        self._begun = True
        try:
            self._loop.call_soon_threadsafe(self._start)
        except RuntimeError:
            self._drop()
            stand_still()
            raise Closed("Ringhold's event loop has ended") from None

    def _post(self, callback: Callable[[], object]) -> None:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            # The loop has ended: nothing will be done any more, by anybody.
            self._drop()

    def wait(self) -> None:
        while not self._done:
            self._until_done.acquire()

    def wait_begun(self) -> bool:
        """Whether it was begun; if so it has ended, however often this thread is interrupted."""
        while self._begun and not self._done:
            try:
                # The interrupt may have come before the loop was told, or before it was woken.
                self._post(self._start)
                self.wait()
            except BaseException as interrupt:
                logger.debug("interrupted again while a call ends: %r", interrupt)
        return self._begun

    def wait_cancelled(self) -> None:
        """Cancels, and waits for the end however often this thread is interrupted meanwhile."""
        while not self._done:
            try:
                self._post(self._cancel)
                self.wait()
            except BaseException as interrupt:
                logger.debug("interrupted again while a call ends: %r", interrupt)

    async def awaited(self, *, cancel: bool) -> asyncio.CancelledError | None:
        """Starts it and waits for its end on the running loop, whatever happens; how the waiting
        task was cancelled meanwhile, which with `cancel` is passed on."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        self._on_done = functools.partial(_tell, loop, waiter)
        self.start()
        cancelled: asyncio.CancelledError | None = None
        while not waiter.done():
            try:
                await asyncio.wait([waiter])
            except asyncio.CancelledError as error:
                cancelled = error
                if cancel:
                    self._loop.call_soon_threadsafe(self._cancel)
        return cancelled

    def raised(self, error: BaseException) -> bool:
        """Whether `error` came out of `start` or `result`, not from outside of the call."""
        ended = isinstance(self.error, asyncio.CancelledError) and isinstance(error, Closed)
        return self._done and (self.error is error or ended)

    def result(self) -> T:
        if isinstance(self.error, asyncio.CancelledError):
            stand_still()
            raise Closed("Ringhold's event loop ended during the call")
        if self.error is not None:
            raise self.error
        return cast("T", self._value)


def _tell(loop: asyncio.AbstractEventLoop, waiter: asyncio.Future[None]) -> None:
    try:
        loop.call_soon_threadsafe(_wake, waiter)
    except RuntimeError:
        # The loop of whoever waited has ended, and everybody on it.
        if not loop.is_closed():
            raise


class _LoopThread:
    """The loop that belongs to Ringhold in this process, on a daemon thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.bridge = Bridge(self.loop)
        self._stopping = False
        self._thread = threading.Thread(target=self._main, name="ringhold-loop", daemon=True)
        self._thread.start()

    def _main(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            self.loop.close()

    def stop(self, timeout_s: float) -> None:
        if not self._stopping:
            self._stopping = True
            asyncio.run_coroutine_threadsafe(self._cancel_all(), self.loop)
            self._thread.join(timeout_s)

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
_ending = False


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


def end_loop(timeout_s: float = 2.0) -> None:
    """At the end of the process: ends what still runs there, so that no task dies unfinished."""
    global _ending
    _ending = True
    if _loop_thread is not None:
        _loop_thread.stop(timeout_s)


def stand_still() -> None:
    """While the process ends a daemon thread waits here, until Python stops it: what it would be
    told from now on would be printed as its failure."""
    if _ending and threading.current_thread().daemon:
        threading.Event().wait(STANDSTILL_S)


os.register_at_fork(after_in_child=_after_fork)
atexit.register(end_loop)

"""Goal: a thread that is interrupted while it commits, wherever that is, loses nothing and leaves
nothing behind: no lock, no open transaction, no request of others without an answer.

Method: an exception raised at every place where the interpreter would raise KeyboardInterrupt
(at the beginning of a function, after a call, at the end of a loop's body), one place after the
other; real signals and real asynchronous exceptions at random moments while others commit.
"""

from __future__ import annotations

import asyncio
import ctypes
import dis
import functools
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

from ringhold.bridge import process_bridge
from ringhold.env import real_env
from ringhold.errors import OutcomeUnknown
from ringhold.store.base import Put, run_direct
from ringhold.store.lock_files import CommitLock
from ringhold.store.requests import checked_commit
from ringhold.store.sqlite import open_sqlite_store
from ringhold.store.sqlite.queued import Waiting

pytestmark = [
    # The plugin's other method uses the timer that these tests set.
    pytest.mark.timeout(120, method="thread"),
    # An interrupt before a coroutine's first step leaves it to the collector, and one that comes
    # while a finalizer runs is reported, not raised.
    pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class Interrupt(BaseException):
    """As KeyboardInterrupt, which pytest would take for its own."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Any]:
    bridge = process_bridge()
    opened = bridge.run(open_sqlite_store(str(tmp_path / "data"), real_env(), create=True))
    yield opened
    bridge.run(opened.close())


def put(store: Any, key: bytes, value: bytes = b"") -> int:
    return run_direct(store.direct.commit(puts=[Put(key, value)]))


def get(store: Any, key: bytes) -> bytes | None:
    async def read() -> bytes | None:
        snapshot = await store.direct.snapshot()
        try:
            entry = await snapshot.get(key)
            return None if entry is None else entry.value
        finally:
            await snapshot.close()

    return run_direct(read())


@functools.cache
def places(code: CodeType) -> frozenset[int]:
    """Where in `code`, besides its beginning, the interpreter looks whether it is interrupted."""
    found = set()
    after_call = False
    for instruction in dis.get_instructions(code):
        if after_call or instruction.opname.startswith("JUMP_BACKWARD"):
            found.add(instruction.offset)
        after_call = instruction.opname.startswith("CALL")
    return frozenset(found)


def interrupted_at(number: int, function: Callable[[], object]) -> bool:
    """Runs `function`, interrupted at its `number`-th place in the store or in asyncio; whether
    there is one. It must let the interrupt through, and nothing else."""
    passed = 0

    def traced(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal passed
        name = frame.f_code.co_filename
        if "/ringhold/store/" not in name and "/asyncio/base_events" not in name:
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        if event == "call" or (event == "opcode" and frame.f_lasti in places(frame.f_code)):
            passed += 1
            if passed == number:
                sys.settrace(None)
                raise Interrupt
        return traced

    before = sys.gettrace()
    sys.settrace(traced)
    try:
        function()
    except Interrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def free_within(lock: CommitLock, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if lock.try_acquire():
            lock.release()
            return True
        time.sleep(0.001)
    return False


@pytest.mark.timeout(280, method="thread")
def test_an_interrupt_at_any_place_of_a_leader_loses_nothing(store: Any, tmp_path: Path) -> None:
    lock = CommitLock(str(tmp_path / "data" / "locks"))
    writer = store._writer
    unknown = missed = 0
    number = 1
    while missed < 20:
        while writer._leading or not writer._doorbell.empty():
            time.sleep(0.001)
        # Somebody else's request, which the leader takes along.
        theirs = b"theirs %d" % number
        request = checked_commit([], [Put(theirs, b"")], [], None)
        waiting = Waiting(request, time.monotonic_ns())
        writer._queue.put(waiting)
        mine = b"mine %d" % number
        was_interrupted = interrupted_at(number, lambda key=mine: put(store, key))  # type: ignore[misc]
        if not waiting.wait(0.05):
            # Interrupted before it began anything: nobody was to take it along.
            writer._ring()
        assert waiting.wait(10), f"no answer after an interrupt at place {number}"
        if isinstance(waiting.outcome, OutcomeUnknown):
            unknown += 1
        else:
            assert isinstance(waiting.outcome, int)
            assert get(store, theirs) == b""
        assert free_within(lock, 10), f"the lock is held after an interrupt at place {number}"
        settled = get(store, mine)
        assert put(store, b"next") > 0
        assert get(store, mine) == settled
        if was_interrupted:
            number, missed = number + 1, 0
        else:
            # Behind the last place, or the writer thread led.
            assert settled == b""
            missed += 1
    lock.close()
    # The fault was there, within the transaction and outside of it.
    assert number > 200
    assert 50 < unknown < number - 50


def test_an_interrupt_at_any_place_of_a_read_leaves_no_snapshot(store: Any) -> None:
    put(store, b"a", b"1")
    number = 1
    while interrupted_at(number, lambda: get(store, b"a")):
        number += 1
        assert get(store, b"a") == b"1"
    assert number > 30
    # A read transaction left open would keep the log from starting again.
    writing = store._writer
    put(store, b"b")
    assert writing._connection.wal_checkpoint("main", 3)[0] == 0  # TRUNCATE waits for all readers


class Crew:
    """Threads and tasks that count in keys of their own, until told to stop."""

    def __init__(self, store: Any):
        self.store = store
        self.stopping = False
        self.errors: list[BaseException] = []
        self.counts: dict[bytes, int] = {}

    def count(self, key: bytes) -> None:
        done = self.counts.get(key, 0) + 1
        put(self.store, key, b"%d" % done)
        self.counts[key] = done

    def count_for_ever(self, key: bytes) -> None:
        while not self.stopping:
            try:
                self.count(key)
            except OutcomeUnknown:
                continue

    def thread(self, key: bytes) -> None:
        try:
            self.count_for_ever(key)
        except BaseException as error:
            self.errors.append(error)

    async def task(self, key: bytes) -> None:
        while not self.stopping:
            done = self.counts.get(key, 0) + 1
            try:
                await self.store.commit(puts=[Put(key, b"%d" % done)])
            except OutcomeUnknown:
                continue
            self.counts[key] = done

    async def tasks(self) -> None:
        await asyncio.gather(*(self.task(b"task %d" % number) for number in range(3)))

    def run(self, disturbed: Callable[[Crew], None]) -> None:
        """Runs `disturbed` while two threads and three tasks commit; checks what they counted."""
        threads = [
            threading.Thread(target=self.thread, args=(b"thread %d" % number,))
            for number in range(2)
        ]
        for thread in threads:
            thread.start()
        tasks = asyncio.run_coroutine_threadsafe(self.tasks(), process_bridge().loop)
        try:
            disturbed(self)
        finally:
            self.stopping = True
            for thread in threads:
                thread.join(20)
            tasks.result(20)
        assert not any(thread.is_alive() for thread in threads)
        assert self.errors == []
        for key, done in self.counts.items():
            found = get(self.store, key)
            # One more may be there, that was committed and not acknowledged.
            assert found in (b"%d" % done, b"%d" % (done + 1)), (key, done, found)
        assert len(self.counts) >= 6
        assert min(self.counts.values()) > 0


def test_signals_at_any_moment_while_others_commit(store: Any) -> None:
    def ring(signum: int, frame: object) -> None:
        raise Interrupt

    caught: list[float] = []

    def disturbed(crew: Crew) -> None:
        crew.count(b"main")  # Undisturbed: a slow commit may be interrupted each time.
        generator = random.Random(11)
        before = signal.signal(signal.SIGALRM, ring)
        try:
            for _ in range(300):
                delay_s = generator.uniform(0.0001, 0.006)
                try:
                    # Again after a while: what is raised in a finalizer reaches nobody.
                    signal.setitimer(signal.ITIMER_REAL, delay_s, 2.0)
                    crew.count_for_ever(b"main")
                except Interrupt:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                    caught.append(delay_s)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    Crew(store).run(disturbed)
    assert len(caught) == 300


def test_asynchronous_exceptions_in_a_thread_while_others_commit(store: Any) -> None:
    ready = threading.Semaphore(0)
    rounds = 300

    def victim(crew: Crew) -> None:
        crew.count(b"victim")
        for _ in range(rounds):
            try:
                ready.release()
                crew.count_for_ever(b"victim")
            except Interrupt:
                continue

    def disturbed(crew: Crew) -> None:
        generator = random.Random(12)
        thread = threading.Thread(target=victim, args=(crew,))
        thread.start()
        raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
        for _ in range(rounds):
            assert ready.acquire(timeout=30)
            time.sleep(generator.uniform(0, 0.005))
            ident = ctypes.c_ulong(thread.ident or 0)
            assert raise_in(ident, ctypes.py_object(Interrupt)) == 1
        thread.join(30)
        assert not thread.is_alive()

    Crew(store).run(disturbed)

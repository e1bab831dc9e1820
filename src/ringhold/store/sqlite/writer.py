"""The shell around `apply`: a thread that commits what is queued, under the commit lock.

Guarantees:

- Group commit: whatever is queued when the lock is won, up to BATCH_MAX requests and
  BATCH_SIZE_MAX, goes into one transaction and one fsync. A larger commit goes alone.
- Requests for leases go first, and never into one transaction with a large commit. What a
  renewal still waits for is bounded: the transaction under way here (by OPERATIONS_MAX and
  COMMIT_BYTES_MAX, or BATCH_SIZE_MAX), at most one it was not to overtake again, and the turns
  that other processes take at the commit lock, each bounded in the same way. A process that is
  stopped while it holds the lock is the exception; no bound exists for that.
- A request is answered once: with its outcome, with StoreUnavailable when it was never begun or
  left nothing, or with OutcomeUnknown. A request that waited STUCK_S seconds for a lock that
  another process does not give back is withdrawn, and its error names that process.
- Checkpoints happen here only, under the lock, when the write-ahead log has grown. One that
  fails is told to the loop's exception handler and tried again later; no commit depends on it.
- No error leaves a request without an answer. The thread goes on after every error but one of
  the lock files themselves; after that one it ends, and all requests are refused with its cause.

After a commit whose outcome is not known the connection is given up and a new one opened; a
failed fsync is never repeated as if it had not happened.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass

import apsw

from ringhold.env import Clock
from ringhold.errors import Corrupt, OutcomeUnknown, RingholdError, StoreUnavailable
from ringhold.store.leases import SIGNING_NS_MAX
from ringhold.store.lock_files import CommitLock, file_identity, inode_of
from ringhold.store.requests import CommitRequest
from ringhold.store.sqlite.apply import Applied, Now, Outcome, Request, apply
from ringhold.store.sqlite.schema import BUSY_TIMEOUT_MS, connect, set_synced

BATCH_MAX = 256
BATCH_SIZE_MAX = 4 << 20
"""Of `CommitRequest.size`: a few tens of milliseconds, as long as a renewal may be delayed."""
STUCK_S = 10.0
CHECKPOINT_PAGES = 1_000
RESTART_PAGES = 16_000
RESTART_WAIT_MS = 20


@dataclass(slots=True, eq=False)
class _Queued:
    request: Request
    future: asyncio.Future[int]
    since_ns: int


def named_holder(lock: CommitLock) -> str:
    pid = lock.holder()
    return f"the process {pid}" if pid else "a process that is not known"


def sign(lock: CommitLock, clock: Clock) -> int:
    """Notes in the lock's file by which moment the commit that now begins judges leases.

    Whoever reads the file may rely on it (`leases`), so a signature that came late, since the
    process was stopped before it wrote it, is written again.
    """
    while True:
        now_ns = clock.boottime_ns()
        lock.sign(now_ns)
        if clock.boottime_ns() - now_ns < SIGNING_NS_MAX:
            return now_ns


def _size(queued: _Queued) -> int:
    return queued.request.size if isinstance(queued.request, CommitRequest) else 0


class Checkpoints:
    """Keeps the write-ahead log short; belongs to one connection that writes.

    A passive checkpoint copies what it can and waits for nobody; the log starts again from its
    beginning at a commit that finds everything copied and no reader in it. Where readers follow
    one another without a gap that never happens, so a log that has grown far waits for them,
    briefly.
    """

    def __init__(self, connection: apsw.Connection):
        self._connection = connection
        self._pages = 0
        self._copied = 0
        connection.set_wal_hook(self._committed)

    def _committed(self, connection: apsw.Connection, name: str, pages: int) -> int:
        if pages < self._pages:
            self._copied = 0
        self._pages = pages
        return int(apsw.SQLITE_OK)

    def run_if_due(self) -> apsw.Error | None:
        """To be called with the commit lock held, outside a transaction.

        Returns the error of a checkpoint that failed, unless readers were in its way.
        """
        if self._pages - self._copied < CHECKPOINT_PAGES:
            return None
        restart = self._pages >= RESTART_PAGES
        mode = apsw.SQLITE_CHECKPOINT_RESTART if restart else apsw.SQLITE_CHECKPOINT_PASSIVE
        # The next try is due after as many pages again, whether this one succeeds or not: a
        # commit that is durable in the log does not depend on it.
        self._copied = self._pages
        try:
            self._connection.set_busy_timeout(RESTART_WAIT_MS)
            try:
                self._connection.wal_checkpoint("main", mode)
            finally:
                self._connection.set_busy_timeout(BUSY_TIMEOUT_MS)
        except apsw.BusyError:
            return None
        except apsw.Error as error:
            return error
        return None


class Writer:
    """Queues requests of one event loop for one thread. Methods are the loop's, but `_run`."""

    def __init__(
        self,
        path: str,
        lock: CommitLock,
        clock: Clock,
        boot_id: bytes,
        *,
        log_revisions: int,
        synced: bool,
        on_ended: Callable[[Sequence[bytes]], None],
        on_committed: Callable[[Set[bytes]], None],
    ):
        self._path = path
        self._lock = lock
        self._clock = clock
        self._boot_id = boot_id
        self._log_revisions = log_revisions
        self._synced = synced
        self._inode: tuple[int, int] | None = None
        self._file = 0
        self._on_ended = on_ended
        self._on_committed = on_committed
        self._loop = asyncio.get_running_loop()
        self._commits: deque[_Queued] = deque()
        self._leases: deque[_Queued] = deque()
        self._overtaken = False
        self._unanswered: dict[_Queued, None] = {}
        self._answered = asyncio.Event()
        self._stuck_timer: asyncio.TimerHandle | None = None
        self._doorbell: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._rung = False
        self._stopping = False
        self._stopped = asyncio.Event()
        self._dead: str | None = None
        self._cause_of_death: BaseException | None = None
        self._connection: apsw.Connection | None = None
        self._checkpoints: Checkpoints | None = None
        self._thread = threading.Thread(target=self._run, name="ringhold-store", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> asyncio.Future[int]:
        future: asyncio.Future[int] = self._loop.create_future()
        queued = _Queued(request, future, self._clock.monotonic_ns())
        if self._dead is not None:
            self._answer(queued, self._death(StoreUnavailable))
            return future
        self._unanswered[queued] = None
        self._queue_of(queued).append(queued)
        self._ring()
        if self._stuck_timer is None:
            self._stuck_timer = self._loop.call_later(STUCK_S, self._withdraw_stuck)
        return future

    def _queue_of(self, queued: _Queued) -> deque[_Queued]:
        return self._commits if isinstance(queued.request, CommitRequest) else self._leases

    def _ring(self) -> None:
        if not self._rung:
            self._rung = True
            self._doorbell.put(None)

    def _withdraw_stuck(self) -> None:
        """Answers what waited too long. Nothing was begun: only the thread takes from the left,
        and takes under the lock that could not be had."""
        self._stuck_timer = None
        limit_ns = self._clock.monotonic_ns() - int(STUCK_S * 1e9)
        for queued in [queued for queued in self._unanswered if queued.since_ns <= limit_ns]:
            try:
                self._queue_of(queued).remove(queued)
            except ValueError:
                continue  # The thread has it: it is being committed.
            error = StoreUnavailable(
                f"the commit lock of {self._path} was not to be had for {STUCK_S:g} s; "
                f"{named_holder(self._lock)} took it last"
            )
            self._answer(queued, error)
        if self._unanswered:
            waited_ns = self._clock.monotonic_ns() - next(iter(self._unanswered)).since_ns
            delay_s = max(0.1, STUCK_S - waited_ns / 1e9)
            self._stuck_timer = self._loop.call_later(delay_s, self._withdraw_stuck)

    def _answer(self, queued: _Queued, outcome: Outcome) -> None:
        self._unanswered.pop(queued, None)
        if not self._unanswered:
            self._answered.set()
        if queued.future.done():
            return
        if isinstance(outcome, int):
            queued.future.set_result(outcome)
        else:
            queued.future.set_exception(outcome)

    def _answer_all(self, batch: Sequence[_Queued], outcomes: Sequence[Outcome]) -> None:
        for queued, outcome in zip(batch, outcomes, strict=True):
            self._answer(queued, outcome)

    async def close(self) -> None:
        """Waits for what is queued, then stops the thread; safe to be called again."""
        while self._unanswered:
            self._answered.clear()
            await self._answered.wait()
        if self._stuck_timer is not None:
            self._stuck_timer.cancel()
            self._stuck_timer = None
        self.abandon()
        # A thread that still waits for a lock held by a stopped process ends when it gets it.
        if not self._lock.waiting:
            await self._stopped.wait()

    def abandon(self) -> None:
        """Lets the thread end by itself once it has nothing to do."""
        self._stopping = True
        self._doorbell.put(None)

    def _run(self) -> None:
        cause: BaseException | None = None
        try:
            while not (self._stopping and not self._has_queued()):
                self._doorbell.get()
                self._rung = False
                while self._has_queued():
                    self._commit_queued()
        except BaseException as error:
            cause = error
        self._give_up_connection()
        try:
            # With its files the lock is given back to other processes, however this one failed.
            self._lock.close()
        except Exception as error:
            cause = cause or error
        self._call_loop(self._end, cause)

    def _end(self, cause: BaseException | None) -> None:
        """The thread's last word: after it nothing is answered but here and in `submit`."""
        why = "is closed" if cause is None else f"cannot be written any more: {cause!r}"
        self._dead = f"the store {self._path} {why}"
        self._cause_of_death = cause
        if cause is not None:
            self._report("the thread of a store ended", cause)
        for queued in list(self._unanswered):
            begun = queued not in self._queue_of(queued)
            self._answer(queued, self._death(OutcomeUnknown if begun else StoreUnavailable))
        self._leases.clear()
        self._commits.clear()
        self._stopped.set()

    def _death(self, kind: type[RingholdError]) -> RingholdError:
        error = kind(self._dead or "")
        error.__cause__ = self._cause_of_death
        return error

    def _report(self, message: str, error: BaseException) -> None:
        """For errors that concern no request: called on the loop."""
        self._loop.call_exception_handler({"message": message, "exception": error})

    def _call_loop(self, function: Callable[..., object], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            if not self._loop.is_closed():
                raise
            # The loop ended before the store was closed: nobody is left to be answered.
            self._stopping = True

    def _commit_queued(self) -> None:
        try:
            self._lock.acquire()
        except Exception as error:
            self._refuse(self._take(), StoreUnavailable, error)
            return
        try:
            batch = self._take()
            if batch:
                self._commit(batch)
                self._checkpoint()
        finally:
            self._lock.release()

    def _checkpoint(self) -> None:
        if self._checkpoints is None:
            return
        try:
            error: Exception | None = self._checkpoints.run_if_due()
        except Exception as unforeseen:
            self._give_up_connection()
            error = unforeseen
        if error is not None:
            self._call_loop(self._report, f"a checkpoint of {self._path} failed", error)

    def _has_queued(self) -> bool:
        return bool(self._leases or self._commits)

    def _take(self) -> list[_Queued]:
        """The next batch: leases, then commits in their order while they are small together."""
        batch: list[_Queued] = []
        size = 0
        # Commits are overtaken once: leases that keep coming must not keep them waiting.
        leases = () if self._overtaken and self._commits else self._leases
        with contextlib.suppress(IndexError):  # Empty, or the last was withdrawn meanwhile.
            while leases and len(batch) < BATCH_MAX:
                batch.append(leases.popleft())
        leads = bool(batch)
        with contextlib.suppress(IndexError):
            while self._commits and len(batch) < BATCH_MAX:
                size += _size(self._commits[0])
                if batch and size > BATCH_SIZE_MAX:
                    break
                batch.append(self._commits.popleft())
        self._overtaken = leads and bool(self._commits)
        return batch

    def _commit(self, batch: list[_Queued]) -> None:
        try:
            applied = self._apply([queued.request for queued in batch])
        except (StoreUnavailable, OutcomeUnknown, Corrupt) as error:
            self._give_up_connection()
            self._refuse(batch, type(error), error)
        except Exception as error:
            # Nothing was begun, or it was rolled back: the commit itself is judged above.
            self._give_up_connection()
            self._refuse(batch, StoreUnavailable, error)
        else:
            self._end_sessions(applied.ended)
            self._on_committed(applied.changed)
            self._call_loop(self._answer_all, batch, applied.outcomes)

    def _end_sessions(self, leases: Sequence[bytes]) -> None:
        try:
            self._on_ended(leases)
        except Exception as error:
            # The leases are gone all the same; what stays behind is an empty file.
            self._call_loop(self._report, "a session file cannot be removed", error)

    def _apply(self, requests: list[Request]) -> Applied:
        inode = inode_of(self._path)
        if self._inode not in (None, inode):
            raise StoreUnavailable(
                f"the store {self._path} was replaced while it was open: open the cluster again"
            )
        self._inode = inode
        if self._connection is None:
            self._connection = connect(self._path)
            set_synced(self._connection, self._synced)
            self._checkpoints = Checkpoints(self._connection)
            self._file = file_identity(self._path)
        now_ns = sign(self._lock, self._clock)
        try:
            return apply(
                self._connection,
                requests,
                Now(now_ns, self._boot_id, self._file),
                log_revisions=self._log_revisions,
                synced=self._synced,
            )
        except BaseException:
            # It is not under way any more, and did not write either: the gap goes on.
            self._lock.sign()
            raise

    def _give_up_connection(self) -> None:
        connection, self._connection, self._checkpoints = self._connection, None, None
        if connection is None:
            return
        try:
            connection.close(True)
        except Exception as error:
            # SQLite forgets the connection when it is collected; no commit goes through it.
            self._call_loop(self._report, f"a connection to {self._path} did not close", error)

    def _refuse(
        self, batch: Sequence[_Queued], kind: type[RingholdError], cause: Exception
    ) -> None:
        """One error for each request: what several tasks raise would grow into one another."""
        text = str(cause) if isinstance(cause, RingholdError) else repr(cause)
        message = text if self._path in text else f"the store {self._path} failed: {text}"
        errors: list[Outcome] = []
        for _ in batch:
            error = kind(message)
            error.__cause__ = cause.__cause__ if isinstance(cause, RingholdError) else cause
            errors.append(error)
        self._call_loop(self._answer_all, batch, errors)

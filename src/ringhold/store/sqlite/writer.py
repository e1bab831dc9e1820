"""The shell around `apply`: whoever leads commits what is queued, under the commit lock.

Guarantees:

- Group commit: whatever is queued when the lock is won, up to BATCH_MAX requests and
  BATCH_SIZE_MAX, goes into one transaction and one fsync. A thread that wants to commit while
  nobody leads, and finds the lock free, leads one batch itself, its own request among it; all
  others queue behind and wait for their answers. What a leader leaves behind, and what tasks ask
  for, is the writer thread's, one daemon thread for each open store.
- The commit lock is waited for by the writer thread alone. A request that waited `commit_timeout`
  seconds is withdrawn, and its error names the process that holds the lock, and its state. So
  neither a cancellation nor an interrupt, `close` or the interpreter's exit waits for that process.
- What a renewal of a lease waits for is bounded: the transaction under way here (by
  OPERATIONS_MAX and COMMIT_BYTES_MAX, or BATCH_SIZE_MAX), at most one it was not to overtake
  again, and the turns that other processes take at the commit lock, each bounded in the same way.
- A request is answered once: with its outcome, with StoreUnavailable when it was never begun or
  left nothing, or with OutcomeUnknown.
- An exception raised in a leading thread from outside (KeyboardInterrupt), between any two of
  its instructions, takes nothing along: what was not begun is queued again, a transaction that
  was begun is rolled back with its connection and its other requests are OutcomeUnknown, the lock
  is given back.
- Checkpoints happen here only, under the lock, when the write-ahead log has grown. One that
  fails is told to the loop's exception handler and tried again later; no commit depends on it.
- No error leaves a request without an answer. The store goes on after every error but one of
  the lock files themselves; after that one all requests are refused with its cause.

After a commit whose outcome is not known the connection is given up and a new one opened; a
failed fsync is never repeated as if it had not happened.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence, Set

import apsw

from ringhold.env import Clock, process_id
from ringhold.errors import Closed, Corrupt, OutcomeUnknown, RingholdError, StoreUnavailable
from ringhold.store.leases import SIGNING_NS_MAX
from ringhold.store.lock_files import CommitLock, file_identity, inode_of
from ringhold.store.sqlite.apply import Applied, Now, Outcome, Request, apply
from ringhold.store.sqlite.checkpoints import Checkpoints
from ringhold.store.sqlite.queued import Queue, Waiting
from ringhold.store.sqlite.schema import connect, set_synced

COMMIT_TIMEOUT_S = 10.0


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


def lock_not_had(path: str, lock: CommitLock, waited_s: float) -> StoreUnavailable:
    return StoreUnavailable(
        f"the commit lock of {path} was not to be had for {waited_s:g} s; {lock.blamed()}"
    )


class Turn:
    """One batch and how far it came: what there is left to do when its thread is interrupted."""

    __slots__ = ("answered", "batch", "begun", "cause", "changed", "locking", "outcomes", "over")

    def __init__(self) -> None:
        self.batch: list[Waiting] = []
        self.locking = False
        self.begun = False
        self.outcomes: list[Outcome] | None = None
        self.changed: Set[bytes] = frozenset()
        self.answered = False
        self.over = False
        self.cause: BaseException | None = None


class Writer:
    """Commits the requests of one open store; `submit` is its loop's, `commit` any thread's."""

    def __init__(
        self,
        path: str,
        locks_directory: str,
        clock: Clock,
        boot_id: bytes,
        *,
        log_revisions: int,
        synced: bool,
        commit_timeout_s: float,
        on_ended: Callable[[Sequence[bytes]], None],
        on_committed: Callable[[Set[bytes]], None],
    ):
        self._path = path
        self._clock = clock
        self._boot_id = boot_id
        self._log_revisions = log_revisions
        self._synced = synced
        self._inode: tuple[int, int] | None = None
        self._file = 0
        self._commit_timeout_s = commit_timeout_s
        self._on_ended = on_ended
        self._on_committed = on_committed
        self._loop = asyncio.get_running_loop()
        self._queue = Queue()
        self._lock = CommitLock(locks_directory, wanted=self._queue.__bool__)
        # Holds at most the turn of whoever leads. One step of the interpreter (setdefault) makes a
        # turn the leader's, and an interrupt right after it cannot hide whose it is.
        self._leading: dict[str, Turn] = {}
        self._awaited: dict[Waiting, None] = {}
        self._withdrawing: asyncio.TimerHandle | None = None
        self._doorbell: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._stopping = False
        self._stopped = asyncio.Event()
        self._failure: BaseException | None = None
        self._connection: apsw.Connection | None = None
        self._checkpoints: Checkpoints | None = None
        self._thread = threading.Thread(target=self._run, name="ringhold-store", daemon=True)
        self._thread.start()

    # Callers

    async def submit(self, request: Request) -> int:
        """Commits through the writer thread. Cancelled, it takes the request back, or waits for
        its outcome if it was begun; an error is then the cause of the CancelledError."""
        waiting = Waiting(request, self._clock.monotonic_ns(), self._loop.create_future())
        cancelled: asyncio.CancelledError | None = None
        self._awaited[waiting] = None
        try:
            self._enqueue(waiting)
            self._ring()
            if self._withdrawing is None:
                delay_s = self._commit_timeout_s
                self._withdrawing = self._loop.call_later(delay_s, self._withdraw_overdue)
            while waiting.outcome is None:
                assert waiting.future is not None
                try:
                    await waiting.future
                except asyncio.CancelledError as error:
                    cancelled = error
                    gone = StoreUnavailable(f"a commit to {self._path} was cancelled")
                    if not self._queue.withdraw(waiting, gone):
                        waiting.future = self._loop.create_future()
        finally:
            del self._awaited[waiting]
        if cancelled is not None:
            failed = isinstance(waiting.outcome, BaseException)
            raise cancelled from (waiting.outcome if failed else None)  # type: ignore[misc]
        return _result(waiting)

    def commit(self, request: Request) -> int:
        """Commits on the calling thread, or waits for whoever leads. Interrupted, it first
        withdraws the request, or waits for its outcome if that is too late."""
        waiting = Waiting(request, self._clock.monotonic_ns())
        turn = Turn()
        # An interrupt while one of these ends the turn makes the next one end it.
        try:
            try:
                try:
                    self._enqueue(waiting)
                    self._lead(turn, self._lock.try_acquire)
                finally:
                    self._end_turn(turn)
            finally:
                if not turn.over:
                    self._end_turn(turn)
            if waiting.outcome is None and not waiting.wait(self._commit_timeout_s):
                self._wait_longer(waiting)
        finally:
            if not turn.over:
                self._end_turn(turn)
            if waiting.outcome is None:
                self._settle(waiting)
        return _result(waiting)

    def _wait_longer(self, waiting: Waiting) -> None:
        """After the timeout: only others who have the lock are a reason to give up. Where it was
        this process that stood still, its own turn may be over in a moment."""
        if self._lock.holder() == process_id():
            waiting.wait(self._commit_timeout_s)
        if waiting.outcome is None:
            error = lock_not_had(self._path, self._lock, self._commit_timeout_s)
            self._queue.withdraw(waiting, error)

    def _settle(self, waiting: Waiting) -> None:
        interrupted: BaseException | None = None
        while waiting.outcome is None:
            try:
                gone = StoreUnavailable(f"a commit to {self._path} was interrupted")
                if not self._queue.withdraw(waiting, gone):
                    waiting.wait()
            except BaseException as interrupt:
                interrupted = interrupt
        if interrupted is not None:
            raise interrupted

    def _enqueue(self, waiting: Waiting) -> None:
        if not self._queue.put(waiting):
            waiting.answer(self._refusal())

    def _ring(self) -> None:
        """Wakes the writer thread, unless a leader will do so when it ends."""
        if not self._leading and self._doorbell.empty():
            self._doorbell.put(None)

    def _withdraw_overdue(self) -> None:
        """Answers tasks that waited too long; threads look after themselves."""
        self._withdrawing = None
        limit_ns = self._clock.monotonic_ns() - int(self._commit_timeout_s * 1e9)
        if self._lock.holder() == process_id():
            limit_ns -= int(self._commit_timeout_s * 1e9)  # See `_wait_longer`.
        for waiting in self._queue.overdue(limit_ns):
            error = lock_not_had(self._path, self._lock, self._commit_timeout_s)
            if self._queue.withdraw(waiting, error):
                self._deliver([waiting])
        if self._awaited:
            waited_s = (self._clock.monotonic_ns() - next(iter(self._awaited)).since_ns) / 1e9
            delay_s = max(0.1, self._commit_timeout_s - waited_s)
            self._withdrawing = self._loop.call_later(delay_s, self._withdraw_overdue)

    def _deliver(self, batch: Sequence[Waiting]) -> None:
        for waiting in batch:
            if waiting.future is not None and not waiting.future.done():
                waiting.future.set_result(None)

    # Turns

    def _lead(self, turn: Turn, acquire: Callable[[], bool]) -> None:
        """Commits one batch, unless somebody else leads or the lock is not to be had.

        To be followed by `_end_turn`, whatever is raised here.
        """
        if self._leading.setdefault("leader", turn) is not turn:
            return
        # Before it is true: the lock may be won by a call that is interrupted as it returns.
        turn.locking = True
        try:
            if not acquire():
                turn.locking = False
                return
        except Exception as error:
            self._queue.take_into(turn.batch)
            turn.outcomes = self._refused(turn.batch, StoreUnavailable, error)
            return
        self._queue.take_into(turn.batch)
        if turn.batch:
            turn.begun = True
            try:
                self._commit(turn)
            except BaseException as error:
                turn.cause = error
                raise
            if self._checkpoints is not None and self._checkpoints.due:
                self._answer(turn)
                self._checkpoint(self._checkpoints)

    def _end_turn(self, turn: Turn) -> None:
        """Settles what `_lead` did or left undone. May be repeated, from wherever it stopped."""
        if self._leading.get("leader") is turn:
            if turn.begun and turn.outcomes is None:
                self._give_up_connection()
                cause = turn.cause or InterruptedError("the committing thread was interrupted")
                turn.outcomes = self._refused(turn.batch, OutcomeUnknown, cause)
            if turn.locking:
                self._release()
                turn.locking = False
            if turn.outcomes is None:
                self._queue.put_back(turn.batch)
            else:
                self._answer(turn)
            self._leading.pop("leader", None)
        if self._queue or self._stopping or self._failure is not None:
            self._ring()
        turn.over = True

    def _release(self) -> None:
        try:
            self._lock.release()
        except Exception as error:
            self._failure = self._failure or error

    def _answer(self, turn: Turn) -> None:
        if turn.answered or turn.outcomes is None:
            return
        # Others first: those who are answered go on at once, and want the interpreter, too.
        if turn.changed:
            self._tell_committed(turn.changed)
        tasks = False
        for waiting, outcome in zip(turn.batch, turn.outcomes, strict=True):
            waiting.answer(outcome)
            tasks = tasks or waiting.future is not None
        if tasks:
            self._call_loop(self._deliver, turn.batch)
        turn.answered = True

    def _tell_committed(self, changed: Set[bytes]) -> None:
        try:
            self._on_committed(changed)
        except Exception as error:
            self._call_loop(self._report, "watches could not be told of a commit", error)

    def _commit(self, turn: Turn) -> None:
        try:
            applied = self._apply([waiting.request for waiting in turn.batch])
        except (StoreUnavailable, OutcomeUnknown, Corrupt) as error:
            self._give_up_connection()
            turn.outcomes = self._refused(turn.batch, type(error), error)
        except Exception as error:
            # Nothing was begun, or it was rolled back: the commit itself is judged above.
            self._give_up_connection()
            turn.outcomes = self._refused(turn.batch, StoreUnavailable, error)
        else:
            if applied.ended:
                self._end_sessions(applied.ended)
            turn.changed = applied.changed
            turn.outcomes = applied.outcomes

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

    def _end_sessions(self, leases: Sequence[bytes]) -> None:
        try:
            self._on_ended(leases)
        except Exception as error:
            # The leases are gone all the same; what stays behind is an empty file.
            self._call_loop(self._report, "a session file cannot be removed", error)

    def _checkpoint(self, checkpoints: Checkpoints) -> None:
        try:
            error: Exception | None = checkpoints.run_if_due()
        except Exception as unforeseen:
            self._give_up_connection()
            error = unforeseen
        if error is not None:
            self._call_loop(self._report, f"a checkpoint of {self._path} failed", error)

    def _give_up_connection(self) -> None:
        connection = self._connection
        if connection is None:
            return
        try:
            connection.close(True)
        except Exception as error:
            # SQLite forgets the connection when it is collected; no commit goes through it.
            self._call_loop(self._report, f"a connection to {self._path} did not close", error)
        self._connection = self._checkpoints = None

    def _refused(
        self, batch: Sequence[Waiting], kind: type[RingholdError], cause: BaseException
    ) -> list[Outcome]:
        """One error for each request: what several tasks raise would grow into one another."""
        text = str(cause) if isinstance(cause, RingholdError) else repr(cause)
        message = text if self._path in text else f"the store {self._path} failed: {text}"
        errors: list[Outcome] = []
        for _ in batch:
            error = kind(message)
            error.__cause__ = cause.__cause__ if isinstance(cause, RingholdError) else cause
            errors.append(error)
        return errors

    # The writer thread

    def _run(self) -> None:
        try:
            while self._failure is None and not (self._stopping and not self._queue):
                self._doorbell.get()
                while self._queue and not self._leading and self._failure is None:
                    turn = Turn()
                    try:
                        self._lead(turn, self._lock.acquire)
                    finally:
                        self._end_turn(turn)
        except BaseException as error:
            self._failure = self._failure or error
        self._stopping = True
        last = Turn()
        # From then on nobody else leads, for good.
        while self._leading.setdefault("leader", last) is not last:
            self._doorbell.get()
        self._give_up_connection()
        try:
            # With its files the lock is given back to other processes, however this one failed.
            self._lock.close()
        except Exception as error:
            self._failure = self._failure or error
        left = self._queue.end()
        for waiting in left:
            waiting.answer(self._refusal())
        self._call_loop(self._end, left)

    def _end(self, left: Sequence[Waiting]) -> None:
        """The thread's last word."""
        if self._failure is not None:
            self._report("the thread of a store ended", self._failure)
        self._deliver(left)
        self._stopped.set()

    def _refusal(self) -> RingholdError:
        if self._failure is None:
            return Closed(f"the store {self._path} is closed")
        error = StoreUnavailable(
            f"the store {self._path} cannot be written any more: {self._failure!r}"
        )
        error.__cause__ = self._failure
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

    async def close(self) -> None:
        """Waits for what is queued, then stops the thread; safe to be called again."""
        self.abandon()
        await self._stopped.wait()
        if self._withdrawing is not None:
            self._withdrawing.cancel()
            self._withdrawing = None

    def abandon(self) -> None:
        """Lets the thread end by itself once it has nothing to do."""
        self._stopping = True
        self._doorbell.put(None)


def _result(waiting: Waiting) -> int:
    if isinstance(waiting.outcome, BaseException):
        raise waiting.outcome
    assert waiting.outcome is not None
    return waiting.outcome

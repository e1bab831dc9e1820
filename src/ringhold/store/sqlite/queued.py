"""What waits to be committed, from any thread: the requests, their order, and their answers.

Guarantees:

- A request is in the queue, or in the batch of one turn, or answered. Who wants it back
  (`withdraw`) gets it exactly when no turn has it.
- Whatever is raised in a thread between any two instructions here (KeyboardInterrupt, an
  asynchronous exception) loses no request: a batch belongs to its turn before it leaves the queue,
  and `put_back` makes good whatever was left half done. `with` and a plain lock are one step to
  the interpreter, in both directions.
- Requests for leases go first. Commits are overtaken once: leases that keep coming must not keep
  them waiting. A commit that is large goes alone.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from itertools import islice

from ringhold.store.requests import CommitRequest
from ringhold.store.sqlite.apply import Outcome, Request

BATCH_MAX = 256
BATCH_SIZE_MAX = 4 << 20
"""Of `CommitRequest.size`: a few tens of milliseconds, as long as a renewal may be delayed."""


class Waiting:
    """One request and whoever waits for its outcome: a thread, or a task with a `future`."""

    __slots__ = ("_told", "future", "outcome", "request", "since_ns", "size", "taken")

    def __init__(self, request: Request, since_ns: int, future: asyncio.Future[None] | None = None):
        self.request = request
        self.size = request.size if isinstance(request, CommitRequest) else 0
        self.since_ns = since_ns
        self.future = future
        self.outcome: Outcome | None = None
        self.taken = False
        self._told: queue.SimpleQueue[None] = queue.SimpleQueue()

    def answer(self, outcome: Outcome) -> None:
        """From any thread; may be repeated. A task must be told on its loop as well."""
        self.outcome = outcome
        if self.future is None:
            self._told.put(None)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Blocks the thread until there is an outcome; whether there is one."""
        while self.outcome is None:
            try:
                self._told.get(timeout=timeout_s)
            except queue.Empty:
                break
        return self.outcome is not None


class Queue:
    """The requests of one open store that no turn has taken yet."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._leases: deque[Waiting] = deque()
        self._commits: deque[Waiting] = deque()
        self._overtaken = False
        self._ended = False

    def __bool__(self) -> bool:
        return bool(self._leases or self._commits)

    def _line_of(self, waiting: Waiting) -> deque[Waiting]:
        return self._commits if isinstance(waiting.request, CommitRequest) else self._leases

    def put(self, waiting: Waiting) -> bool:
        """False when the queue has ended: nobody will take it any more."""
        with self._guard:
            if not self._ended:
                self._line_of(waiting).append(waiting)
            return not self._ended

    def take_into(self, batch: list[Waiting]) -> None:
        """Moves what is to be committed next into `batch`, a list that is empty so far."""
        with self._guard:
            leases = min(len(self._leases), BATCH_MAX)
            if self._overtaken and self._commits:
                leases = 0
            commits = self._fitting(BATCH_MAX - leases, alone=not leases)
            batch += islice(self._leases, leases)
            batch += islice(self._commits, commits)
            self._overtaken = bool(leases) and commits < len(self._commits)
            for waiting in batch:
                waiting.taken = True
                self._line_of(waiting).popleft()

    def _fitting(self, count_max: int, *, alone: bool) -> int:
        """How many commits go into one batch; the first, however large, if it begins it."""
        if len(self._commits) <= 1 and alone:
            return len(self._commits)
        size = 0
        for count, waiting in enumerate(islice(self._commits, count_max)):
            size += waiting.size
            if size > BATCH_SIZE_MAX and not (alone and count == 0):
                return count
        return min(len(self._commits), count_max)

    def put_back(self, batch: list[Waiting]) -> None:
        """What a turn took and did not begin, before all others; may be repeated."""
        taken = set(batch)
        with self._guard:
            self._leases = self._with(batch, taken, self._leases)
            self._commits = self._with(batch, taken, self._commits)
            for waiting in batch:
                waiting.taken = False

    def _with(
        self, batch: list[Waiting], taken: set[Waiting], line: deque[Waiting]
    ) -> deque[Waiting]:
        mine = [waiting for waiting in batch if self._line_of(waiting) is line]
        return deque([*mine, *(waiting for waiting in line if waiting not in taken)])

    def withdraw(self, waiting: Waiting, outcome: Outcome) -> bool:
        """Answers it with `outcome` if no turn has it, and says whether."""
        with self._guard:
            line = self._line_of(waiting)
            if waiting in line:
                # Nobody finds it any more, and as it is not taken, a repetition answers it.
                line.remove(waiting)
            if not waiting.taken and waiting.outcome is None:
                waiting.answer(outcome)
                return True
            return False

    def overdue(self, limit_ns: int) -> list[Waiting]:
        """What waits since `limit_ns` or before."""
        with self._guard:
            return [w for w in (*self._leases, *self._commits) if w.since_ns <= limit_ns]

    def end(self) -> list[Waiting]:
        """Refuses everything from now on; what was still queued, for whoever ends it to answer."""
        with self._guard:
            self._ended = True
            left = [*self._leases, *self._commits]
            self._leases.clear()
            self._commits.clear()
            return left

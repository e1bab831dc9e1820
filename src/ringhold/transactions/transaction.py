"""A transaction: one view, read at one revision, made visible by one commit of the store.

Guarantees: transactions are serializable, in the order of their commit revisions, which lies
between begin and return (strict). A transaction that raised TransactionAborted, or was rolled
back, has no effect. A read-only one makes no commit: it read one revision.
The answer to a commit that got lost is asked for again under the transaction's own nonce, so
that OutcomeUnknown means nothing else than a store that does not answer.

Not guaranteed: that a transaction which waits for nothing else commits at its first try; others
may change what it read (TransactionAborted with ``retryable``).
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from ringhold.env import Env, finish
from ringhold.errors import (
    Closed,
    Compacted,
    Conflict,
    InvalidInput,
    OutcomeUnknown,
    RingholdError,
    SessionExpired,
    StaleToken,
    TransactionAborted,
    TransactionTooLarge,
)
from ringhold.files.scope import loss_behind
from ringhold.files.tree import what_others_changed
from ringhold.locks.arguments import user_name
from ringhold.locks.fence import admit, check_token, holder_born
from ringhold.store import kv
from ringhold.store.base import Compare, Snapshot, Store
from ringhold.store.keyspace import FENCE, KEY_VALUE
from ringhold.store.view import View, commit_known
from ringhold.types import Entry, decode_name

T = TypeVar("T")
ID_BYTES = 16


class TransactionStatus(enum.StrEnum):
    """Where a transaction stands. UNKNOWN: its commit was sent and no answer came."""

    ACTIVE = "active"
    COMMITTING = "committing"
    COMMITTED = "committed"
    ABORTED = "aborted"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class LockLabel:
    """A lock by its name for people, and the token it must be held under."""

    name: str
    token: int


HolderUnder = Callable[[bytes, int], Awaitable[bytes | None]]
"""The session that holds a lock, by its name in the store, under a token."""


class SharedView(Protocol):
    """What a transaction's end means to the files written in its view: `FileCore`."""

    def view_lock(self, view: View) -> asyncio.Lock:
        """Held while an operation works in the view."""

    def rolled_back(self, view: View) -> None:
        """Tells that the view will never be committed."""


class Transaction:
    """One transaction of the async face: ``async with cluster.transaction() as tx``."""

    def __init__(
        self,
        store: Store,
        env: Env,
        timeout_s: float | None,
        check_open: Callable[[], None],
        files: SharedView,
        file_system: Callable[[Transaction], Any],
        holder_under: HolderUnder,
        active: dict[str, Transaction],
    ):
        self._store = store
        self._env = env
        self._timeout_s = timeout_s
        self._check_open = check_open
        self._files = files
        self._make_file_system = file_system
        self._holder_under = holder_under
        self._active = active
        self._nonce = env.random_bytes(ID_BYTES)
        self._snapshot: Snapshot | None = None
        self._view: View | None = None
        self._status = TransactionStatus.ACTIVE
        self._reason = ""
        self._retryable = False
        self._guards: dict[tuple[bytes, int], None] = {}
        self._guarding: dict[Compare, LockLabel] = {}
        self._file_system: Any = None
        self._timer: asyncio.TimerHandle | None = None
        self._closing: asyncio.Task[None] | None = None
        self.kv = TransactionKeyValue(self)

    def __repr__(self) -> str:
        return f"<Transaction {self.id} {self._status}>"

    @property
    def id(self) -> str:
        """32 hexadecimal digits, never used before."""
        return self._nonce.hex()

    @property
    def status(self) -> TransactionStatus:
        return self._status

    @property
    def fs(self) -> Any:
        """The cluster's file system, bound to this transaction until it ends."""
        if self._file_system is None:
            self._file_system = self._make_file_system(self)
        return self._file_system

    async def begin(self) -> Self:
        """Takes the snapshot that everything is read at. Called once, by whoever made it."""
        self._check_open()
        self._snapshot = await self._store.snapshot()
        self._view = View(self._snapshot)
        self._active[self.id] = self
        if self._timeout_s is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._timeout_s, self._time_out)
        return self

    def _time_out(self) -> None:
        if self._status is TransactionStatus.ACTIVE:
            self.abort(f"it was not committed within {self._timeout_s} s")

    def abort(self, reason: str) -> None:
        """Ends an active transaction from outside; its next use raises TransactionAborted."""
        self._reason = reason
        self._end(TransactionStatus.ABORTED)
        self._closing = asyncio.ensure_future(self._drop())

    def view(self) -> View:
        """The view to work in now. Raises Closed or TransactionAborted after the end."""
        self._check_open()
        if self._reason:
            raise TransactionAborted(
                f"transaction {self.id} was aborted: {self._reason}",
                reason=self._reason,
                retryable=self._retryable,
            )
        if self._view is None:
            raise Closed(f"transaction {self.id} was not begun: enter it, or use cluster.begin()")
        if self._status is not TransactionStatus.ACTIVE:
            raise Closed(f"transaction {self.id} has ended ({self._status})")
        return self._view

    def guard(self, name: str | bytes, token: int) -> None:
        """Commits only if the lock `name` is then held under `token` and its fence admits it.

        StaleToken otherwise, at the commit: two transactions guarded by different tokens of one
        lock take effect in the order of the tokens.
        """
        raw = user_name(name)
        check_token(token)
        self.view()
        self._guards[raw, token] = None

    async def _admit_guards(self, view: View) -> None:
        """Reads afresh: a lock may have been acquired after the transaction's own revision."""
        snapshot = await self._store.snapshot()
        try:
            now = View(snapshot)
            for name, token in self._guards:
                label = LockLabel(decode_name(name[1:]), token)
                await admit(now, name, token)
                # A session may keep a lock after its holder's release, so it is asked.
                session = await self._holder_under(name, token)
                compare = None if session is None else await holder_born(snapshot, name, session)
                if compare is None:
                    raise self._unguarded(label)
                now.require(compare)
                self._guarding[compare] = label
            view.absorb(now)
        finally:
            await snapshot.close()

    async def _commit_guarded(self, view: View) -> int:
        while True:
            if self._guards:
                await self._admit_guards(view)
            try:
                return await commit_known(view, self._store, self._env, self._nonce)
            except Conflict as conflict:
                # Another token was admitted meanwhile; whether this one still is shows anew.
                if not getattr(conflict.compare, "key", b"").startswith(FENCE):
                    raise

    async def run(self, operation: Callable[[View], Awaitable[T]]) -> T:
        """Runs one read; what the end of the transaction did to it is told as such."""
        view = self.view()
        try:
            return await operation(view)
        except Compacted:
            if self._status is TransactionStatus.ACTIVE:
                self._retryable = True
                self.abort("it took longer than the store keeps what it read")
            self.view()
            raise

    async def commit(self) -> int:
        """Makes everything visible at one revision and returns it.

        Raises TransactionAborted (nothing is visible) and OutcomeUnknown (the store does not
        answer). Once sent, a commit is awaited even when the calling task is cancelled.
        """
        view = self.view()
        self._status = TransactionStatus.COMMITTING
        self._stop_timer()
        return await finish(asyncio.ensure_future(self._commit(view)))

    async def _commit(self, view: View) -> int:
        # Only what is known to have had no effect counts as aborted: a loop that is shut down
        # cancels this task too, and the commit under way may become durable all the same.
        status = TransactionStatus.UNKNOWN
        try:
            async with self._files.view_lock(view):
                revision = await self._commit_guarded(view)
            status = TransactionStatus.COMMITTED
            return revision
        except OutcomeUnknown as error:
            error.add_note(f"transaction {self.id}: ask cluster.transactions.status() later")
            raise
        except RingholdError as error:
            status = TransactionStatus.ABORTED
            refusal = await self._refused(error, view)
            if refusal is None:
                raise
            raise refusal from error
        finally:
            self._end(status)
            await self._drop()

    async def _refused(self, error: RingholdError, view: View) -> RingholdError | None:
        """What a failed commit means to the transaction; None when the error says it itself."""
        match error:
            case Conflict():
                guard = self._guarding.get(error.compare)
                if guard is not None:
                    return self._unguarded(guard)
                lost = loss_behind(error)
                return lost or self._lost_to(await _what_changed(view, error))
            case Compacted() | SessionExpired():
                return self._lost_to(str(error))
            case InvalidInput():
                message = f"transaction {self.id} was aborted: {error}"
                return TransactionTooLarge(message, reason=str(error))
        return None

    def _unguarded(self, guard: LockLabel) -> StaleToken:
        return StaleToken(
            f"transaction {self.id} had no effect: lock {guard.name!r} is no longer "
            f"held under token {guard.token}",
            name=guard.name,
            token=guard.token,
        )

    def _lost_to(self, reason: str) -> TransactionAborted:
        return TransactionAborted(
            f"transaction {self.id} was aborted: {reason}", reason=reason, retryable=True
        )

    async def rollback(self) -> None:
        """Drops everything; no effect if it was aborted before. Closed after a commit."""
        if self._status is TransactionStatus.ABORTED:
            return
        self.view()
        self._end(TransactionStatus.ABORTED)
        await self._drop()

    def _end(self, status: TransactionStatus) -> None:
        self._status = status
        self._stop_timer()
        self._active.pop(self.id, None)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _drop(self) -> None:
        """Gives back what the transaction held; what it wrote to nodes too, if it was aborted."""
        view, snapshot, self._snapshot = self._view, self._snapshot, None
        if view is not None and self._status is TransactionStatus.ABORTED:
            async with self._files.view_lock(view):
                self._files.rolled_back(view)
        if snapshot is not None:
            await finish(asyncio.ensure_future(snapshot.close()))

    async def ended(self) -> None:
        """Waits until what `abort` began in the background is done."""
        if self._closing is not None:
            await self._closing

    async def __aenter__(self) -> Self:
        if self._view is None:
            return await self.begin()
        self.view()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            if self._status is TransactionStatus.ACTIVE:
                await self.rollback()
        elif self._status is TransactionStatus.ACTIVE or self._reason:
            await self.commit()


async def _what_changed(view: View, conflict: Conflict) -> str:
    key = getattr(conflict.compare, "key", b"")
    if key.startswith(KEY_VALUE):
        return f"key {kv.user_key(key)!r} was changed by others since it was read"
    return await what_others_changed(view, conflict)


class TransactionKeyValue:
    """``tx.kv`` of the async face: `put` and `delete` only buffer and are no coroutines."""

    def __init__(self, transaction: Transaction):
        self._transaction = transaction

    async def entry(self, key: str | bytes) -> Entry | None:
        """As ``cluster.kv.entry``; what this transaction wrote has revision 0 so far."""
        return await self._transaction.run(lambda view: kv.read_entry(view, key))

    async def get(self, key: str | bytes, default: T | None = None) -> bytes | T | None:
        """The value of `key`, or `default`."""
        entry = await self.entry(key)
        return default if entry is None else entry.value

    def put(self, key: str | bytes, value: kv.Value, *, if_revision: int | None = None) -> None:
        """Buffers a put. `if_revision` is compared at the commit, which aborts if it differs."""
        kv.write(self._transaction.view(), key, value, if_revision)

    def delete(self, key: str | bytes) -> None:
        """Buffers a deletion."""
        kv.remove(self._transaction.view(), key)

    async def range(
        self,
        prefix: kv.Bound = "",
        *,
        start: kv.Bound | None = None,
        end: kv.Bound | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[tuple[str, Entry]]:
        """As ``cluster.kv.range``, own writes included; guarded against phantoms."""
        wanted = kv.key_range(prefix, start, end, limit)
        for item in await self._transaction.run(lambda view: kv.read_range(view, wanted)):
            yield item

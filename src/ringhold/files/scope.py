"""A file system's own transactions: changes of many files, visible at one revision.

A transaction belongs to the thread or task that began it, and to what that starts within it: it
is found through a context variable, never through the file system object, which everybody
shares. It reads one snapshot, sees its own changes, and commits with compares of all it read:
serializable, or TransactionAborted with nothing done.

Whatever happens to a transaction, the file system object stays as it was.
"""

from __future__ import annotations

from collections.abc import Coroutine
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

from ringhold.bridge import Life
from ringhold.errors import (
    Closed,
    Conflict,
    InvalidInput,
    LockLost,
    OutcomeUnknown,
    RingholdError,
    SessionExpired,
    TransactionAborted,
    TransactionTooLarge,
)
from ringhold.files.core import FileCore
from ringhold.files.tree import what_others_changed
from ringhold.store import keyspace
from ringhold.store.base import Born, Snapshot
from ringhold.store.view import View, commit_known

T = TypeVar("T")

_running: ContextVar[tuple[FileTransaction, ...]] = ContextVar("ringhold_files", default=())


def running_on(core: FileCore) -> FileTransaction | None:
    """The transaction on `core` that the caller is in. Closed when that is one of the process
    this one was forked from: what is done in it must not take effect outside of it."""
    for transaction in _running.get():
        if transaction.active:
            if transaction.core is core:
                return transaction
            if transaction.core.cluster.identity == core.cluster.identity:
                transaction.check_process()
    return None


class FileTransaction:
    """One transaction on the files of `core`; its coroutines run on the cluster's loop."""

    def __init__(self, core: FileCore):
        self.core = core
        self._life = Life("the file transaction")
        self._snapshot: Snapshot | None = None
        self._view: View | None = None

    @property
    def active(self) -> bool:
        return self._view is not None

    def check_process(self) -> None:
        """Closed in a process that was forked from the one that began it."""
        self._life.check()

    def view(self) -> View:
        """The view of an operation inside. Closed once the transaction has ended."""
        if self._view is None:
            raise Closed("the file transaction this belongs to has ended")
        return self._view

    def view_or_alone(self) -> View | None:
        """For reading what was opened inside: after the end, as the store has it."""
        return self._view

    def enter(self) -> None:
        """Puts the caller into the transaction."""
        _running.set((*_running.get(), self))

    def leave(self) -> None:
        _running.set(tuple(other for other in _running.get() if other is not self))

    async def begin(self) -> None:
        self._snapshot = await self.core.store.snapshot()
        self._view = View(self._snapshot)

    async def commit(self) -> None:
        """Makes all of it visible. TransactionAborted, LockLost, SessionExpired: none of it is;
        OutcomeUnknown: the store did not say."""
        view = self.view()
        try:
            async with self.core.view_lock(view):
                self._view = None
                nonce = self.core.env.random_bytes(16)
                await commit_known(view, self.core.store, self.core.env, nonce)
        except Conflict as error:
            self.core.rolled_back(view)
            raise await _aborted(view, error) from error
        except InvalidInput as error:
            self.core.rolled_back(view)
            reason = str(error)
            raise TransactionTooLarge(
                f"file transaction aborted: {reason}", reason=reason
            ) from error
        except OutcomeUnknown:
            raise
        except RingholdError:
            self.core.rolled_back(view)
            raise
        finally:
            await self._end()

    async def rollback(self) -> None:
        view, self._view = self._view, None
        if view is not None:
            async with self.core.view_lock(view):
                self.core.rolled_back(view)
        await self._end()

    async def _end(self) -> None:
        snapshot, self._snapshot = self._snapshot, None
        if snapshot is not None:
            await snapshot.close()


def loss_behind(conflict: Conflict) -> RingholdError | None:
    """What was lost when the compare of a file lock or of the session did not hold; None when
    the conflict is with others' changes."""
    compare = conflict.compare
    if not isinstance(compare, Born):
        return None
    if compare.key.startswith(keyspace.FILE_LOCK):
        return LockLost("a file lock was lost before the transaction's end: nothing was changed")
    if compare.key.startswith(keyspace.SESSION):
        session = compare.key[len(keyspace.SESSION) :]
        return SessionExpired(
            "the session that wrote the transaction's chunks is gone: nothing was changed",
            session=session,
        )
    return None


async def _aborted(view: View, conflict: Conflict) -> RingholdError:
    reason = f"{await what_others_changed(view, conflict)} since it was read"
    return loss_behind(conflict) or TransactionAborted(
        f"file transaction aborted: {reason}", reason=reason, retryable=True
    )


class Face(Protocol):
    """What a block needs of the file system object it was asked of."""

    core: FileCore

    @property
    def is_bound(self) -> bool:
        """Whether it belongs to a transaction of the cluster."""

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T: ...

    async def hop(self, coroutine: Coroutine[Any, Any, T]) -> T: ...


class TransactionBlock:
    """``with`` or ``async with`` around a transaction of a file system."""

    def __init__(self, fs: Face):
        self._fs = fs

    def _new(self) -> FileTransaction:
        if self._fs.is_bound:
            raise RuntimeError("this file system is bound to a transaction already")
        if running_on(self._fs.core) is not None:
            raise RuntimeError("a file transaction is running here already: they do not nest")
        return FileTransaction(self._fs.core)

    def _running(self) -> FileTransaction:
        running = running_on(self._fs.core)
        if running is None:
            raise RuntimeError("no file transaction is running in this thread or task")
        return running

    def start(self) -> None:
        transaction = self._new()
        self._fs.run(transaction.begin())
        transaction.enter()

    def complete(self, commit: bool = True) -> None:
        """Commits, or rolls back."""
        transaction = self._running()
        try:
            self._fs.run(transaction.commit() if commit else transaction.rollback())
        finally:
            transaction.leave()

    def __enter__(self) -> TransactionBlock:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.complete(commit=kind is None)

    async def __aenter__(self) -> TransactionBlock:
        transaction = self._new()
        await self._fs.hop(transaction.begin())
        transaction.enter()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        transaction = self._running()
        ending = transaction.commit() if kind is None else transaction.rollback()
        try:
            await self._fs.hop(ending)
        finally:
            transaction.leave()

"""Transactions of the blocking face: the async ones behind a bridge."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Protocol, Self, TypeVar

from ringhold.bridge import Bridge
from ringhold.env import real_env
from ringhold.errors import TransactionAborted
from ringhold.home import Home, Openable
from ringhold.store.kv import Value
from ringhold.store.kv_blocking import Subscripts
from ringhold.transactions.manager import AsyncTransactions, backoff_s, check_retries
from ringhold.transactions.transaction import Transaction as AsyncTransaction
from ringhold.transactions.transaction import TransactionKeyValue as AsyncTransactionKeyValue
from ringhold.transactions.transaction import TransactionStatus

T = TypeVar("T")
P = ParamSpec("P")


class TransactionKeyValue(Subscripts):
    """``tx.kv``: reads at the transaction's revision, own writes included."""

    def __init__(self, transaction: AsyncTransaction, bridge: Bridge):
        self._kv = transaction.kv
        self._own_bridge = bridge

    @property
    def _keys(self) -> AsyncTransactionKeyValue:
        return self._kv

    @property
    def _bridge(self) -> Bridge:
        return self._own_bridge

    def __delitem__(self, key: str | bytes) -> None:
        if self.entry(key) is None:
            raise KeyError(key)
        self.delete(key)

    # What is only buffered needs no trip to the loop: one change of a dictionary each.

    def put(self, key: str | bytes, value: Value, *, if_revision: int | None = None) -> None:
        """Buffers a put. `if_revision` is compared at the commit, which aborts if it differs."""
        self._bridge.check_process()
        self._kv.put(key, value, if_revision=if_revision)

    def delete(self, key: str | bytes) -> None:
        """Buffers a deletion; a key that does not exist is no error."""
        self._bridge.check_process()
        self._kv.delete(key)


class Transaction:
    """``with cluster.transaction() as tx``: commits at the end, rolls back on an exception."""

    def __init__(
        self,
        transaction: AsyncTransaction,
        bridge: Bridge,
        file_system: Callable[[AsyncTransaction], Any],
    ):
        self._transaction = transaction
        self._bridge = bridge
        self._make_file_system = file_system
        self._file_system: Any = None
        self.kv = TransactionKeyValue(transaction, bridge)

    def __repr__(self) -> str:
        return repr(self._transaction)

    @property
    def id(self) -> str:
        """32 hexadecimal digits, never used before."""
        return self._transaction.id

    @property
    def status(self) -> TransactionStatus:
        return self._transaction.status

    @property
    def fs(self) -> Any:
        """The cluster's file system, bound to this transaction until it ends."""
        self._bridge.check_process()
        if self._file_system is None:
            self._file_system = self._make_file_system(self._transaction)
        return self._file_system

    def guard(self, name: str | bytes, token: int) -> None:
        """Commits only if the lock `name` is then held under `token` and its fence admits it.

        StaleToken otherwise, at the commit: two transactions guarded by different tokens of one
        lock take effect in the order of the tokens.
        """
        self._bridge.check_process()
        self._transaction.guard(name, token)

    def commit(self) -> int:
        """Makes everything visible at one revision and returns it.

        Raises TransactionAborted (nothing is visible) and OutcomeUnknown (the store does not
        answer). Once sent, a commit is awaited even when the calling thread is interrupted.
        """
        return self._bridge.run(self._transaction.commit())

    def rollback(self) -> None:
        """Drops everything; no effect if it was aborted before. Closed after a commit."""
        self._bridge.run(self._transaction.rollback())

    async def _begin(self) -> Self:
        await self._transaction.__aenter__()
        return self

    async def _rollback(self, _: object) -> None:
        await self._transaction.rollback()

    def __enter__(self) -> Self:
        return self._bridge.run(self._begin(), undo=self._rollback)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bridge.run(self._transaction.__aexit__(kind, error, traceback))


class TransactionsOwner(Openable, Protocol):
    """A cluster of the async face, as far as its transactions need it."""

    transactions: AsyncTransactions


class Transactions:
    """``cluster.transactions`` of the blocking face."""

    def __init__(
        self,
        home: Home[TransactionsOwner],
        file_system: Callable[[AsyncTransaction], Any],
    ):
        self._home = home
        self._file_system = file_system

    @property
    def _transactions(self) -> AsyncTransactions:
        return self._home.cluster().transactions

    @property
    def _bridge(self) -> Bridge:
        return self._home.bridge()

    def transaction(self, timeout: float | None = 30.0) -> Transaction:
        """One that begins where it is entered: ``with``."""
        transaction = self._transactions.transaction(timeout)
        return Transaction(transaction, self._bridge, self._file_system)

    def begin(self, timeout: float | None = 30.0) -> Transaction:
        """One that has begun; to be ended by `commit` or `rollback`."""
        return self.transaction(timeout).__enter__()

    def transactional(
        self, retries: int = 10
    ) -> Callable[[Callable[Concatenate[Transaction, P], T]], Callable[P, T]]:
        """Decorates ``def f(tx, …)``: called as ``f(…)``, in a transaction of its own.

        Repeated up to `retries` times while it raises a retryable TransactionAborted.
        """
        check_retries(retries)

        def decorate(
            function: Callable[Concatenate[Transaction, P], T],
        ) -> Callable[P, T]:
            @functools.wraps(function)
            def run(*args: P.args, **kwargs: P.kwargs) -> T:
                for attempt in range(retries + 1):
                    try:
                        with self.transaction() as tx:
                            return function(tx, *args, **kwargs)
                    except TransactionAborted as error:
                        if not error.retryable or attempt == retries:
                            raise
                    env = real_env()
                    self._bridge.run(env.sleep(backoff_s(env, attempt)))
                raise AssertionError("the last attempt returns or raises")

            return run

        return decorate

    def status(self, transaction_id: str) -> TransactionStatus:
        """How the transaction of that id ended, in whichever process it was begun.

        UNKNOWN when no commit of it is recorded: it was rolled back, or made no changes, or is
        still active in another process, or is older than the store remembers.
        """
        return self._bridge.run(self._transactions.status(transaction_id))

"""``cluster.transactions``: begins transactions, repeats them, and tells how they ended.

`transactional` repeats a function whose transaction lost against others; the function must have
no effects outside of its transaction. `status` answers from the store, so also for a transaction
whose commit had an unknown outcome, or was begun by another process.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Awaitable, Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

from ringhold.env import Env
from ringhold.errors import Conflict, InvalidInput, TransactionAborted
from ringhold.store.base import Absent, Store
from ringhold.store.keyspace import CLUSTER
from ringhold.transactions.transaction import (
    ID_BYTES,
    HolderUnder,
    SharedView,
    Transaction,
    TransactionStatus,
)

T = TypeVar("T")
P = ParamSpec("P")

BACKOFF_S_MIN = 0.002
BACKOFF_S_MAX = 1.0


def check_timeout(timeout: float | None) -> float | None:
    """Seconds, None for no limit."""
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"timeout must be a number of seconds, not {type(timeout).__name__}")
    if math.isnan(timeout) or timeout <= 0:
        raise InvalidInput(f"timeout must be above 0, not {timeout!r}")
    return None if math.isinf(timeout) else float(timeout)


def check_retries(retries: int) -> int:
    if isinstance(retries, bool) or not isinstance(retries, int):
        raise TypeError(f"retries must be an int, not {type(retries).__name__}")
    if retries < 0:
        raise InvalidInput(f"retries must not be negative, not {retries}")
    return retries


def check_id(transaction_id: str) -> bytes:
    if not isinstance(transaction_id, str):
        raise TypeError(f"id must be str, not {type(transaction_id).__name__}")
    try:
        raw = bytes.fromhex(transaction_id)
    except ValueError:
        raw = b""
    if len(raw) != ID_BYTES:
        raise InvalidInput(f"{transaction_id!r} is no id of a transaction")
    return raw


def backoff_s(env: Env, attempt: int) -> float:
    """Full jitter: two transactions that met once should not meet again."""
    ceiling_s = min(BACKOFF_S_MIN * 2.0**attempt, BACKOFF_S_MAX)
    return ceiling_s * int.from_bytes(env.random_bytes(2), "big") / 65536


class AsyncTransactions:
    """Transactions of one open cluster, on the async face."""

    def __init__(
        self,
        store: Store,
        env: Env,
        check_open: Callable[[], None],
        files: SharedView,
        file_system: Callable[[Transaction], Any],
        holder_under: HolderUnder,
    ):
        self._store = store
        self._env = env
        self._check_open = check_open
        self._files = files
        self._file_system = file_system
        self._holder_under = holder_under
        self._active: dict[str, Transaction] = {}

    def transaction(self, timeout: float | None = 30.0) -> Transaction:
        """One that begins where it is entered: ``async with``."""
        timeout_s = check_timeout(timeout)
        self._check_open()
        return Transaction(
            self._store,
            self._env,
            timeout_s,
            self._check_open,
            self._files,
            self._file_system,
            self._holder_under,
            self._active,
        )

    async def begin(
        self,
        timeout: float | None = 30.0,  # noqa: ASYNC109 - the transaction's, not this call's
    ) -> Transaction:
        """One that has begun; to be ended by `commit` or `rollback`."""
        return await self.transaction(timeout).begin()

    def transactional(
        self, retries: int = 10
    ) -> Callable[[Callable[Concatenate[Transaction, P], Awaitable[T]]], Callable[P, Awaitable[T]]]:
        """Decorates ``async def f(tx, …)``: called as ``f(…)``, in a transaction of its own.

        Repeated up to `retries` times while it raises a retryable TransactionAborted.
        """
        check_retries(retries)

        def decorate(
            function: Callable[Concatenate[Transaction, P], Awaitable[T]],
        ) -> Callable[P, Awaitable[T]]:
            @functools.wraps(function)
            async def run(*args: P.args, **kwargs: P.kwargs) -> T:
                for attempt in range(retries + 1):
                    try:
                        async with self.transaction() as tx:
                            return await function(tx, *args, **kwargs)
                    except TransactionAborted as error:
                        if not error.retryable or attempt == retries:
                            raise
                    await self._env.sleep(backoff_s(self._env, attempt))
                raise AssertionError("the last attempt returns or raises")

            return run

        return decorate

    async def status(self, transaction_id: str) -> TransactionStatus:
        """How the transaction of that id ended, in whichever process it was begun.

        UNKNOWN when no commit of it is recorded: it was rolled back, or made no changes, or is
        still active in another process, or is older than the store remembers.
        """
        nonce = check_id(transaction_id)
        self._check_open()
        active = self._active.get(transaction_id.lower())
        if active is not None:
            return active.status
        try:
            # The compare never holds. An answer without a conflict is that of the commit
            # that was made under this nonce.
            await self._store.commit(compares=[Absent(CLUSTER)], nonce=nonce)
        except Conflict:
            return TransactionStatus.UNKNOWN
        return TransactionStatus.COMMITTED

    async def close(self) -> None:
        """Aborts what is still active; their next use raises Closed or TransactionAborted."""
        for transaction in list(self._active.values()):
            if transaction.status is TransactionStatus.ACTIVE:
                transaction.abort("the cluster was closed")
                await transaction.ended()

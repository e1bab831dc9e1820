"""The store on etcd for callers that may block: on the calling thread, in any thread.

Guarantees what `base.Transactional` does, by coroutines that never suspend (`base.run_direct`). A
call made by the thread that needs its answer costs half of one that goes to an event loop and back.

A thread that is interrupted in a commit does not learn its outcome.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

from ringhold.bridge import Life
from ringhold.env import Env, ThreadEnv
from ringhold.store.base import Compare, Put, run_direct
from ringhold.store.etcd.calls import Connection, Item, Result, revoke
from ringhold.store.etcd.committing import Committer
from ringhold.store.etcd.names import Names
from ringhold.store.etcd.nonces import Nonces, Unknown
from ringhold.store.etcd.reading import EtcdSnapshot, Reader
from ringhold.store.requests import checked_commit


class _ThreadConnection(Connection):
    """Calls by blocking the thread."""

    async def _answer(
        self, endpoint: str, stub: Any, raw: bytes, timeout_s: float, metadata: Any
    ) -> bytes:
        answer: bytes = stub(raw, timeout_s, metadata)
        return answer

    async def each(
        self, do: Callable[[Item], Coroutine[Any, Any, Result]], items: Sequence[Item]
    ) -> list[Result]:
        return [await do(item) for item in items]

    async def _fetch_token(self) -> None:
        # By several threads at once, if it comes to that: each token is as good as the other.
        self._token = await self._authenticate()


class _ThreadNonces(Nonces):
    """One thread fetches a lease while the others wait for it."""

    def __init__(self, connection: Connection, env: Env, timeout_s: float, unknown: Unknown):
        super().__init__(connection, env, timeout_s, unknown)
        self._fetching = threading.Lock()

    async def _fresh(self, left_s: Callable[[], float]) -> int:
        if not self._fetching.acquire(timeout=max(0.0, left_s())):
            raise self._too_late()
        try:
            return await self._turn(left_s()) if self._is_due() else self._lease
        finally:
            self._fetching.release()


class DirectFace:
    """One opening's; see `base.Transactional`."""

    def __init__(
        self,
        connection: Connection,
        names: Names,
        env: Env,
        timeout_s: float,
        life: Life,
        unknown: Unknown,
    ):
        self.env = ThreadEnv(env)
        self._life = life
        self._names = names
        self._loop_connection = connection
        own = self._connection = _ThreadConnection(connection.channels, self.env)
        nonces = _ThreadNonces(own, self.env, timeout_s, unknown)
        self._committer = Committer(own, names, nonces, self.env, timeout_s)
        self._reader = Reader(own, names, timeout_s, life.check)
        self._idle = threading.Condition()
        self._commits = 0

    async def snapshot(self) -> EtcdSnapshot:
        self._life.check()
        return EtcdSnapshot(self._reader)

    async def commit(
        self,
        *,
        compares: Iterable[Compare] = (),
        puts: Iterable[Put] = (),
        deletes: Iterable[bytes] = (),
        nonce: bytes | None = None,
    ) -> int:
        request = checked_commit(compares, puts, deletes, nonce)
        self._committer.check_size(request)
        # Before the lock as well: a thread of the parent may have held it when this child began.
        self._life.check()
        with self._idle:
            self._life.check()
            self._commits += 1
        try:
            return await self._committer.commit(request, self._committer.patience())
        finally:
            with self._idle:
                self._commits -= 1
                self._idle.notify_all()

    def end_lease(self, lease: bytes, timeout_s: float) -> None:
        """See `base.BlindToDeath`."""
        self._life.check()
        # One member that is silent must not use up the time of all.
        own = self._connection
        share_s = timeout_s / len(own.address.endpoints)
        connection = _ThreadConnection(own.channels, self.env, attempt_s=share_s)
        connection.enter_as(own, self._loop_connection)
        run_direct(revoke(connection, self._names.lease(lease), timeout_s))

    def close(self) -> None:
        """Once the opening is closed, and before the channels are: waits for its commits."""
        with self._idle:
            self._idle.wait_for(lambda: not self._commits)

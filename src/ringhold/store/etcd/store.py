"""The store of one cluster in etcd, for processes on any number of machines.

Guarantees what `base.Store` does, as far as etcd keeps what it acknowledged. Leases end by etcd's
clock, half a second late or more, and all of them begin anew when etcd changes its leader: late,
never early. A lease whose TTL is no whole number of seconds, or below 2 s, lives longer at etcd
than here.

A store that was open during a fork belongs to the parent: in the child everything but `close`
raises Closed with the parent's pid, and `close` does nothing.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass

from ringhold.bridge import Life, check_loop
from ringhold.env import Env, finish
from ringhold.errors import InvalidInput, StoreUnavailable
from ringhold.store.base import Changes, Compare, Limits, Put
from ringhold.store.etcd import wire
from ringhold.store.etcd.address import REQUEST_BYTES, TXN_OPERATIONS, EtcdAddress
from ringhold.store.etcd.calls import (
    ATTEMPT_S,
    ATTEMPT_S_MIN,
    LEASE_GRANT,
    LEASE_KEEP_ALIVE,
    RANGE,
    STATUS,
    TERM,
    TXN,
    Connection,
    Refused,
    connection_to,
    revoke,
)
from ringhold.store.etcd.commits import NOTHING
from ringhold.store.etcd.committing import NONCE_BYTES, Committer
from ringhold.store.etcd.direct import DirectFace
from ringhold.store.etcd.names import FORMAT, Names
from ringhold.store.etcd.nonces import Nonces, Unknown
from ringhold.store.etcd.reading import EtcdSnapshot, Reader
from ringhold.store.etcd.together import Together
from ringhold.store.etcd.watching import Watches
from ringhold.store.requests import (
    check_bytes,
    check_lease,
    check_revision,
    checked_commit,
    lease_gone,
    ttl_in_ns,
)

TIMEOUT_S = 10.0
"""How long etcd may be silent before a call gives up: longer than it takes to elect a leader."""

VERSION_MIN = (3, 4)
CLOCK_RATE = 0.01
"""How much faster than this machine's clock etcd's may run."""

OPERATION_SHARE = REQUEST_BYTES // TXN_OPERATIONS
"""What a compare and a change have of a request's bytes, in what Ringhold divides by itself: more
than two names need, however often etcd has to be told them."""

NOTICE_NS = 250_000_000
"""Nobody relies on a lease for as long as this before its end, so that whoever hangs on it can be
told before etcd gives to another what was his."""


async def open_etcd_store(
    address: EtcdAddress, env: Env, *, create: bool, commit_timeout: float = TIMEOUT_S
) -> EtcdStore:
    """The store of the cluster that `address` names.

    commit_timeout: seconds after which a call that etcd does not answer raises StoreUnavailable, or
    OutcomeUnknown if it may have been carried out.

    Raises FileExistsError with `create` if there is one, FileNotFoundError without if there is
    none, StoreUnavailable when etcd cannot be reached or entered (not retryable for a wrong
    password or certificate), InvalidInput for an etcd older than 3.4 or a layout of another
    version, OSError for a file that `address` names and that cannot be read.
    """
    connection = await connection_to(address, env)
    try:
        await _check_version(connection, commit_timeout)
        born = await _enter(connection, create, commit_timeout, env)
    except Refused as refused:
        await connection.close()
        raise connection.refusal(refused) from None
    except BaseException:
        await connection.close()
        raise
    return EtcdStore(connection, env, commit_timeout, born)


async def _check_version(connection: Connection, timeout_s: float) -> None:
    status = await connection.until(STATUS, wire.StatusRequest(), timeout_s)
    numbers = status.version.split(".")[:2]
    if not all(map(str.isdigit, numbers)) or tuple(map(int, numbers)) < VERSION_MIN:
        raise InvalidInput(
            f"etcd at {connection.endpoint} is version {status.version}; Ringhold needs 3.4 or "
            "newer"
        )


async def _enter(connection: Connection, create: bool, timeout_s: float, env: Env) -> int:
    """The revision that created the store."""
    address = connection.address
    key = Names(address.name).format_key
    if create:
        value = FORMAT + env.random_bytes(NONCE_BYTES)
        put = wire.RequestOp(request_put=wire.PutRequest(key, value))
        read = wire.RequestOp(request_range=wire.RangeRequest(key))
        absent = wire.Compare(target=wire.Target.CREATE, key=key)
        request = wire.TxnRequest((absent,), (put,), (read,))
        answer = await connection.until(TXN, request, timeout_s)
        if answer.succeeded:
            return answer.header.revision
        found = (answer.responses[0].response_range or NOTHING).kvs[0]
        # The answer to an earlier try may have got lost.
        if found.value != value:
            raise FileExistsError(17, "there is a store already", address.url)
        return found.create_revision
    kvs = (await connection.until(RANGE, wire.RangeRequest(key), timeout_s)).kvs
    if not kvs:
        raise FileNotFoundError(2, "there is no store", address.url)
    if not kvs[0].value.startswith(FORMAT):
        raise InvalidInput(
            f"{address.url} has a layout that this version of Ringhold does not know: "
            f"{kvs[0].value[:20]!r}"
        )
    return kvs[0].create_revision


@dataclass(slots=True)
class _Lease:
    ttl_ns: int
    until_ns: int


class EtcdStore:
    """One opening of the store; see `open_etcd_store`."""

    def __init__(self, connection: Connection, env: Env, timeout_s: float, born: int):
        self._connection = connection
        self._env = env
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._life = Life(f"the store {connection.address.url}")
        self._names = Names(connection.address.name)
        unknown = Unknown()
        self._nonces = Nonces(connection, env, timeout_s, unknown)
        self._committer = Committer(
            connection, self._names, self._nonces, env, timeout_s, Together(connection)
        )
        self._reader = Reader(connection, self._names, timeout_s, self._check)
        self._watches = Watches(connection, self._names, env, self._check, born)
        address = connection.address
        most = min(address.max_txn_ops, address.max_request_bytes // OPERATION_SHARE) - 1
        self.limits = Limits(most, most)
        self._leases: dict[bytes, _Lease] = {}
        self._commits: set[asyncio.Task[int]] = set()
        self.direct = DirectFace(connection, self._names, env, timeout_s, self._life, unknown)

    @property
    def leases_end_unasked(self) -> bool:
        return True

    def _check(self) -> None:
        self._life.check()
        check_loop(self._loop)

    async def snapshot(self) -> EtcdSnapshot:
        self._check()
        return EtcdSnapshot(self._reader)

    # Commits

    async def commit(
        self,
        *,
        compares: Iterable[Compare] = (),
        puts: Iterable[Put] = (),
        deletes: Iterable[bytes] = (),
        nonce: bytes | None = None,
    ) -> int:
        self._check()
        request = checked_commit(compares, puts, deletes, nonce)
        self._committer.check_size(request)
        patience = self._committer.patience()
        task = asyncio.ensure_future(self._committer.commit(request, patience))
        self._commits.add(task)
        task.add_done_callback(self._commits.discard)
        return await finish(task, on_cancel=lambda: patience.lose(task))

    def watch(self, prefix: bytes, from_revision: int) -> AsyncIterator[Changes]:
        self._check()
        check_bytes(prefix, "a prefix")
        check_revision(from_revision)
        return self._watches.follow(prefix, max(1, from_revision))

    # Leases

    async def grant_lease(self, lease: bytes, ttl_s: float) -> None:
        self._check()
        check_lease(lease)
        ttl_ns = ttl_in_ns(ttl_s)
        request = wire.LeaseGrantRequest(math.ceil(ttl_s), self._names.lease(lease))
        sent_ns = self._env.clock.boottime_ns()
        try:
            await self._connection.until(LEASE_GRANT, request, self._timeout_s)
        except Refused as refused:
            if not refused.says("lease already exists"):
                raise self._connection.refusal(refused) from None
            if not refused.repeated:
                raise InvalidInput(f"lease {lease.hex()} exists already") from None
        self._leases[lease] = _Lease(ttl_ns, _until_ns(sent_ns, ttl_ns))

    async def renew_lease(self, lease: bytes) -> None:
        self._check()
        check_lease(lease)
        found = self._leases.get(lease)
        timeout_s = ATTEMPT_S if found is None else min(ATTEMPT_S, found.ttl_ns / 4e9)
        request = wire.LeaseRequest(self._names.lease(lease))
        sent_ns = self._env.clock.boottime_ns()
        try:
            answer = await self._connection.until(LEASE_KEEP_ALIVE, request, timeout_s)
            if answer.ttl_s > 0:
                await self._confirm(answer.header.raft_term, sent_ns + int(timeout_s * 1e9))
        except Refused as refused:
            raise self._connection.refusal(refused) from None
        if answer.ttl_s <= 0:
            self._leases.pop(lease, None)
            raise lease_gone(lease)
        if found is not None:
            found.until_ns = max(found.until_ns, _until_ns(sent_ns, found.ttl_ns))

    async def _confirm(self, raft_term: int, deadline_ns: int) -> None:
        """StoreUnavailable if a lease may have been renewed by a leader that had been replaced.

        One whose disk stands still goes on renewing for as long as that takes (etcd issue 15247):
        it asks nobody. A read that the members agree on, in the same term, says that it was leader.
        """
        left_s = max(ATTEMPT_S_MIN, (deadline_ns - self._env.clock.boottime_ns()) / 1e9)
        request = wire.RangeRequest(self._names.format_key, keys_only=True)
        answer = await self._connection.until(TERM, request, left_s)
        if answer.header.raft_term != raft_term:
            raise StoreUnavailable("etcd has changed its leader while it renewed a lease")

    async def revoke_lease(self, lease: bytes) -> None:
        self._check()
        check_lease(lease)
        await revoke(self._connection, self._names.lease(lease), self._timeout_s)
        self._leases.pop(lease, None)

    def end_lease(self, lease: bytes, timeout_s: float) -> None:
        self.direct.end_lease(lease, timeout_s)

    async def expire_leases(self) -> None:
        """etcd does that by itself."""
        self._check()

    def lease_until(self, lease: bytes) -> int | None:
        self._life.check()
        check_lease(lease)
        found = self._leases.get(lease)
        return None if found is None else found.until_ns

    async def close(self) -> None:
        if self._life.closed or self._life.foreign:
            return
        self._life.close()
        await finish(asyncio.ensure_future(self._close()))

    async def _close(self) -> None:
        await asyncio.gather(*self._commits, return_exceptions=True)
        await self._watches.close()
        await self._nonces.close()
        await self._env.blocking(self.direct.close)
        await self._connection.close()


def _until_ns(sent_ns: int, ttl_ns: int) -> int:
    return sent_ns + int(ttl_ns * (1 - CLOCK_RATE)) - NOTICE_NS

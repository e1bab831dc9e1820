"""The async face: ``async with ringhold.aio.open("data/") as cluster``.

Everything that does I/O is a coroutine of the name it has on the blocking face and runs on the
loop that opened the cluster. A cluster belongs to the process that opened it: in a forked
child, whose copy of that loop will never run, and after `close`, everything raises Closed. A
child opens its own; on the blocking face that happens by itself.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Generator, Iterable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Self, TypeVar

from ringhold.assembly.administration import Administration, ClusterStatus
from ringhold.assembly.creation import create_store, exists, is_synced, make_cluster, open_existing
from ringhold.assembly.location import Found, Location, look, parse_url
from ringhold.assembly.plan import DEFAULT_CHUNK_BYTES, Plan, plan_cluster
from ringhold.bridge import Bridge, Life
from ringhold.env import Env, finish, real_env
from ringhold.errors import Conflict
from ringhold.files.core import FileCore
from ringhold.home import Home
from ringhold.locks.arguments import check_timeout
from ringhold.locks.election import AsyncElection as Election
from ringhold.locks.fence import AsyncFence as Fence
from ringhold.locks.grant import AsyncGrant as Grant
from ringhold.locks.handles import AsyncLock as Lock
from ringhold.locks.handles import AsyncLocks as Locks
from ringhold.locks.multi import AsyncGrants as Grants
from ringhold.locks.multi import AsyncLockMany as LockMany
from ringhold.locks.multi import Names
from ringhold.locks.semaphore import AsyncSemaphore as Semaphore
from ringhold.locks.service import LockService
from ringhold.locks.session import Session, check_ttl
from ringhold.locks.slot_grants import SlotGrant, SlotService
from ringhold.nodes.pool import NodePool
from ringhold.nodes.records import ClusterRecord
from ringhold.store.base import Store
from ringhold.store.kv import KeyValue
from ringhold.transactions.manager import AsyncTransactions as Transactions
from ringhold.transactions.transaction import Transaction, TransactionKeyValue
from ringhold.types import NodeSpec

if TYPE_CHECKING:
    from ringhold.files.filesystem import RingholdFileSystem

__all__ = [
    "Cluster",
    "Election",
    "Fence",
    "Grant",
    "Grants",
    "KeyValue",
    "Lock",
    "LockMany",
    "Locks",
    "Semaphore",
    "SlotGrant",
    "Transaction",
    "TransactionKeyValue",
    "Transactions",
    "create",
    "open",
]

logger = logging.getLogger("ringhold")
T = TypeVar("T")
P = ParamSpec("P")
Url = str | os.PathLike[str]


class Cluster:
    """An open cluster. Made by `open` and `create`."""

    def __init__(
        self,
        location: Location,
        store: Store,
        env: Env,
        session: Session,
        record: ClusterRecord,
        bridge: Bridge,
    ):
        self.url = location.url
        self.location = location
        self.bridge = bridge
        self._home = Home(self, bridge, None, "a forked process must open its own")
        self._life = Life(f"the cluster {location.url}")
        check = self._life.check
        self._env = env
        self._store = store
        self._session = session
        self._pool = NodePool(store, env, record.identity, location.directory)
        self._lock_service = LockService(store, env, session, bridge)
        self.slots = SlotService(store, env, session)
        self._administration = Administration(location, store, env, record)
        self._fs: RingholdFileSystem | None = None
        self.file_core = FileCore(store, env, session, self._pool, self.slots, record)
        self.kv = KeyValue(store, env, check)
        self.locks = Locks(self._lock_service)
        holder_under = self._lock_service.inquiries.holder_under
        self.transactions = Transactions(
            store, env, check, self.file_core, self.file_system, holder_under
        )

    def __repr__(self) -> str:
        return f"<Cluster {self.url!r}{' closed' if self._life.closed else ''}>"

    @property
    def life(self) -> Life:
        return self._life

    @property
    def fs(self) -> RingholdFileSystem:
        """The files: an fsspec file system with asynchronous methods (``_cat_file``, …)."""
        if self._fs is None:
            self._fs = self.file_system()
        return self._fs

    def file_system(
        self,
        transaction: Transaction | None = None,
        *,
        asynchronous: bool = True,
        home: Home[Cluster] | None = None,
    ) -> RingholdFileSystem:
        """A file system of this cluster, bound to `transaction` if given.

        home: where it finds the cluster in forked children, if it shall.
        """
        # fsspec costs a program that only locks as much time to load as all of Ringhold.
        from ringhold.files.filesystem import RingholdFileSystem

        return RingholdFileSystem(
            cluster=self.location.full_url,
            home=self._home if home is None else home,
            asynchronous=asynchronous,
            skip_instance_cache=True,
            view=None if transaction is None else transaction.view,
        )

    def lock(
        self,
        name: str | bytes,
        *,
        mode: str = "exclusive",
        timeout: float | None = -1,
        lock_delay: float = 0.0,
        owner: int | None = None,
        reentrant: bool = False,
        cancel_on_lost: bool = False,
    ) -> Lock:
        """The lock `name`, not yet acquired: ``async with cluster.lock("x", timeout=5)``.

        mode: "exclusive" or "shared"; timeout: seconds to wait for it, -1 for ever; lock_delay:
        seconds that others are kept waiting should the holder disappear without releasing, for
        resources that cannot judge tokens; owner: the calling task unless given; reentrant: the
        owner may acquire it again, which counts; cancel_on_lost: the task in the block is
        cancelled when the lock is lost, and the block raises LockLost.
        """
        self._life.check()
        return Lock(
            self._lock_service,
            name,
            mode=mode,
            timeout=timeout,
            lock_delay=lock_delay,
            owner=owner,
            reentrant=reentrant,
            cancel_on_lost=cancel_on_lost,
        )

    def lock_many(
        self,
        names: Names,
        *,
        mode: str = "exclusive",
        timeout: float | None = -1,
        owner: int | None = None,
    ) -> LockMany:
        """The locks `names`, all or none: ``async with cluster.lock_many(["a", "b"])``.

        timeout: seconds for all of them, -1 for ever; owner: the calling task unless given.
        """
        self._life.check()

        def lock(name: bytes) -> Lock:
            return self.lock(name, mode=mode, owner=owner)

        return LockMany(names, lock, self._env, timeout=timeout)

    def semaphore(
        self,
        name: str | bytes,
        limit: int,
        *,
        timeout: float | None = -1,
        owner: int | None = None,
    ) -> Semaphore:
        """At most `limit` holders across processes: ``async with cluster.semaphore("x", 3)``.

        timeout: seconds to wait, -1 for ever; owner: the calling task unless given.
        """
        self._life.check()
        return Semaphore(self.slots, name, limit, timeout=timeout, owner=owner)

    def election(self, name: str | bytes, *, value: str = "") -> Election:
        """A candidate in the election `name`; `value` is told by ``leader()`` while it leads."""
        self._life.check()
        return Election(self.slots, name, value=value)

    def fence(self, name: str | bytes) -> Fence:
        """The fence that judges tokens of the lock `name`: ``await fence.admit(token)``."""
        self._life.check()
        return Fence(self._store, self._env, self._life.check, name)

    def transaction(self, timeout: float | None = 30.0) -> Transaction:
        """``async with cluster.transaction() as tx``: commits at the end, or has no effect."""
        return self.transactions.transaction(timeout)

    async def begin(
        self,
        timeout: float | None = 30.0,  # noqa: ASYNC109 - the transaction's, not this call's
    ) -> Transaction:
        """A transaction that has begun; to be ended by its `commit` or `rollback`."""
        return await self.transactions.begin(timeout)

    def transactional(
        self, retries: int = 10
    ) -> Callable[[Callable[Concatenate[Transaction, P], Awaitable[T]]], Callable[P, Awaitable[T]]]:
        """Decorates ``async def f(tx, …)`` to run in a transaction, repeated on conflicts."""
        return self.transactions.transactional(retries)

    async def nodes(self) -> tuple[NodeSpec, ...]:
        """The storage nodes, sorted by name."""
        self._life.check()
        return await self._administration.nodes()

    async def status(self) -> ClusterStatus:
        """The cluster and its nodes at one revision; asks every node whether it serves."""
        self._life.check()
        return await self._administration.status()

    async def replace_node(
        self, name: str, *, path: str | None = None, address: str | None = None
    ) -> None:
        """Brings a wiped or new directory, or a daemon serving one, into service as `name`.

        With neither path nor address it is where it was. FileExistsError when it is not empty.
        Its copies of chunks are made by ``fs.repair()``.
        """
        self._life.check()
        await self._administration.replace_node(name, path, address)

    async def close(
        self,
        timeout: float = 5.0,  # noqa: ASYNC109 - bounds the graceful part only
    ) -> None:
        """Discards open files, aborts transactions, gives all locks back, ends the session.

        What takes longer than `timeout` seconds is left to the session's lease, which others
        see run out. Closing twice, or in a forked child, does nothing.
        """
        limit_s = check_timeout(timeout)
        if self._life.foreign or self._life.closed:
            return
        self._life.close()
        await finish(asyncio.ensure_future(self._close(limit_s)))

    async def _close(self, limit_s: float | None) -> None:
        async with AsyncExitStack() as always:
            always.push_async_callback(self._store.close)
            always.push_async_callback(self._pool.close)
            try:
                async with asyncio.timeout(limit_s), AsyncExitStack() as graceful:
                    graceful.push_async_callback(self._session.close)
                    graceful.push_async_callback(self._lock_service.close)
                    graceful.push_async_callback(self.slots.close)
                    graceful.push_async_callback(self.transactions.close)
                    graceful.push_async_callback(self.file_core.close)
            except TimeoutError:
                logger.warning(
                    "closing %s took longer than %s s; its session is left to expire",
                    self.url,
                    limit_s,
                )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()


class Opening:
    """What `open` and `create` return: await it, or enter it with ``async with``."""

    def __init__(self, start: Callable[[], Awaitable[Cluster]]):
        self._start = start
        self._cluster: Cluster | None = None

    def __await__(self) -> Generator[object, None, Cluster]:
        return self._start().__await__()

    async def __aenter__(self) -> Cluster:
        self._cluster = await self
        return self._cluster

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._cluster is not None:
            await self._cluster.close()


def open(
    url: Url,
    *,
    create: bool | None = None,
    session_ttl: float = 10.0,
    durability: str | None = None,
) -> Opening:
    """Opens the cluster at `url`: a directory, file:///…, etcd://host:2379/name, etcds:// with
    TLS, or memory://name. Which options the URL of one in etcd has, `ringhold.store.etcd.address`
    tells.

    create: None makes a cluster of one node only where the directory is missing, True also in
    an empty one, False never. In etcd only True makes one, without storage nodes: for locks,
    keys, transactions and files of up to 4096 bytes. session_ttl: seconds after which others may
    take over what a process held that stopped without dying.

    durability: what an acknowledged commit of this opening outlives. "full", the default of a
    directory and all that etcd has: a power cut. "process": any process, but a power cut may take
    the newest commits away, never giving their tokens again; chunks of files are synced all the
    same. "memory": nothing, which is what memory:// has.

    Raises FileNotFoundError when there is no cluster (an existing empty directory looks like a
    disk that is not mounted), InvalidInput for a URL that cannot be opened.
    """
    return Opening(
        lambda: open_cluster(url, create=create, session_ttl=session_ttl, durability=durability)
    )


def create(
    url: Url,
    *,
    nodes: int | Iterable[NodeSpec] | None = None,
    replicas: int = 1,
    zones: Iterable[str] | None = None,
    chunk_size: int = DEFAULT_CHUNK_BYTES,
    path: str | os.PathLike[str] | None = None,
    session_ttl: float = 10.0,
    durability: str | None = None,
) -> Opening:
    """Makes a cluster at `url` and opens it. FileExistsError if there is one.

    nodes: a count (directories inside the cluster) (one if not given) or NodeSpecs; replicas:
    copies of every chunk; zones: names dealt out to a count of nodes in turn; chunk_size: bytes, a
    power of two from 64 KiB to 16 MiB; path: a directory of this host in which a count of nodes is
    made instead.

    In etcd nodes are NodeSpecs with an address or an absolute path, or a count in `path`; without
    any, which is possible there alone, it keeps files of up to 4096 bytes.
    """
    return Opening(
        lambda: create_cluster(
            url,
            nodes=nodes,
            replicas=replicas,
            zones=zones,
            chunk_size=chunk_size,
            path=path,
            session_ttl=session_ttl,
            durability=durability,
        )
    )


async def open_cluster(
    url: Url,
    *,
    create: bool | None = None,
    session_ttl: float = 10.0,
    durability: str | None = None,
) -> Cluster:
    """See `open`."""
    if create is not None and not isinstance(create, bool):
        raise TypeError(f"create must be True, False or None, not {type(create).__name__}")
    check_ttl(session_ttl)
    location = parse_url(url)
    synced = is_synced(location, durability)
    env = real_env()
    if await _wants_creation(location, env, create):
        plan = plan_cluster(location, None, 1, None, DEFAULT_CHUNK_BYTES)
        try:
            cluster = await _create(location, env, plan, session_ttl, synced)
        except FileExistsError:
            # Another process made it in the same moment, which is as good.
            logger.debug("the cluster %s was made by somebody else meanwhile", location.url)
        else:
            made = "one node, one copy" if plan.nodes else "no storage nodes"
            logger.warning("created a new cluster in %s: %s", location.url, made)
            return cluster
    store, record = await open_existing(location, env, synced)
    try:
        session = Session(store, env, ttl_s=session_ttl)
        return Cluster(location, store, env, session, record, _bridge())
    except BaseException:
        await store.close()
        raise


async def _wants_creation(location: Location, env: Env, create: bool | None) -> bool:
    """Whether `open` makes a cluster first. FileNotFoundError where it neither may nor can open."""
    if location.etcd is not None:
        return create is True
    if location.directory is None:
        return create is not False
    found = await look(env, location.directory)
    if found is Found.CLUSTER:
        return False
    if found is Found.MISSING and create is not False:
        return True
    if found is Found.EMPTY and create is True:
        return True
    reason = {
        Found.MISSING: "there is no such directory, and none was to be created",
        Found.EMPTY: "the directory is empty: is its disk mounted? create=True makes a cluster",
        Found.FOREIGN: "the directory holds no cluster",
    }[found]
    raise FileNotFoundError(2, reason, location.directory)


async def create_cluster(
    url: Url,
    *,
    nodes: int | Iterable[NodeSpec] | None,
    replicas: int,
    zones: Iterable[str] | None,
    chunk_size: int,
    path: str | os.PathLike[str] | None,
    session_ttl: float,
    durability: str | None,
) -> Cluster:
    """See `create`."""
    check_ttl(session_ttl)
    location = parse_url(url)
    synced = is_synced(location, durability)
    plan = plan_cluster(location, nodes, replicas, zones, chunk_size, path)
    return await _create(location, real_env(), plan, session_ttl, synced)


async def _create(
    location: Location, env: Env, plan: Plan, session_ttl: float, synced: bool
) -> Cluster:
    store = await create_store(location, env, synced)
    try:
        session = Session(store, env, ttl_s=session_ttl)
        try:
            record = await make_cluster(location, env, store, session, plan)
        except BaseException:
            await finish(asyncio.ensure_future(session.close()))
            raise
        return Cluster(location, store, env, session, record, _bridge())
    except Conflict:
        raise exists(location) from None
    except BaseException:
        await finish(asyncio.ensure_future(store.close()))
        raise


def _bridge() -> Bridge:
    return Bridge(asyncio.get_running_loop())

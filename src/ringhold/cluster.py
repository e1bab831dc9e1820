"""The blocking face: ``with ringhold.open("data/") as cluster``.

A cluster here is one of the async face on Ringhold's own event loop, a daemon thread per
process, behind a bridge. An interrupt in a blocking call cancels the coroutine behind it and
waits for it: nothing stays held, locked or half-open. A blocking call on that loop itself
raises RuntimeError.

A forked child owns nothing of its parent's: what was begun in the parent raises Closed there,
naming the parent's process, and whatever begins something new opens the cluster again, with a
session of the child's own.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Coroutine, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar

from ringhold import aio
from ringhold.assembly.administration import ClusterStatus
from ringhold.assembly.location import parse_url
from ringhold.assembly.plan import DEFAULT_CHUNK_BYTES
from ringhold.bridge import Bridge, process_bridge
from ringhold.env import real_env
from ringhold.home import Home
from ringhold.locks.election import Election
from ringhold.locks.fence import Fence
from ringhold.locks.handles import Lock, Locks
from ringhold.locks.multi import LockMany, Names
from ringhold.locks.semaphore import Semaphore
from ringhold.store.kv_blocking import BlockingKeyValue
from ringhold.transactions.blocking import Transaction, Transactions
from ringhold.transactions.transaction import Transaction as AsyncTransaction
from ringhold.types import NodeSpec

if TYPE_CHECKING:
    from ringhold.files.filesystem import RingholdFileSystem

T = TypeVar("T")
P = ParamSpec("P")


class Cluster:
    """An open cluster. Made by `ringhold.open` and `ringhold.create`."""

    def __init__(self, home: Home[aio.Cluster]):
        self._home = home
        self._fs: RingholdFileSystem | None = None
        self.kv = BlockingKeyValue(home)
        self.locks = Locks(home)
        self.transactions = Transactions(home, self._bound_file_system)

    def __repr__(self) -> str:
        return repr(self._home.last)

    @property
    def _cluster(self) -> aio.Cluster:
        return self._home.cluster()

    @property
    def _bridge(self) -> Bridge:
        return self._home.bridge()

    @property
    def url(self) -> str:
        """Where the cluster lies; without a password."""
        return self._home.last.url

    @property
    def fs(self) -> RingholdFileSystem:
        """The files: an fsspec file system."""
        if self._fs is None:
            self._fs = self._cluster.file_system(asynchronous=False, home=self._home)
        return self._fs

    def _bound_file_system(self, transaction: AsyncTransaction) -> Any:
        return self._cluster.file_system(transaction, asynchronous=False)

    def lock(
        self,
        name: str | bytes,
        *,
        mode: str = "exclusive",
        timeout: float | None = -1,
        lock_delay: float = 0.0,
        owner: int | None = None,
        reentrant: bool = False,
    ) -> Lock:
        """The lock `name`, not yet acquired: ``with cluster.lock("x", timeout=5) as grant``.

        mode: "exclusive" or "shared"; timeout: seconds to wait for it, -1 for ever; lock_delay:
        seconds that others are kept waiting should the holder disappear without releasing, for
        resources that cannot judge tokens; owner: the calling thread unless given; reentrant: the
        owner may acquire it again, which counts.
        """

        def make(cluster: aio.Cluster) -> aio.Lock:
            return cluster.lock(
                name,
                mode=mode,
                timeout=timeout,
                lock_delay=lock_delay,
                owner=owner,
                reentrant=reentrant,
            )

        return Lock(self._home, make)

    def lock_many(
        self,
        names: Names,
        *,
        mode: str = "exclusive",
        timeout: float | None = -1,
        owner: int | None = None,
    ) -> LockMany:
        """The locks `names`, all or none: ``with cluster.lock_many(["a", "b"]) as grants``.

        timeout: seconds for all of them, -1 for ever; owner: the calling thread unless given.
        """

        def lock(name: bytes) -> Lock:
            return self.lock(name, mode=mode, owner=owner)

        return LockMany(names, lock, real_env(), timeout=timeout)

    def semaphore(
        self,
        name: str | bytes,
        limit: int,
        *,
        timeout: float | None = -1,
        owner: int | None = None,
    ) -> Semaphore:
        """At most `limit` holders across processes: ``with cluster.semaphore("x", 3)``.

        timeout: seconds to wait, -1 for ever; owner: the calling thread unless given.
        """

        def make(cluster: aio.Cluster) -> aio.Semaphore:
            return cluster.semaphore(name, limit, timeout=timeout, owner=owner)

        return Semaphore(self._home, make)

    def election(self, name: str | bytes, *, value: str = "") -> Election:
        """A candidate in the election `name`; `value` is told by ``leader()`` while it leads."""

        def make(cluster: aio.Cluster) -> aio.Election:
            return cluster.election(name, value=value)

        return Election(self._home, make)

    def fence(self, name: str | bytes) -> Fence:
        """The fence that judges tokens of the lock `name`: ``fence.admit(grant.token)``."""

        def make(cluster: aio.Cluster) -> aio.Fence:
            return cluster.fence(name)

        return Fence(self._home, make)

    def transaction(self, timeout: float | None = 30.0) -> Transaction:
        """``with cluster.transaction() as tx``: commits at the end, or has no effect.

        timeout: seconds after which it is aborted, None for never.
        """
        return self.transactions.transaction(timeout)

    def begin(self, timeout: float | None = 30.0) -> Transaction:
        """A transaction that has begun; to be ended by its `commit` or `rollback`."""
        return self.transactions.begin(timeout)

    def transactional(
        self, retries: int = 10
    ) -> Callable[[Callable[Concatenate[Transaction, P], T]], Callable[P, T]]:
        """Decorates ``def f(tx, …)`` to run in a transaction, repeated on conflicts."""
        return self.transactions.transactional(retries)

    def nodes(self) -> tuple[NodeSpec, ...]:
        """The storage nodes, sorted by name."""
        return self._bridge.run(self._cluster.nodes())

    def status(self) -> ClusterStatus:
        """The cluster and its nodes at one revision; asks every node whether it serves."""
        return self._bridge.run(self._cluster.status())

    def replace_node(
        self, name: str, *, path: str | None = None, address: str | None = None
    ) -> None:
        """Brings a wiped or new directory, or a daemon serving one, into service as `name`.

        With neither path nor address it is where it was. FileExistsError when it is not empty.
        Its copies of chunks are made by ``fs.repair()``.
        """
        self._bridge.run(self._cluster.replace_node(name, path=path, address=address))

    def close(self, timeout: float = 5.0) -> None:
        """Discards open files, aborts transactions, gives all locks back, ends the session.

        What takes longer than `timeout` seconds is left to the session's lease. Closing twice
        does nothing. A forked child closes what it opened itself, never what its parent did.
        """
        if not self._home.renounce():
            self._bridge.run(self._cluster.close(timeout))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def open(
    url: str | os.PathLike[str],
    *,
    create: bool | None = None,
    session_ttl: float = 10.0,
    durability: str | None = None,
) -> Cluster:
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

    >>> with ringhold.open("data/") as cluster:  # doctest: +SKIP
    ...     cluster.kv["greeting"] = b"hello"
    """
    opening = aio.open_cluster(url, create=create, session_ttl=session_ttl, durability=durability)
    return _entered(opening, session_ttl=session_ttl, durability=durability)


def create(
    url: str | os.PathLike[str],
    *,
    nodes: int | Iterable[NodeSpec] | None = None,
    replicas: int = 1,
    zones: Iterable[str] | None = None,
    chunk_size: int = DEFAULT_CHUNK_BYTES,
    path: str | os.PathLike[str] | None = None,
    session_ttl: float = 10.0,
    durability: str | None = None,
) -> Cluster:
    """Makes a cluster at `url` and opens it. FileExistsError if there is one.

    nodes: a count (directories inside the cluster) (one if not given) or NodeSpecs; replicas:
    copies of every chunk; zones: names dealt out to a count of nodes in turn; chunk_size: bytes, a
    power of two from 64 KiB to 16 MiB; path: a directory of this host in which a count of nodes is
    made instead.

    In etcd nodes are NodeSpecs with an address or an absolute path, or a count in `path`; without
    any, which is possible there alone, it keeps files of up to 4096 bytes.

    Raises InvalidInput and NotEnoughNodes before anything is made.
    """
    creating = aio.create_cluster(
        url,
        nodes=nodes,
        replicas=replicas,
        zones=zones,
        chunk_size=chunk_size,
        path=path,
        session_ttl=session_ttl,
        durability=durability,
    )
    return _entered(creating, session_ttl=session_ttl, durability=durability)


def _entered(opening: Coroutine[Any, Any, aio.Cluster], **options: Any) -> Cluster:
    """The cluster that `opening` opens; a forked child opens it with the same `options`."""
    bridge = process_bridge()
    cluster = bridge.run(opening, undo=_close)
    location = cluster.location
    if not location.outlives_processes:
        why = "what is in memory cannot be opened from another process"
        return Cluster(Home(cluster, bridge, None, why))
    url = location.full_url
    return Cluster(Home(cluster, bridge, lambda: aio.open_cluster(url, create=False, **options)))


async def _close(cluster: aio.Cluster) -> None:
    await cluster.close()


_shared: dict[str, Cluster] = {}
_sharing = threading.Lock()


def shared_cluster(url: str) -> Cluster:
    """The cluster that all file systems made from `url` in this process share.

    Opened on first use, never created, and open until the process ends.
    """
    key = parse_url(url).full_url
    with _sharing:
        found = _shared.get(key)
        if found is None or found._home.last.life.closed:
            found = _shared[key] = open(url, create=False)
        return found


def opened_by_url(url: str) -> Home[aio.Cluster]:
    """Where a file system made from `url` finds its cluster."""
    return shared_cluster(url)._home


def _after_fork() -> None:
    global _sharing
    _sharing = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)

"""The blocking face: ``with ringhold.open("data/") as cluster``.

A cluster here is one of the async face on Ringhold's own event loop, a daemon thread per
process, behind a bridge. An interrupt in a blocking call cancels the coroutine behind it and
waits for it: nothing stays held, locked or half-open. A blocking call on that loop itself
raises RuntimeError. In a forked child everything raises Closed naming the parent's process.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from ringhold import aio
from ringhold.assembly.administration import ClusterStatus
from ringhold.assembly.location import parse_url
from ringhold.assembly.plan import DEFAULT_CHUNK_BYTES
from ringhold.bridge import Bridge, process_bridge
from ringhold.env import real_env
from ringhold.files.core import FileCore
from ringhold.files.filesystem import RingholdFileSystem, set_cluster_opener
from ringhold.locks.handles import Lock, Locks
from ringhold.store.kv_blocking import BlockingKeyValue
from ringhold.transactions.blocking import Transaction, Transactions
from ringhold.transactions.transaction import Transaction as AsyncTransaction
from ringhold.types import NodeSpec

T = TypeVar("T")
P = ParamSpec("P")


class Cluster:
    """An open cluster. Made by `ringhold.open` and `ringhold.create`."""

    def __init__(self, cluster: aio.Cluster, bridge: Bridge):
        env = real_env()
        self._cluster = cluster
        self._bridge = bridge
        self._env = env
        self._fs: RingholdFileSystem | None = None
        self.kv = BlockingKeyValue(cluster.kv, bridge)
        self.locks = Locks(cluster.locks, bridge)
        self.transactions = Transactions(cluster.transactions, bridge, env, self._file_system)

    def __repr__(self) -> str:
        return repr(self._cluster)

    @property
    def url(self) -> str:
        """Where the cluster lies."""
        return self._cluster.url

    @property
    def fs(self) -> RingholdFileSystem:
        """The files: an fsspec file system."""
        if self._fs is None:
            self._fs = self._file_system(None)
        return self._fs

    def _file_system(self, transaction: AsyncTransaction | None) -> Any:
        return self._cluster.file_system(transaction, asynchronous=False)

    def lock(
        self,
        name: str | bytes,
        *,
        mode: str = "exclusive",
        timeout: float | None = -1,
        owner: int | None = None,
    ) -> Lock:
        """The lock `name`, not yet acquired: ``with cluster.lock("x", timeout=5) as grant``.

        timeout: seconds to wait for it, -1 for ever; owner: the calling thread unless given.
        """
        self._bridge.check_process()
        lock = self._cluster.lock(name, mode=mode, timeout=timeout, owner=owner)
        return Lock(lock, self._bridge, self._env)

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

        What takes longer than `timeout` seconds is left to the session's lease. Closing twice,
        or in a forked child, does nothing.
        """
        if not self._cluster.life.foreign:
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
    """Opens the cluster at `url`: a directory, file:///…, or memory://name.

    create: None makes a cluster of one node only where the directory is missing, True also in
    an empty one, False never. session_ttl: seconds after which others may take over what a
    process held that stopped without dying.

    durability: what an acknowledged commit of this opening outlives. "full", the default of a
    directory: a power cut. "process": any process, but a power cut may take the newest commits
    away, never giving their tokens again; chunks of files are synced all the same. "memory":
    nothing, which is what memory:// has.

    Raises FileNotFoundError when there is no cluster (an existing empty directory looks like a
    disk that is not mounted), InvalidInput for a URL that cannot be opened.

    >>> with ringhold.open("data/") as cluster:  # doctest: +SKIP
    ...     cluster.kv["greeting"] = b"hello"
    """
    bridge = process_bridge()
    opening = aio.open_cluster(url, create=create, session_ttl=session_ttl, durability=durability)
    return Cluster(bridge.run(opening, undo=_close), bridge)


def create(
    url: str | os.PathLike[str],
    *,
    nodes: int | Iterable[NodeSpec] = 1,
    replicas: int = 1,
    zones: Iterable[str] | None = None,
    chunk_size: int = DEFAULT_CHUNK_BYTES,
    session_ttl: float = 10.0,
    durability: str | None = None,
) -> Cluster:
    """Makes a cluster at `url` and opens it. FileExistsError if there is one.

    nodes: a count (directories inside the cluster) or NodeSpecs; replicas: copies of every
    chunk; zones: names dealt out to a count of nodes in turn; chunk_size: bytes, a power of two
    from 64 KiB to 16 MiB. Raises InvalidInput and NotEnoughNodes before anything is made.
    """
    bridge = process_bridge()
    creating = aio.create_cluster(
        url,
        nodes=nodes,
        replicas=replicas,
        zones=zones,
        chunk_size=chunk_size,
        session_ttl=session_ttl,
        durability=durability,
    )
    return Cluster(bridge.run(creating, undo=_close), bridge)


async def _close(cluster: aio.Cluster) -> None:
    await cluster.close()


_shared: dict[str, Cluster] = {}
_sharing = threading.Lock()


def shared_cluster(url: str) -> Cluster:
    """The cluster that all file systems made from `url` in this process share.

    Opened on first use, never created, and open until the process ends.
    """
    key = parse_url(url).url
    with _sharing:
        found = _shared.get(key)
        if found is None or found._cluster.life.closed:
            found = _shared[key] = open(url, create=False)
        return found


def _opened_by_url(url: str) -> tuple[FileCore, Bridge]:
    cluster = shared_cluster(url)
    return cluster._cluster.file_core, cluster._bridge


def _after_fork() -> None:
    global _sharing
    _sharing = threading.Lock()
    _shared.clear()


set_cluster_opener(_opened_by_url)
os.register_at_fork(after_in_child=_after_fork)

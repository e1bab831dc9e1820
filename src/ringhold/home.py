"""Where the blocking faces of an open cluster find it: in whichever process they are used.

Guarantees: `Home.cluster` and `Home.bridge` are those of the calling process. In a forked child
the first call opens the cluster anew, with a store, a loop and a session of its own, exactly
once whichever threads ask; what was open in the parent is neither used nor closed there, and is
kept from being collected, because destructors of tasks and files would act for the parent. One
that was closed before the fork stays closed, and one that cannot be reached from another
process raises Closed.

What was begun in the parent (grants, transactions, open files, watches) keeps the bridge it was
begun with, which raises Closed in the child.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, Protocol, TypeVar

from ringhold.bridge import Bridge, Life, Unpicklable, process_bridge
from ringhold.env import forks
from ringhold.errors import Closed


class Openable(Protocol):
    """A cluster of the async face, as far as its home needs it."""

    @property
    def life(self) -> Life: ...

    def close(self) -> Awaitable[None]: ...


class Named(Protocol):
    name: str


C_co = TypeVar("C_co", bound=Openable, covariant=True)
F = TypeVar("F", bound="Named")

_opening = threading.Lock()


def _after_fork() -> None:
    global _opening
    _opening = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


class Home(Unpicklable, Generic[C_co]):
    """The cluster behind the blocking faces, and the bridge to its loop.

    reopen: opens it again, on the loop of whatever process it is called in; None where that
    is impossible, `why` then tells the reason.
    """

    def __init__(
        self,
        cluster: C_co,
        bridge: Bridge,
        reopen: Callable[[], Coroutine[Any, Any, C_co]] | None,
        why: str = "",
    ):
        self._cluster = cluster
        self._bridge = bridge
        self._reopen = reopen
        self._why = why
        self._generation = forks.generation

    def cluster(self) -> C_co:
        """The cluster of this process. Closed as the module tells; RuntimeError on its loop."""
        if self._generation != forks.generation:
            self._enter()
        return self._cluster

    def bridge(self) -> Bridge:
        """The bridge to that cluster's loop; errors as for `cluster`."""
        if self._generation != forks.generation:
            self._enter()
        return self._bridge

    @property
    def opened_here(self) -> bool:
        """Whether it was opened in this process; opens nothing."""
        return self._generation == forks.generation

    def renounce(self) -> bool:
        """In a forked child that did not open the cluster: it never will. Whether that is so."""
        with _opening:
            if self.opened_here:
                return False
            self._cluster.life.close()
            return True

    @property
    def last(self) -> C_co:
        """The cluster, or in a forked child the parent's until it is opened; opens nothing."""
        return self._cluster

    def _enter(self) -> None:
        with _opening:
            if self.opened_here:
                return
            life = self._cluster.life
            life.check_open()
            if self._reopen is None:
                raise Closed(
                    f"{life.what} belongs to process {life.pid}: {self._why}", pid=life.pid
                )
            bridge = process_bridge()
            cluster = bridge.run(self._reopen(), undo=_close)
            ctypes.pythonapi.Py_IncRef(ctypes.py_object((self._cluster, self._bridge)))
            self._cluster, self._bridge = cluster, bridge
            self._generation = forks.generation


class Bound(Generic[F]):
    """Something of the blocking face, bound to what the async face has for it: in a forked child
    that is made again, from the child's own cluster."""

    def __init__(self, home: Home[Any], make: Callable[[Any], F]):
        self._home = home
        self._make = make
        self._made_from = home.cluster()
        self._made = make(self._made_from)
        self.name = self._made.name

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    @property
    def _face(self) -> F:
        cluster = self._home.cluster()
        if cluster is not self._made_from:
            self._made_from, self._made = cluster, self._make(cluster)
        return self._made

    @property
    def _bridge(self) -> Bridge:
        return self._home.bridge()

    def _check_begun(self, begun: Callable[[F], bool]) -> None:
        """Closed, naming the parent, in a forked child that would end what the parent began."""
        if self._made_from.life.foreign and begun(self._made):
            self._made_from.life.check()


async def _close(cluster: Openable) -> None:
    await cluster.close()

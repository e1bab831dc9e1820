"""What lies under the fsspec face: which cluster it is of, and where its operations run.

An instance belongs to an open cluster, or finds one by URL. The URL is settled when the instance
is asked for, before fsspec looks for an equal one that exists: neither the environment nor the
working directory of later, or of the process that unpickles it, has a say.

Each operation runs on the cluster's loop: alone, in the file transaction that the calling thread
or task is in, or in the transaction of the cluster that the instance is bound to.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar, Protocol, TypeVar

from fsspec.asyn import AsyncFileSystem  # type: ignore[import-untyped]
from fsspec.config import apply_config  # type: ignore[import-untyped]
from fsspec.utils import stringify_path, tokenize  # type: ignore[import-untyped]

from ringhold.bridge import Bridge
from ringhold.errors import InvalidInput
from ringhold.files.core import FileCore, ViewSource, alone
from ringhold.files.paths import Parts, split_path
from ringhold.files.scope import running_on
from ringhold.home import Home, Openable
from ringhold.store.view import View
from ringhold.types import decode_name

T = TypeVar("T")


class FilesOwner(Openable, Protocol):
    """A cluster of the async face, as far as its files need it."""

    file_core: FileCore


FILES_AT_ONCE = 16
"""How many files put, get and the like move at once; each may have several chunks in memory."""


def _open_cluster(url: str) -> Home[FilesOwner]:
    # A floor above this one, there once it is needed.
    opened: Home[FilesOwner] = importlib.import_module("ringhold.cluster").opened_by_url(url)
    return opened


def _settled(url: str | os.PathLike[str] | None) -> str:
    """The one URL of a cluster that is asked for by `url` or by the environment."""
    url = url or os.environ.get("RINGHOLD_CLUSTER")
    if not url:
        raise InvalidInput(
            'which cluster? Give storage_options={"cluster": URL} or set RINGHOLD_CLUSTER'
        )
    settled: str = _location(url).full_url
    return settled


def _location(url: str | os.PathLike[str]) -> Any:
    return importlib.import_module("ringhold.assembly.location").parse_url(url)


class _BySettledUrl(type(AsyncFileSystem)):  # type: ignore[misc]
    """Makes instances, as fsspec's own metaclass does, by the settled URL of their cluster."""

    def __call__(
        cls, cluster: str | os.PathLike[str] | None = None, *args: Any, **options: Any
    ) -> Any:
        if cluster is not None:
            options["cluster"] = cluster
        options = apply_config(cls, options)
        if options.get("home") is None:
            options["cluster"] = _settled(options.get("cluster"))
        return super().__call__(*args, **options)


def _reopen(kind: type[ClusterFileSystem], options: dict[str, Any]) -> ClusterFileSystem:
    return kind(**options)


class ClusterFileSystem(AsyncFileSystem, metaclass=_BySettledUrl):  # type: ignore[misc]
    """The part of an fsspec file system that all its calls rest on."""

    protocol: ClassVar[str] = "ringhold"
    root_marker = "/"
    mirror_sync_methods = False

    def __init__(
        self,
        *,
        cluster: str,
        auto_mkdir: bool = True,
        home: Home[FilesOwner] | None = None,
        view: Callable[[], View] | None = None,
        asynchronous: bool = False,
        loop: Any = None,
        batch_size: int | None = None,
        **options: Any,
    ):
        home = home or _open_cluster(cluster)
        super().__init__(
            asynchronous=asynchronous,
            loop=home.bridge().loop,
            batch_size=batch_size or FILES_AT_ONCE,
            **options,
        )
        self.auto_mkdir = auto_mkdir
        self.cluster = cluster
        self.home = home
        self._bound_view = view

    @property
    def core(self) -> FileCore:
        """The files of the cluster of this process, which in a forked child is opened anew."""
        return self.home.cluster().file_core

    @property
    def _bridge(self) -> Bridge:
        return self.home.bridge()

    @property
    def loop(self) -> Any:
        """The loop on which the coroutines do their work."""
        return self._bridge.loop

    # -- fsspec's bookkeeping -------------------------------------------------------------

    @property
    def storage_options(self) -> dict[str, Any]:
        """What makes an equal file system in another process."""
        options: dict[str, Any] = {"cluster": self.cluster}
        if not self.auto_mkdir:
            options["auto_mkdir"] = False
        if self.asynchronous:
            options["asynchronous"] = True
        return options

    @storage_options.setter
    def storage_options(self, options: dict[str, Any]) -> None:
        """fsspec stores the constructor's arguments here; some of them never leave the process."""

    def to_dict(self, *, include_password: bool = True) -> dict[str, Any]:
        told: dict[str, Any] = super().to_dict(include_password=include_password)
        if not include_password:
            told["cluster"] = _location(self.cluster).url
        return told

    @property
    def _fs_token(self) -> str:
        """Equal for file systems that do the same, however they were made, in any process."""
        # A transaction's own does what no other one does.
        bound = () if self._bound_view is None else (id(self),)
        token: str = tokenize(type(self), *bound, **self.storage_options)
        return token

    def __reduce__(self) -> tuple[Any, ...]:
        if self._bound_view is not None:
            raise TypeError("the file system of a transaction cannot be pickled")
        return _reopen, (type(self), self.storage_options)

    @property
    def fsid(self) -> str:
        return f"ringhold_{self.core.cluster.identity.hex()}"

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(each) for each in path]
        path = stringify_path(path)
        if isinstance(path, bytes):
            path = decode_name(path)
        if not isinstance(path, str):
            raise TypeError(f"a path must be str or bytes, not {type(path).__name__}")
        for prefix in (f"{cls.protocol}://", f"{cls.protocol}::"):
            path = path.removeprefix(prefix)
        return "/" + "/".join(name for name in path.split("/") if name)

    def _parts(self, path: Any) -> Parts:
        return split_path(self._strip_protocol(path))

    def invalidate_cache(self, path: Any = None) -> None:
        """Does nothing, since nothing is cached."""

    # -- where an operation runs ----------------------------------------------------------

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._bridge.run(coroutine)

    async def hop(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return await self._bridge.hop(coroutine)

    @property
    def is_bound(self) -> bool:
        """Whether this file system belongs to a transaction of the cluster."""
        return self._bound_view is not None

    def _view(self) -> View | None:
        """The view of the transaction the caller is in; None outside of one."""
        if self._bound_view is not None:
            return self._bound_view()
        running = running_on(self.core)
        return None if running is None else running.view()

    def _source(self, *, write: bool) -> ViewSource:
        """As `_view`, for a file that is opened now and used later."""
        if self._bound_view is not None:
            return self._bound_view
        running = running_on(self.core)
        if running is None:
            return alone
        return running.view if write else running.view_or_alone

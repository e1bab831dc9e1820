"""Where a cluster lies: what a URL names, and what is found there before anything is opened."""

from __future__ import annotations

import enum
import errno
import os
import re
import sys
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from ringhold.env import Env
from ringhold.errors import InvalidInput
from ringhold.store.etcd import EtcdAddress, parse_etcd_url

# A freshly made file system has its own directory for lost files.
_FOUND_IN_EMPTY = "lost+found"
_STORE = "store"
_NODES = "nodes"

_SCHEME_OR_HOST = re.compile(
    r"(?:etcd|etcds|memory):|(?:[^/@]+@)?(?:\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}(?:[,/?]|\Z)"
)
"""How a URL begins whose scheme or whose slashes were left out."""


@dataclass(frozen=True, slots=True)
class Location:
    """Where a cluster lies.

    url: for people: without a password
    full_url: what names it in every process and working directory; with the password, if there
        is one
    directory: absolute, of an embedded cluster
    memory: the name of one in memory
    etcd: of one in etcd
    """

    url: str
    full_url: str = field(repr=False)
    directory: str | None = None
    memory: str = ""
    etcd: EtcdAddress | None = None

    @property
    def outlives_processes(self) -> bool:
        """Whether another process can open it."""
        return not self.memory

    def node_inside(self, name: str) -> str:
        """Where a node without a place of its own is kept, as its record says it. InvalidInput in
        etcd, which has none."""
        if self.etcd is not None:
            raise InvalidInput(
                f"node {name!r} needs a place: a cluster in etcd has no directory, so each node "
                "gets the address of its `ringhold node`, or an absolute path on this host"
            )
        return f"{self.url}/{name}" if self.directory is None else f"{_NODES}/{name}"

    def node_path(self, path: str | None) -> str | None:
        """The absolute path of a node's directory; a relative one starts at the cluster's."""
        if path is None or self.directory is None:
            return path
        return os.path.join(self.directory, path)


class Found(enum.Enum):
    """What stands where a cluster could be."""

    MISSING = "missing"
    EMPTY = "empty"
    CLUSTER = "cluster"
    FOREIGN = "foreign"


def parse_url(url: str | os.PathLike[str]) -> Location:
    """The place `url` names. TypeError, or InvalidInput for what this build cannot open, and for
    text that is a URL but for its scheme or its slashes."""
    if sys.platform != "linux":
        raise InvalidInput(
            f"clusters need Linux 5.10 or newer, for its file locks and boot clock; this is "
            f"{sys.platform}"
        )
    text = os.fspath(url)
    if not isinstance(text, str):
        raise TypeError(f"a cluster's URL must be str or a path, not {type(url).__name__}")
    if not text or "\0" in text:
        raise InvalidInput(f"{text!r} is neither a directory nor a cluster's URL")
    scheme, separator, rest = text.partition("://")
    if isinstance(url, os.PathLike):
        return _directory(text)
    if not separator:
        _check_no_url(text)
        return _directory(text)
    match scheme:
        case "file":
            return _directory(_file_path(text))
        case "memory":
            if not rest:
                raise InvalidInput("a memory cluster needs a name: memory://name")
            return Location(text, text, memory=rest)
        case "etcd" | "etcds":
            address = parse_etcd_url(text)
            return Location(
                address.full_url(password=False), address.full_url(password=True), etcd=address
            )
    # Not quoted whole: it may have a password.
    raise InvalidInput(
        f"unknown scheme {scheme!r} of a cluster's URL; use a directory, file://, memory://, "
        "etcd:// or etcds://"
    )


def _check_no_url(text: str) -> None:
    """InvalidInput for the name of a directory that nobody means."""
    if _SCHEME_OR_HOST.match(text):
        # Not quoted: it may have a password.
        raise InvalidInput(
            "what begins with etcd:, etcds:, memory: or HOST:PORT is not taken for a directory: a "
            "cluster in etcd is etcd://HOST:PORT/NAME, or etcds:// with TLS, one in memory is "
            "memory://NAME, and a directory that is called so is given as ./NAME"
        )


def _file_path(url: str) -> str:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise InvalidInput(f"{url!r} must name an absolute path of this host: file:///path")
    if parts.query or parts.fragment:
        raise InvalidInput(f"{url!r} must not have a query or fragment; write %3F and %23")
    return unquote(parts.path, errors="surrogateescape")


def _directory(path: str) -> Location:
    absolute = os.path.abspath(path)
    return Location(absolute, absolute, absolute)


async def look(env: Env, directory: str) -> Found:
    """What `directory` holds. NotADirectoryError when it is something else."""
    try:
        names = await env.disk.listdir(directory)
    except FileNotFoundError:
        return Found.MISSING
    if _STORE in names:
        return Found.CLUSTER
    return Found.FOREIGN if any(name != _FOUND_IN_EMPTY for name in names) else Found.EMPTY


async def make_directory(env: Env, directory: str) -> None:
    """Makes `directory` so that nobody ever sees it empty. FileExistsError if it is there.

    An empty directory means an unmounted disk to whoever opens it, so it appears by a rename,
    together with the folder that says that a cluster is being made there.
    """
    parent, name = os.path.split(directory)
    draft = os.path.join(parent, f".{name}.{env.random_bytes(6).hex()}")
    disk = env.disk
    try:
        await disk.mkdir(draft, mode=0o700)
    except OSError as error:
        # About the directory that was asked for, not about the draft of it.
        raise type(error)(
            error.errno, f"cannot make {directory}: {error.strerror}", parent
        ) from error
    await disk.mkdir(os.path.join(draft, _STORE), mode=0o700)
    try:
        await disk.rename(draft, directory, source_fd=None, target_fd=None)
    except OSError as error:
        await env.blocking(_remove_draft, draft)
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise FileExistsError(errno.EEXIST, "somebody else made it", directory) from error
        raise
    parent_fd = await disk.open(parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        await disk.fsync_dir(parent_fd)
    finally:
        await disk.close(parent_fd)


def _remove_draft(draft: str) -> None:
    os.rmdir(os.path.join(draft, _STORE))
    os.rmdir(draft)

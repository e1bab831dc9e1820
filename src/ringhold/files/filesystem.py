"""``cluster.fs``: the files of a cluster as an fsspec file system, protocol ``ringhold``.

Every public coroutine (``_info``, ``_cat_file``, …) may be awaited on any loop and hops to the
cluster's; the blocking names wait for the same coroutines. There is no cache of listings: what
a call returns was true at one revision during the call.

A file being written becomes visible at ``close()``, whole. Paths are as in `paths`; URLs are
``ringhold://<path>``, and the cluster they mean comes from ``storage_options={"cluster": URL}``
or ``$RINGHOLD_CLUSTER``, never from the path, and is never created. Which one that is, is settled
when the instance is made: it carries an absolute URL, and so do its pickles and its JSON.

Those contain the password of an etcd:// URL that has one, as all processes that they are sent to
need it. With ``?user=…&password_file=…`` each of them reads the file instead;
``to_json(include_password=False)`` makes what can be made again only then.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from datetime import UTC, datetime
from glob import has_magic
from typing import Any, ClassVar

from fsspec.callbacks import DEFAULT_CALLBACK  # type: ignore[import-untyped]
from fsspec.registry import register_implementation  # type: ignore[import-untyped]
from fsspec.utils import other_paths, stringify_path  # type: ignore[import-untyped]

from ringhold.core import checksum
from ringhold.errors import InvalidInput
from ringhold.files import transfer
from ringhold.files.binding import ClusterFileSystem, FilesOwner
from ringhold.files.fsck import FsckReport
from ringhold.files.gc import GcReport
from ringhold.files.locking import AsyncFileLock, FileLock
from ringhold.files.paths import file_error, join_path
from ringhold.files.readfile import AsyncReadFile, ReadFile
from ringhold.files.repair import RepairReport
from ringhold.files.scope import TransactionBlock
from ringhold.files.scrub import ScrubReport
from ringhold.files.survey import Progress, no_progress
from ringhold.files.tree import Status
from ringhold.files.writefile import AsyncWriteFile, CompressedFile, TextFile, WriteFile
from ringhold.store.paging import in_pieces
from ringhold.types import decode_name

TEXT_OPTIONS = ("encoding", "errors", "newline")


class RingholdFileSystem(ClusterFileSystem):
    """The files of one cluster.

    cluster: URL of an existing cluster; `$RINGHOLD_CLUSTER` if not given.
    auto_mkdir: whether writing, copying and moving create missing parents, in the same commit.
    home, view: given by an open cluster instead of its URL.

    >>> fs = RingholdFileSystem(cluster="data/")  # doctest: +SKIP
    >>> fs.pipe_file("/hello", b"world")  # doctest: +SKIP
    """

    blocking: ClassVar[tuple[str, ...]]

    # -- looking --------------------------------------------------------------------------

    @staticmethod
    def _details(status: Status) -> dict[str, Any]:
        inode = status.inode
        return {
            "name": join_path(status.parts),
            "size": inode.size,
            "type": "directory" if status.is_directory else "file",
            "mtime": status.modified_ns / 1e9,
            "created": inode.created_ns / 1e9,
            "mode": status.st_mode,
            "uid": inode.uid,
            "gid": inode.gid,
            "nlink": inode.links,
            "ino": status.ino,
        }

    async def _status(self, path: Any) -> Status:
        return await self.hop(self.core.stat(self._parts(path), self._view()))

    async def _status_if_any(self, path: Any) -> Status | None:
        try:
            return await self._status(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            # No file has a name that is too long.
            if error.errno != errno.ENAMETOOLONG:
                raise
            return None

    async def _info(self, path: Any, **_: Any) -> dict[str, Any]:
        return self._details(await self._status(path))

    async def _exists(self, path: Any, **_: Any) -> bool:
        return await self._status_if_any(path) is not None

    async def _isdir(self, path: Any) -> bool:
        status = await self._status_if_any(path)
        return status is not None and status.is_directory

    async def _isfile(self, path: Any) -> bool:
        status = await self._status_if_any(path)
        return status is not None and not status.is_directory

    async def _ls(self, path: Any, detail: bool = True, **_: Any) -> list[Any]:
        listing = self.core.list_directory(self._parts(path), self._view())
        found: list[dict[str, Any]] = []
        async for piece in in_pieces(await self.hop(listing)):
            found += [self._details(status) for status in piece]
        return found if detail else [info["name"] for info in found]

    async def _find(
        self,
        path: Any,
        maxdepth: int | None = None,
        withdirs: bool = False,
        detail: bool = False,
        **_: Any,
    ) -> Any:
        """Files below `path`, with `withdirs` also directories and `path` itself, at one
        revision."""
        if maxdepth is not None and maxdepth < 1:
            raise ValueError("maxdepth must be at least 1")
        try:
            statuses = await self.hop(self.core.find(self._parts(path), maxdepth, self._view()))
        except (FileNotFoundError, NotADirectoryError):
            statuses = []
        found: dict[str, dict[str, Any]] = {}
        async for piece in in_pieces(statuses):
            for status in piece:
                if withdirs or not status.is_directory:
                    info = self._details(status)
                    found[info["name"]] = info
        return dict(sorted(found.items())) if detail else sorted(found)

    async def _created(self, path: Any) -> datetime:
        return datetime.fromtimestamp((await self._status(path)).inode.created_ns / 1e9, UTC)

    async def _modified(self, path: Any) -> datetime:
        return datetime.fromtimestamp((await self._status(path)).modified_ns / 1e9, UTC)

    async def _ukey(self, path: Any) -> str:
        """Changes with every change of the file, and never without one."""
        status = await self._status(path)
        inode = status.inode
        version = (status.ino, status.modified_ns, inode.size, inode.data, inode.inline)
        return hashlib.sha256(repr(version).encode()).hexdigest()

    async def _checksum(self, path: Any) -> int:
        return checksum((await self._ukey(path)).encode())

    async def _locate(self, path: Any) -> list[dict[str, Any]]:
        """The chunks of a file in order: offset, length, chunk, and the nodes it belongs on."""
        source = self._source(write=False)
        return await self.hop(transfer.locate(self.core, self._parts(path), source))

    # -- reading --------------------------------------------------------------------------

    async def _cat_file(
        self, path: Any, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes:
        """The bytes [start, end) of a file; negative ones count from its end."""
        parts, source = self._parts(path), self._source(write=False)
        return await self.hop(transfer.cat(self.core, parts, source, start, end))

    async def _get_file(
        self,
        rpath: Any,
        lpath: Any,
        callback: Any = DEFAULT_CALLBACK,
        outfile: Any = None,
        **_: Any,
    ) -> None:
        """Copies a file to the local path or file object `lpath`; of a directory, makes one.

        A regular file at `lpath` is replaced at the end, whole, or stays as it was."""
        target = outfile if outfile is not None else lpath
        source = self._source(write=False)
        parts = self._parts(rpath)
        await self.hop(transfer.download(self.core, parts, source, target, callback))

    # -- writing --------------------------------------------------------------------------

    async def _pipe_file(self, path: Any, value: Any, mode: str = "overwrite", **_: Any) -> None:
        """Makes `path` a file with the contents `value`; mode "create": FileExistsError if it
        exists."""
        exclusive = self._exclusive(mode)
        writing = self.core.write(
            self._parts(path),
            value,
            self._view(),
            exclusive=exclusive,
            make_parents=self.auto_mkdir,
        )
        await self.hop(writing)

    @staticmethod
    def _exclusive(mode: str) -> bool:
        if mode not in ("create", "overwrite"):
            raise InvalidInput(f'mode must be "create" or "overwrite", not {mode!r}')
        return mode == "create"

    async def _put_file(
        self,
        lpath: Any,
        rpath: Any,
        mode: str = "overwrite",
        callback: Any = DEFAULT_CALLBACK,
        **_: Any,
    ) -> None:
        """Copies the local file `lpath`; of a directory, makes one."""
        source, exclusive = self._source(write=True), self._exclusive(mode)
        uploading = transfer.upload(
            self.core,
            os.fspath(lpath),
            self._parts(rpath),
            source,
            callback,
            exclusive=exclusive,
            make_parents=self.auto_mkdir,
        )
        await self.hop(uploading)

    async def _cp_file(self, path1: Any, path2: Any, mode: str = "overwrite", **_: Any) -> None:
        """Copies a file without moving its data; of a directory, makes one."""
        copying = transfer.copy(
            self.core,
            self._parts(path1),
            self._parts(path2),
            self._view(),
            exclusive=self._exclusive(mode),
            make_parents=self.auto_mkdir,
        )
        await self.hop(copying)

    async def _touch(self, path: Any, truncate: bool = True, **_: Any) -> None:
        """Creates an empty file; an existing one is emptied, or with ``truncate=False`` only
        given a new time of modification."""
        parts, view = self._parts(path), self._view()
        await self.hop(self.core.touch(parts, truncate, view, make_parents=self.auto_mkdir))

    # -- names ----------------------------------------------------------------------------

    async def _mkdir(self, path: Any, create_parents: bool = True, **_: Any) -> None:
        making = self.core.make_directory(
            self._parts(path), make_parents=create_parents, view=self._view()
        )
        await self.hop(making)

    async def _makedirs(self, path: Any, exist_ok: bool = False) -> None:
        making = self.core.make_directory(self._parts(path), exist_ok=exist_ok, view=self._view())
        await self.hop(making)

    async def _rmdir(self, path: Any) -> None:
        await self.hop(self.core.remove_directory(self._parts(path), self._view()))

    async def _rm_file(self, path: Any, **_: Any) -> None:
        await self.hop(self.core.unlink([self._parts(path)], self._view()))

    async def _rm(
        self,
        path: Any,
        recursive: bool = False,
        batch_size: int | None = None,
        maxdepth: int | None = None,
        **_: Any,
    ) -> None:
        """Removes files, with `recursive` also directories and all below them.

        In one commit, however much lies below; of more paths than the store takes in one (some
        30 on etcd) in several, unless in a transaction, which refuses them."""
        if recursive and maxdepth is not None:
            found = await self._expand_path(path, recursive=True, maxdepth=maxdepth)
            removing = self.core.remove_each([self._parts(p) for p in found], self._view())
        elif recursive:
            found = await self._expand_path(path)
            removing = self.core.remove_trees([self._parts(p) for p in found], self._view())
        else:
            found = await self._expand_path(path)
            removing = self.core.unlink([self._parts(p) for p in found], self._view())
        await self.hop(removing)

    async def _mv(
        self,
        path1: Any,
        path2: Any,
        recursive: bool = False,
        maxdepth: int | None = None,
        **_: Any,
    ) -> None:
        """Moves files and directories, each as POSIX `rename` does; in commits as `rm`.

        A file replaces a file, a directory an empty directory. With a slash at its end, or when
        several paths are moved, `path2` is the directory they are moved into.
        """
        if isinstance(path1, list) and isinstance(path2, list):
            sources, targets = path1, path2
        elif isinstance(path1, list) or has_magic(stringify_path(path1)):
            sources = await self._expand_path(path1)
            targets = other_paths(sources, self._strip_protocol(path2), flatten=True)
        else:
            sources, target = [path1], stringify_path(path2)
            if target.endswith("/") and self._parts(path1):
                name = decode_name(self._parts(path1)[-1])
                target = f"{target}{name}"
            targets = [target]
        if len(sources) != len(targets):
            raise InvalidInput(f"{len(sources)} paths cannot be moved to {len(targets)}")
        pairs = [
            (self._parts(source), self._parts(target))
            for source, target in zip(sources, targets, strict=True)
        ]
        await self.hop(self.core.rename(pairs, make_parents=self.auto_mkdir, view=self._view()))

    async def _mv_file(self, path1: Any, path2: Any, **_: Any) -> None:
        pairs = [(self._parts(path1), self._parts(path2))]
        await self.hop(self.core.rename(pairs, make_parents=self.auto_mkdir, view=self._view()))

    # -- open files -----------------------------------------------------------------------

    def open(
        self,
        path: Any,
        mode: str = "rb",
        block_size: int | None = None,
        cache_options: dict[str, Any] | None = None,
        compression: str | None = None,
        **options: Any,
    ) -> Any:
        """A file object. Modes rb, wb, xb and their text forms; see `writefile` for its promises.

        Append is not offered, nor is writing within a file: files are replaced whole.
        """
        if "b" not in mode:
            text = {name: options.pop(name) for name in TEXT_OPTIONS if name in options}
            binary = mode.replace("t", "") + "b"
            file = self.open(path, binary, block_size, compression=compression, **options)
            return TextFile(file, **text)
        file = self._open(path, mode, block_size, **options)
        if compression is None:
            return file
        from fsspec.compression import compr  # type: ignore[import-untyped]
        from fsspec.core import get_compression  # type: ignore[import-untyped]

        compress = compr[get_compression(self._strip_protocol(path), compression)]
        if compress is None:
            return file
        compressor = compress(file, mode=mode[0] if mode != "xb" else "w")
        return compressor if mode == "rb" else CompressedFile(compressor, file)

    def _open(self, path: Any, mode: str = "rb", block_size: int | None = None, **_: Any) -> Any:
        self._check_mode(mode)
        parts = self._parts(path)
        if mode == "rb":
            reader = self.run(self.core.open_reader(parts, self._source(write=False)))
            return ReadFile(self, reader, self._bridge, self.core.cluster.chunk_bytes)
        writer = self.run(self.core.open_writer(parts, **self._writing(mode)))
        return WriteFile(self, writer, self._bridge, mode)

    def _writing(self, mode: str) -> dict[str, Any]:
        return {
            "source": self._source(write=True),
            "exclusive": mode == "xb",
            "make_parents": self.auto_mkdir,
        }

    @staticmethod
    def _check_mode(mode: str) -> None:
        if mode in ("ab", "a"):
            raise NotImplementedError(f"mode {mode!r}: appending to a file is not supported")
        if mode not in ("rb", "wb", "xb"):
            raise InvalidInput(f"mode {mode!r}: files are opened to be read or replaced whole")

    async def open_async(self, path: Any, mode: str = "rb", **options: Any) -> Any:
        """A file object whose methods are coroutines."""
        if "b" not in mode or options.get("compression"):
            raise InvalidInput("open_async reads and writes bytes as they are")
        self._check_mode(mode)
        parts = self._parts(path)
        if mode == "rb":
            reader = await self.hop(self.core.open_reader(parts, self._source(write=False)))
            return AsyncReadFile(reader, self._bridge, self.core.cluster.chunk_bytes)
        writer = await self.hop(self.core.open_writer(parts, **self._writing(mode)))
        return AsyncWriteFile(writer, self._bridge)

    # -- upkeep ---------------------------------------------------------------------------

    async def _gc(self, grace_s: float = 3600.0, progress: Progress = no_progress) -> GcReport:
        """Frees the chunks of files deleted or replaced more than `grace_s` seconds ago, and
        chunks that writers left which died."""
        return await self.hop(self.core.gc(grace_s, progress))

    async def _repair(self, progress: Progress = no_progress) -> RepairReport:
        """Brings every chunk back to all its copies, those with fewest copies first."""
        return await self.hop(self.core.repair(progress))

    async def _scrub(self, progress: Progress = no_progress) -> ScrubReport:
        """Reads every copy of every chunk where it lies, and replaces the bad ones."""
        return await self.hop(self.core.scrub(progress))

    async def _fsck(self, copies: bool = False, progress: Progress = no_progress) -> FsckReport:
        """Checks that the records of all files fit together, with `copies` also every byte of
        every copy of every chunk; changes nothing."""
        return await self.hop(self.core.fsck(copies, progress))

    # -- locks and transactions -----------------------------------------------------------

    def lock(
        self,
        path: Any,
        shared: bool = False,
        start: int = 0,
        length: int | None = None,
        *,
        timeout: float = -1,
    ) -> Any:
        """An exclusive lock on a whole file, as `cluster.lock` gives; it follows the file when
        that is moved. While this process holds it, every change of the file's contents or name
        compares that it still does: a writer that lost its lock is refused (LockLost).

        FileNotFoundError when it is acquired and there is no such file.
        """
        if shared:
            raise InvalidInput("file locks are exclusive: shared=True is not supported")
        if start != 0 or length is not None:
            raise InvalidInput("file locks cover the whole file: ranges are not supported")
        parts = self._parts(path)

        async def number() -> int:
            status = await self.core.stat(parts, self._view())
            if status.is_directory:
                raise file_error(errno.EISDIR, parts)
            return status.ino

        def lock(cluster: FilesOwner) -> AsyncFileLock:
            return AsyncFileLock(cluster.file_core.locks, join_path(parts), number, timeout)

        if self.asynchronous:
            return lock(self.home.cluster())
        return FileLock(self.home, lock)

    @property
    def transaction(self) -> TransactionBlock:
        """``with fs.transaction:`` makes every change in the block visible at one revision."""
        return TransactionBlock(self)

    def start_transaction(self) -> TransactionBlock:
        """Begins a transaction that lasts until `end_transaction` in this thread or task."""
        block = TransactionBlock(self)
        block.start()
        return block

    def end_transaction(self) -> None:
        """Commits the transaction of this thread or task."""
        TransactionBlock(self).complete()


def _blocking(name: str) -> Callable[..., Any]:
    coroutine = getattr(RingholdFileSystem, name)

    def method(self: RingholdFileSystem, *args: Any, **options: Any) -> Any:
        return self.run(coroutine(self, *args, **options))

    method.__name__ = name.removeprefix("_")
    method.__qualname__ = f"RingholdFileSystem.{method.__name__}"
    method.__doc__ = coroutine.__doc__
    return method


RingholdFileSystem.blocking = (
    "_cat", "_cat_file", "_cat_ranges", "_checksum", "_copy", "_cp_file", "_created", "_du",
    "_exists", "_expand_path", "_find", "_get", "_get_file", "_glob", "_info", "_isdir",
    "_isfile", "_locate", "_ls", "_makedirs", "_mkdir", "_modified", "_mv", "_pipe",
    "_pipe_file", "_put", "_put_file", "_rm", "_rm_file", "_rmdir", "_size", "_sizes",
    "_touch", "_ukey", "_gc", "_repair", "_scrub", "_fsck",
)  # fmt: skip
for _name in RingholdFileSystem.blocking:
    setattr(RingholdFileSystem, _name.removeprefix("_"), _blocking(_name))

# The entry point does the same for whoever has not imported this module yet.
register_implementation(RingholdFileSystem.protocol, RingholdFileSystem, clobber=True)

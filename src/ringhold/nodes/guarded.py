"""The opened directory of a node, and what becomes of it when its disk fails.

Guaranteed: work is done in the directory that was adopted and in no other, and after a failed
fsync nothing is done there that could be acknowledged, in whatever process, until everything was
verified: the failure is noted before anything else happens, and told to others by a file.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from ringhold.env import Disk, Env, FileStat, finish, is_read_only_error
from ringhold.errors import Closed, Corrupt, NodeDown
from ringhold.nodes import identity as identity_file
from ringhold.nodes.base import Identity
from ringhold.nodes.mount import FAILED, DiskFailure, Mount, NotTheNode, open_mount
from ringhold.store.lock_files import refuse_shared_file_system

logger = logging.getLogger("ringhold")


class GuardedDirectory:
    """What `DirectoryNode` works in: `_mounted` opens it, `_sync` and `_step` watch the disk."""

    def __init__(
        self,
        path: str,
        name: str,
        env: Env,
        *,
        expected: Identity | None = None,
        unnamed_files: bool = True,
    ):
        self.path = os.path.abspath(path)
        self._name = name
        self._env = env
        self._disk = env.disk
        self._expected = expected
        self._unnamed_files = unnamed_files
        self._mount: Mount | None = None
        self._opening = asyncio.Lock()
        self._users = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False
        self._failure: str | None = None
        self._failures = 0
        self._writing = 0
        self._unmarked = False

    @property
    def name(self) -> str:
        return self._name

    def _down(self, reason: str) -> NodeDown:
        return NodeDown(f"node {self.name} at {self.path}: {reason}", node=self.name)

    # Opening, and what a failing disk means

    @asynccontextmanager
    async def _using(self) -> AsyncIterator[None]:
        if self._closed:
            raise Closed(f"node {self.name} at {self.path} was closed")
        self._users += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._idle.set()

    @asynccontextmanager
    async def _mounted(self) -> AsyncIterator[Mount]:
        """The opened directory. What is found out about it inside is acted upon: a failed sync
        marks it failed, a directory that is not the node's any more is opened anew next time."""
        async with self._using():
            mount = await self._current()
            mount.users += 1
            try:
                yield mount
            except NotTheNode as error:
                self._retire(mount)
                raise self._down(str(error)) from error
            except DiskFailure as failure:
                raise self._down(f"failed: {failure}") from failure.error
            except OSError as error:
                if is_read_only_error(error):
                    raise self._down(f"cannot be written to: {error}") from error
                raise
            finally:
                await finish(asyncio.ensure_future(self._leave(mount)))

    async def _leave(self, mount: Mount) -> None:
        if self._unmarked:
            self._retire(mount)
            await self._mark_failed(mount)
        mount.users -= 1
        if mount.retired and not mount.users:
            await mount.close()

    async def _current(self) -> Mount:
        if self._mount is None:
            async with self._opening:
                if self._mount is None:
                    self._mount = await self._open()
                return self._mount
        return self._mount

    async def _open(self) -> Mount:
        try:
            refuse_shared_file_system(self.path)
            mount = await open_mount(self._env, self.path)
        except (OSError, Corrupt) as error:
            raise self._down(f"cannot be opened: {error}") from error
        reason = None
        if mount.identity is None:
            reason = "no cluster has adopted this directory, or it was wiped"
        elif self._expected is not None and mount.identity != self._expected:
            reason = f"is {mount.identity}, not {self._expected}"
        if reason is not None:
            await mount.close()
            raise self._down(reason)
        mount.unnamed_files = self._unnamed_files
        return mount

    def _retire(self, mount: Mount) -> None:
        """The next operation opens the directory anew; the last user of `mount` closes it."""
        mount.retired = True
        if self._mount is mount:
            self._mount = None

    async def _check_identity(self, disk: Disk, mount: Mount) -> None:
        """NotTheNode unless the path still leads to the directory that was opened."""
        path = os.path.join(self.path, identity_file.FILE_NAME)
        try:
            found: FileStat | None = await disk.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            found = None
        known = mount.identity_stat
        if found is None or known is None:
            raise NotTheNode("its identity file is gone: unmounted, or wiped")
        if (found.device, found.inode) != (known.device, known.inode):
            raise NotTheNode("its identity file is another one: replaced while in use")

    async def _check_writable(self, disk: Disk, mount: Mount) -> None:
        await self._check_identity(disk, mount)
        if self._failure is None:
            try:
                await disk.stat(FAILED, dir_fd=mount.root_fd)
            except FileNotFoundError:
                return
        raise self._down(
            f"failed before ({self._failure or f'the file {FAILED} there says how'}): nothing is "
            "acknowledged until everything was verified"
        )

    async def _sync(self, what: str, operation: Coroutine[Any, Any, None]) -> None:
        """Runs an fsync. Whatever it fails with puts earlier writes in doubt: DiskFailure."""
        try:
            await operation
        except OSError as error:
            raise self._note(what, error) from error
        except asyncio.CancelledError as cancelled:
            if isinstance(cancelled.__cause__, OSError):
                self._note(what, cancelled.__cause__)
            raise

    async def _step(self, what: str, operation: Coroutine[Any, Any, None]) -> None:
        """Runs a change other than an fsync: EIO is a DiskFailure, a full disk is not."""
        try:
            await operation
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            raise self._note(what, error) from error
        except asyncio.CancelledError as cancelled:
            cause = cancelled.__cause__
            if isinstance(cause, OSError) and cause.errno == errno.EIO:
                self._note(what, cause)
            raise

    def _note(self, what: str, error: OSError) -> DiskFailure:
        """From here on nothing is acknowledged, whichever exception arrives where it matters."""
        failure = DiskFailure(what, error)
        self._failures += 1
        self._failure = str(failure)
        self._unmarked = True
        return failure

    async def _mark_failed(self, mount: Mount) -> None:
        self._unmarked = False
        reason = str(self._failure)
        logger.error("node %s at %s failed: %s", self.name, self.path, reason)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK
            fd = await self._disk.open(FAILED, flags, dir_fd=mount.root_fd)
            try:
                await self._disk.pwrite(fd, [reason.encode("utf-8", "replace") + b"\n"], 0)
                await self._disk.fdatasync(fd)
                await self._disk.fsync_dir(mount.root_fd)
            finally:
                await self._disk.close(fd)
        except OSError as error:
            # Other processes cannot be told; this one remembers.
            logger.error("node %s at %s cannot be marked failed: %s", self.name, self.path, error)
            return
        if not self._unmarked:
            # From here on the file decides, which another process may remove after verifying.
            self._failure = None

    async def close(self) -> None:
        """Waits for operations under way. Later ones raise Closed."""
        self._closed = True
        await self._idle.wait()
        mount, self._mount = self._mount, None
        if mount is not None:
            await mount.close()

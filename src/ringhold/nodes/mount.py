"""An opened node directory: its descriptors, and directory fsyncs that puts share.

    identity                    see `ringhold.nodes.identity`
    data/<2 hex>/<run>.<nn>     chunk files; <2 hex> is the top 8 bits of the run's partition
    tmp/<owner>-<random>        files without a final name, where there are no unnamed files
    quarantine/<name>.<random>  damaged chunk files, and what was in their place, for people
    failed                      there was a failed fsync; nothing is acknowledged until verified
    lock                        held by the daemon that serves the directory

All descriptors were opened below one root descriptor, so that a disk unmounted later is still
what they lead to, and its mount point is never written to.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ringhold.env import Disk, Env, FileStat, finish, is_read_only_error, process_id
from ringhold.errors import Corrupt
from ringhold.nodes import identity as identity_file
from ringhold.nodes.base import (
    CHUNKS_PER_RUN,
    PARTITION_BITS,
    RUN_BYTES,
    ChunkId,
    Identity,
    partition_of,
)

logger = logging.getLogger("ringhold")

DATA = "data"
TMP = "tmp"
QUARANTINE = "quarantine"
FAILED = "failed"
LOCK = "lock"
SUBDIRECTORIES = 256
IDLE_DIRECTORIES_MAX = 64
OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
# Whatever lies in the place of a file, opening it must neither wait nor lead elsewhere.
OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK


class DiskFailure(Exception):
    """The disk did not do `what`: writes acknowledged before may be lost too."""

    def __init__(self, what: str, error: OSError):
        super().__init__(f"{what}: {error}")
        self.error = error


class NotTheNode(Exception):
    """The path does not lead to the directory that was opened any more."""


def subdirectory_of(partition: int) -> int:
    return partition >> (PARTITION_BITS - 8)


def subdirectory_name(index: int) -> str:
    return f"{DATA}/{index:02x}"


def chunk_path(chunk: ChunkId) -> str:
    """Where a chunk lies, relative to the node directory."""
    return f"{subdirectory_name(subdirectory_of(partition_of(chunk.run)))}/{chunk}"


def parse_chunk_name(name: str) -> ChunkId | None:
    """The chunk whose file is called `name`; None for names that no chunk file has."""
    run, dot, number = name.partition(".")
    if len(run) != 2 * RUN_BYTES or not dot or len(number) != 2 or not number.isdecimal():
        return None
    try:
        chunk = ChunkId(bytes.fromhex(run), int(number))
    except ValueError:
        return None
    return chunk if str(chunk) == name and chunk.number < CHUNKS_PER_RUN else None


class Directory:
    """One subdirectory; `sync` makes the names in it durable, for many callers at once."""

    def __init__(self, disk: Disk, fd: int):
        self.fd = fd
        self.users = 0
        self._disk = disk
        self._started = 0
        self._finished = 0
        self._running: asyncio.Future[None] | None = None
        self._error: OSError | None = None

    async def sync(self) -> None:
        """Returns after an fsync that started after this call. OSError when one failed: the
        kernel tells of a failure once, so every later call fails too."""
        ticket = self._started + 1
        while self._finished < ticket:
            if self._error is not None:
                raise OSError(self._error.errno, self._error.strerror) from self._error
            if self._running is not None:
                await asyncio.shield(self._running)
            else:
                await self._sync_once()

    async def _sync_once(self) -> None:
        self._started += 1
        number = self._started
        running = self._running = asyncio.get_running_loop().create_future()
        try:
            await self._disk.fsync_dir(self.fd)
            self._finished = number
        except OSError as error:
            self._error = error
        except asyncio.CancelledError as cancelled:
            if isinstance(cancelled.__cause__, OSError):
                self._error = cancelled.__cause__
            raise
        finally:
            self._running = None
            running.set_result(None)


class Mount:
    """The descriptors of one node directory as it was when opened. See `open_mount`."""

    def __init__(self, env: Env, path: str, root_fd: int):
        self.path = path
        self.root_fd = root_fd
        self.tmp_fd = -1
        self.quarantine_fd = -1
        self.identity: Identity | None = None
        self.identity_stat: FileStat | None = None
        self.unnamed_files = True
        self.owner = ""
        self.users = 0
        self.retired = False
        self._env = env
        self._disk = env.disk
        self._directories: OrderedDict[int, Directory] = OrderedDict()

    @asynccontextmanager
    async def directory(self, index: int) -> AsyncIterator[Directory]:
        """The subdirectory `index`, kept open while used and, with some others, afterwards."""
        while (entry := self._directories.get(index)) is None:
            fd = await self._disk.open(
                subdirectory_name(index), OPEN_DIRECTORY, dir_fd=self.root_fd
            )
            if index in self._directories:
                await self._disk.close(fd)
            else:
                self._directories[index] = Directory(self._disk, fd)
        self._directories.move_to_end(index)
        entry.users += 1
        try:
            yield entry
        finally:
            entry.users -= 1
            await self._close_idle()

    async def _close_idle(self) -> None:
        while len(self._directories) > IDLE_DIRECTORIES_MAX:
            index = next((i for i, entry in self._directories.items() if not entry.users), None)
            if index is None:
                return
            await self._disk.close(self._directories.pop(index).fd)

    async def temporary_name(self, disk: Disk) -> str:
        """A new name for tmp/ that tells who owns it, see `remove_leftovers`."""
        if not self.owner:
            self.owner = await _owner(disk)
        return f"{self.owner}-{self._env.random_bytes(8).hex()}"

    async def remove_leftovers(self, disk: Disk) -> None:
        """Removes files of dead processes from tmp/: of those of an earlier boot, and of those
        of our pid namespace that no longer run. Whoever else's they are, they stay.

        A file removed by mistake (pids hidden from us) has no final name yet: its put fails.
        """
        names = await disk.listdir(self.tmp_fd)
        if not names:
            return
        boot, namespace, _ = (await _owner(disk)).split("-")
        for name in names:
            parts = name.split("-")
            if len(parts) != 4 or not parts[2].isdecimal():
                continue
            if parts[0] == boot and (
                parts[1] != namespace or await _exists(disk, f"/proc/{int(parts[2])}")
            ):
                continue
            try:
                await disk.unlink(name, dir_fd=self.tmp_fd)
            except FileNotFoundError:
                continue

    async def close(self) -> None:
        """Closes all descriptors; the caller sees to it that nobody uses them."""
        await finish(asyncio.ensure_future(self._disk.together(self.close_on)))

    async def close_on(self, disk: Disk) -> None:
        fds = [entry.fd for entry in self._directories.values()]
        fds += [fd for fd in (self.tmp_fd, self.quarantine_fd, self.root_fd) if fd >= 0]
        self._directories.clear()
        self.tmp_fd = self.quarantine_fd = self.root_fd = -1
        for position, fd in enumerate(fds):
            try:
                await disk.close(fd)
            except OSError as error:
                # Nothing was written through a directory's descriptor.
                logger.warning("%s: closing %d of %d: %s", self.path, position, len(fds), error)


async def _exists(disk: Disk, path: str) -> bool:
    try:
        await disk.stat(path)
    except FileNotFoundError:
        return False
    return True


async def _owner(disk: Disk) -> str:
    """<boot>-<pid namespace>-<pid> of this process."""
    fd = await disk.open("/proc/sys/kernel/random/boot_id", os.O_RDONLY)
    try:
        boot = (await disk.pread(fd, 36, 0)).decode().replace("-", "")
    finally:
        await disk.close(fd)
    namespace = await disk.stat("/proc/self/ns/pid")
    return f"{boot}-{namespace.inode:x}-{process_id()}"


async def read_identity(disk: Disk, root_fd: int, path: str) -> tuple[Identity, FileStat] | None:
    """The identity file below `root_fd`, and which file it is; None when there is none."""
    try:
        fd = await disk.open(identity_file.FILE_NAME, OPEN_FILE, dir_fd=root_fd)
    except FileNotFoundError:
        return None
    try:
        found = await disk.fstat(fd)
        if not found.is_regular:
            raise Corrupt(f"{path}/{identity_file.FILE_NAME} is no regular file", what=path)
        content = await disk.pread(fd, identity_file.FILE_BYTES_MAX, 0)
    finally:
        await disk.close(fd)
    return identity_file.decode(content, f"{path}/{identity_file.FILE_NAME}"), found


async def open_mount(env: Env, path: str) -> Mount:
    """Opens the node directory `path`, adopted or not, and cleans its tmp/. OSError, or Corrupt
    for its identity."""

    async def steps(disk: Disk) -> Mount:
        mount = Mount(env, path, await disk.open(path, OPEN_DIRECTORY))
        try:
            await _complete(disk, mount)
        except BaseException:
            await mount.close_on(disk)
            raise
        return mount

    opening = asyncio.ensure_future(env.disk.together(steps))
    try:
        return await finish(opening)
    except asyncio.CancelledError:
        if not opening.cancelled() and opening.exception() is None:
            await opening.result().close()
        raise


async def _complete(disk: Disk, mount: Mount) -> None:
    found = await read_identity(disk, mount.root_fd, mount.path)
    if found is None:
        return
    mount.identity, mount.identity_stat = found
    mount.tmp_fd = await disk.open(TMP, OPEN_DIRECTORY, dir_fd=mount.root_fd)
    mount.quarantine_fd = await disk.open(QUARANTINE, OPEN_DIRECTORY, dir_fd=mount.root_fd)
    try:
        await mount.remove_leftovers(disk)
    except OSError as error:
        # What cannot be written to can still be read.
        if not is_read_only_error(error):
            raise

"""A storage node that is a plain directory of this host, shared by any number of processes.

Guaranteed: when `put` returns, data and name survive a power cut. A chunk becomes visible only
with all its data durable. After a failed fsync nobody, in whatever process, gets anything
acknowledged here until `verify_all` has read everything back from the disk: the kernel reports
such a failure once and forgets the data. Only the directory that was adopted is written to.
A cancelled `put` leaves either nothing visible or the whole chunk, durable. What lies in a chunk's
place and is no regular file is a damaged chunk: it is not waited for, not followed, and put aside.

Not guaranteed: that what was acknowledged stays readable. Disks rot; `get` hands out what it
finds, together with the means to judge it.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from ringhold.env import Buffer, Disk, finish
from ringhold.errors import Corrupt, InvalidInput
from ringhold.nodes import chunk_file
from ringhold.nodes.adoption import adopt_directory
from ringhold.nodes.base import (
    BLOCK_BYTES,
    CHUNK_BYTES_MAX,
    PARTITIONS,
    ChunkId,
    ChunkPart,
    ChunkState,
    Identity,
    partition_of,
)
from ringhold.nodes.chunk_file import HEADER_BYTES
from ringhold.nodes.guarded import GuardedDirectory
from ringhold.nodes.mount import (
    FAILED,
    OPEN_DIRECTORY,
    OPEN_FILE,
    SUBDIRECTORIES,
    Directory,
    Mount,
    chunk_path,
    parse_chunk_name,
    read_identity,
    subdirectory_name,
    subdirectory_of,
)
from ringhold.nodes.new_file import NewFile
from ringhold.nodes.reserve import check_space

logger = logging.getLogger("ringhold")

# Below this size hashing takes less time than handing it to a thread.
HASH_IN_THREAD_BYTES = 256 << 10
# Errors that mean that this file, not the whole node, cannot be read: a bad sector, or
# something other than a file in its place.
_UNREADABLE = (
    errno.EIO,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENXIO,
    errno.ENODEV,
    errno.EUCLEAN,
    errno.EBADMSG,
)


class DirectoryNode(GuardedDirectory):
    """The node directory `path`; see `ringhold.nodes.base.Node` for the methods.

    With `expected` the directory must carry this identity. `unnamed_files=False` writes through
    tmp/ even where the file system has unnamed files.
    """

    # Identity

    async def identity(self) -> Identity | None:
        async def steps(disk: Disk) -> Identity | None:
            root = await disk.open(self.path, OPEN_DIRECTORY)
            try:
                found = await read_identity(disk, root, self.path)
            finally:
                await disk.close(root)
            return None if found is None else found[0]

        async with self._using():
            try:
                return await self._disk.together(steps)
            except (OSError, Corrupt) as error:
                raise self._down(f"cannot be opened: {error}") from error

    async def adopt(self, identity: Identity) -> None:
        if self._expected is not None and identity != self._expected:
            raise InvalidInput(
                f"node {self.name} at {self.path} was opened as {self._expected} and cannot "
                f"become {identity}"
            )
        async with self._using():
            await adopt_directory(self._env, self.path, identity, unnamed_files=self._unnamed_files)

    # Putting chunks

    async def put(self, chunk: ChunkId, data: Buffer, digest: bytes) -> None:
        if memoryview(data).nbytes < HASH_IN_THREAD_BYTES:
            view, header = _prepare_put(chunk, data, digest)
        else:
            view, header = await self._env.blocking(_prepare_put, chunk, data, digest)
        async with self._mounted() as mount:
            failures = self._failures
            async with mount.directory(subdirectory_of(partition_of(chunk.run))) as directory:
                new = NewFile(mount)

                async def write(disk: Disk) -> None:
                    await self._check_writable(disk, mount)
                    await check_space(disk, directory.fd, self._writing, self.name)
                    await new.open(disk, directory.fd)
                    await self._step(f"write of {chunk}", disk.pwrite(new.fd, [header, view], 0))
                    await self._sync(f"fdatasync of {chunk}", disk.fdatasync(new.fd))

                try:
                    await self._write(write, len(header) + len(view))
                    # From the link on there is no way back: only a durable name may stay.
                    publish = self._publish(mount, directory, new, chunk, digest)
                    await finish(asyncio.ensure_future(publish))
                finally:
                    if new.is_open:
                        await finish(asyncio.ensure_future(self._discard(new)))
            if self._failures != failures:
                raise self._down("failed while the chunk was written")

    async def _write(self, steps: Callable[[Disk], Coroutine[Any, Any, None]], size: int) -> None:
        # Who writes at the same time counts in full: the disk may not know of their bytes yet.
        self._writing += size
        try:
            await self._disk.together(steps)
        finally:
            self._writing -= size

    async def _discard(self, new: NewFile) -> None:
        try:
            await self._disk.together(new.discard)
        except OSError as error:
            # What is in it was either synced under its final name or given up.
            logger.warning("node %s: a temporary file stays: %s", self.name, error)

    async def _publish(
        self, mount: Mount, directory: Directory, new: NewFile, chunk: ChunkId, digest: bytes
    ) -> None:
        async def link(disk: Disk) -> bool:
            try:
                await self._step(
                    f"link of {chunk}", new.link(disk, str(chunk), dir_fd=directory.fd)
                )
            except FileExistsError:
                return await self._is_good(disk, mount, chunk, digest)
            await new.discard(disk)
            return True

        async def replace(disk: Disk) -> None:
            await self._quarantine(disk, mount, directory, chunk)
            what = f"replacement of {chunk}"
            await self._step(what, new.replace(disk, str(chunk), dir_fd=directory.fd))

        if not await self._disk.together(link):
            await self._disk.together(replace)
        # Also for a file that was there: its put may have died before this.
        await self._sync(f"fsync of the directory of {chunk}", directory.sync())

    async def _quarantine(
        self, disk: Disk, mount: Mount, directory: Directory, chunk: ChunkId
    ) -> None:
        """Gives the damaged file a second name in quarantine/.

        Its first name goes to the new file at once, by one rename: with two renames a crash in
        between, or somebody else's repair at the same time, could take away a good copy. What is
        no regular file is no copy, and need not have a second name: it is moved.
        """
        name, kept = str(chunk), f"{chunk}.{self._env.random_bytes(4).hex()}"
        try:
            is_file = (await disk.lstat(name, dir_fd=directory.fd)).is_regular
            take = disk.link if is_file else disk.rename
            taking = take(name, kept, source_fd=directory.fd, target_fd=mount.quarantine_fd)
            await self._step(f"quarantine of {chunk}", taking)
        except FileNotFoundError:
            return  # deleted meanwhile
        await self._sync(f"fsync of quarantine/ for {chunk}", disk.fsync_dir(mount.quarantine_fd))
        what = "a damaged chunk file was" if is_file else "what was no chunk file is"
        logger.warning("node %s: chunk %s: %s kept as %s", self.name, chunk, what, kept)

    async def _is_good(
        self, disk: Disk, mount: Mount, chunk: ChunkId, digest: bytes | None
    ) -> bool:
        """Whether the file of `chunk` is whole, on the disk itself, and has this `digest`.

        FileNotFoundError when there is none.
        """
        try:
            fd = await _open_chunk(disk, mount, chunk)
            try:
                await self._sync(f"fdatasync of {chunk}", disk.fdatasync(fd))
                # What the page cache holds says nothing about the disk.
                await disk.drop_cached(fd)
                content = await disk.pread(fd, HEADER_BYTES + CHUNK_BYTES_MAX + 1, 0)
            finally:
                await disk.close(fd)
            chunk_file.verify_whole(content, chunk, digest)
        except Corrupt as error:
            logger.warning("node %s: %s", self.name, error)
            return False
        except OSError as error:
            if error.errno not in _UNREADABLE:
                raise
            logger.warning("node %s: chunk file %s cannot be read: %s", self.name, chunk, error)
            return False
        return True

    # Reading chunks

    async def get(self, chunk: ChunkId, offset: int = 0, length: int | None = None) -> ChunkPart:
        chunk_file.check_chunk_id(chunk)

        async def read(disk: Disk) -> ChunkPart:
            try:
                fd = await _open_chunk(disk, mount, chunk)
            except FileNotFoundError:
                await self._check_identity(disk, mount)
                raise
            try:
                return await _read_part(disk, fd, chunk, offset, length)
            finally:
                await disk.close(fd)

        async with self._mounted() as mount:
            try:
                return await self._disk.together(read)
            except FileNotFoundError:
                raise FileNotFoundError(
                    errno.ENOENT, f"node {self.name} has no chunk {chunk}"
                ) from None
            except OSError as error:
                if error.errno not in _UNREADABLE:
                    raise
                raise Corrupt(
                    f"node {self.name}: chunk file {chunk} cannot be read: {error}",
                    what=str(chunk),
                ) from error

    async def has(self, chunks: Sequence[ChunkId]) -> list[bool]:
        async def steps(disk: Disk) -> list[bool]:
            await self._check_identity(disk, mount)
            return [await _has(disk, mount, chunk) for chunk in chunks]

        for chunk in chunks:
            chunk_file.check_chunk_id(chunk)
        async with self._mounted() as mount:
            return await self._disk.together(steps)

    async def verify(self, chunks: Sequence[ChunkId]) -> list[ChunkState]:
        for chunk in chunks:
            chunk_file.check_chunk_id(chunk)
        async with self._mounted() as mount:
            await self._check_identity(self._disk, mount)
            return [await self._verify(mount, chunk) for chunk in chunks]

    async def _verify(self, mount: Mount, chunk: ChunkId) -> ChunkState:
        async def steps(disk: Disk) -> bool:
            return await self._is_good(disk, mount, chunk, None)

        try:
            good = await self._disk.together(steps)
        except FileNotFoundError:
            return ChunkState.MISSING
        return ChunkState.GOOD if good else ChunkState.DAMAGED

    async def list_chunks(self, partition: int | None = None) -> list[ChunkId]:
        if partition is not None and not 0 <= partition < PARTITIONS:
            raise InvalidInput(f"partition {partition} is not in 0 … {PARTITIONS - 1}")
        async with self._mounted() as mount:
            await self._check_identity(self._disk, mount)
            if partition is not None:
                found = await self._list(mount, subdirectory_of(partition))
                return [chunk for chunk in found if partition_of(chunk.run) == partition]
            everything = []
            for index in range(SUBDIRECTORIES):
                everything += await self._list(mount, index)
            return sorted(everything)

    async def list_subdirectory(self, index: int) -> list[ChunkId]:
        """The chunks of 1/256 of all partitions: `index` is the top 8 bits of the partition."""
        async with self._mounted() as mount:
            await self._check_identity(self._disk, mount)
            return await self._list(mount, index)

    async def _list(self, mount: Mount, index: int) -> list[ChunkId]:
        async with mount.directory(index) as directory:
            names = await self._disk.listdir(directory.fd)
        found = (parse_chunk_name(name) for name in names)
        return [
            chunk
            for chunk in found
            if chunk is not None and subdirectory_of(partition_of(chunk.run)) == index
        ]

    # Deleting chunks

    async def delete(self, chunks: Sequence[ChunkId]) -> None:
        by_directory: dict[int, list[ChunkId]] = {}
        for chunk in chunks:
            chunk_file.check_chunk_id(chunk)
            by_directory.setdefault(subdirectory_of(partition_of(chunk.run)), []).append(chunk)
        async with self._mounted() as mount:
            failures = self._failures
            await self._check_writable(self._disk, mount)
            for index, inside in by_directory.items():
                async with mount.directory(index) as directory:
                    await self._unlink(mount, directory, index, inside)
            if self._failures != failures:
                raise self._down("failed while chunks were deleted")

    async def _unlink(
        self, mount: Mount, directory: Directory, index: int, chunks: list[ChunkId]
    ) -> None:
        async def steps(disk: Disk) -> None:
            for chunk in chunks:
                try:
                    unlink = disk.unlink(str(chunk), dir_fd=directory.fd)
                    await self._step(f"deletion of {chunk}", unlink)
                except FileNotFoundError:
                    continue
                except IsADirectoryError:
                    # Nobody's chunk is in there, and perhaps somebody's files.
                    await self._quarantine(disk, mount, directory, chunk)

        await self._disk.together(steps)
        await self._sync(f"fsync of {subdirectory_name(index)}", directory.sync())

    # After a failure

    async def is_marked_failed(self) -> bool:
        """Whether an fsync failed here, in whatever process, and nothing was verified since."""
        async with self._mounted() as mount:
            return self._failure is not None or await _exists_at(self._disk, mount.root_fd, FAILED)

    async def verify_all(self) -> list[ChunkId]:
        """Reads every chunk back from the disk, moves the damaged ones to quarantine/, makes all
        names durable and then lets a directory marked failed serve again.

        Returns the chunks that were damaged. NodeDown, and still failed, when anything fails.
        """
        failures = self._failures
        damaged: list[ChunkId] = []
        async with self._mounted() as mount:
            await self._check_identity(self._disk, mount)
            for index in range(SUBDIRECTORIES):
                damaged += await self._verify_directory(mount, index)
            if self._failures != failures:
                raise self._down("failed again while it was verified")

            async def unmark(disk: Disk) -> None:
                if await _exists_at(disk, mount.root_fd, FAILED):
                    await self._step(
                        f"removal of {FAILED}", disk.unlink(FAILED, dir_fd=mount.root_fd)
                    )
                await self._sync(f"fsync of {self.path}", disk.fsync_dir(mount.root_fd))

            await self._disk.together(unmark)
            self._failure = None
        logger.info("node %s at %s: all chunks verified", self.name, self.path)
        return damaged

    async def _verify_directory(self, mount: Mount, index: int) -> list[ChunkId]:
        chunks = await self._list(mount, index)
        states = [await self._verify(mount, chunk) for chunk in chunks]
        damaged = [
            chunk
            for chunk, state in zip(chunks, states, strict=True)
            if state is ChunkState.DAMAGED
        ]
        async with mount.directory(index) as directory:
            for chunk in damaged:
                await self._quarantine(self._disk, mount, directory, chunk)
                await self._unlink(mount, directory, index, [chunk])
            await self._sync(f"fsync of {subdirectory_name(index)}", directory.sync())
        return damaged


def _prepare_put(chunk: ChunkId, data: Buffer, digest: bytes) -> tuple[memoryview, bytes]:
    view = chunk_file.check_put(chunk, data, digest)
    return view, chunk_file.encode_header(chunk, view, digest)


async def _read_part(
    disk: Disk, fd: int, chunk: ChunkId, offset: int, length: int | None
) -> ChunkPart:
    # One read serves small chunks and tells the length of the others.
    first = await disk.pread(fd, HEADER_BYTES + BLOCK_BYTES, 0)
    header = chunk_file.parse_header(first, chunk)
    start, end = chunk_file.covering_blocks(header.length, offset, length)
    if end <= BLOCK_BYTES:
        data: Buffer = memoryview(first)[HEADER_BYTES + start : HEADER_BYTES + end]
    else:
        data = await disk.pread(fd, end - start, HEADER_BYTES + start)
    if len(data) != end - start:
        raise Corrupt(
            f"chunk file {chunk}: data ends at {start + len(data)} of {header.length} bytes: "
            "it was truncated",
            what=str(chunk),
        )
    return ChunkPart(first[:HEADER_BYTES], start, data)


async def _open_chunk(disk: Disk, mount: Mount, chunk: ChunkId) -> int:
    """A descriptor of the regular file of `chunk`; Corrupt when something else is there."""
    fd = await disk.open(chunk_path(chunk), OPEN_FILE, dir_fd=mount.root_fd)
    try:
        if (await disk.fstat(fd)).is_regular:
            return fd
    except BaseException:
        await disk.close(fd)
        raise
    await disk.close(fd)
    raise Corrupt(f"chunk file {chunk}: what is there is no regular file", what=str(chunk))


async def _exists_at(disk: Disk, dir_fd: int, path: str) -> bool:
    try:
        await disk.lstat(path, dir_fd=dir_fd)
    except FileNotFoundError:
        return False
    return True


async def _has(disk: Disk, mount: Mount, chunk: ChunkId) -> bool:
    try:
        return (await disk.lstat(chunk_path(chunk), dir_fd=mount.root_fd)).is_regular
    except FileNotFoundError:
        return False

"""How an empty directory becomes a storage node.

The identity file comes last and at once: a directory with it is complete and durable. An
adoption that died halfway is taken up again by the next one.
"""

from __future__ import annotations

import errno

from ringhold.env import Disk, Env
from ringhold.nodes import identity as identity_file
from ringhold.nodes.base import Identity
from ringhold.nodes.mount import (
    DATA,
    LOCK,
    OPEN_DIRECTORY,
    QUARANTINE,
    SUBDIRECTORIES,
    TMP,
    Mount,
    read_identity,
    subdirectory_name,
)
from ringhold.nodes.new_file import NewFile
from ringhold.store.lock_files import refuse_shared_file_system

# A freshly made file system has its own directory for lost files.
_FOUND_IN_EMPTY = ("lost+found", LOCK)
_OWN = (DATA, QUARANTINE, TMP)
_SUBDIRECTORIES = tuple(subdirectory_name(index) for index in range(SUBDIRECTORIES))


async def adopt_directory(
    env: Env, path: str, identity: Identity, *, unnamed_files: bool = True
) -> None:
    """Makes the empty or missing directory `path` the node `identity`.

    Nothing happens when it already is this node. FileExistsError when it is another one or
    holds anything else.
    """
    content = identity_file.encode(identity)

    async def steps(disk: Disk) -> None:
        await _make(disk, path)
        mount = Mount(env, path, await disk.open(path, OPEN_DIRECTORY))
        mount.unnamed_files = unnamed_files
        try:
            await _adopt(disk, mount, identity, content)
        finally:
            await mount.close_on(disk)

    await env.disk.together(steps)


async def make_directory(env: Env, path: str) -> None:
    """Creates `path`, durably, if it is missing; its parent must exist."""

    async def steps(disk: Disk) -> None:
        await _make(disk, path)

    await env.disk.together(steps)


async def is_empty(env: Env, path: str) -> bool:
    """Whether `path` could be adopted: missing, empty, or left by an adoption that died."""

    async def steps(disk: Disk) -> bool:
        try:
            mount = Mount(env, path, await disk.open(path, OPEN_DIRECTORY))
        except FileNotFoundError:
            return True
        try:
            return await _foreign_entry(disk, mount) is None
        finally:
            await mount.close_on(disk)

    return await env.disk.together(steps)


async def _adopt(disk: Disk, mount: Mount, identity: Identity, content: bytes) -> None:
    if await _is_adopted(disk, mount, identity):
        return
    foreign = await _foreign_entry(disk, mount)
    if foreign is not None:
        raise FileExistsError(
            errno.EEXIST,
            f"directory is not empty (there is {foreign!r}): a node needs an empty one",
            mount.path,
        )
    refuse_shared_file_system(mount.path)
    await _make_subdirectories(disk, mount)
    mount.tmp_fd = await disk.open(TMP, OPEN_DIRECTORY, dir_fd=mount.root_fd)
    new = NewFile(mount)
    try:
        await new.open(disk, mount.root_fd)
        await disk.pwrite(new.fd, [content], 0)
        await disk.fdatasync(new.fd)
        await new.link(disk, identity_file.FILE_NAME, dir_fd=mount.root_fd)
    except FileExistsError:
        if not await _is_adopted(disk, mount, identity):
            raise
    finally:
        await new.discard(disk)
    await disk.fsync_dir(mount.root_fd)


async def _make(disk: Disk, path: str) -> None:
    try:
        await disk.mkdir(path)
    except FileExistsError:
        return
    parent = await disk.open(f"{path}/..", OPEN_DIRECTORY)
    try:
        await disk.fsync_dir(parent)
    finally:
        await disk.close(parent)


async def _is_adopted(disk: Disk, mount: Mount, identity: Identity) -> bool:
    found = await read_identity(disk, mount.root_fd, mount.path)
    if found is None:
        return False
    if found[0] != identity:
        raise FileExistsError(
            errno.EEXIST, f"directory belongs to {found[0]}, not {identity}", mount.path
        )
    return True


async def _foreign_entry(disk: Disk, mount: Mount) -> str | None:
    for name in await disk.listdir(mount.root_fd):
        if name in _FOUND_IN_EMPTY:
            continue
        if name not in _OWN:
            return name
        inside = await _first_entry(disk, mount, name)
        if inside is not None:
            return inside
    return None


async def _first_entry(disk: Disk, mount: Mount, path: str) -> str | None:
    """A file below one of the node's own directories, subdirectories of data/ aside."""
    try:
        fd = await disk.open(path, OPEN_DIRECTORY, dir_fd=mount.root_fd)
    except NotADirectoryError:
        return path
    try:
        names = await disk.listdir(fd)
    finally:
        await disk.close(fd)
    for name in names:
        inner = f"{path}/{name}"
        if inner not in _SUBDIRECTORIES:
            return inner
        found = await _first_entry(disk, mount, inner)
        if found is not None:
            return found
    return None


async def _make_subdirectories(disk: Disk, mount: Mount) -> None:
    for name in (*_OWN, *_SUBDIRECTORIES):
        try:
            await disk.mkdir(name, dir_fd=mount.root_fd)
        except FileExistsError:
            continue
    data_fd = await disk.open(DATA, OPEN_DIRECTORY, dir_fd=mount.root_fd)
    try:
        await disk.fsync_dir(data_fd)
    finally:
        await disk.close(data_fd)
    await disk.fsync_dir(mount.root_fd)

"""The tree of names: every operation is one function against a `View`.

Alone it runs through `transact`, inside a transaction in the transaction's view. A path is
resolved by reading each directory entry along it through the view, so the commit compares the
whole chain of entries unchanged. From that alone follows:

- every operation is strictly serializable, renames included;
- a directory cannot be moved below itself, not even by two renames at once: to close a cycle,
  one of them has to change an entry that the other one read;
- nothing can be created in a directory that is being removed.

No operation compares its parent's inode, so any number of creates in one directory go through
side by side. The price: a directory's inode knows no count of its children, and its time of
modification (`T`) is put blindly, the last writer winning.

An operation reads and checks everything before its first put, so one that fails leaves a
transaction's view without its writes.

Removing a tree detaches it: its root's entry goes away and a garbage record takes its place, in
one commit, whatever its size. `gc` takes the detached tree apart later.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from ringhold.errors import LockLost
from ringhold.files import records
from ringhold.files.paths import Parts, file_error, join_path
from ringhold.files.records import ROOT_INO, DirectoryEntry, FileKind, GarbageRecord, Inode
from ringhold.files.tree import Walk, children, read_inode, walk
from ringhold.store import keyspace
from ringhold.store.base import Born, Put, prefix_end
from ringhold.store.view import View

FILE_MODE = 0o644
DIRECTORY_MODE = 0o755
TREE_DATA_PREFIX = b"\0" * 8
"""In the key of a detached tree this and the inode number stand where a data id would."""


class FileContents(Protocol):
    """What a file is to consist of; `put` adds its manifest to the same view."""

    @property
    def size(self) -> int: ...

    @property
    def inline(self) -> bytes | None: ...

    @property
    def data(self) -> bytes | None: ...

    @property
    def block_bytes(self) -> int: ...

    async def put(self, view: View) -> None: ...


class HeldLock(Protocol):
    """What a commit needs of a granted file lock."""

    @property
    def held(self) -> Born: ...

    @property
    def token(self) -> int: ...

    @property
    def is_lost(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Actor:
    """On whose behalf an operation writes: its time, its ids and the file locks it holds."""

    now_ns: int
    uid: int
    gid: int
    next_ino: Callable[[], int]
    locks_on: Callable[[int], Sequence[HeldLock]]


def first_records(now_ns: int, uid: int, gid: int) -> list[Put]:
    """What a new cluster's store holds of the tree: an empty root directory."""
    root = Inode(FileKind.DIRECTORY, DIRECTORY_MODE, uid, gid, 1, 0, now_ns, now_ns)
    return [
        Put(keyspace.inode_key(ROOT_INO), records.encode(root)),
        Put(keyspace.NEXT_INODE, (ROOT_INO + 1).to_bytes(8, "big")),
    ]


def _lock_lost(grant: HeldLock, parts: Parts) -> LockLost:
    path = join_path(parts)
    return LockLost(
        f"the lock on {path} was lost: nothing was changed", name=path, token=grant.token
    )


async def _held_compares(view: View, grants: Sequence[HeldLock], parts: Parts) -> list[Born]:
    """The compares that refuse a change once one of `grants` was lost. LockLost when one is
    known to be."""
    if not grants:
        return []
    for grant in grants:
        if grant.is_lost:
            # Its key may still stand, if nobody wrote since its session's deadline.
            raise _lock_lost(grant, parts)
    found = await view.peek_many([grant.held.key for grant in grants])
    for grant, entry in zip(grants, found, strict=True):
        fresh = view.revision >= grant.held.revision
        if fresh and (entry is None or entry.created != grant.held.revision):
            raise _lock_lost(grant, parts)
    return [grant.held for grant in grants]


def _put_inode(view: View, ino: int, inode: Inode) -> None:
    view.put(keyspace.inode_key(ino), records.encode(inode))


def _put_entry(view: View, directory: int, name: bytes, ino: int, kind: FileKind) -> None:
    entry = DirectoryEntry(ino, kind)
    view.put(keyspace.entry_key(directory, name), records.encode(entry))


def _touch_directory(view: View, actor: Actor, directory: int) -> None:
    view.put(keyspace.directory_time_key(directory), actor.now_ns.to_bytes(8, "big"))


def _put_garbage(view: View, actor: Actor, data: bytes, garbage: GarbageRecord) -> None:
    view.put(keyspace.garbage_key(actor.now_ns // 1_000_000, data), records.encode(garbage))


def _check_parents(found: Walk, make_parents: bool) -> None:
    if not found.parent_exists and not make_parents:
        raise file_error(errno.ENOENT, found.parts)


def _make_directories(view: View, actor: Actor, found: Walk, upto: int) -> int:
    """Creates the missing ones of the first `upto` directories; returns the last one's number."""
    directory = found.parent
    if len(found.chain) <= upto:
        # Those that are made carry their time themselves.
        _touch_directory(view, actor, directory)
    for depth in range(len(found.chain) - 1, upto):
        ino = actor.next_ino()
        now_ns = actor.now_ns
        inode = Inode(
            FileKind.DIRECTORY, DIRECTORY_MODE, actor.uid, actor.gid, 1, 0, now_ns, now_ns,
            parent=directory,
        )  # fmt: skip
        _put_inode(view, ino, inode)
        _put_entry(view, directory, found.parts[depth], ino, FileKind.DIRECTORY)
        directory = ino
    return directory


async def make_directory(
    view: View, actor: Actor, parts: Parts, *, make_parents: bool, exist_ok: bool
) -> None:
    """FileExistsError, unless `exist_ok` and it is a directory; FileNotFoundError without a
    parent, unless `make_parents`."""
    found = await walk(view, parts)
    if found.entry is not None:
        if exist_ok and found.is_directory:
            return
        raise file_error(errno.EEXIST, parts)
    _check_parents(found, make_parents)
    _make_directories(view, actor, found, len(parts))


async def put_file(
    view: View,
    actor: Actor,
    parts: Parts,
    contents: FileContents,
    *,
    exclusive: bool = False,
    make_parents: bool = True,
    locks: Sequence[HeldLock] = (),
) -> None:
    """Makes `parts` a file with `contents`, whole; an existing file keeps its inode number.

    `locks` are compared besides those held on the file now. FileExistsError with `exclusive`;
    IsADirectoryError; FileNotFoundError without a parent, unless `make_parents`; LockLost.
    """
    found = _writable(await walk(view, parts), exclusive=exclusive, make_parents=make_parents)
    now_ns = actor.now_ns
    if found.entry is None:
        ino, old = 0, None
        grants = list(locks)
    else:
        ino = found.entry.ino
        old = await read_inode(view, ino)
        grants = [*locks, *actor.locks_on(ino)]
    required = await _held_compares(view, grants, parts)
    await contents.put(view)
    for compare in required:
        view.require(compare)
    if old is None:
        directory = _make_directories(view, actor, found, len(parts) - 1)
        ino = actor.next_ino()
        old = Inode(FileKind.FILE, FILE_MODE, actor.uid, actor.gid, 1, 0, now_ns, now_ns)
        _put_entry(view, directory, parts[-1], ino, FileKind.FILE)
        if directory == found.parent:
            _touch_directory(view, actor, directory)
    _discard_data(view, actor, ino, old, parts)
    inode = msgspec.structs.replace(
        old,
        size=contents.size,
        modified_ns=now_ns,
        inline=contents.inline,
        data=contents.data,
        block_bytes=contents.block_bytes,
    )
    _put_inode(view, ino, inode)


async def check_writable(
    view: View, parts: Parts, *, exclusive: bool, make_parents: bool
) -> int | None:
    """Raises what `put_file` would; returns the inode number of the file there is."""
    found = _writable(await walk(view, parts), exclusive=exclusive, make_parents=make_parents)
    return None if found.entry is None else found.entry.ino


def _writable(found: Walk, *, exclusive: bool, make_parents: bool) -> Walk:
    if found.is_directory:
        raise file_error(errno.EISDIR, found.parts)
    if found.entry is not None and exclusive:
        raise file_error(errno.EEXIST, found.parts)
    _check_parents(found, make_parents)
    return found


def _discard_data(view: View, actor: Actor, ino: int, inode: Inode, parts: Parts) -> None:
    if inode.data is not None:
        garbage = GarbageRecord(ino, b"/" + b"/".join(parts), inode.size)
        _put_garbage(view, actor, inode.data, garbage)


async def touch(view: View, actor: Actor, parts: Parts) -> None:
    """Sets the time of modification to now."""
    entry = (await walk(view, parts)).existing()
    if entry.kind is FileKind.DIRECTORY:
        _touch_directory(view, actor, entry.ino)
        return
    inode = await read_inode(view, entry.ino)
    _put_inode(view, entry.ino, msgspec.structs.replace(inode, modified_ns=actor.now_ns))


async def unlink(view: View, actor: Actor, parts: Parts) -> None:
    """Removes a file; its data is deleted later. IsADirectoryError for a directory."""
    found = await walk(view, parts)
    entry = found.existing()
    if entry.kind is FileKind.DIRECTORY:
        raise file_error(errno.EISDIR, parts)
    await _unlink_inode(view, actor, entry.ino, parts)
    view.delete(keyspace.entry_key(found.parent, parts[-1]))
    _touch_directory(view, actor, found.parent)


async def _unlink_inode(view: View, actor: Actor, ino: int, parts: Parts) -> None:
    inode = await read_inode(view, ino)
    for compare in await _held_compares(view, actor.locks_on(ino), parts):
        view.require(compare)
    if inode.links > 1:
        _put_inode(view, ino, msgspec.structs.replace(inode, links=inode.links - 1))
        return
    view.delete(keyspace.inode_key(ino))
    _discard_data(view, actor, ino, inode, parts)


async def remove_directory(view: View, actor: Actor, parts: Parts) -> None:
    """Removes an empty directory. OSError (ENOTEMPTY), NotADirectoryError."""
    found = await walk(view, parts)
    entry = found.existing()
    if entry.kind is not FileKind.DIRECTORY:
        raise file_error(errno.ENOTDIR, parts)
    if not parts:
        raise file_error(errno.EBUSY, parts)
    await _require_empty(view, entry.ino, parts)
    _delete_directory(view, entry.ino)
    view.delete(keyspace.entry_key(found.parent, parts[-1]))
    _touch_directory(view, actor, found.parent)


async def _require_empty(view: View, directory: int, parts: Parts) -> None:
    prefix = keyspace.entry_prefix(directory)
    if await view.range(prefix, prefix_end(prefix), limit=1):
        raise file_error(errno.ENOTEMPTY, parts)


def _delete_directory(view: View, ino: int) -> None:
    view.delete(keyspace.inode_key(ino))
    view.delete(keyspace.directory_time_key(ino))


async def remove_tree(view: View, actor: Actor, parts: Parts) -> None:
    """Removes a file, or a directory with all below it, in one commit of a few keys.

    Of the root, everything below it. File locks held inside a tree are not compared.
    """
    found = await walk(view, parts)
    entry = found.existing()
    if entry.kind is FileKind.FILE:
        await unlink(view, actor, parts)
        return
    if parts:
        _detach(view, actor, found.parent, parts, entry.ino)
        return
    for name, child in await children(view, ROOT_INO):
        if child.kind is FileKind.FILE:
            await unlink(view, actor, (name,))
        else:
            _detach(view, actor, ROOT_INO, (name,), child.ino)


def _detach(view: View, actor: Actor, parent: int, parts: Parts, ino: int) -> None:
    view.delete(keyspace.entry_key(parent, parts[-1]))
    _touch_directory(view, actor, parent)
    garbage = GarbageRecord(ino, b"/" + b"/".join(parts), 0)
    _put_garbage(view, actor, TREE_DATA_PREFIX + ino.to_bytes(8, "big"), garbage)


async def rename(
    view: View, actor: Actor, source: Parts, target: Parts, *, make_parents: bool
) -> None:
    """Moves a file or directory in one commit, with the rules of POSIX `rename`.

    A file replaces a file, a directory an empty directory. IsADirectoryError,
    NotADirectoryError, OSError (ENOTEMPTY, EINVAL below itself, EBUSY for the root).
    """
    moved = await walk(view, source)
    entry = moved.existing()
    if source == target:
        return
    if not source or not target:
        raise file_error(errno.EBUSY, source, target)
    # Names are the only way to a directory: below itself means that the path begins alike.
    if entry.kind is FileKind.DIRECTORY and target[: len(source)] == source:
        raise file_error(errno.EINVAL, source, target)
    place = await walk(view, target)
    _check_parents(place, make_parents)
    inode = await read_inode(view, entry.ino)
    if entry.kind is FileKind.FILE:
        if place.is_directory:
            raise file_error(errno.EISDIR, source, target)
        for compare in await _held_compares(view, actor.locks_on(entry.ino), source):
            view.require(compare)
        if place.entry is not None:
            await _unlink_inode(view, actor, place.entry.ino, target)
    elif place.entry is not None:
        if not place.is_directory:
            raise file_error(errno.ENOTDIR, source, target)
        await _require_empty(view, place.entry.ino, target)
        _delete_directory(view, place.entry.ino)
    directory = _make_directories(view, actor, place, len(target) - 1)
    view.delete(keyspace.entry_key(moved.parent, source[-1]))
    _put_entry(view, directory, target[-1], entry.ino, entry.kind)
    _touch_directory(view, actor, moved.parent)
    if directory == place.parent:
        _touch_directory(view, actor, directory)
    if entry.kind is FileKind.DIRECTORY and inode.parent != directory:
        _put_inode(view, entry.ino, msgspec.structs.replace(inode, parent=directory))

"""Looking at the tree of names: paths resolved, directories listed, all at a view's revision.

Every entry along a path is read through the view, so that a commit of that view compares the
whole chain unchanged; see `metadata` for what follows from that.
"""

from __future__ import annotations

import contextlib
import errno
import stat as stat_bits
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from ringhold.errors import ChecksumMismatch, Conflict
from ringhold.files import records
from ringhold.files.paths import Parts, file_error, join_path
from ringhold.files.records import ROOT_INO, DirectoryEntry, FileKind, Inode
from ringhold.files.stored import decoded, describe_key, missing, what_changed
from ringhold.store import keyspace
from ringhold.store.base import prefix_end
from ringhold.store.paging import in_pieces
from ringhold.store.view import View
from ringhold.types import Entry


@dataclass(frozen=True, slots=True)
class Status:
    """What is known of a path: for directories `modified_ns` is the directory's own time."""

    parts: Parts
    ino: int
    inode: Inode
    modified_ns: int

    @property
    def is_directory(self) -> bool:
        return self.inode.kind is FileKind.DIRECTORY

    @property
    def st_mode(self) -> int:
        return self.inode.mode | (stat_bits.S_IFDIR if self.is_directory else stat_bits.S_IFREG)


@dataclass(frozen=True, slots=True)
class Walk:
    """A resolved path. `chain`: the directories along it that exist, from the root on.

    `entry` is what the whole path names, None when it or a directory before it is missing.
    """

    parts: Parts
    chain: tuple[int, ...]
    entry: DirectoryEntry | None

    @property
    def parent(self) -> int:
        """The directory that holds the last name, when that directory exists."""
        return self.chain[-1]

    @property
    def parent_exists(self) -> bool:
        return len(self.chain) >= len(self.parts)

    @property
    def is_directory(self) -> bool:
        return self.entry is not None and self.entry.kind is FileKind.DIRECTORY

    def existing(self) -> DirectoryEntry:
        if self.entry is None:
            raise file_error(errno.ENOENT, self.parts)
        return self.entry


async def walk(view: View, parts: Parts) -> Walk:
    """Resolves `parts`. NotADirectoryError when something before the last name is a file."""
    entry: DirectoryEntry | None = DirectoryEntry(ROOT_INO, FileKind.DIRECTORY)
    chain: list[int] = []
    for name in parts:
        if entry is None:
            break
        if entry.kind is not FileKind.DIRECTORY:
            raise file_error(errno.ENOTDIR, parts)
        chain.append(entry.ino)
        key = keyspace.entry_key(entry.ino, name)
        try:
            found = await view.get(key)
        except ChecksumMismatch as error:
            path = join_path(parts)
            raise ChecksumMismatch(
                f"{path}: {describe_key(key)} in the store is damaged: run fsck", what=path
            ) from error
        entry = None if found is None else decoded(records.decode_entry, key, found.value)
    return Walk(parts, tuple(chain) or (ROOT_INO,), entry)


async def stat(view: View, parts: Parts) -> Status:
    """FileNotFoundError, NotADirectoryError."""
    found = await walk(view, parts)
    return (await _statuses(view, [(parts, found.existing())]))[0]


async def list_directory(view: View, parts: Parts) -> list[Status]:
    """The entries of a directory in byte order of their names, at one revision; of a file,
    the file itself."""
    entry = (await walk(view, parts)).existing()
    if entry.kind is not FileKind.DIRECTORY:
        return await _statuses(view, [(parts, entry)])
    named: list[tuple[Parts, DirectoryEntry]] = []
    async for piece in in_pieces(await children(view, entry.ino)):
        named += [((*parts, name), child) for name, child in piece]
    return await _statuses(view, named)


async def find(view: View, parts: Parts, maxdepth: int | None = None) -> list[Status]:
    """What `parts` names and everything below it, sorted by path, at one revision."""
    top = (await walk(view, parts)).existing()
    found: list[tuple[Parts, DirectoryEntry]] = [(parts, top)]
    pending: list[tuple[Parts, int]] = []
    if top.kind is FileKind.DIRECTORY:
        pending.append((parts, top.ino))
    while pending:
        at, ino = pending.pop()
        deeper = maxdepth is None or len(at) + 1 - len(parts) < maxdepth
        async for piece in in_pieces(await children(view, ino)):
            for name, child in piece:
                path = (*at, name)
                found.append((path, child))
                if child.kind is FileKind.DIRECTORY and deeper:
                    pending.append((path, child.ino))
    return await _statuses(view, sorted(found, key=lambda item: item[0]))


async def children(view: View, directory: int) -> list[tuple[bytes, DirectoryEntry]]:
    """The names in a directory and what they name, in byte order."""
    prefix = keyspace.entry_prefix(directory)
    entries = await view.range(prefix, prefix_end(prefix))
    found: list[tuple[bytes, DirectoryEntry]] = []
    async for piece in in_pieces(entries):
        found += [
            (key[len(prefix) :], decoded(records.decode_entry, key, entry.value))
            for key, entry in piece
        ]
    return found


async def _statuses(view: View, named: Sequence[tuple[Parts, DirectoryEntry]]) -> list[Status]:
    statuses: list[Status] = []
    async for piece in in_pieces(named):
        statuses += await _statuses_of(view, piece)
    return statuses


async def _statuses_of(view: View, named: Sequence[tuple[Parts, DirectoryEntry]]) -> list[Status]:
    keys = [keyspace.inode_key(entry.ino) for _, entry in named]
    inodes = await _inodes(view, named, keys)
    directories = [e.ino for _, e in named if e.kind is FileKind.DIRECTORY]
    time_keys = [keyspace.directory_time_key(ino) for ino in directories]
    found_times = await view.peek_many(time_keys) if time_keys else []
    times = dict(zip(directories, found_times, strict=True))
    statuses: list[Status] = []
    for (parts, entry), key, found in zip(named, keys, inodes, strict=True):
        if found is None:
            raise missing(key)
        inode = decoded(records.decode_inode, key, found.value)
        time = times.get(entry.ino)
        modified_ns = inode.modified_ns if time is None else int.from_bytes(time.value, "big")
        statuses.append(Status(parts, entry.ino, inode, modified_ns))
    return statuses


async def _inodes(
    view: View, named: Sequence[tuple[Parts, DirectoryEntry]], keys: Sequence[bytes]
) -> list[Entry | None]:
    """The records under `keys`. ChecksumMismatch names the path of the first damaged one."""
    try:
        return await view.get_many(keys)
    except ChecksumMismatch as error:
        if len(keys) > 1:
            return [(await _inodes(view, [n], [k]))[0] for n, k in zip(named, keys, strict=True)]
        path = join_path(named[0][0])
        raise ChecksumMismatch(
            f"{path}: the store's record of it ({describe_key(keys[0])}) is damaged: run fsck",
            what=path,
        ) from error


async def read_inode(view: View, ino: int) -> Inode:
    """Corrupt when there is none: an entry led to it."""
    key = keyspace.inode_key(ino)
    found = await view.get(key)
    if found is None:
        raise missing(key)
    return decoded(records.decode_inode, key, found.value)


async def what_others_changed(view: View, conflict: Conflict) -> str:
    """As `what_changed`, by its path where `view` has read all names along it."""
    key = getattr(conflict.compare, "key", b"") or getattr(conflict.compare, "start", b"")
    return what_changed(conflict, await _known_path(view, key))


async def _known_path(view: View, key: bytes) -> str | None:
    """The path that an inode or an entry is of; reads nothing."""
    if not key.startswith((keyspace.INODE, keyspace.DIRECTORY_ENTRY)):
        return None
    entries: dict[int, bytes] = {}
    async for piece in in_pieces(list(view.reads.items())):
        for read, found in piece:
            if found is not None and read.startswith(keyspace.DIRECTORY_ENTRY):
                # What is damaged was told when it was read.
                with contextlib.suppress(msgspec.MsgspecError):
                    entries[records.decode_entry(found.value).ino] = read
    names: list[bytes] = []
    while True:
        ino, name = int.from_bytes(key[1:9], "big"), key[9:]
        if name:
            names.insert(0, name)
        if ino == ROOT_INO:
            return join_path(tuple(names))
        if ino not in entries:
            return None
        key = entries.pop(ino)

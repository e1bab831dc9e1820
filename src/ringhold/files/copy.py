"""Copying a file without moving a byte: the copy gets a data id of its own and shares the runs.

Chunks are immutable and a run counts the data ids that use it, so a copy costs one commit
whatever its size, and lives on when the original is changed or deleted.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from ringhold.files import metadata, records
from ringhold.files.contents import Contents
from ringhold.files.metadata import Actor
from ringhold.files.paths import Parts, file_error
from ringhold.files.records import Extents, Inode, RunRecord
from ringhold.files.stored import decoded, missing
from ringhold.files.tree import stat
from ringhold.store import keyspace
from ringhold.store.view import View


@dataclass(frozen=True, slots=True)
class SharedContents:
    """Contents that lie in runs of another file already."""

    size: int
    data: bytes
    block_bytes: int
    blocks: Sequence[tuple[int, Extents]]
    runs: Sequence[tuple[bytes, RunRecord]]
    inline: None = None

    async def put(self, view: View) -> None:
        for block, extents in self.blocks:
            view.put(keyspace.extents_key(self.data, block), records.encode(extents))
        for run, record in self.runs:
            shared = msgspec.structs.replace(record, references=record.references + 1)
            view.put(keyspace.run_key(run), records.encode(shared))


async def copy_file(
    view: View,
    actor: Actor,
    source: Parts,
    target: Parts,
    data: bytes,
    *,
    exclusive: bool,
    make_parents: bool,
) -> None:
    """Makes `target` a file with the contents of the file `source`; `data` is a fresh data id."""
    status = await stat(view, source)
    if status.is_directory:
        raise file_error(errno.EISDIR, source)
    if source == target:
        return
    inode = status.inode
    contents: Contents | SharedContents
    if inode.data is None:
        contents = Contents(inode.size, inline=inode.inline)
    else:
        contents = await _share(view, inode, inode.data, data)
    await metadata.put_file(
        view, actor, target, contents, exclusive=exclusive, make_parents=make_parents
    )


async def _share(view: View, inode: Inode, old: bytes, new: bytes) -> SharedContents:
    """Everything the file `inode` consists of, to be put under the data id `new`.

    The extents need no compare: they belong to a data id, and that the inode still has it is
    compared. The runs do: their count changes.
    """
    numbers = range(-(-inode.size // inode.block_bytes))
    keys = [keyspace.extents_key(old, block) for block in numbers]
    blocks: list[tuple[int, Extents]] = []
    for block, key, entry in zip(numbers, keys, await view.peek_many(keys), strict=True):
        if entry is None:
            raise missing(key)
        blocks.append((block, decoded(records.decode_extents, key, entry.value)))
    run_ids = list(dict.fromkeys(e.run for _, extents in blocks for e in extents.extents))
    runs: list[tuple[bytes, RunRecord]] = []
    run_keys = [keyspace.run_key(run) for run in run_ids]
    for run, key, entry in zip(run_ids, run_keys, await view.get_many(run_keys), strict=True):
        if entry is None:
            raise missing(key)
        runs.append((run, decoded(records.decode_run, key, entry.value)))
    return SharedContents(inode.size, new, inode.block_bytes, blocks, runs)

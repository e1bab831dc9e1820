"""Copying a file without moving a byte: the copy gets a data id of its own and shares the runs.

Chunks are immutable and a run counts the data ids that use it, so a copy costs one commit, and
lives on when the original is changed or deleted. What a long file consists of is written ahead, as
for one being written (`staging`): the copy appears in one commit all the same.
"""

from __future__ import annotations

import errno
import functools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import msgspec

from ringhold.env import Env
from ringhold.errors import Corrupt, SessionExpired
from ringhold.files import metadata, records
from ringhold.files.contents import Contents, SessionState
from ringhold.files.leftovers import Leftovers
from ringhold.files.metadata import Actor
from ringhold.files.paths import Parts, file_error
from ringhold.files.records import Extents, Inode, RunRecord
from ringhold.files.staging import RUNS_PER_COMMIT, Mark, set_mark
from ringhold.files.stored import decoded, missing
from ringhold.files.tree import stat
from ringhold.store import keyspace
from ringhold.store.base import Store
from ringhold.store.view import View, transact

T = TypeVar("T")


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
    large_too: bool,
) -> None:
    """Makes `target` a file with the contents of the file `source`; `data` is a fresh data id.

    LargeSource for one that is more than a commit should be, unless `large_too`.
    """
    status = await stat(view, source)
    if status.is_directory:
        raise file_error(errno.EISDIR, source)
    if source == target:
        return
    inode = status.inode
    if not large_too and _is_large(inode):
        raise LargeSource(inode)
    contents: Contents | SharedContents
    if inode.data is None:
        contents = Contents(inode.size, inline=inode.inline)
    else:
        contents = await _share(view, inode, inode.data, data)
    await metadata.put_file(
        view, actor, target, contents, exclusive=exclusive, make_parents=make_parents
    )


async def _share(view: View, inode: Inode, old: bytes, new: bytes) -> SharedContents:
    """Everything the file `inode` consists of, to be put under the data id `new`."""
    blocks = range(-(-inode.size // inode.block_bytes))
    extents, runs = await _read_blocks(view, old, blocks)
    return SharedContents(inode.size, new, inode.block_bytes, extents, runs)


async def _read_blocks(
    view: View, data: bytes, numbers: Sequence[int]
) -> tuple[list[tuple[int, Extents]], list[tuple[bytes, RunRecord]]]:
    """The extents of some blocks of a file, and the runs they name.

    The extents need no compare: they belong to a data id, and that the inode still has it is
    compared. The runs do: their count changes.
    """
    keys = [keyspace.extents_key(data, block) for block in numbers]
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
    return blocks, runs


class LargeSource(Exception):
    """The file to be copied consists of more than one commit should have."""

    def __init__(self, inode: Inode):
        super().__init__(f"{inode.size} bytes")
        self.inode = inode


class _SourceChanged(Exception):
    """The file being copied has other contents by now."""


@dataclass(frozen=True, slots=True)
class LargeCopy:
    """Contents shared with another file, written ahead under `mark`."""

    size: int
    block_bytes: int
    mark: Mark
    inline: None = None

    @property
    def data(self) -> bytes:
        return self.mark.data

    async def put(self, view: View) -> None:
        await self.mark.clear(view)


def _is_large(inode: Inode) -> bool:
    """Whether a copy of it is more than one commit should be."""
    return inode.data is not None and inode.size > RUNS_PER_COMMIT * inode.block_bytes


class Operations(Protocol):
    """`FileCore`, as far as a copy in several commits needs it."""

    store: Store
    env: Env

    async def run(
        self, operation: Callable[[View], Awaitable[T]], view: View | None = None
    ) -> T: ...

    async def change(
        self,
        operation: Callable[[View, Actor], Awaitable[T]],
        view: View | None,
        inodes: int = 0,
    ) -> T: ...


async def copy_large(
    core: Operations,
    leftovers: Leftovers,
    session: SessionState,
    inode: Inode,
    source: Parts,
    target: Parts,
    *,
    exclusive: bool,
    make_parents: bool,
) -> bool:
    """Whether the copy was made; not, when `source` is no longer `inode` or the session ended."""

    async def is_changed(view: View) -> bool:
        return (await stat(view, source)).inode.data != inode.data

    async def put(view: View, actor: Actor) -> None:
        if await is_changed(view):
            raise _SourceChanged
        await metadata.put_file(
            view, actor, target, contents, exclusive=exclusive, make_parents=make_parents
        )

    def check(view: View) -> Awaitable[object]:
        return metadata.check_writable(view, target, exclusive=exclusive, make_parents=make_parents)

    await core.run(check)
    mark: Mark | None = None
    try:
        mark = await set_mark(core.store, core.env, session, session.next_id(), target, inode.size)
        contents = await _stage(core.store, core.env, inode, mark)
        await core.change(put, None, len(target))
    except BaseException as error:
        # Whatever the commit's outcome: had it happened, there would be no mark.
        if mark is not None:
            leftovers.discard(mark.key)
        # Nothing but records was written: another session may write them again.
        if isinstance(error, _SourceChanged | SessionExpired):
            return False
        if isinstance(error, Corrupt) and await core.run(is_changed):
            return False
        raise
    return True


async def _stage(store: Store, env: Env, inode: Inode, mark: Mark) -> LargeCopy:
    """Writes the extents of a large file anew, under `mark`, and counts its runs once more.

    Corrupt when records of the file are missing, as they are once it was deleted; SessionExpired.
    What was written by then belongs to the mark.
    """
    assert inode.data is not None
    count = -(-inode.size // inode.block_bytes)
    for start in range(0, count, RUNS_PER_COMMIT):
        blocks = range(start, min(start + RUNS_PER_COMMIT, count))
        share = functools.partial(_share_blocks, inode=inode, mark=mark, blocks=blocks)
        await transact(store, env, share)
    return LargeCopy(inode.size, inode.block_bytes, mark)


async def _share_blocks(view: View, *, inode: Inode, mark: Mark, blocks: Sequence[int]) -> None:
    assert inode.data is not None
    await mark.require(view)
    extents, runs = await _read_blocks(view, inode.data, blocks)
    for run, record in runs:
        if record.dead:
            raise Corrupt(f"run {run.hex()} is being deleted", what=f"run {run.hex()}")
    await SharedContents(inode.size, mark.data, inode.block_bytes, extents, runs).put(view)

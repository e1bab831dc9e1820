"""The file system under its faces: paths in, operations on views and chunks inside.

Every method takes `view`: None runs the operation alone, committed when it returns; a view makes
it part of a transaction, which commits it or not. What a method returned is durable then.

Not promised: that an operation which was cancelled did not happen. It happened entirely or
not at all.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import os
import weakref
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from ringhold.env import Buffer, Env
from ringhold.errors import (
    Closed,
    Compacted,
    Conflict,
    InvalidInput,
    SessionExpired,
    TransactionAborted,
    Unavailable,
)
from ringhold.files import metadata, tree
from ringhold.files.contents import (
    Contents,
    PartitionMoved,
    StagedRun,
    inline_contents,
    no_contents,
)
from ringhold.files.copy import LargeSource, copy_file, copy_large
from ringhold.files.fsck import Checker, FsckReport
from ringhold.files.gc import Collector, GcReport
from ringhold.files.inodes import InodeNumbers
from ringhold.files.leftovers import Leftovers
from ringhold.files.locking import file_slots
from ringhold.files.mend import Mender
from ringhold.files.metadata import Actor, HeldLock
from ringhold.files.paths import Parts, file_error, join_path
from ringhold.files.place import NodeSource, Placement, StagedCopiesLost
from ringhold.files.read import FileReader, Peek
from ringhold.files.records import INLINE_BYTES_MAX, ROOT_INO
from ringhold.files.repair import Repairer, RepairReport
from ringhold.files.scrub import Scrubber, ScrubReport
from ringhold.files.staging import LargeContents, is_large
from ringhold.files.stored import what_changed
from ringhold.files.survey import Progress, no_progress
from ringhold.files.tree import Status
from ringhold.files.turns import Cost, TooMany, Turns, removal_cost, rename_cost
from ringhold.files.write import ChunkStream, FileWriter, SessionSource, contiguous
from ringhold.locks.slot_grants import SlotService
from ringhold.nodes.records import ClusterRecord
from ringhold.store.base import Store
from ringhold.store.view import View, transact
from ringhold.types import Entry

logger = logging.getLogger("ringhold")
T = TypeVar("T")

ViewSource = Callable[[], View | None]
"""The view an operation belongs to, None when it stands alone. Raises Closed once that ended."""

CHUNK_PUTS_MAX = 16
CHUNK_GETS_MAX = 16


def alone() -> View | None:
    return None


class FileCore:
    """One open cluster's files, on the loop that opened its store."""

    def __init__(
        self,
        store: Store,
        env: Env,
        session: SessionSource,
        pool: NodeSource,
        locks: SlotService,
        cluster_record: ClusterRecord,
    ):
        self.store = store
        self.env = env
        self.locks = locks
        self.cluster = cluster_record
        self.placement = Placement(store, env, pool, cluster_record.replicas)
        self.mender = Mender(store, self.placement)
        self._session = session
        self._inodes = InodeNumbers(store, env)
        self._put_room = asyncio.Semaphore(CHUNK_PUTS_MAX)
        self._get_room = asyncio.Semaphore(CHUNK_GETS_MAX)
        self._view_locks: weakref.WeakKeyDictionary[View, asyncio.Lock]
        self._view_locks = weakref.WeakKeyDictionary()
        self._staged: weakref.WeakKeyDictionary[View, list[StagedRun]]
        self._staged = weakref.WeakKeyDictionary()
        self._writers: weakref.WeakSet[FileWriter] = weakref.WeakSet()
        self._leftovers = Leftovers(store, env, self.placement)
        self._closed = False

    # -- running operations ---------------------------------------------------------------

    async def run(self, operation: Callable[[View], Awaitable[T]], view: View | None = None) -> T:
        """Runs `operation` in `view`, or alone until it commits.

        Unavailable when it lost against others for too long; TransactionAborted when `view` has
        become too old to be read.
        """
        self._check_open()
        if view is None:
            try:
                return await transact(self.store, self.env, operation)
            except (Conflict, Compacted) as error:
                reason = what_changed(error) if isinstance(error, Conflict) else str(error)
                raise Unavailable(
                    f"others changed the same files again and again, nothing was done: {reason}"
                ) from error
        async with self.view_lock(view):
            try:
                # What fails leaves nothing in the view: its caller may catch that and go on.
                with view.savepoint() as inner:
                    return await operation(inner)
            except Compacted as error:
                reason = "it ran for longer than the store keeps what it read"
                raise TransactionAborted(
                    f"transaction aborted: {reason}", reason=reason, retryable=True
                ) from error

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("the cluster of this file system is closed")

    def view_lock(self, view: View) -> asyncio.Lock:
        """Held while an operation works in a shared view, and by its commit."""
        return self._view_locks.setdefault(view, asyncio.Lock())

    async def change(
        self,
        operation: Callable[[View, Actor], Awaitable[T]],
        view: View | None,
        inodes: int = 0,
    ) -> T:
        """Runs an operation that writes; it may create up to `inodes` inodes."""
        numbers = await self._inodes.take(inodes) if inodes else []
        used = 0

        def next_ino() -> int:
            nonlocal used
            used += 1
            return numbers[used - 1]

        async def attempt(view: View) -> T:
            nonlocal used
            used = 0
            now_ns = int(self.env.clock.wall() * 1e9)
            actor = Actor(now_ns, os.getuid(), os.getgid(), next_ino, self._locks_on)
            return await operation(view, actor)

        try:
            return await self.run(attempt, view)
        finally:
            # A commit of unknown outcome may have named what the last attempt used.
            self._inodes.give_back(numbers[used:])

    def _locks_on(self, ino: int) -> Sequence[HeldLock]:
        # Grants that were lost, too: what is written under one must be refused.
        return self.locks.unreleased(file_slots(ino, ""))

    def peek(self, source: ViewSource) -> Peek:
        """Reads keys through the transaction of `source`, or as the store has them now."""

        async def peek(keys: Sequence[bytes]) -> list[Entry | None]:
            if not keys:
                return []
            return await self.run(lambda view: view.peek_many(keys), source())

        return peek

    # -- names ----------------------------------------------------------------------------

    async def stat(self, parts: Parts, view: View | None = None) -> Status:
        return await self.run(lambda view: tree.stat(view, parts), view)

    async def list_directory(self, parts: Parts, view: View | None = None) -> list[Status]:
        return await self.run(lambda view: tree.list_directory(view, parts), view)

    async def find(
        self, parts: Parts, maxdepth: int | None = None, view: View | None = None
    ) -> list[Status]:
        return await self.run(lambda view: tree.find(view, parts, maxdepth), view)

    async def make_directory(
        self,
        parts: Parts,
        *,
        make_parents: bool = True,
        exist_ok: bool = False,
        view: View | None = None,
    ) -> None:
        async def operation(view: View, actor: Actor) -> None:
            await metadata.make_directory(
                view, actor, parts, make_parents=make_parents, exist_ok=exist_ok
            )

        await self.change(operation, view, len(parts))

    async def unlink(self, paths: Sequence[Parts], view: View | None = None) -> None:
        """Removes files; in one commit, or in turn."""
        await self._in_turn(paths, metadata.unlink, removal_cost, view)

    async def remove_directory(self, parts: Parts, view: View | None = None) -> None:
        await self.change(lambda view, actor: metadata.remove_directory(view, actor, parts), view)

    async def remove_trees(self, paths: Sequence[Parts], view: View | None = None) -> None:
        """Removes files and directories with all below them; in one commit, or in turn."""
        given = set(paths)
        tops = sorted(p for p in given if not any(p[:n] in given for n in range(len(p))))
        if tops == [()]:
            names = await self.run(lambda view: tree.children(view, ROOT_INO), view)
            tops = [(name,) for name, _ in names]
        await self._in_turn(tops, metadata.remove_tree, removal_cost, view)

    async def remove_each(self, paths: Sequence[Parts], view: View | None = None) -> None:
        """Removes files and directories that are empty by then; in one commit, or in turn."""

        async def remove(view: View, actor: Actor, parts: Parts) -> None:
            if (await tree.stat(view, parts)).is_directory:
                await metadata.remove_directory(view, actor, parts)
            else:
                await metadata.unlink(view, actor, parts)

        await self._in_turn(sorted(paths, reverse=True), remove, removal_cost, view)

    async def rename(
        self,
        pairs: Sequence[tuple[Parts, Parts]],
        *,
        make_parents: bool = True,
        view: View | None = None,
    ) -> None:
        """Moves every (source, target); in one commit, or in turn."""

        async def move(view: View, actor: Actor, pair: tuple[Parts, Parts]) -> None:
            await metadata.rename(view, actor, *pair, make_parents=make_parents)

        inodes = sum(len(target) for _, target in pairs)
        await self._in_turn(pairs, move, rename_cost, view, inodes=inodes)

    async def _in_turn(
        self,
        items: Sequence[T],
        one: Callable[[View, Actor, T], Awaitable[None]],
        cost: Callable[[T], Cost],
        view: View | None,
        *,
        inodes: int = 0,
    ) -> None:
        """Does `one` to all `items`: in `view`, or alone by as few commits as the store takes."""
        limits = self.store.limits if view is None and len(items) > 1 else None
        turns = Turns(items, one, cost, limits)
        try:
            return await self.change(turns.all_at_once, view, inodes)
        except TooMany:
            logger.debug("%d paths are changed by several commits", len(items))
        while turns.left:
            done = await self.change(turns.next_ones, None, inodes)
            turns.left = turns.left[done:]

    async def touch(
        self, parts: Parts, truncate: bool, view: View | None = None, *, make_parents: bool = True
    ) -> None:
        """Creates an empty file; an existing one is emptied, or only its time set to now."""

        async def operation(view: View, actor: Actor) -> None:
            if not truncate and (await tree.walk(view, parts)).entry is not None:
                await metadata.touch(view, actor, parts)
            else:
                await metadata.put_file(
                    view, actor, parts, no_contents(), make_parents=make_parents
                )

        await self.change(operation, view, len(parts))

    # -- contents -------------------------------------------------------------------------

    async def open_reader(self, parts: Parts, source: ViewSource = alone) -> FileReader:
        """The present version of a file, for reading. IsADirectoryError for a directory."""
        status = await self.stat(parts, source())
        if status.is_directory:
            raise file_error(errno.EISDIR, parts)
        return FileReader(status, self.peek(source), self.placement, self.mender, self._get_room)

    async def open_writer(
        self,
        parts: Parts,
        source: ViewSource = alone,
        *,
        exclusive: bool = False,
        make_parents: bool = True,
    ) -> FileWriter:
        """A stream whose `close` makes it the file `parts`. What its commit would refuse now is
        raised now: IsADirectoryError, FileExistsError, FileNotFoundError."""

        async def operation(view: View) -> int | None:
            return await metadata.check_writable(
                view, parts, exclusive=exclusive, make_parents=make_parents
            )

        ino = await self.run(operation, source())
        # A lock held while the file was opened must still be held when it is published.
        locks = [] if ino is None else self._locks_on(ino)
        stream = ChunkStream(
            self.placement, self._session, self.cluster.chunk_bytes, self._put_room
        )

        async def commit(contents: Contents) -> None:
            await self._put_file(
                parts, contents, source, exclusive=exclusive, make_parents=make_parents, locks=locks
            )

        writer = FileWriter(stream, commit, self._leftovers.abandon, join_path(parts))
        self._writers.add(writer)
        return writer

    async def _put_file(
        self,
        parts: Parts,
        contents: Contents,
        source: ViewSource,
        *,
        exclusive: bool,
        make_parents: bool,
        locks: Sequence[HeldLock] = (),
    ) -> None:
        put: Contents | LargeContents = contents
        try:
            if source() is None and is_large(contents):
                put = await LargeContents.stage(self.store, self.env, contents, parts)
            await self._put_contents(
                parts, put, source, exclusive=exclusive, make_parents=make_parents, locks=locks
            )
        except BaseException:
            # Whatever the outcome: had the file appeared, there would be no mark any more.
            for mark in dict.fromkeys(run.mark for run in contents.runs if run.mark):
                self._leftovers.discard(mark)
            raise

    async def _put_contents(
        self,
        parts: Parts,
        contents: Contents | LargeContents,
        source: ViewSource,
        *,
        exclusive: bool,
        make_parents: bool,
        locks: Sequence[HeldLock],
    ) -> None:
        async def put(view: View, actor: Actor) -> None:
            await metadata.put_file(
                view, actor, parts, contents,
                exclusive=exclusive, make_parents=make_parents, locks=locks,
            )  # fmt: skip

        while True:
            view = source()
            try:
                await self.change(put, view, len(parts))
            except PartitionMoved as moved:
                await self.placement.follow(moved.run)
                await contents.follow(moved.run)
                continue
            if view is not None:
                self._staged.setdefault(view, []).extend(contents.runs)
            return

    async def write(
        self,
        parts: Parts,
        data: Buffer,
        view: View | None = None,
        *,
        exclusive: bool = False,
        make_parents: bool = True,
    ) -> None:
        """Makes `parts` a file with the contents `data`."""
        data = contiguous(data)
        small = memoryview(data)
        if small.nbytes <= INLINE_BYTES_MAX:
            contents = inline_contents([small])
            return await self._put_file(
                parts, contents, lambda: view, exclusive=exclusive, make_parents=make_parents
            )
        while True:
            writer = await self.open_writer(
                parts, lambda: view, exclusive=exclusive, make_parents=make_parents
            )
            try:
                await writer.write(data)
                return await writer.close()
            except StagedCopiesLost:
                # The data is at hand, so it is written again, to the nodes that are there now.
                continue
            except SessionExpired:
                # The chunks belong to a session that ended meanwhile; the same holds, but within
                # a transaction that session may be needed.
                if view is not None:
                    raise
            finally:
                await writer.discard()

    async def copy(
        self,
        source: Parts,
        target: Parts,
        view: View | None = None,
        *,
        exclusive: bool = False,
        make_parents: bool = True,
    ) -> None:
        data = (await self._session.ensure()).next_id()
        large_too = view is not None

        async def operation(view: View, actor: Actor) -> None:
            await copy_file(
                view, actor, source, target, data,
                exclusive=exclusive, make_parents=make_parents, large_too=large_too,
            )  # fmt: skip

        while True:
            try:
                return await self.change(operation, view, len(target))
            except LargeSource as large:
                inode = large.inode
            session = await self._session.ensure()
            copied = await copy_large(
                self, self._leftovers, session, inode, source, target,
                exclusive=exclusive, make_parents=make_parents,
            )  # fmt: skip
            if copied:
                return None

    def rolled_back(self, view: View) -> None:
        """Tells that `view` will never be committed: its chunks can go at once."""
        self._leftovers.abandon(self._staged.pop(view, []))

    # -- upkeep ---------------------------------------------------------------------------

    async def gc(self, grace_s: float = 3600.0, progress: Progress = no_progress) -> GcReport:
        """Frees what was deleted more than `grace_s` seconds ago, and orphans; see `gc`.

        TypeError, InvalidInput for a grace that is no number, negative or not finite.
        """
        self._check_open()
        if isinstance(grace_s, bool) or not isinstance(grace_s, (int, float)):
            raise TypeError(f"grace_s must be a number, not {type(grace_s).__name__}")
        if not math.isfinite(grace_s) or grace_s < 0:
            raise InvalidInput(f"grace_s must be finite and not negative, not {grace_s!r}")
        return await Collector(self.store, self.env, self.placement, progress).collect(grace_s)

    async def repair(self, progress: Progress = no_progress) -> RepairReport:
        """Brings every chunk back to R copies, fewest first; see `repair`."""
        self._check_open()
        return await Repairer(self.store, self.env, self.placement, progress).repair()

    async def scrub(self, progress: Progress = no_progress) -> ScrubReport:
        """Reads every copy where it lies and mends the bad ones; see `scrub`."""
        self._check_open()
        return await Scrubber(self.store, self.placement, progress).scrub()

    async def fsck(self, copies: bool = False, progress: Progress = no_progress) -> FsckReport:
        """Checks that all records fit together, with `copies` also every copy of every chunk."""
        self._check_open()
        return await Checker(self.store, self.placement, progress).check(copies=copies)

    # -- what goes on behind --------------------------------------------------------------

    async def settle(self) -> None:
        """Waits for what goes on in the background: mending, deleting abandoned chunks."""
        await self._leftovers.settle()
        await self.mender.settle()

    async def close(self) -> None:
        """Discards files open for writing and waits for the background; then all is Closed."""
        for writer in list(self._writers):
            await writer.discard()
        self._closed = True
        self._leftovers.closing = True
        try:
            await self.settle()
        finally:
            await self._leftovers.close()
            await self.mender.close()

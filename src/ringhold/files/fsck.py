"""Checking that the records of all files fit together, at one revision.

What is checked:

- every directory entry names an inode of its kind, and every inode is reached from the root or
  from a detached tree; a file by as many entries as it counts links, a directory by one, in the
  directory it calls its parent;
- a file's size is that of its inline data, or of its extents; these are sorted, do not overlap,
  and lie within chunks of runs that exist and are not being deleted;
- a run is referred to by as many data ids as it counts; extents and runs belong to somebody;
- every partition has holders, unless none has any and no chunk is stored: a cluster without nodes;
- every record can be read and decoded; one that cannot is reported and left out, and what leads
  to it shows up as further problems;
- with `copies`, that every chunk has all R copies, every byte of which is read where it lies. A
  node that does not answer is a problem of its own.

It changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from ringhold.errors import Corrupt
from ringhold.files import records
from ringhold.files.copycheck import CopyCheck
from ringhold.files.metadata import TREE_DATA_PREFIX
from ringhold.files.place import Placement
from ringhold.files.records import (
    ROOT_INO,
    DirectoryEntry,
    Extent,
    Extents,
    FileKind,
    GarbageRecord,
    Inode,
    RunRecord,
)
from ringhold.files.stored import decoded, describe_key
from ringhold.files.survey import Progress, entries, no_progress, numbered
from ringhold.nodes import records as node_records
from ringhold.nodes.base import PARTITIONS
from ringhold.nodes.records import Partition
from ringhold.store import keyspace
from ringhold.store.base import Snapshot, Store
from ringhold.types import decode_name

T = TypeVar("T")

RAW_RECORDS = (
    keyspace.CLUSTER, keyspace.NODE, keyspace.SESSION, keyspace.KEY_VALUE, keyspace.LOCK,
    keyspace.MAILBOX, keyspace.FENCE, keyspace.SEMAPHORE, keyspace.ELECTION, keyspace.FILE_LOCK,
    keyspace.NEXT_INODE, keyspace.DIRECTORY_TIME,
)  # fmt: skip
"""Read for their checksums alone."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is not as it should be: `kind` from the list in `FsckReport`."""

    kind: str
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


@dataclass(slots=True)
class FsckReport:
    """What there is, and what is wrong with it.

    Kinds of problems: store (a record that cannot be read), entry, inode, links, parent, size,
    extents, run, references, partition, copies.
    """

    revision: int = 0
    files: int = 0
    directories: int = 0
    bytes: int = 0
    runs: int = 0
    chunks: int = 0
    deleted: int = 0
    problems: list[Problem] = field(default_factory=list)
    unreachable: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems


class Checker:
    """One check of everything."""

    def __init__(self, store: Store, placement: Placement, progress: Progress = no_progress):
        self._store = store
        self._placement = placement
        self._progress = progress
        self._inodes: dict[int, Inode] = {}
        self._children: dict[int, list[tuple[bytes, DirectoryEntry]]] = {}
        self._extents: dict[bytes, dict[int, Extents]] = {}
        self._runs: dict[bytes, RunRecord] = {}
        self._garbage: dict[bytes, GarbageRecord] = {}
        self._tables: dict[int, Partition] = {}
        self.report = FsckReport()

    def _found(self, kind: str, where: str, message: str) -> None:
        self.report.problems.append(Problem(kind, where, message))

    async def check(self, *, copies: bool = False) -> FsckReport:
        snapshot = await self._store.snapshot()
        try:
            self.report.revision = await snapshot.fix()
            await self._load(snapshot)
        finally:
            await snapshot.close()
        reached = self._check_tree()
        self._check_inodes(reached)
        self._check_data(reached)
        self._check_runs()
        self._check_partitions()
        if copies:
            await self._check_copies()
        return self.report

    async def _load(self, snapshot: Snapshot) -> None:
        async for key, inode in self._records(snapshot, keyspace.INODE, records.decode_inode):
            self._inodes[int.from_bytes(key[1:9], "big")] = inode
        entry_records = self._records(snapshot, keyspace.DIRECTORY_ENTRY, records.decode_entry)
        async for key, child in entry_records:
            self._children.setdefault(int.from_bytes(key[1:9], "big"), []).append((key[9:], child))
        async for key, extents in self._records(snapshot, keyspace.EXTENTS, records.decode_extents):
            block = int.from_bytes(key[17:21], "big")
            self._extents.setdefault(key[1:17], {})[block] = extents
        async for key, run in self._records(snapshot, keyspace.RUN, records.decode_run):
            self._runs[key[1:]] = run
        async for key, garbage in self._records(snapshot, keyspace.GARBAGE, records.decode_garbage):
            self._garbage[key[9:]] = garbage
        pages = self._records(snapshot, keyspace.PARTITION_PAGE, node_records.decode_page)
        async for key, page in pages:
            self._tables.update(numbered(key, page))
        async for _ in self._records(snapshot, keyspace.REPAIR, records.decode_repair):
            continue
        for prefix in RAW_RECORDS:
            async for _ in entries(snapshot, prefix, damaged=self._unreadable):
                continue

    async def _records(
        self, snapshot: Snapshot, prefix: bytes, decode: Callable[[bytes], T]
    ) -> AsyncIterator[tuple[bytes, T]]:
        """The records below `prefix`, without those that cannot be read."""
        async for key, entry in entries(snapshot, prefix, damaged=self._unreadable):
            try:
                record = decoded(decode, key, entry.value)
            except Corrupt as error:
                self._unreadable(key, error)
            else:
                yield key, record

    def _unreadable(self, key: bytes, error: Corrupt) -> None:
        self._found("store", describe_key(key), f"its record in the store is damaged: {error}")

    # -- the tree -------------------------------------------------------------------------

    def _check_tree(self) -> dict[int, list[str]]:
        """Walks from the root and from every detached tree; the paths that reach each inode."""
        reached: dict[int, list[str]] = {ROOT_INO: ["/"]}
        pending: list[tuple[int, str]] = [(ROOT_INO, "")]
        for data, garbage in self._garbage.items():
            if data.startswith(TREE_DATA_PREFIX):
                path = f"deleted:{decode_name(garbage.path)}"
                reached.setdefault(garbage.ino, []).append(path)
                pending.append((garbage.ino, path))
                self.report.deleted += 1
        if ROOT_INO not in self._inodes:
            self._found("inode", "/", "the root has no inode")
        walked: set[int] = set()
        while pending:
            directory, path = pending.pop()
            if directory in walked:
                continue
            walked.add(directory)
            for name, child in self._children.get(directory, ()):
                where = f"{path}/{decode_name(name)}"
                reached.setdefault(child.ino, []).append(where)
                self._check_entry(directory, where, child)
                if child.kind is FileKind.DIRECTORY:
                    pending.append((child.ino, where))
        for directory in sorted(self._children.keys() - walked):
            names = len(self._children[directory])
            where = f"inode {directory}"
            self._found("entry", where, f"{names} entries in a directory that nothing leads to")
        return reached

    def _check_entry(self, directory: int, where: str, child: DirectoryEntry) -> None:
        inode = self._inodes.get(child.ino)
        if inode is None:
            self._found("entry", where, f"names inode {child.ino}, which does not exist")
            return
        if inode.kind is not child.kind:
            kinds = f"{child.kind.name.lower()}, its inode a {inode.kind.name.lower()}"
            self._found("entry", where, f"is entered as a {kinds}")
        if inode.kind is FileKind.DIRECTORY and inode.parent != directory:
            message = f"lies in directory {directory}, its inode says {inode.parent}"
            self._found("parent", where, message)

    def _check_inodes(self, reached: dict[int, list[str]]) -> None:
        for done, (ino, inode) in enumerate(sorted(self._inodes.items())):
            self._progress(done + 1, len(self._inodes))
            paths = reached.get(ino, [])
            if not paths:
                self._found("inode", f"inode {ino}", "no entry leads to it")
                continue
            if inode.kind is FileKind.DIRECTORY:
                self.report.directories += 1
                if len(paths) > 1:
                    self._found("links", paths[0], f"a directory with {len(paths)} entries")
                continue
            self.report.files += 1
            self.report.bytes += inode.size
            if len(paths) != inode.links:
                message = f"counts {inode.links} links, has {len(paths)} entries"
                self._found("links", paths[0], message)
            if inode.data is None and len(inode.inline or b"") != inode.size:
                message = f"size {inode.size}, but {len(inode.inline or b'')} bytes inline"
                self._found("size", paths[0], message)

    # -- data -----------------------------------------------------------------------------

    def _check_data(self, reached: dict[int, list[str]]) -> None:
        owned: dict[bytes, str] = {}
        for ino, inode in self._inodes.items():
            if inode.data is None:
                continue
            where = reached.get(ino, [f"inode {ino}"])[0]
            if inode.data in owned:
                self._found("extents", where, f"shares its data id with {owned[inode.data]}")
            owned[inode.data] = where
            self._check_extents(where, inode, self._extents.get(inode.data, {}))
        for data in sorted(self._extents.keys() - owned.keys() - self._garbage.keys()):
            self._found("extents", f"data {data.hex()}", "extents that belong to no file")

    def _check_extents(self, where: str, inode: Inode, blocks: dict[int, Extents]) -> None:
        if inode.block_bytes <= 0:
            self._found("extents", where, "names data but no block size")
            return
        expected = range(-(-inode.size // inode.block_bytes))
        if sorted(blocks) != list(expected):
            message = f"extents of blocks {sorted(blocks)}, should be 0 … {len(expected) - 1}"
            self._found("extents", where, message)
        end = 0
        for block in sorted(blocks):
            for extent in blocks[block].extents:
                if extent.file_offset < max(end, block * inode.block_bytes):
                    self._found("extents", where, f"overlap at byte {extent.file_offset}")
                end = extent.file_offset + extent.length
                if end > (block + 1) * inode.block_bytes:
                    self._found("extents", where, f"extent beyond its block at byte {end}")
                self._check_extent_run(where, extent)
        if end != inode.size:
            self._found("size", where, f"size {inode.size}, but its extents end at {end}")

    def _check_extent_run(self, where: str, extent: Extent) -> None:
        run, record = extent.run.hex(), self._runs.get(extent.run)
        if record is None:
            self._found("run", where, f"run {run} has no record")
        elif record.dead:
            self._found("run", where, f"run {run} is being deleted")
        elif (
            extent.number >= len(record.chunks)
            or extent.offset + extent.length > record.chunks[extent.number].length
        ):
            self._found("run", where, f"extent beyond chunk {extent.number} of run {run}")

    def _check_runs(self) -> None:
        uses: Counter[bytes] = Counter()
        for data, blocks in self._extents.items():
            # Blocks are deleted one after the other, and count their runs down by themselves.
            in_blocks = Counter(
                run
                for extents in blocks.values()
                for run in {extent.run: None for extent in extents.extents}
            )
            uses.update(in_blocks.keys())
            for run in (run for run, count in in_blocks.items() if count > 1):
                message = f"lies in {in_blocks[run]} blocks of data {data.hex()}"
                self._found("extents", f"run {run.hex()}", message)
        dying = {run for garbage in self._garbage.values() for run in garbage.runs}
        for run, record in self._runs.items():
            where = f"run {run.hex()}"
            self.report.runs += 1
            self.report.chunks += len(record.chunks)
            if record.references != uses[run]:
                message = f"counts {record.references} references, has {uses[run]}"
                self._found("references", where, message)
            if (record.dead or not uses[run]) and run not in dying:
                self._found("run", where, "is used by nobody and not being deleted")

    def _check_partitions(self) -> None:
        used = {record.partition for record in self._runs.values()}
        if not used and self._made_without_nodes():
            return
        for first in range(0, PARTITIONS, keyspace.PARTITIONS_PER_PAGE):
            page = range(first, first + keyspace.PARTITIONS_PER_PAGE)
            without = [partition for partition in page if not self._holders(partition)]
            if len(without) == len(page):
                where = describe_key(keyspace.partition_page_key(first))
                self._no_holders(where, not used.isdisjoint(page))
                continue
            for partition in without:
                self._no_holders(f"partition {partition}", partition in used)

    def _made_without_nodes(self) -> bool:
        tables = self._tables.values()
        return len(tables) == PARTITIONS and not any(table.holders for table in tables)

    def _no_holders(self, where: str, used: bool) -> None:
        self._found("partition", where, "no holders" + (", and runs lie there" if used else ""))

    def _holders(self, partition: int) -> Iterable[object]:
        table = self._tables.get(partition)
        return () if table is None else table.holders

    async def _check_copies(self) -> None:
        check = CopyCheck(self._store, self._placement, self._runs, self._tables, self._progress)
        faults = await check.check()
        self.report.unreachable = list(faults.unseen)
        for node, copies in faults.unseen.items():
            self._found("copies", f"node {node}", f"does not answer, {copies} copies not seen")
        for chunk, message in faults.short:
            self._found("copies", f"chunk {chunk}", message)

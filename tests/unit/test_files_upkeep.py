"""Goal: gc frees what nobody can reach and nothing else; repair and scrub bring every copy back;
fsck sees each kind of damage to the records.
Method: `FileCore` over scripted nodes. What should go or come back is counted on the nodes
themselves; for fsck, one record after the other is broken by hand.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, cast

import msgspec
import pytest
from files_fixture import CHUNK, Fixture, ScriptedNode, file_system

from ringhold.errors import ChecksumMismatch, InvalidInput
from ringhold.files import records
from ringhold.files.gc import Collector
from ringhold.files.paths import split_path
from ringhold.files.stored import describe_key
from ringhold.nodes.base import ChunkId, ChunkState
from ringhold.store import keyspace
from ringhold.store.base import Put, Store

pytestmark = pytest.mark.usefixtures("on_every_engine")

PATH = split_path("/f")
DATA = os.urandom(5 * CHUNK + 123)
COPIES = 6 * 3


def with_file(test: Callable[[Fixture], Awaitable[None]]) -> None:
    async def run() -> None:
        async with file_system() as fixture:
            await fixture.core.write(PATH, DATA)
            await test(fixture)

    asyncio.run(run())


async def content(f: Fixture, path: str = "/f") -> bytes:
    reader = await f.core.open_reader(split_path(path))
    return b"".join(await reader.read(0, reader.size))


def copies(f: Fixture) -> int:
    return sum(len(node.files) for node in f.nodes)


# -- gc -------------------------------------------------------------------------------------


def test_deleted_data_stays_for_the_grace_and_then_goes_entirely() -> None:
    async def test(f: Fixture) -> None:
        await f.core.unlink([PATH])
        assert (await f.core.gc(60)).files == 0
        assert copies(f) == COPIES
        report = await f.core.gc(0)
        assert (report.files, report.runs, report.chunks) == (1, 1, COPIES)
        assert report.bytes == len(DATA)
        assert copies(f) == 0
        assert [await f.keys(prefix) for prefix in (b"G", b"X", b"C", b"K")] == [[]] * 4

    with_file(test)


def test_a_node_that_is_down_keeps_the_records_until_it_has_answered() -> None:
    async def test(f: Fixture) -> None:
        await f.core.unlink([PATH])
        f.nodes[0].down = True
        report = await f.core.gc(0)
        assert (report.waiting, report.runs, report.unreachable) == (1, 0, ["n0"])
        assert len(await f.keys(b"C")) == len(await f.keys(b"G")) == 1
        assert (await f.core.fsck()).ok
        f.nodes[0].down = False
        assert (await f.core.gc(0)).runs == 1
        assert copies(f) == 0
        assert await f.keys(b"C") == await f.keys(b"G") == []

    with_file(test)


def test_orphans_go_only_when_their_session_is_gone() -> None:
    async def test(f: Fixture) -> None:
        state = await f.session.ensure()
        run = state.next_id()
        node = f.nodes[0]
        from ringhold.core import digest

        await node.put(ChunkId(run, 0), b"x", digest(b"x"))
        assert (await f.core.gc(0)).orphans == 0
        await f.store.revoke_lease(state.id)
        assert (await f.core.gc(0)).orphans == 1
        assert copies(f) == COPIES
        assert await content(f) == DATA

    with_file(test)


class LateNode(ScriptedNode):
    """Between the listing and its answer, `meanwhile` happens."""

    meanwhile: Callable[[], Awaitable[None]] | None = None

    async def list_chunks(self, partition: int | None = None) -> list[ChunkId]:
        listed = await super().list_chunks(partition)
        if self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            await meanwhile()
            # As slow as a node may be: it looks again at the end and answers with all it has.
            listed = await super().list_chunks(partition)
        return listed


def test_a_file_written_while_gc_lists_a_node_is_not_an_orphan() -> None:
    """The order that would lose it, records first, is shown to lose it."""

    async def test(f: Fixture) -> None:
        late = LateNode("n0")
        late.files = f.pool.nodes["n0"].files
        f.pool.nodes["n0"] = late

        async def write_and_die() -> None:
            await f.core.write(split_path("/late"), DATA)
            state = await f.session.ensure()
            state.lose()
            await f.store.revoke_lease(state.id)

        late.meanwhile = write_and_die
        assert (await f.core.gc(0)).orphans == 0
        assert await content(f, "/late") == DATA

        early = await f.store.snapshot()

        class RecordsFirst(Collector):
            async def _unnamed(self, runs: object) -> list[bytes]:
                keep, self._store = self._store, EarlyStore()  # type: ignore[assignment]
                try:
                    return await super()._unnamed(runs)  # type: ignore[arg-type]
                finally:
                    self._store = keep

        class EarlyStore:
            async def snapshot(self) -> object:
                return Kept()

        class Kept:
            get_many = early.get_many

            async def close(self) -> None:
                return None

        late.meanwhile = write_and_die
        wrong = RecordsFirst(f.store, f.env, f.core.placement)
        assert (await wrong.collect(0)).orphans > 0

    with_file(test)


def test_gc_by_several_at_once_does_it_once() -> None:
    async def test(f: Fixture) -> None:
        await f.core.write(split_path("/t/x"), DATA)
        await f.core.copy(PATH, split_path("/t/y"))
        await f.core.remove_trees([split_path("/t")])
        await asyncio.gather(*(f.core.gc(0) for _ in range(4)))
        report = await f.core.fsck(copies=True)
        assert report.ok, report.problems
        assert copies(f) == COPIES
        assert await f.keys(b"G") == []

    with_file(test)


# -- repair and scrub -----------------------------------------------------------------------


def test_repair_brings_back_a_wiped_node_fewest_copies_first() -> None:
    async def test(f: Fixture) -> None:
        f.nodes[2].down = True
        await f.core.write(split_path("/short"), DATA)
        f.nodes[2].down = False
        await f.replace_node("n1")
        assert not (await f.core.fsck(copies=True)).ok
        progress: list[tuple[int, int]] = []
        report = await f.core.repair(lambda done, total: progress.append((done, total)))
        assert report.complete
        assert report.restored == 6 + 6 + 6
        # The file with one good copy left comes before the one with two.
        short = next(iter(set(f.nodes[2].files) - {c for c in f.nodes[2].puts[:6]})).run
        assert [chunk.run for chunk in f.nodes[1].puts[-12:-6]] == [short] * 6
        assert copies(f) == 2 * COPIES
        assert await f.keys(b"K") == []
        assert (await f.core.fsck(copies=True)).ok
        assert progress[-1][0] == progress[-1][1]
        assert (await f.core.repair()).restored == 0

    with_file(test)


def test_repair_keeps_its_record_while_a_node_is_down() -> None:
    async def test(f: Fixture) -> None:
        f.nodes[2].down = True
        await f.core.write(split_path("/short"), DATA)
        report = await f.core.repair()
        assert (report.complete, report.unreachable) == (False, ["n2"])
        assert len(await f.keys(b"K")) == 1

    with_file(test)


def test_repair_says_what_is_lost() -> None:
    async def test(f: Fixture) -> None:
        chunk = min(f.nodes[0].files)
        f.nodes[0].damage(chunk)
        for node in f.nodes[1:]:
            del node.files[chunk]
        report = await f.core.repair()
        assert len(report.lost) == 1
        assert str(chunk) in report.lost[0]
        assert not report.complete

    with_file(test)


def test_scrub_finds_rot_swaps_and_gaps_and_mends_them() -> None:
    async def test(f: Fixture) -> None:
        from ringhold.core import digest

        one, two, three, four = sorted(f.nodes[0].files)[:4]
        f.nodes[0].damage(one)
        f.nodes[1].damage(one, 70)
        del f.nodes[2].files[two]
        await f.nodes[1].put(three, b"other", digest(b"other"))
        f.nodes[0].files[four] = f.nodes[0].files[two]
        report = await f.core.scrub()
        assert report.checked == COPIES
        assert (len(report.damaged), len(report.missing), report.mended) == (4, 1, 5)
        assert not report.lost
        assert (await f.core.scrub()).clean
        for node in f.nodes:
            assert set(await node.verify(sorted(node.files))) == {ChunkState.GOOD}
        assert await content(f) == DATA

    with_file(test)


def test_scrub_reports_nodes_that_are_down() -> None:
    async def test(f: Fixture) -> None:
        f.nodes[1].down = True
        report = await f.core.scrub()
        assert (report.clean, report.unreachable) == (False, ["n1"])

    with_file(test)


# -- fsck -----------------------------------------------------------------------------------

Break = Callable[[Fixture], Awaitable[list[Put | bytes]]]


async def _file(f: Fixture) -> tuple[int, records.Inode]:
    status = await f.core.stat(PATH)
    return status.ino, status.inode


async def no_inode(f: Fixture) -> list[Put | bytes]:
    return [keyspace.inode_key((await _file(f))[0])]


async def no_entry(f: Fixture) -> list[Put | bytes]:
    return [keyspace.entry_key(1, b"f")]


async def second_entry(f: Fixture) -> list[Put | bytes]:
    entry = records.DirectoryEntry((await _file(f))[0], records.FileKind.FILE)
    return [Put(keyspace.entry_key(1, b"g"), records.encode(entry))]


async def wrong_kind(f: Fixture) -> list[Put | bytes]:
    entry = records.DirectoryEntry((await _file(f))[0], records.FileKind.DIRECTORY)
    return [Put(keyspace.entry_key(1, b"f"), records.encode(entry))]


async def wrong_size(f: Fixture) -> list[Put | bytes]:
    ino, inode = await _file(f)
    return [Put(keyspace.inode_key(ino), records.encode(msgspec.structs.replace(inode, size=7)))]


async def wrong_parent(f: Fixture) -> list[Put | bytes]:
    status = await f.core.stat(split_path("/d"))
    inode = msgspec.structs.replace(status.inode, parent=99)
    return [Put(keyspace.inode_key(status.ino), records.encode(inode))]


async def two_parents(f: Fixture) -> list[Put | bytes]:
    ino = (await f.core.stat(split_path("/d"))).ino
    entry = records.DirectoryEntry(ino, records.FileKind.DIRECTORY)
    return [Put(keyspace.entry_key(1, b"again"), records.encode(entry))]


async def lost_directory(f: Fixture) -> list[Put | bytes]:
    entry = records.DirectoryEntry((await _file(f))[0], records.FileKind.FILE)
    return [Put(keyspace.entry_key(77, b"x"), records.encode(entry))]


async def no_extents(f: Fixture) -> list[Put | bytes]:
    data = (await _file(f))[1].data
    assert data
    return [keyspace.extents_key(data, 0)]


async def stray_extents(f: Fixture) -> list[Put | bytes]:
    return [Put(keyspace.extents_key(b"s" * 16, 0), records.encode(records.Extents(())))]


async def _run(f: Fixture) -> tuple[bytes, records.RunRecord]:
    key = (await f.keys(b"C"))[0]
    snapshot = await f.store.snapshot()
    entry = await snapshot.get(key)
    await snapshot.close()
    assert entry is not None
    return key, records.decode_run(entry.value)


async def no_run(f: Fixture) -> list[Put | bytes]:
    return [(await _run(f))[0]]


async def dead_run(f: Fixture) -> list[Put | bytes]:
    key, run = await _run(f)
    return [Put(key, records.encode(msgspec.structs.replace(run, dead=True)))]


async def wrong_references(f: Fixture) -> list[Put | bytes]:
    key, run = await _run(f)
    return [Put(key, records.encode(msgspec.structs.replace(run, references=2)))]


async def shorter_run(f: Fixture) -> list[Put | bytes]:
    key, run = await _run(f)
    return [Put(key, records.encode(msgspec.structs.replace(run, chunks=run.chunks[:-1])))]


async def no_partition(f: Fixture) -> list[Put | bytes]:
    return [keyspace.partition_page_key(5)]


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (no_inode, "entry"), (no_entry, "inode"), (second_entry, "links"), (wrong_kind, "entry"),
        (wrong_size, "size"), (wrong_parent, "parent"), (two_parents, "links"),
        (lost_directory, "entry"), (no_extents, "extents"), (stray_extents, "extents"),
        (no_run, "run"), (dead_run, "run"), (wrong_references, "references"),
        (shorter_run, "run"), (no_partition, "partition"),
    ],
)  # fmt: skip
def test_fsck_finds_each_kind_of_damage(damage: Break, kind: str) -> None:
    async def test(f: Fixture) -> None:
        await f.core.make_directory(split_path("/d"))
        assert (await f.core.fsck(copies=True)).ok
        changes = await damage(f)
        await f.store.commit(
            puts=[change for change in changes if isinstance(change, Put)],
            deletes=[change for change in changes if isinstance(change, bytes)],
        )
        report = await f.core.fsck()
        assert not report.ok
        assert kind in {problem.kind for problem in report.problems}
        assert all(str(problem) for problem in report.problems)

    with_file(test)


def test_fsck_with_copies_names_every_copy_that_is_not_good() -> None:
    async def test(f: Fixture) -> None:
        from ringhold.core import digest

        one, two, three, four = sorted(f.nodes[0].files)[:4]
        assert (await f.core.fsck(copies=True)).ok
        del f.nodes[0].files[one]
        f.nodes[1].damage(two)
        del f.nodes[2].files[three][-1:]
        await f.nodes[0].delete([four])
        await f.nodes[0].put(four, b"other", digest(b"other"))
        f.nodes[1].files[four] = f.nodes[1].files[three]
        report = await f.core.fsck(copies=True)
        assert [problem.kind for problem in report.problems] == ["copies"] * 4
        told = [str(problem) for problem in report.problems]
        for text, chunk, state in zip(
            told,
            (one, two, three, four),
            ("missing on n0", "damaged on n1", "damaged on n2", "damaged on n"),
            strict=True,
        ):
            assert str(chunk) in text
            assert state in text
        assert "on n0" in told[3]
        assert "on n1" in told[3]
        assert (await f.core.fsck()).ok
        await f.core.scrub()
        assert (await f.core.fsck(copies=True)).ok

    with_file(test)


def test_fsck_with_copies_tells_which_node_does_not_answer() -> None:
    async def test(f: Fixture) -> None:
        f.nodes[1].down = True
        progress: list[tuple[int, int]] = []
        report = await f.core.fsck(copies=True, progress=lambda *done: progress.append(done))
        assert [str(problem) for problem in report.problems] == [
            "node n1: does not answer, 6 copies not seen"
        ]
        assert report.unreachable == ["n1"]
        assert progress[-1] == (12, 18)

    with_file(test)


def test_fsck_with_copies_forgives_what_was_deleted_meanwhile() -> None:
    async def test(f: Fixture) -> None:
        verify = f.nodes[0].verify

        async def late(chunks: Sequence[ChunkId]) -> list[ChunkState]:
            f.nodes[0].verify = verify  # type: ignore[method-assign]
            await f.core.unlink([PATH])
            await f.core.gc(0)
            return await verify(chunks)

        f.nodes[0].verify = late  # type: ignore[method-assign]
        assert (await f.core.fsck(copies=True)).ok
        assert copies(f) == 0

    with_file(test)


class DamagedStore:
    """A store that cannot read the rows `bad`, as one with checksums answers."""

    def __init__(self, store: Any, bad: set[bytes]):
        self._store = store
        self.bad = bad

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def snapshot(self) -> Any:
        return DamagedSnapshot(await self._store.snapshot(), self.bad)


class DamagedSnapshot:
    def __init__(self, snapshot: Any, bad: set[bytes]):
        self._snapshot = snapshot
        self._bad = bad

    def __getattr__(self, name: str) -> Any:
        return getattr(self._snapshot, name)

    def _check(self, keys: Iterable[bytes]) -> None:
        if not self._bad.isdisjoint(keys):
            raise ChecksumMismatch("a row does not match its checksum")

    async def get(self, key: bytes) -> Any:
        self._check([key])
        return await self._snapshot.get(key)

    async def get_many(self, keys: Sequence[bytes]) -> Any:
        self._check(keys)
        return await self._snapshot.get_many(keys)

    async def range(self, start: bytes, end: bytes, **options: Any) -> Any:
        found = await self._snapshot.range(start, end, **options)
        self._check(key for key, _ in found)
        return found


def test_fsck_reads_round_rows_that_cannot_be_read_and_names_them() -> None:
    async def test(f: Fixture) -> None:
        for name in ("a", "b", "c\0", "c\0\xff", "z"):
            await f.core.write(split_path(f"/{name.encode().hex()}"), b"small")
        await f.store.commit(puts=[Put(b"kuser", b"value"), Put(b"G\0broken", b"\xc1")])
        ino = (await f.core.stat(split_path("/62"))).ino
        run = (await f.keys(b"C"))[0]
        entries = await f.keys(b"D")
        bad = {keyspace.inode_key(ino), run, entries[0], entries[-1], b"kuser"}
        f.core.store = cast(Store, DamagedStore(f.store, bad))
        report = await f.core.fsck()
        named = [problem.where for problem in report.problems if problem.kind == "store"]
        assert sorted(named) == sorted(
            [*(describe_key(key) for key in bad), describe_key(b"G\0broken")]
        )
        # Everything else was read: six files less those that cannot be reached or have no inode.
        assert report.files == 3

    with_file(test)


def test_reading_a_small_file_whose_row_is_damaged_names_the_path() -> None:
    async def test(f: Fixture) -> None:
        await f.core.write(split_path("/d/small"), b"small")
        await f.core.write(split_path("/d/other"), b"other")
        ino = (await f.core.stat(split_path("/d/small"))).ino
        store = DamagedStore(f.store, {keyspace.inode_key(ino)})
        f.core.store = cast(Store, store)
        with pytest.raises(ChecksumMismatch, match="/d/small") as caught:
            await content(f, "/d/small")
        assert caught.value.what == "/d/small"
        with pytest.raises(ChecksumMismatch, match="/d/small"):
            await f.core.list_directory(split_path("/d"))
        assert await content(f, "/d/other") == b"other"
        store.bad = {(await f.keys(b"D"))[-1]}
        with pytest.raises(ChecksumMismatch, match="/d/small: directory entry 'small'"):
            await content(f, "/d/small")

    with_file(test)


def test_keys_are_described_for_people() -> None:
    data, run = b"d" * 16, b"r" * 16
    for key, told in [
        (keyspace.entry_key(7, b"f9"), "directory entry 'f9'"),
        (keyspace.entry_prefix(7), "the entries of directory 7"),
        (keyspace.inode_key(12), "inode 12"),
        (keyspace.extents_key(data, 3), f"block 3 of file data {data.hex()}"),
        (keyspace.run_key(run), f"file data in run {run.hex()}"),
        (keyspace.partition_page_key(70), "partitions 64 … 127"),
        (b"kuser", "key 'user'"),
        (b"?\x01", "?:01"),
        (b"\xff", "\ufffd:"),
        (b"I\x01", "I:01"),
        (b"", ":"),
    ]:
        assert describe_key(key) == told


@pytest.mark.parametrize(
    ("grace", "error"),
    [
        (float("nan"), InvalidInput), (float("inf"), InvalidInput), (-1, InvalidInput),
        ("ab", TypeError), (None, TypeError), (True, TypeError),
    ],
)  # fmt: skip
def test_a_grace_that_is_none_is_refused(grace: Any, error: type[Exception]) -> None:
    async def test(f: Fixture) -> None:
        await f.core.unlink([PATH])
        with pytest.raises(error, match="grace_s"):
            await f.core.gc(grace)
        assert copies(f) == COPIES

    with_file(test)

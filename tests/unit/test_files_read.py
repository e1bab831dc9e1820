"""Goal: no byte is handed out that is not what was written, any good copy is found, and a bad one
is mended by the read that met it.
Method: `FileCore` over scripted nodes that keep chunk files of the real format; their bytes are
flipped, cut, swapped or removed, and the fault is shown to be there before it is survived.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Awaitable, Callable

import pytest
from files_fixture import CHUNK, Fixture, file_system

from ringhold.errors import ChecksumMismatch, Corrupt, NodeDown
from ringhold.files import records
from ringhold.files.paths import split_path
from ringhold.nodes.base import ChunkState
from ringhold.nodes.chunk_file import HEADER_BYTES
from ringhold.store import keyspace
from ringhold.store.base import Put

pytestmark = pytest.mark.usefixtures("on_every_engine")

PATH = split_path("/f")
DATA = os.urandom(5 * CHUNK + 123)


def with_file(test: Callable[[Fixture], Awaitable[None]], *, replicas: int = 3) -> None:
    async def run() -> None:
        async with file_system(replicas=replicas) as fixture:
            await fixture.core.write(PATH, DATA)
            await test(fixture)

    asyncio.run(run())


async def content(f: Fixture) -> bytes:
    reader = await f.core.open_reader(PATH)
    return b"".join(await reader.read(0, reader.size))


async def states(f: Fixture) -> set[ChunkState]:
    return {state for n in f.nodes for state in await n.verify(sorted(n.files))}


def test_a_range_fetches_the_blocks_it_touches() -> None:
    async def test(f: Fixture) -> None:
        reader = await f.core.open_reader(PATH)
        for node in f.nodes:
            node.gets.clear()
        start, end = 2 * CHUNK - 5, 3 * CHUNK + 7
        assert b"".join(await reader.read(start, end)) == DATA[start:end]
        asked = sorted(get[1:] for node in f.nodes for get in node.gets)
        assert asked == [(0, 7), (0, CHUNK), (CHUNK - 5, 5)]
        assert await reader.read(len(DATA), len(DATA) + 10) == []
        assert b"".join(await reader.read(len(DATA) - 1, len(DATA) + 10)) == DATA[-1:]

    with_file(test)


@pytest.mark.parametrize("offset", [0, 20, 50, 64, 96, HEADER_BYTES - 1, HEADER_BYTES, -1])
def test_a_flipped_bit_anywhere_is_found_and_mended(
    offset: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(f: Fixture) -> None:
        for node in f.nodes[:2]:
            for chunk in node.files:
                node.damage(chunk, offset)
        for node in f.nodes:
            node.gets.clear()
        assert ChunkState.DAMAGED in await states(f)
        with caplog.at_level(logging.WARNING, "ringhold"):
            assert await content(f) == DATA
        await f.core.settle()
        met = [(node, chunk) for node in f.nodes[:2] for chunk, _, _ in node.gets]
        assert met
        for node, chunk in met:
            assert node.files[chunk] == f.nodes[2].files[chunk]
        assert any("/f" in r.message and "bad" in r.message for r in caplog.records)

    with_file(test)


def test_a_missing_copy_on_a_node_that_is_up_is_put_back() -> None:
    async def test(f: Fixture) -> None:
        f.nodes[0].files.clear()
        f.nodes[1].down = True
        assert await content(f) == DATA
        await f.core.settle()
        # Of each chunk the first holder asked may have been n2: only what was met is mended.
        assert 0 < len(f.nodes[0].files) <= 6
        assert await states(_up(f)) == {ChunkState.GOOD}

    def _up(f: Fixture) -> Fixture:
        f.nodes[1].down = False
        return f

    with_file(test)


def test_a_part_read_mends_the_whole_chunk() -> None:
    async def test(f: Fixture) -> None:
        for node in f.nodes[:2]:
            for chunk in node.files:
                node.damage(chunk)
        reader = await f.core.open_reader(PATH)
        for number in range(3):
            start = number * CHUNK + 5
            assert b"".join(await reader.read(start, start + 4)) == DATA[start : start + 4]
        await f.core.settle()
        met = {(node.name, chunk) for node in f.nodes[:2] for chunk, _, _ in node.gets}
        assert met
        for name, chunk in sorted(met):
            assert f.pool.nodes[name].files[chunk] == f.nodes[2].files[chunk]

    with_file(test)


def test_swapped_chunk_files_are_refused() -> None:
    async def test(f: Fixture) -> None:
        for node in f.nodes:
            one, other = sorted(node.files)[:2]
            node.files[one], node.files[other] = node.files[other], node.files[one]
        with pytest.raises(Corrupt, match="/f"):
            await content(f)

    with_file(test)


def test_a_file_that_is_whole_in_itself_and_the_wrong_one_is_refused() -> None:
    async def test(f: Fixture) -> None:
        from ringhold.core import digest

        for node in f.nodes:
            chunk = min(node.files)
            wrong = bytes(CHUNK)
            await node.put(chunk, wrong, digest(wrong))
        assert await states(f) == {ChunkState.GOOD}
        with pytest.raises(ChecksumMismatch, match="manifest"):
            await content(f)

    with_file(test)


def test_all_copies_bad_names_the_path_and_the_chunk() -> None:
    async def test(f: Fixture) -> None:
        chunk = min(f.nodes[0].files)
        for node in f.nodes:
            node.damage(chunk)
        with pytest.raises(ChecksumMismatch) as caught:
            await content(f)
        assert "/f" in str(caught.value)
        assert str(chunk) in caught.value.what
        for node in f.nodes:
            del node.files[chunk]
        with pytest.raises(Corrupt, match="every copy"):
            await content(f)

    with_file(test)


def test_while_a_node_is_down_nothing_is_called_lost() -> None:
    async def test(f: Fixture) -> None:
        for node in f.nodes[:2]:
            node.files.clear()
        f.nodes[2].down = True
        with pytest.raises(NodeDown, match="/f") as caught:
            await content(f)
        assert caught.value.retryable
        f.nodes[2].down = False
        assert await content(f) == DATA

    with_file(test)


def test_a_node_that_was_down_is_asked_last() -> None:
    async def test(f: Fixture) -> None:
        f.nodes[0].down = True
        await content(f)
        f.nodes[0].down = False
        f.nodes[0].gets.clear()
        await content(f)
        assert not f.nodes[0].gets

    with_file(test)


def test_an_open_reader_keeps_its_version_until_gc_takes_it() -> None:
    async def test(f: Fixture) -> None:
        reader = await f.core.open_reader(PATH)
        lazy = await f.core.open_reader(PATH)
        await reader.read(0, 1)
        await f.core.write(PATH, b"new")
        assert b"".join(await reader.read(0, len(DATA))) == DATA
        await f.core.gc(3600)
        assert b"".join(await reader.read(0, len(DATA))) == DATA
        await f.core.gc(0)
        for stale in (reader, lazy):
            with pytest.raises(OSError, match="/f") as caught:
                await stale.read(0, len(DATA))
            assert caught.value.errno == errno.ESTALE
        assert await content(f) == b"new"

    with_file(test)


def test_holes_read_as_zeros_and_a_lost_manifest_does_not() -> None:
    async def test(f: Fixture) -> None:
        inode = (await f.core.stat(PATH)).inode
        assert inode.data is not None
        key = keyspace.extents_key(inode.data, 0)
        snapshot = await f.store.snapshot()
        entry = await snapshot.get(key)
        assert entry is not None
        extents = records.decode_extents(entry.value).extents
        holed = records.Extents((extents[0], *extents[3:]))
        await f.store.commit(puts=[Put(key, records.encode(holed))])
        assert await content(f) == DATA[:CHUNK] + bytes(2 * CHUNK) + DATA[3 * CHUNK :]
        await f.store.commit(deletes=[key])
        with pytest.raises(Corrupt, match="missing"):
            await content(f)

    with_file(test)


def test_a_record_that_does_not_decode_is_corrupt_and_named() -> None:
    async def test(f: Fixture) -> None:
        ino = (await f.core.stat(PATH)).ino
        await f.store.commit(puts=[Put(keyspace.inode_key(ino), b"\xc1")])
        with pytest.raises(Corrupt, match="store record inode"):
            await content(f)

    with_file(test)


def test_a_cancelled_read_leaves_no_task() -> None:
    async def test(f: Fixture) -> None:
        before = len(asyncio.all_tasks())
        for steps in range(25):
            task = asyncio.ensure_future(content(f))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert len(asyncio.all_tasks()) == before
        assert await content(f) == DATA

    with_file(test)


def test_a_replaced_node_is_noticed_by_reading() -> None:
    async def test(f: Fixture) -> None:
        assert await content(f) == DATA
        await f.replace_node("n1")
        for _ in range(2):
            assert await content(f) == DATA
            await f.core.settle()
        # Its new life has none of the copies, so those that are asked for are put there.
        assert f.pool.nodes["n1"].files

    with_file(test)

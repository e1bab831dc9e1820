"""Goal: a write is durable on W nodes before it is visible, visible whole or not at all, and
refused when what it rests on has changed.
Method: `FileCore` over a store of each engine and three scripted nodes. Each fault is switched on
before or in the middle of a write; a node that must be slow waits at a gate, not at a clock. For
cancellation, the same write is cancelled after every number of steps it can take.
"""

from __future__ import annotations

import asyncio
import os
from array import array
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from files_fixture import CHUNK, Fixture, file_system, until

from ringhold.errors import Closed, LockLost, NodeDown, NoQuorum, SessionExpired
from ringhold.files import records
from ringhold.files.locking import file_slots
from ringhold.files.paths import split_path
from ringhold.nodes.base import ChunkId
from ringhold.store import keyspace

pytestmark = pytest.mark.usefixtures("on_every_engine")

PATH = split_path("/f")
DATA = os.urandom(5 * CHUNK + 123)


def with_files(test: Callable[[Fixture], Awaitable[None]], *, replicas: int = 3) -> None:
    async def run() -> None:
        async with file_system(replicas=replicas) as fixture:
            await test(fixture)
            report = await fixture.core.fsck()
            assert report.ok, report.problems

    asyncio.run(run())


async def content(f: Fixture, path: str = "/f") -> bytes:
    reader = await f.core.open_reader(split_path(path))
    return b"".join(await reader.read(0, reader.size))


async def repairs(f: Fixture) -> list[tuple[int, records.RepairRecord]]:
    snapshot = await f.store.snapshot()
    try:
        found = await snapshot.range(b"K", b"L")
    finally:
        await snapshot.close()
    return [(key[1], records.decode_repair(entry.value)) for key, entry in found]


def test_up_to_4096_bytes_touch_no_node() -> None:
    async def test(f: Fixture) -> None:
        await f.core.write(PATH, DATA[:4096])
        assert not any(node.puts for node in f.nodes)
        await f.core.write(PATH, DATA[:4097])
        assert all(len(node.files) == 1 for node in f.nodes)
        assert await content(f) == DATA[:4097]

    with_files(test)


def test_chunks_lie_on_their_holders_in_runs_of_64() -> None:
    async def test(f: Fixture) -> None:
        data = os.urandom(130 * CHUNK)
        await f.core.write(PATH, data)
        assert len(await f.keys(b"C")) == len(await f.keys(b"X")) == 3
        copies = sorted(chunk for node in f.nodes for chunk in node.files)
        assert copies == sorted(copies[::2] * 2)
        assert len(copies) == 2 * 130
        assert await content(f) == data
        for chunk in copies:
            table, _ = await f.core.placement.table(
                records.decode_run(await _entry(f, keyspace.run_key(chunk.run))).partition
            )
            due = {holder.name for holder in table.for_chunk(chunk.number, 2)}
            assert due == {node.name for node in f.nodes if chunk in node.files}

    with_files(test, replicas=2)


async def _entry(f: Fixture, key: bytes) -> bytes:
    snapshot = await f.store.snapshot()
    try:
        entry = await snapshot.get(key)
    finally:
        await snapshot.close()
    assert entry is not None
    return entry.value


def test_one_node_down_is_a_repair_record_in_the_same_commit() -> None:
    async def test(f: Fixture) -> None:
        f.nodes[1].down = True
        await f.core.write(split_path("/warm"), b"")
        before = await (await f.store.snapshot()).fix()
        await f.core.write(PATH, DATA)
        session_opened = 1
        assert await (await f.store.snapshot()).fix() == before + session_opened + 1
        assert [(copies, len(k.missing)) for copies, k in await repairs(f)] == [(2, 6)]
        assert {name for _, k in await repairs(f) for _, name in k.missing} == {"n1"}
        assert await content(f) == DATA

    with_files(test)


def test_fewer_than_w_nodes_are_no_quorum_and_leave_nothing_visible() -> None:
    async def test(f: Fixture) -> None:
        f.nodes[0].down = f.nodes[2].down = True
        with pytest.raises(NoQuorum) as caught:
            await f.core.write(PATH, DATA)
        assert (caught.value.wanted, caught.value.reached) == (2, 1)
        assert "n0" in str(caught.value)
        f.nodes[0].down = f.nodes[2].down = False
        with pytest.raises(FileNotFoundError):
            await content(f)
        await f.core.settle()
        assert not any(node.files for node in f.nodes)

    with_files(test)


def test_a_disk_that_is_full_counts_as_failed() -> None:
    async def test(f: Fixture) -> None:
        f.nodes[0].broken = OSError(28, "No space left on device")
        await f.core.write(PATH, DATA)
        assert len(await repairs(f)) == 1
        f.nodes[1].broken = f.nodes[0].broken
        with pytest.raises(NoQuorum, match="No space left"):
            await f.core.write(PATH, DATA[::-1])
        assert await content(f) == DATA

    with_files(test)


def test_a_straggler_gets_a_grace_and_is_then_given_up() -> None:
    async def test(f: Fixture) -> None:
        f.nodes[2].gate = asyncio.Event()
        await f.core.write(PATH, DATA[: CHUNK + 1])
        assert [(copies, len(k.missing)) for copies, k in await repairs(f)] == [(2, 2)]
        f.nodes[2].gate.set()
        await asyncio.sleep(0)
        assert not f.nodes[2].files

    with_files(test)


def test_at_most_four_chunks_of_a_stream_are_under_way() -> None:
    async def test(f: Fixture) -> None:
        gate = f.nodes[0].gate = asyncio.Event()
        writing = asyncio.ensure_future(f.core.write(PATH, os.urandom(9 * CHUNK)))
        await until(lambda: len(f.nodes[0].puts) >= 4)
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(f.nodes[0].puts) == 4
        gate.set()
        await writing
        assert len(f.nodes[0].puts) == 9

    with_files(test, replicas=3)


def test_a_node_replaced_before_the_commit_gets_its_copies_again() -> None:
    async def test(f: Fixture) -> None:
        writer = await f.core.open_writer(PATH)
        await writer.write(DATA)
        await until(lambda: bool(all(len(node.files) >= 5 for node in f.nodes)))
        await f.replace_node("n1")
        assert not f.pool.nodes["n1"].files
        await writer.close()
        assert len(f.pool.nodes["n1"].files) == 6
        assert await repairs(f) == []
        assert (await f.core.fsck(copies=True)).ok
        assert await content(f) == DATA

    with_files(test)


def test_a_node_replaced_between_the_chunks_and_with_one_copy_only() -> None:
    async def test(f: Fixture) -> None:
        await f.core.write(split_path("/warm"), DATA)
        writer = await f.core.open_writer(PATH)
        await writer.write(DATA[: 2 * CHUNK])
        await until(lambda: sum(len(node.files) for node in f.nodes) >= 8)
        # Not wiped: as a copy it does not count any more, as a source it is the only one.
        for node in f.nodes:
            await f.replace_node(node.name, wipe=False)
        await writer.write(DATA[2 * CHUNK :])
        with pytest.raises(NodeDown, match="another incarnation"):
            await writer.close()
        with pytest.raises(FileNotFoundError):
            await content(f)

    with_files(test, replicas=1)


@pytest.mark.parametrize("wipe", [True, False])
def test_a_buffer_is_written_again_when_its_only_copies_were_replaced(wipe: bool) -> None:
    async def test(f: Fixture) -> None:
        async def replace_all() -> None:
            for node in f.nodes:
                await f.replace_node(node.name, wipe=wipe)

        just_before_commit(f, replace_all)
        await f.core.write(PATH, DATA)
        assert await content(f) == DATA
        assert (await f.core.fsck(copies=True)).ok

    with_files(test, replicas=1)


def test_memory_with_strides_or_other_items_is_written_in_order() -> None:
    numbers = array("d", range(3 * CHUNK // 8))
    strided = memoryview(DATA)[::2]
    backwards = memoryview(DATA)[::-1]

    async def test(f: Fixture) -> None:
        for data in (strided, backwards, memoryview(numbers), strided[:10], memoryview(b"")[::2]):
            await f.core.write(PATH, data)
            assert await content(f) == data.tobytes()
            writer = await f.core.open_writer(PATH)
            await writer.write(b"x")
            await writer.write(data)
            await writer.write(memoryview(array("d")))
            await writer.close()
            assert await content(f) == b"x" + data.tobytes()

    with_files(test)


def test_a_session_lost_between_chunks_and_commit_refuses_the_stream() -> None:
    async def test(f: Fixture) -> None:
        writer = await f.core.open_writer(PATH)
        await writer.write(DATA)
        state = await f.session.ensure()
        await f.store.revoke_lease(state.id)
        with pytest.raises(SessionExpired, match="write it again"):
            await writer.close()
        with pytest.raises(FileNotFoundError):
            await content(f)

    with_files(test)


def test_a_write_of_whole_data_survives_the_loss_of_its_session() -> None:
    async def test(f: Fixture) -> None:
        gate = f.nodes[0].gate = asyncio.Event()
        writing = asyncio.ensure_future(f.core.write(PATH, DATA))
        await until(lambda: bool(f.nodes[0].puts))
        state = await f.session.ensure()
        state.lose()
        await f.store.revoke_lease(state.id)
        gate.set()
        await writing
        assert await content(f) == DATA

    with_files(test)


def test_what_is_written_under_a_lost_lock_is_refused() -> None:
    async def test(f: Fixture) -> None:
        await f.core.write(PATH, b"old")
        ino = (await f.core.stat(PATH)).ino
        grant = await f.locks.acquire(file_slots(ino, ""), 1, 5.0)
        await f.core.write(PATH, b"mine")
        stream = await f.core.open_writer(PATH)
        await stream.write(DATA)
        # Somebody else takes the key away, and this process does not know yet.
        await f.store.commit(deletes=[grant.held.key])
        for change in (
            f.core.write(PATH, b"zombie"),
            f.core.write(PATH, DATA),
            stream.close(),
            f.core.unlink([PATH]),
            f.core.rename([(PATH, split_path("/g"))]),
            f.core.copy(split_path("/other"), PATH),
        ):
            await f.core.write(split_path("/other"), b"x")
            with pytest.raises(LockLost, match="/f"):
                await change
        assert await content(f) == b"mine"
        # Once it does know, it is still refused: a lost grant is not the same as none.
        grant.mark_lost()
        with pytest.raises(LockLost):
            await f.core.write(PATH, b"zombie")
        with pytest.raises(LockLost):
            await grant.release()
        await f.core.write(PATH, b"free")

    with_files(test)


def test_a_file_opened_under_a_lock_is_not_published_after_its_release() -> None:
    async def test(f: Fixture) -> None:
        await f.core.write(PATH, b"old")
        ino = (await f.core.stat(PATH)).ino
        grant = await f.locks.acquire(file_slots(ino, ""), 1, 5.0)
        stream = await f.core.open_writer(PATH)
        await stream.write(b"late")
        await grant.release()
        with pytest.raises(LockLost, match="/f"):
            await stream.close()
        assert await content(f) == b"old"

    with_files(test)


def test_a_discarded_stream_leaves_nothing() -> None:
    async def test(f: Fixture) -> None:
        writer = await f.core.open_writer(PATH)
        await writer.write(DATA)
        await writer.discard()
        await f.core.settle()
        assert not any(node.files for node in f.nodes)
        with pytest.raises(Closed, match="discarded"):
            await writer.close()
        with pytest.raises(Closed):
            await writer.write(b"x")

    with_files(test)


async def cancelled_after(steps: int, work: Awaitable[None]) -> bool:
    """Runs `work` for `steps` turns of the loop, cancels it; whether it was still running."""
    task = asyncio.ensure_future(work)
    for _ in range(steps):
        if task.done():
            break
        await asyncio.sleep(0)
    running = not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return running


@pytest.mark.parametrize("size", [10, 2 * CHUNK + 1])
def test_a_write_cancelled_anywhere_is_visible_whole_or_not_at_all(size: int) -> None:
    async def test(f: Fixture) -> None:
        await f.core.write(PATH, b"old")
        new = DATA[:size]
        steps = 0
        outcomes: set[bytes] = set()
        while await cancelled_after(steps, f.core.write(PATH, new)):
            seen = await content(f)
            assert seen in (b"old", new)
            outcomes.add(seen)
            await f.core.write(PATH, b"old")
            steps += 1
        assert steps >= (4 if size < 4096 else 12)
        assert b"old" in outcomes
        report = await f.core.fsck(copies=True)
        assert report.ok, report.problems
        # What is left on the nodes is orphans, and they go once their session is gone.
        await f.core.gc(0)
        await f.session.close()
        await f.core.write(PATH, b"old")
        await f.core.gc(0)
        assert not any(node.files for node in f.nodes)
        assert len(asyncio.all_tasks()) == 1

    async def run() -> None:
        async with file_system(yielding=True) as fixture:
            await test(fixture)

    asyncio.run(run())


def test_closing_the_core_discards_what_is_open() -> None:
    async def run() -> None:
        async with file_system() as f:
            writer = await f.core.open_writer(PATH)
            await writer.write(DATA)
            await f.core.close()
            assert not any(node.files for node in f.nodes)
            with pytest.raises(Closed):
                await writer.close()
            with pytest.raises(Closed):
                await f.core.write(PATH, b"x")

    asyncio.run(run())


def test_a_copy_shares_its_runs_and_outlives_the_original() -> None:
    async def test(f: Fixture) -> None:
        await f.core.write(PATH, DATA)
        puts = sum(len(node.puts) for node in f.nodes)
        await f.core.copy(PATH, split_path("/g"))
        await f.core.copy(split_path("/g"), split_path("/h"))
        assert sum(len(node.puts) for node in f.nodes) == puts
        assert (await f.core.fsck()).ok
        for gone in ("/f", "/h"):
            await f.core.unlink([split_path(gone)])
            await f.core.gc(0)
            assert (await f.core.fsck(copies=True)).ok
            assert await content(f, "/g") == DATA
        await f.core.unlink([split_path("/g")])
        assert (await f.core.gc(0)).runs == 1
        assert not any(node.files for node in f.nodes)

    with_files(test)


def test_run_ids_name_their_session() -> None:
    async def test(f: Fixture) -> None:
        await f.core.write(PATH, DATA)
        state = await f.session.ensure()
        chunks: list[ChunkId] = [chunk for node in f.nodes for chunk in node.files]
        assert {chunk.run[:12] for chunk in chunks} == {state.id}

    with_files(test)


def just_before_commit(f: Fixture, happens: Callable[[], Awaitable[object]]) -> None:
    """`happens` between the last look of the next commit with chunks and that commit."""
    commit = f.store.commit

    async def late(**request: Any) -> int:
        if any(put.key.startswith(keyspace.RUN) for put in request.get("puts", ())):
            f.store.commit = commit  # type: ignore[method-assign]
            await happens()
        return await commit(**request)

    f.store.commit = late  # type: ignore[method-assign, assignment]


def test_a_session_lost_at_the_last_moment_refuses_the_commit() -> None:
    async def test(f: Fixture) -> None:
        writer = await f.core.open_writer(PATH)
        await writer.write(DATA)
        state = await f.session.ensure()
        just_before_commit(f, lambda: f.store.revoke_lease(state.id))
        with pytest.raises(SessionExpired):
            await writer.close()
        with pytest.raises(FileNotFoundError):
            await content(f)

    with_files(test)


def test_a_node_replaced_at_the_last_moment_gets_its_copies_again() -> None:
    async def test(f: Fixture) -> None:
        just_before_commit(f, lambda: f.replace_node("n1"))
        await f.core.write(PATH, DATA)
        assert len(f.pool.nodes["n1"].files) == 6
        assert await repairs(f) == []
        assert await content(f) == DATA

    with_files(test)


def test_a_lock_lost_at_the_last_moment_refuses_the_commit() -> None:
    async def test(f: Fixture) -> None:
        await f.core.write(PATH, b"old")
        grant = await f.locks.acquire(file_slots((await f.core.stat(PATH)).ino, ""), 1, 5.0)
        just_before_commit(f, lambda: f.store.commit(deletes=[grant.held.key]))
        with pytest.raises(LockLost):
            await f.core.write(PATH, DATA)
        assert await content(f) == b"old"

    with_files(test)


def test_nothing_can_be_made_of_a_stream_one_write_of_which_was_cancelled() -> None:
    async def test(f: Fixture) -> None:
        gate = f.nodes[0].gate = asyncio.Event()
        writer = await f.core.open_writer(PATH)
        writing = asyncio.ensure_future(writer.write(os.urandom(9 * CHUNK)))
        await until(lambda: len(f.nodes[0].puts) == 4)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        gate.set()
        for use in (writer.write(b"x"), writer.close()):
            with pytest.raises(Closed, match="failed before"):
                await use
        with pytest.raises(FileNotFoundError):
            await content(f)

    with_files(test)

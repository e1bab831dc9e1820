"""Goal: a file whose manifest is written ahead is visible whole or not at all, is never deleted
while it can still become visible, and leaves nothing behind when it cannot.

Method: `FileCore` over a memory store and scripted nodes, with runs of one chunk and portions of
three runs, so that a file of ten chunks takes four portions. Sessions end, nodes are replaced and
others change the same files between two commits; each write and copy is cancelled after every
number of steps it can take.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from files_fixture import CHUNK, Fixture, file_system

from ringhold.errors import (
    Conflict,
    Corrupt,
    LockLost,
    OutcomeUnknown,
    SessionExpired,
    StoreUnavailable,
)
from ringhold.files import copy, gc, staging, write
from ringhold.files.locking import file_slots
from ringhold.files.paths import split_path
from ringhold.store import keyspace
from ringhold.store.base import Put
from ringhold.store.repeat import until_known

PATH, COPY = split_path("/f"), split_path("/copy")
CHUNKS = 10
DATA = os.urandom((CHUNKS - 1) * CHUNK + 123)
COPIES = CHUNKS * 3

Test = Callable[[Fixture], Awaitable[None]]


@pytest.fixture(autouse=True)
def short_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "CHUNKS_PER_RUN", 1)
    for module in (staging, copy):
        monkeypatch.setattr(module, "RUNS_PER_COMMIT", 3)
    monkeypatch.setattr(gc, "BLOCKS_PER_COMMIT", 3)


def with_files(test: Test, *, yielding: bool = False) -> None:
    async def run() -> None:
        async with file_system(yielding=yielding) as fixture:
            await test(fixture)
            report = await fixture.core.fsck()
            assert report.ok, report.problems

    asyncio.run(run())


async def content(f: Fixture, path: str = "/f") -> bytes:
    reader = await f.core.open_reader(split_path(path))
    return b"".join(await reader.read(0, reader.size))


def copies(f: Fixture) -> int:
    return sum(len(node.files) for node in f.nodes)


async def records_left(f: Fixture) -> list[bytes]:
    """The letters of the records of data there are."""
    keys = [await f.keys(prefix) for prefix in (b"X", b"C", b"G", b"K")]
    return [key[:1] for some in keys for key in some]


async def end_session(f: Fixture) -> None:
    """As if its process had died, and another one went on."""
    state = await f.session.ensure()
    state.lose()
    await f.store.revoke_lease(state.id)


class Cut:
    """Does something before the `number`-th commit that begins from now on."""

    def __init__(self, f: Fixture, number: int, happens: Callable[[], Awaitable[object]]):
        self._commit = f.store.commit
        self._left = number
        self._happens = happens
        f.store.commit = self.commit  # type: ignore[method-assign, assignment]

    async def commit(self, **request: Any) -> int:
        self._left -= 1
        if self._left == 0:
            await self._happens()
        return await self._commit(**request)


async def fail() -> None:
    raise StoreUnavailable("cut")


def test_the_manifest_is_there_before_the_file_is() -> None:
    async def test(f: Fixture) -> None:
        seen: list[list[bytes]] = []

        async def look() -> None:
            seen.append(await records_left(f))
            with pytest.raises(FileNotFoundError):
                await f.core.stat(PATH)
            assert (await f.core.fsck()).ok
            assert (await f.core.gc(0)).runs == 0
            if len(seen) < 5:
                Cut(f, 1, look)

        writer = await f.core.open_writer(PATH)
        await writer.write(DATA)
        await f.core._inodes.take(1)
        Cut(f, 2, look)
        await writer.close()
        portions = [(letters.count(b"X"), letters.count(b"C")) for letters in seen]
        assert portions == [(0, 0), (3, 3), (6, 6), (9, 9), (10, 10)]
        assert all(letters.count(b"G") == 1 for letters in seen)
        assert await content(f) == DATA
        assert sorted({*await records_left(f)}) == [b"C", b"X"]
        await f.core.unlink([PATH])
        assert (await f.core.gc(0)).runs == CHUNKS
        assert await records_left(f) == []
        assert copies(f) == 0

    with_files(test)


@pytest.mark.parametrize("number", range(1, 8))
@pytest.mark.parametrize("copying", [False, True])
def test_what_a_dead_writer_left_is_collected(number: int, copying: bool) -> None:
    """The session ends before one commit after the other."""

    async def test(f: Fixture) -> None:
        # The process is dead, so it does nothing behind.
        f.core._leftovers.closing = True
        if copying:
            await f.core.write(PATH, DATA)
            Cut(f, number, lambda: end_session(f))
            # Records alone were written, and are written again by the next session.
            await f.core.copy(PATH, COPY)
            assert await content(f, "/copy") == DATA
            await f.core.unlink([COPY])
        else:
            writer = await f.core.open_writer(PATH)
            await writer.write(DATA)
            Cut(f, number, lambda: end_session(f))
            try:
                await writer.close()
            except SessionExpired:
                with pytest.raises(FileNotFoundError):
                    await content(f)
            else:
                await f.core.unlink([PATH])
            await end_session(f)
        report = await f.core.fsck()
        assert report.ok, report.problems
        await end_session(f)
        await f.core.gc(0)
        assert copies(f) == (COPIES if copying else 0)
        assert len(await records_left(f)) == (2 * CHUNKS if copying else 0)
        if copying:
            assert await content(f) == DATA

    with_files(test)


@pytest.mark.parametrize("number", range(1, 7))
def test_a_writer_that_failed_takes_everything_back(number: int) -> None:
    async def test(f: Fixture) -> None:
        writer = await f.core.open_writer(PATH)
        await writer.write(DATA)
        await f.core._inodes.take(1)
        Cut(f, number, fail)
        with pytest.raises(StoreUnavailable, match="cut"):
            await writer.close()
        await f.core.settle()
        assert await records_left(f) == []
        assert copies(f) == 0

    with_files(test)


def test_a_refused_file_takes_everything_back() -> None:
    async def test(f: Fixture) -> None:
        writer = await f.core.open_writer(PATH, exclusive=True)
        await writer.write(DATA)
        await f.core.write(PATH, b"first")
        with pytest.raises(FileExistsError):
            await writer.close()
        grant = await f.locks.acquire(file_slots((await f.core.stat(PATH)).ino, ""), 1, 5.0)
        writer = await f.core.open_writer(PATH)
        await writer.write(DATA)
        await f.store.commit(deletes=[grant.held.key])
        with pytest.raises(LockLost):
            await writer.close()
        await f.core.settle()
        assert await content(f) == b"first"
        assert await records_left(f) == []
        assert copies(f) == 0

    with_files(test)


@pytest.mark.parametrize("number", range(1, 7))
def test_a_node_replaced_meanwhile_gets_its_copies_again(number: int) -> None:
    async def test(f: Fixture) -> None:
        writer = await f.core.open_writer(PATH)
        await writer.write(DATA)
        await f.core._inodes.take(1)
        Cut(f, number, lambda: f.replace_node("n1"))
        await writer.close()
        assert len(f.pool.nodes["n1"].files) == (CHUNKS if number < 7 else 0)
        assert b"K" not in await records_left(f)
        assert await content(f) == DATA
        assert (await f.core.fsck(copies=True)).ok

    with_files(test)


def test_copies_that_are_short_are_noted_as_they_are_at_the_end() -> None:
    """One node is down while the chunks are placed, and replaced before the file appears."""

    async def test(f: Fixture) -> None:
        lost, other = f.nodes[1], f.nodes[2]
        lost.down = True
        writer = await f.core.open_writer(PATH)
        await writer.write(DATA)

        async def swap() -> None:
            lost.down = False
            await f.replace_node(lost.name)
            other.down = True

        Cut(f, 6, swap)
        await writer.close()
        other.down = False
        letters = await records_left(f)
        assert letters.count(b"K") == 0
        assert len(lost.files) == CHUNKS
        assert (await f.core.fsck(copies=True)).ok

    with_files(test)


def test_a_page_changed_for_others_costs_no_copy() -> None:
    """64 partitions share a page: another one's new holders are no reason to place chunks again."""

    async def test(f: Fixture) -> None:
        writer = await f.core.open_writer(PATH)
        await writer.write(DATA[: 2 * CHUNK])
        snapshot = await f.store.snapshot()
        pages = await snapshot.range(b"P", b"Q")
        await snapshot.close()

        async def rewrite() -> None:
            await f.store.commit(puts=[Put(key, entry.value) for key, entry in pages])

        Cut(f, 1, rewrite)
        await writer.close()
        assert sum(len(node.puts) for node in f.nodes) == 6
        assert await content(f) == DATA[: 2 * CHUNK]

    with_files(test)


@pytest.mark.parametrize("number", range(1, 8))
@pytest.mark.parametrize("change", ["replaced", "shrunk", "deleted", "deleted and collected"])
def test_a_copy_is_of_what_the_source_is_in_the_end(number: int, change: str) -> None:
    async def test(f: Fixture) -> None:
        await f.core.write(PATH, DATA)
        new = DATA[::-1] if change == "replaced" else b"short"

        async def happens() -> None:
            if change in ("replaced", "shrunk"):
                await f.core.write(PATH, new)
            else:
                await f.core.unlink([PATH])
            if change != "deleted":
                await f.core.gc(0)

        Cut(f, number, happens)
        try:
            await f.core.copy(PATH, COPY)
        except FileNotFoundError:
            assert change.startswith("deleted")
        else:
            copied = await content(f, "/copy")
            assert copied in (new, DATA)
            # From the last commit on, which is the copy, it is too late.
            assert number > 5 or not change.startswith("deleted")
            assert number > 6 or change.startswith("deleted") or copied == new
            await f.core.unlink([COPY])
        await f.core.settle()
        assert (await f.core.fsck(copies=True)).ok
        if not change.startswith("deleted"):
            await f.core.unlink([PATH])
        await f.core.gc(0)
        assert await records_left(f) == []
        assert copies(f) == 0

    with_files(test)


@pytest.mark.parametrize("letter", [b"X", b"C"])
def test_a_copy_of_a_damaged_file_says_so(letter: bytes) -> None:
    async def test(f: Fixture) -> None:
        await f.core.write(PATH, DATA)
        key = (await f.keys(letter))[-1]
        snapshot = await f.store.snapshot()
        entry = await snapshot.get(key)
        await snapshot.close()
        assert entry is not None
        await f.store.commit(deletes=[key])
        with pytest.raises(Corrupt, match="is missing; fsck tells"):
            await f.core.copy(PATH, COPY)
        await f.core.settle()
        await f.store.commit(puts=[Put(key, entry.value)])
        assert len(await records_left(f)) == 2 * CHUNKS

    with_files(test)


def test_copies_of_copies_count_their_runs() -> None:
    async def test(f: Fixture) -> None:
        await f.core.write(PATH, DATA)
        await asyncio.gather(
            *(f.core.copy(PATH, split_path(f"/copy{number}")) for number in range(4))
        )
        await f.core.copy(split_path("/copy3"), COPY)
        await f.core.unlink([PATH, *(split_path(f"/copy{number}") for number in range(4))])
        assert (await f.core.gc(0)).runs == 0
        assert await content(f, "/copy") == DATA
        assert (await f.core.fsck(copies=True)).ok
        await f.core.unlink([COPY])
        assert (await f.core.gc(0)).runs == CHUNKS
        assert copies(f) == 0

    with_files(test)


def test_a_node_that_does_not_answer_leaves_the_runs_for_later() -> None:
    async def test(f: Fixture) -> None:
        await f.core.write(PATH, DATA)
        await f.core.unlink([PATH])
        f.nodes[0].down = True
        report = await f.core.gc(0)
        assert (report.files, report.runs, report.waiting) == (1, 0, 1)
        letters = await records_left(f)
        assert (letters.count(b"X"), letters.count(b"C"), letters.count(b"G")) == (0, CHUNKS, 1)
        f.nodes[0].down = False
        assert (await f.core.gc(0)).runs == CHUNKS
        assert await records_left(f) == []
        assert copies(f) == 0

    with_files(test)


def test_runs_that_wait_are_only_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc, "RUNS_WAITING_MAX", 4)

    async def test(f: Fixture) -> None:
        await f.core.write(PATH, DATA)
        await f.core.unlink([PATH])
        f.nodes[0].down = True
        assert (await f.core.gc(0)).waiting == 1
        assert (await records_left(f)).count(b"X") == CHUNKS - 6
        f.nodes[0].down = False
        assert (await f.core.gc(0)).runs == CHUNKS
        assert await records_left(f) == []

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


@pytest.mark.parametrize("copying", [False, True])
def test_cancelled_anywhere_it_is_visible_whole_or_not_at_all(copying: bool) -> None:
    async def test(f: Fixture) -> None:
        await f.core.write(PATH, DATA)
        await f.core.write(COPY, b"old")
        steps = 0

        async def attempt() -> bool:
            work = f.core.copy(PATH, COPY) if copying else f.core.write(COPY, DATA)
            return await cancelled_after(steps, work)

        while await attempt():
            seen = await content(f, "/copy")
            assert seen in (b"old", DATA)
            if seen == DATA:
                await f.core.write(COPY, b"old")
            steps += 1
        assert steps > 12
        await f.core.settle()
        assert (await f.core.fsck(copies=True)).ok
        # What was deleted or never shown goes with the session at the latest.
        await f.session.close()
        await f.core.write(COPY, b"old")
        await f.core.gc(0)
        assert copies(f) == COPIES
        assert len(await records_left(f)) == 2 * CHUNKS

    with_files(test, yielding=True)


def test_a_run_in_two_blocks_is_a_problem() -> None:
    """Blocks are deleted one after the other; such a run would be counted twice."""

    async def test(f: Fixture) -> None:
        await f.core.write(PATH, DATA)
        snapshot = await f.store.snapshot()
        extents = await snapshot.range(b"X", b"Y")
        await snapshot.close()
        await f.store.commit(puts=[Put(extents[1][0], extents[0][1].value)])
        found = [problem.message for problem in (await f.core.fsck()).problems]
        assert any("lies in 2 blocks" in message for message in found)
        await f.store.commit(puts=[Put(extents[1][0], extents[1][1].value)])

    with_files(test)


class Late:
    """The commit that would show the file is never answered; it can come to the store later."""

    def __init__(self, f: Fixture):
        self._commit = f.store.commit
        self._request: dict[str, Any] = {}
        self.other = asyncio.Event()
        """Something else was committed since."""
        f.store.commit = self.commit  # type: ignore[method-assign, assignment]

    async def commit(self, **request: Any) -> int:
        deletes = list(request.get("deletes", ()))
        shows = any(key.startswith(keyspace.GARBAGE) for key in deletes)
        if (shows and not self._request) or request["nonce"] == self._request.get("nonce", b""):
            self._request = {
                key: value if isinstance(value, bytes) else list(value)
                for key, value in {**request, "deletes": deletes}.items()
            }
            raise OutcomeUnknown("no answer")
        revision: int = await self._commit(**request)
        if self._request:
            self.other.set()
        return revision

    async def arrive(self) -> None:
        await self._commit(**self._request)


@pytest.mark.parametrize("copying", [False, True])
def test_what_is_being_taken_back_does_not_become_a_file_any_more(
    copying: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even by a commit that was on its way all the time."""
    monkeypatch.setattr(
        "ringhold.store.view.until_known",
        lambda attempt, env, timeout_s: until_known(attempt, env, timeout_s=0),
    )

    async def test(f: Fixture) -> None:
        await f.core.write(PATH, DATA)
        late, before = Late(f), len(await f.keys(b"X"))
        with pytest.raises(OutcomeUnknown):
            await (f.core.copy(PATH, COPY) if copying else f.core.write(COPY, DATA))
        assert len(await f.keys(b"X")) == 2 * before
        await late.other.wait()
        assert before < len(await f.keys(b"X")) < 2 * before
        with pytest.raises(Conflict):
            await late.arrive()
        await f.core.settle()
        assert len(await f.keys(b"X")) == before

    with_files(test)

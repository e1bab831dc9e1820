"""Goal: a watch delivers what concerns it, once and in order, and costs others nothing.

Method: two openings of one store in one process, with bells and without; what watches read is
counted, what they deliver is compared with what was committed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from bells_fixture import names, readers

from ringhold.env import real_env
from ringhold.errors import Closed, Compacted
from ringhold.store.base import Put, Store
from ringhold.store.memory import _Waiter, open_memory_store
from ringhold.store.sqlite import SqliteStore, open_sqlite_store


@asynccontextmanager
async def stores(directory: Path) -> AsyncIterator[tuple[SqliteStore, SqliteStore]]:
    """Two openings of one store."""
    one = await open_sqlite_store(str(directory), real_env(), create=True)
    other = await open_sqlite_store(str(directory), real_env(), create=False)
    assert isinstance(one, SqliteStore)
    assert isinstance(other, SqliteStore)
    try:
        yield one, other
    finally:
        await one.close()
        await other.close()


def test_watches_of_one_prefix_share_a_name(tmp_path: Path) -> None:
    async def main() -> None:
        async with stores(tmp_path) as (one, other):
            revision = await one.commit(puts=[Put(b"k", b"1")])
            watches = [other.watch(b"k", revision) for _ in range(3)]
            for watch in watches:
                assert (await anext(watch)).revision == revision
            (name,) = names(tmp_path / "bells")
            mode = os.lstat(tmp_path / "bells" / name).st_mode
            assert stat.S_ISFIFO(mode)
            assert stat.S_IMODE(mode) == 0o600
            for watch in watches:
                assert names(tmp_path / "bells")
                await watch.aclose()  # type: ignore[attr-defined]
            assert not names(tmp_path / "bells")
            assert not readers()

    asyncio.run(main())


def test_a_closed_store_leaves_no_name_and_no_reader(tmp_path: Path) -> None:
    async def main() -> None:
        async with stores(tmp_path) as (one, other):
            revision = await one.commit(puts=[Put(b"k", b"1")])
            paused, waiting = other.watch(b"k", revision), other.watch(b"w", revision)
            await anext(paused)
            task = asyncio.create_task(anext(waiting))  # type: ignore[arg-type]
            await asyncio.sleep(0)
            assert len(names(tmp_path / "bells")) == 2
            await other.close()
            assert not names(tmp_path / "bells")
            assert not readers()
            with pytest.raises(Closed):
                await task
            with pytest.raises(Closed):
                await anext(paused)

    asyncio.run(main())


def test_a_store_made_before_there_were_bells_gets_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ringhold.store.sqlite.watching.POLL_S", 3600.0)

    async def main() -> None:
        async with stores(tmp_path):
            pass
        (tmp_path / "bells").rmdir()
        one = await open_sqlite_store(str(tmp_path), real_env(), create=False)
        other = await open_sqlite_store(str(tmp_path), real_env(), create=False)
        assert (tmp_path / "bells").is_dir()
        await delivered(one, other)
        await one.close()
        await other.close()

    asyncio.run(main())


async def delivered(one: Store, other: Store) -> None:
    """One commits while the other waits for it."""
    snapshot = await other.snapshot()
    watch = other.watch(b"k", snapshot.revision + 1)
    await snapshot.close()
    task = asyncio.create_task(anext(watch))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    revision = await one.commit(puts=[Put(b"k", b"1")])
    async with asyncio.timeout(5):
        assert (await task).revision == revision
    await watch.aclose()  # type: ignore[attr-defined]


def test_without_bells_a_store_polls_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ringhold")
    # Nobody, not even root, makes files in a file.
    (tmp_path / "bells").write_bytes(b"")

    async def main() -> None:
        async with stores(tmp_path) as (one, other):
            await delivered(one, other)
            await delivered(other, one)

    asyncio.run(main())
    assert [record.levelno for record in caplog.records] == [logging.INFO] * 2
    assert all(str(tmp_path) in record.getMessage() for record in caplog.records)
    assert (tmp_path / "bells").read_bytes() == b""


def count_reads(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The prefixes of the watches that looked into the log, from now on."""
    reads: list[bytes] = []
    read = store._watches._read

    def counted(prefix: bytes, from_revision: int) -> object:
        reads.append(prefix)
        return read(prefix, from_revision)

    monkeypatch.setattr(store._watches, "_read", counted)
    return reads


def test_own_commits_wake_only_the_watches_they_concern(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ringhold.store.sqlite.watching.POLL_S", 3600.0)

    async def main() -> None:
        async with stores(tmp_path) as (store, _):
            reads = count_reads(store, monkeypatch)
            revision = await store.commit(puts=[Put(b"x", b"")])
            watch = store.watch(b"k", revision + 1)
            task = asyncio.create_task(anext(watch))  # type: ignore[arg-type]
            await asyncio.sleep(0)
            before = len(reads)
            for number in range(100):
                await store.commit(puts=[Put(b"x%d" % number, b"")])
            assert len(reads) == before
            last = await store.commit(puts=[Put(b"k", b"")])
            async with asyncio.timeout(5):
                assert (await task).revision == last
            await watch.aclose()  # type: ignore[attr-defined]

    asyncio.run(main())


async def poll(store: SqliteStore) -> None:
    """One poll, and whatever it woke has looked and waits again."""
    store._watches._poll()
    for _ in range(10):
        await asyncio.sleep(0)


@asynccontextmanager
async def polled_by_hand(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[SqliteStore, SqliteStore]]:
    """Two openings without bells, a short log, and no poll but those the test makes."""
    monkeypatch.setattr("ringhold.store.sqlite.watching.POLL_S", 3600.0)
    (directory / "bells").write_bytes(b"")
    one = await open_sqlite_store(str(directory), real_env(), create=True, log_revisions=16)
    other = await open_sqlite_store(str(directory), real_env(), create=False)
    assert isinstance(one, SqliteStore)
    assert isinstance(other, SqliteStore)
    try:
        yield one, other
    finally:
        await other.close()
        await one.close()


def test_polling_looks_once_for_all_watches_and_keeps_their_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with polled_by_hand(tmp_path, monkeypatch) as (one, other):
            first = await one.commit(puts=[Put(b"k1", b""), Put(b"k2", b"")])
            watches = [other.watch(prefix, first + 1) for prefix in (b"k1", b"k2")]
            tasks = [asyncio.create_task(anext(watch)) for watch in watches]  # type: ignore[arg-type]
            await asyncio.sleep(0)
            await poll(other)
            reads = count_reads(other, monkeypatch)
            for _ in range(6):
                for number in range(12):
                    await one.commit(puts=[Put(b"x%d" % number, b"")])
                await poll(other)
            assert not reads
            # The revision they waited from is long gone from the log; what they waited for is not.
            with pytest.raises(Compacted):
                await anext(one.watch(b"k1", first + 1))
            last = await one.commit(puts=[Put(b"k1", b"")])
            await poll(other)
            async with asyncio.timeout(5):
                assert (await tasks[0]).revision == last
            assert set(reads) == {b"k1"}
            assert not tasks[1].done()
        with pytest.raises(Closed):
            await tasks[1]

    asyncio.run(main())


def test_a_poll_that_comes_too_late_shows_no_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with polled_by_hand(tmp_path, monkeypatch) as (one, other):
            first = await one.commit(puts=[Put(b"k", b"")])
            watch = other.watch(b"k", first + 1)
            task = asyncio.create_task(anext(watch))  # type: ignore[arg-type]
            await asyncio.sleep(0)
            await poll(other)
            await one.commit(puts=[Put(b"k", b"")])
            for _ in range(40):
                await one.commit(puts=[Put(b"x", b"")])
            assert not task.done()
            await poll(other)
            async with asyncio.timeout(5):
                with pytest.raises(Compacted):
                    await task

    asyncio.run(main())


@pytest.mark.parametrize("bells", [True, False], ids=["bells", "polling alone"])
def test_watches_of_many_prefixes_miss_nothing_and_repeat_nothing(
    bells: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ringhold.store.sqlite.watching.POLL_S", 3600.0 if bells else 0.002)
    monkeypatch.setattr("ringhold.store.sqlite.watching.POLL_KEYS", 5)
    if not bells:
        (tmp_path / "bells").write_bytes(b"")
    draw = random.Random(11)
    prefixes = [b"", b"a", b"ab", b"b", b"ba", b"c"]

    def key() -> bytes:
        return bytes(draw.choices(b"abc", k=3))

    async def main() -> None:
        async with stores(tmp_path) as (one, other):
            start = await one.commit(puts=[Put(b"z", b"")])
            got: dict[bytes, list[tuple[int, bytes]]] = {prefix: [] for prefix in prefixes}

            async def follow(prefix: bytes) -> None:
                watch = other.watch(prefix, start + 1)
                async for changes in watch:
                    got[prefix] += [(changes.revision, event.key) for event in changes.events]
                    if draw.random() < 0.3:
                        await asyncio.sleep(draw.random() / 300)

            expected: list[tuple[int, bytes]] = []
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(follow(prefix)) for prefix in prefixes]
                for _ in range(300):
                    keys = sorted({key() for _ in range(draw.randrange(1, 9))})
                    store = draw.choice((one, one, other))
                    revision = await store.commit(puts=[Put(k, b"") for k in keys])
                    expected += [(revision, k) for k in keys]
                    if draw.random() < 0.5:
                        await asyncio.sleep(draw.random() / 200)
                wanted = {p: [e for e in expected if e[1].startswith(p)] for p in prefixes}
                async with asyncio.timeout(30):
                    while any(len(got[p]) < len(wanted[p]) for p in prefixes):  # noqa: ASYNC110
                        await asyncio.sleep(0.005)
                assert got == wanted
                for task in tasks:
                    task.cancel()

    asyncio.run(main())


def test_watches_in_memory_are_not_woken_by_others_and_keep_their_places(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        name = "watches that keep their places"
        store = await open_memory_store(name, real_env(), create=True, log_revisions=16)
        first = await store.commit(puts=[Put(b"k1", b""), Put(b"k2", b"")])
        watches = [store.watch(prefix, first + 1) for prefix in (b"k1", b"k2", b"")]
        later = store.watch(b"k1", first + 100)
        tasks = [asyncio.create_task(anext(watch)) for watch in (*watches, later)]  # type: ignore[arg-type]
        await asyncio.sleep(0)
        woken: list[bytes] = []
        wake = _Waiter.wake

        def counted(waiter: _Waiter) -> None:
            woken.append(waiter._prefix)
            wake(waiter)

        monkeypatch.setattr(_Waiter, "wake", counted)
        for number in range(60):
            await store.commit(puts=[Put(b"x%d" % number, b"")])
        assert woken == [b""]
        assert (await tasks[2]).revision == first + 1
        with pytest.raises(Compacted):
            await anext(store.watch(b"k1", first + 1))
        assert (await store.commit(puts=[Put(b"k1", b"")])) == first + 61
        assert (await tasks[0]).revision == first + 61
        while (last := await store.commit(deletes=[b"k1"], puts=[Put(b"k1/", b"")])) < first + 100:
            pass
        assert (await tasks[3]).revision == last
        assert not tasks[1].done()
        await store.close()
        with pytest.raises(Closed):
            await tasks[1]

    asyncio.run(main())

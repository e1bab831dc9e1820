"""Goal: every engine keeps every promise of `ringhold.store.base`, in the same way.

Method: each test states one promise and runs on a real store of each engine (store_engines.py).
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from store_engines import (
    CLOCKED,
    ENGINES,
    World,
    at_snapshot,
    conflicts,
    everything,
    get,
    is_now,
    lease_id,
    on,
    put,
    put_all,
)

from ringhold.errors import (
    Closed,
    Compacted,
    Conflict,
    InvalidInput,
    SessionExpired,
)
from ringhold.store.base import (
    COMMIT_BYTES_MAX,
    KEY_BYTES_MAX,
    OPERATIONS_MAX,
    Absent,
    Born,
    Changes,
    Empty,
    NoneBornAfter,
    Put,
    Unchanged,
    prefix_end,
)
from ringhold.store.memory import open_memory_store
from ringhold.store.sqlite import open_sqlite_store
from ringhold.types import VALUE_BYTES_MAX, Entry, Event, EventKind


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=CLOCKED)
def clocked(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# Commits


def test_a_commit_has_one_new_revision_and_shows_whole(engine: str) -> None:
    async def test(world: World) -> None:
        first = await world.store.commit(puts=[Put(b"a", b"1"), Put(b"b", b"2")])
        second = await world.store.commit(puts=[Put(b"a", b"3")], deletes=[b"b"])
        assert second > first > 0
        assert await everything(world.store) == [(b"a", Entry(b"3", second, first))]

    on(engine, test)


def test_a_put_onto_a_key_keeps_its_birth_and_a_new_life_does_not(engine: str) -> None:
    async def test(world: World) -> None:
        born = await put(world.store, b"a")
        changed = await put(world.store, b"a")
        assert (entry := await get(world.store, b"a")) is not None
        assert (entry.created, entry.revision) == (born, changed)
        await world.store.commit(deletes=[b"a"])
        assert await get(world.store, b"a") is None
        again = await put(world.store, b"a")
        assert (entry := await get(world.store, b"a")) is not None
        assert (entry.created, entry.revision) == (again, again)

    on(engine, test)


def test_deleting_what_is_not_there_is_allowed(engine: str) -> None:
    async def test(world: World) -> None:
        before = await put(world.store, b"a")
        assert await world.store.commit(deletes=[b"nothing"]) >= before
        assert [key for key, _ in await everything(world.store)] == [b"a"]

    on(engine, test)


def test_a_commit_without_writes_evaluates_its_compares_and_changes_nothing(engine: str) -> None:
    async def test(world: World) -> None:
        revision = await put(world.store, b"a")
        before = await everything(world.store)
        assert is_now(engine, await world.store.commit(), revision)
        held = await world.store.commit(compares=[Unchanged(b"a", revision)])
        assert is_now(engine, held, revision)
        with pytest.raises(Conflict):
            await world.store.commit(compares=[Absent(b"a")])
        assert is_now(engine, await world.store.commit(), revision)
        assert await everything(world.store) == before

    on(engine, test)


def test_absent(engine: str) -> None:
    async def test(world: World) -> None:
        assert not await conflicts(world.store, Absent(b"a"))
        await put(world.store, b"a")
        assert await conflicts(world.store, Absent(b"a"))
        await world.store.commit(deletes=[b"a"])
        assert not await conflicts(world.store, Absent(b"a"))

    on(engine, test)


def test_unchanged(engine: str) -> None:
    async def test(world: World) -> None:
        assert await conflicts(world.store, Unchanged(b"a", 1))
        first = await put(world.store, b"a")
        assert not await conflicts(world.store, Unchanged(b"a", first))
        second = await put(world.store, b"a")
        assert await conflicts(world.store, Unchanged(b"a", first))
        assert not await conflicts(world.store, Unchanged(b"a", second))
        await world.store.commit(deletes=[b"a"])
        assert await conflicts(world.store, Unchanged(b"a", second))
        assert await conflicts(world.store, Unchanged(b"a", 0))

    on(engine, test)


def test_born(engine: str) -> None:
    async def test(world: World) -> None:
        first = await put(world.store, b"a")
        second = await put(world.store, b"a")
        assert not await conflicts(world.store, Born(b"a", first))
        assert await conflicts(world.store, Born(b"a", second))
        await world.store.commit(deletes=[b"a"])
        assert await conflicts(world.store, Born(b"a", first))
        third = await put(world.store, b"a")
        assert await conflicts(world.store, Born(b"a", first))
        assert not await conflicts(world.store, Born(b"a", third))

    on(engine, test)


def test_empty(engine: str) -> None:
    async def test(world: World) -> None:
        await put(world.store, b"a", b"m", b"z")
        assert await conflicts(world.store, Empty(b"m", b"n"))
        assert await conflicts(world.store, Empty(b"a", b"b"))
        assert not await conflicts(world.store, Empty(b"b", b"m"))
        assert not await conflicts(world.store, Empty(b"m\0", b"z"))
        assert not await conflicts(world.store, Empty(b"z", b"a"))
        await world.store.commit(deletes=[b"m"])
        assert not await conflicts(world.store, Empty(b"b", b"z"))

    on(engine, test)


def test_none_born_after(engine: str) -> None:
    async def test(world: World) -> None:
        old = await put(world.store, b"m")
        assert not await conflicts(world.store, NoneBornAfter(b"a", b"z", old))
        assert await conflicts(world.store, NoneBornAfter(b"a", b"z", old - 1))
        # A change is no birth; a birth outside the range does not matter.
        await put(world.store, b"m", b"z")
        assert not await conflicts(world.store, NoneBornAfter(b"a", b"z", old))
        assert await conflicts(world.store, NoneBornAfter(b"a", b"z\0", old))
        # Born and dead again is as if it had never been; born anew is a birth.
        await put(world.store, b"n")
        assert await conflicts(world.store, NoneBornAfter(b"a", b"z", old))
        await world.store.commit(deletes=[b"n"])
        assert not await conflicts(world.store, NoneBornAfter(b"a", b"z", old))
        await world.store.commit(deletes=[b"m"])
        await put(world.store, b"m")
        assert await conflicts(world.store, NoneBornAfter(b"a", b"z", old))

    on(engine, test)


def test_a_conflict_names_the_first_compare_that_failed(engine: str) -> None:
    async def test(world: World) -> None:
        await put(world.store, b"a", b"b")
        compares = [Absent(b"c"), Absent(b"b"), Absent(b"a")]
        with pytest.raises(Conflict) as caught:
            await world.store.commit(compares=compares, puts=[Put(b"d", b"")])
        assert caught.value.index == 1
        assert caught.value.compare == Absent(b"b")
        assert caught.value.retryable
        assert await get(world.store, b"d") is None

    on(engine, test)


def test_a_commit_compares_the_state_before_its_own_writes(engine: str) -> None:
    async def test(world: World) -> None:
        await world.store.commit(compares=[Absent(b"a"), Empty(b"a", b"b")], puts=[Put(b"a", b"1")])
        assert await get(world.store, b"a") is not None

    on(engine, test)


def test_of_many_that_want_the_same_key_exactly_one_gets_it(engine: str) -> None:
    async def test(world: World) -> None:
        stores = [world.store, await world.another()]

        async def attempt(number: int) -> bool:
            try:
                await stores[number % 2].commit(
                    compares=[Absent(b"a")], puts=[Put(b"a", b"%d" % number)]
                )
            except Conflict:
                return False
            return True

        won = await asyncio.gather(*(attempt(number) for number in range(40)))
        assert won.count(True) == 1
        entry = await get(world.store, b"a")
        assert entry is not None
        assert entry.value == b"%d" % won.index(True)

    on(engine, test)


def test_a_nonce_is_applied_once(engine: str) -> None:
    async def test(world: World) -> None:
        first = await world.store.commit(puts=[Put(b"a", b"1")], nonce=b"n")
        await world.store.commit(puts=[Put(b"a", b"2")])
        again = await world.store.commit(
            compares=[Absent(b"a")], puts=[Put(b"a", b"1")], nonce=b"n"
        )
        assert again == first
        assert await world.store.commit(compares=[Absent(b"a")], nonce=b"n") == first
        entry = await get(await world.another(), b"a")
        assert entry is not None
        assert entry.value == b"2"

    on(engine, test)


def test_a_nonce_that_was_refused_is_free(engine: str) -> None:
    async def test(world: World) -> None:
        await put(world.store, b"a")
        with pytest.raises(Conflict):
            await world.store.commit(compares=[Absent(b"a")], puts=[Put(b"b", b"")], nonce=b"n")
        await world.store.commit(puts=[Put(b"b", b"")], nonce=b"n")
        assert await get(world.store, b"b") is not None

    on(engine, test)


def test_a_nonce_outlives_the_log(engine: str) -> None:
    async def test(world: World) -> None:
        first = await world.store.commit(puts=[Put(b"a", b"1")], nonce=b"n")
        for _ in range(12):
            revision = await put(world.store, b"b")
        world.compact(revision - 4)
        with pytest.raises(Compacted):
            await anext(world.store.watch(b"", first))
        assert await world.store.commit(puts=[Put(b"a", b"3")], nonce=b"n") == first

    on(engine, test, log_revisions=4)


def test_an_acknowledged_commit_is_there_when_the_store_is_opened_again(engine: str) -> None:
    async def test(world: World) -> None:
        revision = await put(world.store, b"a")
        await world.store.close()
        again = await world.another()
        assert await everything(again) == [(b"a", Entry(b"value of a", revision, revision))]
        assert await put(again, b"b") > revision

    on(engine, test)


# Bad input


@pytest.mark.parametrize(
    "arguments",
    [
        {"puts": [Put(b"a", b"1"), Put(b"a", b"2")]},
        {"puts": [Put(b"a", b"1")], "deletes": [b"a"]},
        {"deletes": [b"a", b"a"]},
        {"puts": [Put(b"", b"")]},
        {"deletes": [b""]},
        {"compares": [Absent(b"")]},
        {"puts": [Put(b"a" * (KEY_BYTES_MAX + 1), b"")]},
        {"compares": [Unchanged(b"a" * (KEY_BYTES_MAX + 1), 1)]},
        {"puts": [Put(b"a", b"x" * (VALUE_BYTES_MAX + 1))]},
        {"compares": [Unchanged(b"a", 1 << 63)]},
        {"compares": [Born(b"a", -1)]},
        {"puts": [Put(b"a", b"", b"short")]},
        {"nonce": b""},
        {"nonce": b"n" * 65},
    ],
    ids=lambda arguments: repr(arguments)[:40],
)
def test_a_commit_that_can_never_be_accepted_is_invalid_input(
    engine: str, arguments: dict[str, Any]
) -> None:
    async def test(world: World) -> None:
        with pytest.raises(InvalidInput):
            await world.store.commit(**arguments)
        assert await everything(world.store) == []

    on(engine, test)


@pytest.mark.parametrize(
    "arguments",
    [
        {"puts": [Put("a", b"1")]},
        {"puts": [Put(b"a", "1")]},
        {"puts": [Put(b"a", bytearray(b"1"))]},
        {"puts": [(b"a", b"1")]},
        {"deletes": ["a"]},
        {"deletes": b"ab"},
        {"compares": [Absent("a")]},
        {"compares": [Unchanged(b"a", "1")]},
        {"compares": [Born(b"a", True)]},
        {"compares": [Empty("a", b"b")]},
        {"compares": [b"a"]},
        {"nonce": "n"},
    ],
    ids=lambda arguments: repr(arguments)[:40],
)
def test_wrong_types_are_type_errors(engine: str, arguments: dict[str, Any]) -> None:
    async def test(world: World) -> None:
        with pytest.raises(TypeError):
            await world.store.commit(**arguments)
        assert await everything(world.store) == []

    on(engine, test)


def test_a_commit_is_bounded_in_operations_and_in_bytes(clocked: str) -> None:
    async def test(world: World) -> None:
        third = OPERATIONS_MAX // 3
        compares = [Absent(b"%d" % number) for number in range(third)]
        puts = [Put(b"%d" % number, b"") for number in range(third)]
        deletes = [b"d%d" % number for number in range(OPERATIONS_MAX - 2 * third)]
        await world.store.commit(compares=compares, puts=puts, deletes=deletes)
        with pytest.raises(InvalidInput, match=f"OPERATIONS_MAX, {OPERATIONS_MAX}"):
            await world.store.commit(compares=compares, puts=puts, deletes=[*deletes, b"e"])
        value = b"x" * VALUE_BYTES_MAX
        count = COMMIT_BYTES_MAX // VALUE_BYTES_MAX - 1
        large = [Put(b"large %02d" % number, value) for number in range(count)]
        rest = COMMIT_BYTES_MAX - count * (VALUE_BYTES_MAX + len(b"large 00")) - 1
        await world.store.commit(puts=[*large, Put(b"r", value[:rest])])
        revision = await world.store.commit()
        with pytest.raises(InvalidInput, match=f"COMMIT_BYTES_MAX, {COMMIT_BYTES_MAX}"):
            await world.store.commit(puts=[*large, Put(b"r", value[: rest + 1])])
        assert await world.store.commit() == revision

    on(clocked, test)


def test_the_largest_key_and_value_are_accepted(engine: str) -> None:
    async def test(world: World) -> None:
        key, value = b"\xff" * KEY_BYTES_MAX, b"v" * VALUE_BYTES_MAX
        revision = await world.store.commit(puts=[Put(key, value)], nonce=b"n" * 64)
        assert await everything(world.store) == [(key, Entry(value, revision, revision))]
        assert await conflicts(world.store, Empty(b"\xff", prefix_end(b"\xff")))

    on(engine, test)


def test_reads_refuse_what_can_be_no_key(engine: str) -> None:
    async def test(world: World) -> None:
        snapshot = await world.store.snapshot()
        with pytest.raises(TypeError):
            await snapshot.get("a")  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            await snapshot.range("a", b"b")  # type: ignore[arg-type]
        with pytest.raises(InvalidInput):
            await snapshot.range(b"a", b"b", limit=-1)
        with pytest.raises(TypeError):
            world.store.watch("a", 1)  # type: ignore[arg-type]
        with pytest.raises(InvalidInput):
            world.store.watch(b"a", -1)
        await snapshot.close()

    on(engine, test)


# Snapshots


def test_a_snapshot_shows_one_revision_whatever_is_committed_meanwhile(engine: str) -> None:
    async def test(world: World) -> None:
        revision = await put(world.store, b"a", b"b", b"c")
        snapshot = await world.store.snapshot()
        fixed = await snapshot.fix()
        assert is_now(engine, fixed, revision)
        assert snapshot.revision == fixed
        before = await snapshot.range(b"", b"z")
        for _ in range(5):
            await world.store.commit(puts=[Put(b"a", b"new"), Put(b"aa", b"")], deletes=[b"b"])
            await world.store.commit(puts=[Put(b"b", b"reborn")], deletes=[b"aa", b"c"])
        assert await snapshot.range(b"", b"z") == before
        assert await snapshot.get(b"aa") is None
        entries = await snapshot.get_many([b"c", b"a", b"x", b"c"])
        assert [entry and entry.value for entry in entries] == [
            b"value of c",
            b"value of a",
            None,
            b"value of c",
        ]
        await snapshot.close()
        await snapshot.close()
        after = await everything(world.store)
        assert [(key, entry.value) for key, entry in after] == [(b"a", b"new"), (b"b", b"reborn")]

    on(engine, test)


def test_snapshots_of_different_revisions_live_side_by_side(engine: str) -> None:
    async def test(world: World) -> None:
        snapshots = []
        for number in range(6):
            revision = await world.store.commit(puts=[Put(b"a", b"%d" % number)])
            snapshot = await world.store.snapshot()
            await snapshot.fix()
            snapshots.append((number, revision, snapshot))
        await world.store.commit(deletes=[b"a"])
        for number, revision, snapshot in snapshots[::2] + snapshots[1::2]:
            entry = await snapshot.get(b"a")
            assert entry is not None
            assert (entry.value, entry.revision) == (b"%d" % number, revision)
            await snapshot.close()
        assert await everything(world.store) == []

    on(engine, test)


def test_a_snapshot_sees_every_commit_that_returned_before_on_any_opening(engine: str) -> None:
    async def test(world: World) -> None:
        other = await world.another()
        for number in range(20):
            writer, reader = (world.store, other) if number % 2 else (other, world.store)
            revision = await put(writer, b"a")
            snapshot = await reader.snapshot()
            assert (await snapshot.get(b"a")) is not None
            assert snapshot.revision >= revision
            await snapshot.close()

    on(engine, test)


def test_reads_at_once_are_of_one_revision(engine: str) -> None:
    async def test(world: World) -> None:
        await put(world.store, b"a", b"b")
        for _ in range(20):
            snapshot = await world.store.snapshot()
            a, _, rows, b = await asyncio.gather(
                snapshot.get(b"a"),
                put(world.store, b"a", b"b"),
                snapshot.range(b"a", b"z"),
                snapshot.get_many([b"b", b"a"]),
            )
            seen = [a, *(entry for _, entry in rows), *b]
            assert len({entry and entry.revision for entry in seen}) == 1
            await snapshot.close()

    on(engine, test)


def test_ranges_are_half_open_ordered_limited_and_reversible(engine: str) -> None:
    async def test(world: World) -> None:
        keys = [b"\0", b"\0\0", b"a", b"a\0", b"a\xff", b"b", b"\xff", b"\xff\xff"]
        await put(world.store, *reversed(keys))

        async def found(start: bytes, end: bytes, **options: Any) -> list[bytes]:
            rows = await at_snapshot(world.store, lambda s: s.range(start, end, **options))
            return [key for key, _ in rows]

        top = prefix_end(b"")
        assert await found(b"", top) == keys
        assert await found(b"", top, reverse=True) == keys[::-1]
        assert await found(b"a", b"b") == [b"a", b"a\0", b"a\xff"]
        assert await found(b"a\0", b"b\0", limit=2) == [b"a\0", b"a\xff"]
        assert await found(b"a", b"\xff", limit=2, reverse=True) == [b"b", b"a\xff"]
        assert await found(b"a", top, limit=0) == []
        assert await found(b"b", b"a") == []
        assert await found(b"\xff", prefix_end(b"\xff")) == [b"\xff", b"\xff\xff"]

    on(engine, test)


def test_long_ranges_and_many_keys_are_read_whole(engine: str) -> None:
    async def test(world: World) -> None:
        keys = [b"%05d" % number for number in range(3000)]
        await put_all(world.store, [Put(key, key * 100) for key in keys])
        snapshot = await world.store.snapshot()
        await snapshot.fix()
        for start in range(0, len(keys), 200):
            await world.store.commit(deletes=keys[start : start + 200 : 2])
        rows, few, entries, back = await asyncio.gather(
            snapshot.range(b"", b"z"),
            snapshot.get(keys[0]),
            snapshot.get_many(keys),
            snapshot.range(b"", b"z", reverse=True, limit=2000),
        )
        assert [key for key, _ in rows] == keys
        assert few is not None
        assert [entry and entry.value for entry in entries] == [key * 100 for key in keys]
        assert [key for key, _ in back] == keys[:999:-1]
        await snapshot.close()

    on(engine, test)


def test_a_snapshot_closed_during_a_long_read_does_not_break_it(engine: str) -> None:
    async def test(world: World) -> None:
        keys = [b"%05d" % number for number in range(3000)]
        await put_all(world.store, [Put(key, b"x" * 500) for key in keys])
        for _ in range(5):
            snapshot = await world.store.snapshot()
            reading = asyncio.create_task(snapshot.range(b"", b"z"))
            await asyncio.sleep(0)
            await snapshot.close()
            assert len(await reading) == 3000
            with pytest.raises(Closed):
                await snapshot.get(b"00001")

    on(engine, test)


def test_a_snapshot_that_is_too_old_is_compacted(
    clocked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ringhold.store.sqlite.readers.SNAPSHOT_AGE_MAX_S", 0.05)
    monkeypatch.setattr("ringhold.store.memory.SNAPSHOT_AGE_MAX_S", 0.05)

    async def test(world: World) -> None:
        await put(world.store, b"a")
        snapshot = await world.store.snapshot()
        assert await snapshot.get(b"a") is not None
        world.env.hands.move(0.06)
        dropped = asyncio.Event()
        # The engine's own timer comes first: it was set earlier, for an earlier moment.
        asyncio.get_running_loop().call_later(0.06, dropped.set)
        await dropped.wait()
        with pytest.raises(Compacted):
            await snapshot.get(b"a")
        with pytest.raises(Compacted):
            await snapshot.range(b"", b"z")
        await snapshot.close()
        assert await get(world.store, b"a") is not None

    on(clocked, test)


# Watches


async def take(watch: AsyncIterator[Changes], count: int) -> list[Changes]:
    async with asyncio.timeout(60):
        return [await anext(watch) for _ in range(count)]


def test_a_watch_delivers_whole_revisions_in_order_from_the_past_on(engine: str) -> None:
    async def test(world: World) -> None:
        first = await world.store.commit(puts=[Put(b"wa", b"1"), Put(b"wb", b"2")])
        await put(world.store, b"other")
        second = await world.store.commit(puts=[Put(b"x", b"")], deletes=[b"wa", b"w-none"])
        watch = world.store.watch(b"w", first)
        assert await take(watch, 2) == [
            Changes(
                first,
                (
                    Event(EventKind.PUT, b"wa", b"1", first),
                    Event(EventKind.PUT, b"wb", b"2", first),
                ),
            ),
            Changes(second, (Event(EventKind.DELETE, b"wa", None, second),)),
        ]
        await watch.aclose()  # type: ignore[attr-defined]

    on(engine, test)


def test_a_watch_waits_for_what_other_openings_commit(engine: str) -> None:
    async def test(world: World) -> None:
        other = await world.another()
        revision = await put(world.store, b"a")
        watch = world.store.watch(b"w", revision + 1)
        for store in (world.store, other, other, world.store):
            waiting = asyncio.create_task(take(watch, 1))
            await asyncio.sleep(0)
            await put(store, b"unrelated")
            revision = await put(store, b"w")
            assert [changes.revision for changes in await waiting] == [revision]
        await watch.aclose()  # type: ignore[attr-defined]

    on(engine, test)


def test_watches_miss_nothing_and_repeat_nothing_under_load(engine: str) -> None:
    async def test(world: World) -> None:
        stores = [world.store, await world.another()]
        watches = [store.watch(b"w", 1) for store in stores]

        async def write(number: int) -> list[int]:
            return [await put(stores[number % 2], b"w%d" % number, b"v") for _ in range(30)]

        taking = [asyncio.create_task(take(watch, 120)) for watch in watches]
        written = await asyncio.gather(*(write(number) for number in range(4)))
        expected = sorted(itertools.chain(*written))
        for task, watch in zip(taking, watches, strict=True):
            assert [changes.revision for changes in await task] == expected
            await watch.aclose()  # type: ignore[attr-defined]

    on(engine, test)


def test_a_watch_of_the_future_waits_for_it(engine: str) -> None:
    async def test(world: World) -> None:
        revision = await put(world.store, b"a")
        watch = world.store.watch(b"", revision + 2)
        waiting = asyncio.create_task(take(watch, 1))
        made = []
        for _ in range(3):
            await asyncio.sleep(0)
            made.append(await put(world.store, b"a"))
        assert (await waiting)[0].revision == min(each for each in made if each >= revision + 2)
        await watch.aclose()  # type: ignore[attr-defined]

    on(engine, test)


def test_a_watch_of_revisions_no_longer_kept_is_compacted(engine: str) -> None:
    async def test(world: World) -> None:
        made = [await put(world.store, b"a") for _ in range(60)]
        first, revision = made[0], made[-1]
        world.compact(made[-17])
        # In the words of those who ask for what came after a revision.
        told = f"changes after revision {first - 1} are no longer all kept"
        with pytest.raises(Compacted, match=told) as caught:
            await anext(world.store.watch(b"", first))
        assert caught.value.revision == first
        # What is not refused must start without a gap.
        refused = []
        for start in range(first, revision + 1):
            watch = world.store.watch(b"", start)
            try:
                (changes,) = await take(watch, 1)
            except Compacted:
                refused.append(start)
            else:
                assert changes.revision == min(each for each in made if each >= start)
                await watch.aclose()  # type: ignore[attr-defined]
        assert refused == list(range(first, first + len(refused)))
        assert f"only those after {refused[-1]}:" in str(caught.value)
        assert len(refused) <= made[-17] - first + 1

    on(engine, test, log_revisions=16)


def test_closing_a_watch_that_waits_leaves_no_task(engine: str) -> None:
    async def test(world: World) -> None:
        watch = world.store.watch(b"w", 1)
        waiting = asyncio.create_task(anext(watch))  # type: ignore[arg-type]
        await asyncio.sleep(0.02)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await watch.aclose()  # type: ignore[attr-defined]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    on(engine, test)


# Leases


def test_keys_of_a_lease_disappear_with_it_at_one_revision(clocked: str) -> None:
    async def test(world: World) -> None:
        lease = lease_id(1)
        await world.store.grant_lease(lease, 10.0)
        await put(world.store, b"a", b"b", lease=lease)
        await put(world.store, b"c", lease=lease)
        revision = await put(world.store, b"free")
        await world.wait(9.8)
        assert len(await everything(world.store)) == 4
        world.env.hands.move(0.2)
        await world.store.expire_leases()
        assert [key for key, _ in await everything(world.store)] == [b"free"]
        watch = world.store.watch(b"", revision + 1)
        (changes,) = await take(watch, 1)
        assert sorted((event.key, event.value) for event in changes.events) == [
            (b"a", None),
            (b"b", None),
            (b"c", None),
        ]
        await watch.aclose()  # type: ignore[attr-defined]

    on(clocked, test)


def test_an_overdue_lease_ends_before_a_commit_compares(clocked: str) -> None:
    async def test(world: World) -> None:
        lease = lease_id(1)
        await world.store.grant_lease(lease, 10.0)
        held = await put(world.store, b"lock", lease=lease)
        assert await conflicts(world.store, Absent(b"lock"))
        await world.wait(8.0)
        world.env.hands.move(2.0)
        # Nobody called expire_leases: the holder's own compare fails all the same.
        with pytest.raises(Conflict):
            await world.store.commit(
                compares=[Unchanged(b"lock", held)], puts=[Put(b"guarded", b"stale")]
            )
        revision = await world.store.commit(compares=[Absent(b"lock")], puts=[Put(b"lock", b"2")])
        assert revision > held + 1
        with pytest.raises(SessionExpired) as caught:
            await put(world.store, b"x", lease=lease)
        assert caught.value.session == lease
        with pytest.raises(SessionExpired):
            await world.store.renew_lease(lease)

    on(clocked, test)


def test_a_renewed_lease_lives_on(clocked: str) -> None:
    async def test(world: World) -> None:
        lease = lease_id(1)
        await world.store.grant_lease(lease, 10.0)
        await put(world.store, b"a", lease=lease)
        for _ in range(5):
            await world.wait(9.0)
            await world.store.renew_lease(lease)
        assert await get(world.store, b"a") is not None
        await world.wait(8.0)
        world.env.hands.move(2.0)
        with pytest.raises(SessionExpired):
            await world.store.renew_lease(lease)
        assert await get(world.store, b"a") is None

    on(clocked, test)


def test_a_revoked_lease_takes_its_keys_along_and_nothing_else(engine: str) -> None:
    async def test(world: World) -> None:
        first, second = lease_id(1), lease_id(2)
        other = await world.another()
        await world.store.grant_lease(first, 10.0)
        await other.grant_lease(second, 10.0)
        await put(world.store, b"a", lease=first)
        await put(other, b"b", lease=second)
        await put(world.store, b"b2", lease=second)
        await world.store.revoke_lease(first)
        assert [key for key, _ in await everything(other)] == [b"b", b"b2"]
        await world.store.revoke_lease(first)
        await world.store.revoke_lease(lease_id(99))
        with pytest.raises(SessionExpired):
            await put(world.store, b"a", lease=first)
        await other.renew_lease(second)

    on(engine, test)


def test_a_put_replaces_the_lease_of_its_key(clocked: str) -> None:
    async def test(world: World) -> None:
        first, second = lease_id(1), lease_id(2)
        await world.store.grant_lease(first, 10.0)
        await world.store.grant_lease(second, 20.0)
        await put(world.store, b"freed", b"moved", b"bound", lease=first)
        await put(world.store, b"freed")
        await put(world.store, b"moved", lease=second)
        await world.wait(10.0)
        assert [key for key, _ in await everything(world.store)] == [b"freed", b"moved"]
        await world.wait(10.0)
        assert [key for key, _ in await everything(world.store)] == [b"freed"]

    on(clocked, test)


def test_compares_are_judged_before_leases(engine: str) -> None:
    async def test(world: World) -> None:
        await put(world.store, b"a")
        with pytest.raises(Conflict):
            await world.store.commit(compares=[Absent(b"a")], puts=[Put(b"b", b"", lease_id(7))])
        with pytest.raises(SessionExpired):
            await world.store.commit(
                puts=[Put(b"c", b""), Put(b"b", b"", lease_id(7))], deletes=[b"a"]
            )
        assert [key for key, _ in await everything(world.store)] == [b"a"]

    on(engine, test)


def test_a_lease_is_granted_once(engine: str) -> None:
    async def test(world: World) -> None:
        lease = lease_id(1)
        other = await world.another()
        await world.store.grant_lease(lease, 10.0)
        for store in (world.store, other):
            with pytest.raises(InvalidInput):
                await store.grant_lease(lease, 10.0)
        await put(world.store, b"a", lease=lease)
        await other.expire_leases()
        assert await get(other, b"a") is not None

    on(engine, test)


@pytest.mark.parametrize("ttl_s", [0, -1, float("nan"), float("inf"), 1e10])
def test_a_lease_needs_a_ttl_that_means_something(engine: str, ttl_s: float) -> None:
    async def test(world: World) -> None:
        with pytest.raises(InvalidInput):
            await world.store.grant_lease(lease_id(1), ttl_s)
        with pytest.raises(InvalidInput):
            await world.store.grant_lease(b"short", 1.0)
        with pytest.raises(TypeError):
            await world.store.grant_lease("x" * 12, 1.0)  # type: ignore[arg-type]

    on(engine, test)


def test_a_lease_outlives_the_opening_that_granted_it(clocked: str) -> None:
    async def test(world: World) -> None:
        lease = lease_id(1)
        other = await world.another()
        await world.store.grant_lease(lease, 10.0)
        await put(world.store, b"a", lease=lease)
        await world.store.close()
        await other.expire_leases()
        assert await get(other, b"a") is not None
        world.store = other
        await world.wait(10.0)
        assert await get(other, b"a") is None

    on(clocked, test)


# Closing and cancelling


def test_after_close_everything_but_close_raises_closed(engine: str) -> None:
    async def test(world: World) -> None:
        store = world.store
        snapshot = await store.snapshot()
        watch = store.watch(b"", 1)
        waiting = asyncio.create_task(anext(watch))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        await store.close()
        await store.close()
        calls: list[Callable[[], Any]] = [
            store.snapshot,
            store.commit,
            lambda: store.grant_lease(lease_id(1), 1.0),
            lambda: store.renew_lease(lease_id(1)),
            lambda: store.revoke_lease(lease_id(1)),
            store.expire_leases,
            lambda: snapshot.get(b"a"),
            lambda: snapshot.range(b"", b"z"),
            lambda: waiting,
        ]
        for call in calls:
            with pytest.raises(Closed):
                await call()
        with pytest.raises(Closed):
            store.watch(b"", 1)
        await snapshot.close()

    on(engine, test)


def test_close_waits_for_what_is_queued(engine: str) -> None:
    async def test(world: World) -> None:
        tasks = [asyncio.create_task(put(world.store, b"%d" % n)) for n in range(20)]
        # Memory lets others run before it commits: one more turn has everything queued.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await world.store.close()
        await asyncio.gather(*tasks)
        assert len(await everything(await world.another())) == 20

    on(engine, test)


def test_a_cancelled_commit_is_waited_for_or_never_begun(engine: str) -> None:
    async def test(world: World) -> None:
        for yields in range(4):
            key = b"%d" % yields
            task = asyncio.create_task(put(world.store, key))
            for _ in range(yields):
                await asyncio.sleep(0)
            task.cancel()
            done = await asyncio.gather(task, return_exceptions=True)
            # Whatever the outcome, it is settled now: nothing appears later.
            settled = await get(world.store, key)
            if not isinstance(done[0], asyncio.CancelledError):
                assert settled is not None
            for _ in range(3):
                await put(world.store, b"later")
            assert await get(world.store, key) == settled

    on(engine, test)


def test_create_and_open_tell_a_store_from_none(engine: str) -> None:
    async def test(world: World) -> None:
        missing = tempfile.mkdtemp(prefix="ringhold-store-")
        try:
            open_store: Any = open_memory_store if engine == "memory" else open_sqlite_store
            with pytest.raises(FileNotFoundError):
                await open_store(missing, world.env, create=False)
            store = await open_store(missing, world.env, create=True)
            with pytest.raises(FileExistsError):
                await open_store(missing, world.env, create=True)
            await store.close()
            with pytest.raises(FileExistsError):
                await open_store(missing, world.env, create=True)
        finally:
            shutil.rmtree(missing)

    on(engine, test)

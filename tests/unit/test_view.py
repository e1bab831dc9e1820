"""Goal: a view reads one revision plus its own writes, and commits only if all it read still
holds.

Method: views on real memory stores. A property test replays random reads and writes against a
dictionary, lets somebody else commit meanwhile, and checks that a view commits only if reading
everything again would have shown the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringhold.env import RealEnv, real_env
from ringhold.errors import (
    Conflict,
    InvalidInput,
    OutcomeUnknown,
    StoreUnavailable,
)
from ringhold.store.base import Absent, Born, Empty, Put, Store
from ringhold.store.memory import open_memory_store
from ringhold.store.repeat import commit_sure
from ringhold.store.view import NOT_COMMITTED, View, commit_known, transact

_names = itertools.count()


def on_store(test: Callable[[Store], Awaitable[None]], *keys: bytes) -> None:
    async def main() -> None:
        store = await open_memory_store(f"view-{next(_names)}", real_env(), create=True)
        await store.commit(puts=[Put(key, b"old " + key) for key in keys])
        await test(store)
        await store.close()

    asyncio.run(main())


async def view_of(store: Store) -> View:
    return View(await store.snapshot())


async def keys_in(store: Store) -> list[bytes]:
    snapshot = await store.snapshot()
    rows = await snapshot.range(b"", b"\xff")
    await snapshot.close()
    return [key for key, _ in rows]


async def commits(view: View, store: Store) -> bool:
    try:
        await view.commit(store)
    except Conflict:
        return False
    return True


def test_a_view_sees_its_own_writes_and_nobody_else_s() -> None:
    async def test(store: Store) -> None:
        view = await view_of(store)
        view.put(b"new", b"1")
        view.put(b"a", b"2")
        view.delete(b"b")
        await store.commit(puts=[Put(b"c", b"changed"), Put(b"d", b"")])
        entries = await view.get_many([b"new", b"a", b"b", b"c", b"d", b"a"])
        values = [entry and entry.value for entry in entries]
        assert values == [b"1", b"2", None, b"old c", None, b"2"]
        assert entries[0] is not None
        assert entries[0].revision == NOT_COMMITTED
        rows = await view.range(b"", b"\xff")
        assert [(key, entry.value) for key, entry in rows] == [
            (b"a", b"2"),
            (b"c", b"old c"),
            (b"new", b"1"),
        ]
        view.put(b"b", b"again")
        assert (await view.get(b"b")) is not None

    on_store(test, b"a", b"b", b"c")


def test_what_was_read_must_be_unchanged() -> None:
    async def test(store: Store) -> None:
        for read in (b"a", b"missing"):
            view = await view_of(store)
            await view.get(read)
            view.put(b"x", b"")
            await store.commit(puts=[Put(read, b"other")])
            assert not await commits(view, store)
            assert b"x" not in await keys_in(store)

    on_store(test, b"a")


def test_blind_writes_and_peeks_do_not_conflict() -> None:
    async def test(store: Store) -> None:
        view = await view_of(store)
        (entry, none) = await view.peek_many([b"a", b"missing"])
        assert entry is not None
        assert none is None
        view.put(b"b", b"blind")
        await store.commit(puts=[Put(key, b"other") for key in (b"a", b"b", b"missing")])
        assert await commits(view, store)

    on_store(test, b"a", b"b")


@pytest.mark.parametrize(
    ("change", "committed"),
    [
        ({"puts": [Put(b"a1", b"")]}, False),  # born in the range
        ({"deletes": [b"a2"]}, False),
        ({"puts": [Put(b"a2", b"")]}, False),
        ({"puts": [Put(b"b", b"")]}, True),  # beside it
        ({"deletes": [b"b0"]}, True),
    ],
)
def test_a_range_guards_its_keys_and_its_gaps(change: dict[str, Any], committed: bool) -> None:
    async def test(store: Store) -> None:
        view = await view_of(store)
        assert len(await view.range(b"a", b"b")) == 2
        view.put(b"x", b"")
        await store.commit(**change)
        assert await commits(view, store) is committed

    on_store(test, b"a0", b"a2", b"b0")


def test_an_empty_range_must_stay_empty() -> None:
    async def test(store: Store) -> None:
        view = await view_of(store)
        assert await view.range(b"q", b"r") == []
        assert await view.compares() == [Empty(b"q", b"r")]
        view.put(b"x", b"")
        await store.commit(puts=[Put(b"q", b"")])
        assert not await commits(view, store)

    on_store(test, b"a")


def test_a_limited_range_reads_on_over_keys_the_view_deleted() -> None:
    async def test(store: Store) -> None:
        view = await view_of(store)
        for key in (b"a", b"b", b"d"):
            view.delete(key)
        view.put(b"bb", b"own")
        rows = await view.range(b"", b"z", limit=2)
        assert [key for key, _ in rows] == [b"bb", b"c"]
        assert [key for key, _ in await view.range(b"", b"z", limit=3)] == [b"bb", b"c", b"e"]
        assert [key for key, _ in await view.range(b"", b"z", limit=9)] == [b"bb", b"c", b"e"]
        assert await view.range(b"", b"z", limit=0) == []
        with pytest.raises(InvalidInput):
            await view.range(b"", b"z", limit=-1)

    on_store(test, b"a", b"b", b"c", b"d", b"e")


def test_a_limited_range_does_not_guard_what_it_did_not_reach() -> None:
    async def test(store: Store) -> None:
        for born, committed in ((b"e", True), (b"aa", False)):
            view = await view_of(store)
            assert len(await view.range(b"", b"z", limit=2)) == 2
            view.put(b"x", b"")
            await store.commit(puts=[Put(born, b"")])
            assert await commits(view, store) is committed

    on_store(test, b"a", b"b", b"c")


def test_a_view_that_only_read_needs_no_commit() -> None:
    async def test(store: Store) -> None:
        view = await view_of(store)
        await view.range(b"", b"z")
        revision = view.revision
        await store.commit(puts=[Put(b"a", b"other")])
        assert await view.commit(store) == revision
        # A requirement is about now, not about the snapshot.
        view.require(Absent(b"a"))
        assert not await commits(view, store)

    on_store(test, b"a")


def test_a_savepoint_left_by_an_exception_takes_its_writes_back_and_keeps_its_reads() -> None:
    async def test(store: Store) -> None:
        view = await view_of(store)
        view.put(b"a", b"1")
        view.delete(b"b")
        with view.savepoint() as inner:
            inner.put(b"c", b"2")
            inner.require(Absent(b"never"))
        with contextlib.suppress(KeyError), view.savepoint() as inner:
            inner.put(b"a", b"3")
            inner.put(b"b", b"3")
            inner.delete(b"c")
            inner.put(b"x", b"3")
            inner.require(Absent(b"a"))
            rows = await inner.range(b"a", b"e")
            assert [(key, e.value) for key, e in rows] == [(b"a", b"3"), (b"b", b"3")]
            assert await inner.get(b"y") is None
            view.put(b"meanwhile", b"4")
            raise KeyError
        rows = await view.range(b"a", b"z")
        assert [(key, entry.value) for key, entry in rows] == [
            (b"a", b"1"),
            (b"c", b"2"),
            (b"meanwhile", b"4"),
        ]
        compares = await view.compares()
        assert compares[0] == Absent(b"never")
        assert Absent(b"a") not in compares
        assert Absent(b"y") in compares
        assert await commits(view, store)
        assert await keys_in(store) == [b"a", b"c", b"meanwhile"]

    on_store(test, b"a", b"b", b"c")


def test_what_a_failed_savepoint_read_is_compared() -> None:
    async def test(store: Store) -> None:
        view = await view_of(store)
        with contextlib.suppress(KeyError), view.savepoint() as inner:
            await inner.get(b"a")
            raise KeyError
        view.put(b"x", b"")
        await store.commit(puts=[Put(b"a", b"changed")])
        assert not await commits(view, store)

    on_store(test, b"a")


def test_a_long_range_lets_others_run_between() -> None:
    async def test(store: Store) -> None:
        view = await view_of(store)
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.ensure_future(other())
        assert len(await view.range(b"k", b"l")) == 5000
        assert turns >= 4
        await view.compares()
        assert turns >= 8
        task.cancel()
        await asyncio.wait([task])

    on_store(test, *(b"k%04d" % number for number in range(5000)))


def test_a_requirement_is_compared_first() -> None:
    async def test(store: Store) -> None:
        view = await view_of(store)
        await view.get(b"a")
        view.require(Born(b"lock", 77))
        view.put(b"x", b"")
        with pytest.raises(Conflict) as caught:
            await view.commit(store)
        assert caught.value.compare == Born(b"lock", 77)

    on_store(test, b"a")


# Repeating until the outcome is known


class Flaky:
    """A store whose commits answer as planned: an error before or after they were applied."""

    def __init__(self, store: Store, plan: Iterable[str]):
        self._store = store
        self._plan = iter(plan)

    async def commit(self, **arguments: Any) -> int:
        step = next(self._plan, "answer")
        if step == "unavailable":
            raise StoreUnavailable("planned")
        if step == "lost before":
            raise OutcomeUnknown("planned")
        revision = await self._store.commit(**arguments)
        if step == "lost after":
            raise OutcomeUnknown("planned")
        return revision

    async def snapshot(self) -> Any:
        return await self._store.snapshot()


class Hurried(RealEnv):
    async def sleep(self, seconds: float) -> None:
        await super().sleep(0)


async def repeated(store: Store, plan: list[str], *, by_view: bool, timeout_s: float = 5.0) -> None:
    """Appends one byte to `a` through a store that answers by `plan`."""
    flaky: Any = Flaky(store, plan)
    view = await view_of(store)
    entry = await view.get(b"a")
    assert entry is not None
    view.put(b"a", entry.value + b"+")
    if by_view:
        await commit_known(view, flaky, Hurried(), b"nonce of this", timeout_s=timeout_s)
    else:
        await commit_sure(
            flaky,
            Hurried(),
            compares=await view.compares(),
            puts=[Put(b"a", entry.value + b"+")],
            timeout_s=timeout_s,
        )


async def value_of(store: Store, key: bytes) -> bytes | None:
    snapshot = await store.snapshot()
    entry = await snapshot.get(key)
    await snapshot.close()
    return entry and entry.value


@pytest.mark.parametrize("by_view", [True, False])
@pytest.mark.parametrize(
    "plan",
    [
        ["lost after"],
        ["lost before"],
        ["lost before", "lost after", "lost before"],
        ["lost after", "unavailable", "unavailable"],
    ],
)
def test_a_lost_answer_is_asked_for_again_and_applied_once(plan: list[str], by_view: bool) -> None:
    async def test(store: Store) -> None:
        await repeated(store, plan, by_view=by_view)
        assert await value_of(store, b"a") == b"old a+"

    on_store(test, b"a")


@pytest.mark.parametrize("by_view", [True, False])
def test_unavailable_after_a_lost_answer_leaves_the_outcome_unknown(by_view: bool) -> None:
    async def test(store: Store) -> None:
        plan = ["lost after", *["unavailable"] * 10**6]
        with pytest.raises(OutcomeUnknown):
            await repeated(store, plan, by_view=by_view, timeout_s=0.2)
        assert await value_of(store, b"a") == b"old a+"
        with pytest.raises(StoreUnavailable):
            await repeated(store, ["unavailable"], by_view=by_view)

    on_store(test, b"a")


def test_transactions_that_meet_are_repeated_until_all_are_done() -> None:
    async def test(store: Store) -> None:
        env = real_env()

        async def add(view: View) -> None:
            entry = await view.get(b"count")
            view.put(b"count", b"%d" % (int(entry.value if entry else 0) + 1))

        async with asyncio.TaskGroup() as group:
            for _ in range(20):
                group.create_task(transact(store, env, add))
        assert await value_of(store, b"count") == b"20"

    on_store(test)


def test_a_transaction_that_always_loses_gives_up_with_the_conflict() -> None:
    async def test(store: Store) -> None:
        async def lose(view: View) -> None:
            await view.get(b"a")
            await store.commit(puts=[Put(b"a", b"other")])
            view.put(b"a", b"mine")

        with pytest.raises(Conflict):
            await transact(store, Hurried(), lose, timeout_s=0.05)

    on_store(test, b"a")


# Random views against a dictionary

KEYS = [b"a", b"a\0", b"b", b"c", b"c\xff", b"d"]
keys = st.sampled_from(KEYS)
bounds = st.sampled_from([b"", *KEYS, b"\xff"])
reads = st.one_of(
    st.tuples(st.just("get"), keys),
    st.tuples(st.just("get_many"), st.lists(keys, max_size=4)),
    st.tuples(st.just("peek_many"), st.lists(keys, max_size=3)),
    st.tuples(st.just("range"), bounds, bounds, st.none() | st.integers(0, 4)),
)
writes = st.one_of(
    st.tuples(st.just("put"), keys, st.binary(max_size=2)), st.tuples(st.just("delete"), keys)
)
changes = st.dictionaries(keys, st.binary(max_size=2) | st.none(), max_size=3)


async def run(view: View, program: list[Any]) -> list[Any]:
    """Does what `program` says; what its guarded reads returned."""
    results: list[Any] = []
    for name, *arguments in program:
        if name in ("put", "delete"):
            getattr(view, name)(*arguments)
        elif name == "range":
            start, end, limit = arguments
            results.append(await view.range(start, end, limit=limit))
        else:
            results.append(await getattr(view, name)(*arguments))
    return results


def expected(before: dict[bytes, bytes], program: list[Any]) -> list[Any]:
    """The same in a dictionary: values only."""
    state = dict(before)
    results: list[Any] = []
    for name, *arguments in program:
        if name == "put":
            state[arguments[0]] = arguments[1]
        elif name == "delete":
            state.pop(arguments[0], None)
        elif name == "get":
            results.append(state.get(arguments[0]))
        elif name == "range":
            start, end, limit = arguments
            rows = sorted((key, value) for key, value in state.items() if start <= key < end)
            results.append(rows[:limit])
        else:
            results.append([state.get(key) for key in arguments[0]])
    return results


def values(results: list[Any]) -> list[Any]:
    def value(item: Any) -> Any:
        if isinstance(item, list):
            return [value(one) for one in item]
        if isinstance(item, tuple):
            return (item[0], item[1].value)
        return item and item.value

    return [value(result) for result in results]


def guarded(program: list[Any], results: list[Any]) -> list[Any]:
    """What must be the same when read again: revisions, since equal bytes may be a new life."""
    names = [step[0] for step in program if step[0] not in ("put", "delete")]
    return [
        [(row[0], row[1].revision) for row in result]
        if name == "range"
        else [entry and entry.revision for entry in (result if name == "get_many" else [result])]
        for name, result in zip(names, results, strict=True)
        if name != "peek_many"
    ]


@settings(max_examples=400, deadline=None)
@given(
    before=st.dictionaries(keys, st.binary(max_size=2)),
    program=st.lists(reads | writes, max_size=12),
    meanwhile=changes,
)
def test_a_view_is_a_dictionary_that_commits_only_if_its_reads_still_hold(
    before: dict[bytes, bytes], program: list[Any], meanwhile: dict[bytes, bytes | None]
) -> None:
    program = [*program, ("put", b"a", b"last")]

    async def test(store: Store) -> None:
        await store.commit(puts=[Put(key, value) for key, value in before.items()])
        view = await view_of(store)
        results = await run(view, program)
        assert values(results) == expected(before, program)
        if not meanwhile:
            await view.commit(store)
            after = dict(before)
            apply_writes(after, program)
            assert await contents(store) == after
            return
        await store.commit(
            puts=[Put(key, value) for key, value in meanwhile.items() if value is not None],
            deletes=[key for key, value in meanwhile.items() if value is None],
        )
        again = await run(await view_of(store), program)
        same = guarded(program, again) == guarded(program, results)
        committed = await commits(view, store)
        assert same or not committed

    on_store(test)


def apply_writes(state: dict[bytes, bytes], program: list[Any]) -> None:
    for name, *arguments in program:
        if name == "put":
            state[arguments[0]] = arguments[1]
        elif name == "delete":
            state.pop(arguments[0], None)


async def contents(store: Store) -> dict[bytes, bytes]:
    snapshot = await store.snapshot()
    rows = await snapshot.range(b"", b"\xff")
    await snapshot.close()
    return {key: entry.value for key, entry in rows}

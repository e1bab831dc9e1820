"""Goal: what several tasks commit at the same moment is sent to etcd together, and yet each commit
does what it would have done alone.

Method: real etcd of each build. Commits that share a revision were sent together; those of which
one writes what another compares or writes must not. Many tasks move single coins between accounts
of their own and of others, with ranges compared among them: no coin is lost, none is made.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import pytest
from etcd_engines import ETCD
from etcd_servers import etcd, shared_etcd
from store_engines import World, everything, get, lease_id, on, put

from ringhold.env import real_env
from ringhold.errors import Conflict, InvalidInput, SessionExpired
from ringhold.store.base import (
    Absent,
    Born,
    Changes,
    Compare,
    Empty,
    NoneBornAfter,
    Put,
    Store,
    Unchanged,
    prefix_end,
)
from ringhold.store.etcd import open_etcd_store, parse_etcd_url, together

TASKS = 16
MOVES = 12


@pytest.fixture(params=ETCD)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def all_of(*commits: Coroutine[Any, Any, int]) -> list[int | BaseException]:
    """The revision or error of each; each is a task of its own, and all begin at once."""
    return await asyncio.gather(*commits, return_exceptions=True)


def keys(count: int = TASKS) -> list[bytes]:
    return [b"%03d" % number for number in range(count)]


def test_commits_of_tasks_share_a_revision_and_a_watch_sees_them_whole(engine: str) -> None:
    async def test(world: World) -> None:
        start = await put(world.store, b"start")
        puts = (
            world.store.commit(compares=[Absent(key)], puts=[Put(key, key * 2)]) for key in keys()
        )
        (revision,) = set(await all_of(*puts))
        assert isinstance(revision, int)
        assert revision > start
        found = await everything(world.store)
        assert [(key, entry.value) for key, entry in found[:-1]] == [(k, k * 2) for k in keys()]
        watch = world.store.watch(b"0", start + 1)
        changes: Changes = await anext(watch)
        assert changes.revision == revision
        assert [event.key for event in changes.events] == keys()
        await watch.aclose()  # type: ignore[attr-defined]
        (deleted,) = set(await all_of(*(world.store.commit(deletes=[key]) for key in keys())))
        assert isinstance(deleted, int)
        assert deleted > revision
        assert [key for key, _ in await everything(world.store)] == [b"start"]

    on(engine, test)


A, B = Put(b"a", b""), Put(b"b", b"")
OLD = 1
"""Stands for the revision of the keys that were there before."""

CONTRADICTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "both write": (
        {"compares": [Absent(b"a")], "puts": [A]},
        {"compares": [Absent(b"a")], "puts": [A]},
    ),
    "each writes what the other compares": (
        {"compares": [Absent(b"a")], "puts": [B]},
        {"compares": [Absent(b"b")], "puts": [A]},
    ),
    "each deletes what the other compares": (
        {"compares": [Unchanged(b"old", OLD)], "deletes": [b"older"]},
        {"compares": [Born(b"older", OLD)], "deletes": [b"old"]},
    ),
    "each writes into a range of the other's": (
        {"compares": [Empty(b"a", b"b")], "puts": [B]},
        {"compares": [Empty(b"b", b"c")], "puts": [A]},
    ),
    "the second writes into a range of the first's": (
        {"compares": [NoneBornAfter(b"a", b"b", OLD)], "puts": [B]},
        {"compares": [Absent(b"b")], "puts": [A]},
    ),
    "the first writes into a range of the second's": (
        {"compares": [Absent(b"b")], "puts": [A]},
        {"compares": [NoneBornAfter(b"a", b"b", OLD)], "puts": [B]},
    ),
}


@pytest.mark.parametrize("how", CONTRADICTIONS)
def test_of_commits_that_contradict_each_other_one_is_refused(engine: str, how: str) -> None:
    async def test(world: World) -> None:
        revision = await put(world.store, b"old", b"older")
        requests = [
            request
            | {
                "compares": [
                    replace(compare, revision=revision) if hasattr(compare, "revision") else compare
                    for compare in request["compares"]
                ]
            }
            for request in CONTRADICTIONS[how]
        ]
        outcomes = await all_of(*(world.store.commit(**request) for request in requests))
        assert {type(outcome) for outcome in outcomes} == {int, Conflict}, outcomes

    on(engine, test)


@pytest.mark.parametrize("first", ["compares", "puts"])
@pytest.mark.parametrize(
    "compare", [Absent(b"key"), Empty(b"k", b"l")], ids=lambda compare: type(compare).__name__
)
def test_what_a_commit_compared_stands_unchanged_at_its_revision(
    engine: str, compare: Compare, first: str
) -> None:
    """A watch from the next revision on would miss the change otherwise."""

    async def test(world: World) -> None:
        await put(world.store, b"warm")
        compares = world.store.commit(compares=[compare], puts=[Put(b"note", b"")])
        puts = world.store.commit(puts=[Put(b"key", b"")])
        await all_of(*((compares, puts) if first == "compares" else (puts, compares)))
        key, note = await get(world.store, b"key"), await get(world.store, b"note")
        assert key is not None
        assert note is None or note.revision < key.revision

    on(engine, test)


def test_a_conflict_is_told_to_the_one_whose_it_is(engine: str) -> None:
    async def test(world: World) -> None:
        revision = await put(world.store, *keys(4))
        commits = [
            world.store.commit(
                compares=[Unchanged(key, revision), Unchanged(b"x" + key, index % 2)],
                puts=[Put(b"new" + key, b"")],
            )
            if index % 2
            else world.store.commit(puts=[Put(key, b"new")])
            for index, key in enumerate(keys(4))
        ]
        outcomes = await all_of(*commits)
        assert outcomes[0] == outcomes[2]
        assert isinstance(outcomes[0], int)
        for index in (1, 3):
            error = outcomes[index]
            assert isinstance(error, Conflict)
            assert (error.index, error.compare) == (1, Unchanged(b"x" + keys(4)[index], 1))
        assert await get(world.store, b"new" + keys(4)[1]) is None

    on(engine, test)


def test_a_lease_that_is_gone_concerns_its_commit_alone(engine: str) -> None:
    async def test(world: World) -> None:
        alive, gone = lease_id(1), lease_id(2)
        for lease in (alive, gone):
            await world.store.grant_lease(lease, 60)
        await world.store.revoke_lease(gone)
        commits = [
            world.store.commit(puts=[Put(key, b"", gone if index == 5 else alive)])
            for index, key in enumerate(keys())
        ]
        outcomes = await all_of(*commits)
        assert [index for index, each in enumerate(outcomes) if not isinstance(each, int)] == [5]
        assert isinstance(outcomes[5], SessionExpired)
        assert len(await everything(world.store)) == TASKS - 1

    on(engine, test)


def test_a_nonce_given_twice_at_once_is_applied_once(engine: str) -> None:
    async def test(world: World) -> None:
        commits = (world.store.commit(puts=[Put(b"k", b"")], nonce=b"nonce") for _ in range(4))
        revisions = await all_of(*commits)
        assert len(set(revisions)) == 1
        entry = await get(world.store, b"k")
        assert entry is not None
        assert entry.revision == entry.created == revisions[0]

    on(engine, test)


@pytest.mark.parametrize("cancelled", [0, 5], ids=["the first", "another"])
def test_who_is_cancelled_takes_nobody_along(engine: str, cancelled: int) -> None:
    async def test(world: World) -> None:
        for turns in range(8):
            names = [b"%d " % turns + key for key in keys()]
            tasks = [asyncio.create_task(put(world.store, name)) for name in names]
            for _ in range(turns):
                await asyncio.sleep(0)
            tasks[cancelled].cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            others = [each for index, each in enumerate(outcomes) if index != cancelled]
            assert all(isinstance(each, int) for each in others), outcomes
            assert isinstance(outcomes[cancelled], asyncio.CancelledError)
            for name in names[:cancelled] + names[cancelled + 1 :]:
                assert await get(world.store, name) is not None

    on(engine, test)


def test_who_goes_first_and_is_ended_with_its_loop_takes_nobody_along(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(world: World) -> None:
        await put(world.store, b"warm")
        before = asyncio.all_tasks()
        # Until others come that cannot be of the group.
        monkeypatch.setattr(together, "UNDER_WAY_MAX", 0)
        waiting = [asyncio.create_task(put(world.store, key)) for key in keys(3)]
        for _ in range(5):
            await asyncio.sleep(0)
        monkeypatch.undo()
        inner = asyncio.all_tasks() - before - set(waiting)
        first = min(inner, key=lambda task: int(task.get_name().rpartition("-")[2]))
        first.cancel()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(each) for each in outcomes] == [asyncio.CancelledError, int, int]
        # Whoever joined that group would have to try twice.
        assert world.store._committer._together._gathering is None  # type: ignore[attr-defined]

    on(engine, test)


def test_no_more_go_together_than_etcd_takes(engine: str) -> None:
    async def test(world: World) -> None:
        many = [
            [Put(b"%03d %d" % (number, part), b"") for part in range(number % 60 + 1)]
            for number in range(150)
        ]
        large = [[Put(b"large %02d" % number, bytes(300_000))] for number in range(12)]
        outcomes = await all_of(*(world.store.commit(puts=puts) for puts in many + large))
        assert all(isinstance(each, int) for each in outcomes), outcomes
        assert len(set(outcomes)) < len(outcomes) / 4
        assert len(await everything(world.store)) == sum(map(len, many + large))

    on(engine, test)


def test_a_group_that_etcd_refuses_is_sent_one_by_one() -> None:
    """Its limits are lower than the URL says: each commit is within them, and all are not."""

    async def test() -> None:
        address = parse_etcd_url(shared_etcd("distro", 1).url("refused", max_txn_ops=5000))
        store = await open_etcd_store(address, real_env(), create=True)
        puts = [[Put(b"%d %d" % (number, part), b"") for part in range(125)] for number in range(9)]
        revisions = await all_of(*(store.commit(puts=some) for some in puts))
        assert len({each for each in revisions if isinstance(each, int)}) == 9
        too_many = [Put(b"%d" % number, b"") for number in range(200)]
        one, other = await all_of(store.commit(puts=too_many), store.commit(puts=puts[0]))
        assert isinstance(one, InvalidInput)
        assert isinstance(other, int)
        await store.close()

    asyncio.run(test())


@pytest.mark.parametrize("first", [True, False])
def test_nothing_joins_a_commit_as_large_as_the_url_allows(first: bool) -> None:
    """Its limits are higher than the URL says: it would not refuse them together."""

    async def test(url: str) -> None:
        store = await open_etcd_store(parse_etcd_url(url), real_env(), create=True)
        await put(store, b"warm")
        large = store.commit(puts=[Put(key, b"") for key in keys(127)])
        small = store.commit(compares=[Absent(keys(127)[-1])], puts=[Put(b"note", b"")])
        await all_of(*((large, small) if first else (small, large)))
        key, note = await get(store, keys(127)[-1]), await get(store, b"note")
        assert key is not None
        assert note is None or note.revision < key.revision
        await store.close()

    with etcd("distro", max_txn_ops=1000) as server:
        asyncio.run(test(server.url("higher", max_txn_ops=128)))


async def move(store: Store, source: bytes, target: bytes, log: bytes | None) -> None:
    """One coin, as a transaction of what was read before; with a `log` a note below it numbers the
    moves. Without, no range is compared, and the commit may go together with others."""
    while True:
        taken, given = await get(store, source), await get(store, target)
        assert taken is not None
        assert given is not None
        compares: list[Compare] = [
            Unchanged(source, taken.revision),
            Unchanged(target, given.revision),
        ]
        puts = [
            Put(source, b"%d" % (int(taken.value) - 1)),
            Put(target, b"%d" % (int(given.value) + 1)),
        ]
        if log is not None:
            snapshot = await store.snapshot()
            notes = await snapshot.range(log, prefix_end(log))
            await snapshot.close()
            compares.append(NoneBornAfter(log, prefix_end(log), snapshot.revision))
            puts.append(Put(log + b"%06d" % len(notes), b""))
        try:
            await store.commit(compares=compares, puts=puts)
        except Conflict:
            continue
        return


def test_no_coin_is_lost_or_made_by_many_tasks(engine: str) -> None:
    async def test(world: World) -> None:
        accounts = [b"account %d" % number for number in range(TASKS)]
        await world.store.commit(puts=[Put(account, b"100") for account in accounts])
        rng = random.Random(7)

        async def moves(number: int) -> None:
            for _ in range(MOVES):
                source, target = rng.sample(accounts, 2)
                log = b"log %d " % (number % 4) if rng.random() < 0.3 else None
                await move(world.store, source, target, log)

        await asyncio.gather(*(moves(number) for number in range(TASKS)))
        found = [
            int(entry.value) for key, entry in await everything(world.store) if key in accounts
        ]
        assert sum(found) == 100 * TASKS

    on(engine, test)

"""Goal: one leader at a time, told to everybody, each term with a larger token.

Method: two openings of one store campaign on each engine; expiry comes from a clock that the test
moves; giving up is tried at every call to the store. Then both faces, with threads and tasks.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from parties import ENGINES, Interrupting, Party, run_in_world

import ringhold
from ringhold.errors import DeadlockError, InvalidInput, LockLost, NotOwned
from ringhold.locks.election import AsyncElection
from ringhold.locks.slot_grants import SlotGrant, SlotService

_names = itertools.count()


@pytest.fixture(params=ENGINES)
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Any], None]:
    return lambda test: run_in_world(request.param, tmp_path, test)


def candidate(party: Party, value: str = "", name: Any = "x") -> AsyncElection:
    return AsyncElection(party.slots, name, value=value)


async def got(waiting: Any) -> SlotGrant:
    grant: SlotGrant | None = await asyncio.wait_for(waiting, 20)
    assert grant is not None
    return grant


async def until_campaigning(election: AsyncElection, count: int) -> None:
    while len(await election.candidates()) != count:  # noqa: ASYNC110
        await asyncio.sleep(0.001)


def test_one_leads_and_everybody_knows(run: Any) -> None:
    async def test(a: Party, b: Party) -> None:
        first, second = candidate(a, "here"), candidate(b, "thère\udcff")
        assert await second.leader() is None
        before = a.env.clock.wall()
        grant = await got(first.campaign())
        told = await second.leader()
        assert told is not None
        assert (told.value, told.token, told.pid) == ("here", grant.token, os.getpid())
        assert told.host == os.uname().nodename
        assert a.session.current is not None
        assert told.session == a.session.current.id.hex()
        assert before <= told.since <= a.env.clock.wall()
        assert grant.token & 1
        assert await second.campaign(timeout=0) is None
        assert await second.campaign(timeout=0.05) is None
        waiting = asyncio.create_task(second.campaign())
        await until_campaigning(first, 1)
        await first.resign()
        later = await got(waiting)
        assert later.token > grant.token
        told = await first.leader()
        assert told is not None
        assert told.value == "thère\udcff"
        await second.resign()
        assert await a.keys() == []

    run(test)


def test_a_candidate_cannot_wait_for_itself(run: Any) -> None:
    async def test(a: Party, b: Party) -> None:
        mine = candidate(a)
        with pytest.raises(NotOwned):
            await mine.resign()
        await got(mine.campaign())
        with pytest.raises(DeadlockError):
            await mine.campaign()
        waiting = candidate(b)
        task = asyncio.create_task(waiting.campaign())
        await until_campaigning(mine, 1)
        with pytest.raises(DeadlockError):
            await waiting.campaign(timeout=0)
        # Another task resigns for it.
        await asyncio.create_task(mine.resign())
        with pytest.raises(NotOwned):
            await mine.resign()
        await got(task)

    run(test)


def test_leadership_ends_with_the_session(run: Any) -> None:
    async def test(a: Party, b: Party) -> None:
        old, new = candidate(a), candidate(b)
        grant = await got(old.campaign())
        told: list[object] = []
        grant.on_lost(told.append)
        waiting = asyncio.create_task(new.campaign())
        await until_campaigning(new, 1)
        a.env.skip(11)
        with pytest.raises(LockLost):
            grant.check()
        taken = await got(waiting)
        assert taken.token > grant.token
        await asyncio.wait_for(grant.lost.wait(), 10)
        assert told == [grant]
        # What was lost may be campaigned for again, and the loss still be told.
        assert await old.campaign(timeout=0) is None
        with pytest.raises(LockLost):
            await old.resign()
        with pytest.raises(NotOwned):
            await old.resign()
        await new.resign()
        await got(old.campaign())

    run(test)


def test_a_block_leads_and_resigns(run: Any) -> None:
    async def test(a: Party, b: Party) -> None:
        mine = candidate(a)
        for early in (False, True):
            async with mine as grant:
                grant.check()
                if early:
                    await mine.resign()
            assert await mine.leader() is None
        with pytest.raises(LockLost):
            async with mine as grant:
                await b.store.commit(deletes=[grant.held.key])
        async with mine:
            pass

    run(test)


def test_observing_tells_every_leader(run: Any) -> None:
    async def test(a: Party, b: Party) -> None:
        seen: asyncio.Queue[str] = asyncio.Queue()

        async def observe() -> None:
            async for leader in candidate(b).observe():
                seen.put_nowait("" if leader is None else leader.value)

        observing = asyncio.create_task(observe())
        try:
            assert await asyncio.wait_for(seen.get(), 10) == ""
            for value in ("one", "two"):
                async with candidate(a, value):
                    assert await asyncio.wait_for(seen.get(), 10) == value
                assert await asyncio.wait_for(seen.get(), 10) == ""
        finally:
            observing.cancel()
            await asyncio.gather(observing, return_exceptions=True)

    run(test)


@pytest.mark.parametrize("freed", ["before", "once it is queued", "once it waits"])
def test_giving_up_at_any_point_leaves_nothing_behind(run: Any, freed: str) -> None:
    contended = freed != "before"
    reached = {"before": [], "once it is queued": ["snapshot"], "once it waits": ["watch"]}[freed]

    async def test(a: Party, b: Party) -> None:
        struck: set[str] = set()
        await b.session.ensure()
        for point in itertools.count():
            leader = candidate(a)
            if contended:
                await got(leader.campaign(timeout=5))
            store = Interrupting(b.store, point)
            slots = SlotService(store, b.env, b.session)  # type: ignore[arg-type]
            mine = AsyncElection(slots, "x")
            store.victim = asyncio.create_task(mine.campaign())
            while contended and not store.victim.done():
                if store.watched or (freed == "once it is queued" and await leader.candidates()):
                    break
                await asyncio.sleep(0)
            if contended:
                await leader.resign()
            try:
                await got(store.victim)
            except asyncio.CancelledError:
                struck.add(store.struck)
            else:
                await mine.resign()
            assert await a.keys() == [], f"cancelled at point {point}"
            await slots.close()
            if not store.struck:
                break
        assert struck >= {"commit", *reached}

    run(test)


@pytest.fixture
def cluster() -> Iterator[ringhold.Cluster]:
    with ringhold.create(f"memory://election{next(_names)}") as made:
        yield made


def test_bad_input(cluster: ringhold.Cluster) -> None:
    for name in ("", b"", "x" * (64 << 10), "\ud800"):
        with pytest.raises(InvalidInput):
            cluster.election(name)
    for wrong in (None, 5, ["x"]):
        with pytest.raises(TypeError):
            cluster.election(wrong)  # type: ignore[arg-type]
    for value in (None, 5, b"bytes"):
        with pytest.raises(TypeError):
            cluster.election("x", value=value)  # type: ignore[arg-type]
    for value in ("\ud800", "x" * (1 << 20)):
        with pytest.raises(InvalidInput):
            cluster.election("x", value=value)
    for timeout in (-2, float("nan")):
        with pytest.raises(ValueError, match="timeout"):
            cluster.election("x").campaign(timeout=timeout)
    with cluster.election("nul\0\udcff", value="x" * (1 << 19)) as grant:
        assert grant.name == "nul\0\udcff"
        assert len(cluster.election("nul\0\udcff").leader().value) == 1 << 19  # type: ignore[union-attr]


def test_the_blocking_face(cluster: ringhold.Cluster) -> None:
    mine, other = cluster.election("x", value="m"), cluster.election("x", value="o")
    with mine as grant:
        assert grant
        assert (grant.name, grant.mode) == ("x", "exclusive")
        leader = other.leader()
        assert isinstance(leader, ringhold.Leader)
        assert (leader.value, leader.token) == ("m", grant.token)
        assert other.campaign(timeout=0) is None
        assert other.campaign(timeout=0.02) is None
        with pytest.raises(DeadlockError):
            mine.campaign()
        outcome: list[Any] = []
        thread = threading.Thread(target=lambda: outcome.append(other.campaign(timeout=20)))
        thread.start()
        while not mine.candidates():
            pass
        mine.resign()
        thread.join(20)
        assert outcome[0].token > grant.token
    # Campaigned on another thread, resigned on this one.
    other.resign()
    with pytest.raises(NotOwned):
        other.resign()
    leaders = mine.observe()
    assert next(leaders) is None
    with other:
        assert next(leaders).value == "o"  # type: ignore[union-attr]
    assert next(leaders) is None

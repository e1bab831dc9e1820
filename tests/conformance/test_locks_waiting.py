"""Goal: waiting costs few calls where the store ends leases by itself, and no watch elsewhere.

Method: the calls of a waiting session to its store are counted on every engine. Where waiters
follow a watch, their own looks are put off for ever to show that it is the watch that tells; and
the watch is made deaf to show that they look all the same.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lock_world import ENGINES, NAME, SOON_S, Meddler, Party, World, run_in_world, soon

from ringhold.locks import claims, slots
from ringhold.locks.following import Following
from ringhold.locks.session import Session, SessionState
from ringhold.locks.slot_grants import SlotGrant, SlotService
from ringhold.locks.slots import Slots
from ringhold.store.base import Put, Store
from ringhold.store.keyspace import LOCK, SEMAPHORE

WAIT_S = 2.5
UNASKED: list[Any] = [engine for engine in ENGINES if engine not in ("memory", "sqlite")]


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(params=UNASKED)
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Any], None]:
    return lambda test: run_in_world(request.param, tmp_path, test)


def only_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (claims, slots):
        monkeypatch.setattr(module, "LOOK_S", 10_000.0)


def slot_service(party: Party) -> SlotService:
    store: Any = party.store
    return SlotService(store, party.env, party.session)


ONE_SLOT = Slots.of("semaphore", SEMAPHORE, NAME, "name", 1)


def test_a_waiter_calls_the_store_little_or_watches_nothing(engine: str, tmp_path: Path) -> None:
    async def test(world: World) -> None:
        a, b = await world.two()
        grant = await a.acquire()
        before = b.store.calls.copy()
        began_s = time.monotonic()
        waiting = b.start()
        await b.queued(1)
        await asyncio.sleep(WAIT_S)
        calls = b.store.calls - before
        waited_s = time.monotonic() - began_s
        watches = calls["watch"] - 1  # One for the mailbox.
        if b.real_store.leases_end_unasked:
            assert calls["expire_leases"] == 0
            assert watches == 1
            # Coming: an attempt, two looks, the place in the queue. Then a look and a letter a
            # second.
            assert calls.total() - 1 <= 6 + 2 * waited_s, calls
        else:
            assert watches == 0
            assert calls["expire_leases"] > 10 * WAIT_S
        await grant.release()
        await (await soon(waiting)).release()

    run_in_world(engine, tmp_path, test)


def test_a_waiter_for_a_slot_calls_the_store_little(engine: str, tmp_path: Path) -> None:
    async def test(world: World) -> None:
        a, b = await world.two()
        holder = await slot_service(a).acquire(ONE_SLOT, 1, None)
        before = b.store.calls.copy()
        waiting = asyncio.create_task(slot_service(b).acquire(ONE_SLOT, 1, None))
        await asyncio.sleep(WAIT_S)
        calls = b.store.calls - before
        if b.real_store.leases_end_unasked:
            assert calls["expire_leases"] == 0
            # Two looks, the place in the queue, the watch; a watch again after its own arrival.
            assert calls.total() <= 6, calls
        else:
            assert calls["expire_leases"] > 10 * WAIT_S
        await holder.release()
        async with asyncio.timeout(10):
            await (await waiting).release()

    run_in_world(engine, tmp_path, test)


@pytest.mark.parametrize("mode", ["exclusive", "shared", "upgrade"])
@pytest.mark.parametrize("end", ["released", "dead"])
def test_the_watch_tells_that_the_way_is_free(
    run: Any, end: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_watches(monkeypatch)

    async def test(world: World) -> None:
        a, b = await world.two()
        if mode == "upgrade":
            shared = await b.acquire(mode="shared")
            grant = await a.acquire(mode="shared")
            waiting: Any = asyncio.create_task(shared.upgrade())
        else:
            grant = await a.acquire()
            waiting = b.start(mode=mode)
        await b.queued(1)
        b.store.deaf = True  # Not by a letter.
        await asyncio.sleep(0.05)
        if end == "released":
            await grant.release()
        else:
            await a.die()
        async with asyncio.timeout(5):
            await waiting

    run(test)


@pytest.mark.parametrize("mode", ["exclusive", "upgrade"])
def test_a_waiter_whose_watch_is_deaf_looks_all_the_same(
    run: Any, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaf: list[bytes] = []

    async def silent(self: Meddler, prefix: bytes, from_revision: int) -> Any:
        store: Store = self._store
        async for changes in store.watch(prefix, from_revision):
            if prefix.startswith(LOCK):
                deaf.append(prefix)
            else:
                yield changes

    monkeypatch.setattr(Meddler, "watch", silent)

    async def test(world: World) -> None:
        a, b = await world.two()
        if mode == "upgrade":
            shared = await b.acquire(mode="shared")
            await a.acquire(mode="shared")
            waiting: Any = asyncio.create_task(shared.upgrade())
        else:
            await a.acquire()
            waiting = b.start()
        await b.queued(1)
        await asyncio.sleep(0.05)
        await a.die()
        async with asyncio.timeout(5):
            await waiting
        assert deaf

    run(test)


def test_a_waiter_whose_session_is_lost_gives_up_its_place_at_once(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_watches(monkeypatch)

    async def unable(self: Session, state: SessionState) -> None:
        """As if the store did not answer: its keys stay, and no watch tells."""

    monkeypatch.setattr(Session, "_revoke_lost", unable)

    async def test(world: World) -> None:
        a, b = await world.two()
        c = await world.party()
        grant = await a.acquire()
        held = await slot_service(a).acquire(ONE_SLOT, 1, None)
        waiting = [b.start(), asyncio.create_task(slot_service(c).acquire(ONE_SLOT, 1, None))]
        await b.queued(1)
        await asyncio.sleep(0.1)
        sessions = [await party.session.ensure() for party in (b, c)]
        for session in sessions:
            session.lose()
        for party, session in zip((b, c), sessions, strict=True):
            # A new session is that of a wait begun anew: it does not wait for what was lost.
            async with asyncio.timeout(SOON_S):
                while party.session.current in (None, session):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            await party.real_store.revoke_lease(session.id)
        await grant.release()
        await held.release()
        async with asyncio.timeout(5):
            for task in waiting:
                got: Any = await task
                await got.release()

    run(test)


def test_the_next_for_a_slot_follows_a_dead_holder(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_watches(monkeypatch)

    async def test(world: World) -> None:
        a, b = await world.two()
        await slot_service(a).acquire(ONE_SLOT, 1, None)
        waiting: asyncio.Task[SlotGrant] = asyncio.create_task(
            slot_service(b).acquire(ONE_SLOT, 1, None)
        )
        await asyncio.sleep(0.1)
        await a.die()
        async with asyncio.timeout(5):
            await (await waiting).release()

    run(test)


@pytest.mark.parametrize("seen", ["before", "after"])
def test_what_the_watch_told_before_it_was_awaited_counts(run: Any, seen: str) -> None:
    """A look takes a while, and the watch does not stand still meanwhile."""

    async def test(world: World) -> None:
        party = await world.party()
        store, woken = party.real_store, asyncio.Event()
        put = await store.commit(puts=[Put(b"l1", b""), Put(b"l2", b"")])
        async with Following(store, b"l", woken.set) as following:
            following.await_end([b"l1"], put)
            gone = await store.commit(deletes=[b"l2"])
            await store.commit(deletes=[b"l1"])
            async with asyncio.timeout(5):
                await woken.wait()
            woken.clear()
            following.await_end([b"l2"], put if seen == "before" else gone)
            assert woken.is_set() == (seen == "before")

    run(test)

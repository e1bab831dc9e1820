"""Goal: locks keep their promises on every engine: exclusion, order, growing tokens, no litter.

Method: sessions of two "processes" (two openings of one store) contend on a real store of each
engine. Giving up is tried at every call that an acquisition makes to the store, before and after
it, and afterwards the store's own keys are looked at. Expiry comes from a clock that the test
moves.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ringhold.env import RealClock, RealEnv
from ringhold.errors import (
    Closed,
    DeadlockError,
    LockLost,
    LockTimeout,
    NotOwned,
)
from ringhold.locks.lock import LockService
from ringhold.locks.session import Session
from ringhold.store.base import Store, prefix_end
from ringhold.store.keyspace import LOCK
from ringhold.store.memory import open_memory_store
from ringhold.store.sqlite import open_sqlite_store

NAME = b"uname"
_names = itertools.count()


class SkippingClock(RealClock):
    """Real time, plus what the test skips."""

    def __init__(self) -> None:
        self.skipped_ns = 0

    def boottime_ns(self) -> int:
        return super().boottime_ns() + self.skipped_ns


class SkippingEnv(RealEnv):
    def __init__(self) -> None:
        super().__init__()
        self.clock: SkippingClock = SkippingClock()

    def skip(self, seconds: float) -> None:
        self.clock.skipped_ns += int(seconds * 1e9)


class Party:
    """One process: a store opened for itself, its session and its locks."""

    def __init__(self, store: Store, env: SkippingEnv):
        self.store = store
        self.env = env
        self.session = Session(store, env)
        self.locks = LockService(store, env, self.session)

    async def keys(self) -> list[bytes]:
        snapshot = await self.store.snapshot()
        try:
            return [key for key, _ in await snapshot.range(LOCK, prefix_end(LOCK))]
        finally:
            await snapshot.close()

    async def close(self) -> None:
        await self.locks.close()
        await self.session.close()
        await self.store.close()


class World:
    def __init__(self, engine: str, directory: Path):
        self._engine = engine
        self._place = str(directory / "cluster") if engine == "sqlite" else f"l{next(_names)}"
        self._made = False
        self.parties: list[Party] = []

    async def party(self) -> Party:
        env = self.parties[0].env if self.parties else SkippingEnv()
        opener = open_sqlite_store if self._engine == "sqlite" else open_memory_store
        store = await opener(self._place, env, create=not self._made)
        self._made = True
        self.parties.append(Party(store, env))
        return self.parties[-1]


@pytest.fixture(params=["memory", "sqlite"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Any], None]:
    @asynccontextmanager
    async def world() -> AsyncIterator[World]:
        made = World(request.param, tmp_path)
        try:
            yield made
        finally:
            for party in made.parties:
                await party.close()

    def run(test: Callable[[World], Awaitable[None]]) -> None:
        async def main() -> None:
            async with world() as made:
                await test(made)

        asyncio.run(main())

    return run


async def until_waiting(party: Party, count: int) -> None:
    async with asyncio.timeout(10):
        while len(await party.locks.waiters(NAME)) != count:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def test_tokens_grow_and_say_exclusive(run: Any) -> None:
    async def test(world: World) -> None:
        a, b = await world.party(), await world.party()
        last = 0
        for party in (a, b, a, b):
            grant = await party.locks.acquire(NAME, 1, 5)
            assert last < grant.token < 1 << 63
            assert grant.token & 1
            assert grant.token >> 21 == grant.held.revision
            last = grant.token
            await grant.release()
        assert await a.keys() == []

    run(test)


def test_nobody_gets_what_is_held(run: Any) -> None:
    async def test(world: World) -> None:
        a, b = await world.party(), await world.party()
        grant = await a.locks.acquire(NAME, 1)
        for timeout_s in (0, 0.1):
            with pytest.raises(LockTimeout) as caught:
                await b.locks.acquire(NAME, 1, timeout_s, "name")
            assert caught.value.name == "name"
        assert await a.keys() == [grant.held.key]
        assert [party.token for party in await b.locks.holders(NAME)] == [grant.token]

    run(test)


def test_waiters_are_served_in_the_order_they_came(run: Any) -> None:
    async def test(world: World) -> None:
        parties = [await world.party(), await world.party()]
        holder = await parties[0].locks.acquire(NAME, 1)
        waiting = []
        for number in range(6):
            party = parties[number % 2]
            waiting.append(asyncio.create_task(party.locks.acquire(NAME, 10 + number)))
            await until_waiting(party, number + 1)
        assert [party.owner for party in await parties[0].locks.waiters(NAME)] == list(
            range(10, 16)
        )
        await holder.release()
        tokens = [holder.token]
        for number, task in enumerate(waiting):
            async with asyncio.timeout(10):
                grant = await task
            assert not any(later.done() for later in waiting[number + 1 :])
            tokens.append(grant.token)
            await grant.release()
        assert tokens == sorted(set(tokens))

    run(test)


def test_a_newcomer_does_not_pass_a_waiter(run: Any) -> None:
    async def test(world: World) -> None:
        a, b = await world.party(), await world.party()
        holder = await a.locks.acquire(NAME, 1)
        waiter = asyncio.create_task(b.locks.acquire(NAME, 1))
        await until_waiting(a, 1)
        # Straight behind the holder's back: the holder's key goes, the waiter's stays.
        await a.store.commit(deletes=[holder.held.key])
        with pytest.raises(LockTimeout):
            await a.locks.acquire(NAME, 2, 0)
        async with asyncio.timeout(10):
            await waiter

    run(test)


def test_an_owner_cannot_wait_for_itself(run: Any) -> None:
    async def test(world: World) -> None:
        a = await world.party()
        grant = await a.locks.acquire(NAME, 1)
        with pytest.raises(DeadlockError):
            await a.locks.acquire(NAME, 1)
        waiting = asyncio.create_task(a.locks.acquire(NAME, 2))
        await until_waiting(a, 1)
        with pytest.raises(DeadlockError):
            await a.locks.acquire(NAME, 2)
        await grant.release()
        await (await waiting).release()
        assert await a.keys() == []

    run(test)


def test_released_once_from_anywhere(run: Any) -> None:
    async def test(world: World) -> None:
        a = await world.party()
        grant = await a.locks.acquire(NAME, 1)
        grant.check()
        await asyncio.create_task(grant.release())
        with pytest.raises(NotOwned):
            await grant.release()
        with pytest.raises(NotOwned):
            grant.check()
        assert not grant.lost.is_set()

    run(test)


def test_a_broken_lock_is_lost(run: Any) -> None:
    async def test(world: World) -> None:
        a, b = await world.party(), await world.party()
        grant = await a.locks.acquire(NAME, 1)
        told: list[object] = []
        grant.on_lost(told.append)
        assert await b.locks.break_(NAME)
        assert not await b.locks.break_(NAME)
        other = await b.locks.acquire(NAME, 1, 5)
        assert other.token > grant.token
        async with asyncio.timeout(10):
            await grant.lost.wait()
        assert told == [grant]
        with pytest.raises(LockLost):
            grant.check()
        with pytest.raises(LockLost):
            await grant.release()
        other.check()
        assert await a.keys() == [other.held.key]

    run(test)


def test_releasing_too_late_does_not_free_the_next_holder_s_lock(run: Any) -> None:
    async def test(world: World) -> None:
        a, b = await world.party(), await world.party()
        grant = await a.locks.acquire(NAME, 1)
        await b.locks.break_(NAME)
        other = await b.locks.acquire(NAME, 1, 0)
        # Nobody has told the first one yet.
        grant.check()
        with pytest.raises(LockLost):
            await grant.release()
        assert grant.lost.is_set()
        assert await a.keys() == [other.held.key]
        other.check()

    run(test)


def test_a_session_that_expired_loses_its_locks_for_ever(run: Any) -> None:
    async def test(world: World) -> None:
        a, b = await world.party(), await world.party()
        grant = await a.locks.acquire(NAME, 1)
        first = a.session.current
        waiting = asyncio.create_task(b.locks.acquire(NAME, 1))
        await until_waiting(b, 1)
        a.env.skip(11)
        # Told at the point of use, before any timer ran.
        with pytest.raises(LockLost) as caught:
            grant.check()
        assert caught.value.token == grant.token
        async with asyncio.timeout(10):
            await grant.lost.wait()
            taken = await waiting
        assert taken.token > grant.token
        with pytest.raises(LockLost):
            await grant.release()
        again = await a.session.ensure()
        assert first is not None
        assert again.id != first.id
        assert first.expired
        with pytest.raises(LockLost):
            grant.check()

    run(test)


def test_the_session_that_closes_gives_everything_back(run: Any) -> None:
    async def test(world: World) -> None:
        a, b = await world.party(), await world.party()
        grant = await a.locks.acquire(NAME, 1)
        waiting = asyncio.create_task(a.locks.acquire(NAME, 2))
        await until_waiting(a, 1)
        await a.locks.close()
        with pytest.raises(Closed):
            await waiting
        await a.session.close()
        assert grant.lost.is_set()
        with pytest.raises(Closed):
            await a.locks.acquire(NAME, 3)
        await b.locks.acquire(NAME, 1, 0)

    run(test)


class Interrupting:
    """Passes calls on to a store; cancels `victim` before or after the call number `point`."""

    def __init__(self, store: Store, point: int):
        self._store = store
        self._point = point
        self._calls = 0
        self.victim: asyncio.Task[Any] | None = None
        self.struck = False

    def _count(self) -> None:
        if self._calls == self._point and self.victim is not None:
            self.struck = True
            self.victim.cancel()
        self._calls += 1

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._store, name)
        if name == "watch":
            self._count()
            return attribute

        async def call(*args: Any, **options: Any) -> Any:
            self._count()
            result = await attribute(*args, **options)
            self._count()
            return result

        return call


@pytest.mark.parametrize("contended", [False, True])
def test_giving_up_at_any_point_leaves_nothing_behind(run: Any, contended: bool) -> None:
    async def test(world: World) -> None:
        a, b = await world.party(), await world.party()
        await b.session.ensure()
        points = 0
        for point in itertools.count():
            holder = await a.locks.acquire(NAME, 1, 5) if contended else None
            store = Interrupting(b.store, point)
            locks = LockService(store, b.env, b.session)  # type: ignore[arg-type]
            store.victim = asyncio.create_task(locks.acquire(NAME, 7))
            if holder is not None:
                while not (store.victim.done() or await a.locks.waiters(NAME)):  # noqa: ASYNC110
                    await asyncio.sleep(0)
                if not store.victim.done():
                    await holder.release()
                    holder = None
            try:
                async with asyncio.timeout(10):
                    grant = await store.victim
            except asyncio.CancelledError:
                points += 1
            else:
                await grant.release()
            left = [key for key in await a.keys() if holder is None or key != holder.held.key]
            assert left == [], f"cancelled at point {point}"
            if holder is not None:
                await holder.release()
            await locks.close()
            if not store.struck:
                break
        # The sweep reached the ends of the commit, and the queue where there is one.
        assert points >= (8 if contended else 2)

    run(test)


def test_cancelled_at_every_step_of_the_loop() -> None:
    async def main() -> None:
        env = SkippingEnv()
        store = await open_memory_store(f"l{next(_names)}", env, create=True)
        party = Party(store, env)
        cancelled = 0
        for steps in itertools.count():
            task = asyncio.create_task(party.locks.acquire(NAME, 1))
            for _ in range(steps):
                await asyncio.sleep(0)
            done = task.done()
            task.cancel()
            try:
                grant = await task
            except asyncio.CancelledError:
                cancelled += 1
            else:
                await grant.release()
            assert await party.keys() == [], f"cancelled after {steps} steps"
            if done:
                break
        assert cancelled > 3
        await party.close()

    asyncio.run(main())


def test_a_timeout_leaves_the_queue(run: Any) -> None:
    async def test(world: World) -> None:
        a, b = await world.party(), await world.party()
        grant = await a.locks.acquire(NAME, 1)
        with pytest.raises(LockTimeout):
            await b.locks.acquire(NAME, 1, 0.05)
        assert await a.keys() == [grant.held.key]
        await grant.release()
        await b.locks.acquire(NAME, 1, 0)

    run(test)

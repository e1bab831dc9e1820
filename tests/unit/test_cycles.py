"""Goal: a circle of waits is found if the store shows one, and only then.

Method: holders, queues and records of waits are put into a store by hand, as sessions would; the
circle found, or none, is compared with what was drawn.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable

import pytest

from ringhold.env import RealEnv
from ringhold.locks.cycles import COMPARES_MAX, Cycle, WaitEdge, WaitRecord, Waits, encode_waits
from ringhold.locks.keys import (
    EXCLUSIVE,
    SHARED,
    Claim,
    HolderRecord,
    LockKeys,
    WaiterRecord,
    encode,
)
from ringhold.store.base import Born, Put, Store, Unchanged
from ringhold.store.keyspace import waits_key
from ringhold.store.memory import open_memory_store
from ringhold.types import Mode

_names = itertools.count()


class Drawing:
    """Sessions and locks are letters; everything is kept by its revision."""

    def __init__(self, store: Store):
        self.store = store
        self.held: dict[tuple[str, str], int] = {}
        self.queued: dict[tuple[str, str], int] = {}
        self.told: dict[str, int] = {}

    @staticmethod
    def session(letter: str) -> bytes:
        return letter.encode().ljust(12, b".")

    @staticmethod
    def lock(letter: str) -> bytes:
        return b"u" + letter.encode()

    async def hold(self, session: str, lock: str, mode: Mode = EXCLUSIVE) -> None:
        key = LockKeys.of(self.lock(lock)).holder(mode, self.session(session))
        put = Put(key, encode(HolderRecord(7, "host", 0.0)))
        self.held[session, lock] = await self.store.commit(puts=[put])

    async def queue(
        self,
        session: str,
        lock: str,
        mode: Mode = EXCLUSIVE,
        *,
        upgrade: bool = False,
        impatient: bool = False,
    ) -> None:
        key = LockKeys.of(self.lock(lock)).waiter(self.session(session), upgrade=upgrade)
        put = Put(key, encode(WaiterRecord(mode.value, impatient, 7, "host", 0.0)))
        self.queued[session, lock] = await self.store.commit(puts=[put])

    async def tell(self, session: str, *arcs: tuple[str, str]) -> None:
        edges = [
            WaitEdge(
                self.lock(held),
                self.held[session, held],
                self.lock(awaited),
                self.queued[session, awaited],
            )
            for held, awaited in arcs
        ]
        put = Put(waits_key(self.session(session)), encode_waits(WaitRecord(edges)))
        self.told[session] = await self.store.commit(puts=[put])

    async def ring(self, sessions: str, mode: Mode = EXCLUSIVE) -> None:
        """Each session holds the lock of its letter, and waits for that of the next one."""
        for session in sessions:
            await self.hold(session, session, mode)
        for session, following in zip(sessions, sessions[1:] + sessions[0], strict=True):
            await self.queue(session, following)
            await self.tell(session, (session, following))

    async def cycle(self, session: str) -> Cycle | None:
        snapshot = await self.store.snapshot()
        waits = Waits(snapshot)
        await waits.read()
        found = await waits.cycle_of(self.session(session))
        await snapshot.close()
        return found

    async def path(self, session: str) -> str:
        """The sessions that stand in each other's way, as letters; empty without a circle."""
        cycle = await self.cycle(session)
        steps = () if cycle is None else cycle.steps
        return "".join(chr(step.blocker.session[0]) for step in steps)


def draw(test: Callable[[Drawing], Awaitable[None]]) -> None:
    async def main() -> None:
        store = await open_memory_store(f"cycles-{next(_names)}", RealEnv(), create=True)
        await test(Drawing(store))
        await store.close()

    asyncio.run(main())


@pytest.mark.parametrize("mode", [EXCLUSIVE, SHARED])
@pytest.mark.parametrize("sessions", ["ab", "abc", "abcdefghij"])
def test_a_ring_is_found_by_each_of_it(sessions: str, mode: Mode) -> None:
    async def test(drawing: Drawing) -> None:
        await drawing.ring(sessions, mode)
        for at, session in enumerate(sessions):
            assert await drawing.path(session) == sessions[at + 1 :] + sessions[: at + 1]

    draw(test)


def test_what_it_says() -> None:
    async def test(drawing: Drawing) -> None:
        await drawing.ring("abc")
        cycle = await drawing.cycle("a")
        assert cycle is not None
        assert cycle.own == (b"ua", b"ub")
        assert cycle.claims(b"me") == {
            drawing.session("b"): Claim(b"me", drawing.told["b"], [(b"ub", b"uc")], []),
            drawing.session("c"): Claim(b"me", drawing.told["c"], [(b"uc", b"ua")], []),
            drawing.session("a"): Claim(b"me", drawing.told["a"], [(b"ua", b"ub")], []),
        }
        keys = {letter: LockKeys.of(drawing.lock(letter)) for letter in "abc"}
        assert cycle.compares() == [
            *(Unchanged(waits_key(drawing.session(s)), drawing.told[s]) for s in "bca"),
            *(
                Born(keys[s].holder(EXCLUSIVE, drawing.session(s)), drawing.held[s, s])
                for s in "bca"
            ),
        ]
        b, c = (drawing.session(s).hex()[:8] for s in "bc")
        assert str(cycle) == (
            f"'b' is held in session {b}… (process 7 on host) until that gets 'c', "
            f"'c' is held in session {c}… (process 7 on host) until that gets 'a', "
            "'a' is held here"
        )

    draw(test)


def test_a_chain_is_no_ring() -> None:
    async def test(drawing: Drawing) -> None:
        await drawing.hold("z", "e")
        await drawing.ring("abcd")
        await drawing.hold("d", "d")
        await drawing.queue("d", "e")
        await drawing.tell("d", ("d", "e"))
        for session in "abcdz":
            assert await drawing.path(session) == ""

    draw(test)


def test_who_waits_for_a_ring_is_not_of_it() -> None:
    async def test(drawing: Drawing) -> None:
        await drawing.ring("abc")
        await drawing.hold("z", "z")
        await drawing.queue("z", "a")
        await drawing.tell("z", ("z", "a"))
        assert await drawing.path("z") == ""
        assert await drawing.path("a") == "bca"

    draw(test)


def test_sharers_do_not_wait_for_each_other() -> None:
    async def test(drawing: Drawing) -> None:
        for session, other in ("ab", "ba"):
            await drawing.hold(session, session, SHARED)
            await drawing.queue(session, other, SHARED)
        for session, other in ("ab", "ba"):
            await drawing.tell(session, (session, other))
        assert await drawing.path("a") == await drawing.path("b") == ""

    draw(test)


@pytest.mark.parametrize("stale", ["holder", "place", "impatient"])
def test_a_record_counts_with_its_keys_only(stale: str) -> None:
    async def test(drawing: Drawing) -> None:
        await drawing.ring("abc")
        keys = LockKeys.of(drawing.lock("c"))
        if stale == "holder":
            key = keys.holder(EXCLUSIVE, drawing.session("c"))
            await drawing.store.commit(deletes=[key])
            await drawing.hold("c", "c")
        else:
            await drawing.store.commit(deletes=[keys.waiter(drawing.session("b"))])
            await drawing.queue("b", "c", impatient=stale == "impatient")
            if stale == "impatient":
                await drawing.tell("b", ("b", "c"))
        for session in "abc":
            assert await drawing.path(session) == ""

    draw(test)


@pytest.mark.parametrize("order", ["before", "after"])
def test_a_place_counts_for_those_behind_it(order: str) -> None:
    """b shares x; p wants it alone; a, who shares with b, is behind p or before it."""

    async def test(drawing: Drawing) -> None:
        await drawing.hold("b", "x", SHARED)
        await drawing.hold("a", "y")
        if order == "before":
            await drawing.queue("p", "x")
        await drawing.queue("a", "x", SHARED)
        if order == "after":
            await drawing.queue("p", "x")
        await drawing.queue("b", "y")
        await drawing.tell("b", ("x", "y"))
        await drawing.tell("a", ("y", "x"))
        assert await drawing.path("a") == ("pba" if order == "before" else "")
        assert await drawing.path("b") == ("apb" if order == "before" else "")
        assert await drawing.path("p") == "", "it told nothing, and is nobody's victim"
        cycle = await drawing.cycle("a")
        if order == "before":
            assert cycle is not None
            place = Claim(b"me", 0, [], [(b"ux", drawing.queued["p", "x"])])
            assert cycle.claims(b"me")[drawing.session("p")] == place

    draw(test)


def test_who_is_of_a_ring_by_a_place_alone_is_nobody_s_victim() -> None:
    """As above, and p holds something else up, which has nothing to do with it."""

    async def test(drawing: Drawing) -> None:
        await drawing.hold("b", "x", SHARED)
        await drawing.hold("a", "y")
        await drawing.hold("p", "z")
        await drawing.queue("q", "z")
        await drawing.queue("p", "x")
        await drawing.queue("a", "x", SHARED)
        await drawing.queue("b", "y")
        await drawing.tell("b", ("x", "y"))
        await drawing.tell("a", ("y", "x"))
        await drawing.tell("p", ("z", "x"))
        assert await drawing.path("p") == ""
        assert await drawing.path("a") == "pba"

    draw(test)


def test_a_ring_through_an_upgrade() -> None:
    async def test(drawing: Drawing) -> None:
        await drawing.hold("a", "x", SHARED)
        await drawing.hold("b", "x", SHARED)
        await drawing.hold("a", "y")
        await drawing.queue("a", "x", upgrade=True)
        await drawing.queue("b", "y")
        await drawing.tell("a", ("y", "x"))
        await drawing.tell("b", ("x", "y"))
        assert await drawing.path("a") == "ba"
        assert await drawing.path("b") == "ab"

    draw(test)


def test_a_ring_that_leads_twice_through_one_session() -> None:
    async def test(drawing: Drawing) -> None:
        for session, lock in ("as", "at", "bu", "cv"):
            await drawing.hold(session, lock)
        for session, lock in ("au", "bt", "av", "cs"):
            await drawing.queue(session, lock)
        await drawing.tell("a", ("s", "u"), ("t", "v"))
        await drawing.tell("b", ("u", "t"))
        await drawing.tell("c", ("v", "s"))
        assert await drawing.path("a") == "baca"
        assert await drawing.path("b") == "acab"
        cycle = await drawing.cycle("a")
        assert cycle is not None
        assert len(cycle.claims(b"me")[drawing.session("a")].pairs) == 2

    draw(test)


def test_a_long_ring_is_found_and_its_commit_stays_small() -> None:
    async def test(drawing: Drawing) -> None:
        sessions = "".join(chr(ord("A") + number) for number in range(62))
        await drawing.ring(sessions)
        cycle = await drawing.cycle("A")
        assert cycle is not None
        assert len(cycle.steps) == 62
        assert len(cycle.compares()) == COMPARES_MAX
        # First of all that no other of them gives up.
        assert sum(isinstance(compare, Unchanged) for compare in cycle.compares()) == 62

    draw(test)

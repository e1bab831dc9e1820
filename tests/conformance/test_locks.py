"""Goal: exclusive locks keep their promises on every engine: exclusion, order, growing tokens.

Method: sessions of several "processes" (openings of one store) contend on a real store of each
engine. Commits are counted where a promise says that there are none. Expiry comes from a clock
that the test moves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lock_world import ENGINES, NAME, SOON_S, Party, World, run_in_world, soon

from ringhold.errors import Closed, DeadlockError, LockLost, LockTimeout, NotOwned, StoreUnavailable
from ringhold.locks import claims, service
from ringhold.locks.session import SessionState


@pytest.fixture(params=ENGINES)
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Any], None]:
    return lambda test: run_in_world(request.param, tmp_path, test)


def test_tokens_grow_and_say_exclusive(run: Any) -> None:
    async def test(world: World) -> None:
        a, b = await world.two()
        last = 0
        for party in (a, a, b, b, a, b):
            grant = await party.acquire()
            assert last < grant.token < 1 << 63
            assert grant.token & 1
            assert grant.token >> 21 == grant.held.revision
            last = grant.token
            await grant.release()
        await world.assert_free()

    run(test)


def test_nobody_gets_what_is_held(run: Any) -> None:
    async def test(world: World) -> None:
        a, b = await world.two()
        grant = await a.acquire()
        for party, timeout_s in ((a, 0), (a, 0.05), (b, 0), (b, 0.1)):
            with pytest.raises(LockTimeout) as caught:
                await party.acquire(2, timeout_s)
            assert caught.value.name == "name"
        for party in (a, b):
            assert [held.token for held in await party.locks.inquiries.holders(NAME)] == [
                grant.token
            ]
            assert await party.locks.inquiries.waiters(NAME) == []
        await grant.release()
        await world.assert_free()

    run(test)


def test_the_session_keeps_the_lock_and_gets_it_again_without_a_commit(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ringhold.locks.mailbox.ANSWER_S", SOON_S)

    async def test(world: World) -> None:
        a, b = await world.two()
        first = await a.acquire()
        await first.release()
        assert a.store.commits > 0
        before = a.store.commits
        revision = (await a.state()).revision
        tokens = [first.token]
        for owner in (1, 1, 2, 3):
            for mode in ("exclusive", "shared"):
                async with await a.acquire(owner, mode=mode) as grant:
                    tokens.append(grant.token)
        assert a.store.commits == before
        assert (await b.state()).revision == revision
        exclusive = [token for token in tokens if token & 1]
        assert exclusive == sorted(set(exclusive))
        assert tokens == sorted(tokens)
        # Kept is not held.
        assert await b.locks.inquiries.holders(NAME) == []
        assert len((await b.state()).holders) == 1

    run(test)


def test_an_idle_session_gives_the_lock_up_when_asked(run: Any) -> None:
    async def test(world: World) -> None:
        a, b = await world.two()
        last = 0
        for timeout_s in (None, SOON_S, 0):
            for party in (a, b):
                for mode in ("exclusive", "shared"):
                    grant = await party.acquire(1, timeout_s, mode=mode)
                    assert grant.token >> 21 >= last >> 21
                    last = grant.token
                    await grant.release()
        await world.assert_free()

    run(test)


def test_what_a_session_is_just_giving_away_is_not_refused(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever got it may have released it before the giver knows that it gave."""
    monkeypatch.setattr(claims, "TRY_S", SOON_S)

    async def test(world: World) -> None:
        a, b = await world.two()
        await (await a.acquire()).release()
        known = asyncio.Event()

        async def late(name: str, after: bool) -> None:
            if name == "commit" and after:
                await known.wait()

        a.store.at_call = late
        await (await b.acquire()).release()
        trying = a.start(2, 0)
        await asyncio.sleep(0.02)
        assert not trying.done()
        known.set()
        await (await soon(trying)).release()
        a.store.at_call = None
        await world.assert_free()

    run(test)


def test_a_try_gets_a_free_lock_of_a_slow_store(run: Any) -> None:
    async def test(world: World) -> None:
        a = await world.party()
        ensure = a.session.ensure

        async def slow(*_: object) -> None:
            await asyncio.sleep(1.2 * claims.TRY_S)

        async def slow_ensure() -> SessionState:
            a.session.ensure = ensure  # type: ignore[method-assign]
            await slow()
            return await ensure()

        a.session.ensure = slow_ensure  # type: ignore[method-assign]
        a.store.at_call = slow
        grant = await soon(a.start(timeout_s=0))
        a.store.at_call = None
        await grant.release()
        await world.assert_free()

    run(test)


def test_a_try_of_a_store_that_does_not_answer_says_so(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "ANSWER_S", 0.3)

    async def test(world: World) -> None:
        a = await world.party()
        answers = asyncio.Event()

        async def silent(*_: object) -> None:
            await answers.wait()

        a.store.at_call = silent
        with pytest.raises(StoreUnavailable):
            await soon(a.start(timeout_s=0))
        answers.set()
        a.store.at_call = None
        await world.assert_free()

    run(test)


def test_a_try_does_not_wait_for_a_holder_that_does_not_answer(run: Any) -> None:
    async def test(world: World) -> None:
        a, b = await world.two()
        grant = await a.acquire()
        a.store.deaf = True
        with pytest.raises(LockTimeout):
            await soon(b.start(timeout_s=0))
        a.store.deaf = False
        await a.queued(0)
        await grant.release()
        await world.assert_free()

    run(test)


def test_sessions_are_served_in_the_order_they_came(run: Any) -> None:
    async def test(world: World) -> None:
        parties = [await world.party() for _ in range(4)]
        holder = await parties[0].acquire()
        waiting = []
        for number, party in enumerate(parties[1:], 1):
            waiting.append(party.start())
            await party.queued(number)
        sessions = [waiter.session for waiter in await parties[0].locks.inquiries.waiters(NAME)]
        states = [await party.session.ensure() for party in parties[1:]]
        assert sessions == [state.id.hex() for state in states]
        await holder.release()
        tokens = [holder.token]
        for number, task in enumerate(waiting):
            grant = await soon(task)
            assert not any(later.done() for later in waiting[number + 1 :])
            tokens.append(grant.token)
            await grant.release()
        assert tokens == sorted(set(tokens))
        await world.assert_free()

    run(test)


def test_owners_of_one_session_are_served_in_the_order_they_came(run: Any) -> None:
    async def test(world: World) -> None:
        a = await world.party()
        holder = await a.acquire()
        waiting = []
        for number in range(5):
            waiting.append(a.start(10 + number))
            await a.waiting(number + 1)
        assert [party.owner for party in await a.locks.inquiries.waiters(NAME)] == list(
            range(10, 15)
        )
        await holder.release()
        for number, task in enumerate(waiting):
            grant = await soon(task)
            assert not any(later.done() for later in waiting[number + 1 :])
            await grant.release()

    run(test)


def test_a_newcomer_passes_nobody(run: Any) -> None:
    async def test(world: World) -> None:
        a, b = await world.two()
        c = await world.party()
        holder = await a.acquire()
        waiter = b.start()
        await a.queued(1)
        # Of another session, which would not wait; and of the holder's own, which does.
        with pytest.raises(LockTimeout):
            await c.acquire(1, 0)
        await a.asked()
        own = a.start(2)
        await a.waiting(2)
        await holder.release()
        grant = await soon(waiter)
        assert not own.done()
        with pytest.raises(LockTimeout):
            await c.acquire(1, 0)
        await grant.release()
        await (await soon(own)).release()
        await world.assert_free()

    run(test)


def test_two_busy_owners_leave_room_for_another_session(run: Any) -> None:
    async def test(world: World) -> None:
        a, b = await world.two()
        got = {"a1": 0, "a2": 0, "b1": 0}
        inside: list[str] = []
        enough = asyncio.Event()

        async def work(party: Party, owner: int, label: str) -> None:
            while not enough.is_set():
                async with await party.acquire(owner):
                    inside.append(label)
                    await asyncio.sleep(0)
                    assert inside == [label]
                    inside.clear()
                    got[label] += 1
                    if min(got.values()) >= 5:
                        enough.set()

        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            group.create_task(work(a, 1, "a1"))
            group.create_task(work(a, 2, "a2"))
            group.create_task(work(b, 1, "b1"))
        await world.assert_free()

    run(test)


def test_an_owner_cannot_wait_for_itself(run: Any) -> None:
    async def test(world: World) -> None:
        a = await world.party()
        grant = await a.acquire()
        for timeout_s in (0, 1, None):
            with pytest.raises(DeadlockError):
                await a.acquire(1, timeout_s)
        waiting = a.start(2)
        await a.waiting(1)
        with pytest.raises(DeadlockError):
            await a.acquire(2)
        await grant.release()
        await (await soon(waiting)).release()
        await world.assert_free()

    run(test)


def test_two_owners_who_would_wait_for_each_other(run: Any) -> None:
    async def test(world: World) -> None:
        a = await world.party()
        other = b"uother"
        first = await a.acquire(1)
        second = await a.acquire(2, raw=other)
        waiting = a.start(1, raw=other)
        await a.waiting(1, other)
        with pytest.raises(DeadlockError) as caught:
            await a.acquire(2)
        assert caught.value.name == "name"
        await second.release()
        await (await soon(waiting)).release()
        await first.release()
        await world.assert_free()
        await world.assert_free(other)

    run(test)


def test_a_reentrant_lock_counts(run: Any) -> None:
    async def test(world: World) -> None:
        a, b = await world.two()
        outer = await a.acquire(reentrant=True)
        inner = await a.acquire(1, 0, reentrant=True)
        assert inner is not outer
        assert inner.token == outer.token
        asked = b.start()
        await b.queued(1)
        # Who holds it passes whoever waits.
        innermost = await a.acquire(1, reentrant=True)
        assert innermost.token == outer.token
        await outer.release()
        await innermost.release()
        with pytest.raises(NotOwned):
            outer.check()
        inner.check()
        assert [party.token for party in await b.locks.inquiries.holders(NAME)] == [inner.token]
        await inner.release()
        grant = await soon(asked)
        assert grant.token > outer.token
        await grant.release()
        await world.assert_free()

    run(test)


def test_released_once_from_anywhere(run: Any) -> None:
    async def test(world: World) -> None:
        a = await world.party()
        grant = await a.acquire()
        grant.check()
        await asyncio.create_task(grant.release())
        for again in (grant, await a.acquire()):
            if again is not grant:
                await again.release()
            with pytest.raises(NotOwned):
                await again.release()
            with pytest.raises(NotOwned):
                again.check()
            assert not again.lost.is_set()
        await world.assert_free()

    run(test)


@pytest.mark.parametrize("contended", [False, True])
def test_a_broken_lock_is_lost(run: Any, contended: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # The loss is told by a letter, not by looking now and then.
    monkeypatch.setattr("ringhold.locks.service.VERIFY_S", 3600.0)

    async def test(world: World) -> None:
        a, b = await world.two()
        grant = await a.acquire()
        waiter = b.start(5) if contended else None
        if waiter is not None:
            await b.queued(1)
            await a.asked()
        told: list[object] = []
        grant.on_lost(told.append)
        assert await b.locks.inquiries.break_(NAME)
        other = await soon(waiter or b.start(5))
        assert other.token > grant.token
        async with asyncio.timeout(SOON_S):
            await grant.lost.wait()
        assert told == [grant]
        with pytest.raises(LockLost):
            grant.check()
        with pytest.raises(LockLost):
            await grant.release()
        other.check()
        await other.release()
        assert not await b.locks.inquiries.break_(NAME)
        await world.assert_free()

    run(test)


def test_breaking_what_nobody_holds_takes_nothing_from_the_session_that_keeps_it(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ringhold.locks.mailbox.ANSWER_S", SOON_S)

    async def test(world: World) -> None:
        a, b = await world.two()
        first = await a.acquire()
        await first.release()
        for party in (a, b):
            assert await party.locks.inquiries.break_(NAME) is False
        grant = await a.acquire()
        await asyncio.sleep(0.05)
        grant.check()
        assert grant.token >> 21 == first.token >> 21
        assert await a.locks.inquiries.break_(NAME)
        # Of this very session: known at once.
        with pytest.raises(LockLost):
            await grant.release()
        await world.assert_free()

    run(test)


def test_who_waits_in_a_session_whose_lock_was_broken_waits_on(run: Any) -> None:
    async def test(world: World) -> None:
        a, b = await world.two()
        grant = await a.acquire(1)
        waiting = [a.start(2), a.start(3, mode="shared"), a.start(4, mode="shared")]
        await a.waiting(3)
        assert await b.locks.inquiries.break_(NAME)
        first = await soon(waiting[0])
        assert first.token > grant.token
        assert grant.lost.is_set()
        assert not waiting[1].done()
        await first.release()
        for task in waiting[1:]:
            await soon(task)
        for task in waiting[1:]:
            await task.result().release()
        await world.assert_free()

    run(test)


def test_who_was_granted_while_the_lock_was_broken_does_not_hold_it(run: Any) -> None:
    """The grant was made by a table of a session that had the lock no more."""

    async def test(world: World) -> None:
        a, b = await world.two()
        grant = await a.acquire(1)
        asked = b.start(1)
        await b.queued(1)
        await a.asked()
        # Stands behind the gate, which opens once more before the session sees that it is late.
        behind = a.start(2)
        await a.waiting(2)
        keys = [holding.key for holding in (await a.state()).holders]
        a.store.deaf = True
        await b.real_store.commit(deletes=keys)
        other = await soon(asked)
        a.store.deaf = False
        # Nobody has told the holder.
        await grant.release()
        await asyncio.sleep(0.1)
        assert not behind.done()
        other.check()
        await other.release()
        again = await soon(behind)
        assert again.token > other.token
        again.check()
        assert [party.token for party in await b.locks.inquiries.holders(NAME)] == [again.token]

    run(test)


def test_a_holder_finds_out_by_itself_and_releases_too_late(run: Any) -> None:
    async def test(world: World) -> None:
        a, b = await world.two()
        # Nobody tells the first one.
        a.store.deaf = True
        grant = await a.acquire()
        await b.real_store.commit(deletes=[grant.held.key])
        other = await b.acquire(1, 0)
        assert other.token > grant.token
        grant.check()
        async with asyncio.timeout(SOON_S):
            await grant.lost.wait()
        with pytest.raises(LockLost):
            await grant.release()
        other.check()
        session = await b.session.ensure()
        assert [held.session for held in (await b.state()).holders] == [session.id]
        waiting = a.start(3)
        await a.waiting(1)
        await other.release()
        assert (await soon(waiting)).token > other.token

    run(test)


def test_a_session_that_expired_loses_its_locks_for_ever(run: Any) -> None:
    async def test(world: World) -> None:
        a, b = await world.two()
        grant = await a.acquire()
        first = a.session.current
        waiting = b.start()
        await b.queued(1)
        a.env.skip(11)
        # Told at the point of use, before any timer ran.
        with pytest.raises(LockLost) as caught:
            grant.check()
        assert caught.value.token == grant.token
        async with asyncio.timeout(10):
            await grant.lost.wait()
        taken = await soon(waiting)
        assert taken.token > grant.token
        with pytest.raises(LockLost):
            await grant.release()
        again = await a.session.ensure()
        assert first is not None
        assert again.id != first.id
        assert first.expired
        with pytest.raises(LockLost):
            grant.check()
        await taken.release()
        await world.assert_free()

    run(test)


def test_who_waits_when_the_session_expires_waits_on_in_a_new_one(run: Any) -> None:
    async def test(world: World) -> None:
        a, b = await world.two()
        grant = await a.acquire(1)
        waiting = [b.start(1), b.start(2), b.start(3, mode="shared")]
        await b.waiting(3)
        first = b.session.current
        assert first is not None
        await b.die()
        async with asyncio.timeout(SOON_S):
            while b.session.current in (None, first):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await b.waiting(3)
        grant.check()
        await grant.release()
        async with asyncio.timeout(SOON_S):
            for task in asyncio.as_completed(waiting):
                await (await task).release()
        await world.assert_free()

    run(test)


def test_the_session_that_closes_gives_everything_back(run: Any) -> None:
    async def test(world: World) -> None:
        a, b = await world.two()
        grant = await a.acquire(1)
        waiting = [a.start(2), a.start(3, mode="shared")]
        await a.waiting(2)
        await a.locks.close()
        for task in waiting:
            with pytest.raises(Closed):
                await task
        await a.session.close()
        assert grant.lost.is_set()
        for timeout_s in (0, 1):
            with pytest.raises(Closed):
                await a.acquire(3, timeout_s)
        await b.acquire(1, 0)

    run(test)


def test_a_timeout_leaves_the_queue(run: Any) -> None:
    async def test(world: World) -> None:
        a, b = await world.two()
        grant = await a.acquire()
        for mode in ("exclusive", "shared"):
            with pytest.raises(LockTimeout):
                await b.acquire(1, 0.05, mode=mode)
            await a.queued(0)
            assert await b.locks.inquiries.waiters(NAME) == []
        await grant.release()
        await (await b.acquire(1, 0)).release()
        await world.assert_free()

    run(test)


@pytest.mark.parametrize("raw", [b"u\0", b"ua\0b", b"u\xff\xfe", b"u" + b"\xff" * 4095])
def test_any_bytes_are_a_name(run: Any, raw: bytes) -> None:
    async def test(world: World) -> None:
        a, b = await world.two()
        others = [await a.acquire(1, raw=raw + b"a") if len(raw) < 4000 else None]
        grant = await a.acquire(1, raw=raw)
        waiting = b.start(1, raw=raw)
        inside = a.start(2, raw=raw)
        await a.waiting(2, raw)
        await grant.release()
        async with asyncio.timeout(SOON_S):
            for task in asyncio.as_completed([waiting, inside]):
                await (await task).release()
        for other in others:
            if other is not None:
                other.check()
        await world.assert_free(raw)

    run(test)

"""Goal: faults cost a lock's users time or an error, never a lock held twice or held for ever.

Method: requests are cancelled, and the store fails, at every call that an acquisition makes to
it; letters get lost; sessions die at the head of the queue and while they hold; tokens run out.
Afterwards everybody must be able to have the lock. Each fault is first seen to be there.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lock_world import ENGINES, NAME, SOON_S, Party, World, run_in_world, soon

from ringhold.errors import (
    DeadlockError,
    LockError,
    LockLost,
    LockTimeout,
    OutcomeUnknown,
    RingholdError,
    StoreUnavailable,
)
from ringhold.locks import keeper
from ringhold.locks.keys import mailbox
from ringhold.locks.session import Phase
from ringhold.store.base import prefix_end


@pytest.fixture(params=ENGINES)
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Any], None]:
    return lambda test: run_in_world(request.param, tmp_path, test)


class At:
    """Does something at one of the calls to a store, counted before and after each."""

    def __init__(self, point: int, act: Callable[[], object]):
        self.struck = False
        self._point = point
        self._act = act
        self._calls = itertools.count()

    def __call__(self, name: str, after: bool) -> None:
        if next(self._calls) == self._point:
            self.struck = True
            self._act()


@pytest.mark.parametrize("mode", ["exclusive", "shared"])
@pytest.mark.parametrize("contended", [False, True])
def test_giving_up_at_any_call_to_the_store_leaves_nothing_behind(
    run: Any, contended: bool, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ringhold.locks.mailbox.ANSWER_S", SOON_S)

    async def test(world: World) -> None:
        a, b = await world.two()
        await (await b.acquire(raw=b"uother")).release()
        cancelled = 0
        for point in itertools.count():
            holder = await a.acquire(1)
            if not contended:
                await holder.release()
            victim = b.start(7, mode=mode)
            at = At(point, victim.cancel)
            b.store.at_call = at
            if contended:
                while not (victim.done() or (await a.state()).queue):  # noqa: ASYNC110
                    await asyncio.sleep(0)
                await holder.release()
            try:
                await (await soon(victim)).release()
            except asyncio.CancelledError:
                cancelled += 1
            b.store.at_call = None
            await a.queued(0)
            assert await a.locks.inquiries.holders(NAME) == [], f"cancelled at point {point}"
            if not at.struck:
                break
        assert cancelled >= 4
        await world.assert_free()

    run(test)


@pytest.mark.parametrize("contended", [False, True])
def test_cancelled_at_every_step_of_the_loop(
    tmp_path: Path, contended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ringhold.locks.mailbox.ANSWER_S", SOON_S)

    async def test(world: World) -> None:
        a, b = await world.two()
        cancelled = 0
        for steps in itertools.count():
            holder = await b.acquire(1)
            task = a.start(1)
            for _ in range(steps):
                await asyncio.sleep(0)
            if contended:
                await holder.release()
            else:
                await holder.release()
                await asyncio.sleep(0)
            done = task.done() or steps > 400
            task.cancel()
            try:
                grant = await task
            except asyncio.CancelledError:
                cancelled += 1
            else:
                await grant.release()
            await a.queued(0)
            assert await b.locks.inquiries.holders(NAME) == [], f"cancelled after {steps} steps"
            if done:
                break
        assert cancelled > 3
        await world.assert_free()

    run_in_world("memory", tmp_path, test)


class Failing:
    """Fails one call to a store: before it is made, or after it so that nobody learns of it."""

    def __init__(self, point: int, error: type[RingholdError], party: Party):
        self.struck = False
        self._point = point
        self._error = error
        self._party = party
        self._calls = itertools.count()

    def __call__(self, name: str, after: bool) -> None:
        unknown = self._error is OutcomeUnknown
        possible = name == "commit" if unknown else not after
        if possible and next(self._calls) == self._point:
            self.struck = True
            self._party.env.end_repeating()
            raise self._error("on purpose")


@pytest.mark.parametrize("error", [StoreUnavailable, OutcomeUnknown])
@pytest.mark.parametrize("side", ["waiter", "holder"])
def test_the_store_fails_at_any_call(
    run: Any, side: str, error: type[RingholdError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "RETRY_S", 0.01)

    async def test(world: World) -> None:
        a, b = await world.two()
        for point in itertools.count():
            holder = await a.acquire(1)
            party = b if side == "waiter" else a
            failing = party.store.at_call = Failing(point, error, party)
            waiting = [b.start(1), b.start(2), b.start(3, mode="shared")]
            while not ((await a.state()).queue or all(task.done() for task in waiting)):  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            with contextlib.suppress(LockLost):
                await holder.release()
            async with asyncio.timeout(SOON_S):
                for task in asyncio.as_completed(waiting):
                    with contextlib.suppress(error, LockError):
                        await (await task).release()
            a.store.at_call = b.store.at_call = None
            await world.assert_free()
            if not failing.struck:
                break
        assert point >= 1

    run(test)


def test_lost_letters_cost_time_only(run: Any) -> None:
    async def test(world: World) -> None:
        a, b = await world.two()
        for mode in ("exclusive", "shared"):
            holder = await a.acquire(1)
            b.store.deaf = True
            waiting = b.start(1, mode=mode)
            await b.queued(1)
            await holder.release()
            await (await soon(waiting)).release()
            b.store.deaf = False
            # The letter that asks for the lock is written again, if it was lost.
            holder = await a.acquire(1)
            a.store.deaf = True
            waiting = b.start(1, mode=mode)
            await b.queued(1)
            await asyncio.sleep(0.1)
            box = mailbox((await a.session.ensure()).id)
            snapshot = await a.real_store.snapshot()
            letters = [key for key, _ in await snapshot.range(box, prefix_end(box))]
            await snapshot.close()
            assert letters
            await a.real_store.commit(deletes=letters)
            await holder.release()
            assert not waiting.done()
            a.store.deaf = False
            await (await soon(waiting)).release()
        await world.assert_free()

    run(test)


@pytest.mark.parametrize("mode", ["exclusive", "shared"])
def test_the_head_of_the_queue_is_dead(run: Any, mode: str) -> None:
    async def test(world: World) -> None:
        a, b = await world.two()
        c = await world.party()
        holder = await a.acquire(1)
        b.store.deaf = True
        dead = b.start(1, 60.0, mode=mode)
        await a.queued(1)
        waiting = c.start(1, mode=mode)
        await a.queued(2)
        head = (await a.state()).queue[0]
        await asyncio.sleep(0.1)

        ended = []

        async def end(name: str, after: bool) -> None:
            # Between the holder's look at the queue and the commit that hands the lock over.
            if name == "commit" and not after and not ended:
                ended.append(True)
                await b.die()

        a.store.at_call = end
        await holder.release()
        grant = await soon(waiting)
        assert ended
        assert grant.token > holder.token
        assert all(each.session != head.session for each in (await a.state()).holders)
        grant.check()
        await grant.release()
        a.store.at_call = None
        dead.cancel()
        with contextlib.suppress(LockError, asyncio.CancelledError):
            await (await dead).release()
        b.store.deaf = False
        await world.assert_free()

    run(test)


def test_a_dead_holder_is_followed_by_the_next(run: Any) -> None:
    async def test(world: World) -> None:
        a, b = await world.two()
        c = await world.party()
        grant = await a.acquire(1)
        waiting = [b.start(1)]
        await b.queued(1)
        waiting.append(c.start(1))
        await b.queued(2)
        await a.die()
        first = await soon(waiting[0])
        assert first.token > grant.token
        assert not waiting[1].done()
        await b.die()
        second = await soon(waiting[1])
        assert second.token > first.token
        for lost in (grant, first):
            async with asyncio.timeout(SOON_S):
                await lost.lost.wait()
            with pytest.raises(LockLost):
                await lost.release()
        await second.release()
        await world.assert_free()

    run(test)


def test_a_suspended_session_grants_nothing_new_without_asking_the_store(run: Any) -> None:
    async def unreachable(name: str, after: bool) -> None:
        if name == "commit":
            raise StoreUnavailable("not now")

    async def test(world: World) -> None:
        a, b = await world.two(ttl_s=10)
        await (await a.acquire()).release()
        commits = a.store.commits
        await (await a.acquire()).release()
        assert a.store.commits == commits, "the session does not keep the lock"
        a.env.skip(6)
        assert a.session.current is not None
        assert a.session.current.state is Phase.SUSPENDED
        a.store.at_call = unreachable
        with pytest.raises(StoreUnavailable):
            await a.acquire()
        a.store.at_call = None
        await a.die()
        other = await b.acquire()
        with pytest.raises(LockTimeout):
            await a.acquire(timeout_s=0.3)
        await other.release()
        await world.assert_free()

    run(test)


def test_when_the_tokens_of_a_holding_are_used_up_the_session_gets_new_ones(run: Any) -> None:
    async def test(world: World) -> None:
        a, b = await world.two()
        first = await a.acquire(1)
        lock = first._lock
        await first.release()
        lock.base = lock.base_end - 4
        tokens = [first.token]
        for timeout_s in (None, None, None, 0, None):
            grant = await a.acquire(1, timeout_s)
            tokens.append(grant.token)
            await grant.release()
        assert tokens[1] >> 21 == tokens[2] >> 21 == tokens[0] >> 21
        assert tokens[3] >> 21 > tokens[2] >> 21
        # With others waiting, too, and with sharers.
        lock = grant._lock
        lock.base = lock.base_end - 2
        holder = await a.acquire(1)
        tokens.append(holder.token)
        waiting = [a.start(2), b.start(1), a.start(3)]
        await b.queued(1)
        await holder.release()
        async with asyncio.timeout(SOON_S):
            for task in asyncio.as_completed(waiting):
                grant = await task
                tokens.append(grant.token)
                await grant.release()
        assert tokens == sorted(set(tokens))
        assert all(token & 1 for token in tokens)
        await world.assert_free()

    run(test)


def test_idle_locks_beyond_a_number_are_given_back(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "CACHED_MAX", 20)

    async def kept(party: Party, names: list[bytes]) -> list[bytes]:
        return [name for name in names if (await party.state(name)).holders]

    async def test(world: World) -> None:
        a, b = await world.two()
        names = [b"un%03d" % number for number in range(60)]
        held = await a.acquire(1, raw=names[0])
        for name in names[1:]:
            await (await a.acquire(1, raw=name)).release()
        async with asyncio.timeout(SOON_S):
            while len(left := await kept(a, names)) > 30:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert names[0] in left
        assert names[-1] in left
        assert names[1] not in left
        held.check()
        for name in names[1:]:
            await (await b.acquire(1, 0, raw=name)).release()
            await (await a.acquire(1, raw=name)).release()
        await held.release()

    run(test)


def test_after_a_disappearance_nobody_gets_the_lock_before_the_delay(run: Any) -> None:
    async def test(world: World) -> None:
        a, b = await world.two(ttl_s=80_000)
        await a.acquire(1, delay_s=100)
        await a.die()
        waiting = [b.start(1), b.start(2, mode="shared")]
        await b.queued(1)
        for _ in range(2):
            await asyncio.sleep(0.2)
            assert not any(task.done() for task in waiting)
            with pytest.raises(LockTimeout):
                await b.acquire(3, 0)
            assert await b.locks.inquiries.holders(NAME) == []
            b.env.skip(45)
        b.env.skip(10)
        grant = await soon(waiting[0])
        await grant.release()
        await (await soon(waiting[1])).release()
        assert (await b.state()).delay is None

    run(test)


@pytest.mark.parametrize("how", ["asked", "session", "closed"])
def test_after_a_release_there_is_no_delay(run: Any, how: str) -> None:
    async def test(world: World) -> None:
        a, b = await world.two()
        grant = await a.acquire(1, delay_s=100)
        await grant.release()
        # With and without a delay of its own.
        await (await a.acquire(1, delay_s=10)).release()
        await (await a.acquire(1)).release()
        if how == "closed":
            await a.locks.close()
            await a.session.close()
        if how == "session":
            waiting = b.start(1, delay_s=5)
            await (await soon(waiting)).release()
            await (await a.acquire(1)).release()
        for mode in ("shared", "exclusive"):
            await (await b.acquire(1, SOON_S, mode=mode)).release()

    run(test)


def test_a_deadlock_is_told_to_one_and_the_others_go_on(run: Any) -> None:
    async def test(world: World) -> None:
        a = await world.party()
        names = [b"u1", b"u2", b"u3"]
        grants = [await a.acquire(owner, raw=names[owner - 1]) for owner in (1, 2, 3)]
        waiting = []
        for owner in (1, 2):
            waiting.append(a.start(owner, raw=names[owner]))
            await a.waiting(1, names[owner])
        with pytest.raises(DeadlockError):
            await a.acquire(3, raw=names[0], mode="shared")
        assert not any(task.done() for task in waiting)
        await grants[2].release()
        await (await soon(waiting[1])).release()
        await grants[1].release()
        await (await soon(waiting[0])).release()
        await grants[0].release()
        for name in names:
            await world.assert_free(name)

    run(test)

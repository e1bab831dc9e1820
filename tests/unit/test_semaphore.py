"""Goal: never more holders than the limit, first come first served, nothing left behind.

Method: two openings of one store contend on each engine; giving up is tried at every call that an
acquisition makes to the store and at every step of the loop; expiry comes from a clock that the
test moves. Then the manners of both faces, on clusters, with threads and a real SIGINT.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from parties import ENGINES, Interrupting, Party, run_in_world
from threads import in_thread

import ringhold
from ringhold.errors import Closed, InvalidInput, LockLost, LockTimeout, NotOwned
from ringhold.locks.semaphore import AsyncSemaphore
from ringhold.locks.slot_grants import SlotGrant, SlotService

_names = itertools.count()


@pytest.fixture(params=ENGINES)
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Any], None]:
    return lambda test: run_in_world(request.param, tmp_path, test)


def semaphore(party: Party, limit: int = 2, owner: int = 1, name: Any = "x") -> AsyncSemaphore:
    return AsyncSemaphore(party.slots, name, limit, owner=owner)


async def got(waiting: Any) -> SlotGrant:
    grant: SlotGrant | None = await asyncio.wait_for(waiting, 20)
    assert grant is not None
    return grant


async def until_waiting(party: Party, count: int) -> None:
    while len(await semaphore(party).waiters()) != count:  # noqa: ASYNC110
        await asyncio.sleep(0.001)


def test_no_more_holders_than_the_limit(run: Any) -> None:
    async def test(a: Party, b: Party) -> None:
        grants = [await got(semaphore(p, 3, n).acquire()) for n, p in enumerate((a, b, a), 1)]
        for party in (a, b):
            assert await semaphore(party, 3).try_acquire() is None
            assert await semaphore(party, 3).acquire(timeout=0.05) is None
        assert [party.owner for party in await semaphore(b, 3).holders()] == [1, 2, 3]
        assert [p.token for p in await semaphore(b, 3).holders()] == [g.token for g in grants]
        await grants[1].release()
        fourth = await got(semaphore(b, 3).acquire())
        tokens = [*(grant.token for grant in grants), fourth.token]
        assert tokens == sorted(set(tokens))
        assert all(token & 1 == 0 for token in tokens)
        assert len(await a.keys()) == 3

    run(test)


def test_a_limit_of_one_is_exclusive(run: Any) -> None:
    async def test(a: Party, b: Party) -> None:
        grant = await got(semaphore(a, 1).acquire())
        assert (grant.mode, grant.token & 1) == ("exclusive", 1)
        await grant.release()
        assert await a.keys() == []

    run(test)


def test_holders_never_exceed_the_limit_under_contention(run: Any) -> None:
    """The counter's own alarm is proved first: without a semaphore it goes off."""

    async def counted(limit: int, tasks: int, enter: Callable[[int], Any]) -> int:
        inside = most = 0
        together = asyncio.Event()

        async def work(number: int) -> None:
            nonlocal inside, most
            for _ in range(4):
                async with enter(number):
                    inside += 1
                    most = max(most, inside)
                    if inside > 1:
                        together.set()
                    async with asyncio.timeout(10):
                        await together.wait()
                    await asyncio.sleep(0.001 * random.Random(number).random())
                    inside -= 1

        async with asyncio.TaskGroup() as group:
            for number in range(tasks):
                group.create_task(work(number))
        return most

    async def test(a: Party, b: Party) -> None:
        assert await counted(3, 12, lambda number: asyncio.Semaphore(1)) > 3
        parties = (a, b)
        most = await counted(3, 12, lambda n: semaphore(parties[n % 2], 3, n + 1))
        assert 1 < most <= 3
        assert await a.keys() == []

    run(test)


def test_waiters_are_served_in_the_order_they_came(run: Any) -> None:
    async def test(a: Party, b: Party) -> None:
        holders = [await got(semaphore(a).acquire()) for _ in range(2)]
        waiting = []
        for number in range(6):
            party = (a, b)[number % 2]
            waiting.append(asyncio.create_task(semaphore(party, owner=10 + number).acquire()))
            await until_waiting(party, number + 1)
        assert [p.owner for p in await semaphore(b).waiters()] == list(range(10, 16))
        assert [p.token for p in await semaphore(b).waiters()] == [0] * 6
        queue = list(holders)
        for number, task in enumerate(waiting):
            # Nobody passes the waiters, neither a newcomer nor one of them another.
            await queue.pop(0).release()
            assert await semaphore(b).try_acquire() is None
            queue.append(await got(task))
            assert not any(later.done() for later in waiting[number + 1 :])
        for grant in queue:
            await grant.release()
        assert await a.keys() == []

    run(test)


def test_a_free_slot_is_the_first_waiter_s(run: Any) -> None:
    async def test(a: Party, b: Party) -> None:
        holder = await got(semaphore(a, 1).acquire())
        waiter = asyncio.create_task(semaphore(b, 1).acquire())
        await until_waiting(a, 1)
        # Straight behind the holder's back: the holder's key goes, the waiter's stays.
        await a.store.commit(deletes=[holder.held.key])
        assert await semaphore(a, 1).try_acquire() is None
        await got(waiter)

    run(test)


def test_another_limit_is_refused_while_anybody_holds_or_waits(run: Any) -> None:
    async def test(a: Party, b: Party) -> None:
        for limit, other in ((2, 3), (3, 2), (1, (1 << 31) - 1), ((1 << 31) - 1, 1)):
            grant = await got(semaphore(a, limit).acquire())
            for attempt in ({"blocking": False}, {"timeout": 0.01}, {}):
                with pytest.raises(InvalidInput, match=rf"limit {limit}\b.* {other}\b"):
                    await semaphore(b, other).acquire(**attempt)
            with pytest.raises(InvalidInput):
                async with semaphore(b, other):
                    raise AssertionError("entered")
            assert await a.keys() == [grant.held.key]
            await grant.release()
            await (await got(semaphore(b, other).try_acquire())).release()

    run(test)


def test_two_limits_at_once_never_both_enter(run: Any) -> None:
    async def test(a: Party, b: Party) -> None:
        refused = 0
        for _ in range(15):
            results = await asyncio.gather(
                semaphore(a, 2).acquire(), semaphore(b, 3).acquire(), return_exceptions=True
            )
            grants = [result for result in results if isinstance(result, SlotGrant)]
            errors = [result for result in results if isinstance(result, InvalidInput)]
            assert len(grants) == 1
            assert len(errors) == 1
            refused += 1
            await grants[0].release()
        assert refused == 15

    run(test)


def test_names_do_not_share_slots(run: Any) -> None:
    async def test(a: Party, b: Party) -> None:
        names: list[Any] = ["a", "ab", "a\0", b"\xff", b"\xff\xff", "ä", "a\0\0\0\2x", "a\0\0\0\1q"]
        for name in names:
            await got(semaphore(a, 1, name=name).try_acquire())
        for name in names:
            assert await semaphore(b, 1, name=name).try_acquire() is None

    run(test)


def test_one_owner_may_hold_several(run: Any) -> None:
    async def test(a: Party, b: Party) -> None:
        mine = semaphore(a, 3)
        first, second = await got(mine.acquire()), await got(mine.acquire())
        await mine.release()
        assert second.released
        assert not first.released
        await semaphore(a, 3).release()
        with pytest.raises(NotOwned):
            await mine.release()
        async with mine as outer, mine as inner:
            assert len(await mine.holders()) == 2
            await inner.release()
            loose = await got(mine.acquire())
        # Each block gave back its own one, and nobody else's.
        assert outer.released
        assert not loose.released
        with pytest.raises(NotOwned):
            await outer.release()
        with pytest.raises(NotOwned):
            await semaphore(a, 3, owner=2).release()

    run(test)


def test_an_expired_session_loses_its_slots_for_ever(run: Any) -> None:
    async def test(a: Party, b: Party) -> None:
        grant = await got(semaphore(a, 1).acquire())
        told: list[object] = []
        grant.on_lost(told.append)
        waiting = asyncio.create_task(semaphore(b, 1).acquire())
        await until_waiting(b, 1)
        a.env.skip(11)
        # Told at the point of use, before any timer ran.
        with pytest.raises(LockLost) as caught:
            grant.check()
        assert (caught.value.name, caught.value.token) == ("x", grant.token)
        await asyncio.wait_for(grant.lost.wait(), 10)
        assert told == [grant]
        taken = await got(waiting)
        assert taken.token > grant.token
        with pytest.raises(LockLost):
            await grant.release()
        taken.check()
        with pytest.raises(LockLost):
            grant.check()
        # A waiter whose session expired starts again in a new one.
        waiting = asyncio.create_task(semaphore(a, 1).acquire())
        await until_waiting(a, 1)
        assert a.session.current is not None
        a.session.current.lose()
        await taken.release()
        await got(waiting)

    run(test)


def test_leaving_after_a_loss_raises_and_does_not_hide_an_error(run: Any) -> None:
    async def test(a: Party, b: Party) -> None:
        async def lose(error: BaseException | None) -> None:
            async with semaphore(a) as grant:
                await b.store.commit(deletes=[grant.held.key])
                if error is not None:
                    raise error

        with pytest.raises(LockLost):
            await lose(None)
        with pytest.raises(ZeroDivisionError) as caught:
            await lose(ZeroDivisionError())
        assert any("lost" in note for note in caught.value.__notes__)

    run(test)


@pytest.mark.parametrize("freed", ["before", "once it is queued", "once it waits"])
def test_giving_up_at_any_point_leaves_nothing_behind(run: Any, freed: str) -> None:
    contended = freed != "before"
    reached = {"before": [], "once it is queued": ["snapshot"], "once it waits": ["watch"]}[freed]

    async def test(a: Party, b: Party) -> None:
        struck: set[str] = set()
        await b.session.ensure()
        for point in itertools.count():
            holder = await semaphore(a, 1).acquire(timeout=5) if contended else None
            store = Interrupting(b.store, point)
            slots = SlotService(store, b.env, b.session)  # type: ignore[arg-type]
            waiting = AsyncSemaphore(slots, "x", 1, owner=7)
            store.victim = asyncio.create_task(waiting.acquire())
            if holder is not None:
                while not store.victim.done():
                    if store.watched or (
                        freed == "once it is queued" and await semaphore(a, 1).waiters()
                    ):
                        break
                    await asyncio.sleep(0)
                if not store.victim.done():
                    await holder.release()
                    holder = None
            try:
                grant = await got(store.victim)
            except asyncio.CancelledError:
                struck.add(store.struck)
            else:
                await grant.release()
            left = [key for key in await a.keys() if holder is None or key != holder.held.key]
            assert left == [], f"cancelled at point {point}"
            if holder is not None:
                await holder.release()
            await slots.close()
            if not store.struck:
                break
        # The sweep reached the commit, and the queue where there is one.
        assert struck >= {"commit", *reached}

    run(test)


def test_cancelled_at_every_step_of_the_loop(tmp_path: Path) -> None:
    async def test(a: Party, b: Party) -> None:
        cancelled = 0
        for steps in itertools.count():
            task = asyncio.create_task(semaphore(a, 1).acquire())
            for _ in range(steps):
                await asyncio.sleep(0)
            done = task.done()
            task.cancel()
            try:
                await (await got(task)).release()
            except asyncio.CancelledError:
                cancelled += 1
            assert await a.keys() == [], f"cancelled after {steps} steps"
            if done:
                break
        assert cancelled > 3

    run_in_world("memory", tmp_path, test)


def test_a_release_cancelled_at_any_step_is_done(tmp_path: Path) -> None:
    async def test(a: Party, b: Party) -> None:
        for steps in range(12):
            grant = await got(semaphore(a, 1).acquire(timeout=5))
            task = asyncio.create_task(grant.release())
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            if not grant.released:
                assert steps == 0, "only what never began is not done"
                await grant.release()
            assert await a.keys() == []

    run_in_world("memory", tmp_path, test)


def test_closing_wakes_the_waiters(run: Any) -> None:
    async def test(a: Party, b: Party) -> None:
        holder = await got(semaphore(a, 1).acquire())
        waiting = asyncio.create_task(semaphore(a, 1, owner=2).acquire())
        await until_waiting(a, 1)
        await a.slots.close()
        with pytest.raises(Closed):
            await waiting
        await a.session.close()
        assert holder.lost.is_set()
        with pytest.raises(Closed):
            await semaphore(a, 1).acquire()
        await got(semaphore(b, 1).try_acquire())

    run(test)


@pytest.fixture
def cluster() -> Iterator[ringhold.Cluster]:
    with ringhold.create(f"memory://semaphore{next(_names)}") as made:
        yield made


@pytest.mark.parametrize("limit", [0, -1, 1 << 31])
def test_impossible_limits(cluster: ringhold.Cluster, limit: int) -> None:
    with pytest.raises(InvalidInput, match=f"{limit}"):
        cluster.semaphore("x", limit)


@pytest.mark.parametrize("limit", [True, 1.5, "1", None])
def test_limits_of_other_types(cluster: ringhold.Cluster, limit: Any) -> None:
    with pytest.raises(TypeError):
        cluster.semaphore("x", limit)


def test_impossible_names_timeouts_and_owners(cluster: ringhold.Cluster) -> None:
    for name in ("", b"", "x" * (64 << 10), "\ud800"):
        with pytest.raises(InvalidInput):
            cluster.semaphore(name, 1)
    for wrong in (None, 5, ["x"]):
        with pytest.raises(TypeError):
            cluster.semaphore(wrong, 1)  # type: ignore[arg-type]
    one = cluster.semaphore("nul\0\udcff", 1)
    assert one.name == "nul\0\udcff"
    for timeout in (-2, float("nan")):
        with pytest.raises(ValueError, match="timeout"):
            one.acquire(timeout=timeout)
        with pytest.raises(ValueError, match="timeout"):
            cluster.semaphore("x", 1, timeout=timeout)
    with pytest.raises(ValueError, match="blocking"):
        one.acquire(blocking=False, timeout=1)
    with pytest.raises(InvalidInput):
        cluster.semaphore("x", 1, owner=0)
    with pytest.raises(NotOwned):
        one.release()
    with one:
        pass


def test_the_manners_of_the_blocking_face(cluster: ringhold.Cluster) -> None:
    two = cluster.semaphore("x", 2, timeout=5)
    with two as grant, two as second:
        assert grant
        assert (grant.name, grant.mode) == ("x", "shared")
        assert second.token > grant.token
        assert in_thread(two.try_acquire) is None
        assert isinstance(in_thread(cluster.semaphore("x", 2, timeout=0.02).__enter__), LockTimeout)
        assert in_thread(lambda: cluster.semaphore("x", 2).acquire(timeout=0.02)) is None
        assert isinstance(in_thread(two.release), NotOwned)
        assert [party.pid for party in two.holders()] == [os.getpid()] * 2
        in_thread(second.release)
        with pytest.raises(NotOwned):
            second.check()
        grant.check()
        assert len(two.holders()) == 1
    assert two.holders() == []
    with two.acquire() as again:  # type: ignore[union-attr]
        again.check()
    assert two.holders() == []


def test_a_loss_is_told_on_a_thread(cluster: ringhold.Cluster) -> None:
    told = threading.Event()
    grant = cluster.semaphore("x", 1).acquire()
    assert grant is not None

    def tell(lost: Any) -> None:
        # On a thread where blocking calls are allowed.
        cluster.kv["told"] = b"%d" % lost.token
        told.set()

    grant.on_lost(tell)
    state = cluster._cluster._session.current
    assert state is not None
    state.lose()
    assert grant.lost.wait(10)
    assert told.wait(10)
    assert cluster.kv["told"] == b"%d" % grant.token
    with pytest.raises(LockLost):
        cluster.semaphore("x", 1).release()


def test_an_interrupt_leaves_neither_slot_nor_place_in_the_queue(
    cluster: ringhold.Cluster,
) -> None:
    one = cluster.semaphore("x", 1)
    holder = cluster.semaphore("x", 1, owner=1).acquire()
    assert holder is not None

    def interrupt() -> None:
        while not one.waiters():
            pass
        os.kill(os.getpid(), signal.SIGINT)

    for enter in (one.acquire, one.__enter__):
        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            enter()
        thread.join()
        assert one.waiters() == []
        assert len(one.holders()) == 1
    holder.release()
    with one:
        pass

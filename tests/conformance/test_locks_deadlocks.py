"""Goal: of sessions that wait for each other in a circle one is told, soon; nobody else ever is.

Method: owners of several "processes" take locks so that a circle closes, in every order of its
waits, through shared holders, queues, upgrades and waits within a process. Exactly one wait must
end, and the others must go on when its locks are given back. What sessions tell of their waits is
watched: nothing where there is no need, nothing afterwards. Records that are out of date are made
so by keeping a session from telling again.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lock_world import ENGINES_OF_SLOW_TESTS, Meddler, Party, World, run_in_world, soon

from ringhold.errors import (
    DeadlockError,
    LockTimeout,
    OutcomeUnknown,
    RingholdError,
    StoreUnavailable,
)
from ringhold.locks import deadlocks
from ringhold.locks.cycles import WaitEdge, decode_waits
from ringhold.locks.grant import AsyncGrant
from ringhold.locks.keys import EXCLUSIVE
from ringhold.store.base import prefix_end
from ringhold.store.keyspace import WAITS

FOUND_S = 20.0
"""Within which a deadlock is found on a machine however busy; on an idle one it takes 0.3 s."""

QUIET_S = 1.2
"""During which none is, where there is none."""

SHORT_S = 0.1
"""A wait that is over before it is thought of."""

NAMES = [b"ua", b"ub", b"uc", b"ud"]
Tasks = list["asyncio.Task[AsyncGrant]"]


@pytest.fixture(params=ENGINES_OF_SLOW_TESTS)
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Any], None]:
    return lambda test: run_in_world(request.param, tmp_path, test)


async def told(party: Party) -> list[WaitEdge]:
    """What all sessions tell of their waits."""
    snapshot = await party.real_store.snapshot()
    try:
        found = await snapshot.range(WAITS, prefix_end(WAITS))
    finally:
        await snapshot.close()
    return [edge for _, entry in found for edge in decode_waits(entry.value).edges]


async def until_told(party: Party, count: int) -> None:
    async with asyncio.timeout(FOUND_S):
        while len(await told(party)) != count:  # noqa: ASYNC110
            await asyncio.sleep(0.002)


def failed(tasks: Tasks) -> Tasks:
    return [task for task in tasks if task.done() and task.exception() is not None]


async def one_refused(tasks: Tasks) -> asyncio.Task[AsyncGrant]:
    """The one wait that ends with DeadlockError, within FOUND_S; the others go on."""
    await asyncio.wait(tasks, timeout=FOUND_S, return_when=asyncio.FIRST_COMPLETED)
    (victim,) = [task for task in tasks if task.done()]
    error = victim.exception()
    assert isinstance(error, DeadlockError)
    await asyncio.sleep(2 * deadlocks.PATIENCE_S)
    assert [task for task in tasks if task.done()] == [victim]
    return victim


async def end_well(world: World, grants: list[AsyncGrant], tasks: Tasks) -> None:
    """The victim gives back what it holds, whoever can go on does; nothing is left behind."""
    victim = await one_refused(tasks)
    at = tasks.index(victim)
    await grants[at].release()
    left = {number: task for number, task in enumerate(tasks) if number != at}
    async with asyncio.timeout(FOUND_S):
        while left:
            await asyncio.wait(left.values(), return_when=asyncio.FIRST_COMPLETED)
            number = next(number for number, task in left.items() if task.done())
            await (await left.pop(number)).release()
            await grants[number].release()
    await until_told(world.parties[0], 0)
    for name in NAMES[: len(tasks)]:
        await world.assert_free(name)


@pytest.mark.parametrize("held", ["exclusive", "shared"])
@pytest.mark.parametrize("sessions", [2, 3])
@pytest.mark.parametrize("pause_s", [0.0, 0.3])
def test_sessions_that_wait_in_a_circle(run: Any, sessions: int, held: str, pause_s: float) -> None:
    async def test(world: World) -> None:
        parties = [await world.party() for _ in range(sessions)]
        grants = [await party.acquire(raw=NAMES[at], mode=held) for at, party in enumerate(parties)]
        tasks = []
        for at, party in enumerate(parties):
            await asyncio.sleep(pause_s)
            tasks.append(party.start(timeout_s=None, raw=NAMES[(at + 1) % sessions]))
        await end_well(world, grants, tasks)

    run(test)


def test_the_error_names_the_locks_of_the_circle(run: Any) -> None:
    async def test(world: World) -> None:
        parties = [await world.party() for _ in range(3)]
        for at, party in enumerate(parties):
            await party.acquire(raw=NAMES[at])
        tasks = [
            party.start(timeout_s=None, raw=NAMES[(at + 1) % 3]) for at, party in enumerate(parties)
        ]
        victim = await one_refused(tasks)
        at = tasks.index(victim)
        error: Any = victim.exception()
        mine, next_one, last = (NAMES[(at + step) % 3][1:].decode() for step in range(3))
        other = (await parties[(at + 1) % 3].session.ensure()).id.hex()[:8]
        assert error.name == next_one
        assert str(error).startswith(
            f"waiting for lock {next_one!r} would never end: "
            f"{next_one!r} is held in session {other}… (process "
        )
        assert f"until that gets {last!r}, {last!r} is held in session" in str(error)
        assert str(error).endswith(f"until that gets {mine!r}, {mine!r} is held here")
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    run(test)


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
@pytest.mark.parametrize("pause_s", [0.0, 0.35])
def test_a_circle_partly_within_one_process(
    run: Any, order: tuple[int, ...], pause_s: float
) -> None:
    """Owners 1 and 2 are of one process: what 1 waits for only that process knows."""

    async def test(world: World) -> None:
        a, b = await world.two()
        owners = [(a, 1), (a, 2), (b, 1)]
        grants = [
            await party.acquire(owner, raw=NAMES[at]) for at, (party, owner) in enumerate(owners)
        ]
        tasks: dict[int, asyncio.Task[AsyncGrant]] = {}
        for at in order:
            party, owner = owners[at]
            await asyncio.sleep(pause_s)
            tasks[at] = party.start(owner, None, raw=NAMES[(at + 1) % 3])
        await end_well(world, grants, [tasks[at] for at in range(3)])

    run(test)


def test_a_circle_through_a_place_in_a_queue(run: Any) -> None:
    """c shares the lock that b shares, but comes after a, who wants it alone."""

    async def test(world: World) -> None:
        a, b = await world.two()
        c = await world.party()
        shared = await b.acquire(raw=NAMES[0], mode="shared")
        other = await c.acquire(raw=NAMES[1])
        writer = a.start(timeout_s=None, raw=NAMES[0])
        await a.queued(1, NAMES[0])
        reader = c.start(timeout_s=None, raw=NAMES[0], mode="shared")
        await a.queued(2, NAMES[0])
        crossing = b.start(timeout_s=None, raw=NAMES[1])
        victim = await one_refused([reader, crossing, writer])
        assert victim is not writer
        if victim is reader:
            assert "is before it" in str(victim.exception())
            await other.release()
            await (await soon(crossing)).release()
            await shared.release()
        else:
            await shared.release()
        await (await soon(writer)).release()
        if victim is crossing:
            await (await soon(reader)).release()
            await other.release()
        await until_told(a, 0)
        for name in NAMES[:2]:
            await world.assert_free(name)

    run(test)


def test_a_circle_through_an_upgrade(run: Any) -> None:
    async def test(world: World) -> None:
        a, b = await world.two()
        shared = await a.acquire(raw=NAMES[0], mode="shared")
        held = await a.acquire(raw=NAMES[1])
        other = await b.acquire(raw=NAMES[0], mode="shared")
        crossing = b.start(timeout_s=None, raw=NAMES[1])
        await a.queued(1, NAMES[1])
        upgrade: Any = asyncio.create_task(shared.upgrade())
        victim = await one_refused([crossing, upgrade])
        if victim is crossing:
            await other.release()
            await soon(upgrade)
            assert shared.mode == "exclusive"
            await shared.release()
            await held.release()
        else:
            assert shared.mode == "shared"
            await held.release()
            await (await soon(crossing)).release()
            await other.release()
            await shared.release()
        await until_told(a, 0)
        for name in NAMES[:2]:
            await world.assert_free(name)

    run(test)


def test_a_circle_beside_an_upgrade(run: Any) -> None:
    """a would give the lock back if owner 2 did, whatever becomes of the upgrade of owner 1."""

    async def test(world: World) -> None:
        a, b = await world.two()
        c = await world.party()
        upgrading = await a.acquire(1, raw=NAMES[0], mode="shared")
        shared = await a.acquire(2, raw=NAMES[0], mode="shared")
        idle = await b.acquire(raw=NAMES[0], mode="shared")
        held = await c.acquire(raw=NAMES[1])
        upgrade: Any = asyncio.create_task(upgrading.upgrade())
        await a.queued(1, NAMES[0])
        tasks = [a.start(2, None, raw=NAMES[1]), c.start(timeout_s=None, raw=NAMES[0]), upgrade]
        victim = await one_refused(tasks)
        assert victim is not upgrade
        if victim is tasks[0]:
            await shared.release()
        else:
            await held.release()
            await (await soon(tasks[0])).release()
            await shared.release()
        await idle.release()
        await soon(upgrade)
        await upgrading.release()
        if victim is tasks[0]:
            await (await soon(tasks[1])).release()
            await held.release()
        await until_told(a, 0)
        for name in NAMES[:2]:
            await world.assert_free(name)

    run(test)


def test_a_circle_through_a_lock_that_is_about_to_be_given_back(run: Any) -> None:
    """Owner 2 of a could share with owner 1, but comes after c, who wants the lock alone."""

    async def test(world: World) -> None:
        a, b = await world.two()
        c = await world.party()
        shared = await a.acquire(1, raw=NAMES[0], mode="shared")
        other = await a.acquire(2, raw=NAMES[1])
        held = await b.acquire(raw=NAMES[2])
        writer = c.start(timeout_s=None, raw=NAMES[0])
        locks: Any = a.locks.current
        lock = locks.locks[NAMES[0]]
        async with asyncio.timeout(5):
            while lock.gate not in dict(locks.table.waiters(NAMES[0])):  # noqa: ASYNC110
                await asyncio.sleep(0.002)
        behind = a.start(2, None, raw=NAMES[0], mode="shared")
        crossing = b.start(timeout_s=None, raw=NAMES[1])
        closing = a.start(1, None, raw=NAMES[2])
        victim = await one_refused([behind, crossing, closing, writer])
        assert victim in (crossing, closing)
        if victim is crossing:
            await held.release()
            await (await soon(closing)).release()
        await shared.release()
        await (await soon(writer)).release()
        await (await soon(behind)).release()
        await other.release()
        if victim is closing:
            await (await soon(crossing)).release()
            await held.release()
        await until_told(a, 0)
        for name in NAMES[:3]:
            await world.assert_free(name)

    run(test)


def test_a_circle_through_a_writer_who_is_before_the_gate(run: Any) -> None:
    """b would share the lock with owner 1 of a, but comes after owner 2, who wants it alone."""

    async def test(world: World) -> None:
        a, b = await world.two()
        await (await a.acquire(1, raw=NAMES[0])).release()
        shared = await a.acquire(1, raw=NAMES[0], mode="shared")
        held = await b.acquire(raw=NAMES[1])
        writer = a.start(2, None, raw=NAMES[0])
        locks: Any = a.locks.current
        lock = locks.locks[NAMES[0]]
        async with asyncio.timeout(5):
            while len(locks.table.waiters(NAMES[0])) < 1:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
        assert lock.mode is EXCLUSIVE
        crossing = b.start(timeout_s=None, raw=NAMES[0], mode="shared")
        closing = a.start(1, None, raw=NAMES[1])
        victim = await one_refused([writer, crossing, closing])
        assert victim is not writer
        if victim is crossing:
            await held.release()
            await (await soon(closing)).release()
        await shared.release()
        await (await soon(writer)).release()
        if victim is closing:
            await (await soon(crossing)).release()
            await held.release()
        await until_told(a, 0)
        for name in NAMES[:2]:
            await world.assert_free(name)

    run(test)


def test_a_circle_that_nobody_who_told_could_see(run: Any) -> None:
    """A place in a queue may change its mode without being told of."""

    async def test(world: World) -> None:
        parties = await world.two()
        grants = [
            await party.acquire(raw=name) for party, name in zip(parties, NAMES[:2], strict=True)
        ]
        for party in parties:
            locks: Any = party.locks.current
            find = locks.deadlocks._find
            found: list[int] = []

            async def second_only(find: Any = find, found: list[int] = found) -> None:
                found.append(1)
                if len(found) > 1:
                    await find()

            locks.deadlocks._find = second_only
        tasks = [
            party.start(timeout_s=None, raw=name)
            for party, name in zip(parties, NAMES[1::-1], strict=True)
        ]
        await end_well(world, grants, tasks)

    run(test)


def test_circles_that_close_at_once_cost_one_wait_each(run: Any) -> None:
    async def test(world: World) -> None:
        parties = [await world.party() for _ in range(3)]
        for turn in range(3):
            grants = [
                await party.acquire(turn + 1, raw=NAMES[at]) for at, party in enumerate(parties)
            ]
            tasks = [
                party.start(turn + 1, None, raw=NAMES[(at + 1) % 3])
                for at, party in enumerate(parties)
            ]
            await end_well(world, grants, tasks)

    run(test)


def test_of_two_who_are_sure_of_one_circle_one_gives_up(run: Any) -> None:
    async def test(world: World) -> None:
        parties = await world.two()
        grants = [await party.acquire(raw=NAMES[at]) for at, party in enumerate(parties)]
        sure: list[Party] = []
        both = asyncio.Event()

        def meet(party: Party) -> None:
            locks: Any = party.locks.current
            ask = locks.deadlocks.ask

            async def ask_and_wait(*args: Any) -> bool:
                answer: bool = await ask(*args)
                if answer and party not in sure:
                    sure.append(party)
                if len(sure) == 2:
                    both.set()
                locks.deadlocks._again = True
                await both.wait()
                return answer

            locks.deadlocks.ask = ask_and_wait

        for party in parties:
            meet(party)
        tasks = [party.start(timeout_s=None, raw=NAMES[1 - at]) for at, party in enumerate(parties)]
        await until_told(parties[0], 2)
        for party in parties:
            # Who told first does not know of the circle, and looks again.
            locks: Any = party.locks.current
            locks.deadlocks._again = True
        await end_well(world, grants, tasks)
        assert len(sure) == 2

    run(test)


def test_whoever_waits_in_no_circle_is_never_told(run: Any) -> None:
    async def test(world: World) -> None:
        parties = [await world.party() for _ in range(4)]
        grants = [await party.acquire(raw=NAMES[at]) for at, party in enumerate(parties)]
        tasks = [party.start(timeout_s=None, raw=NAMES[at]) for at, party in enumerate(parties[1:])]
        await asyncio.sleep(QUIET_S)
        assert not any(task.done() for task in tasks)
        # The first wait holds up the second, and so on; the last one holds up nobody.
        assert len(await told(parties[0])) == 2
        await grants[0].release()
        for task, grant in zip(tasks, grants[1:], strict=True):
            await (await soon(task)).release()
            await grant.release()
        await until_told(parties[0], 0)

    run(test)


class Telling:
    """Notes whatever sessions tell of their waits."""

    def __init__(self, party: Party):
        self.seen: list[bytes] = []
        self._party = party

    async def _follow(self, revision: int) -> None:
        async for changes in self._party.real_store.watch(WAITS, revision):
            self.seen += [event.key for event in changes.events]

    async def __aenter__(self) -> list[bytes]:
        revision = await self._party.real_store.commit()
        self._task = asyncio.create_task(self._follow(revision + 1))
        return self.seen

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def test_nothing_is_told_of_waits_that_hold_nobody_up(run: Any) -> None:
    async def test(world: World) -> None:
        parties = [await world.party() for _ in range(3)]
        own = [await party.acquire(9, raw=NAMES[1 + at]) for at, party in enumerate(parties)]
        async with Telling(parties[0]) as seen:
            grant = await parties[0].acquire()
            tasks = [party.start(owner) for party in parties for owner in (2, 9)]
            await asyncio.sleep(3 * deadlocks.PATIENCE_S)
            await grant.release()
            for _ in tasks:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    await task.result().release()
                tasks = [task for task in tasks if task not in done]
                if not tasks:
                    break
            assert seen == []
        for grant in own:
            await grant.release()

    run(test)


def test_nothing_is_told_of_an_upgrade_that_nobody_waits_for(run: Any) -> None:
    async def test(world: World) -> None:
        a, b = await world.two()
        shared = await a.acquire(raw=NAMES[0], mode="shared")
        other = await b.acquire(raw=NAMES[0], mode="shared")
        async with Telling(a) as seen:
            upgrade: Any = asyncio.create_task(shared.upgrade())
            await asyncio.sleep(3 * deadlocks.PATIENCE_S)
            await other.release()
            await soon(upgrade)
            assert seen == []
        await shared.release()

    run(test)


@pytest.mark.parametrize("beside", [False, True])
def test_nothing_is_told_of_short_waits_tries_and_grants(
    run: Any, beside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also not by a session in which somebody else has been waiting for long."""
    # So long that no wait of this test takes it, on a machine however busy.
    monkeypatch.setattr("ringhold.locks.deadlocks.PATIENCE_S", 1.5)
    monkeypatch.setattr("ringhold.locks.keeper.PATIENCE_S", 1.5)

    async def test(world: World) -> None:
        a, b = await world.two()
        long = await b.acquire(9, raw=NAMES[2])
        waits_long = a.start(9, None, raw=NAMES[2]) if beside else None
        await asyncio.sleep(deadlocks.PATIENCE_S)
        async with Telling(a) as seen:
            for turn in range(6):
                # b waits for a, who waits for b.
                held = [await a.acquire(raw=NAMES[0]), await b.acquire(raw=NAMES[1])]
                waiting = b.start(2, raw=NAMES[0])
                await a.queued(1, NAMES[0])
                if turn % 2:
                    with pytest.raises(LockTimeout):
                        await a.acquire(1, 0, raw=NAMES[1])
                else:
                    crossing = a.start(1, raw=NAMES[1])
                    await asyncio.sleep(SHORT_S)
                    await held[1].release()
                    await (await soon(crossing)).release()
                await held[0].release()
                await (await soon(waiting)).release()
                if turn % 2:
                    await held[1].release()
            assert seen == []
        await long.release()
        if waits_long is not None:
            await (await soon(waits_long)).release()

    run(test)


def test_a_record_goes_as_soon_as_the_wait_is_over(run: Any) -> None:
    async def test(world: World) -> None:
        a, b = await world.two()
        grants = [await a.acquire(raw=NAMES[0]), await b.acquire(raw=NAMES[1])]
        crossing = a.start(timeout_s=None, raw=NAMES[1])
        beside = b.start(2, None, raw=NAMES[0])
        await until_told(a, 1)
        # From now on it does not look by itself.
        locks: Any = a.locks.current
        schedule = locks.deadlocks._schedule
        locks.deadlocks._schedule = lambda seconds: None if seconds else schedule(0)
        await asyncio.sleep(2 * deadlocks.PATIENCE_S)
        assert len(await told(a)) == 1
        await grants[1].release()
        grants[1] = await soon(crossing)
        await until_told(a, 0)
        assert not beside.done()
        for grant in grants:
            await grant.release()
        await (await soon(beside)).release()

    run(test)


def test_a_timeout_that_comes_first_opens_the_circle(run: Any) -> None:
    async def test(world: World) -> None:
        a, b = await world.two()
        grants = [await a.acquire(raw=NAMES[0]), await b.acquire(raw=NAMES[1])]
        patient = b.start(timeout_s=None, raw=NAMES[0])
        await b.queued(1, NAMES[0])
        with pytest.raises(LockTimeout):
            await a.acquire(1, deadlocks.PATIENCE_S / 2, raw=NAMES[1])
        await asyncio.sleep(QUIET_S)
        assert not patient.done()
        await grants[0].release()
        await (await soon(patient)).release()
        await grants[1].release()
        await until_told(a, 0)

    run(test)


def test_a_lock_that_is_merely_kept_is_in_nobody_s_way(run: Any) -> None:
    async def test(world: World) -> None:
        a, b = await world.two()
        await (await a.acquire(raw=NAMES[0])).release()
        grant = await b.acquire(raw=NAMES[1])
        waiting = a.start(timeout_s=None, raw=NAMES[1])
        await a.queued(1, NAMES[1])
        await asyncio.sleep(2 * deadlocks.PATIENCE_S)
        await (await b.acquire(raw=NAMES[0])).release()
        await asyncio.sleep(2 * deadlocks.PATIENCE_S)
        assert await told(a) == []
        await grant.release()
        await (await soon(waiting)).release()

    run(test)


@pytest.mark.parametrize("change", ["gave up", "gave back", "waits anew"])
def test_a_record_that_is_out_of_date_refuses_nobody(run: Any, change: str) -> None:
    async def test(world: World) -> None:
        a, b = await world.two()
        c = await world.party()
        held = await a.acquire(1, raw=NAMES[0])
        other = await b.acquire(1, raw=NAMES[1])
        third = c.start(timeout_s=None, raw=NAMES[0])
        await a.queued(1, NAMES[0])
        # Somebody else of a waits for the same lock, so that its place in the queue stays.
        beside = a.start(2, None, raw=NAMES[1])
        waiting = a.start(1, None, raw=NAMES[1])
        await until_told(a, 1)
        silent: Any = a.locks.current
        silent.deadlocks._look = lambda: None
        silent.deadlocks._schedule(0)
        inside = None
        if change == "gave back":
            # Another one of a gets it before c does.
            inside = a.start(3, None, raw=NAMES[0], mode="exclusive")
            await held.release()
        else:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            if change == "waits anew":
                waiting = a.start(1, None, raw=NAMES[1])
        asked: list[bool] = []
        asking: Any = b.locks.current
        ask = asking.deadlocks.ask

        async def noted(*args: Any) -> bool:
            asked.append(await ask(*args))
            return asked[-1]

        asking.deadlocks.ask = noted
        crossing = b.start(1, None, raw=NAMES[0])
        await asyncio.sleep(QUIET_S)
        assert not failed([crossing, beside, third])
        if change != "gave back":
            assert asked, "the record was not believed in the first place"
            assert not any(asked)
        for task in (waiting, crossing, beside, third, inside):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await (await task).release()
        if change != "gave back":
            await held.release()
        await other.release()

    run(test)


def test_a_place_in_a_queue_that_nobody_waits_behind_refuses_nobody(run: Any) -> None:
    """As in a circle through a queue, but who wanted the lock alone is just leaving."""

    async def test(world: World) -> None:
        a, b = await world.two()
        c = await world.party()
        shared = await b.acquire(raw=NAMES[0], mode="shared")
        other = await c.acquire(raw=NAMES[1])
        writer = a.start(timeout_s=None, raw=NAMES[0])
        await a.queued(1, NAMES[0])
        leaving = asyncio.Event()
        stopped: list[bool] = []

        async def late(name: str, after: bool) -> None:
            if name == "commit" and not after and writer.done() and not stopped:
                stopped.append(True)
                await leaving.wait()

        a.store.at_call = late
        answers: list[bool] = []
        locks: Any = a.locks.current
        stands_by = locks.deadlocks.stands_by
        locks.deadlocks.stands_by = lambda claim: answers.append(stands_by(claim)) or answers[-1]
        reader = c.start(timeout_s=None, raw=NAMES[0], mode="shared")
        await a.queued(2, NAMES[0])
        writer.cancel()
        await asyncio.gather(writer, return_exceptions=True)
        crossing = b.start(timeout_s=None, raw=NAMES[1])
        await asyncio.sleep(QUIET_S)
        assert not failed([reader, crossing])
        assert stopped
        assert answers, "the place was not taken for one of a circle"
        assert not any(answers)
        leaving.set()
        a.store.at_call = None
        await (await soon(reader)).release()
        await other.release()
        await (await soon(crossing)).release()
        await shared.release()

    run(test)


def test_a_session_that_does_not_answer_delays_the_finding_only(run: Any) -> None:
    async def test(world: World) -> None:
        a, b = await world.two()
        grants = [await a.acquire(raw=NAMES[0]), await b.acquire(raw=NAMES[1])]
        tasks = [a.start(timeout_s=None, raw=NAMES[1]), b.start(timeout_s=None, raw=NAMES[0])]
        await b.queued(1, NAMES[0])
        await b.queued(1, NAMES[1])
        await asyncio.sleep(deadlocks.PATIENCE_S / 2)
        a.store.deaf = b.store.deaf = True
        await asyncio.sleep(QUIET_S)
        assert not any(task.done() for task in tasks)
        a.store.deaf = b.store.deaf = False
        await end_well(world, grants, tasks)

    run(test)


class Failing:
    """Fails one call to a store: before it is made, or after it so that nobody learns of it."""

    def __init__(self, point: int, error: type[RingholdError], party: Party):
        self.struck = False
        self._point = point
        self._error = error
        self._party = party
        self._calls = itertools.count()

    def __call__(self, name: str, after: bool) -> None:
        possible = after and name == "commit" if self._error is OutcomeUnknown else not after
        if possible and next(self._calls) == self._point:
            self.struck = True
            self._party.env.end_repeating()
            raise self._error("on purpose")


@pytest.mark.parametrize("error", [StoreUnavailable, OutcomeUnknown])
def test_the_store_fails_at_any_call_that_looks_for_a_circle(
    run: Any, error: type[RingholdError]
) -> None:
    async def test(world: World) -> None:
        parties = await world.two()
        for point in itertools.count():
            grants = [await party.acquire(raw=NAMES[at]) for at, party in enumerate(parties)]
            failing = []
            for party in parties:
                locks: Any = party.locks.current
                store = Meddler(party.real_store)
                failing.append(Failing(point, error, party))
                store.at_call = failing[-1]
                locks.deadlocks._store = store
            tasks = [
                party.start(timeout_s=None, raw=NAMES[1 - at]) for at, party in enumerate(parties)
            ]
            async with asyncio.timeout(10):
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            (victim,) = [task for task in tasks if task.done()]
            assert isinstance(victim.exception(), DeadlockError)
            at = tasks.index(victim)
            await grants[at].release()
            await (await soon(tasks[1 - at])).release()
            await grants[1 - at].release()
            await until_told(parties[0], 0)
            if not any(each.struck for each in failing):
                break
        assert point >= 2

    run(test)

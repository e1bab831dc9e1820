"""Goal: shared and exclusive holders keep out whom they must, and no one else, on every engine.

Method: sessions of several "processes" share, upgrade and downgrade one lock. Random histories
run against a model of a few lines that knows who may be inside with whom; their seeds are fixed.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lock_world import ENGINES, NAME, SOON_S, Party, World, run_in_world, soon

from ringhold.errors import DeadlockError, LockTimeout
from ringhold.locks import claims, inquiry
from ringhold.locks.grant import AsyncGrant


@pytest.fixture(params=ENGINES)
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Any], None]:
    return lambda test: run_in_world(request.param, tmp_path, test)


def test_sharers_of_all_sessions_are_inside_together(run: Any) -> None:
    async def test(world: World) -> None:
        a, b = await world.two()
        grants = [await party.acquire(owner, mode="shared") for party in (a, b) for owner in (1, 2)]
        assert all(grant.mode == "shared" and not grant.token & 1 for grant in grants)
        assert len(await a.locks.inquiries.holders(NAME)) == 4
        for party in (a, b):
            with pytest.raises(LockTimeout):
                await party.acquire(3, 0.05)
            with pytest.raises(LockTimeout):
                await party.acquire(3, 0)
            await a.queued(0)
        writer = b.start(3)
        await b.waiting(1)
        for grant in grants:
            assert not writer.done()
            await grant.release()
        exclusive = await soon(writer)
        assert exclusive.token > max(grant.token for grant in grants)
        for party in (a, b):
            with pytest.raises(LockTimeout):
                await party.acquire(4, 0.05, mode="shared")
        await exclusive.release()
        await world.assert_free()

    run(test)


def test_sharing_again_makes_no_commit(run: Any) -> None:
    async def test(world: World) -> None:
        a, b = await world.two()
        for party in (a, b):
            await (await party.acquire(1, mode="shared")).release()
        before = (await a.state()).revision
        for party in (a, b):
            for owner in (1, 2):
                await (await party.acquire(owner, mode="shared")).release()
        assert (await a.state()).revision == before

    run(test)


def test_a_reader_behind_a_waiting_writer_waits(run: Any) -> None:
    async def test(world: World) -> None:
        a, b = await world.two()
        c = await world.party()
        first = await a.acquire(1, mode="shared")
        writer = b.start(1)
        await a.queued(1)
        readers = [c.start(1, mode="shared")]
        await a.queued(2)
        with pytest.raises(LockTimeout):
            await c.acquire(2, 0, mode="shared")
        await asyncio.sleep(0.1)
        # In the session that shares it, too.
        readers.append(a.start(2, mode="shared"))
        await a.waiting(3)
        assert not readers[0].done()
        await first.release()
        exclusive = await soon(writer)
        assert not any(reader.done() for reader in readers)
        await exclusive.release()
        for reader in readers:
            assert (await soon(reader)).token > exclusive.token
        for reader in readers:
            await reader.result().release()
        await world.assert_free()

    run(test)


def test_one_commit_hands_the_lock_to_all_readers_in_front(run: Any) -> None:
    async def test(world: World) -> None:
        parties = [await world.party() for _ in range(5)]
        holder = await parties[0].acquire()
        waiting = []
        for number, party in enumerate(parties[1:], 1):
            waiting.append(party.start(1, mode="exclusive" if number == 3 else "shared"))
            await party.queued(number)
        await holder.release()
        first, second = [await soon(waiting[number]) for number in (0, 1)]
        assert first.token >> 21 == second.token >> 21 > holder.token >> 21
        assert not waiting[2].done()
        assert not waiting[3].done()
        await first.release()
        assert not waiting[2].done()
        await second.release()
        writer = await soon(waiting[2])
        assert not waiting[3].done()
        await writer.release()
        await (await soon(waiting[3])).release()
        await world.assert_free()

    run(test)


def test_a_session_with_sharers_lets_others_share_and_keeps_its_own(run: Any) -> None:
    async def test(world: World) -> None:
        a, b = await world.two()
        await (await a.acquire(1)).release()
        inside = await a.acquire(1, mode="shared")
        assert [holding.mode.value for holding in (await a.state()).holders] == ["exclusive"]
        other = await b.acquire(1, mode="shared")
        assert [holding.mode.value for holding in (await a.state()).holders] == ["shared", "shared"]
        inside.check()
        writer = b.start(2)
        await b.waiting(1)
        await other.release()
        await asyncio.sleep(0.05)
        assert not writer.done()
        await inside.release()
        assert (await soon(writer)).token > inside.token
        await writer.result().release()
        await world.assert_free()

    run(test)


def test_upgrading_alone_and_downgrading(run: Any) -> None:
    async def test(world: World) -> None:
        a, b = await world.two()
        grant = await a.acquire(1, mode="shared", reentrant=True)
        inner = await a.acquire(1, mode="shared", reentrant=True)
        tokens = [grant.token]
        for _ in range(2):
            tokens.append(await grant.upgrade())
            assert (grant.mode, inner.mode) == ("exclusive", "exclusive")
            assert grant.token == inner.token == tokens[-1]
            assert grant.token & 1
            assert await grant.upgrade() == tokens[-1]
            for party in (a, b):
                with pytest.raises(LockTimeout):
                    await party.acquire(2, 0.03, mode="shared")
            tokens.append(await grant.downgrade())
            assert not grant.token & 1
            assert await grant.downgrade() == grant.token == inner.token == tokens[-1]
            for party in (a, b):
                other = await party.acquire(2, mode="shared")
                await other.release()
        assert tokens == sorted(tokens)
        await grant.release()
        inner.check()
        with pytest.raises(LockTimeout):
            await b.acquire(2, 0)
        await inner.release()
        await world.assert_free()

    run(test)


def test_downgrading_lets_in_who_waits_to_share(run: Any) -> None:
    async def test(world: World) -> None:
        a, b = await world.two()
        grant = await a.acquire(1)
        before = grant.token
        readers = [b.start(1, mode="shared"), a.start(2, mode="shared")]
        await a.waiting(2)
        assert await grant.downgrade() > before
        for reader in readers:
            assert (await soon(reader)).token > before
        grant.check()
        for reader in readers:
            await reader.result().release()
        await grant.release()
        await world.assert_free()

    run(test)


def test_an_upgrade_waits_for_sharers_only(run: Any) -> None:
    async def test(world: World) -> None:
        a, b = await world.two()
        c = await world.party()
        upgrading = await a.acquire(1, mode="shared")
        sharers = [await a.acquire(2, mode="shared"), await b.acquire(1, mode="shared")]
        writer = c.start(1)
        await a.queued(1)
        upgrade = asyncio.create_task(upgrading.upgrade())
        await a.waiting(2)
        for sharer in sharers:
            await asyncio.sleep(0.03)
            assert not upgrade.done()
            await sharer.release()
        async with asyncio.timeout(SOON_S):
            token = await upgrade
        assert not writer.done()
        assert token == upgrading.token
        assert token > max(sharer.token for sharer in sharers)
        await upgrading.release()
        assert (await soon(writer)).token > token
        await writer.result().release()
        await world.assert_free()

    run(test)


@pytest.mark.parametrize("across", [False, True])
def test_of_two_upgrades_one_is_refused(run: Any, across: bool) -> None:
    async def test(world: World) -> None:
        a, b = await world.two()
        first = await a.acquire(1, mode="shared")
        second = await (b if across else a).acquire(2, mode="shared")
        upgrade = asyncio.create_task(first.upgrade())
        await a.waiting(1)
        if across:
            await a.queued(1)
        with pytest.raises(DeadlockError) as caught:
            await second.upgrade(timeout=SOON_S)
        assert caught.value.name == "name"
        assert second.mode == "shared"
        second.check()
        assert not upgrade.done()
        await second.release()
        async with asyncio.timeout(SOON_S):
            assert await upgrade > second.token
        await first.release()
        await world.assert_free()

    run(test)


def test_the_only_sharer_is_upgraded_without_waiting(run: Any) -> None:
    async def test(world: World) -> None:
        a = await world.party()
        grant = await a.acquire(mode="shared")
        before = grant.token
        assert await grant.upgrade(timeout=0) > before
        await grant.release()
        await world.assert_free()

    run(test)


def test_giving_up_an_upgrade_leaves_the_lock_shared(run: Any) -> None:
    async def test(world: World) -> None:
        a, b = await world.two()
        grant = await a.acquire(1, mode="shared")
        other = await b.acquire(1, mode="shared")
        before = grant.token
        for timeout_s in (0.0, 0.05):
            with pytest.raises(LockTimeout):
                await grant.upgrade(timeout=timeout_s)
        task = asyncio.create_task(grant.upgrade())
        await a.queued(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (grant.mode, grant.token) == ("shared", before)
        await a.queued(0)
        await (await b.acquire(2, mode="shared")).release()
        await other.release()
        assert await grant.upgrade(timeout=SOON_S) > before
        await grant.release()
        await world.assert_free()

    run(test)


@pytest.mark.parametrize("end", ["timeout", "death"])
@pytest.mark.parametrize("here", [False, True])
def test_newcomers_share_again_when_the_waiting_writer_has_gone(
    run: Any, here: bool, end: str
) -> None:
    async def test(world: World) -> None:
        a, b = await world.two()
        sharer = await a.acquire(1, mode="shared")
        writer = a.start(2) if here else b.start(2)
        await a.waiting(1)
        if not here:
            await a.asked()
        newcomer = a.start(3, mode="shared")
        await a.waiting(2)
        if end == "timeout" or here:
            writer.cancel()
        else:
            await b.die()
            b.store.deaf = True
            writer.cancel()
        assert (await soon(newcomer)).mode == "shared"
        sharer.check()
        with pytest.raises(asyncio.CancelledError):
            await writer
        b.store.deaf = False
        await newcomer.result().release()
        await sharer.release()
        await world.assert_free()

    run(test)


def test_a_writer_here_who_gives_up_leaves_the_sharers_alone(run: Any) -> None:
    """It makes the session give up its share for it, and is gone when that is done."""

    async def test(world: World) -> None:
        a, b = await world.two()
        await (await a.acquire(1, mode="shared")).release()
        other = await b.acquire(1, mode="shared")
        assert len((await a.state()).holders) == 2
        for steps in range(12):
            sharer = await a.acquire(1, mode="shared")
            writer = a.start(2)
            await a.waiting(1)
            reader = a.start(3, mode="shared")
            await a.waiting(2)
            await sharer.release()
            for _ in range(steps):
                await asyncio.sleep(0)
            assert not writer.done()
            writer.cancel()
            with pytest.raises(asyncio.CancelledError):
                await writer
            await (await soon(reader)).release()
        other.check()
        await other.release()
        await world.assert_free()

    run(test)


class Model:
    """Who is inside, and the largest exclusive token so far."""

    def __init__(self) -> None:
        self.inside: dict[int, AsyncGrant] = {}
        self.exclusive = 0
        self.any = 0
        self.seen: set[int] = set()

    def enter(self, who: int, grant: AsyncGrant) -> None:
        """Also after an upgrade or downgrade."""
        others = [other for one, other in self.inside.items() if one != who]
        grant.check()
        assert bool(grant.token & 1) is (grant.mode == "exclusive")
        assert all(grant.mode == other.mode == "shared" for other in others)
        if grant.mode == "exclusive":
            assert grant.token > self.any
            assert grant.token not in self.seen
            self.exclusive = grant.token
        else:
            assert grant.token > self.exclusive
        self.seen.add(grant.token)
        self.any = max(self.any, grant.token)
        self.inside[who] = grant

    def leave(self, who: int) -> AsyncGrant:
        return self.inside.pop(who)


async def wander(party: Party, who: int, model: Model, seed: int, steps: int) -> int:
    """One owner's random history; how often it was inside."""
    choose = random.Random(seed)
    times = 0
    for _ in range(steps):
        mode = choose.choice(["exclusive", "shared", "shared"])
        timeout_s = choose.choice([0, 0.002, None, None])
        try:
            grant = await party.acquire(who, timeout_s, mode=mode)
        except LockTimeout:
            continue
        model.enter(who, grant)
        times += 1
        for _ in range(choose.choice([0, 0, 1, 2])):
            await asyncio.sleep(choose.choice([0, 0, 0.001]))
            if grant.mode == "exclusive":
                # The model hears of it first: others may come in before this task goes on.
                model.leave(who)
                await grant.downgrade()
            else:
                try:
                    await grant.upgrade(timeout=choose.choice([0.002, 0.5]))
                except (LockTimeout, DeadlockError):
                    continue
            model.enter(who, grant)
        await model.leave(who).release()
    return times


@pytest.mark.parametrize(
    ("seed", "parties_max"), [(0, 30), (1, 30), (2, 30), (3, 30), (4, 1), (5, 1)]
)
def test_random_histories(
    run: Any, monkeypatch: pytest.MonkeyPatch, seed: int, parties_max: int
) -> None:
    """Also with so few sessions to a commit that every telling of several takes more than one."""
    for module in (claims, inquiry):
        monkeypatch.setattr(module, "PARTIES_MAX", parties_max)

    async def test(world: World) -> None:
        parties = [await world.party() for _ in range(3)]
        model = Model()
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(wander(parties[who % 3], who, model, 100 * seed + who, 12))
                for who in range(1, 7)
            ]
        assert sum(task.result() for task in tasks) > 20
        await world.assert_free()

    run(test)


def test_a_sharer_who_comes_between_the_look_and_the_taking_keeps_the_writer_out(run: Any) -> None:
    async def test(world: World) -> None:
        holder, writer, reader = [await world.party() for _ in range(3)]
        await holder.acquire()
        inside: list[AsyncGrant] = []
        looked = False

        async def meddle(call: str, after: bool) -> None:
            nonlocal looked
            if call == "snapshot" and not after and not looked:
                # The writer has found the lock taken; when it looks, it is free.
                looked = True
                await holder.die()
            elif call == "commit" and not after and looked and not inside:
                inside.append(await reader.acquire(mode="shared"))

        writer.store.at_call = meddle
        writing = writer.start(timeout_s=None)
        await writer.queued(1)
        assert len(inside) == 1
        assert not writing.done()
        inside[0].check()
        await inside[0].release()
        await (await soon(writing)).release()
        assert (await writer.state()).queue == []

    run(test)

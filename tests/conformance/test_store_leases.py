"""Goal: a lease ends by time only after its holder could have renewed it, and `lease_until` never
promises more than that.

Method: the same statements on every engine, with a clock that the test moves; a store that nobody
writes stands for one that nobody can write.
"""

from __future__ import annotations

import random
import threading

import pytest
from store_engines import CLOCKED, World, get, lease_id, on, put

from ringhold.errors import Closed, InvalidInput, SessionExpired

pytestmark = pytest.mark.parametrize("engine", CLOCKED)

LEASE = lease_id(1)
S = 10**9


def test_after_a_gap_every_lease_has_its_whole_ttl_again(engine: str) -> None:
    async def test(world: World) -> None:
        await world.store.grant_lease(LEASE, 10.0)
        await world.store.grant_lease(lease_id(2), 30.0)
        await put(world.store, b"a", lease=LEASE)
        await put(world.store, b"b", lease=lease_id(2))
        world.env.hands.move(3600.0)
        # The very commit that would have ended them, whoever makes it.
        await put(world.store, b"c")
        await world.wait(9.8)
        assert await get(world.store, b"a") is not None
        await world.wait(0.4)
        assert await get(world.store, b"a") is None
        await world.wait(19.0)
        assert await get(world.store, b"b") is not None
        await world.wait(1.0)
        assert await get(world.store, b"b") is None

    on(engine, test)


def test_the_shortest_lease_says_what_a_gap_is(engine: str) -> None:
    async def test(world: World) -> None:
        await world.store.grant_lease(LEASE, 10.0)
        await put(world.store, b"a", lease=LEASE)
        await world.wait(6.0)
        await put(world.store, b"b")
        world.env.hands.move(5.0)
        await put(world.store, b"c")
        assert await get(world.store, b"a") is None, "half a TTL is no gap"
        await world.store.grant_lease(lease_id(2), 10.0)
        await put(world.store, b"a", lease=lease_id(2))
        await world.wait(6.0)
        await world.store.grant_lease(lease_id(3), 4.0)  # A commit itself.
        world.env.hands.move(2.1)
        await put(world.store, b"c")
        await world.wait(9.8)
        assert await get(world.store, b"a") is not None
        await world.wait(0.4)
        assert await get(world.store, b"a") is None

    on(engine, test)


def test_whoever_waits_lets_leases_run_out_though_nobody_else_writes(engine: str) -> None:
    async def test(world: World) -> None:
        waiter = await world.another()
        await world.store.grant_lease(LEASE, 2.0)
        await put(world.store, b"a", lease=LEASE)
        revision = await put(world.store, b"b")
        for _ in range(43):
            assert await get(waiter, b"a") is not None or world.env.hands.now_ns >= 10**18 + 2 * S
            world.env.hands.move(0.05)
            await waiter.expire_leases()
        assert await get(waiter, b"a") is None
        # One revision, that of the keys: letting time pass makes none.
        assert await put(waiter, b"c") == revision + 2

    on(engine, test)


def test_a_lease_is_certain_until_its_deadline(engine: str) -> None:
    async def test(world: World) -> None:
        now_ns = world.env.hands.now_ns
        assert world.store.lease_until(LEASE) is None
        await world.store.grant_lease(LEASE, 10.0)
        assert world.store.lease_until(LEASE) == now_ns + 10 * S
        await world.wait(4.0)
        assert world.store.lease_until(LEASE) == now_ns + 10 * S
        await world.store.renew_lease(LEASE)
        assert world.store.lease_until(LEASE) == now_ns + 14 * S
        await world.store.revoke_lease(LEASE)
        assert world.store.lease_until(LEASE) is None

    on(engine, test)


def test_a_lease_is_certain_beyond_its_deadline_while_nobody_can_write(engine: str) -> None:
    async def test(world: World) -> None:
        await world.store.grant_lease(LEASE, 10.0)
        await put(world.store, b"a", lease=LEASE)
        for _ in range(100):
            world.env.hands.move(1.0)
            until_ns = world.store.lease_until(LEASE)
            assert until_ns is not None
            assert until_ns > world.env.hands.now_ns
        # What was promised is kept by the commit that ends the gap, and by those after it.
        await put(world.store, b"b")
        while world.env.hands.now_ns + S < until_ns:
            world.env.hands.move(1.0)
            await put(world.store, b"b")
            assert await get(world.store, b"a") is not None

    on(engine, test)


@pytest.mark.parametrize("seed", range(6))
def test_what_lease_until_says_holds_whatever_is_committed_when(engine: str, seed: int) -> None:
    order = random.Random(seed)

    async def test(world: World) -> None:
        await world.store.grant_lease(LEASE, 4.0)
        promised_ns = 0
        for number in range(300):
            world.env.hands.move(order.choice([0.1, 0.3, 0.5, 0.9, 1.7, 2.5, 6.0]))
            until_ns = world.store.lease_until(LEASE)
            assert until_ns is not None or world.env.hands.now_ns >= promised_ns
            if until_ns is None:
                await world.store.grant_lease(lease_id(100 + number), 4.0)
                break
            promised_ns = max(promised_ns, until_ns)
            match order.randrange(5):
                case 0:
                    await put(world.store, b"a")
                case 1:
                    await world.store.expire_leases()
                case 2:
                    other = lease_id(1000 + number)
                    await world.store.grant_lease(other, order.choice([0.5, 1.0, 2.0, 60.0]))
                    if order.random() < 0.5:
                        await world.store.revoke_lease(other)

    on(engine, test)


def test_lease_until_may_be_asked_from_any_thread(engine: str) -> None:
    async def test(world: World) -> None:
        await world.store.grant_lease(LEASE, 10.0)
        expected = world.env.hands.now_ns + 10 * S
        wrong: list[object] = []

        def ask() -> None:
            try:
                wrong.extend(
                    until_ns
                    for until_ns in (world.store.lease_until(LEASE) for _ in range(200))
                    if until_ns != expected
                )
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            await put(world.store, b"a")
        for thread in threads:
            thread.join()
        assert wrong == []

    on(engine, test)


def test_lease_until_of_what_cannot_be_asked(engine: str) -> None:
    async def test(world: World) -> None:
        with pytest.raises(InvalidInput):
            world.store.lease_until(b"short")
        with pytest.raises(TypeError):
            world.store.lease_until("x" * 12)  # type: ignore[arg-type]
        await world.store.grant_lease(LEASE, 10.0)
        await world.wait(10.2)
        assert world.store.lease_until(LEASE) is None
        with pytest.raises(SessionExpired):
            await world.store.renew_lease(LEASE)
        await world.store.close()
        with pytest.raises(Closed):
            world.store.lease_until(LEASE)

    on(engine, test)

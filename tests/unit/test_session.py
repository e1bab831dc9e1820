"""Goal: a session is never revived, never reused, and known to be over before the store ends it.

Method: a real memory store behind a double that delays or fails renewals; the boot clock is the
test's own.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from ringhold.env import RealClock, RealEnv
from ringhold.errors import Closed, InvalidInput, SessionExpired, StoreUnavailable
from ringhold.locks import session as session_module
from ringhold.locks.session import Session, SessionState, decode_record
from ringhold.store.base import Store
from ringhold.store.keyspace import session_key
from ringhold.store.memory import open_memory_store

_names = itertools.count()


class Clock(RealClock):
    def __init__(self) -> None:
        self.now_ns = 10**18

    def boottime_ns(self) -> int:
        return self.now_ns


class Env(RealEnv):
    """The boot clock moves by what is slept, and by what the test says."""

    def __init__(self) -> None:
        super().__init__()
        self.clock: Clock = Clock()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)
        self.clock.now_ns += int(seconds * 1e9)


class Store2:
    """A store whose renewals the test watches, delays or refuses."""

    def __init__(self, store: Store):
        self._store = store
        self.renewals: list[int] = []
        self.before_renewal: Callable[[], Awaitable[None]] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def renew_lease(self, lease: bytes) -> None:
        self.renewals.append(1)
        if self.before_renewal is not None:
            await self.before_renewal()
        await self._store.renew_lease(lease)


def run(test: Callable[[Env, Any], Awaitable[None]]) -> None:
    async def main() -> None:
        env = Env()
        store = Store2(await open_memory_store(f"s{next(_names)}", env, create=True))
        await test(env, store)
        await store.close()

    asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


def test_opened_once_and_told_in_the_store() -> None:
    async def test(env: Env, store: Any) -> None:
        session = Session(store, env)
        assert session.current is None
        states = await asyncio.gather(*(session.ensure() for _ in range(5)))
        assert len({id(state) for state in states}) == 1
        state = states[0]
        assert len(state.id) == 12
        snapshot = await store.snapshot()
        entry = await snapshot.get(session_key(state.id))
        assert entry is not None
        assert entry.created == state.born.revision
        assert decode_record(entry.value).pid > 0
        await session.close()
        snapshot = await store.snapshot()
        assert await snapshot.get(session_key(state.id)) is None
        with pytest.raises(Closed):
            await session.ensure()

    run(test)


def test_renewed_for_as_long_as_it_is_open() -> None:
    async def test(env: Env, store: Any) -> None:
        session = Session(store, env, ttl_s=10)
        state = await session.ensure()
        start_ns = env.clock.now_ns
        await until(lambda: env.clock.now_ns - start_ns > 100e9)
        assert not state.expired
        assert await session.ensure() is state
        # Every quarter of the TTL; sleepers side by side each move the clock, hence fewer.
        assert 25 <= len(store.renewals) <= 45
        await session.close()

    run(test)


def test_the_deadline_counts_from_the_sending() -> None:
    async def test(env: Env, store: Any) -> None:
        async def slow() -> None:
            env.clock.now_ns += int(3e9)

        session = Session(store, env, ttl_s=10)
        state = await session.ensure()
        store.before_renewal = slow
        sent_ns = env.clock.now_ns + int(2.5e9)
        before_ns = state.deadline_ns
        await until(lambda: state.deadline_ns != before_ns)
        # 10 s after it was sent, less the margin of 5 %; the 3 s it took do not count.
        assert abs(state.deadline_ns - (sent_ns + int(9.5e9))) < 1e9
        store.before_renewal = None
        await session.close()

    run(test)


def test_a_renewal_that_comes_back_too_late_revives_nothing() -> None:
    async def test(env: Env, store: Any) -> None:
        async def too_slow() -> None:
            env.clock.now_ns += int(9.6e9 - 2.5e9)

        session = Session(store, env, ttl_s=10)
        state = await session.ensure()
        lost: list[str] = []
        state.on_loss("a", lambda: lost.append("a"))
        state.on_loss("b", lambda: lost.append("b"))
        state.forget("b")
        store.before_renewal = too_slow
        await until(lambda: bool(lost))
        assert lost == ["a"]
        assert state.expired
        with pytest.raises(SessionExpired) as caught:
            state.check()
        assert caught.value.session == state.id
        assert session.current is None
        store.before_renewal = None
        other = await session.ensure()
        assert other.id != state.id
        await until(lambda: len(store.renewals) > 3)
        assert state.expired
        await session.close()

    run(test)


def test_what_another_thread_was_told_stays_true() -> None:
    """The clock is asked once beyond the deadline; the renewal in flight must not take it back."""

    async def test(env: Env, store: Any) -> None:
        session = Session(store, env, ttl_s=10)
        state = await session.ensure()
        now_ns = env.clock.now_ns
        env.clock.now_ns = state.deadline_ns
        assert await asyncio.to_thread(lambda: state.expired)
        env.clock.now_ns = now_ns
        state.renewed(now_ns)
        assert state.expired
        await session.close()

    run(test)


def test_failing_renewals_are_repeated_until_the_deadline() -> None:
    async def test(env: Env, store: Any) -> None:
        failures = 0

        async def fail() -> None:
            nonlocal failures
            failures += 1
            if failures <= 5:
                raise StoreUnavailable("not now")

        session = Session(store, env, ttl_s=10)
        state = await session.ensure()
        store.before_renewal = fail
        await until(lambda: failures > 6)
        assert not state.expired
        failures = -1_000_000
        await until(lambda: state.expired)
        await session.close()

    run(test)


def test_a_session_that_is_given_up_is_ended_in_the_store() -> None:
    async def test(env: Env, store: Any) -> None:
        session = Session(store, env)
        state = await session.ensure()
        state.lose()
        assert state.expired
        snapshot = await store.snapshot()
        async with asyncio.timeout(10):
            while await snapshot.get(session_key(state.id)) is not None:
                await asyncio.sleep(0)
                snapshot = await store.snapshot()
        await session.close()

    run(test)


def test_ids_are_counted_and_a_full_counter_opens_a_new_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session_module, "COUNTER_END", 3)

    async def test(env: Env, store: Any) -> None:
        session = Session(store, env)
        state = await session.ensure()
        ids = [state.next_id() for _ in range(3)]
        assert ids == [state.id + number.to_bytes(4, "big") for number in range(3)]
        with pytest.raises(SessionExpired):
            state.next_id()
        other = await session.ensure()
        assert other.id != state.id
        # What hangs on the full one stays valid.
        start_ns = env.clock.now_ns
        await until(lambda: env.clock.now_ns - start_ns > 30e9)
        assert not state.expired
        await session.close()
        assert state.expired

    run(test)


def test_cancelled_while_opening() -> None:
    async def test(env: Env, store: Any) -> None:
        for steps in range(12):
            session = Session(store, env)
            task = asyncio.create_task(session.ensure())
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            state: SessionState = await session.ensure()
            state.check()
            await session.close()
        snapshot = await store.snapshot()
        assert await snapshot.range(b"S", b"T") == []

    run(test)


@pytest.mark.parametrize("ttl_s", [0, -1, 0.5, 1e9, float("nan"), float("inf")])
def test_refuses_a_ttl_that_cannot_be_kept(ttl_s: float) -> None:
    async def test(env: Env, store: Any) -> None:
        with pytest.raises(InvalidInput):
            Session(store, env, ttl_s=ttl_s)

    run(test)

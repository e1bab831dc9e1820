"""Goal: a session is never revived, never reused, and known to be over before the store ends it.

Method: a real memory store behind a double that delays or fails renewals and says what the
test wants of a lease; the boot clock is the test's own.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from ringhold.env import RealClock, RealEnv
from ringhold.errors import Closed, Corrupt, InvalidInput, SessionExpired, StoreUnavailable
from ringhold.locks import session as session_module
from ringhold.locks.session import Phase, Session, SessionState, decode_record
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
        self.until: Callable[[bytes], int | None] = store.lease_until

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def lease_until(self, lease: bytes) -> int | None:
        return self.until(lease)

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

        store.until = lambda _: None
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
        store.until = lambda _: None
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


# -- suspended


async def never() -> None:
    await asyncio.Event().wait()


def test_active_suspended_and_active_again() -> None:
    async def test(env: Env, store: Any) -> None:
        failing = True

        async def fail() -> None:
            if failing:
                raise StoreUnavailable("not now")

        session = Session(store, env, ttl_s=10)
        state = await session.ensure()
        assert (state.state, state.ttl_s) == (Phase.ACTIVE, 10.0)
        assert state.fresh_until_ns == env.clock.now_ns + int(5e9)
        store.before_renewal = fail
        await until(lambda: state.fresh_until_ns == 0)
        assert state.state is Phase.SUSPENDED
        state.check()
        assert await session.ensure() is state
        failing = False
        await until(lambda: state.state is Phase.ACTIVE)
        assert env.clock.now_ns < state.fresh_until_ns < state.deadline_ns
        state.lose()
        assert state.fresh_until_ns == 0
        assert str(state.state) == "expired"
        await session.close()

    run(test)


@pytest.mark.parametrize("ttl_s", [1, 2, 10, 60])
def test_nothing_is_fresh_within_the_margin_of_the_deadline(ttl_s: float) -> None:
    async def test(env: Env, store: Any) -> None:
        session = Session(store, env, ttl_s=ttl_s)
        state = await session.ensure()
        opened_ns = env.clock.now_ns
        margin_ns = opened_ns + int(ttl_s * 1e9) - state.deadline_ns
        assert margin_ns >= 250e6
        assert state.fresh_until_ns <= state.deadline_ns - margin_ns
        # Nobody answered, and nobody failed: overdue is enough.
        env.clock.now_ns = state.fresh_until_ns
        assert state.state is Phase.SUSPENDED
        await session.close()

    run(test)


def test_a_loss_in_another_thread_is_not_made_fresh_again_by_a_renewal() -> None:
    """The renewal finds the session alive, and before it is done another thread finds it lost."""

    async def test(env: Env, store: Any) -> None:
        session = Session(store, env, ttl_s=10)
        state = await session.ensure()
        boottime_ns, calls = env.clock.boottime_ns, 0

        def lost_meanwhile() -> int:
            nonlocal calls
            calls += 1
            if calls == 2:
                state.lose()
            return boottime_ns()

        env.clock.boottime_ns = lost_meanwhile  # type: ignore[method-assign]
        state.renewed(env.clock.now_ns)
        assert calls >= 2
        assert (state.fresh_until_ns, state.expired) == (0, True)
        await session.close()

    run(test)


# -- a store that cannot be written


@pytest.mark.parametrize("refusing", [False, True])
def test_who_asked_in_time_lives_on_for_as_long_as_the_store_says(refusing: bool) -> None:
    async def test(env: Env, store: Any) -> None:
        going_on = asyncio.Event()

        async def stuck() -> None:
            if refusing and not going_on.is_set():
                raise StoreUnavailable("the disk is full")
            await going_on.wait()

        session = Session(store, env, ttl_s=10)
        state = await session.ensure()
        first_ns = state.deadline_ns
        asked: list[int] = []

        def lease_until(lease: bytes) -> int:
            assert lease == state.id
            asked.append(env.clock.now_ns)
            return env.clock.now_ns + 1

        store.before_renewal = stuck
        store.until = lease_until
        await until(lambda: env.clock.now_ns > first_ns + int(60e9))
        assert asked[0] >= first_ns
        # Looked at all the while, though nobody else wanted to know: each of the two sleepers
        # moves the clock.
        assert len(asked) > 100
        assert state.state is Phase.SUSPENDED
        state.check()
        # Once it can answer, it is renewed as ever; the memory store knows of no gap.
        store.until = store._store.lease_until
        await store._store.revoke_lease(state.id)
        await store._store.grant_lease(state.id, 10.0)
        going_on.set()
        await until(lambda: state.state is Phase.ACTIVE)
        assert state.deadline_ns > env.clock.now_ns
        await session.close()

    run(test)


@pytest.mark.parametrize("answer", ["gone", "past", "error"])
def test_what_the_store_has_ended_is_expired_for_ever(answer: str) -> None:
    async def test(env: Env, store: Any) -> None:
        def lease_until(lease: bytes) -> int | None:
            if answer == "error":
                raise StoreUnavailable("cannot be read either")
            return None if answer == "gone" else env.clock.now_ns

        session = Session(store, env, ttl_s=10)
        state = await session.ensure()
        store.before_renewal = never
        store.until = lease_until
        await until(lambda: env.clock.now_ns >= state.deadline_ns)
        assert state.expired
        store.until = lambda _: env.clock.now_ns + int(1e9)
        assert state.expired
        await session.close()

    run(test)


def test_who_did_not_ask_in_time_is_held_to_the_deadline() -> None:
    async def test(env: Env, store: Any) -> None:
        session = Session(store, env, ttl_s=10)
        state = await session.ensure()
        store.until = lambda _: env.clock.now_ns + int(1e9)
        env.clock.now_ns = state.deadline_ns
        assert state.expired
        await session.close()

    run(test)


def test_a_renewal_that_failed_for_another_reason_does_not_count() -> None:
    async def test(env: Env, store: Any) -> None:
        async def damaged() -> None:
            raise Corrupt("a damaged record")

        session = Session(store, env, ttl_s=10)
        state = await session.ensure()
        store.until = lambda _: env.clock.now_ns + int(1e9)
        store.before_renewal = damaged
        await until(lambda: state.fresh_until_ns == 0)
        env.clock.now_ns = state.deadline_ns
        assert state.expired
        await session.close()

    run(test)


def test_who_stood_still_for_a_ttl_has_lost_it_even_if_a_renewal_was_under_way() -> None:
    async def test(env: Env, store: Any) -> None:
        session = Session(store, env, ttl_s=10)
        state = await session.ensure()
        store.until = lambda _: env.clock.now_ns + int(1e9)
        store.before_renewal = never
        await until(lambda: env.clock.now_ns >= state.deadline_ns)
        assert not state.expired
        env.clock.now_ns += int(9e9)
        assert not state.expired
        env.clock.now_ns += int(1e9)
        assert state.expired
        await session.close()

    run(test)


# -- a loop that stands still


def test_a_loop_that_stood_still_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    async def test(env: Env, store: Any) -> None:
        session = Session(store, env, ttl_s=10)
        state = await session.ensure()
        start_ns = env.clock.now_ns
        await until(lambda: env.clock.now_ns > start_ns + int(3e9))
        assert caplog.records == []
        env.clock.now_ns += int(5.9e9)
        await until(lambda: bool(caplog.records))
        await until(lambda: state.state is Phase.ACTIVE)
        start_ns = env.clock.now_ns
        await until(lambda: env.clock.now_ns > start_ns + int(20e9))
        await session.close()

    with caplog.at_level(logging.WARNING, "ringhold"):
        run(test)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    message = record.getMessage()
    assert "stood still for 5." in message or "stood still for 6." in message
    assert "after 10 s the session is lost" in message


def test_whoever_comes_after_the_loss_was_told_is_told_at_once() -> None:
    async def test(env: Env, store: Any) -> None:
        session = Session(store, env, ttl_s=10)
        state = await session.ensure()
        state.lose()
        told: list[str] = []
        state.on_loss("early", lambda: told.append("early"))
        await until(lambda: told == ["early"])
        state.on_loss("late", lambda: told.append("late"))
        assert told == ["early", "late"]
        await session.close()

    run(test)

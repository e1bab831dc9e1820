"""Goal: whatever becomes of one member of three, a store on etcd goes on within seconds and without
an error; without a quorum it says so in a bounded time, and goes on when there is one again.

Method: three members of Debian's etcd that are killed, stopped and moved from, under tasks that
increment a counter and a watch that follows it. Each fault is first looked at from outside.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager

import pytest
from etcd_servers import Etcd, Member, etcd
from etcd_stores import (
    LEASE,
    FirstEndpoint,
    entry,
    failure,
    fresh_name,
    increment,
    run,
    snapshot_of,
    store_at,
    until,
    until_works,
    value,
)

from ringhold.errors import OutcomeUnknown, RingholdError, StoreUnavailable
from ringhold.store.base import Changes, Put
from ringhold.store.etcd.store import EtcdStore

pytestmark = pytest.mark.system

COUNTER = b"a counter"
TASKS = 3
WITHIN_S = 7.0
"""ATTEMPT_S, an election, and what a busy machine adds."""


@pytest.fixture(scope="module")
def members() -> Iterator[Etcd]:
    with etcd("debian", members=3) as server:
        yield server


@pytest.fixture
def server(members: Etcd) -> Iterator[Etcd]:
    """All of it is well before and after each test."""
    members.wait_ready()
    yield members
    for member in members.members:
        if member.stopped:
            member.cont()
        if not member.alive:
            member.start()
    members.wait_ready()


class Load:
    """Tasks that increment COUNTER, renew a lease, and watch, until told to end."""

    def __init__(self, store: EtcdStore):
        self.store = store
        self.revisions: list[int] = []
        self.seen: list[Changes] = []
        self.renewals = 0
        self.longest_s = 0.0
        self.ending = False

    async def count(self) -> None:
        last = time.monotonic()
        while not self.ending:
            revision = await increment(self.store, COUNTER)
            if revision is not None:
                self.revisions.append(revision)
                now = time.monotonic()
                self.longest_s, last = max(self.longest_s, now - last), now

    async def renew(self) -> None:
        while not self.ending:
            try:
                await self.store.renew_lease(LEASE)
                self.renewals += 1
            except StoreUnavailable:
                pass
            await asyncio.sleep(0.1)

    async def follow(self) -> None:
        async with aclosing(self.store.watch(COUNTER, 1)) as watch:  # type: ignore[type-var]
            async for changes in watch:
                self.seen.append(changes)
                if changes.events[0].value == b"end":
                    return

    async def progress(self, count: int = 5) -> None:
        """Until everybody came a step further."""
        revisions, renewals = len(self.revisions) + count, self.renewals + 1
        await until(
            lambda: len(self.revisions) >= revisions and self.renewals >= renewals,
            "progress",
        )


@asynccontextmanager
async def load(server: Etcd, endpoints: list[str] | None = None) -> AsyncIterator[Load]:
    """What came of it is looked at in the end."""
    url = server.url(fresh_name(), endpoints=endpoints)
    async with store_at(url, timeout_s=20, env=FirstEndpoint()) as store:
        await store.grant_lease(LEASE, 15)
        await store.commit(puts=[Put(b"leased", b"", LEASE)])
        under = Load(store)
        async with asyncio.TaskGroup() as tasks:
            following = tasks.create_task(under.follow())
            tasks.create_task(under.renew())
            counting = [tasks.create_task(under.count()) for _ in range(TASKS)]
            await under.progress()
            yield under
            await under.progress()
            under.ending = True
            await asyncio.wait(counting)
            assert await value(store, COUNTER) == b"%d" % len(under.revisions)
            last = await store.commit(puts=[Put(COUNTER, b"end")])
            await asyncio.wait_for(following, WITHIN_S)
        assert [changes.revision for changes in under.seen] == [*sorted(under.revisions), last]
        assert await entry(store, b"leased") is not None


def rotated(server: Etcd, first: Member) -> list[str]:
    """The endpoints, beginning with that of `first`."""
    place = server.members.index(first)
    return server.endpoints[place:] + server.endpoints[:place]


def silent(server: Etcd, member: Member) -> bool:
    try:
        server.status(member, timeout_s=0.3)
    except OSError:
        return True
    return False


@pytest.mark.parametrize("which", ["leader", "follower"])
@pytest.mark.parametrize("fault", ["stop", "kill"])
def test_the_member_that_is_talked_to_fails(server: Etcd, which: str, fault: str) -> None:
    async def main() -> None:
        member = server.leader() if which == "leader" else server.followers()[0]
        async with load(server, rotated(server, member)) as under:
            getattr(member, fault)()
            assert silent(server, member)
            await under.progress()
            assert under.longest_s < WITHIN_S

    run(main)


def test_the_leader_moves(server: Etcd) -> None:
    async def main() -> None:
        async with load(server) as under:
            for _ in range(3):
                old = server.leader()
                assert await asyncio.to_thread(server.move_leader) is not old
                await under.progress()
            assert under.longest_s < WITHIN_S

    run(main)


def test_members_are_killed_and_stopped_in_turn(server: Etcd) -> None:
    async def main() -> None:
        async with load(server) as under:
            for turn, member in enumerate(server.members):
                for fault, mend in ((member.stop, member.cont), (member.kill, member.start)):
                    fault()
                    await under.progress()
                    mend()
                    await asyncio.to_thread(server.wait_ready)
                assert under.longest_s < 2 * WITHIN_S, turn

    run(main)


TIMEOUT_S = 2.0
Operation = Callable[[EtcdStore], Awaitable[object]]
READS: list[Operation] = [
    snapshot_of,
    lambda store: store.grant_lease(LEASE[::-1], 5),
    lambda store: store.renew_lease(LEASE),
]


async def bounded(awaitable: Awaitable[object]) -> BaseException:
    started = time.monotonic()
    error = await failure(awaitable)
    assert time.monotonic() - started < TIMEOUT_S + 3
    return error


@pytest.mark.parametrize("fault", ["stop", "kill"])
def test_without_a_quorum_and_with_one_again(server: Etcd, fault: str) -> None:
    async def main() -> None:
        left = server.leader()
        lost = [member for member in server.members if member is not left]
        nonce = b"of a commit without a quorum"
        async with store_at(server.url(fresh_name()), timeout_s=TIMEOUT_S) as store:
            before = await store.commit(puts=[Put(b"k", b"0")])
            await store.grant_lease(LEASE, 60)
            watch = asyncio.ensure_future(anext(store.watch(b"k", before + 1)))
            for member in lost:
                getattr(member, fault)()
            await until(lambda: not server.status(left).get("leader"), "a member without leader")
            error = await bounded(store.commit(puts=[Put(b"k", b"1")], nonce=nonce))
            assert isinstance(error, (StoreUnavailable, OutcomeUnknown))
            for operation in READS:
                error = await bounded(operation(store))
                assert isinstance(error, StoreUnavailable)
                assert error.retryable
            # What only one member has to know is still told.
            assert not watch.done()
            if fault == "stop":
                lost[0].cont()
            else:
                lost[0].start()
            started = time.monotonic()

            async def again() -> int:
                try:
                    return await store.commit(puts=[Put(b"k", b"1")], nonce=nonce)
                except OutcomeUnknown as unknown:
                    raise StoreUnavailable from unknown

            revision = await until_works(again)
            assert time.monotonic() - started < 10
            await store.renew_lease(LEASE)
            found = await entry(store, b"k")
            assert found is not None
            assert (found.value, found.revision) == (b"1", revision)
            assert (await asyncio.wait_for(watch, 10)).revision == revision > before

    run(main)


def test_opening_and_closing_without_a_quorum(server: Etcd) -> None:
    async def main() -> None:
        url = server.url(fresh_name())
        async with store_at(url, timeout_s=TIMEOUT_S) as store:
            await store.commit(puts=[Put(b"k", b"0")])
            for member in server.followers():
                member.stop()
            for create in (True, False):
                error = await bounded(open_and_close(url, create))
                assert isinstance(error, StoreUnavailable)
                assert error.retryable
            started = time.monotonic()
            await store.close()
            assert time.monotonic() - started < 5

    run(main)


async def open_and_close(url: str, create: bool) -> None:
    async with store_at(url, create=create, timeout_s=TIMEOUT_S):
        pass


def test_errors_are_ringhold_s_own(server: Etcd) -> None:
    """While a quorum comes and goes, nothing of gRPC comes through."""

    async def main() -> None:
        url = server.url(fresh_name())
        async with store_at(url) as other:
            await other.commit(puts=[Put(b"k", b"0")])
        async with store_at(url, create=False, timeout_s=0.5) as store:
            first, second = server.followers()
            first.kill()
            ending = time.monotonic() + 6
            outcomes: set[str] = set()

            async def work(operation: Operation) -> None:
                while time.monotonic() < ending:
                    try:
                        await operation(store)
                        outcomes.add("ok")
                    except RingholdError as error:
                        outcomes.add(type(error).__name__)
                    await asyncio.sleep(0.01)

            async def harm() -> None:
                while time.monotonic() < ending:
                    second.stop()
                    await asyncio.sleep(1.5)
                    second.cont()
                    await asyncio.sleep(1.0)

            operations: list[Operation] = [
                lambda store: store.commit(puts=[Put(b"k", b"1")]),
                lambda store: entry(store, b"k"),
                *READS,
            ]
            await asyncio.gather(harm(), *map(work, operations))
            assert {"ok", "StoreUnavailable"} <= outcomes
            assert outcomes <= {
                "ok",
                "StoreUnavailable",
                "OutcomeUnknown",
                "SessionExpired",
                "InvalidInput",
            }

    run(main)

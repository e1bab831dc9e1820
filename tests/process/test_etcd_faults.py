"""Goal: whatever becomes of etcd while a store is open, each call comes back in a bounded time:
with what it asked for once that is possible again, else with an error that says what is known.

Method: a real etcd 3.5.1 that is killed, stopped, compacted and filled, and a proxy before it
that cuts and holds. Each fault is first looked at from outside.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Iterator
from contextlib import aclosing

import grpc
import pytest
from cutting_proxy import CuttingProxy
from etcd_client import Client, client
from etcd_double import EtcdDouble
from etcd_servers import Etcd, etcd
from etcd_stores import (
    LEASE,
    begun,
    entry,
    failure,
    fresh_name,
    open_store,
    run,
    settled,
    snapshot_of,
    store_at,
    store_behind,
    until,
    until_works,
    value,
)

from ringhold.env import RealEnv
from ringhold.errors import (
    Closed,
    Compacted,
    Conflict,
    OutcomeUnknown,
    StoreUnavailable,
    Unavailable,
)
from ringhold.store.base import Absent, Put, run_direct
from ringhold.store.etcd import parse_etcd_url, wire
from ringhold.store.etcd.calls import RANGE, Failed, connection_to
from ringhold.store.etcd.names import Names
from ringhold.store.etcd.store import EtcdStore

TIMEOUT_S = 1.5
SLACK_S = 5.0
"""What a busy machine adds."""


@pytest.fixture(scope="module")
def server() -> Iterator[Etcd]:
    """For what leaves no trace."""
    with etcd() as server:
        yield server


@pytest.fixture
def proxy(server: Etcd) -> Iterator[CuttingProxy]:
    with CuttingProxy(server.endpoints[0]) as proxy:
        yield proxy


async def timed(awaitable: Awaitable[object], within_s: float) -> BaseException:
    started = time.monotonic()
    error = await failure(awaitable)
    assert time.monotonic() - started < within_s, repr(error)
    return error


# Replies that are lost


def test_a_commit_whose_reply_is_lost_returns_its_revision_and_is_applied_once(
    server: Etcd, proxy: CuttingProxy
) -> None:
    async def main() -> None:
        async with store_behind(server, proxy) as store:
            before = await store.commit(puts=[Put(b"before", b"")])
            proxy.lose("reply", containing=b"lost key", times=2)
            revision = await store.commit(
                compares=[Absent(b"lost key")], puts=[Put(b"lost key", b"v")]
            )
            assert proxy.replies_lost == 2
            found = await entry(store, b"lost key")
            assert found is not None
            assert (
                (found.revision, found.created) == (revision, revision) == (before + 1, before + 1)
            )
            assert await store.commit(puts=[Put(b"after", b"")]) == revision + 1

    run(main)


def test_a_commit_whose_request_is_lost_is_applied(server: Etcd, proxy: CuttingProxy) -> None:
    async def main() -> None:
        async with store_behind(server, proxy) as store:
            before = await store.commit(puts=[Put(b"before", b"")])
            proxy.lose("request", containing=b"lost key", times=2)
            revision = await store.commit(puts=[Put(b"lost key", b"v")])
            assert proxy.requests_lost == 2
            assert revision == before + 1

    run(main)


def test_a_lease_whose_grant_is_lost_is_granted(server: Etcd, proxy: CuttingProxy) -> None:
    async def main() -> None:
        async with store_behind(server, proxy) as store:
            proxy.lose("reply", times=1)
            await store.grant_lease(LEASE, 5)
            assert proxy.replies_lost == 1
            await store.commit(puts=[Put(b"leased", b"", LEASE)])
            proxy.lose("reply", times=1)
            await store.renew_lease(LEASE)
            proxy.lose("reply", times=1)
            await store.revoke_lease(LEASE)
            assert proxy.replies_lost == 3
            assert await value(store, b"leased") is None

    run(main)


def test_a_lease_that_etcd_makes_longer_is_trusted_no_longer_than_was_asked() -> None:
    async def main() -> None:
        with etcd(election_ms=6000) as server:
            async with store_at(server.url(fresh_name())) as store:
                clock = RealEnv().clock
                for step in (
                    lambda: store.grant_lease(LEASE, 1.5),
                    lambda: store.renew_lease(LEASE),
                ):
                    before_ns = clock.boottime_ns()
                    await step()
                    until_ns = store.lease_until(LEASE)
                    assert until_ns is not None
                    assert before_ns < until_ns < clock.boottime_ns() + 1.3e9
                lease = f"{Names(store_name(store)).lease(LEASE):x}"
                assert "granted with TTL(9s)" in server.ctl("lease", "timetolive", lease)

    run(main)


@pytest.mark.parametrize("silent", [False, True])
def test_a_renewal_by_a_leader_that_may_have_been_replaced_does_not_count(
    server: Etcd, silent: bool
) -> None:
    """It asks nobody before it renews a lease that the next leader may end."""

    async def main() -> None:
        with EtcdDouble(server.endpoints[0]) as double:
            url = server.url(fresh_name(), endpoints=[double.endpoint])
            async with store_at(url) as store:
                await store.grant_lease(LEASE, 60)
                until = store.lease_until(LEASE)
                assert until is not None
                if silent:
                    details = "etcdserver: request timed out"
                    double.fail("KV/Range", grpc.StatusCode.UNAVAILABLE, details)
                else:
                    header = wire.TermHeader(raft_term=10**6)
                    renewed = wire.LeaseKeepAliveResponse(header, ttl_s=60)
                    double.reply("Lease/LeaseKeepAlive", renewed.encode())
                assert isinstance(await failure(store.renew_lease(LEASE)), StoreUnavailable)
                assert store.lease_until(LEASE) == until
                double.go_on()
                await store.renew_lease(LEASE)
                assert (store.lease_until(LEASE) or 0) > until

    asyncio.run(main())


def test_a_snapshot_goes_on_at_a_member_that_is_behind(server: Etcd) -> None:
    async def main() -> None:
        with EtcdDouble(server.endpoints[0]) as double:
            url = server.url(fresh_name(), endpoints=[double.endpoint])
            async with store_at(url) as store:
                await store.commit(puts=[Put(b"k", b"v")])
                snapshot = await snapshot_of(store)
                before = double.calls["KV/Range"]
                details = "etcdserver: mvcc: required revision is a future revision"
                double.fail("KV/Range", grpc.StatusCode.OUT_OF_RANGE, details, times=1)
                found = await snapshot.get(b"k")
                assert found is not None
                assert found.value == b"v"
                assert double.calls["KV/Range"] == before + 2
                await snapshot.close()

    asyncio.run(main())


def test_a_stream_of_watches_that_brings_something_else(server: Etcd) -> None:
    async def main() -> None:
        with EtcdDouble(server.endpoints[0]) as double:
            url = server.url(fresh_name(), endpoints=[double.endpoint])
            async with store_at(url) as store:
                await store.commit(puts=[Put(b"k", b"v")])
                double.reply("Watch/Watch", b"\xff")
                async with aclosing(store.watch(b"k", 1)) as changes:
                    waiting = asyncio.ensure_future(anext(changes))
                    await until(lambda: double.calls["Watch/Watch"] > 1, "another stream")
                    assert not waiting.done()
                    double.go_on()
                    async with asyncio.timeout(10):
                        assert [event.key for event in (await waiting).events] == [b"k"]

    asyncio.run(main())


def test_what_was_reported_as_a_conflict_is_not_applied_later(
    server: Etcd, proxy: CuttingProxy
) -> None:
    """A request may lie in the socket of a server that stands still, and come to life after the
    same commit was answered at another try."""

    async def main() -> None:
        async with (
            store_behind(server, proxy) as store,
            store_at(server.url(fresh_name()), create=True),
        ):
            proxy.lose("late", containing=b"late key", times=1)
            await store.commit(puts=[Put(b"obstacle", b"")])
            error = await failure(
                store.commit(compares=[Absent(b"obstacle")], puts=[Put(b"late key", b"v")])
            )
            assert isinstance(error, Conflict)
            assert proxy.requests_late == 1
            await store.commit(deletes=[b"obstacle"])
            proxy.pass_late()
            assert await value(store, b"late key") is None

    run(main)


def test_a_late_request_of_a_commit_that_was_applied_changes_nothing(
    server: Etcd, proxy: CuttingProxy
) -> None:
    async def main() -> None:
        async with store_behind(server, proxy) as store:
            proxy.lose("late", containing=b"late key", times=1)
            await store.commit(puts=[Put(b"late key", b"v")])
            assert proxy.requests_late == 1
            await store.commit(puts=[Put(b"late key", b"newer")])
            proxy.pass_late()
            assert await value(store, b"late key") == b"newer"

    run(main)


# A server that is killed


def test_a_server_that_is_killed_and_started_again() -> None:
    async def main() -> None:
        with etcd() as server:
            (member,) = server.members
            async with store_at(server.url("killed"), timeout_s=15) as store:
                await store.grant_lease(LEASE, 30)
                first = await store.commit(puts=[Put(b"k", b"0")])
                snapshot = await snapshot_of(store)
                watch = store.watch(b"k", first)
                assert (await anext(watch)).revision == first
                member.kill()
                with pytest.raises(OSError, match="refused"):
                    server.status(member)
                assert isinstance(await timed(store.renew_lease(LEASE), 4), StoreUnavailable)
                waiting = [
                    asyncio.ensure_future(each)
                    for each in (
                        store.commit(puts=[Put(b"k", b"1")]),
                        snapshot.get(b"k"),
                        snapshot_of(store),
                        store.grant_lease(LEASE[::-1], 30),
                        anext(watch),
                    )
                ]
                await asyncio.sleep(0.5)
                assert not any(task.done() for task in waiting)
                member.start()
                second, found, newer, _, seen = await asyncio.gather(*waiting)
                assert found.value == b"0"
                assert newer.revision >= first
                assert seen.revision == second > first
                await store.renew_lease(LEASE)
                await store.renew_lease(LEASE[::-1])
                await watch.aclose()

    run(main)


def test_a_server_that_is_killed_for_good() -> None:
    async def main() -> None:
        with etcd() as server:
            store = await open_store(server.url("killed"), create=True, timeout_s=TIMEOUT_S)
            revision = await store.commit(puts=[Put(b"k", b"0")])
            snapshot = await snapshot_of(store)
            watch = asyncio.ensure_future(anext(store.watch(b"k", revision + 1)))
            await asyncio.sleep(0.2)
            server.members[0].kill()
            within_s = TIMEOUT_S + SLACK_S
            error = await timed(store.commit(puts=[Put(b"k", b"1")]), within_s)
            assert isinstance(error, (StoreUnavailable, OutcomeUnknown))
            # It was not sent: nothing listens there any more.
            error = await timed(store.commit(puts=[Put(b"k", b"2")]), within_s)
            assert isinstance(error, StoreUnavailable)
            assert error.retryable
            assert server.endpoints[0] in str(error)
            for call in (snapshot.get(b"k"), snapshot_of(store), store.grant_lease(LEASE, 5)):
                assert isinstance(await timed(call, within_s), StoreUnavailable)
            assert not watch.done()
            started = time.monotonic()
            await store.close()
            assert time.monotonic() - started < 4
            assert isinstance(await settled(watch), Closed)

    run(main)


# A server that stands still


def test_a_server_that_stands_still() -> None:
    async def main() -> None:
        with etcd() as server:
            (member,) = server.members
            async with store_at(server.url("stopped"), timeout_s=TIMEOUT_S) as store:
                revision = await store.commit(puts=[Put(b"k", b"0")])
                await store.grant_lease(LEASE, 30)
                snapshot = await snapshot_of(store)
                member.stop()
                with pytest.raises(OSError, match="timed out"):
                    server.status(member, timeout_s=0.2)
                within_s = TIMEOUT_S + SLACK_S
                nonce = b"of the commit"
                error = await timed(store.commit(puts=[Put(b"k", b"1")], nonce=nonce), within_s)
                assert isinstance(error, OutcomeUnknown)
                for call in (
                    snapshot.get(b"k"),
                    snapshot_of(store),
                    store.grant_lease(LEASE[::-1], 5),
                    store.renew_lease(LEASE),
                    store.revoke_lease(LEASE),
                    store.commit(compares=[Absent(b"other")]),
                ):
                    error = await timed(call, 3 + SLACK_S)
                    assert isinstance(error, StoreUnavailable)
                    assert error.retryable
                member.cont()
                again = await until_works(lambda: store.commit(puts=[Put(b"k", b"1")], nonce=nonce))
                assert again > revision
                assert await value(store, b"k") == b"1"

    run(main)


def test_closing_while_the_server_stands_still() -> None:
    async def main() -> None:
        with etcd() as server:
            (member,) = server.members
            store = await open_store(server.url("stopped"), create=True, timeout_s=TIMEOUT_S)
            await store.commit(puts=[Put(b"k", b"0")])
            snapshot = await snapshot_of(store)
            watch = asyncio.ensure_future(anext(store.watch(b"none", 1)))
            await asyncio.sleep(0.1)
            member.stop()
            commit = asyncio.ensure_future(store.commit(puts=[Put(b"k", b"1")]))
            reading = asyncio.ensure_future(snapshot.get(b"k"))
            await asyncio.sleep(0.1)
            started = time.monotonic()
            await store.close()
            assert time.monotonic() - started < TIMEOUT_S + 3 + SLACK_S
            assert isinstance(await settled(commit), OutcomeUnknown)
            assert isinstance(await settled(watch), Closed)
            assert isinstance(await settled(reading), (Closed, Unavailable))

    run(main)


def test_a_call_that_waits_while_the_store_is_closed_says_so(
    server: Etcd, proxy: CuttingProxy
) -> None:
    async def main() -> None:
        async with store_behind(server, proxy, timeout_s=20) as store:
            snapshot = await snapshot_of(store)
            direct = run_direct(store.direct.snapshot())
            proxy.hold_replies()
            calls = [
                asyncio.ensure_future(snapshot.get(b"warm")),
                asyncio.ensure_future(store.revoke_lease(LEASE)),
                asyncio.ensure_future(asyncio.to_thread(run_direct, direct.get(b"warm"))),
            ]
            await begun(proxy)
            await asyncio.wait(calls, timeout=0.2)
            await store.close()
            for call in calls:
                assert isinstance(await settled(call), Closed)

    run(main)


def test_a_store_is_closed_though_who_closes_it_is_cancelled(
    server: Etcd, proxy: CuttingProxy
) -> None:
    async def main() -> None:
        async with store_behind(server, proxy) as store:
            proxy.hold_replies()
            commit = asyncio.ensure_future(store.commit(puts=[Put(b"k", b"v")]))
            await begun(proxy)
            closing = asyncio.ensure_future(store.close())
            await asyncio.sleep(0)
            closing.cancel()
            proxy.go_on()
            assert isinstance(await settled(closing), asyncio.CancelledError)
            # Nobody cancelled this one.
            assert isinstance(await settled(commit), int)
            await until(lambda: proxy.open_connections == 0, "the end of the connections")

    run(main)


def test_what_goes_to_a_host_without_an_address_was_not_sent() -> None:
    async def main() -> None:
        connection = await connection_to(parse_etcd_url("etcd://nobody.invalid/x"), RealEnv())
        with pytest.raises(Failed, match="resol") as caught:
            await connection.call(RANGE, wire.RangeRequest(b"k"))
        assert not caught.value.sent
        await connection.close()

    run(main)


# What an administrator does, and forgets to do


def test_a_key_space_that_is_full() -> None:
    async def main() -> None:
        with etcd(quota_bytes=1 << 20) as server:
            async with store_at(server.url("full"), timeout_s=4 * SLACK_S) as store:
                revision = await store.commit(puts=[Put(b"k", b"v")])
                await store.grant_lease(LEASE, 30)
                with client(*server.endpoints) as direct, pytest.raises(grpc.RpcError):
                    fill(direct)
                assert "NOSPACE" in server.alarms()
                error = await timed(store.commit(puts=[Put(b"k", b"w")]), SLACK_S)
                assert isinstance(error, StoreUnavailable)
                for word in ("--quota-backend-bytes", "compact", "defragment", "NOSPACE"):
                    assert word in str(error)
                # Reading goes on, and so do sessions.
                found = await entry(store, b"k")
                assert found is not None
                assert found.revision == revision
                await store.renew_lease(LEASE)
                watch = store.watch(b"k", revision)
                assert (await anext(watch)).revision == revision
                server.free_space()
                assert await store.commit(puts=[Put(b"k", b"w")]) > revision
                assert (await anext(watch)).revision > revision
                await watch.aclose()

    run(main)


def fill(direct: Client) -> None:
    for _ in range(100):
        direct.put(b"foreign", bytes(100_000))


def test_a_revision_that_was_compacted_is_told_to_those_who_need_it() -> None:
    async def main() -> None:
        with etcd() as server, CuttingProxy(server.endpoints[0]) as proxy:
            async with store_behind(server, proxy) as store:
                first = await store.commit(puts=[Put(b"k", b"0")])
                snapshot = await snapshot_of(store)
                watch = store.watch(b"k", first)
                assert (await anext(watch)).revision == first
                for number in range(5):
                    last = await store.commit(puts=[Put(b"k", b"%d" % number)])
                assert server.compact() >= last
                # A watch that is under way has no need of what was compacted.
                for revision in range(first + 1, last + 1):
                    assert (await anext(watch)).revision == revision
                error = await failure(snapshot.get(b"k"))
                assert isinstance(error, Compacted)
                assert error.revision == snapshot.revision
                error = await failure(anext(store.watch(b"k", first)))
                assert isinstance(error, Compacted)
                assert error.revision == first
                await watch.aclose()

    run(main)


@pytest.mark.parametrize("needed", [True, False])
def test_a_compaction_while_a_watch_is_cut_off(needed: bool) -> None:
    async def main() -> None:
        with etcd() as server, CuttingProxy(server.endpoints[0]) as proxy:
            async with store_behind(server, proxy) as store:
                first = await store.commit(puts=[Put(b"k", b"0")])
                watch = store.watch(b"k", first)
                assert (await anext(watch)).revision == first
                proxy.refuse()
                async with store_at(server.url(store_name(store)), create=False) as other:
                    changed = await other.commit(puts=[Put(b"k", b"1")])
                    if needed:
                        await other.commit(puts=[Put(b"else", b"2")])
                        assert server.compact() > changed
                    else:
                        assert server.compact(changed - 1) == first
                proxy.go_on()
                if needed:
                    error = await asyncio.wait_for(failure(anext(watch)), 10)
                    assert isinstance(error, Compacted)
                    assert error.revision == first + 1
                else:
                    assert (await asyncio.wait_for(anext(watch), 10)).revision == changed
                    await watch.aclose()

    run(main)


def store_name(store: EtcdStore) -> str:
    return store._connection.address.name

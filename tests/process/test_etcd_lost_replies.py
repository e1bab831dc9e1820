"""Goal: a lost answer never applies a commit twice, nor is what was applied reported as lost; and a
commit that is repeated under its nonce is applied once, or said to be unknown.

Method: counters that several tasks increment through a proxy that cuts the connection instead of
passing every few replies to commits. Those that were applied are counted when the commit, sent
again, finds its nonce. Nonces: the server is stopped, and leases are ended by etcdctl.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from itertools import cycle
from typing import Any

import grpc
import pytest
from cutting_proxy import CuttingProxy
from etcd_client import client
from etcd_double import EtcdDouble
from etcd_servers import Etcd, etcd
from etcd_stores import (
    LEASE,
    entry,
    failure,
    fresh_name,
    run,
    store_at,
    store_behind,
    until,
    until_works,
    value,
)

from ringhold.errors import Conflict, OutcomeUnknown, SessionExpired, StoreUnavailable
from ringhold.store.base import Absent, Compare, Put, Unchanged, run_direct
from ringhold.store.etcd import calls, nonces, patience, wire
from ringhold.store.etcd.commits import Commit
from ringhold.store.etcd.store import EtcdStore
from ringhold.store.etcd.together import Together

TASKS = 4
MANY_TASKS = 16
EVERY = 5


@pytest.fixture(scope="module")
def server() -> Iterator[Etcd]:
    """For what leaves no trace."""
    with etcd() as server:
        yield server


@pytest.fixture
def proxy(server: Etcd) -> Iterator[CuttingProxy]:
    with CuttingProxy(server.endpoints[0]) as proxy:
        yield proxy


async def increment(store: EtcdStore, counter: bytes) -> int | None:
    """One try: the number before, or None when somebody else was first."""
    found = await entry(store, counter)
    number = 0 if found is None else int(found.value)
    compare: Compare = Absent(counter) if found is None else Unchanged(counter, found.revision)
    try:
        revision = await store.commit(compares=[compare], puts=[Put(counter, b"%d" % (number + 1))])
    except Conflict:
        return None
    assert found is None or revision > found.revision
    return number


class Found:
    """Counts the commits that were applied by a try whose answer was lost."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.applied_before = 0
        self._outcome = Commit.outcome
        monkeypatch.setattr(Commit, "outcome", lambda *told: self._counted(*told))

    def _counted(self, commit: Commit, answer: wire.TxnResponse) -> int:
        revision = self._outcome(commit, answer)
        self.applied_before += not answer.succeeded
        return revision


async def count(server: Etcd, proxy: CuttingProxy, increments: int, counters: int) -> None:
    """By tasks of which those of different counters may commit together."""
    tasks = max(TASKS, counters)
    name = fresh_name()
    applied: dict[bytes, list[int]] = {b"counter %d" % number: [] for number in range(counters)}

    async def work(store: EtcdStore, counter: bytes) -> None:
        while sum(map(len, applied.values())) + tasks <= increments:
            number = await increment(store, counter)
            if number is not None:
                applied[counter].append(number)

    url = server.url(name, endpoints=[proxy.endpoint])
    async with store_at(url, timeout_s=30) as store:
        # What names a nonce writes.
        proxy.lose("reply", containing=b"ringhold/%s/n" % name.encode(), every=EVERY)
        async with asyncio.TaskGroup() as group:
            for _, counter in zip(range(tasks), cycle(applied), strict=False):
                group.create_task(work(store, counter))
        proxy.lose_nothing()
        for counter, numbers in applied.items():
            found = await entry(store, counter)
            assert found is not None
            # Each number was left behind by exactly one increment, and none is unaccounted for.
            assert sorted(numbers) == list(range(len(numbers)))
            assert int(found.value) == len(numbers)
            with client(*server.endpoints) as direct:
                kept = direct.get(b"ringhold/%s/d%s" % (name.encode(), counter))
            assert kept is not None
            assert kept.version == len(numbers)
    assert sum(map(len, applied.values())) > increments - tasks


@pytest.fixture
def lost_together(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many commits each transaction had that was not answered."""
    sizes: list[int] = []
    answers = Together._answers

    async def noted(self: Together, commits: Sequence[Commit], timeout_s: float) -> Any:
        try:
            return await answers(self, commits, timeout_s)
        except calls.Failed:
            sizes.append(len(commits))
            raise

    monkeypatch.setattr(Together, "_answers", noted)
    return sizes


@pytest.mark.parametrize("counters", [1, MANY_TASKS])
def test_increments_are_exact_though_replies_are_lost(
    server: Etcd,
    proxy: CuttingProxy,
    monkeypatch: pytest.MonkeyPatch,
    lost_together: list[int],
    counters: int,
) -> None:
    found = Found(monkeypatch)
    run(lambda: count(server, proxy, 200, counters))
    assert found.applied_before > 10
    if counters == 1:
        assert proxy.replies_lost >= found.applied_before
    else:
        assert max(lost_together) > 1


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("counters", [1, MANY_TASKS])
def test_ten_thousand_increments_are_exact_though_replies_are_lost(
    server: Etcd, proxy: CuttingProxy, monkeypatch: pytest.MonkeyPatch, counters: int
) -> None:
    found = Found(monkeypatch)
    run(lambda: count(server, proxy, 10_000, counters))
    assert proxy.replies_lost > 500
    assert found.applied_before > 1000


# Nonces

NONCE = b"the nonce of a commit"
TIMEOUT_S = 1.0
LONGER_S = 3.0
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


async def unknown(store: EtcdStore, key: bytes) -> None:
    """Commits a put of `key` under NONCE that nobody answers in time."""
    error = await failure(store.commit(puts=[Put(key, b"first")], nonce=NONCE))
    assert isinstance(error, OutcomeUnknown)
    assert NONCE.hex() in str(error)


@pytest.mark.parametrize("applied", [True, False])
def test_a_commit_is_repeated_under_its_nonce_and_applied_once(
    server: Etcd, proxy: CuttingProxy, applied: bool
) -> None:
    async def main() -> None:
        async with store_behind(server, proxy, timeout_s=TIMEOUT_S) as store:
            before = await store.commit(puts=[Put(b"before", b"")])
            if applied:
                proxy.hold_replies()
            else:
                proxy.hold()
            await unknown(store, b"k")
            with client(*server.endpoints) as direct:
                revision = direct.put(b"foreign")
            assert revision == before + 1 + applied
            proxy.cut()  # What it still held is not to come late.
            proxy.go_on()
            again = await until_works(lambda: store.commit(puts=[Put(b"k", b"first")], nonce=NONCE))
            assert again == (before + 1 if applied else revision + 1)
            await store.commit(puts=[Put(b"k", b"second")])
            # The nonce is remembered: asking once more tells the same.
            assert await store.commit(puts=[Put(b"k", b"first")], nonce=NONCE) == again
            assert await value(store, b"k") == b"second"

    run(main)


def test_a_server_that_stood_still_applies_a_repeated_commit_once() -> None:
    async def main() -> None:
        with etcd() as server:
            (member,) = server.members
            async with store_at(server.url("stopped"), timeout_s=TIMEOUT_S) as store:
                before = await store.commit(puts=[Put(b"before", b"")])
                member.stop()
                await unknown(store, b"k")
                assert isinstance(
                    await failure(store.commit(puts=[Put(b"k", b"first")], nonce=NONCE)),
                    OutcomeUnknown,
                )
                member.cont()
                again = await until_works(
                    lambda: store.commit(puts=[Put(b"k", b"first")], nonce=NONCE)
                )
                found = await entry(store, b"k")
                assert found is not None
                assert found.created == found.revision == again > before
                assert await store.commit(puts=[Put(b"k", b"first")], nonce=NONCE) == again

    run(main)


@pytest.mark.parametrize("applied", [True, False])
@pytest.mark.parametrize("way", ["revoked", "over"])
def test_a_commit_is_not_repeated_after_its_nonce_was_forgotten(
    server: Etcd, proxy: CuttingProxy, monkeypatch: pytest.MonkeyPatch, applied: bool, way: str
) -> None:
    if way == "over":
        monkeypatch.setattr(nonces, "NONCE_S", 3)
    others = leases(server)

    async def main() -> None:
        async with store_behind(server, proxy, timeout_s=TIMEOUT_S) as store:
            (ours,) = leases(server) - others
            if applied:
                proxy.hold_replies()
            else:
                proxy.hold()
            await unknown(store, b"k")
            if way == "revoked":
                server.ctl("lease", "revoke", ours)
            await until(lambda: ours not in leases(server), "the end of the lease")
            proxy.cut()
            proxy.go_on()
            for _ in range(3):
                error = await failure(
                    until_works(lambda: store.commit(puts=[Put(b"k", b"again")], nonce=NONCE))
                )
                assert isinstance(error, OutcomeUnknown)
            assert await value(store, b"k") == (b"first" if applied else None)
            # Others have no trouble.
            await store.commit(puts=[Put(b"k", b"another")])

    run(main)


OnFace = Callable[[EtcdStore, bytes, bytes | None], Awaitable[int]]


async def on_loop(store: EtcdStore, key: bytes, nonce: bytes | None) -> int:
    return await store.commit(puts=[Put(key, b"")], nonce=nonce)


async def directly(store: EtcdStore, key: bytes, nonce: bytes | None) -> int:
    commit = store.direct.commit(puts=[Put(key, b"")], nonce=nonce)
    return await asyncio.to_thread(run_direct, commit)


@pytest.mark.parametrize(("first", "second"), [(on_loop, directly), (directly, on_loop)])
def test_a_commit_tried_on_one_face_of_a_store_is_known_to_the_other(
    server: Etcd, proxy: CuttingProxy, first: OnFace, second: OnFace
) -> None:
    others = leases(server)

    async def main() -> None:
        async with store_behind(server, proxy, timeout_s=TIMEOUT_S) as store:
            await directly(store, b"warm", None)
            ours = leases(server) - others
            assert len(ours) == 2
            proxy.hold()
            assert isinstance(await failure(first(store, b"k", NONCE)), OutcomeUnknown)
            for lease in ours:
                server.ctl("lease", "revoke", lease)
            proxy.cut()
            proxy.go_on()
            error = await failure(until_works(lambda: second(store, b"again", NONCE)))
            assert isinstance(error, OutcomeUnknown)
            assert await value(store, b"again") is None

    run(main)


def test_a_lease_that_ends_while_its_commit_is_tried_leaves_the_outcome_unknown(
    server: Etcd,
) -> None:
    others = leases(server)

    async def main() -> None:
        with EtcdDouble(server.endpoints[0]) as double:
            async with store_at(server.url(fresh_name(), endpoints=[double.endpoint])) as store:
                await store.commit(puts=[Put(b"warm", b"")])
                (ours,) = leases(server) - others
                double.fail("KV/Txn", UNAVAILABLE, "etcdserver: request timed out", applied=True)
                tries = double.calls["KV/Txn"]
                first = asyncio.create_task(
                    failure(store.commit(puts=[Put(b"k", b"first")], nonce=NONCE))
                )
                await until(lambda: double.calls["KV/Txn"] > tries + 1, "a second try")
                server.ctl("lease", "revoke", ours)
                assert isinstance(await first, OutcomeUnknown)
                double.go_on()
                again = store.commit(puts=[Put(b"k", b"again")], nonce=NONCE)
                assert isinstance(await failure(again), OutcomeUnknown)
                assert await value(store, b"k") == b"first"

    asyncio.run(main())


def test_who_asks_in_vain_what_became_of_a_commit_does_not_change_that(
    server: Etcd, proxy: CuttingProxy
) -> None:
    others = leases(server)

    async def main() -> None:
        async with store_behind(server, proxy, timeout_s=TIMEOUT_S) as store:
            (ours,) = leases(server) - others
            proxy.hold()
            await unknown(store, b"k")
            asking = store.commit(compares=[Absent(b"k")], nonce=NONCE)
            assert isinstance(await failure(asking), OutcomeUnknown)
            server.ctl("lease", "revoke", ours)
            proxy.cut()
            proxy.go_on()
            again = partial(store.commit, puts=[Put(b"k", b"again")], nonce=NONCE)
            assert isinstance(await failure(until_works(again)), OutcomeUnknown)
            assert await value(store, b"k") is None

    run(main)


# Time


def test_a_commit_gives_up_in_time_though_it_has_to_ask_for_its_leases(
    server: Etcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (calls, patience):
        monkeypatch.setattr(module, "backoff_s", lambda *_: 0.1)

    async def main() -> None:
        with EtcdDouble(server.endpoints[0]) as double:
            url = server.url(fresh_name(), endpoints=[double.endpoint])
            async with store_at(url, timeout_s=LONGER_S) as store:
                await store.commit(puts=[Put(b"warm", b"")])
                double.fail("Lease/LeaseTimeToLive", UNAVAILABLE, "etcdserver: no leader")
                double.fail("KV/Txn", UNAVAILABLE, "etcdserver: no leader")
                begun = time.monotonic()
                late = asyncio.create_task(failure(store.commit(puts=[Put(b"k", b"")])))
                await asyncio.sleep(LONGER_S / 2)
                missing = "etcdserver: requested lease not found"
                double.fail("KV/Txn", grpc.StatusCode.NOT_FOUND, missing)
                assert isinstance(await late, StoreUnavailable)
                assert double.calls["Lease/LeaseTimeToLive"] > 0
                assert time.monotonic() - begun < LONGER_S * 1.45

    asyncio.run(main())


def test_threads_that_commit_together_give_up_together(server: Etcd, proxy: CuttingProxy) -> None:
    async def main() -> None:
        async with store_behind(server, proxy, timeout_s=LONGER_S, warm=False) as store:
            proxy.hold()
            begun = time.monotonic()
            commits = [failure(directly(store, b"%d" % number, None)) for number in range(TASKS)]
            for error in await asyncio.gather(*commits):
                assert isinstance(error, StoreUnavailable)
            assert time.monotonic() - begun < 2 * LONGER_S

    run(main)


def leases(server: Etcd) -> set[str]:
    return set(re.findall(r"^([0-9a-f]{10,})$", server.ctl("lease", "list"), re.MULTILINE))


def test_a_lease_of_nonces_that_ends_early_is_replaced(server: Etcd) -> None:
    async def main() -> None:
        async with store_at(server.url(fresh_name())) as store:
            await store.grant_lease(LEASE, 60)
            await store.commit(puts=[Put(b"k", b"v")])
            for lease in leases(server):
                server.ctl("lease", "revoke", lease)
            await store.commit(puts=[Put(b"k", b"w")])
            # Of two leases that are gone the caller's is the one to tell.
            for lease in leases(server):
                server.ctl("lease", "revoke", lease)
            with pytest.raises(SessionExpired, match=LEASE.hex()):
                await store.commit(puts=[Put(b"leased", b"", LEASE)])
            assert await value(store, b"leased") is None

    run(main)


@pytest.mark.parametrize("again", ["holds", "does not hold"])
def test_a_commit_may_be_asked_for_anew_after_its_conflict(
    server: Etcd, proxy: CuttingProxy, again: str
) -> None:
    """Also when an earlier try of it is still on its way, and comes at last."""

    async def main() -> None:
        async with store_behind(server, proxy) as store:
            await store.commit(puts=[Put(b"obstacle", b"")])
            commit = partial(
                store.commit,
                compares=[Absent(b"obstacle")],
                puts=[Put(b"late key", b"v")],
                nonce=NONCE,
            )
            proxy.lose("late", containing=b"late key", times=1)
            assert isinstance(await failure(commit()), Conflict)
            if again == "holds":
                await store.commit(deletes=[b"obstacle"])
                revision = await commit()
                assert await commit() == revision
                await store.commit(puts=[Put(b"late key", b"newer")])
            else:
                proxy.lose("late", containing=b"late key", times=1)
                assert isinstance(await failure(commit()), Conflict)
                assert isinstance(await failure(commit()), Conflict)
                await store.commit(deletes=[b"obstacle"])
            assert proxy.requests_late == (1 if again == "holds" else 2)
            proxy.pass_late()
            expected = b"newer" if again == "holds" else None
            assert await value(store, b"late key") == expected

    run(main)


def test_what_became_of_a_commit_is_asked_without_writing(server: Etcd) -> None:
    async def main() -> None:
        async with store_at(server.url(fresh_name())) as store:
            revision = await store.commit(puts=[Put(b"k", b"v")], nonce=NONCE)
            # A compare that never holds: what answers is the nonce.
            assert await store.commit(compares=[Absent(b"k")], nonce=NONCE) == revision
            with pytest.raises(Conflict):
                await store.commit(compares=[Absent(b"k")], nonce=b"another")

    run(main)


def test_a_commit_that_was_asked_about_in_vain_is_not_applied_after_its_conflict(
    server: Etcd, proxy: CuttingProxy
) -> None:
    async def main() -> None:
        async with store_behind(server, proxy, timeout_s=1.0) as store:
            await store.commit(puts=[Put(b"obstacle", b"")])
            commit = partial(
                store.commit,
                compares=[Absent(b"obstacle")],
                puts=[Put(b"late key", b"v")],
                nonce=NONCE,
            )
            proxy.lose("late", containing=b"late key")
            assert isinstance(await failure(commit()), OutcomeUnknown)
            proxy.lose_nothing()
            assert proxy.requests_late > 0
            with pytest.raises(Conflict):
                await until_works(lambda: store.commit(compares=[Absent(b"warm")], nonce=NONCE))
            assert isinstance(await failure(commit()), Conflict)
            await store.commit(deletes=[b"obstacle"])
            proxy.pass_late()
            assert await value(store, b"late key") is None

    run(main)

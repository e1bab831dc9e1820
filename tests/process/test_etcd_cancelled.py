"""Goal: a call to etcd may be cancelled at any moment: a commit is taken back as long as nothing
was sent, and waited for otherwise; nothing is left behind.

Method: a proxy that holds what passes, so that a call stands still at the stage that is wanted.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterator

import pytest
from cutting_proxy import CuttingProxy
from etcd_servers import Etcd, etcd
from etcd_stores import (
    LEASE,
    begun,
    entry,
    fresh_name,
    run,
    settled,
    snapshot_of,
    store_at,
    store_behind,
    until,
    until_works,
    value,
)

from ringhold.errors import Conflict, OutcomeUnknown, StoreUnavailable, Unavailable
from ringhold.store.base import Absent, Put
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


def test_a_commit_that_is_cancelled_before_it_is_sent_is_taken_back(
    server: Etcd, proxy: CuttingProxy
) -> None:
    async def main() -> None:
        async with store_behind(server, proxy, warm=False, timeout_s=10) as store:
            proxy.hold_replies()
            commit = asyncio.ensure_future(store.commit(puts=[Put(b"taken back", b"")]))
            await begun(proxy)  # It asks for a lease for its nonce.
            commit.cancel()
            started = time.monotonic()
            assert isinstance(await settled(commit), asyncio.CancelledError)
            assert time.monotonic() - started < SLACK_S
            proxy.go_on()
            await store.commit(puts=[Put(b"another", b"")])
            assert await value(store, b"taken back") is None

    run(main)


def test_a_commit_that_is_cancelled_between_two_tries_is_taken_back(
    server: Etcd, proxy: CuttingProxy
) -> None:
    async def main() -> None:
        async with store_behind(server, proxy, timeout_s=20) as store:
            proxy.refuse()
            with pytest.raises(StoreUnavailable):
                await store.renew_lease(LEASE)
            # Now its connection is known to be gone: nothing is sent.
            commit = asyncio.ensure_future(store.commit(puts=[Put(b"taken back", b"")]))
            await asyncio.sleep(1.0)
            assert not commit.done()
            commit.cancel()
            started = time.monotonic()
            assert isinstance(await settled(commit), asyncio.CancelledError)
            assert time.monotonic() - started < SLACK_S
            proxy.go_on()
            await store.commit(puts=[Put(b"another", b"")])
            assert await value(store, b"taken back") is None

    run(main)


@pytest.mark.parametrize("times", [1, 3])
def test_a_commit_that_is_cancelled_after_it_was_sent_is_waited_for(
    server: Etcd, proxy: CuttingProxy, times: int
) -> None:
    async def main() -> None:
        async with store_behind(server, proxy, timeout_s=10) as store:
            proxy.hold_replies()
            commit = asyncio.ensure_future(store.commit(puts=[Put(b"sent", b"")]))
            await begun(proxy)
            for _ in range(times):
                commit.cancel()
                await asyncio.sleep(0.05)
            assert not commit.done()
            proxy.go_on()
            result = await settled(commit)
            assert isinstance(result, asyncio.CancelledError)
            assert result.__cause__ is None
            assert await value(store, b"sent") == b""

    run(main)


def test_a_commit_that_is_cancelled_and_never_answered_says_so(
    server: Etcd, proxy: CuttingProxy
) -> None:
    async def main() -> None:
        async with store_behind(server, proxy, timeout_s=TIMEOUT_S) as store:
            proxy.hold_replies()
            commit = asyncio.ensure_future(store.commit(puts=[Put(b"unknown", b"")]))
            await begun(proxy)
            commit.cancel()
            started = time.monotonic()
            result = await settled(commit)
            assert time.monotonic() - started < TIMEOUT_S + SLACK_S
            assert isinstance(result, asyncio.CancelledError)
            assert isinstance(result.__cause__, OutcomeUnknown)

    run(main)


Operation = Callable[[EtcdStore], Awaitable[object]]
OPERATIONS: dict[str, Operation] = {
    "commit": lambda store: store.commit(puts=[Put(b"k", b"")]),
    "snapshot": snapshot_of,
    "read": lambda store: entry(store, b"k"),
    "grant": lambda store: store.grant_lease(LEASE, 5),
    "renew": lambda store: store.renew_lease(LEASE),
    "revoke": lambda store: store.revoke_lease(LEASE),
    "watch": lambda store: anext(store.watch(b"k", 1 << 40)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_cancelling_at_any_moment_leaves_nothing_behind(
    server: Etcd, proxy: CuttingProxy, name: str
) -> None:
    operation = OPERATIONS[name]

    async def main() -> None:
        async with store_behind(server, proxy, timeout_s=0.6, warm=False) as store:
            await until_works(lambda: store.commit(puts=[Put(b"warm", b"")]))
            tasks, threads = len(asyncio.all_tasks()), threading.active_count()
            for hold in (proxy.hold, proxy.hold_replies, proxy.refuse):
                hold()
                for wait_s in (None, 0, 0.001, 0.01, 0.1, 0.3):
                    task = asyncio.ensure_future(operation(store))
                    if wait_s is not None:
                        await asyncio.sleep(wait_s)
                    task.cancel()
                    result = await asyncio.wait_for(settled(task), 2)
                    assert isinstance(result, (asyncio.CancelledError, Unavailable)), result
                proxy.go_on()
                await until_works(lambda: store.commit(puts=[Put(b"alive", b"")]))
            await until(lambda: len(asyncio.all_tasks()) <= tasks, "the end of all tasks", 5)
            await until(lambda: threading.active_count() <= threads + 2, "the end of threads", 5)

    run(main)


KEYS = [b"%02d" % number for number in range(50)]


async def read_many(store: EtcdStore) -> object:
    snapshot = await store.snapshot()
    return await snapshot.get_many(KEYS)


HARMLESS: dict[str, Operation] = {
    "read": read_many,
    # Refused: etcd reads what the compares have found.
    "compare": lambda store: store.commit(compares=[Absent(key) for key in KEYS]),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_etcd_outlives_reads_that_are_cancelled(name: str) -> None:
    operation = HARMLESS[name]

    async def main() -> None:
        with etcd() as server:
            async with store_at(server.url(fresh_name())) as store:
                await store.commit(puts=[Put(key, b"x" * 10_000) for key in KEYS])
                tasks = len(asyncio.all_tasks())
                for _ in range(200):
                    task = asyncio.ensure_future(operation(store))
                    await asyncio.sleep(random.uniform(0, 0.003))
                    task.cancel()
                    result = await settled(task)
                    assert not server.members[0].failed, server.members[0].log()[-2000:]
                    assert isinstance(result, (asyncio.CancelledError, list, Conflict)), result
                    assert len(asyncio.all_tasks()) == tasks
                await store.commit(puts=[Put(b"alive", b"")])

    run(main)

"""Goal: a watch of etcd tells every revision once, in order and whole, whatever happens to its
connection, and keeps a bounded number of events for whoever does not fetch them.

Method: a proxy that cuts, holds and refuses the connection of the watch, while others commit
directly; what was told is compared with what the commits returned.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from functools import partial
from typing import NoReturn

import pytest
from cutting_proxy import CuttingProxy
from etcd_servers import Etcd, etcd
from etcd_stores import FirstEndpoint, fresh_name, run, store_at, until

from ringhold.store.base import Changes, Put
from ringhold.store.etcd import watching
from ringhold.store.etcd.calls import Connection
from ringhold.store.etcd.store import EtcdStore
from ringhold.store.etcd.wire import WatchResponse

KEYS = 3
RECONNECTIONS = 30


@pytest.fixture(scope="module")
def server() -> Iterator[Etcd]:
    """For what leaves no trace."""
    with etcd() as server:
        yield server


@pytest.fixture
def proxy(server: Etcd) -> Iterator[CuttingProxy]:
    with CuttingProxy(server.endpoints[0]) as proxy:
        yield proxy


async def write(store: EtcdStore, number: int, keys: int = KEYS, size: int = 10) -> int:
    value = b"%d" % number + bytes(size)
    return await store.commit(puts=[Put(b"w/%d" % key, value) for key in range(keys)])


def whole(changes: Changes, number: int, keys: int = KEYS) -> bool:
    """Whether it is all that the `number`-th `write` did."""
    return [(event.key, event.value) for event in changes.events] == [
        (b"w/%d" % key, changes.events[0].value) for key in range(keys)
    ] and (changes.events[0].value or b"").startswith(b"%d" % number)


async def told(watch: AsyncIterator[Changes], count: int) -> list[Changes]:
    return [await asyncio.wait_for(anext(watch), 20) for _ in range(count)]


def test_a_watch_goes_on_over_thirty_reconnections_under_load(
    server: Etcd, proxy: CuttingProxy
) -> None:
    async def main() -> None:
        name = fresh_name()
        async with (
            store_at(server.url(name)) as writer,
            store_at(server.url(name, endpoints=[proxy.endpoint]), create=False) as reader,
        ):
            written: list[int] = []
            seen: list[Changes] = []
            # In its own range, which nobody changes.
            idle = asyncio.ensure_future(anext(reader.watch(b"idle/", 1)))

            async def work() -> None:
                while proxy.connections < connections + RECONNECTIONS or len(written) < 200:
                    written.append(await write(writer, len(written)))
                written.append(await write(writer, len(written), keys=1))

            async def see() -> None:
                async for changes in watch:
                    seen.append(changes)
                    if len(changes.events) == 1:
                        return

            async def cut() -> None:
                while not writing.done():
                    enough = len(seen) + 3
                    await until(partial(advanced, enough), "changes")
                    proxy.cut()

            def advanced(enough: int) -> bool:
                return len(seen) >= enough or writing.done()

            connections = proxy.connections
            async with aclosing(reader.watch(b"w/", 1)) as watch:  # type: ignore[type-var]
                writing = asyncio.ensure_future(work())
                await asyncio.wait_for(asyncio.gather(writing, see(), cut()), 60)
            assert proxy.connections >= connections + RECONNECTIONS
            assert [changes.revision for changes in seen] == written
            assert all(whole(changes, number) for number, changes in enumerate(seen[:-1]))
            idle.cancel()
            await asyncio.wait([idle])

    run(main)


@pytest.mark.parametrize("cuts", [0, 10])
def test_what_is_not_fetched_is_bounded_and_comes_later(
    server: Etcd, proxy: CuttingProxy, monkeypatch: pytest.MonkeyPatch, cuts: int
) -> None:
    limit, keys, commits = 500, 100, 60
    monkeypatch.setattr(watching, "EVENTS_MAX", limit)

    async def main() -> None:
        name = fresh_name()
        async with (
            store_at(server.url(name)) as writer,
            store_at(server.url(name, endpoints=[proxy.endpoint]), create=False) as reader,
        ):
            written = [await write(writer, 0, keys)]
            async with aclosing(reader.watch(b"w/", 1)) as watch:  # type: ignore[type-var]
                seen = await told(watch, 1)
                (kept,) = reader._watches._watches
                # Another watch sees the same and keeps the stream going.
                async with aclosing(reader.watch(b"w/0", 1)) as other:  # type: ignore[type-var]
                    most = 0
                    for number in range(1, commits):
                        written.append(await write(writer, number, keys))
                        if cuts and number % (commits // cuts) == 0:
                            proxy.cut()
                        while (await told(other, 1))[0].revision != written[-1]:
                            pass
                        most = max(most, kept.events)
                # It has stopped collecting, long before the end.
                assert limit < most < 2 * limit + 10 * keys < commits * keys
                seen += await told(watch, commits - 1)
                assert [changes.revision for changes in seen] == written
                assert all(whole(changes, number, keys) for number, changes in enumerate(seen))
                written.append(await write(writer, commits, keys))
                assert [changes.revision for changes in await told(watch, 1)] == written[-1:]

    run(main)


def test_a_message_in_fragments_is_put_together(
    server: Etcd, proxy: CuttingProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    fragments = 0
    received = watching.Watches._received

    def count(watches: watching.Watches, answer: WatchResponse) -> None:
        nonlocal fragments
        fragments += answer.fragment
        received(watches, answer)

    monkeypatch.setattr(watching.Watches, "_received", count)

    async def main() -> None:
        name = fresh_name()
        async with (
            store_at(server.url(name)) as writer,
            store_at(server.url(name, endpoints=[proxy.endpoint]), create=False) as reader,
        ):
            written = [await write(writer, number, size=100_000) for number in range(20)]
            async with aclosing(reader.watch(b"w/", 1)) as watch:  # type: ignore[type-var]
                seen = await told(watch, len(written))
            assert fragments > 0
            assert [changes.revision for changes in seen] == written
            assert all(whole(changes, number) for number, changes in enumerate(seen))

    run(main)


@pytest.mark.parametrize("way", ["hold", "hold_replies", "refuse"])
def test_a_watch_whose_endpoint_falls_silent_goes_on_at_another(
    server: Etcd, proxy: CuttingProxy, way: str
) -> None:
    async def main() -> None:
        name = fresh_name()
        endpoints = [proxy.endpoint, *server.endpoints]
        async with (
            store_at(server.url(name)) as writer,
            store_at(
                server.url(name, endpoints=endpoints), create=False, env=FirstEndpoint()
            ) as reader,
        ):
            written = [await write(writer, 0)]
            async with aclosing(reader.watch(b"w/", 1)) as watch:  # type: ignore[type-var]
                assert (await told(watch, 1))[0].revision == written[0]
                assert proxy.open_connections == 1
                getattr(proxy, way)()
                written.append(await write(writer, 1))
                started = time.monotonic()
                assert (await told(watch, 1))[0].revision == written[1]
                # PING_S + PONG_S, and what a busy machine adds.
                assert time.monotonic() - started < 12
            proxy.go_on()

    run(main)


def test_a_watch_is_served_after_the_others_have_failed(
    server: Etcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(connection: Connection, requests: Iterator[bytes]) -> NoReturn:
        raise RuntimeError("a fault")

    async def main() -> None:
        async with store_at(server.url(fresh_name())) as store:
            written = await write(store, 0)
            async with aclosing(store.watch(b"w/", 1)) as failed:  # type: ignore[type-var]
                assert (await told(failed, 1))[0].revision == written
                (kept,) = store._watches._watches
                with monkeypatch.context() as patch:
                    patch.setattr(Connection, "stream", fail)
                    store._watches._begin_anew()
                    await until(lambda: kept.failure is not None, "its failure")
                # It is still there: nobody has fetched its failure.
                async with aclosing(store.watch(b"w/", 1)) as later:  # type: ignore[type-var]
                    assert (await told(later, 1))[0].revision == written
                    with pytest.raises(RuntimeError, match="a fault"):
                        await anext(failed)
                    written = await write(store, 1)
                    assert (await told(later, 1))[0].revision == written

    run(main)

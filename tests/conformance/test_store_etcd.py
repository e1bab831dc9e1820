"""Goal: what the store on etcd promises beyond what every engine does, or only in real time.

Method: real etcd of each build; leases of the shortest TTL that etcd has, 2 s, several at once.
"""

from __future__ import annotations

import asyncio
import itertools

import pytest
from etcd_engines import ETCD
from etcd_servers import Etcd, etcd, shared_etcd
from store_engines import World, at_snapshot, everything, get, lease_id, on, put

from ringhold.env import real_env
from ringhold.errors import ChecksumMismatch, Compacted, Conflict, InvalidInput, SessionExpired
from ringhold.store.base import Absent, Born, Changes, NoneBornAfter, Put, Unchanged, run_direct
from ringhold.store.etcd import open_etcd_store, parse_etcd_url
from ringhold.store.etcd.names import Names
from ringhold.store.etcd.store import EtcdStore
from ringhold.types import Entry, EventKind

TTL_S = 2.0
LATE_S = 15.0
"""What etcd may need on a busy machine to end a lease that is due."""

names = iter(range(10**6))


@pytest.fixture(params=ETCD)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def server() -> Etcd:
    return shared_etcd("distro", 1)


async def opened(server: Etcd, name: str | None = None, *, create: bool = True) -> EtcdStore:
    address = parse_etcd_url(server.url(name or f"alone-{next(names)}"))
    return await open_etcd_store(address, real_env(), create=create)


# Leases in real time


def test_a_lease_that_nobody_renews_takes_its_keys_along_at_one_revision(engine: str) -> None:
    async def test(world: World) -> None:
        ending, renewed, longer = (lease_id(number) for number in range(3))
        await world.store.grant_lease(ending, TTL_S)
        await world.store.grant_lease(renewed, TTL_S)
        await world.store.grant_lease(longer, 60.0)
        held = await put(world.store, b"lock", b"bound", b"freed", b"moved", lease=ending)
        await put(world.store, b"renewed", lease=renewed)
        await put(world.store, b"freed")
        last = await put(world.store, b"moved", lease=longer)
        watch = world.store.watch(b"", last + 1)
        async with asyncio.timeout(LATE_S):
            changes = await with_renewals(world, renewed, asyncio.ensure_future(first(watch)))
        assert [(each.kind, each.key) for each in changes.events] == [
            (EventKind.DELETE, b"bound"),
            (EventKind.DELETE, b"lock"),
        ]
        await watch.aclose()  # type: ignore[attr-defined]
        assert [key for key, _ in await everything(world.store)] == [b"freed", b"moved", b"renewed"]
        with pytest.raises(Conflict):
            await world.store.commit(compares=[Born(b"lock", held)], puts=[Put(b"guarded", b"")])
        with pytest.raises(SessionExpired) as caught:
            await put(world.store, b"x", lease=ending)
        assert caught.value.session == ending
        with pytest.raises(SessionExpired):
            await world.store.renew_lease(ending)
        assert world.store.lease_until(ending) is None

    on(engine, test)


async def first(watch: object) -> Changes:
    async for changes in watch:  # type: ignore[attr-defined]
        found: Changes = changes
        return found
    raise AssertionError("the watch ended")


async def with_renewals(world: World, lease: bytes, news: asyncio.Future[Changes]) -> Changes:
    while not news.done():
        await world.store.renew_lease(lease)
        await asyncio.wait([news], timeout=TTL_S / 4)
    return news.result()


def test_a_lease_is_trusted_for_less_than_etcd_gives_it(engine: str) -> None:
    async def test(world: World) -> None:
        before_ns = world.env.clock.boottime_ns()
        await world.store.grant_lease(lease_id(1), 10.0)
        after_ns = world.env.clock.boottime_ns()
        until_ns = world.store.lease_until(lease_id(1))
        assert until_ns is not None
        assert before_ns + 9.6e9 <= until_ns < after_ns + 9.7e9
        await world.store.renew_lease(lease_id(1))
        renewed_ns = world.store.lease_until(lease_id(1))
        assert renewed_ns is not None
        assert until_ns < renewed_ns < world.env.clock.boottime_ns() + 10e9

    on(engine, test)


# Limits


def test_a_commit_as_large_as_etcd_takes_is_accepted_and_a_larger_one_names_the_flag(
    engine: str,
) -> None:
    async def test(world: World) -> None:
        keys = [b"%03d" % number for number in range(128)]
        puts = [Put(key, b"") for key in keys]
        revision = await world.store.commit(
            compares=[Absent(key) for key in keys[:127]], puts=puts[:100], deletes=keys[100:127]
        )
        with pytest.raises(InvalidInput, match="--max-txn-ops"):
            await world.store.commit(puts=puts)
        with pytest.raises(InvalidInput, match="--max-txn-ops"):
            await world.store.commit(compares=[Absent(b"x" + key) for key in keys])
        with pytest.raises(InvalidInput, match="--max-request-bytes"):
            await world.store.commit(puts=[Put(b"a", b"x" * 10**6), Put(b"b", b"x" * 600_000)])
        assert {entry.revision for _, entry in await everything(world.store)} == {revision}
        await world.store.commit(puts=[Put(b"a", b"x" * 10**6), Put(b"b", b"x" * 500_000)])
        assert await world.store.commit(compares=[Unchanged(b"000", revision)]) > revision

    on(engine, test)


@pytest.mark.parametrize(
    ("option", "puts"),
    [
        ("max_txn_ops", [Put(b"%d" % number, b"") for number in range(200)]),
        ("max_request_bytes", [Put(b"%d" % number, b"x" * 10**6) for number in range(3)]),
    ],
    ids=["operations", "bytes"],
)
def test_a_url_that_promises_more_than_etcd_takes_is_told_so(
    server: Etcd, option: str, puts: list[Put]
) -> None:
    async def main() -> None:
        url = server.url(f"alone-{next(names)}", **{option: 10**8})
        store = await open_etcd_store(parse_etcd_url(url), real_env(), create=True)
        try:
            with pytest.raises(InvalidInput, match="--" + option.replace("_", "-")):
                await store.commit(puts=puts)
            assert await everything(store) == []
        finally:
            await store.close()

    asyncio.run(main())


def test_a_range_may_be_guarded_up_to_the_last_revision(engine: str) -> None:
    async def test(world: World) -> None:
        await put(world.store, b"a")
        last = (1 << 63) - 1
        await world.store.commit(compares=[NoneBornAfter(b"a", b"b", last)])
        with pytest.raises(Conflict):
            await world.store.commit(compares=[Unchanged(b"a", last), Absent(b"a")])

    on(engine, test)


def test_many_large_values_are_read_whole(server: Etcd) -> None:
    async def main() -> None:
        store = await opened(server)
        try:
            value = b"x" * (1 << 20)
            keys = [b"%03d" % number for number in range(80)]
            for key in keys:
                await store.commit(puts=[Put(key, value)])
            assert [key for key, entry in await everything(store) if entry.value == value] == keys
            found = await at_snapshot(store, lambda snapshot: snapshot.get_many(keys))
            assert all(entry is not None and entry.value == value for entry in found)
        finally:
            await store.commit(deletes=keys)
            await store.close()

    asyncio.run(main())


@pytest.mark.parametrize("face", ["loop", "direct"])
def test_many_keys_are_read_in_order_at_one_revision(engine: str, face: str) -> None:
    keys = [b"%03d" % number for number in range(300)]
    missing = set(keys[::7])
    present = [key for key in keys if key not in missing]

    async def test(world: World) -> None:
        store = world.store
        assert isinstance(store, EtcdStore)

        async def write() -> None:
            # The pages of one round are written in turn: at any revision the values of two
            # neighbouring rounds stand, the newer one first.
            for number in itertools.count():
                for start in range(0, len(present), 100):
                    page = present[start : start + 100]
                    await store.commit(puts=[Put(key, b"%d" % number) for key in page])
                    written.set()

        async def read() -> tuple[int, list[Entry | None]]:
            snapshot = await store.snapshot()
            found = await snapshot.get_many(keys)
            return snapshot.revision, found

        def read_directly() -> tuple[int, list[Entry | None]]:
            snapshot = run_direct(store.direct.snapshot())
            found = run_direct(snapshot.get_many(keys))
            return snapshot.revision, found

        written = asyncio.Event()
        writer = asyncio.ensure_future(write())
        revisions = set()
        for _ in range(10):
            written.clear()
            await written.wait()
            if face == "loop":
                revision, found = await read()
            else:
                revision, found = await asyncio.to_thread(read_directly)
            entries = dict(zip(keys, found, strict=True))
            assert {key for key, entry in entries.items() if entry is None} >= missing
            rounds = [
                -1 if entry is None else int(entry.value)
                for key, entry in entries.items()
                if key not in missing
            ]
            assert rounds == sorted(rounds, reverse=True)
            assert rounds[0] - rounds[-1] <= 1
            assert max(entry.revision for entry in found if entry is not None) <= revision
            revisions.add(revision)
        writer.cancel()
        await asyncio.wait([writer])
        assert len(revisions) == 10
        assert await (await store.snapshot()).get_many([]) == []

    on(engine, test)


def test_many_keys_of_a_revision_that_is_gone_are_one_error() -> None:
    async def main() -> None:
        with etcd(flags=["--unsafe-no-fsync"]) as server:
            store = await opened(server)
            try:
                keys = [b"%d" % number for number in range(40)]
                snapshot, directly = await store.snapshot(), run_direct(store.direct.snapshot())
                await snapshot.get_many(keys)
                run_direct(directly.get_many(keys))
                await put(store, b"k")
                await put(store, b"k")
                server.compact()
                tasks = asyncio.all_tasks()
                with pytest.raises(Compacted):
                    await snapshot.get_many(keys)
                with pytest.raises(Compacted):
                    run_direct(directly.get_many(keys))
                assert asyncio.all_tasks() == tasks
            finally:
                await store.close()

    asyncio.run(main())


def test_a_commit_that_writes_nothing_moves_no_revision() -> None:
    # Its own server: elsewhere nonces end meanwhile.
    async def main() -> None:
        with etcd(flags=["--unsafe-no-fsync"]) as server:
            store = await opened(server)
            try:
                last = await put(store, b"k")
                assert await store.commit(compares=[Absent(b"other")]) == last
                assert await store.commit(nonce=b"n") == last
                assert await store.commit() == last
                with pytest.raises(Conflict):
                    await store.commit(compares=[Absent(b"k")])
                assert server.revision() == last
            finally:
                await store.close()

    asyncio.run(main())


# Beside others in one etcd


def test_clusters_of_one_etcd_know_nothing_of_one_another(server: Etcd) -> None:
    async def main() -> None:
        name = f"alone-{next(names)}"
        short, long = await opened(server, name), await opened(server, name + "-b")
        try:
            lease = lease_id(1)
            await short.grant_lease(lease, 60.0)
            await long.grant_lease(lease, 60.0)
            await put(short, b"a", b"\xff", lease=lease)
            await put(long, b"a", lease=lease)
            await short.revoke_lease(lease)
            assert await everything(short) == []
            assert [key for key, _ in await everything(long)] == [b"a"]
            await short.commit(puts=[Put(b"n", b"1")], nonce=b"nonce")
            await long.commit(puts=[Put(b"n", b"2")], nonce=b"nonce")
            assert (entry := await get(long, b"n")) is not None
            assert entry.value == b"2"
        finally:
            await short.close()
            await long.close()

    asyncio.run(main())


def test_a_value_that_ringhold_did_not_write_is_a_checksum_mismatch(server: Etcd) -> None:
    async def main() -> None:
        name = f"alone-{next(names)}"
        store = await opened(server, name)
        try:
            revision = await put(store, b"good", b"bad")
            bad = Names(name).key(b"bad").decode()
            server.ctl("put", bad, "something else")
            with pytest.raises(ChecksumMismatch, match="bad") as caught:
                await get(store, b"bad")
            assert "bad" in caught.value.what
            with pytest.raises(ChecksumMismatch):
                await everything(store)
            watch = store.watch(b"bad", revision + 1)
            with pytest.raises(ChecksumMismatch):
                await anext(watch)
            assert (await get(store, b"good")) is not None
            await put(store, b"bad")
            assert (await get(store, b"bad")) is not None
        finally:
            await store.close()

    asyncio.run(main())


def test_a_layout_of_another_version_is_refused(server: Etcd) -> None:
    async def main() -> None:
        name = f"alone-{next(names)}"
        await (await opened(server, name)).close()
        server.ctl("put", Names(name).format_key.decode(), "0-from-the-future")
        with pytest.raises(InvalidInput, match="0-from-the-future"):
            await opened(server, name, create=False)
        with pytest.raises(FileExistsError):
            await opened(server, name)

    asyncio.run(main())


# What is left behind


def test_what_became_of_a_commit_is_known_after_its_store_was_closed(server: Etcd) -> None:
    async def main() -> None:
        name, nonces = f"alone-{next(names)}", (b"of the loop's", b"of the direct")
        store = await opened(server, name)
        revisions = [
            await store.commit(puts=[Put(b"a", b"")], nonce=nonces[0]),
            run_direct(store.direct.commit(puts=[Put(b"b", b"")], nonce=nonces[1])),
        ]
        await store.close()
        store = await opened(server, name, create=False)
        for nonce, revision in zip(nonces, revisions, strict=True):
            assert await store.commit(puts=[Put(b"c", b"")], nonce=nonce) == revision
        assert await get(store, b"c") is None
        await store.close()

    asyncio.run(main())

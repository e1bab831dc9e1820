"""Goal: whatever Ringhold commits by itself fits into a transaction of a stock etcd.

Method: clusters on every engine, whose store refuses what etcd would refuse; deep paths, full
directories, long files, many deletions, many sharers, nodes replaced. Each test ends with an
fsck. What users ask for in one transaction, and is too much, is refused by name.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from etcd_engines import ETCD_ABOVE, etcd_url
from limited_store import LimitedWorld

import ringhold
from ringhold.errors import Closed, TransactionTooLarge
from ringhold.files import write
from ringhold.store.base import OPERATIONS_MAX

CHUNK = 64 << 10
_names = itertools.count()

Make = Callable[..., ringhold.Cluster]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[LimitedWorld]:
    with LimitedWorld().patched(monkeypatch) as world:
        yield world


@pytest.fixture(params=["memory", "sqlite", *ETCD_ABOVE])
def make(request: pytest.FixtureRequest, world: LimitedWorld, tmp_path: Path) -> Iterator[Make]:
    """Creates the cluster of a test, and checks it at the end."""
    with contextlib.ExitStack() as stack:

        def make(nodes: int = 1, **options: Any) -> ringhold.Cluster:
            name = f"limits{next(_names)}"
            specs: Any = nodes
            if request.param == "memory":
                url = f"memory://{name}"
            elif request.param == "sqlite":
                url = str(tmp_path / "c")
            else:
                url = etcd_url(request.param, name)
                specs = [
                    ringhold.NodeSpec(f"n{number}", path=str(tmp_path / f"n{number}"))
                    for number in range(1, nodes + 1)
                ]
            cluster = ringhold.create(url, nodes=specs, chunk_size=CHUNK, **options)
            stack.callback(close, cluster)
            return cluster

        def close(cluster: ringhold.Cluster) -> None:
            with contextlib.suppress(Closed), cluster:
                assert cluster.fs.fsck(copies=True).problems == []

        yield make


def fill(cluster: ringhold.Cluster, directory: str, count: int) -> list[str]:
    """Small files, as many in each commit as fit."""
    paths = [f"{directory}/f{number:05d}" for number in range(count)]
    cluster.fs.makedirs(directory)
    for start in range(0, count, 50):
        with cluster.fs.transaction:
            for path in paths[start : start + 50]:
                cluster.fs.pipe_file(path, b"x")
    return paths


def long_file(monkeypatch: pytest.MonkeyPatch, chunks: int) -> bytes:
    """Contents of as many chunks, in runs of 2: as many runs as of a file 32 times as long."""
    monkeypatch.setattr(write, "CHUNKS_PER_RUN", 2)
    return bytes(range(256)) * (CHUNK // 256) * chunks


def records_of(cluster: ringhold.Cluster, *prefixes: bytes) -> int:
    """How many records of files there are below `prefixes`."""

    async def count() -> int:
        store: Any = cluster._home.cluster()._store
        snapshot = await store.snapshot()
        try:
            return sum([len(await snapshot.range(p, p + b"\xff" * 40)) for p in prefixes])
        finally:
            await snapshot.close()

    return cluster._home.bridge().run(count())


def test_paths_thirty_deep(make: Make, world: LimitedWorld) -> None:
    fs = make().fs
    deep = "/".join(f"d{level}" for level in range(30))
    other = "/".join(f"e{level}" for level in range(30))
    fs.pipe_file(f"/{deep}/file", b"x" * 100_000)
    fs.cp_file(f"/{deep}/file", f"/{deep}/copy")
    fs.mv(f"/{deep}/file", f"/{other}/file")
    with fs.lock(f"/{other}/file"):
        fs.pipe_file(f"/{other}/file", b"y")
    fs.mv(f"/{deep}/copy", f"/{other}/copy")
    assert fs.cat_file(f"/{other}/copy") == b"x" * 100_000
    fs.mv("/d0", f"/{other}/d0")
    fs.rm("/e0", recursive=True)
    assert fs.ls("/", detail=False) == []
    assert world.most.compares > 60


def test_a_directory_of_a_thousand_entries(make: Make) -> None:
    cluster = make()
    fs = cluster.fs
    paths = fill(cluster, "/full", 1000)
    assert fs.ls("/full", detail=False) == paths
    fs.mv("/full", "/moved")
    assert len(fs.find("/moved")) == 1000
    fs.rm("/moved", recursive=True)
    assert not fs.exists("/moved")
    assert fs.gc(0).trees == 1
    assert records_of(cluster, b"D", b"G") == 0


@pytest.mark.parametrize("everything", [False, True])
def test_many_paths_at_once(make: Make, everything: bool) -> None:
    cluster = make()
    fs = cluster.fs
    paths = fill(cluster, "/many", 200)
    moved = [f"/other/g{number}" for number in range(100)]
    fs.mv(paths[:100], moved)
    assert fs.find("/") == sorted([*moved, *paths[100:]])
    with pytest.raises(FileNotFoundError):
        fs.rm([*paths[100:], "/many/none"])
    assert len(fs.find("/")) == 200
    if everything:
        for number in range(150):
            fs.mkdir(f"/top{number}")
        fs.rm("/", recursive=True)
    else:
        fs.rm("/many/*")
        fs.rm("/other", recursive=True, maxdepth=1)
    assert fs.find("/") == []


def test_files_of_many_runs(
    make: Make, world: LimitedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = long_file(monkeypatch, 200)
    cluster = make(nodes=3, replicas=2)
    fs = cluster.fs
    fs.pipe_file("/long", data)
    assert fs.cat_file("/long") == data
    assert fs.fsck(copies=True).ok
    fs.cp_file("/long", "/copy")
    assert fs.fsck(copies=True).ok
    assert len(fs.locate("/copy")) == 200
    fs.pipe_file("/long", data[::-1])
    assert fs.gc(0).runs == 0
    assert fs.cat_file("/copy") == data
    fs.rm("/copy")
    assert fs.gc(0).runs == 100
    assert fs.cat_file("/long") == data[::-1]
    fs.rm("/long")
    assert (fs.gc(0).runs, fs.gc(0).files) == (100, 0)
    assert records_of(cluster, b"X", b"C", b"G", b"K") == 0
    assert world.most.compares > 60
    assert world.most.changes > 60


def test_deletions_by_the_hundred(make: Make) -> None:
    cluster = make()
    fs = cluster.fs
    for number in range(20):
        fs.pipe_file(f"/first{number}", bytes([number]) * 10_000)
    for number in range(200):
        fs.cp_file(f"/first{number % 20}", f"/copy{number}")
    fs.rm("/copy*")
    report = fs.gc(0)
    assert (report.files, report.runs) == (200, 0)
    assert fs.cat_file("/first7") == bytes([7]) * 10_000
    fs.rm("/*")
    assert fs.gc(0).runs == 20
    assert records_of(cluster, b"G", b"C", b"X") == 0


def test_a_node_that_is_lost_and_replaced(
    world: LimitedWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = long_file(monkeypatch, 80)
    url = str(tmp_path / "c")
    with ringhold.create(url, nodes=3, replicas=3, chunk_size=CHUNK) as cluster:
        cluster.fs.pipe_file("/before", data)
        shutil.rmtree(tmp_path / "c" / "nodes" / "n2")
        # With a copy short of every chunk, each run has a third record.
        cluster.fs.pipe_file("/meanwhile", data)
        assert records_of(cluster, b"K") == 40
        cluster.replace_node("n2")
        assert cluster.fs.repair().complete
        assert records_of(cluster, b"K") == 0
        assert cluster.fs.scrub().clean
        assert cluster.fs.fsck(copies=True).ok
    assert world.most.changes >= 90


def test_a_cluster_of_many_nodes(world: LimitedWorld) -> None:
    nodes = [
        ringhold.NodeSpec(f"{number:04d}".ljust(200, "n"), weight=1.0) for number in range(150)
    ]
    with ringhold.create(f"memory://limits{next(_names)}", nodes=nodes, replicas=5) as cluster:
        assert len(cluster.nodes()) == 150
        cluster.fs.pipe_file("/f", b"x" * 10_000)


def test_a_lock_with_a_hundred_sharers(world: LimitedWorld) -> None:
    """All of them hold it, one wants it alone, all of them want it again."""

    async def test() -> None:
        url = f"memory://limits{next(_names)}"
        async with contextlib.AsyncExitStack() as stack:
            first = await stack.enter_async_context(await ringhold.aio.create(url))
            others = [await stack.enter_async_context(ringhold.aio.open(url)) for _ in range(100)]
            shares = [await other.lock("l", mode="shared").acquire() for other in others]
            writer = asyncio.ensure_future(first.lock("l").acquire())
            await asyncio.sleep(0.2)
            for share in shares:
                assert share is not None
                await share.release()
            async with asyncio.timeout(20):
                grant = await writer
            assert grant is not None
            again = [
                asyncio.ensure_future(other.lock("l", mode="shared").acquire()) for other in others
            ]
            while len(await first.locks.waiters("l")) < 100:  # noqa: ASYNC110 - asks the store
                await asyncio.sleep(0.05)
            await grant.release()
            async with asyncio.timeout(20):
                assert all([await each for each in again])
            assert await first.locks.break_("l")
            for each in again:
                lost = each.result()
                assert lost is not None
                async with asyncio.timeout(20):
                    await lost.lost.wait()

    asyncio.run(test())
    assert world.most.changes >= 90


def test_what_is_too_much_in_one_transaction_is_refused_by_name(
    make: Make, world: LimitedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = make()
    data = long_file(monkeypatch, 200)
    paths = fill(cluster, "/many", 100)
    world.asked = True

    def files() -> None:
        with cluster.fs.transaction:
            cluster.fs.rm(paths)

    def long() -> None:
        with cluster.transaction() as tx:
            tx.fs.pipe_file("/long", data)

    def copy() -> None:
        with cluster.transaction() as tx:
            tx.fs.cp_file("/alone", "/long")

    def keys() -> None:
        with cluster.transaction() as tx:
            for number in range(129):
                tx.kv[str(number)] = b"x"

    cluster.fs.pipe_file("/alone", data)
    for ask in (files, long, copy, keys):
        with pytest.raises(TransactionTooLarge, match=r"Limits\(|--max-txn-ops") as caught:
            ask()
        assert not caught.value.retryable
    assert len(cluster.fs.find("/")) == 101
    assert list(cluster.kv.range()) == []


def test_embedded_engines_tell_their_limits(tmp_path: Path) -> None:
    for url in (f"memory://limits{next(_names)}", str(tmp_path / "c")):
        with ringhold.create(url) as cluster:
            store: Any = cluster._home.cluster()._store
            assert store.limits.allow(0, OPERATIONS_MAX)
            assert not store.limits.allow(1, OPERATIONS_MAX)

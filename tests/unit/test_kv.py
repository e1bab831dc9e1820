"""Goal: small state in the store behaves like a mapping of bytes, atomically, on both faces.

Method: clusters in memory, opened through the public interface.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from etcd_engines import ETCD_ABOVE, cluster_at

import ringhold
from ringhold.errors import Closed, Conflict, InvalidInput
from ringhold.types import EventKind

_names = itertools.count()


@pytest.fixture(params=["memory", *ETCD_ABOVE])
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ringhold.Cluster]:
    url, options = cluster_at(request.param, f"kv{next(_names)}", tmp_path)
    with ringhold.create(url, **options) as made:
        yield made


def test_put_get_delete(cluster: ringhold.Cluster) -> None:
    kv = cluster.kv
    assert kv.get("a") is None
    assert kv.get("a", b"d") == b"d"
    assert "a" not in kv
    kv["a"] = b"1"
    assert kv["a"] == kv.get("a") == b"1"
    assert "a" in kv
    first = kv.entry("a")
    revision = kv.put("a", b"2")
    second = kv.entry("a")
    assert first is not None
    assert second is not None
    assert second.revision == revision > first.revision
    assert second.created == first.created
    kv.delete("a")
    kv.delete("a")
    assert kv.entry("a") is None
    kv["b"] = b""
    assert kv["b"] == b""
    del kv["b"]
    for missing in (lambda: kv["b"], lambda: kv.__delitem__("b")):
        with pytest.raises(KeyError):
            missing()


@pytest.mark.parametrize("key", ["k", "käse", "a/b", "\0", "x" * 4096, "\udcff\udcfe"])
def test_text_and_its_bytes_are_the_same_key(cluster: ringhold.Cluster, key: str) -> None:
    raw = key.encode("utf-8", "surrogateescape")
    cluster.kv[raw] = b"v"
    assert cluster.kv[key] == b"v"
    assert [found for found, _ in cluster.kv.range()] == [key]


@pytest.mark.parametrize("key", ["", b"", "x" * 4097, b"x" * (64 << 10), "\ud800"])
def test_impossible_keys(cluster: ringhold.Cluster, key: Any) -> None:
    for call in (cluster.kv.get, cluster.kv.entry, cluster.kv.delete):
        with pytest.raises(InvalidInput):
            call(key)
    with pytest.raises(InvalidInput):
        cluster.kv[key] = b""


@pytest.mark.parametrize("key", [None, 1, bytearray(b"k"), ["k"]])
def test_keys_of_the_wrong_type(cluster: ringhold.Cluster, key: Any) -> None:
    with pytest.raises(TypeError):
        cluster.kv.get(key)
    with pytest.raises(TypeError):
        cluster.kv[key] = b""


def test_values_are_bytes(cluster: ringhold.Cluster) -> None:
    for value in ("text", 1, None, [1]):
        with pytest.raises(TypeError):
            cluster.kv["k"] = value  # type: ignore[assignment]
    mutable = bytearray(b"copied")
    cluster.kv["k"] = mutable
    mutable[:] = b"later!"
    assert cluster.kv["k"] == b"copied"
    cluster.kv["k"] = memoryview(b"abc")[1:]
    assert cluster.kv["k"] == b"bc"
    cluster.kv["k"] = b"x" * (1 << 20)
    with pytest.raises(InvalidInput):
        cluster.kv["k"] = b"x" * ((1 << 20) + 1)


def test_compare_and_put(cluster: ringhold.Cluster) -> None:
    kv = cluster.kv
    first = kv.put("k", b"1", if_revision=0)
    with pytest.raises(Conflict, match="'k'"):
        kv.put("k", b"2", if_revision=0)
    second = kv.put("k", b"2", if_revision=first)
    with pytest.raises(Conflict) as caught:
        kv.put("k", b"3", if_revision=first)
    assert caught.value.retryable
    assert kv.entry("k") == ringhold.Entry(b"2", second, first)
    for wrong in (True, "1", 1.0):
        with pytest.raises(TypeError):
            kv.put("k", b"", if_revision=wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput):
        kv.put("k", b"", if_revision=-1)


def test_counting_by_compare_and_put_loses_nothing(cluster: ringhold.Cluster) -> None:
    cluster.kv["n"] = b"0"

    def count() -> None:
        for _ in range(25):
            while True:
                entry = cluster.kv.entry("n")
                assert entry is not None
                value = b"%d" % (int(entry.value) + 1)
                try:
                    cluster.kv.put("n", value, if_revision=entry.revision)
                    break
                except Conflict:
                    continue

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cluster.kv["n"] == b"100"


def test_ranges(cluster: ringhold.Cluster) -> None:
    kv = cluster.kv
    for key in ("a", "b/1", "b/2", "b/3", "b0", "c"):
        kv[key] = key.encode()

    def keys(*args: Any, **options: Any) -> list[str]:
        return [key for key, entry in kv.range(*args, **options) if entry.value == key.encode()]

    assert keys() == ["a", "b/1", "b/2", "b/3", "b0", "c"]
    assert keys("b/") == ["b/1", "b/2", "b/3"]
    assert keys("b/", limit=2) == ["b/1", "b/2"]
    assert keys("b/", start="b/2") == ["b/2", "b/3"]
    assert keys("b/", end="b/2") == ["b/1"]
    assert keys(start="b/3", end=b"c") == ["b/3", "b0"]
    assert keys(start="c", end="a") == keys(limit=0) == keys("x") == keys(end="") == []
    with pytest.raises(InvalidInput):
        keys(limit=-1)
    for wrong in (True, "1"):
        with pytest.raises(TypeError):
            keys(limit=wrong)


def test_a_range_ends_with_the_user_s_keys(cluster: ringhold.Cluster) -> None:
    cluster.kv[b"\xff\xff"] = b"last"
    with cluster.lock("l"):
        assert [entry.value for _, entry in cluster.kv.range()] == [b"last"]


def test_watch_sees_every_change_in_order(cluster: ringhold.Cluster) -> None:
    kv = cluster.kv
    with kv.watch("w/") as events:
        first = kv.put("w/a", b"1")
        kv["other"] = b"x"
        kv.delete("w/a")
        kv["w/b"] = b"2"
        seen = [next(events) for _ in range(3)]
    assert [(event.kind, event.key, event.value) for event in seen] == [
        (EventKind.PUT, "w/a", b"1"),
        (EventKind.DELETE, "w/a", None),
        (EventKind.PUT, "w/b", b"2"),
    ]
    assert seen[0].revision == first
    with kv.watch("w/", since=first) as later:
        assert next(later).kind is EventKind.DELETE


def test_a_waiting_watch_is_woken_and_ends_with_the_cluster(cluster: ringhold.Cluster) -> None:
    events = cluster.kv.watch("w")
    seen: list[Any] = []

    def follow() -> None:
        try:
            for event in events:
                seen.append(event.key)
                arrived.set()
        except Closed:
            seen.append("closed")

    arrived = threading.Event()
    thread = threading.Thread(target=follow)
    thread.start()
    cluster.kv["w1"] = b""
    assert arrived.wait(10)
    cluster.close()
    thread.join(10)
    assert seen[0] == "w1"
    assert not thread.is_alive()


def test_the_mapping_cannot_be_iterated_by_accident(cluster: ringhold.Cluster) -> None:
    with pytest.raises(TypeError):
        iter(cluster.kv)  # type: ignore[call-overload]


def test_the_async_face() -> None:
    async def main() -> None:
        async with ringhold.aio.create(f"memory://kv{next(_names)}") as cluster:
            kv = cluster.kv
            revision = await kv.put("a", b"1")
            assert await kv.get("a") == b"1"
            assert await kv.get("b", b"d") == b"d"
            await kv.put("b", b"2")
            assert [key async for key, _ in kv.range()] == ["a", "b"]
            watch = kv.watch("", since=revision - 1)
            assert (await anext(watch)).key == "a"
            await watch.aclose()  # type: ignore[attr-defined]
            await kv.delete("a")
            assert await kv.entry("a") is None
            assert not hasattr(kv, "__getitem__")
        with pytest.raises(Closed):
            await kv.get("a")

    asyncio.run(main())

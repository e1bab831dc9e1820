"""Goal: ``with fs.transaction`` is all or nothing for the thread or task that is in it and
nobody else, file locks fence, and nothing an aborted block does hurts the file system object.
Method: blocking and coroutine faces of real clusters in memory; other threads and tasks act
between two steps of a transaction and wait for each other by events.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import ringhold
from ringhold import aio

CHUNK = 64 << 10
LARGE = bytes(range(256)) * (3 * CHUNK // 256) + b"end"


@pytest.fixture
def cluster(tmp_path: Any) -> Iterator[Any]:
    with ringhold.create(f"memory://{tmp_path}", nodes=3, replicas=3, chunk_size=CHUNK) as cluster:
        yield cluster
        report = cluster.fs.fsck(copies=True)
        assert report.ok, report.problems


def elsewhere(function: Any, *args: Any) -> Any:
    """Calls `function` in another thread, which is in no transaction of this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *args).result(30)


def test_everything_in_the_block_becomes_visible_at_once(cluster: Any) -> None:
    fs = cluster.fs
    fs.pipe({"/old": b"old", "/move": LARGE, "/gone/x": b"x"})
    with fs.transaction:
        fs.pipe_file("/a", b"a")
        fs.pipe_file("/large", LARGE)
        with fs.open("/written", "wb") as file:
            file.write(LARGE)
        fs.cp("/large", "/copy")
        fs.mv("/move", "/moved")
        fs.rm("/gone", recursive=True)
        fs.mkdir("/dir")
        fs.pipe_file("/old", b"new")
        assert fs.cat_file("/large") == fs.cat_file("/copy") == fs.cat_file("/written") == LARGE
        assert fs.find("/") == ["/a", "/copy", "/large", "/moved", "/old", "/written"]
        assert elsewhere(fs.find, "/") == ["/gone/x", "/move", "/old"]
        assert elsewhere(fs.cat_file, "/old") == b"old"
    assert elsewhere(fs.find, "/") == ["/a", "/copy", "/large", "/moved", "/old", "/written"]
    assert fs.cat(fs.find("/"))["/written"] == LARGE
    assert fs.isdir("/dir")


def test_an_exception_leaves_nothing_and_a_healthy_file_system(cluster: Any) -> None:
    fs = cluster.fs
    fs.pipe_file("/keep", b"keep")
    with pytest.raises(KeyError), fs.transaction:  # noqa: PT012 - the block is what raises
        fs.pipe_file("/no", LARGE)
        fs.rm("/keep")
        assert not fs.exists("/keep")
        raise KeyError
    assert fs.find("/") == ["/keep"]
    fs.pipe_file("/after", b"after")
    assert elsewhere(fs.find, "/") == ["/after", "/keep"]
    with fs.transaction:
        fs.pipe_file("/second", b"")
    assert fs.exists("/second")


def test_start_and_end_transaction_mean_the_same(cluster: Any) -> None:
    fs = cluster.fs
    fs.start_transaction()
    fs.pipe_file("/a", b"a")
    assert not elsewhere(fs.exists, "/a")
    fs.end_transaction()
    assert elsewhere(fs.exists, "/a")
    with pytest.raises(RuntimeError, match="no file transaction"):
        fs.end_transaction()


def test_nesting_raises_and_the_outer_one_goes_on(cluster: Any) -> None:
    fs = cluster.fs
    with fs.transaction:
        fs.pipe_file("/a", b"a")
        with pytest.raises(RuntimeError, match="nest"), fs.transaction:
            pass
        with pytest.raises(RuntimeError, match="nest"):
            fs.start_transaction()
        fs.pipe_file("/b", b"b")
    assert fs.find("/") == ["/a", "/b"]


def test_what_was_read_and_changed_by_others_aborts(cluster: Any) -> None:
    fs = cluster.fs
    fs.pipe_file("/read", b"1")
    with pytest.raises(ringhold.TransactionAborted) as caught, fs.transaction:  # noqa: PT012 - the block is what raises
        value = fs.cat_file("/read")
        elsewhere(fs.pipe_file, "/read", b"2")
        fs.pipe_file("/derived", value)
    assert caught.value.retryable
    assert fs.find("/") == ["/read"]
    with pytest.raises(ringhold.TransactionAborted), fs.transaction:  # noqa: PT012 - the block is what raises
        assert fs.ls("/list" if fs.exists("/list") else "/") != []
        elsewhere(fs.pipe_file, "/phantom", b"")
        fs.pipe_file("/derived", b"")


@pytest.mark.parametrize(
    ("mine", "theirs", "told"),
    [
        (lambda fs: fs.cat_file("/a/b/f"), "/a/b/f", "/a/b/f was changed by others"),
        (lambda fs: fs.exists("/a/b/new"), "/a/b/new", "/a/b/new was changed by others"),
        (lambda fs: fs.ls("/a/b"), "/a/b/new", "/a/b was added to by others"),
        (lambda fs: fs.ls("/"), "/new", "/ was added to by others"),
    ],
)
def test_a_conflict_is_told_by_the_path(cluster: Any, mine: Any, theirs: str, told: str) -> None:
    fs = cluster.fs
    fs.pipe_file("/a/b/f", b"")
    with pytest.raises(ringhold.TransactionAborted, match=told) as caught, fs.transaction:  # noqa: PT012 - the block is what raises
        mine(fs)
        elsewhere(fs.pipe_file, theirs, b"theirs")
        fs.pipe_file("/derived", b"")
    assert told in caught.value.reason
    fs.rm_file(theirs)
    fs.pipe_file("/a/b/f", b"")
    with pytest.raises(ringhold.TransactionAborted, match=told), cluster.transaction() as tx:  # noqa: PT012 - the block is what raises
        mine(tx.fs)
        fs.pipe_file(theirs, b"theirs")
        tx.kv["a"] = b""


def test_a_failed_operation_leaves_the_transaction_as_it_was(cluster: Any) -> None:
    fs = cluster.fs
    with fs.transaction:
        fs.pipe_file("/a/f", b"a")
        for failing in (
            lambda: fs.rmdir("/a"),
            lambda: fs.mv("/none", "/x"),
            lambda: fs.mv("/a", "/a/b"),
            lambda: fs.pipe_file("/a", b""),
            lambda: fs.pipe_file("/a/f", b"", mode="create"),
        ):
            with pytest.raises(OSError):  # noqa: PT011 - a different one each
                failing()
    assert fs.find("/") == ["/a/f"]


@contextlib.contextmanager
def file_transaction(cluster: Any) -> Iterator[Any]:
    with cluster.fs.transaction:
        yield cluster.fs


@contextlib.contextmanager
def cluster_transaction(cluster: Any) -> Iterator[Any]:
    with cluster.transaction() as tx:
        yield tx.fs


@pytest.mark.parametrize("begin", [file_transaction, cluster_transaction])
def test_an_operation_that_fails_half_way_leaves_nothing_of_itself(
    cluster: Any, begin: Any, tmp_path: Any
) -> None:
    fs = cluster.fs
    fs.pipe({"/f1": b"1", "/f2": b"2", "/d/f3": b"3"})
    local = tmp_path / "local"
    local.write_bytes(os.urandom(20_000))
    with begin(cluster) as inside:
        for failing in (
            lambda: inside.mv(["/f1", "/missing"], ["/new/f1", "/x"]),
            lambda: inside.rm(["/f1", "/f2", "/d"]),
            lambda: inside.rm(["/f1", "/d", "/d/f3"], recursive=True, maxdepth=0),
            lambda: inside.put([str(local)] * 2, ["/p/q/f1", "/f1/below"]),
        ):
            with pytest.raises((OSError, ValueError)):
                failing()
            inside.rm("/p", recursive=True) if inside.exists("/p") else None
            assert inside.find("/", withdirs=True) == ["/", "/d", "/d/f3", "/f1", "/f2"]
        inside.mkdir("/other")
        inside.pipe_file("/other/g", b"g")
    assert fs.find("/", withdirs=True) == [
        "/", "/d", "/d/f3", "/f1", "/f2", "/other", "/other/g"
    ]  # fmt: skip
    inodes = [info["ino"] for info in fs.find("/", withdirs=True, detail=True).values()]
    assert len(set(inodes)) == len(inodes)
    fs.gc(0)
    report = fs.fsck(copies=True)
    assert report.ok, report.problems


def test_a_file_belongs_to_the_transaction_it_was_opened_in(cluster: Any) -> None:
    fs = cluster.fs
    fs.pipe_file("/r", LARGE)
    outside = fs.open("/outside", "wb")
    with fs.transaction:
        inside = fs.open("/inside", "wb")
        inside.write(b"x")
        reading = fs.open("/r")
        outside.write(b"y")
        outside.close()
        assert elsewhere(fs.exists, "/outside")
    with pytest.raises(ringhold.Closed):
        inside.close()
    assert not fs.exists("/inside")
    assert reading.read() == LARGE


def test_other_threads_may_have_transactions_of_their_own(cluster: Any) -> None:
    fs = cluster.fs
    barrier = threading.Barrier(4)

    def work(number: int) -> None:
        with fs.transaction:
            fs.pipe_file(f"/{number}/a", b"a")
            barrier.wait(30)
            assert fs.find(f"/{number}") == [f"/{number}/a"]
            barrier.wait(30)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert len(fs.find("/")) == 4


def test_the_same_through_another_instance_and_not_through_another_cluster(
    cluster: Any, tmp_path: Any
) -> None:
    import fsspec

    fs, twin = cluster.fs, fsspec.filesystem("ringhold", cluster=cluster.url)
    with ringhold.create(f"memory://{tmp_path}/2") as second:
        with contextlib.suppress(KeyError), fs.transaction, second.fs.transaction:
            second.fs.pipe_file("/other", b"")
            fs.pipe_file("/mine", b"")
            raise KeyError
        assert not second.fs.exists("/other")
        with contextlib.suppress(KeyError), fs.transaction:
            second.fs.pipe_file("/other", b"")
            raise KeyError
        assert second.fs.exists("/other")
    assert twin.find("/") == []


def test_the_chunks_of_a_rolled_back_transaction_go_at_once(cluster: Any) -> None:
    fs = cluster.fs
    with pytest.raises(KeyError), fs.transaction:  # noqa: PT012 - the block is what raises
        fs.pipe_file("/no", LARGE)
        raise KeyError
    cluster._bridge.run(fs.core.settle())
    assert fs.gc(0).chunks == 0
    placed = cluster._bridge.run(_listed(fs.core))
    assert placed == []


async def _listed(core: Any) -> list[Any]:
    from ringhold.files.survey import holders_of, tables_now, take_inventory

    inventory = await take_inventory(core.placement, holders_of(await tables_now(core.store)))
    return [chunk for chunks in inventory.chunks.values() for chunk in chunks]


def test_the_transaction_of_a_task_is_its_own_and_its_childrens(tmp_path: Any) -> None:
    async def use() -> None:
        async with await aio.create(f"memory://{tmp_path}", chunk_size=CHUNK) as cluster:
            fs = cluster.fs
            entered, written = asyncio.Event(), asyncio.Event()

            async def inside() -> None:
                async with fs.transaction:
                    entered.set()
                    await asyncio.gather(*(fs._pipe_file(f"/in/{n}", b"x") for n in range(5)))
                    assert len(await fs._find("/in")) == 5
                    await written.wait()

            async def outside() -> None:
                await entered.wait()
                await fs._pipe_file("/outside", LARGE)
                assert await fs._find("/") == ["/outside"]
                written.set()

            async with asyncio.TaskGroup() as group:
                group.create_task(outside())
                group.create_task(inside())
            assert len(await fs._find("/")) == 6

    asyncio.run(use())


def test_a_lock_is_a_context_manager_with_a_token_and_fences(cluster: Any) -> None:
    fs = cluster.fs
    with pytest.raises(FileNotFoundError), fs.lock("/f"):
        pass
    fs.pipe_file("/f", b"1")
    with fs.lock("/f") as first:
        assert elsewhere(fs.lock("/f").try_acquire) is None
        fs.mv("/f", "/g")
        fs.pipe_file("/g", b"2")
    with fs.lock("/g", timeout=5) as second:
        assert second.token > first.token
    with pytest.raises(ringhold.InvalidInput, match="shared"):
        fs.lock("/g", shared=True)
    with pytest.raises(ringhold.InvalidInput, match="range"):
        fs.lock("/g", start=1)
    with pytest.raises(ringhold.InvalidInput, match="range"):
        fs.lock("/g", length=1)


def test_a_lock_lost_before_the_end_of_a_transaction_refuses_it(cluster: Any) -> None:
    fs = cluster.fs
    fs.pipe_file("/f", b"1")
    with pytest.raises(ringhold.LockLost), fs.lock("/f") as grant:  # noqa: SIM117, PT012 - the block is what raises
        with fs.transaction:
            fs.pipe_file("/f", b"zombie")
            deleting = fs.core.store.commit(deletes=[grant.held.held.key])
            cluster._bridge.run(deleting)
    assert fs.cat_file("/f") == b"1"


def test_an_interrupt_cancels_the_write_behind_a_blocking_call(cluster: Any) -> None:
    import signal

    fs = cluster.fs
    started = threading.Event()
    placement = fs.core.placement
    put_chunk = placement.put_chunk
    ended: list[bool] = []

    async def slow(*args: Any) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    placement.put_chunk = slow

    def interrupt() -> None:
        started.wait(30)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        fs.pipe_file("/f", LARGE)
    thread.join(30)
    assert ended
    placement.put_chunk = put_chunk
    assert not fs.exists("/f")
    fs.pipe_file("/f", LARGE)


def test_after_close_everything_raises_closed(tmp_path: Any) -> None:
    cluster = ringhold.create(f"memory://{tmp_path}")
    fs = cluster.fs
    fs.pipe_file("/f", LARGE)
    writer, reader = fs.open("/w", "wb"), fs.open("/f")
    cluster.close()
    for call in (lambda: fs.ls("/"), lambda: fs.pipe_file("/x", b""), lambda: fs.cat_file("/f"),
                 writer.close, reader.read, lambda: fs.gc(0), lambda: fs.open("/f")):  # fmt: skip
        with pytest.raises(ringhold.Closed):
            call()


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_a_file_being_written_says_at_once_that_its_cluster_was_closed(
    tmp_path: Any, compression: str | None
) -> None:
    with ringhold.create(f"memory://{tmp_path}") as cluster:
        writer, left = (cluster.fs.open(f"/{n}", "wb", compression=compression) for n in range(2))
        writer.write(b"1")
    for call in (lambda: writer.write(b"2"), writer.flush, writer.close):
        with pytest.raises(ringhold.Closed, match="discarded"):
            call()
    assert writer.closed
    # What the collector ends says nothing more.
    del left
    gc.collect()


def test_what_a_transaction_writes_and_removes_again_is_freed(cluster: Any) -> None:
    fs = cluster.fs
    with fs.transaction:
        fs.pipe_file("/twice", LARGE)
        fs.pipe_file("/twice", LARGE[::-1])
        fs.pipe_file("/tree/below/f", LARGE)
        fs.rm("/tree", recursive=True)
        fs.pipe_file("/tree/f", LARGE)
        fs.cp("/twice", "/tree/twice")
        fs.rm("/twice")
        fs.mkdir("/empty")
        fs.rmdir("/empty")
    assert fs.find("/", withdirs=True) == ["/", "/tree", "/tree/f", "/tree/twice"]
    assert fs.cat_file("/tree/twice") == LARGE[::-1]
    assert fs.fsck(copies=True).ok
    fs.gc(0)
    per_file = -(-len(LARGE) // CHUNK)
    assert len(cluster._bridge.run(_listed(fs.core))) == 2 * per_file * 3


def test_a_transaction_of_the_cluster_has_the_same_files(cluster: Any) -> None:
    fs = cluster.fs
    with cluster.transaction() as tx:
        tx.kv["published"] = b"1"
        tx.fs.pipe_file("/tx", LARGE)
        with tx.fs.open("/written", "wb") as file:
            file.write(LARGE)
        assert tx.fs.cat_file("/written") == LARGE
        assert not fs.exists("/tx")
    assert fs.find("/") == ["/tx", "/written"]
    with pytest.raises((ringhold.Closed, ringhold.TransactionAborted)):
        tx.fs.ls("/")
    with pytest.raises(KeyError), cluster.transaction() as tx:  # noqa: PT012 - the block is what raises
        tx.fs.rm("/tx")
        raise KeyError
    assert fs.exists("/tx")


def test_in_a_forked_child_it_is_closed_and_says_whose_it_is(cluster: Any) -> None:
    fs = cluster.fs
    fs.pipe_file("/f", LARGE)
    with fs.open("/f") as file, fs.open("/w", "wb") as writer:
        child = os.fork()
        if child == 0:
            told = 0
            for call in (lambda: fs.ls("/"), lambda: file.read(), lambda: writer.close()):
                try:
                    call()
                except ringhold.Closed as error:
                    told += error.pid == os.getppid()
            os._exit(told)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
        assert file.read() == LARGE
        writer.write(b"still the parent's")
    assert fs.cat_file("/w") == b"still the parent's"

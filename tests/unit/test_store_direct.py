"""Goal: a blocking caller reads and commits on its own thread, whatever Ringhold's loop is doing,
and shares commits with everybody else.

Method: clusters and stores on real files; the loop held up on purpose; what is committed together
is counted where it is applied.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import ringhold
from ringhold.bridge import process_bridge
from ringhold.env import ThreadEnv, real_env
from ringhold.errors import Closed, Conflict, InvalidInput
from ringhold.store.base import Put, run_direct
from ringhold.store.lock_files import CommitLock
from ringhold.store.sqlite import open_sqlite_store, writer
from ringhold.store.sqlite.apply import Now, apply


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ringhold.Cluster]:
    with ringhold.create(tmp_path / "data") as made:
        yield made


@contextmanager
def loop_held_up() -> Iterator[None]:
    """Within, Ringhold's loop runs nothing."""
    held, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        go_on.wait(60)

    process_bridge().loop.call_soon_threadsafe(hold)
    assert held.wait(10)
    try:
        yield
    finally:
        go_on.set()


def test_single_keys_need_no_loop(cluster: ringhold.Cluster) -> None:
    kv = cluster.kv
    with ThreadPoolExecutor(1) as other, loop_held_up():
        # The loop is held up indeed: a range is read there.
        ranging = other.submit(lambda: list(kv.range()))
        kv["a"] = b"1"
        assert kv["a"] == kv.get("a") == b"1"
        assert "a" in kv
        revision = kv.put("a", b"2")
        entry = kv.entry("a")
        assert entry is not None
        assert (entry.value, entry.revision) == (b"2", revision)
        kv.put("b", b"", if_revision=0)
        with pytest.raises(Conflict, match="'b' is not absent"):
            kv.put("b", b"", if_revision=0)
        with pytest.raises(Conflict, match="at revision 1"):
            kv.put("a", b"", if_revision=1)
        del kv["b"]
        with pytest.raises(KeyError):
            del kv["b"]
        kv.delete("b")
        assert kv.get("b") is None
        with pytest.raises(InvalidInput):
            kv.put("", b"")
        with pytest.raises(TypeError):
            kv.put("a", "text")  # type: ignore[arg-type]
        assert not ranging.done()
    assert [key for key, _ in ranging.result(10)] in ([], ["a"], ["a", "b"])


def test_a_watch_on_the_loop_sees_what_threads_commit(cluster: ringhold.Cluster) -> None:
    with cluster.kv.watch("a/") as events:
        cluster.kv.put("a/1", b"1")
        assert next(events).key == "a/1"


def test_the_loop_itself_must_not_block(cluster: ringhold.Cluster) -> None:
    async def on_the_loop(call: Any) -> None:
        with pytest.raises(RuntimeError, match="own event loop"):
            call()

    for call in (
        lambda: cluster.kv.get("a"),
        lambda: cluster.kv.put("a", b""),
        lambda: cluster.kv.delete("a"),
        lambda: cluster.kv.__delitem__("a"),
    ):
        process_bridge().run(on_the_loop(call))


def test_other_loops_may(cluster: ringhold.Cluster) -> None:
    async def main() -> bytes | None:
        cluster.kv.put("a", b"1")
        return cluster.kv.get("a")

    assert asyncio.run(main()) == b"1"


def test_after_close_everything_is_closed(cluster: ringhold.Cluster, tmp_path: Path) -> None:
    kv = cluster.kv
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: kv.put(f"{number}", b""), range(64)))
        assert all(entry is not None for entry in threads.map(kv.entry, map(str, range(64))))
    assert opened(tmp_path)
    cluster.close()
    for call in (lambda: kv.get("a"), lambda: kv.put("a", b""), lambda: kv.delete("a")):
        with pytest.raises(Closed):
            call()
    assert opened(tmp_path) == []


def opened(directory: Path) -> list[str]:
    """The files below `directory` that this process has open."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue
        if target.startswith(str(directory)):
            found.append(target)
    return found


def test_memory_goes_over_the_loop() -> None:
    with ringhold.create("memory://direct") as made:
        made.kv["a"] = b"1"
        with ThreadPoolExecutor(1) as other:
            with loop_held_up():
                reading = other.submit(made.kv.get, "a")
                with pytest.raises(TimeoutError):
                    reading.result(0.1)
            assert reading.result(10) == b"1"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Any]:
    bridge = process_bridge()
    opened = bridge.run(open_sqlite_store(str(tmp_path / "data"), real_env(), create=True))
    yield opened
    bridge.run(opened.close())


def test_a_forked_child_has_no_direct_face(store: Any) -> None:
    run_direct(store.direct.commit(puts=[Put(b"a", b"1")]))
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        failed = 0
        for call in (store.direct.snapshot, store.direct.commit):
            try:
                run_direct(call())
            except Closed as error:
                failed += error.pid == parent
        os._exit(0 if failed == 2 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    run_direct(store.direct.commit(puts=[Put(b"a", b"2")]))


def test_a_thread_takes_along_what_is_queued(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[tuple[str, int]] = []

    def counting(connection: Any, batch: Any, now: Now, **options: Any) -> Any:
        sizes.append((threading.current_thread().name, len(batch)))
        return apply(connection, batch, now, **options)

    monkeypatch.setattr(writer, "apply", counting)
    run_direct(store.direct.commit(puts=[Put(b"alone", b"")]))
    # Nobody else was there: on the calling thread.
    assert sizes == [(threading.current_thread().name, 1)]
    sizes.clear()
    other = CommitLock(str(tmp_path / "data" / "locks"))
    assert other.try_acquire()
    numbers = itertools.count()

    def commit(_: int) -> int:
        return run_direct(store.direct.commit(puts=[Put(b"%d" % next(numbers), b"")]))

    with ThreadPoolExecutor(12) as threads:
        revisions = threads.map(commit, range(12))
        while len(store._writer._queue._commits) < 12:
            pass
        other.close()
        assert len(set(revisions)) == 12
    # Another process held the lock: the writer thread waited for it, for all of them.
    assert sizes == [("ringhold-store", 12)]


def test_threads_and_tasks_share_fsyncs(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def counting(connection: Any, batch: Any, now: Now, **options: Any) -> Any:
        sizes.append(len(batch))
        return apply(connection, batch, now, **options)

    monkeypatch.setattr(writer, "apply", counting)

    def thread(number: int) -> None:
        for count in range(20):
            run_direct(store.direct.commit(puts=[Put(b"%d.%d" % (number, count), b"")]))

    async def task(number: int) -> None:
        for count in range(20):
            await store.commit(puts=[Put(b"t%d.%d" % (number, count), b"")])

    async def tasks() -> None:
        await asyncio.gather(*map(task, range(16)))

    with ThreadPoolExecutor(16) as threads:
        running = threads.map(thread, range(16))
        process_bridge().run(tasks())
        list(running)
    assert sum(sizes) == 640
    assert len(sizes) < 640 / 3


@pytest.mark.parametrize("timeout_s", [0, -1.0, float("nan"), float("inf"), 1e6])
def test_a_commit_timeout_must_mean_something(tmp_path: Path, timeout_s: float) -> None:
    opening = open_sqlite_store(
        str(tmp_path / "data"), real_env(), create=True, commit_timeout=timeout_s
    )
    with pytest.raises(InvalidInput, match="commit_timeout"):
        process_bridge().run(opening)
    assert list(tmp_path.iterdir()) == []


def test_a_coroutine_that_suspends_is_refused() -> None:
    async def suspended() -> None:
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="suspended"):
        run_direct(suspended())


def test_the_environment_of_a_thread_never_suspends() -> None:
    env = ThreadEnv(real_env())

    async def everything() -> int:
        await env.sleep(0.001)
        assert len(env.random_bytes(3)) == 3
        assert env.clock.monotonic_ns() > 0
        return await env.blocking(lambda number: number + 1, 1)

    assert run_direct(everything()) == 2

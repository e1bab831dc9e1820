"""Goal: transactions are serializable, all or nothing, and say truly how they ended.

Method: interleavings of two transactions, step by step, on clusters in memory; the anomalies by
their usual names (Adya). A store double loses answers and refuses commits.
"""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from etcd_engines import ETCD_ABOVE, cluster_at, undisturbed

import ringhold
from ringhold.env import real_env
from ringhold.errors import (
    Closed,
    InvalidInput,
    OutcomeUnknown,
    StaleToken,
    StoreUnavailable,
    TransactionAborted,
)
from ringhold.store.base import Put, Store
from ringhold.store.keyspace import CLUSTER
from ringhold.store.memory import open_memory_store
from ringhold.store.view import View
from ringhold.transactions.manager import AsyncTransactions
from ringhold.transactions.transaction import Transaction

_names = itertools.count()


@pytest.fixture(params=["memory", *ETCD_ABOVE])
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ringhold.Cluster]:
    url, options = cluster_at(request.param, f"tx{next(_names)}", tmp_path)
    with ringhold.create(url, **options) as made:
        yield made


def revision(cluster: ringhold.Cluster) -> int:
    return cluster.status().revision


def test_everything_at_one_revision_or_nothing(cluster: ringhold.Cluster) -> None:
    with cluster.transaction() as tx:
        tx.kv["a"] = b"1"
        tx.kv.put("b", b"2")
        assert tx.kv["a"] == b"1"
        assert "b" in tx.kv
        assert cluster.kv.get("a") is None
        assert tx.status == "active"
    assert tx.status == "committed"
    a, b = cluster.kv.entry("a"), cluster.kv.entry("b")
    assert a is not None
    assert b is not None
    assert a.revision == b.revision

    def fails(tx: ringhold.Transaction) -> None:
        tx.kv["a"] = b"x"
        del tx.kv["b"]
        assert tx.kv.get("b", b"none") == b"none"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), cluster.transaction() as tx:
        fails(tx)
    assert tx.status == "aborted"
    assert (cluster.kv["a"], cluster.kv["b"]) == (b"1", b"2")


def test_reads_are_of_one_revision(cluster: ringhold.Cluster) -> None:
    cluster.kv["a"] = b"old"
    cluster.kv["b"] = b"old"
    with cluster.transaction() as tx:
        assert tx.kv["a"] == b"old"
        cluster.kv["b"] = b"new"
        assert tx.kv["b"] == b"old"
        assert [entry.value for _, entry in tx.kv.range()] == [b"old", b"old"]


def test_reading_only_commits_nothing(cluster: ringhold.Cluster) -> None:
    def one_change() -> bool:
        cluster.kv["a"] = b"1"
        before = revision(cluster)
        with cluster.transaction() as tx:
            assert tx.kv["a"] == b"1"
            cluster.kv["a"] = b"2"
        assert tx.status == "committed"
        return revision(cluster) == before + 1

    assert undisturbed(cluster.url, one_change)


def test_lost_update(cluster: ringhold.Cluster) -> None:
    cluster.kv["n"] = b"0"
    one, two = cluster.begin(), cluster.begin()
    for tx in (one, two):
        tx.kv["n"] = b"%d" % (int(tx.kv["n"]) + 1)
    one.commit()
    with pytest.raises(TransactionAborted) as caught:
        two.commit()
    assert caught.value.retryable
    assert "'n'" in caught.value.reason
    assert two.status == "aborted"
    assert cluster.kv["n"] == b"1"


def test_write_skew(cluster: ringhold.Cluster) -> None:
    cluster.kv["a"] = cluster.kv["b"] = b"on call"
    one, two = cluster.begin(), cluster.begin()
    for tx, leaves in ((one, "a"), (two, "b")):
        assert tx.kv["a"] == tx.kv["b"] == b"on call"
        tx.kv[leaves] = b"away"
    one.commit()
    with pytest.raises(TransactionAborted):
        two.commit()


@pytest.mark.parametrize("change", ["insert", "update", "delete"])
def test_phantoms(cluster: ringhold.Cluster, change: str) -> None:
    cluster.kv["r/1"] = cluster.kv["r/3"] = b"x"
    tx = cluster.begin()
    tx.kv["count"] = b"%d" % len(list(tx.kv.range("r/")))
    if change == "insert":
        cluster.kv["r/2"] = b"new"
    elif change == "update":
        cluster.kv["r/1"] = b"y"
    else:
        del cluster.kv["r/3"]
    with pytest.raises(TransactionAborted) as caught:
        tx.commit()
    assert caught.value.retryable
    assert "count" not in cluster.kv


def test_what_was_not_read_does_not_conflict(cluster: ringhold.Cluster) -> None:
    tx = cluster.begin()
    tx.kv["mine"] = b"1"
    assert list(tx.kv.range("r/")) == []
    cluster.kv["mine"] = b"2"
    cluster.kv["other"] = b"3"
    tx.commit()
    assert cluster.kv["mine"] == b"1"


def test_a_compare_and_put_is_judged_at_the_commit(cluster: ringhold.Cluster) -> None:
    first = cluster.kv.put("k", b"1")
    tx = cluster.begin()
    tx.kv.put("k", b"2", if_revision=first)
    tx.commit()
    tx = cluster.begin()
    tx.kv.put("k", b"3", if_revision=first)
    with pytest.raises(TransactionAborted):
        tx.commit()
    assert cluster.kv["k"] == b"2"


def test_used_after_the_end(cluster: ringhold.Cluster) -> None:
    committed, rolled_back = cluster.begin(), cluster.begin()
    committed.kv["a"] = b"1"
    committed.commit()
    rolled_back.rollback()
    rolled_back.rollback()
    for tx in (committed, rolled_back):
        for use in (
            lambda tx=tx: tx.kv["a"],
            lambda tx=tx: tx.kv.put("a", b"2"),
            lambda tx=tx: list(tx.kv.range()),
            tx.commit,
        ):
            with pytest.raises(Closed):
                use()
    with pytest.raises(Closed):
        committed.rollback()
    with pytest.raises(Closed):
        cluster.transaction().kv["not begun"]


def test_ended_inside_its_block(cluster: ringhold.Cluster) -> None:
    with cluster.transaction() as tx:
        tx.kv["a"] = b"1"
        tx.commit()
    with cluster.transaction() as tx:
        tx.kv["a"] = b"2"
        tx.rollback()
    assert cluster.kv["a"] == b"1"


def test_a_timeout_aborts(cluster: ringhold.Cluster) -> None:
    # The next use, the commit and the end of the block all say so.
    def late(tx: ringhold.Transaction) -> None:
        tx.kv["a"] = b"1"
        ended = threading.Event()
        while tx.status == "active":
            ended.wait(0.01)
        with pytest.raises(TransactionAborted) as caught:
            tx.kv["a"]
        assert caught.value.reason

    with pytest.raises(TransactionAborted, match=r"within 0\.05"), cluster.transaction(0.05) as tx:
        late(tx)
    assert "a" not in cluster.kv
    for wrong in (0, -1, float("nan")):
        with pytest.raises(InvalidInput):
            cluster.transaction(timeout=wrong)
    with pytest.raises(TypeError):
        cluster.transaction(timeout="1")  # type: ignore[arg-type]
    with cluster.transaction(timeout=None) as tx:
        tx.kv["a"] = b"1"


def test_transactional_repeats_what_lost(cluster: ringhold.Cluster) -> None:
    cluster.kv["n"] = b"0"
    runs = 0

    @cluster.transactional(retries=1000)
    def count(tx: ringhold.Transaction, by: int) -> int:
        nonlocal runs
        runs += 1
        value = int(tx.kv["n"]) + by
        tx.kv["n"] = b"%d" % value
        return value

    def work() -> None:
        for _ in range(10):
            count(by=2)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cluster.kv["n"] == b"80"
    assert count(1) == 81


def test_transactional_gives_up_and_passes_other_errors_on(cluster: ringhold.Cluster) -> None:
    cluster.kv["n"] = b"0"
    runs = 0

    @cluster.transactional(retries=2)
    def always_late(tx: ringhold.Transaction) -> None:
        nonlocal runs
        runs += 1
        tx.kv["n"] = tx.kv["n"]
        cluster.kv["n"] = b"%d" % runs

    with pytest.raises(TransactionAborted):
        always_late()
    assert runs == 3

    @cluster.transactional()
    def fails(tx: ringhold.Transaction) -> None:
        tx.kv["n"] = b"-1"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert cluster.kv["n"] == b"3"
    with pytest.raises(InvalidInput):
        cluster.transactional(retries=-1)


def test_status_is_told_to_other_processes_too(cluster: ringhold.Cluster) -> None:
    with cluster.transaction() as tx:
        tx.kv["a"] = b"1"
        assert cluster.transactions.status(tx.id) == "active"
    rolled_back = cluster.begin()
    rolled_back.rollback()
    with ringhold.open(cluster.url) as other:
        assert other.transactions.status(tx.id) == "committed"
        assert other.transactions.status(rolled_back.id) == "unknown"
    for wrong in ("", "x" * 32, "ab"):
        with pytest.raises(InvalidInput):
            cluster.transactions.status(wrong)


def test_a_guard_refuses_a_token_that_was_superseded(cluster: ringhold.Cluster) -> None:
    old = cluster.lock("l").acquire()
    assert old is not None
    with cluster.transaction() as tx:
        tx.guard("l", old.token)
        tx.kv["a"] = b"by the holder"
    old.release()
    with cluster.lock("l") as new:
        tx = cluster.begin()
        tx.guard("l", old.token)
        tx.kv["a"] = b"by the dead"
        with pytest.raises(StaleToken) as caught:
            tx.commit()
        assert caught.value.token == old.token
        with cluster.transaction() as tx:
            tx.guard("l", new.token)
    assert cluster.kv["a"] == b"by the holder"


def test_files_and_keys_commit_together(cluster: ringhold.Cluster) -> None:
    with cluster.transaction() as tx:
        tx.fs.pipe_file("/f", b"data")
        tx.kv["f"] = b"written"
        assert tx.fs.cat_file("/f") == b"data"
        assert not cluster.fs.exists("/f")
    assert cluster.fs.cat_file("/f") == b"data"
    with pytest.raises(Closed):
        tx.fs.cat_file("/f")
    tx = cluster.begin()
    assert tx.fs.cat_file("/f") == b"data"
    tx.kv["seen"] = b"1"
    cluster.fs.rm("/f")
    with pytest.raises(TransactionAborted):
        tx.commit()
    assert "seen" not in cluster.kv


def test_closing_the_cluster_aborts(cluster: ringhold.Cluster) -> None:
    tx = cluster.begin()
    tx.kv["a"] = b"1"
    cluster.close()
    assert tx.status == "aborted"
    with pytest.raises(Closed):
        tx.commit()


class Unreliable:
    """A store that refuses commits, or applies them and loses the answer."""

    def __init__(self, store: Store):
        self._store = store
        self.before: list[Exception] = []
        self.after: list[Exception] = []
        self.hold: asyncio.Event | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def commit(self, **options: Any) -> int:
        if self.before:
            raise self.before.pop(0)
        if self.hold is not None:
            await self.hold.wait()
        revision = await self._store.commit(**options)
        if self.after:
            raise self.after.pop(0)
        return revision


class NoFiles:
    """For transactions that touch no files."""

    def view_lock(self, view: View) -> asyncio.Lock:
        return asyncio.Lock()

    def rolled_back(self, view: View) -> None:
        pass


async def held(name: bytes, token: int) -> bytes | None:
    return None


def with_store(test: Callable[[Unreliable, AsyncTransactions], Awaitable[None]]) -> None:
    async def main() -> None:
        env = real_env()
        store = Unreliable(await open_memory_store(f"t{next(_names)}", env, create=True))
        await store.commit(puts=[Put(CLUSTER, b"")])
        transactions = AsyncTransactions(store, env, lambda: None, NoFiles(), lambda tx: None, held)  # type: ignore[arg-type]
        await test(store, transactions)
        await transactions.close()
        await store.close()

    asyncio.run(main())


async def value(transactions: AsyncTransactions) -> bytes | None:
    async with transactions.transaction() as tx:
        return await tx.kv.get("a")


def test_a_lost_answer_is_asked_for_again() -> None:
    async def test(store: Unreliable, transactions: AsyncTransactions) -> None:
        tx = await transactions.begin()
        tx.kv.put("a", b"1")
        store.after = [OutcomeUnknown("lost"), OutcomeUnknown("lost")]
        snapshot = await store.snapshot()
        at = await tx.commit()
        assert at == snapshot.revision + 1
        assert tx.status == "committed"
        async with transactions.transaction() as again:
            entry = await again.kv.entry("a")
        # Applied once: the revision is that of the first attempt.
        assert entry is not None
        assert entry.revision == at

    with_store(test)


def test_an_unknown_outcome_is_said_to_be_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(store: Unreliable, transactions: AsyncTransactions) -> None:
        tx = await transactions.begin()
        tx.kv.put("a", b"1")
        store.after = [OutcomeUnknown("lost")]
        monkeypatch.setattr(
            "ringhold.transactions.transaction.commit_known",
            lambda view, store, env, nonce: view.commit(store, nonce),
        )
        with pytest.raises(OutcomeUnknown) as caught:
            await tx.commit()
        assert tx.status == "unknown"
        assert tx.id in caught.value.__notes__[0]
        assert await transactions.status(tx.id) == "committed"

    with_store(test)


def test_a_store_that_is_not_there_changes_nothing() -> None:
    async def test(store: Unreliable, transactions: AsyncTransactions) -> None:
        tx = await transactions.begin()
        tx.kv.put("a", b"1")
        store.before = [StoreUnavailable("down")]
        with pytest.raises(StoreUnavailable):
            await tx.commit()
        assert tx.status == "aborted"
        assert await value(transactions) is None

    with_store(test)


def test_cancelled_during_the_commit_tells_the_truth() -> None:
    async def test(store: Unreliable, transactions: AsyncTransactions) -> None:
        tx: Transaction = await transactions.begin()
        tx.kv.put("a", b"1")
        store.hold = asyncio.Event()
        committing = asyncio.create_task(tx.commit())
        while tx.status != "committing":  # noqa: ASYNC110
            await asyncio.sleep(0)
        committing.cancel()
        await asyncio.sleep(0)
        assert not committing.done()
        store.hold.set()
        with pytest.raises(asyncio.CancelledError):
            await committing
        assert tx.status == "committed"
        store.hold = None
        assert await value(transactions) == b"1"

    with_store(test)


def test_the_async_face() -> None:
    async def main() -> None:
        async with ringhold.aio.create(f"memory://tx{next(_names)}") as cluster:
            async with cluster.transaction() as tx:
                tx.kv.put("a", b"1")
                tx.kv.put("b", b"2")
                tx.kv.delete("b")
                assert await tx.kv.get("a") == b"1"
                assert [key async for key, _ in tx.kv.range()] == ["a"]
            assert await cluster.kv.get("a") == b"1"

            @cluster.transactional()
            async def double(tx: ringhold.aio.Transaction) -> None:
                tx.kv.put("a", (await tx.kv.get("a") or b"") * 2)

            await asyncio.gather(*(double() for _ in range(3)))
            assert await cluster.kv.get("a") == b"1" * 8
            tx = await cluster.begin()
            await tx.rollback()

    asyncio.run(main())


@pytest.mark.parametrize("how", ["rollback", "conflict", "timeout"])
def test_chunks_of_an_aborted_transaction_are_deleted(tmp_path: Path, how: str) -> None:
    def chunk_files() -> list[Path]:
        return list((tmp_path / "c" / "nodes").glob("*/data/*/*"))

    with ringhold.create(tmp_path / "c") as cluster:
        tx = cluster.begin(timeout=1.0 if how == "timeout" else 30.0)
        tx.fs.pipe_file("/big", bytes(100_000))
        assert tx.kv.get("a") is None
        assert chunk_files()
        if how == "rollback":
            tx.rollback()
        elif how == "conflict":
            cluster.kv.put("a", b"other")
            with pytest.raises(ringhold.TransactionAborted):
                tx.commit()
        else:
            time.sleep(1.1)
            with pytest.raises(ringhold.TransactionAborted):
                tx.commit()
    # Closing waits for what was begun in the background.
    assert chunk_files() == []


def test_a_file_operation_beside_the_commit_is_whole_or_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with await ringhold.aio.create(tmp_path / "c") as cluster:
            tx = await cluster.begin()
            write = asyncio.ensure_future(tx.fs._pipe_file("/late", bytes(300_000)))
            await asyncio.sleep(0)
            await tx.commit()
            try:
                await write
            except (ringhold.Closed, ringhold.TransactionAborted):
                assert not await cluster.fs._exists("/late")
            else:
                assert await cluster.fs._cat_file("/late") == bytes(300_000)

    asyncio.run(main())


UNFINISHED = """
import asyncio, sys, ringhold, ringhold.aio

transactions = []

async def write(cluster, number):
    tx = await cluster.begin()
    await tx.fs._pipe_file(f"/{number}", bytes([number]) * 100_000)
    transactions.append(tx)
    await tx.commit()

async def main():
    cluster = await ringhold.aio.create(sys.argv[1], nodes=2, replicas=2)
    tasks = [asyncio.create_task(write(cluster, number)) for number in range(8)]
    while not any(tx.status == "committing" for tx in transactions):
        await asyncio.sleep(0)

asyncio.run(main())
"""


def test_a_commit_under_way_at_the_end_of_the_loop_keeps_its_chunks(tmp_path: Path) -> None:
    """`asyncio.run` cancels every task at its end, also the one that sees a commit through."""
    program = [sys.executable, "-c", UNFINISHED, str(tmp_path / "c")]
    assert subprocess.run(program, capture_output=True, timeout=60).returncode == 0
    with ringhold.open(tmp_path / "c", create=False) as cluster:
        for name in cluster.fs.ls("/", detail=False):
            assert cluster.fs.cat_file(name) == bytes([int(name[1:])]) * 100_000
        assert cluster.fs.fsck(copies=True).ok

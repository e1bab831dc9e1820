"""Goal: a forked child owns nothing of its parent's, harms nothing of it, and gets its own.

Method: real processes that fork in the middle of transactions and files and while they hold locks.
The children use what they inherited and report; afterwards the parent works on.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from etcd_servers import shared_etcd
from forking import COMPLAINTS, run


@pytest.fixture(params=["directory", "etcd"])
def etcd_url(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    """None for a cluster in a directory."""
    if request.param == "directory":
        return None
    return shared_etcd("distro", 1).url(f"fork-{tmp_path.name}")


def test_what_was_begun_in_the_parent_is_closed_and_the_rest_opens_anew(
    tmp_path: Path, etcd_url: str | None
) -> None:
    run(
        tmp_path,
        """
        cluster = ringhold.create(url, session_ttl=7, **where)
        cluster.kv["a"] = b"1"
        cluster.fs.pipe_file("/f", b"x" * 100_000)
        lock = cluster.lock("x")
        grant = lock.acquire()
        other = cluster.lock("y")
        tx = cluster.begin()
        tx.kv["a"] = b"2"
        unbegun = cluster.transaction()
        watch = cluster.kv.watch("")
        reader = cluster.fs.open("/f")
        writer = cluster.fs.open("/g", "wb")
        file_lock = cluster.fs.lock("/f")
        file_grant = file_lock.acquire()
        from ringhold.files.filesystem import RingholdFileSystem
        shared = RingholdFileSystem(cluster=url)
        assert shared.cat_file("/f") == b"x" * 100_000

        def child():
            for use in (
                grant.check, grant.release, lock.release, file_grant.check, file_lock.release,
                lambda: grant.__exit__(None, None, None),
                lambda: lock.__exit__(None, None, None),
                lambda: tx.kv["a"], lambda: tx.kv.put("a", b"3"), lambda: tx.fs, tx.commit,
                tx.rollback, unbegun.__enter__, watch.__next__, watch.close,
                reader.read, lambda: writer.write(b"1"), writer.close,
            ):
                closed(use)
            try:
                grant.check()
            except Closed as error:
                assert "not held here" in str(error), error
            # So far nothing was opened.
            assert not cluster._home.opened_here
            assert cluster.url == url and url in repr(cluster)
            assert cluster.kv["a"] == b"1"
            assert cluster._home.opened_here
            for use in (grant.check, grant.release, tx.commit, reader.read, watch.__next__):
                closed(use)
            cluster.kv["child"] = b"was here"
            assert not lock.owned()
            assert lock.try_acquire() is None and file_lock.try_acquire() is None
            assert [party.pid for party in cluster.locks.holders("x")] == [parent]
            with other as own:
                assert [party.pid for party in cluster.locks.holders("y")] == [os.getpid()]
                own.check()
            with cluster.lock("z", timeout=0):
                pass
            with cluster.transaction() as own_tx:
                own_tx.kv["tx"] = own_tx.kv["a"]
                own_tx.fs.pipe_file("/tx", b"tx")
            begun = cluster.begin()
            begun.rollback()
            assert cluster.transactions.status(own_tx.id).name == "COMMITTED"
            assert cluster.fs.cat_file("/f") == b"x" * 100_000
            assert sorted(cluster.fs.ls("/", detail=False)) == ["/f", "/tx"]
            assert shared.cat_file("/tx") == b"tx"
            assert RingholdFileSystem(cluster=url).core is shared.core is not cluster.fs.core
            assert len(cluster.nodes()) == 1
            state = cluster._bridge.run(cluster._cluster._session.ensure())
            assert state.ttl_s == 7 and state.record.pid == os.getpid()
            # The parent's two, which hold x and the writer's chunks, and the child's two.
            before = cluster.status().sessions
            cluster.close()
            for use in (lambda: cluster.kv["a"], cluster.lock, cluster.status):
                try:
                    use("x") if use == cluster.lock else use()
                except Closed as error:
                    assert error.pid == 0
                else:
                    raise AssertionError("worked after close")
            with ringhold.open(url) as again:
                assert again.kv["child"] == b"was here"
                assert again.status().sessions == before - 1

        joined(fork(child))
        assert cluster.kv["child"] == b"was here"
        grant.check()
        assert reader.read() == b"x" * 100_000
        writer.write(b"parent's")
        writer.close()
        assert cluster.fs.cat_file("/g") == b"parent's"
        assert next(watch).key == "child"
        tx.commit()
        assert cluster.kv["a"] == b"2"
        file_grant.release()
        grant.release()
        with cluster.lock("x", timeout=0):
            pass
        cluster.close()
        print("done")
        """,
        etcd_url=etcd_url,
    )


def test_a_file_transaction_of_the_parent_is_not_entered_by_the_child(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        cluster = ringhold.create(url)
        fs = cluster.fs

        def child():
            closed(lambda: fs.pipe_file("/child", b"1"))
            closed(lambda: fs.exists("/f"))
            assert "child" not in cluster.kv

        with fs.transaction:
            fs.pipe_file("/f", b"1")
            joined(fork(child))
        assert fs.ls("/", detail=False) == ["/f"]
        cluster.close()
        print("done")
        """,
    )


def test_closed_stays_closed_and_close_harms_nobody(tmp_path: Path, etcd_url: str | None) -> None:
    run(
        tmp_path,
        """
        cluster = ringhold.create(url, **where)
        cluster.kv["a"] = b"1"
        gone = ringhold.open(url)
        gone.kv["a"]
        gone.close()
        memory = ringhold.create("memory://m")
        memory.kv["a"] = b"1"
        grant = cluster.lock("x").acquire()

        def child():
            closed_before = 0
            try:
                gone.kv["a"]
            except Closed as error:
                assert error.pid == 0, error
                closed_before += 1
            assert closed_before
            closed(lambda: memory.kv["a"])
            try:
                memory.lock("x")
            except Closed as error:
                assert "memory" in str(error)
            memory.close()
            cluster.close()
            try:
                cluster.kv["a"]
            except Closed:
                return
            raise AssertionError("open after close")

        joined(fork(child))
        grant.check()
        assert cluster.kv["a"] == b"1" and memory.kv["a"] == b"1"
        assert [party.pid for party in cluster.locks.holders("x")] == [parent]
        cluster.close()
        print("done")
        """,
        etcd_url=etcd_url,
    )


def test_the_async_face_is_the_parent_s(tmp_path: Path, etcd_url: str | None) -> None:
    run(
        tmp_path,
        """
        import asyncio

        async def main():
            async with ringhold.aio.create(url, **where) as cluster:
                await cluster.kv.put("a", b"1")
                grant = await cluster.lock("x").acquire()

                def child():
                    def use(make):
                        async def call():
                            await make()
                        asyncio.run(call())
                    for make in (
                        lambda: cluster.kv.get("a"), lambda: cluster.status(),
                        lambda: cluster.fs._ls("/"),
                    ):
                        closed(lambda: use(make))

                async def own():
                    async with ringhold.aio.open(url) as mine:
                        assert await mine.kv.get("a") == b"1"
                        assert await mine.lock("x").try_acquire() is None

                def both():
                    asyncio._set_running_loop(None)
                    child()
                    asyncio.run(own())

                pid = fork(both)
                await asyncio.to_thread(joined, pid)
                grant.check()
                await grant.release()

        asyncio.run(main())
        print("done")
        """,
        etcd_url=etcd_url,
    )


@pytest.mark.parametrize("leave", ["os._exit", "sys.exit", "killed"])
def test_the_parent_s_grant_survives_the_child(tmp_path: Path, leave: str) -> None:
    """However the child goes, with exit handlers and garbage collection or without."""
    stderr = run(
        tmp_path,
        f"""
        cluster = ringhold.create(url)
        grant = cluster.lock("x").acquire()
        tx = cluster.begin()
        tx.kv["a"] = b"1"
        files = [cluster.fs.open("/f", "wb")]
        watches = [cluster.kv.watch("")]
        work = threading.Thread(target=lambda: [cluster.kv.put("b", b"2") for _ in range(50)])
        work.start()

        def child(use):
            global cluster, grant, tx
            if use:
                assert cluster.lock("y").acquire()
                cluster.kv["c"] = b"3"
            del grant, tx
            files.clear()
            watches.clear()
            if not use:
                del cluster
            gc.collect()
            if {leave!r} == "killed":
                os.kill(os.getpid(), signal.SIGKILL)

        for use in (True, False):
            pid = fork(child, use, leave={leave if leave != "killed" else "os._exit"})
            status = os.waitpid(pid, 0)[1]
            assert status == (signal.SIGKILL if {leave!r} == "killed" else 0), status
        work.join()
        # A child's session ended with it: what it held is free at once.
        with cluster.lock("y", timeout=30):
            pass
        grant.check()
        assert [party.pid for party in cluster.locks.holders("x")] == [parent]
        assert cluster.kv["c"] == b"3"
        tx.commit()
        grant.release()
        files[0].write(b"whole")
        files[0].close()
        assert cluster.fs.cat_file("/f") == b"whole"
        cluster.close()
        print("done")
        """,
        *COMPLAINTS,
    )
    assert stderr == ""

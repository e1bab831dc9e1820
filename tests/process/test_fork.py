"""Goal: a forked child owns nothing of its parent's, harms nothing of it, and gets its own.

Method: real processes that fork at awkward moments: holding, waiting, committing, in the middle
of transactions and files. The children use what they inherited and report; afterwards the parent
works on. The kernel's own list of locks tells whether a child's store is guarded.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PRELUDE = """
import gc, multiprocessing, os, signal, sys, threading, time, traceback
import ringhold
from ringhold import Closed

url = sys.argv[1]
parent = os.getpid()


def fork(work, *args, leave=os._exit):
    '''Runs `work` in a child; gives its pid.'''
    pid = os.fork()
    if pid:
        return pid
    # Nothing in here takes long, however busy the machine is.
    signal.alarm(60)
    try:
        work(*args)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    leave(0)


def joined(pid):
    status = os.waitpid(pid, 0)[1]
    assert status == 0, f"the child ended with {status}"


def closed(use, pid=parent):
    try:
        use()
    except Closed as error:
        assert error.pid == pid, error
        assert str(pid) in str(error), error
    else:
        raise AssertionError("what is the parent's worked in the child")
"""

COMPLAINTS = ("-W", "always::ResourceWarning", "-W", "always::RuntimeWarning")


def run(tmp_path: Path, script: str, *options: str) -> str:
    """What the script printed to stderr; it must end with "done"."""
    done = subprocess.run(
        [sys.executable, *options, "-c", PRELUDE + textwrap.dedent(script), str(tmp_path / "c")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    return done.stderr


def test_what_was_begun_in_the_parent_is_closed_and_the_rest_opens_anew(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        cluster = ringhold.create(url, session_ttl=7)
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


def test_closed_stays_closed_and_close_harms_nobody(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        cluster = ringhold.create(url)
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
    )


def test_the_async_face_is_the_parent_s(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        import asyncio

        async def main():
            async with ringhold.aio.create(url) as cluster:
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


def test_the_child_s_own_lock_contends_with_the_parent_s(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        cluster = ringhold.create(url)
        lock = cluster.lock("x")
        cluster.kv["turns"] = b""

        def child():
            with lock as grant:
                cluster.kv["turns"] += b"c"
                cluster.kv["token"] = b"%d" % grant.token

        with lock as grant:
            pid = fork(child)
            # The child waits: it stands in the queue.
            while [party.pid for party in cluster.locks.waiters("x")] != [pid]:
                time.sleep(0.01)
            cluster.kv["turns"] += b"p"
            token = grant.token
        joined(pid)
        assert cluster.kv["turns"] == b"pc"
        assert int(cluster.kv["token"]) > token
        cluster.close()
        print("done")
        """,
    )


def test_forked_while_another_thread_waits_for_a_lock(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        cluster = ringhold.create(url)
        first = cluster.lock("x").acquire()
        got = []

        def wait():
            with cluster.lock("x", timeout=60) as grant:
                got.append(grant.token)

        waiting = threading.Thread(target=wait)
        waiting.start()
        while [party.pid for party in cluster.locks.waiters("x")] != [parent]:
            time.sleep(0.01)

        def child():
            # Neither the grant nor the place in the queue is the child's.
            assert [party.pid for party in cluster.locks.waiters("x")] == [parent]
            assert cluster.lock("x").try_acquire() is None
            cluster.close()

        joined(fork(child))
        assert not got
        first.release()
        waiting.join(60)
        assert got and got[0] > first.token
        cluster.close()
        print("done")
        """,
    )


def test_twenty_forks_while_other_threads_commit_and_read(tmp_path: Path) -> None:
    """The inherited SQLite believes in locks that the child does not have; children must not."""
    run(
        tmp_path,
        """
        def locked_ranges():
            files = {os.stat(f"{url}/store/store.db{end}").st_ino: end for end in ("", "-shm")}
            found = set()
            for line in open("/proc/locks"):
                fields = line.split()
                if fields[1] == "POSIX" and int(fields[4]) == os.getpid():
                    end = files.get(int(fields[5].split(":")[2]))
                    if end is not None:
                        found.add(end)
            return found

        cluster = ringhold.create(url)
        stop = threading.Event()
        counts = [0, 0]

        def commit(number):
            while not stop.is_set():
                cluster.kv[f"t{number}"] = b"%d" % counts[number]
                counts[number] += 1

        def read():
            while not stop.is_set():
                list(cluster.kv.range("t"))

        threads = [threading.Thread(target=commit, args=(n,)) for n in range(2)]
        threads.append(threading.Thread(target=read))
        for thread in threads:
            thread.daemon = True
            thread.start()
        while not all(counts):
            time.sleep(0.001)

        def child(number):
            tx = cluster.begin()
            assert tx.kv.get("t0") is not None
            # What guards the file and the shared memory, held by this process and no other.
            assert locked_ranges() == {"", "-shm"}, locked_ranges()
            tx.rollback()
            for _ in range(3):
                cluster.kv[f"c{number}"] = b"%d" % os.getpid()
            with cluster.lock("x", timeout=30):
                pass
            cluster.close()

        for number in range(20):
            before = counts[0]
            joined(fork(child, number))
            assert counts[0] > before
        stop.set()
        for thread in threads:
            thread.join()
        assert len(list(cluster.kv.range("c"))) == 20
        for number in range(2):
            assert cluster.kv[f"t{number}"] == b"%d" % (counts[number] - 1)
        cluster.close()
        with ringhold.open(url) as again:
            assert len(list(again.kv.range("c"))) == 20
        print("done")
        """,
    )


def test_a_child_outlives_its_parent_and_has_children(tmp_path: Path) -> None:
    """A newcomer must see that the child uses the store, whose parent opened it first."""
    run(
        tmp_path,
        """
        NEWCOMER = (
            "import ringhold, sys\\n"
            "with ringhold.open(sys.argv[1]) as c: c.kv['n'] = c.kv['a']"
        )
        cluster = ringhold.create(url)
        cluster.kv["a"] = b"1"
        read, write = os.pipe()

        def grandchild():
            closed(child_grant.check, child_pid)
            cluster.kv["grandchild"] = b"1"
            assert cluster.lock("child's").try_acquire() is None

        def child():
            global child_grant, child_pid
            child_pid = os.getpid()
            child_grant = cluster.lock("child's").acquire()
            os.kill(parent, signal.SIGKILL)
            while os.getppid() == parent:
                time.sleep(0.01)
            for number in range(3):
                newcomer = [sys.executable, "-c", NEWCOMER, url]
                assert os.spawnv(os.P_WAIT, sys.executable, newcomer) == 0
                cluster.kv[f"child{number}"] = b"1"
                joined(fork(grandchild))
            child_grant.check()
            cluster.close()
            with ringhold.open(url) as own:
                assert [key for key, _ in own.kv.range()] == [
                    "a", "child0", "child1", "child2", "grandchild", "n"]
            os.write(write, b"fine")

        # Nobody but the one between and its child has the store open.
        cluster.close()
        between = os.fork()
        if between == 0:
            parent = os.getpid()
            cluster = ringhold.open(url)
            fork(child)
            signal.pause()
        assert os.waitpid(between, 0)[1] == signal.SIGKILL
        os.close(write)
        assert os.read(read, 4) == b"fine"
        print("done")
        """,
    )


def test_a_system_that_refuses_the_child_a_library_of_its_own_is_told_of(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        from ringhold.store.sqlite import library

        cluster = ringhold.create(url)
        cluster.kv["a"] = b"1"

        def refuse(path):
            raise PermissionError(1, "not permitted", path)

        def child():
            load, library.copy_in_memory = library.copy_in_memory, refuse
            try:
                cluster.kv["a"]
            except ringhold.StoreUnavailable as error:
                assert "spawn" in str(error)
                assert isinstance(error.__cause__, PermissionError)
            else:
                raise AssertionError("used the parent's")
            library.copy_in_memory = load
            assert cluster.kv["a"] == b"1"
            cluster.close()

        joined(fork(child))
        cluster.close()
        print("done")
        """,
    )


def test_first_use_by_several_threads_opens_one(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        cluster = ringhold.create(url)
        cluster.kv["a"] = b"1"
        lock = cluster.lock("x")

        def child():
            start = threading.Barrier(8)
            found = []

            def use():
                start.wait()
                with lock:
                    assert cluster.kv["a"] == b"1"
                    found.append(cluster._cluster)

            threads = [threading.Thread(target=use) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(found) == 8 and len({id(each) for each in found}) == 1
            cluster.close()

        joined(fork(child))
        cluster.close()
        print("done")
        """,
    )


def test_multiprocessing_with_fork_ends_cleanly(tmp_path: Path) -> None:
    """The exit of a forked worker runs what the parent registered; none of it may hang or harm."""
    stderr = run(
        tmp_path,
        """
        context = multiprocessing.get_context("fork")
        cluster = ringhold.create(url)
        cluster.kv["a"] = b"1"

        def work(number):
            for _ in range(5):
                with cluster.lock("counter", timeout=60):
                    cluster.kv["a"] = b"%d" % (int(cluster.kv["a"]) + 1)
            return os.getpid()

        with cluster.lock("x") as grant:
            with context.Pool(4) as pool:
                assert parent not in pool.map(work, range(8))
                pool.close()
                pool.join()
            process = context.Process(target=work, args=(0,))
            process.start()
            process.join(60)
            assert process.exitcode == 0, process.exitcode
            assert cluster.kv["a"] == b"46"
        cluster.close()
        print("done")
        """,
        *COMPLAINTS,
    )
    # Nothing is closed at exit by leaving it to the interpreter: no complaints either.
    assert stderr == ""

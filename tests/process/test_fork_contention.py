"""Goal: a forked child works on its own and contends with its parent, whenever the fork came.

Method: real processes that fork while other threads hold, await and commit, twenty times in a row
and through generations. The kernel's own list of locks tells whether a child's store is guarded.
"""

from __future__ import annotations

from pathlib import Path

from forking import COMPLAINTS, run


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
            # One reading of /proc/locks may miss an entry while others come and go.
            readings = [locked_ranges() for _ in range(20)]
            assert {"", "-shm"} in readings, readings
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

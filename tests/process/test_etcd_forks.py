"""Goal: a store on etcd belongs to the process that opened it. A forked child is told so, opens its
own, and does no harm to its parent's, however it ends; a process that ends without closing its
store ends.

Method: scripts that fork while their store is at work, in a process of their own. Every commit of
the parent must be told by its watch, once; nothing of it may fail or be told of in its log.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from etcd_servers import Etcd, etcd
from etcd_stores import fresh_name

SRC = Path(__file__).parents[2] / "src"

PRELUDE = """
import asyncio, gc, logging, os, signal, sys, threading, time, traceback

from ringhold.env import _peer_of, real_env
from ringhold.errors import Closed
from ringhold.store.base import Put
from ringhold.store.etcd import open_etcd_store, parse_etcd_url

address = parse_etcd_url(sys.argv[1])
parent = os.getpid()


def open_store(create=False):
    return open_etcd_store(address, real_env(), create=create)


async def value(store, key):
    snapshot = await store.snapshot()
    found = await snapshot.get(key)
    return found and found.value


def on_loop(coroutine):
    return asyncio.run_coroutine_threadsafe(coroutine, loop).result(60)


def begin_loop():
    global loop
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()


def fork(work, *args, leave=os._exit):
    '''Runs `work` in a child; gives its pid.'''
    pid = os.fork()
    if pid:
        return pid
    signal.alarm(60)
    try:
        work(*args)
    except SystemExit:
        raise  # A child of this one leaves.
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    leave(0)


def joined(pid):
    status = os.waitpid(pid, 0)[1]
    assert status == 0, f"the child ended with {status}"


def closed(use):
    async def main():
        await use()
    try:
        asyncio.run(main())
    except Closed as error:
        assert error.pid == parent, error
        assert str(parent) in str(error), error
    else:
        raise AssertionError("what is the parent's worked in the child")


def descriptors():
    names = os.listdir("/proc/self/fd")
    return {int(name) for name in names if os.path.exists("/proc/self/fd/" + name)}


def connections():
    return [fd for fd in descriptors() if _peer_of(fd)]


class Complaints(logging.Handler):
    told = []
    def emit(self, record):
        self.told.append(record.getMessage())


logging.getLogger("ringhold").setLevel(logging.INFO)
logging.getLogger("ringhold").addHandler(Complaints())
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Etcd]:
    with etcd() as server:
        yield server


def run_script(server: Etcd, script: str, *options: str, timeout_s: float = 100) -> str:
    """What the script printed to stderr; it must end with "done"."""
    url = server.url(fresh_name())
    done = subprocess.run(
        [sys.executable, *options, "-c", PRELUDE + textwrap.dedent(script), url],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    return done.stderr


AT_WORK = """
begin_loop()
store = on_loop(open_store(create=True))
lease = b"lease of 12b"
on_loop(store.grant_lease(lease, 30))
committed, seen, failures = [], [], []
ending = False


async def write(key):
    while not ending:
        try:
            committed.append((await store.commit(puts=[Put(key, b"", lease)]), key))
            await store.renew_lease(lease)
        except Exception as error:
            failures.append(error)


async def watch():
    async for changes in store.watch(b"parent/", 1):
        seen.extend((changes.revision, event.key) for event in changes.events)
        if changes.events[0].key == b"parent/end":
            return


async def begin():
    works = watch(), write(b"parent/a"), write(b"parent/b")
    return [asyncio.ensure_future(each) for each in works]


tasks = on_loop(begin())
while len(seen) < 10:
    time.sleep(0.01)


def end():
    global ending
    ending = True
    on_loop(asyncio.wait_for(asyncio.gather(*tasks[1:]), 10))
    end = b"parent/end"
    committed.append((on_loop(store.commit(puts=[Put(end, b"")])), end))
    on_loop(asyncio.wait_for(tasks[0], 10))
    assert not failures, failures
    revisions = [revision for revision, _ in seen]
    assert revisions == sorted(revisions)
    assert sorted(seen) == sorted(committed), {
        each: (seen.count(each), committed.count(each))
        for each in {*seen, *committed}
        if seen.count(each) != committed.count(each)
    }
"""

CHILD = """
def child(number):
    closed(lambda: store.commit(puts=[Put(b"k", b"")]))
    closed(store.snapshot)
    closed(lambda: anext(store.watch(b"", 1)))
    closed(lambda: store.grant_lease(lease, 5))
    closed(lambda: store.renew_lease(lease))
    try:
        store.lease_until(lease)
    except Closed as error:
        assert error.pid == parent
    else:
        raise AssertionError("a lease is told of in the child")

    async def main():
        await store.close()
        own = await open_store()
        revision = await own.commit(puts=[Put(b"child/%d" % number, b"%d" % os.getpid())])
        watch = own.watch(b"child/", revision)
        assert (await anext(watch)).revision == revision
        await watch.aclose()
        assert await value(own, b"child/%d" % number) == b"%d" % os.getpid()
        await own.close()

    asyncio.run(main())
    gc.collect()
"""


def test_a_child_has_none_of_its_parent_s_connections(server: Etcd) -> None:
    script = """
        from ringhold.store.etcd.channels import Channels

        def look():
            assert not connections()

        begin_loop()
        store = on_loop(open_store(create=True))
        on_loop(store.commit(puts=[Put(b"k", b"v")]))
        assert connections()
        # Otherwise the parent ends them, sooner or later, for the child as well.
        Channels.renew = lambda channels: None
        joined(fork(look))
        assert connections()
        on_loop(store.close())
        print("done")
    """
    run_script(server, script)


@pytest.mark.parametrize("leave", ["sys.exit", "os._exit"])
def test_twenty_forks_while_commits_and_a_watch_are_under_way(server: Etcd, leave: str) -> None:
    script = f"""
        Complaints.told.clear()
        for number in range(20):
            done = len(committed)
            pid = fork(child, number, leave={leave})
            joined(pid)
            assert on_loop(value(store, b"child/%d" % number)) == b"%d" % pid
            while len(committed) < done + 5:
                time.sleep(0.001)
        end()
        assert not Complaints.told, Complaints.told
        on_loop(store.close())
        print("done")
    """
    run_script(server, AT_WORK + CHILD + textwrap.dedent(script))


def test_a_child_that_drops_its_parent_s_store_does_no_harm(server: Etcd) -> None:
    script = """
        def drop():
            global store, tasks
            del store, tasks
            for _ in range(3):
                gc.collect()

        Complaints.told.clear()
        for leave in (os._exit, sys.exit):
            joined(fork(drop, leave=leave))
        time.sleep(0.3)
        end()
        assert not Complaints.told, Complaints.told
        on_loop(store.close())
        print("done")
    """
    run_script(server, AT_WORK + textwrap.dedent(script))


def test_a_child_of_a_child_and_a_child_that_outlives_its_parent_s_store(server: Etcd) -> None:
    script = """
        def nested():
            global parent
            child(0)
            begin_loop()
            own = on_loop(open_store())
            on_loop(own.commit(puts=[Put(b"child/own", b"")]))
            joined(fork(child, 1, leave=sys.exit))
            on_loop(own.commit(puts=[Put(b"child/own", b"again")]))
            on_loop(own.close())

        pid = fork(nested, leave=sys.exit)
        end()
        on_loop(store.close())
        joined(pid)
        print("done")
    """
    run_script(server, AT_WORK + CHILD + textwrap.dedent(script))


@pytest.mark.parametrize("dead", [False, True])
def test_a_process_ends_without_closing_its_store(dead: bool) -> None:
    with etcd() as server:
        script = """
            snapshot = on_loop(store.snapshot())
            print("ready", flush=True)
            sys.stdin.readline()
            print("done")
        """
        url = server.url(fresh_name())
        process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + AT_WORK + textwrap.dedent(script), url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            if dead:
                server.members[0].stop()
            told, complaints = process.communicate("\n", timeout=10)
        finally:
            process.kill()
        assert (process.returncode, told, complaints) == (0, "done\n", "")


def test_a_loop_ends_without_closing_its_store(server: Etcd) -> None:
    script = """
        async def main():
            store = await open_store(create=True)
            await store.grant_lease(b"lease of 12b", 5)
            watch = store.watch(b"", 1)
            await store.commit(puts=[Put(b"k", b"")])
            await anext(watch)
            asyncio.ensure_future(store.commit(puts=[Put(b"k", b"")]))
            asyncio.ensure_future(value(store, b"k"))
            await asyncio.sleep(0)

        asyncio.run(main())
        gc.collect()
        asyncio.run(open_store())
        print("done")
    """
    assert run_script(server, script, timeout_s=10) == ""


def test_no_descriptors_are_left_open_in_children_of_children(server: Etcd) -> None:
    script = """
        import socket
        begin_loop()
        store = on_loop(open_store(create=True))
        on_loop(store.commit(puts=[Put(b"k", b"")]))
        kept = [os.pipe(), socket.socketpair(), open(os.devnull)]


        def generation(left, had):
            new = descriptors() - had
            assert not new, [os.readlink(f"/proc/self/fd/{fd}") for fd in new]
            assert not connections()
            if left:
                asyncio.run(use_own())
                joined(fork(generation, left - 1, descriptors()))


        async def use_own():
            own = await open_store()
            await own.commit(puts=[Put(b"k", b"")])
            await own.close()


        assert connections()
        joined(fork(generation, 2, descriptors()))
        on_loop(store.close())
        print("done")
    """
    run_script(server, script)


def test_sockets_of_the_program_stay_blocking_in_spite_of_a_default_timeout(server: Etcd) -> None:
    script = """
        import socket
        begin_loop()
        store = on_loop(open_store(create=True))
        pair = socket.socketpair()
        socket.setdefaulttimeout(5)
        joined(fork(lambda: None))
        assert os.get_blocking(pair[0].fileno())
        on_loop(store.close())
        print("done")
    """
    run_script(server, script)


def test_a_child_abandons_what_it_inherited_though_no_address_was_resolved(server: Etcd) -> None:
    script = """
        import socket
        from ringhold.store.etcd import channels, library

        def unresolved(*args, **options):
            raise socket.gaierror(-3, "Temporary failure in name resolution")

        resolve, socket.getaddrinfo = socket.getaddrinfo, unresolved
        begin_loop()
        store = on_loop(open_store(create=True))
        socket.getaddrinfo = resolve
        assert not channels._peers
        abandon, abandoned = library.abandon, []

        def told(kept):
            abandoned.extend(kept)
            abandon(kept)

        def child():
            assert len(abandoned) == 1
            closed(lambda: store.commit(puts=[Put(b"k", b"")]))

        library.abandon = told
        joined(fork(child))
        on_loop(store.commit(puts=[Put(b"k", b"")]))
        on_loop(store.close())
        print("done")
    """
    run_script(server, script)


def test_a_child_is_told_though_a_thread_of_its_parent_was_committing(server: Etcd) -> None:
    script = """
        begin_loop()
        store = on_loop(open_store(create=True))
        held, done = threading.Event(), threading.Event()

        def hold():
            with store.direct._idle:
                held.set()
                done.wait()

        holder = threading.Thread(target=hold, daemon=True)
        holder.start()
        held.wait()

        def child():
            signal.alarm(5)
            closed(lambda: store.direct.commit(puts=[Put(b"k", b"")]))

        joined(fork(child))
        done.set()
        holder.join()
        on_loop(store.close())
        print("done")
    """
    run_script(server, script)


def test_a_watch_survives_a_fork_while_its_stream_begins(server: Etcd) -> None:
    script = """
        from ringhold.store.etcd.channels import Channels

        begin_loop()
        store = on_loop(open_store(create=True))
        seen = []
        got = Channels.channel

        def fork_meanwhile(self, endpoint):
            found = got(self, endpoint)
            Channels.channel = got
            joined(fork(lambda: None))
            while self._closing:
                time.sleep(0.01)
            return found

        async def watch():
            async for changes in store.watch(b"k", 1):
                seen.append(changes.revision)
                if changes.events[0].value == b"end":
                    return

        Channels.channel = fork_meanwhile
        task = asyncio.run_coroutine_threadsafe(watch(), loop)
        first = on_loop(store.commit(puts=[Put(b"k", b"")]))
        last = on_loop(store.commit(puts=[Put(b"k", b"end")]))
        task.result(10)
        assert seen == [first, last], seen
        assert Channels.channel is got
        on_loop(store.close())
        print("done")
    """
    run_script(server, script)


def test_bursts_of_children_leave_a_lock_with_its_holder(server: Etcd) -> None:
    script = """
        import ringhold

        cluster = ringhold.create(sys.argv[1], nodes=())
        grant = cluster.lock("held").acquire()
        lost = []
        grant.on_lost(lambda *args: lost.append(args))
        key = cluster.kv
        for burst in range(5):
            pids = [fork(lambda: None) for _ in range(8)]
            key[f"{burst}"] = b""
            for pid in pids:
                joined(pid)
            grant.check()
        time.sleep(0.5)
        grant.check()
        assert not lost
        grant.release()
        cluster.close()
        print("done")
    """
    run_script(server, script)


@pytest.mark.parametrize("support", [None, "0"])
def test_a_program_that_imported_grpcio_before_is_warned_once(support: str | None) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GRPC_")}
    if support is not None:
        environment["GRPC_ENABLE_FORK_SUPPORT"] = support
    script = """
        import grpc, logging
        logging.basicConfig(format="%(name)s %(levelname)s %(message)s")
        from ringhold.store.etcd import library
        library.use()
        library.use()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
        env=environment,
    )
    assert done.stderr.count("ringhold WARNING grpcio was imported before") == (support is None)
    assert done.stderr.count("\n") == (support is None)

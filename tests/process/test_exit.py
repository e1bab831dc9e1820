"""Goal: a process that ends in order without closing its cluster in etcd leaves nothing held: not
the locks that it has, nor those that it had. It ends in bounded time and in silence.

Method: programs that end in many ways while they have a lock. Their sessions would last for a
minute, so whoever gets the lock within half of that got it because they were ended.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from etcd_servers import etcd, shared_etcd

import ringhold

PRELUDE = """
import asyncio, atexit, multiprocessing, os, signal, sys, threading, time
import ringhold

url, name = sys.argv[1:]

def take(cluster, name):
    grant = cluster.lock(name).acquire(timeout=30)
    assert grant, name
    return grant

def opened():
    return ringhold.open(url, session_ttl=60)
"""

ENDINGS = {
    "release": "kept = opened(); take(kept, name).release()",
    "hold": "kept = opened(); take(kept, name)",
    "exit": "kept = opened(); take(kept, name); sys.exit()",
    "error": "kept = opened(); take(kept, name); raise ValueError('of the program')",
    "interrupt": """
        kept = opened()
        with kept.lock(name):
            signal.raise_signal(signal.SIGINT)
    """,
    "asyncio": """
        async def main():
            cluster = await ringhold.aio.open(url, session_ttl=60)
            assert await cluster.lock(name).try_acquire()
        asyncio.run(main())
    """,
    "loop": """
        # One that is still running.
        async def main():
            global kept
            kept = await ringhold.aio.open(url, session_ttl=60)
            assert await kept.lock(name).try_acquire()
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, daemon=True).start()
        asyncio.run_coroutine_threadsafe(main(), loop).result()
    """,
    "daemons": """
        kept = opened()
        take(kept, name)
        def work(number):
            while True:
                with kept.lock(f"{name}-{number}"):
                    kept.kv[f"{name}-{number}"] = b""
        for number in (1, 1, 2, 3):
            threading.Thread(target=work, args=[number], daemon=True).start()
        threading.Thread(target=kept.lock(name).acquire, daemon=True).start()
        time.sleep(0.1)
    """,
    "late": """
        # What a program arranges for its end finds a cluster open that it opened before.
        kept = opened()
        @atexit.register
        def late():
            grant.check()
            take(kept, name + "-late")
        grant = take(kept, name)
    """,
    "fork": """
        kept = opened()
        grant = take(kept, name + "-parent")
        pid = os.fork()
        if pid:
            assert os.waitpid(pid, 0)[1] == 0
            grant.check()
        take(kept, name)
    """,
    "killed": "kept = opened(); take(kept, name); os._exit(0)",
}


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = shared_etcd("distro", 1).url(f"exit-{tmp_path.name}")
    ringhold.create(url).close()
    return url


def begin(tmp_path: Path, script: str, *arguments: str) -> subprocess.Popen[str]:
    # A file, as multiprocessing imports it in children that it spawns.
    program = tmp_path / f"program_{arguments[-1]}.py"
    program.write_text(PRELUDE + textwrap.dedent(script))
    return subprocess.Popen(
        [sys.executable, "-W", "error", str(program), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_whatever_way_a_process_ends_its_locks_are_free(tmp_path: Path, url: str) -> None:
    running = {name: begin(tmp_path, script, url, name) for name, script in ENDINGS.items()}
    told = {name: process.communicate(timeout=60) for name, process in running.items()}
    assert "ValueError: of the program" in told.pop("error")[1]
    assert "KeyboardInterrupt" in told.pop("interrupt")[1]
    assert told == dict.fromkeys(told, ("", ""))
    with ringhold.open(url) as cluster:
        for name in set(ENDINGS) - {"killed"}:
            assert cluster.lock(name).acquire(timeout=30), name
        assert not cluster.lock("killed").try_acquire()


@pytest.mark.parametrize("first", ["import ringhold", "import multiprocessing.util"])
def test_a_lock_stays_while_children_are_waited_for(tmp_path: Path, url: str, first: str) -> None:
    script = f"""
    {first}
    def work():
        print("at work", flush=True)
        sys.stdin = open(0)
        input()

    if __name__ == "__main__":
        import ringhold
        from multiprocessing import Process
        process = Process(target=print, args=["begun"])
        process.start()
        process.join()
        kept = ringhold.open(sys.argv[1], session_ttl=60)
        assert kept.lock("of the parent").try_acquire()
        Process(target=work).start()
    """
    program = tmp_path / "program.py"
    program.write_text("import sys\n" + textwrap.dedent(script))
    process = subprocess.Popen(
        [sys.executable, str(program), url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        assert process.stdout.readline() == "at work\n"
        with ringhold.open(url) as cluster:
            lock = cluster.lock("of the parent")
            assert lock.acquire(timeout=1) is None, "its parent waits for the child"
            process.communicate("done\n", timeout=30)
            assert process.returncode == 0
            assert lock.acquire(timeout=30)
    finally:
        process.kill()
        process.communicate()


def test_children_of_multiprocessing_end_their_sessions_and_not_their_parents(
    tmp_path: Path, url: str
) -> None:
    script = """
    def work(cluster, name):
        if cluster is None:
            globals()["kept"] = cluster = opened()
        take(cluster, name)

    def work_in_pool(number):
        take(kept, f"pool-{number}")
        time.sleep(0.1)  # The other worker gets some.

    def outlive(cluster):
        grant = take(cluster, "thread")
        def go_on():
            time.sleep(0.5)  # The main thread is at its end.
            grant.check()
            cluster.kv["held"] = b"to the end"
        threading.Thread(target=go_on).start()

    def ended(process):
        process.start()
        process.join()
        assert process.exitcode == 0, process

    if __name__ == "__main__":
        kept = opened()
        grant = take(kept, "parent")
        fork, spawn = map(multiprocessing.get_context, ("fork", "spawn"))
        ended(fork.Process(target=work, args=(kept, "forked")))
        ended(fork.Process(target=work, args=(None, "forked by itself")))
        ended(fork.Process(target=outlive, args=(kept,)))
        assert kept.kv["held"] == b"to the end"
        ended(spawn.Process(target=work, args=(None, "spawned")))
        pool = fork.Pool(2)
        pool.map(work_in_pool, range(4), chunksize=1)
        pool.close()
        pool.join()
        for name in ("forked", "forked by itself", "thread", "spawned"):
            take(kept, name)
        for number in range(4):
            take(kept, f"pool-{number}")
        grant.check()
        print("done")
    """
    process = begin(tmp_path, script, url, "children")
    assert process.communicate(timeout=60) == ("done\n", "")


def test_a_server_that_is_silent_keeps_no_process_from_ending(tmp_path: Path) -> None:
    script = """
    first, second = opened(), opened()
    take(first, "a").release()
    take(second, "b")
    os.kill(int(name), signal.SIGSTOP)
    threading.Thread(target=first.fs.pipe_file, args=("/f", b"data"), daemon=True).start()
    threading.Thread(target=second.lock("a").acquire, daemon=True).start()
    time.sleep(0.1)  # Their commits are under way.
    print(time.monotonic())
    """
    with etcd() as server:
        url = server.url("exit")
        ringhold.create(url).close()
        process = begin(tmp_path, script, url, str(server.members[0].pid))
        out, complaints = process.communicate(timeout=60)
        taken_s = time.monotonic() - float(out)
    assert (process.returncode, complaints) == (0, "")
    # About 2 s, and what a busy machine adds; a commit that nobody answers takes 10 s.
    assert taken_s < 8, taken_s

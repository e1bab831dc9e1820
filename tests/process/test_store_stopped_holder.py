"""Goal: a process that is stopped in the middle of a commit makes others wait no longer than they
chose to, and keeps nobody from going on, leaving or closing.

Method: a real process takes the commit lock, signs it as a commit does, and stops itself. Whoever
wants to commit meanwhile is told who holds the lock and that it is stopped.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import ringhold
from ringhold.env import real_env
from ringhold.errors import Closed, StoreUnavailable
from ringhold.store import lock_files
from ringhold.store.base import Put, run_direct
from ringhold.store.lock_files import CommitLock
from ringhold.store.sqlite import open_sqlite_store

# The plugin's other method uses the timer that a test sets.
pytestmark = pytest.mark.timeout(120, method="thread")

HOLDER = """
    import os, signal, sys
    from ringhold.store.lock_files import CommitLock
    lock = CommitLock(sys.argv[1])
    lock.acquire()
    lock.sign()
    os.kill(os.getpid(), signal.SIGSTOP)
    lock.release()
    signal.pause()
"""


def script(text: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(text), *map(str, arguments)]


@contextmanager
def stopped_holder(directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(script(HOLDER, directory / "locks"))
    try:
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        # The fault is there.
        assert lock_files.process_state(process.pid) == "stopped (T)"
        other = CommitLock(str(directory / "locks"))
        assert not other.try_acquire()
        other.close()
        yield process
    finally:
        process.kill()
        process.wait()


async def opened(directory: Path, timeout_s: float = 0.3) -> Any:
    return await open_sqlite_store(
        str(directory), real_env(), create=True, commit_timeout=timeout_s
    )


def commit(store: Any) -> int:
    return run_direct(store.direct.commit(puts=[Put(b"a", b"")]))


async def until_committed(store: Any) -> None:
    while True:
        try:
            await store.commit(puts=[Put(b"a", b"")])
        except StoreUnavailable:
            continue
        return


def store_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "ringhold-store"]


def test_tasks_and_threads_are_told_who_holds_the_lock(tmp_path: Path) -> None:
    async def main() -> None:
        store = await opened(tmp_path)
        await store.grant_lease(b"l" * 12, 60.0)
        with stopped_holder(tmp_path) as holder, ThreadPoolExecutor(2) as threads:
            begin = time.monotonic()
            loop = asyncio.get_running_loop()
            failed = await asyncio.gather(
                store.commit(puts=[Put(b"a", b"")]),
                store.renew_lease(b"l" * 12),
                loop.run_in_executor(threads, commit, store),
                loop.run_in_executor(threads, commit, store),
                return_exceptions=True,
            )
            waited_s = time.monotonic() - begin
            for error in failed:
                assert isinstance(error, StoreUnavailable)
                assert f"process {holder.pid} took it last; it is stopped (T)" in str(error)
            assert 0.25 < waited_s < 5
            # Reading goes on.
            snapshot = await store.snapshot()
            assert await snapshot.get(b"a") is None
            await snapshot.close()
            # And so does committing, once the holder does.
            holder.send_signal(signal.SIGCONT)
            # How soon the scheduler lets it is not ours to say.
            async with asyncio.timeout(20):
                await until_committed(store)
        await store.close()

    asyncio.run(main())


def test_a_holder_that_dies_gives_the_lock_back(tmp_path: Path) -> None:
    async def main() -> None:
        store = await opened(tmp_path, timeout_s=30.0)
        with stopped_holder(tmp_path) as holder, ThreadPoolExecutor(1) as threads:
            waiting = asyncio.get_running_loop().run_in_executor(threads, commit, store)
            done, _ = await asyncio.wait([waiting], timeout=0.1)
            assert not done
            holder.kill()
            async with asyncio.timeout(5):
                assert await waiting > 0
        await store.close()

    asyncio.run(main())


def test_closing_leaves_no_thread_and_no_file_behind(tmp_path: Path) -> None:
    async def main() -> None:
        # Those of other tests' clusters, which this process may still have open.
        others = store_threads()
        store = await opened(tmp_path, timeout_s=1.0)
        with stopped_holder(tmp_path):
            queued = asyncio.create_task(store.commit(puts=[Put(b"a", b"")]))
            await asyncio.sleep(0.05)
            assert set(store_threads()) - set(others)
            async with asyncio.timeout(10):
                await store.close()
            with pytest.raises(StoreUnavailable, match="stopped"):
                await queued
            # A thread says its last word shortly before it ends.
            async with asyncio.timeout(5):
                while set(store_threads()) - set(others):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert opened_files(tmp_path) == []

    asyncio.run(main())


def opened_files(directory: Path) -> list[str]:
    """The files below `directory` that this process has open."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:
            continue  # That of the listing itself.
    return [path for path in found if path.startswith(str(directory))]


class Alarm(Exception):
    """Raised by a signal's handler."""


def test_an_interrupt_withdraws_a_commit_that_waits(tmp_path: Path) -> None:
    def ring(signum: int, frame: object) -> None:
        raise Alarm

    async def main() -> None:
        store = await opened(tmp_path, timeout_s=60.0)
        before = signal.signal(signal.SIGALRM, ring)
        try:
            with stopped_holder(tmp_path):
                begin = time.monotonic()
                signal.setitimer(signal.ITIMER_REAL, 0.2)
                with pytest.raises(Alarm):
                    commit(store)
                assert time.monotonic() - begin < 5
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        # It was withdrawn: with the lock free again, nothing appears.
        assert await store.commit(puts=[Put(b"b", b"")]) == 2
        await store.close()

    asyncio.run(main())


LEAVING = """
    import asyncio, sys, threading, time
    from ringhold.env import real_env
    from ringhold.store.base import Put, run_direct
    from ringhold.store.sqlite import open_sqlite_store

    async def main():
        store = await open_sqlite_store(sys.argv[1], real_env(), create=False)
        commit = lambda: run_direct(store.direct.commit(puts=[Put(b"a", b"")]))
        threading.Thread(target=commit, daemon=True).start()
        waiting = asyncio.ensure_future(store.commit(puts=[Put(b"a", b"")]))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        print("leaving", flush=True)
        sys.exit(3)

    asyncio.get_event_loop_policy().new_event_loop().run_until_complete(main())
"""


def test_a_process_that_waits_can_leave(tmp_path: Path) -> None:
    asyncio.run(closed(tmp_path))
    with stopped_holder(tmp_path):
        leaving = subprocess.run(
            script(LEAVING, tmp_path), capture_output=True, text=True, timeout=9, check=False
        )
        assert leaving.stdout == "leaving\n", leaving.stderr
        assert leaving.returncode == 3


async def closed(directory: Path) -> None:
    await (await opened(directory)).close()


def test_the_state_of_a_process_is_told(tmp_path: Path) -> None:
    assert lock_files.process_state(os.getpid()) == "running"
    child = subprocess.Popen(script("import time; time.sleep(60)"))
    try:
        assert lock_files.process_state(child.pid) in (
            "running",
            "sleeping",
            "waiting for a device",
        )
    finally:
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert lock_files.process_state(child.pid) == "dead"
        child.wait()
    assert lock_files.process_state(child.pid) == "dead"
    # A name that looks like what follows a name.
    odd = tmp_path / ") T ("
    odd.symlink_to(sys.executable)
    text = "import sys; print('up', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [odd, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        assert lock_files.process_state(process.pid) in ("running", "sleeping")
        process.kill()


def test_what_is_cancelled_is_taken_back_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        store = await opened(tmp_path, timeout_s=60.0)
        with stopped_holder(tmp_path):
            begun_s = time.monotonic()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await store.commit(puts=[Put(b"cancelled", b"")])
            assert time.monotonic() - begun_s < 10
        await store.commit(puts=[Put(b"after", b"")])
        snapshot = await store.snapshot()
        assert [key for key, _ in await snapshot.range(b"", b"z")] == [b"after"]
        await snapshot.close()
        await store.close()

    asyncio.run(main())


def test_a_first_lock_and_a_close_keep_their_timeouts(tmp_path: Path) -> None:
    """To lock, a session has to be opened first, which takes a commit; to close, one to end it."""
    ringhold.create(str(tmp_path / "c")).close()
    one, other = ringhold.open(str(tmp_path / "c")), ringhold.open(str(tmp_path / "c"))
    with other.lock("held"), stopped_holder(tmp_path / "c"):
        begun_s = time.monotonic()
        with pytest.raises(StoreUnavailable):
            one.lock("x").acquire(timeout=0.2)
        waiting = threading.Thread(target=refused, args=(one,))
        waiting.start()
        one.close(timeout=0.5)
        waiting.join(30)
        assert not waiting.is_alive()
        assert time.monotonic() - begun_s < 8, "less than a commit waits for its turn"
    with other.lock("x", timeout=30):
        pass
    other.close()


def refused(cluster: ringhold.Cluster) -> None:
    with pytest.raises((Closed, StoreUnavailable)):
        cluster.lock("x").acquire()

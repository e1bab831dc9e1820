"""Goal: a store that cannot be written for longer than the TTL costs no live session, and who
stands still for that long has lost his.

Method: a real process stops itself inside SQLite's COMMIT, which a try for the commit lock and one
for SQLite's own write lock prove; others, with sessions in the same store, are asked meanwhile
and afterwards.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw
import pytest

import ringhold
from ringhold.store.lock_files import CommitLock

TTL_S = 4.0

PRELUDE = """
import os, signal, sys, time
import apsw
import ringhold

armed = False

def stop_inside():
    global armed
    if armed:
        armed = False
        os.kill(os.getpid(), signal.SIGSTOP)
    return False

apsw.connection_hooks.append(lambda connection: connection.set_commit_hook(stop_inside))
name = sys.argv[2]
cluster = ringhold.open(sys.argv[1], session_ttl=float(sys.argv[3]))
grant = cluster.lock(name).acquire()
state = cluster._bridge.run(cluster._cluster._session.ensure())
print("held", grant.token, flush=True)
now = lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME)

def check():
    try:
        grant.check()
    except ringhold.LockLost:
        return "lost"
    return "held"
"""

STOPPING = """
armed = True
try:
    cluster.kv["stopped"] = b"inside"
    outcome = "committed"
except ringhold.RingholdError as error:
    outcome = type(error).__name__
print(outcome, check(), state.state, flush=True)
# The next operation opens a new session.
with cluster.lock("another"):
    print("again", flush=True)
cluster.close()
"""

LIVING = """
# More than a TTL after its last renewal, and well after others might have taken it.
while now() < state.deadline_ns + 3_000_000_000 and not state.expired:
    time.sleep(0.01)
print(state.state, check(), grant.lost.is_set(), flush=True)
sys.stdin.readline()
while state.state == "suspended":
    time.sleep(0.01)
cluster.kv[name] = b"alive"
same = cluster._bridge.run(cluster._cluster._session.ensure()) is state
print(state.state, check(), grant.lost.is_set(), same, flush=True)
grant.release()
cluster.close()
"""


@contextmanager
def process(script: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", PRELUDE + script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as started:
        try:
            yield started
            assert started.wait(60) == 0
        finally:
            started.kill()


def words(started: subprocess.Popen[str]) -> list[str]:
    assert started.stdout is not None
    return started.stdout.readline().split()


def is_inside_a_commit(url: Path, pid: int) -> None:
    """Asserts that `pid` is stopped, and holds the commit lock and SQLite's write lock."""
    found = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
    assert found is not None
    assert found.si_status == signal.SIGSTOP
    lock = CommitLock(str(url / "locks"))
    try:
        assert not lock.try_acquire()
        assert lock.holder() == pid
    finally:
        lock.close()
    connection = apsw.Connection(str(url / "store" / "store.db"))
    try:
        with pytest.raises(apsw.BusyError):
            connection.execute("BEGIN IMMEDIATE")
    finally:
        connection.close()


def test_sessions_outlive_a_store_that_somebody_holds_up(tmp_path: Path) -> None:
    url = tmp_path / "c"
    ringhold.create(str(url)).close()
    with process(LIVING, url, "one", TTL_S) as one, process(LIVING, url, "two", TTL_S) as two:
        assert [words(one)[0], words(two)[0]] == ["held", "held"]
        with process(STOPPING, url, "own", TTL_S) as stopping:
            assert words(stopping)[0] == "held"
            is_inside_a_commit(url, stopping.pid)
            for living in (one, two):
                assert words(living) == ["suspended", "held", "False"]
            # It was inside all the time.
            is_inside_a_commit(url, stopping.pid)
            stopping.send_signal(signal.SIGCONT)
            # Its commit was begun in time and stands; its own session is over.
            assert words(stopping) == ["committed", "lost", "expired"]
            assert words(stopping) == ["again"]
            for living in (one, two):
                assert living.stdin is not None
                living.stdin.write("\n")
                living.stdin.flush()
                assert words(living) == ["active", "held", "False", "True"]
    with ringhold.open(str(url)) as cluster:
        assert [cluster.kv[key] for key in ("one", "two")] == [b"alive"] * 2


def test_who_was_stopped_beyond_the_ttl_is_expired_though_nobody_wanted_anything(
    tmp_path: Path,
) -> None:
    url = tmp_path / "c"
    ringhold.create(str(url)).close()
    script = """
os.kill(os.getpid(), signal.SIGSTOP)
print(check(), state.state, state.fresh_until_ns, flush=True)
cluster.close()
"""
    for _ in range(3):
        with process(script, url, "x", 1.0) as stopped:
            assert words(stopped)[0] == "held"
            os.waitid(os.P_PID, stopped.pid, os.WSTOPPED | os.WNOWAIT)
            # The fault is time: more than a TTL of it.
            with pytest.raises(subprocess.TimeoutExpired):
                stopped.wait(1.2)
            stopped.send_signal(signal.SIGCONT)
            assert words(stopped) == ["lost", "expired", "0"]


FULL_DISK = """
import os, resource, sys, time
import ringhold
from ringhold.store.base import Put

cluster = ringhold.create(sys.argv[1], session_ttl=2.5)
grant = cluster.lock("x").acquire()
state = cluster._bridge.run(cluster._cluster._session.ensure())
cluster.kv["large"] = bytes(100_000)
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
try:
    cluster._bridge.run(cluster._cluster._store.commit(puts=[Put(b"any", b"1")]))
except ringhold.RingholdError as error:
    print(type(error).__name__, flush=True)
deadline_ns = state.deadline_ns
while time.clock_gettime_ns(time.CLOCK_BOOTTIME) < deadline_ns + 2_000_000_000:
    time.sleep(0.01)
grant.check()
print(state.state, state.deadline_ns == deadline_ns, flush=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
while state.state == "suspended":
    time.sleep(0.01)
grant.check()
print(state.state, flush=True)
grant.release()
cluster.close()
"""


def test_a_full_disk_costs_no_session(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "c")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    refused, suspended, active = done.stdout.splitlines()
    # Nothing could be written, all the while: not a single renewal came through.
    assert refused in ("StoreUnavailable", "OutcomeUnknown")
    assert suspended == "suspended True"
    assert active == "active"
    assert done.stderr.count("renewal of session") <= 1

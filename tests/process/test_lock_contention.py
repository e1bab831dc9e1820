"""Goal: among processes that are killed at any moment, a lock has one holder at a time.

Method: eight real processes contend for one lock while SIGKILL strikes one after the other; each
notes its entries and exits in a file whose lines are in the order of what happened. A holder's
missing exit is explained by its death alone.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from lock_processes import pause_outside_commit

import ringhold

HERE = Path(__file__).parent
PROCESSES = 8
KILLS = 12
GRANTS = 400


def start(directory: Path, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(HERE / "lock_worker.py"), str(directory), str(log)]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def entries(log: Path) -> int:
    return log.read_bytes().count(b"enter") if log.exists() else 0


def holders(log: Path) -> set[bytes]:
    """The processes that ever got the lock."""
    lines = [line.split() for line in log.read_bytes().splitlines()]
    return {line[2] for line in lines if len(line) == 3 and line[0] == b"enter"}


def wait_for_entries(log: Path, count: int) -> None:
    wait_for(lambda: entries(log) >= count)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "nobody gets the lock any more, or not everybody"
        time.sleep(0.005)


def test_one_holder_at_a_time_and_growing_tokens_under_kills(tmp_path: Path) -> None:
    directory, log = tmp_path / "c", tmp_path / "log"
    ringhold.create(str(directory)).close()
    chance = random.Random(7)
    workers = [start(directory, log) for _ in range(PROCESSES)]
    # How many entries there were at least when it was killed.
    killed: dict[int, int] = {}
    try:
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == b"ready\n"
        for _ in range(KILLS):
            wait_for_entries(log, entries(log) + chance.randrange(5, 25))
            victim = workers.pop(chance.randrange(len(workers)))
            killed[victim.pid] = entries(log)
            victim.kill()
            victim.wait()
            if victim.stdout is not None:
                victim.stdout.close()
            workers.append(start(directory, log))
        wait_for_entries(log, max(GRANTS, entries(log) + 50))
        wait_for(lambda: len(holders(log)) >= PROCESSES)
    finally:
        for worker in workers:
            killed[worker.pid] = entries(log)
            worker.kill()
            worker.wait()
            if worker.stdout is not None:
                worker.stdout.close()
    lines = [line.split() for line in log.read_text().splitlines()]
    assert sum(what == "enter" for what, _, _ in lines) >= GRANTS
    holder: tuple[int, int] | None = None
    last = entered = 0
    got: set[int] = set()
    for what, token_text, pid_text in lines:
        token, pid = int(token_text), int(pid_text)
        if what == "enter":
            assert token > last, "tokens grow with every grant"
            assert holder is None or killed[holder[1]] <= entered, "two holders at once"
            holder, last = (token, pid), token
            entered += 1
            got.add(pid)
        else:
            assert holder == (token, pid), "only the newest holder is inside"
            holder = None
    assert len(got) >= PROCESSES


def test_the_next_one_gets_it_at_once_when_the_holder_is_killed(tmp_path: Path) -> None:
    directory = tmp_path / "c"
    delays = []
    with ringhold.create(str(directory)) as cluster:
        for _ in range(5):
            command = [sys.executable, str(HERE / "lock_holder.py"), str(directory)]
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
                assert holder.stdout is not None
                token = int(holder.stdout.readline())
                assert cluster.lock("held").acquire(timeout=0.2) is None
                start_s = time.monotonic()
                holder.send_signal(signal.SIGKILL)
                with cluster.lock("held", timeout=20) as grant:
                    delays.append(time.monotonic() - start_s)
                    assert grant.token > token
    assert sorted(delays)[len(delays) // 2] < 5, delays
    assert min(delays) < 1, delays


def test_a_holder_that_is_stopped_loses_the_lock_and_learns_it(tmp_path: Path) -> None:
    directory = tmp_path / "c"
    script = (
        "import sys, ringhold\n"
        "with ringhold.open(sys.argv[1], session_ttl=1.0) as cluster:\n"
        "    grant = cluster.lock('held').acquire()\n"
        "    print(grant.token, flush=True)\n"
        "    sys.stdin.readline()\n"
        "    try:\n"
        "        grant.check()\n"
        "    except ringhold.LockLost as error:\n"
        "        print('lost', error.token, flush=True)\n"
    )
    with ringhold.create(str(directory)) as cluster:
        command = [sys.executable, "-c", script, str(directory)]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe) as holder:
            try:
                assert holder.stdin is not None
                assert holder.stdout is not None
                token = int(holder.stdout.readline())
                pause_outside_commit(holder.pid, directory)
                with cluster.lock("held", timeout=20) as grant:
                    assert grant.token > token
                    holder.stdin.write(b"\n")
                    holder.stdin.flush()
                    holder.send_signal(signal.SIGCONT)
                    assert holder.stdout.readline().split() == [b"lost", b"%d" % token]
            finally:
                holder.kill()

"""Goal: among processes that are killed, a semaphore never has more holders than its limit, and
what a dead process held is free at once.

Method: real processes and SIGKILL. Sessions live for longer than any of these tests waits, so
that no slot can be had by a lease that ran out. Six processes take turns while they are killed
one after the other, and note entries and exits in a file in the order in which they happen; a
holder's missing exit is explained by its death alone.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slot_worker import LIMIT, SESSION_TTL_S

import ringhold

HERE = Path(__file__).parent
PROCESSES = 4
KILLS = 6
GRANTS = 80
WAIT_S = 60


def start(directory: Path, *words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(HERE / "slot_worker.py"), str(directory), *words]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def told(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    return process.stdout.readline()


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


@contextmanager
def holders(directory: Path, what: str, count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    processes = [start(directory, what) for _ in range(count)]
    try:
        yield processes
    finally:
        for process in processes:
            kill(process)


def entries(log: Path) -> int:
    return log.read_bytes().count(b"enter") if log.exists() else 0


def wait_for_entries(log: Path, count: int) -> None:
    deadline = time.monotonic() + WAIT_S
    while entries(log) < count:
        assert time.monotonic() < deadline, "nobody gets a slot any more"
        time.sleep(0.005)


def last_to_enter(log: Path, workers: list[subprocess.Popen[bytes]]) -> int:
    """The live worker that is most likely to hold a slot now."""
    alive = {worker.pid for worker in workers}
    entered = [line.split() for line in log.read_bytes().splitlines() if line[:1] == b"e"]
    return next(int(pid) for _, _, pid in reversed(entered) if int(pid) in alive)


def test_a_dead_holder_s_slot_is_free_at_once(tmp_path: Path) -> None:
    directory = tmp_path / "c"
    with (
        ringhold.create(str(directory)) as cluster,
        holders(directory, "hold", LIMIT) as processes,
    ):
        tokens = [int(told(process)) for process in processes]
        semaphore = cluster.semaphore("held", LIMIT)
        assert {party.pid for party in semaphore.holders()} == {p.pid for p in processes}
        # The fault is proved first: while they live there is no slot.
        assert semaphore.acquire(timeout=0.2) is None
        for process in processes:
            begun = time.monotonic()
            process.kill()
            grant = semaphore.acquire(timeout=WAIT_S)
            assert time.monotonic() - begun < WAIT_S < SESSION_TTL_S
            assert grant is not None
            assert grant.token > max(tokens)
            tokens.append(grant.token)
        assert semaphore.try_acquire() is None


def test_a_dead_leader_is_followed_at_once(tmp_path: Path) -> None:
    directory = tmp_path / "c"
    with (
        ringhold.create(str(directory)) as cluster,
        holders(directory, "lead", 2) as processes,
    ):
        election = cluster.election("held", value="the last")
        leaders = election.observe()
        terms = []
        for _ in processes:
            leader = next(seen for seen in leaders if seen is not None)
            assert election.campaign(timeout=0.1) is None
            terms.append(leader.token)
            victim = next(process for process in processes if process.pid == leader.pid)
            assert int(told(victim)) == leader.token
            assert leader.value == str(victim.pid)
            victim.kill()
        grant = election.campaign(timeout=WAIT_S)
        assert grant is not None
        terms.append(grant.token)
        assert terms == sorted(set(terms))
        leader = election.leader()
        assert leader is not None
        assert leader.value == "the last"


def test_never_more_holders_than_the_limit_under_kills(tmp_path: Path) -> None:
    directory, log = tmp_path / "c", tmp_path / "log"
    ringhold.create(str(directory)).close()
    chance = random.Random(7)
    workers = [start(directory, "semaphore", str(log)) for _ in range(PROCESSES)]
    # How many entries there were at least when it was killed.
    killed: dict[int, int] = {}
    try:
        for worker in workers:
            assert told(worker) == b"ready\n"
        for _ in range(KILLS):
            wait_for_entries(log, entries(log) + chance.randrange(3, 15))
            victim = next(worker for worker in workers if worker.pid == last_to_enter(log, workers))
            workers.remove(victim)
            killed[victim.pid] = entries(log)
            kill(victim)
            workers.append(start(directory, "semaphore", str(log)))
        wait_for_entries(log, max(GRANTS, entries(log) + 50))
    finally:
        for worker in workers:
            killed[worker.pid] = entries(log)
            kill(worker)
    notes = [line.split() for line in log.read_text().splitlines()]
    left = {(int(token), int(pid)) for what, token, pid in notes if what == "leave"}
    inside: list[tuple[int, int]] = []
    tokens: set[int] = set()
    got: set[int] = set()
    most = died_inside = 0
    for what, token_text, pid_text in notes:
        grant = (int(token_text), int(pid_text))
        if what == "leave":
            inside.remove(grant)
            continue
        if len(inside) == LIMIT:
            gone = [held for held in inside if held not in left and held[1] != grant[1]]
            dead = [held for held in gone if killed[held[1]] <= len(tokens)]
            assert dead, "more holders than the limit"
            inside.remove(dead[0])
            died_inside += 1
        inside.append(grant)
        most = max(most, len(inside))
        assert grant[0] not in tokens
        tokens.add(grant[0])
        got.add(grant[1])
    assert len(tokens) >= GRANTS
    assert most == LIMIT, "the processes never overlapped"
    assert died_inside, "no kill ever struck a holder"
    assert len(got) > PROCESSES, "those started later got their turn too"

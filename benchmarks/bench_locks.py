"""Locks of a cluster beside filelock and redis-py's Lock.

A pair is an acquire and its release of one name, over and over: the cluster's are of a grant
that the process keeps, as nobody else asks for it. Hand-over is what passes between two processes
from the beginning of the release to the end of the acquire that waited for it, both read from
the clock that they share. What was timed is checked: tokens count the grants of a name, so
that pairs cannot have been fewer than were timed.

Tiny unless RINGHOLD_BENCH=full. redis-py needs Debian's redis-server, and so the mark `system`.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import filelock
import pytest
from etcd_servers import shared_etcd

import ringhold
from etcd_peers import PlainLock
from lock_partners import PATIENCE_S, Partner, now_ms, partners
from pairs import FULL, ROUNDS, figure, in_turns, report

PAIRS = 3_000 if FULL else 20
FIRSTS = 300 if FULL else 5
EXCHANGES = 60 if FULL else 2
KILLS = 3 if FULL else 1
LOOP_S = 3.0 if FULL else 0.3


# Pairs


def grants_between(first: int, last: int) -> int:
    """At least so many grants of one name have been made between two tokens: each raises the
    token's number by one, a new grant of the store by far more."""
    return (last >> 1) - (first >> 1)


class ClusterPairs:
    """Pairs of a lock that this process keeps, and the store commits made during each round."""

    def __init__(self, cluster: ringhold.Cluster):
        self.cluster = cluster
        self.lock = cluster.lock("order/7")
        self.commits: list[float] = []

    def run(self, _: int) -> None:
        first = self._token()
        lock = self.lock
        for _ in range(PAIRS):
            lock.acquire()
            lock.release()
        assert grants_between(first, self._token()) > PAIRS

    def counted(self, number: int) -> None:
        """As `run`, between two commits of our own: what lies between their revisions is ours."""
        self._token()
        before = self.cluster.kv.put("before", b"")
        self.run(number)
        self.commits.append((self.cluster.kv.put("after", b"") - before - 1) / PAIRS)

    def _token(self) -> int:
        with self.lock as grant:
            return grant.token


class AsyncPairs:
    def __init__(self, runner: asyncio.Runner, cluster: Any):
        self.runner = runner
        self.lock = cluster.lock("order/8")

    def run(self, _: int) -> None:
        self.runner.run(self._run())

    async def _run(self) -> None:
        lock = self.lock
        async with lock as grant:
            first = grant.token
        for _ in range(PAIRS):
            await lock.acquire()
            await lock.release()
        async with lock as grant:
            assert grants_between(first, grant.token) > PAIRS


def file_pairs(path: Path) -> Any:
    def run(_: int) -> None:
        lock = filelock.FileLock(path)
        held = 0
        for _ in range(PAIRS):
            lock.acquire()
            held += lock.is_locked
            lock.release()
        assert held == PAIRS

    return run


def in_nanoseconds(benchmark: Any, seconds: dict[str, list[float]], name: str) -> None:
    """The figure of a goal in absolute terms, which the ratios beside it put into proportion."""
    figure(benchmark, f"{name}, ns", [taken / PAIRS * 1e9 for taken in seconds[name]], "ns")


CACHED = "cached cluster lock"
CACHED_ON_ETCD = "cached cluster lock on etcd"
CACHED_ASYNC = "cached cluster lock, asyncio"


def test_a_pair_of_a_cached_lock(benchmark: Any, tmp_path: Path) -> None:
    with ExitStack() as stack:
        cluster = stack.enter_context(ringhold.create(str(tmp_path / "c")))
        runner = stack.enter_context(asyncio.Runner())
        opened = runner.run(opened_async(str(tmp_path / "c")))
        stack.callback(lambda: runner.run(opened.close()))
        pairs = ClusterPairs(cluster)
        ways = {
            CACHED: pairs.run,
            CACHED_ASYNC: AsyncPairs(runner, opened).run,
            "filelock": file_pairs(tmp_path / "peer.lock"),
        }
        seconds = benchmark.pedantic(in_turns, (ways,), rounds=1)
        for number in range(ROUNDS):
            pairs.counted(number)
    peers = [(CACHED, "filelock"), (CACHED_ASYNC, "filelock")]
    report(benchmark, seconds, peers, PAIRS, "pairs")
    for name in (CACHED, CACHED_ASYNC):
        in_nanoseconds(benchmark, seconds, name)
    figure(benchmark, "store commits per pair of a cached lock", pairs.commits, "commits")


async def opened_async(url: str) -> Any:
    return await ringhold.aio.open(url, create=False)


@contextmanager
def redis_server(directory: Path) -> Iterator[int]:
    """The port of a server that keeps nothing."""
    executable = shutil.which("redis-server")
    assert executable is not None, "redis-server is not installed"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    argv = [executable, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(directory)]
    argv += ["--save", "", "--appendonly", "no", "--daemonize", "no"]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                assert process.poll() is None, "redis-server ended"
                assert time.monotonic() < deadline, "redis-server does not answer"
                time.sleep(0.01)
        yield port
    finally:
        process.terminate()
        process.wait()


@pytest.mark.system
def test_a_pair_of_a_cached_lock_beside_redis(benchmark: Any, tmp_path: Path) -> None:
    import redis

    with (
        ringhold.create(str(tmp_path / "c")) as cluster,
        redis_server(tmp_path) as port,
        redis.Redis(port=port) as client,
    ):

        def redis_pairs(_: int) -> None:
            lock = client.lock("order/7", timeout=10)
            got = 0
            for _ in range(PAIRS):
                got += lock.acquire()
                lock.release()
            assert got == PAIRS

        ways = {CACHED: ClusterPairs(cluster).run, "redis-py": redis_pairs}
        seconds = benchmark.pedantic(in_turns, (ways,), rounds=1)
    report(benchmark, seconds, [(CACHED, "redis-py")], PAIRS, "pairs")


def test_a_pair_of_a_cached_lock_on_etcd(benchmark: Any, tmp_path: Path) -> None:
    """Beside etcd's own lock service, of the same member."""
    server = shared_etcd("distro", 1, fsync=True)
    nodes = [ringhold.NodeSpec("n1", path=str(tmp_path / "n1"))]
    plain = PlainLock(server.endpoints[0])
    with ringhold.create(server.url(f"bench-{tmp_path.name}"), nodes=nodes) as cluster:
        pairs = ClusterPairs(cluster)
        few = max(2, PAIRS // 100)
        ways = {
            CACHED_ON_ETCD: pairs.run,
            # So many fewer that both take about as long; the report takes that into account.
            "plain etcd lock": lambda _: plain.pairs(few),
        }
        seconds = benchmark.pedantic(in_turns, (ways,), rounds=1)
        for number in range(ROUNDS):
            pairs.counted(number)
    plain.close()
    seconds["plain etcd lock"] = [taken / few * PAIRS for taken in seconds["plain etcd lock"]]
    report(benchmark, seconds, [(CACHED_ON_ETCD, "plain etcd lock")], PAIRS, "pairs")
    in_nanoseconds(benchmark, seconds, CACHED_ON_ETCD)
    figure(benchmark, "etcd commits per pair of a cached lock", pairs.commits, "commits")


def test_the_first_acquire_of_a_name(benchmark: Any, tmp_path: Path) -> None:
    """Names that nobody ever asked for: each is granted by a durable commit."""
    with ringhold.create(str(tmp_path / "c")) as cluster:
        last = 0

        def firsts(number: int) -> None:
            nonlocal last
            for place in range(FIRSTS):
                with cluster.lock(f"{number}/{place}") as grant:
                    assert grant.token > last
                    last = grant.token

        def files(number: int) -> None:
            for place in range(FIRSTS):
                with filelock.FileLock(tmp_path / f"{number}-{place}.lock") as lock:
                    assert lock.is_locked

        ways = {"first acquire": firsts, "first filelock": files}
        seconds = benchmark.pedantic(in_turns, (ways,), rounds=1)
    report(benchmark, seconds, [("first acquire", "first filelock")], FIRSTS, "names")


# Between processes


def handed_over(pair: list[Partner], chance: random.Random) -> list[float]:
    """Milliseconds from each release to the acquire that waited for it."""
    delays = []
    holder, waiter = pair
    holder.ask("acquire")
    for _ in range(EXCHANGES):
        waiter.tell("acquire")
        # Long enough to wait, at any moment within a pause of one who polls.
        time.sleep(chance.uniform(0.003, 0.053))
        assert not waiter.orders.poll(), "two hold the lock"
        released, _ = holder.ask("release")
        _, acquired = waiter.answer()
        delays.append(acquired - released)
        holder, waiter = waiter, holder
    holder.ask("release")
    return delays


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Partner]]:
    directory = tmp_path_factory.mktemp("shared") / "c"
    ringhold.create(str(directory)).close()
    with partners("cluster", directory, 2) as started:
        yield started


def percentile(found: list[float], share: float) -> float:
    return sorted(found)[min(len(found) - 1, int(len(found) * share))]


def test_hand_over_between_two_processes(
    benchmark: Any, pair: list[Partner], tmp_path: Path
) -> None:
    chance = random.Random(1)
    delays: dict[str, list[list[float]]] = {"cluster": [], "filelock": []}

    def run() -> None:
        with partners("filelock", tmp_path, 2) as theirs:
            for number in range(ROUNDS + 1):
                for kind, players in (("cluster", pair), ("filelock", theirs)):
                    found = handed_over(players, chance)
                    if number:
                        delays[kind].append(found)

    benchmark.pedantic(run, rounds=1)
    for kind, rounds in delays.items():
        name = "hand-over" if kind == "cluster" else f"hand-over of {kind}"
        for share in (50, 99):
            values = [percentile(found, share / 100) for found in rounds]
            figure(benchmark, f"{name}, p{share}", values, "ms")


def test_a_kept_lock_goes_to_whoever_asks(benchmark: Any, pair: list[Partner]) -> None:
    medians: list[float] = []

    def run() -> None:
        keeper, other = pair
        for number in range(ROUNDS + 1):
            delays = []
            for _ in range(EXCHANGES):
                keeper.ask("acquire")
                keeper.ask("release")
                began, ended = other.ask("acquire")
                other.ask("release")
                delays.append(ended - began)
                keeper, other = other, keeper
            if number:
                medians.append(percentile(delays, 0.5))

    benchmark.pedantic(run, rounds=1)
    figure(benchmark, "kept lock taken by another process, p50", medians, "ms")


def test_two_processes_in_a_loop(benchmark: Any, pair: list[Partner]) -> None:
    ratios: list[float] = []

    def run() -> None:
        for _ in range(ROUNDS):
            for player in pair:
                player.tell(str(LOOP_S))
            counts = [player.answer() for player in pair]
            assert min(counts) > 0, "one of the two never had it"
            ratios.append(max(counts) / min(counts))

    benchmark.pedantic(run, rounds=1)
    figure(benchmark, "larger / smaller count of two in a loop", ratios, "times")


def test_the_next_grant_after_a_kill(benchmark: Any, tmp_path: Path) -> None:
    directory = tmp_path / "c"
    medians: list[float] = []

    def killed(cluster: ringhold.Cluster, waiter: Partner) -> float:
        with partners("cluster", directory, 1) as [holder]:
            holder.ask("acquire")
            waiter.tell("acquire")
            deadline = time.monotonic() + PATIENCE_S
            while not cluster.locks.waiters("ball"):
                assert time.monotonic() < deadline
                time.sleep(0.001)
            holder.process.kill()
            began = now_ms()
            _, acquired = waiter.answer()
        waiter.ask("release")
        return float(acquired - began)

    def run() -> None:
        with (
            ringhold.create(str(directory)) as cluster,
            partners("cluster", directory, 1) as [waiter],
        ):
            for _ in range(ROUNDS):
                delays = [killed(cluster, waiter) for _ in range(KILLS)]
                medians.append(percentile(delays, 0.5))

    benchmark.pedantic(run, rounds=1)
    figure(benchmark, "kill -9 to the next grant", medians, "ms")

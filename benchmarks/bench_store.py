"""Commits of the embedded store beside what they are made of.

Peers, in the same run, in turns: SQLite through apsw alone with the statements a commit needs
(write-ahead log, synchronous=FULL) and without checksums, and appends of the same size with
fdatasync. Each round commits the same number of puts, each durable before the next begins,
except in the concurrent round. What was timed is checked afterwards: every commit must be in
the database. The store on etcd has one member of etcd beside it, and bare puts of grpcio.

Ours, from the inside out: `apply` called by the benchmark itself; the engine's commit on the
calling thread; ``cluster.kv.put`` of the blocking face, which adds a nonce; and the engine's commit
by a task, through the writer thread.

Syncs are counted in real processes by a library preloaded into them; what four processes in a loop
get of one store is the smallest share over the largest.

Tiny by default; RINGHOLD_BENCH=full takes real sizes. Ratios are medians over the rounds with
the smallest and largest; above 1 means faster than the peer.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest
from etcd_servers import Etcd, shared_etcd
from races import Syncs, compiled_counter, raced

import ringhold
from etcd_peers import AsyncPuts, BarePuts
from pairs import FULL, Seconds, figure, in_turns, report
from ringhold.env import real_env
from ringhold.store import lock_files
from ringhold.store.base import Absent, Put, Store, run_direct
from ringhold.store.etcd import open_etcd_store, parse_etcd_url
from ringhold.store.requests import checked_commit
from ringhold.store.sqlite import open_sqlite_store
from ringhold.store.sqlite.apply import Now, apply
from ringhold.store.sqlite.checkpoints import Checkpoints
from ringhold.store.sqlite.schema import connect

COMMITS = 200 if FULL else 20
ROUNDS = 45 if FULL else 2
"""More and shorter than elsewhere: a disk that others use changes its pace within seconds."""

RACES = 5 if FULL else 1
RACE_S = 3.0 if FULL else 0.2
RACERS = 4 if FULL else 2
CONCURRENT = 32
ETCD_WIDTH = 16
VALUE = b"v" * 100
_names = itertools.count()


def key(number: int) -> bytes:
    return b"key-%012d" % number


class Bare:
    """SQLite alone: one transaction for each commit, with the statements a commit needs."""

    def __init__(self, directory: Path):
        self.connection = prepared(directory)
        self.checkpoints = Checkpoints(self.connection)

    def run(self, start: int, count: int) -> None:
        execute = self.connection.execute
        for number in range(start, start + count):
            execute("BEGIN IMMEDIATE")
            meta = dict(execute("SELECT name, value FROM meta WHERE name <> 'time_namespace'"))
            revision = meta["revision"] + 1
            due = "SELECT id FROM lease WHERE deadline_ns <= ? OR boot_id <> ?"
            assert execute(due, (0, b"")).get is None
            assert execute("SELECT 1 FROM kv WHERE k = ?", (key(number),)).get is None
            execute(
                "INSERT INTO kv (k, created, revision, lease, value_sum, sum, v)"
                " VALUES (?1, ?2, ?2, ?3, 0, 0, ?4)"
                " ON CONFLICT (k) DO UPDATE SET revision = ?2, lease = ?3, v = ?4",
                (key(number), revision, None, VALUE),
            )
            execute("INSERT INTO log VALUES (?, ?, ?, 0, ?)", (revision, 0, key(number), VALUE))
            execute(
                "UPDATE meta SET value = CASE name WHEN 'revision' THEN ? ELSE ? END"
                " WHERE name IN ('revision', 'log_bytes')",
                (revision, meta["log_bytes"] + len(VALUE)),
            )
            execute("COMMIT")
            self.checkpoints.run_if_due()

    def count(self) -> int:
        return int(self.connection.execute("SELECT count(*) FROM kv").get)


class Direct:
    """`apply` called by the benchmark itself, under the commit lock, one commit at a time."""

    def __init__(self, directory: Path):
        self.connection = prepared(directory)
        self.checkpoints = Checkpoints(self.connection)
        self.lock = lock_files.CommitLock(str(directory / "locks"))
        self.boot_id = lock_files.boot_id()

    def run(self, start: int, count: int) -> None:
        clock = real_env().clock
        for number in range(start, start + count):
            request = checked_commit([Absent(key(number))], [Put(key(number), VALUE)], [], None)
            self.lock.acquire()
            now_ns = clock.boottime_ns()
            self.lock.sign()
            applied = apply(self.connection, [request], Now(now_ns, self.boot_id))
            assert isinstance(applied.outcomes[0], int)
            self.checkpoints.run_if_due()
            self.lock.release()

    def count(self) -> int:
        return int(self.connection.execute("SELECT count(*) FROM kv").get)


class Appends:
    """What the disk allows: one append of a commit's bytes and one fdatasync for each."""

    def __init__(self, directory: Path):
        self.path = directory / "appended"
        self.fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def run(self, start: int, count: int) -> None:
        for number in range(start, start + count):
            os.write(self.fd, key(number) + VALUE)
            os.fdatasync(self.fd)

    def count(self) -> int:
        return self.path.stat().st_size // len(key(0) + VALUE)


class Blocking:
    """The engine on the calling thread, which leads each commit itself."""

    def __init__(self, runner: asyncio.Runner, store: Any):
        self.runner = runner
        self.store = store

    def run(self, start: int, count: int) -> None:
        commit = self.store.direct.commit
        for number in range(start, start + count):
            run_direct(commit(compares=[Absent(key(number))], puts=[Put(key(number), VALUE)]))

    def count(self) -> int:
        return rows(self.runner, self.store)

    def close(self) -> None:
        self.runner.run(self.store.close())


class Face:
    """`cluster.kv` of the blocking face, as users have it."""

    def __init__(self, directory: Path):
        self.cluster = ringhold.create(directory)

    def run(self, start: int, count: int) -> None:
        put = self.cluster.kv.put
        for number in range(start, start + count):
            put(key(number), VALUE)

    def count(self) -> int:
        return len(list(self.cluster.kv.range()))

    def close(self) -> None:
        self.cluster.close()


def embedded(runner: asyncio.Runner, directory: Path) -> Store:
    return runner.run(open_sqlite_store(str(directory), real_env(), create=True))


def on_etcd(runner: asyncio.Runner) -> Store:
    address = parse_etcd_url(server().url(f"bench-{next(_names)}"))
    return runner.run(open_etcd_store(address, real_env(), create=True))


def server() -> Etcd:
    return shared_etcd("distro", 1, fsync=True)


def rows(runner: asyncio.Runner, store: Store) -> int:
    async def found() -> int:
        snapshot = await store.snapshot()
        try:
            return len(await snapshot.range(b"", b"\xff"))
        finally:
            await snapshot.close()

    return runner.run(found())


class Asyncio:
    """The engine by tasks: through its queue and thread, `width` commits at a time."""

    def __init__(self, runner: asyncio.Runner, store: Store, width: int):
        self.runner = runner
        self.width = width
        self.store = store

    def run(self, start: int, count: int) -> None:
        self.runner.run(self._run(start, count))

    async def _run(self, start: int, count: int) -> None:
        async def some(numbers: range) -> None:
            for number in numbers:
                await self.store.commit(
                    compares=[Absent(key(number))], puts=[Put(key(number), VALUE)]
                )

        async with asyncio.TaskGroup() as group:
            for task in range(self.width):
                group.create_task(some(range(start + task, start + count, self.width)))

    def count(self) -> int:
        return rows(self.runner, self.store)

    def close(self) -> None:
        self.runner.run(self.store.close())


def prepared(directory: Path) -> apsw.Connection:
    """A connection to a new store in `directory`."""

    async def create() -> None:
        await (await open_sqlite_store(str(directory), real_env(), create=True)).close()

    asyncio.run(create())
    return connect(str(directory / "store" / "store.db"))


def measured(contenders: dict[str, Any], commits: int) -> Seconds:
    """Seconds for `commits` commits of each, which must all be in its database afterwards."""

    def way(contender: Any) -> Callable[[int], object]:
        return lambda number: contender.run(number * commits, commits)

    ways = {name: way(contender) for name, contender in contenders.items()}
    seconds = in_turns(ways, ROUNDS)
    for name, contender in contenders.items():
        assert contender.count() == (ROUNDS + 1) * commits, name
    return seconds


def test_commits_one_at_a_time(benchmark: Any, tmp_path: Path) -> None:
    with asyncio.Runner() as runner:
        contenders = {
            "raw fdatasync": Appends(tmp_path),
            "bare apsw": Bare(tmp_path / "bare"),
            "apply": Direct(tmp_path / "direct"),
            "blocking": Blocking(runner, embedded(runner, tmp_path / "blocking")),
            "kv.put": Face(tmp_path / "face"),
            "asyncio": Asyncio(runner, embedded(runner, tmp_path / "asyncio"), 1),
        }
        seconds = benchmark.pedantic(measured, (contenders, COMMITS), rounds=1)
        for name in ("blocking", "kv.put", "asyncio"):
            contenders[name].close()
    pairs = [(name, "bare apsw") for name in ("apply", "blocking", "kv.put", "asyncio")]
    pairs.append(("bare apsw", "raw fdatasync"))
    report(benchmark, seconds, pairs, COMMITS, "commits")


def test_commits_at_once(benchmark: Any, tmp_path: Path) -> None:
    with asyncio.Runner() as runner:
        one = Asyncio(runner, embedded(runner, tmp_path / "one"), 1)
        many = Asyncio(runner, embedded(runner, tmp_path / "many"), CONCURRENT)
        name = f"{CONCURRENT} at once"
        contenders = {"one at a time": one, name: many}
        seconds = benchmark.pedantic(measured, (contenders, COMMITS * 2), rounds=1)
        one.close()
        many.close()
    report(benchmark, seconds, [(name, "one at a time")], COMMITS * 2, "commits")


def test_commits_on_etcd(benchmark: Any) -> None:
    with asyncio.Runner() as runner:
        contenders = {
            "bare etcd put": BarePuts(server().endpoints[0], VALUE),
            "bare etcd put, asyncio": AsyncPuts(runner, server().endpoints[0], VALUE, 1),
            f"bare etcd put, {ETCD_WIDTH} at once": AsyncPuts(
                runner, server().endpoints[0], VALUE, ETCD_WIDTH
            ),
            "on etcd, blocking": Blocking(runner, on_etcd(runner)),
            "on etcd, asyncio": Asyncio(runner, on_etcd(runner), 1),
            f"on etcd, {ETCD_WIDTH} at once": Asyncio(runner, on_etcd(runner), ETCD_WIDTH),
        }
        seconds = benchmark.pedantic(measured, (contenders, COMMITS), rounds=1)
        for contender in contenders.values():
            contender.close()
    pairs = [
        ("on etcd, blocking", "bare etcd put"),
        ("on etcd, asyncio", "bare etcd put, asyncio"),
        (f"on etcd, {ETCD_WIDTH} at once", "on etcd, asyncio"),
        (f"bare etcd put, {ETCD_WIDTH} at once", "bare etcd put, asyncio"),
    ]
    report(benchmark, seconds, pairs, COMMITS, "commits")


@pytest.mark.parametrize("kind", ["thread", "task"])
def test_syncs_of_many_at_once(benchmark: Any, tmp_path: Path, kind: str) -> None:
    library = compiled_counter(tmp_path)

    def race(number: int) -> float:
        syncs = Syncs(library, tmp_path / "syncs")
        directory = tmp_path / f"{number}"
        done, per_commit = raced(directory, RACE_S, [[kind] * CONCURRENT], syncs)
        assert all(done[0])
        assert per_commit > 0
        return per_commit

    found = benchmark.pedantic(lambda: [race(number) for number in range(RACES)], rounds=1)
    figure(benchmark, f"syncs for each commit, {CONCURRENT} {kind}s at once", found, "")


@pytest.mark.parametrize("kind", ["thread", "task"])
def test_shares_of_four_processes(benchmark: Any, tmp_path: Path, kind: str) -> None:
    library = compiled_counter(tmp_path)

    def race(number: int) -> float:
        syncs = Syncs(library, tmp_path / "syncs")
        done, _ = raced(tmp_path / f"{number}", RACE_S, [[kind]] * RACERS, syncs)
        shares = [count for (count,) in done]
        return min(shares) / max(shares)

    found = benchmark.pedantic(lambda: [race(number) for number in range(RACES)], rounds=1)
    figure(benchmark, f"smallest share of {RACERS} processes, {kind}s, of the largest", found, "")

"""Workers that take locks (`lock_kill_worker`), and what strikes them.

In a directory SIGKILL and SIGSTOP strike the workers. In etcd they strike its members as well,
one at a time, the next only when all of them are together again; once two are stopped together,
so that nobody can commit.
"""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from etcd_servers import Etcd, Member
from lock_history import Held, Stop, hand_overs, parse
from lock_kill_worker import NAMES
from lock_processes import HERE, Place, now_ns, pause, resume, until

PROCESSES = 6
STOPPED_MAX = 2
PAUSE_TTLS = (1.1, 1.8)
"""How long a stopped worker stands, in times its TTL."""
PAUSE_IN_ETCD_TTLS = (1.2, 3.0)
"""There leases end up to half a second late."""
IN_COMMIT_PAUSE_TTLS = (0.07, 1.2)

PROGRESS_S = 10.0
DOWN_S = (0.1, 1.5)
SILENT_S = (2.2, 3.5)
"""Longer than etcd needs to elect another leader: 1 to 2 s without a split vote."""
NO_QUORUM_S = 5.0
CALM_S = (0.2, 3.0)
ONE_MEMBER = [("killed", True), ("killed", False), ("stopped", True), ("stopped", False)]
QUORUM_LOST = ("quorum lost", True)


@dataclass
class Victim:
    number: int
    process: subprocess.Popen[bytes]
    stop_ns: int = 0
    cont_ns: int = 0
    in_commit: bool = False


@dataclass(frozen=True)
class Strike:
    """What happened to members of etcd. `end_ns`: when they were all together again."""

    kind: str
    leader: bool
    begin_ns: int
    healed_ns: int
    end_ns: int


class Unrest:
    """Strikes the members of an etcd of three on a thread of its own until it is told to end."""

    def __init__(self, server: Etcd, chance: random.Random):
        self.strikes: list[Strike] = []
        self.failure: BaseException | None = None
        self._server = server
        self._chance = chance
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="unrest")

    @property
    def enough(self) -> bool:
        """Whether the leader and another were killed and stopped, and once the quorum was gone."""
        self.check()
        return {(each.kind, each.leader) for each in self.strikes} == {*ONE_MEMBER, QUORUM_LOST}

    def check(self) -> None:
        if self.failure is not None:
            raise AssertionError("etcd was not as it should be") from self.failure

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Returns when all members are together."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            for kind, leader in self._plan():
                if self._over.wait(self._chance.uniform(*CALM_S)):
                    return
                self.strikes.append(self._strike(kind, leader))
        except BaseException as error:
            self.failure = error

    def _plan(self) -> Iterator[tuple[str, bool]]:
        kinds = [*ONE_MEMBER, QUORUM_LOST]
        while True:
            self._chance.shuffle(kinds)
            yield from kinds
            kinds = list(ONE_MEMBER)

    def _strike(self, kind: str, leader: bool) -> Strike:
        server, chance = self._server, self._chance
        struck = self.member(leader=leader)
        begin_ns = now_ns()
        if kind == "killed":
            struck.kill()
            time.sleep(chance.uniform(*DOWN_S))
            healed_ns = now_ns()
            struck.start()
        elif kind == "stopped":
            struck.stop()
            time.sleep(chance.uniform(*SILENT_S))
            healed_ns = now_ns()
            struck.cont()
        else:
            both = [struck, next(each for each in server.members if each is not struck)]
            for member in both:
                member.stop()
            begin_ns = now_ns()
            time.sleep(NO_QUORUM_S)
            healed_ns = now_ns()
            for member in both:
                member.cont()
        self._together()
        return Strike(kind, leader, begin_ns, healed_ns, now_ns())

    def member(self, *, leader: bool) -> Member:
        return self._server.leader() if leader else self._chance.choice(self._server.followers())

    def _together(self) -> None:
        """Until every member has what the leader has by now: then each counts for the quorum."""
        server = self._server
        server.wait_ready()
        index = int(server.status(server.leader())["raftIndex"])

        def caught_up() -> bool:
            told = [server.status(member) for member in server.members]
            return all(int(each["raftAppliedIndex"]) >= index for each in told)

        until(caught_up, "a member that caught up")


@dataclass
class Storm:
    """The workers, and what strikes them. `unrest`: in etcd."""

    place: Place
    ttl_s: float
    notes: Path
    shared: float
    chance: random.Random
    calm_s: tuple[float, float]
    """Between two strikes at workers."""
    kill_share: float
    aimed_share: float
    hold_s: float
    """For how long workers hold some of their locks."""
    unrest: Unrest | None = None
    victims: list[Victim] = field(default_factory=list)
    stopped: list[Victim] = field(default_factory=list)
    stops: list[Stop] = field(default_factory=list)
    kills: int = 0
    started: int = 0

    @property
    def log(self) -> Path:
        return self.notes / "log"

    @property
    def strikes(self) -> list[Strike]:
        return [] if self.unrest is None else self.unrest.strikes

    def start(self) -> None:
        number = self.started
        self.started += 1
        numbers = (number, self.ttl_s, self.shared, self.hold_s)
        argv = [self.place.url, str(self.notes), *map(str, numbers)]
        with open(self.notes / f"errors-{number}", "wb") as errors:
            process = subprocess.Popen(
                [sys.executable, str(HERE / "lock_kill_worker.py"), *argv], stderr=errors
            )
        self.victims.append(Victim(number, process))

    def blow(self, seconds: float) -> None:
        """Strikes for `seconds`, and until each kind of fault was there."""
        begin = time.monotonic()
        while not self.enough(time.monotonic() - begin, seconds):
            self.look_after_workers()
            for victim in list(self.stopped):
                if now_ns() >= victim.cont_ns:
                    self.go_on(victim)
            if self.chance.random() < self.kill_share:
                self.kill(self.chance.choice(self.victims))
            else:
                self.stop()
            time.sleep(self.chance.uniform(*self.calm_s))
        for victim in list(self.stopped):
            until(lambda due=victim.cont_ns: now_ns() >= due, "the end of a pause")
            self.go_on(victim)
        if self.unrest is not None:
            self.unrest.end()
            self.unrest.check()

    def enough(self, passed_s: float, wanted_s: float) -> bool:
        assert passed_s < wanted_s * 4 + 30, f"some fault never happened: {self.told()}"
        kinds = Counter(stop.in_commit for stop in self.stops)
        inside = kinds[True] > 0 or self.place.directory is None
        members = self.unrest is None or self.unrest.enough
        return passed_s >= wanted_s and self.kills > 0 and inside and kinds[False] > 0 and members

    def kill(self, victim: Victim) -> None:
        if victim in self.stopped:
            self.stopped.remove(victim)
        self.victims.remove(victim)
        victim.process.kill()
        victim.process.wait()
        self.kills += 1
        self.start()

    def stop(self) -> None:
        if len(self.stopped) >= STOPPED_MAX:
            return
        running = [victim for victim in self.victims if victim not in self.stopped]
        # Most strikes are aimed; where one lands is looked up afterwards.
        aimed = self._aim(running) if self.chance.random() < self.aimed_share else []
        victim = aimed[0] if aimed else self.chance.choice(running)
        pause(victim.process.pid)
        victim.stop_ns = now_ns()
        victim.in_commit = self.place.in_commit(victim.process.pid)
        pauses = PAUSE_TTLS if self.place.directory is not None else PAUSE_IN_ETCD_TTLS
        ttls = self.chance.uniform(*(IN_COMMIT_PAUSE_TTLS if victim.in_commit else pauses))
        victim.cont_ns = victim.stop_ns + int(ttls * self.ttl_s * 1e9)
        self.stopped.append(victim)

    def _aim(self, running: list[Victim]) -> list[Victim]:
        """At whoever commits; in etcd, where many do, at whoever got a lock last."""
        if self.place.directory is not None:
            pid = self.place.committing()
            return [victim for victim in running if victim.process.pid == pid]
        with open(self.log, "rb") as log:
            log.seek(max(0, self.log.stat().st_size - 400))
            entered = [line.split()[1] for line in log.readlines()[1:] if b"enter" in line]
        return [victim for victim in running if entered and victim.number == int(entered[-1])]

    def go_on(self, victim: Victim) -> None:
        self.stopped.remove(victim)
        self.stops.append(Stop(victim.number, victim.stop_ns, now_ns(), victim.in_commit))
        resume(victim.process.pid)

    def look_after_workers(self) -> None:
        for victim in self.victims:
            if victim.process.poll() is not None:
                errors = (self.notes / f"errors-{victim.number}").read_text()
                pytest.fail(f"worker {victim.number} ended by itself: {errors}")

    def wait_until_it_works(self) -> None:
        def worked() -> bool:
            self.look_after_workers()
            return self.log.exists() and self.log.read_bytes().count(b"alive") > 50

        until(worked, "the first grants", 60)

    def progress_s(self, since_ns: int, timeout_s: float = 60) -> dict[str, float]:
        """How long after `since_ns` each lock had gone from one worker to another, and each worker
        had got one."""
        offset = self.log.stat().st_size
        awaited = {f"lock {name}" for name in NAMES}
        awaited |= {f"worker {victim.number}" for victim in self.victims}
        found: dict[str, float] = {}

        def all_found() -> bool:
            self.look_after_workers()
            with open(self.log) as log:
                log.seek(offset)
                grants = parse(line for line in log if line.startswith("enter"))
            late = [held for held in grants if held.enter_ns > since_ns]
            for held in sorted(late, key=lambda held: held.enter_ns):
                found.setdefault(f"worker {held.holder[0]}", (held.enter_ns - since_ns) / 1e9)
            for held in hand_overs(late):
                found.setdefault(f"lock {held.name}", (held.enter_ns - since_ns) / 1e9)
            return awaited <= found.keys()

        try:
            until(all_found, "progress", timeout_s)
        except AssertionError:
            missing = {what: float("inf") for what in sorted(awaited - found.keys())}
            return {**found, **missing}
        return found

    def grants(self) -> list[Held]:
        return parse(self.log.read_text().splitlines(keepends=True))

    def told(self) -> str:
        inside = sum(stop.in_commit for stop in self.stops)
        told = (
            f"{self.kills} kills, {inside} stops inside a commit and "
            f"{len(self.stops) - inside} outside, {self.started} processes"
        )
        kinds = Counter(
            f"{strike.kind} {'leader' if strike.leader else 'follower'}" for strike in self.strikes
        )
        return f"{told}; members {dict(kinds)}" if kinds else told

    def end(self) -> None:
        for victim in self.victims:
            victim.process.kill()
            victim.process.wait()


@contextmanager
def storm_at(
    place: Place,
    notes: Path,
    *,
    ttl_s: float,
    shared: float,
    seed: int,
    server: Etcd | None = None,
) -> Iterator[Storm]:
    """The workers at their work; they end with the block. `server`: whose members are struck."""
    notes.mkdir()
    chance = random.Random(seed)
    if place.directory is not None:
        storm = Storm(place, ttl_s, notes, shared, chance, (0.01, 0.2), 0.07, 0.5, 0.002)
    else:
        # There a lock waits for as long as the session of who was killed lives, and nothing but
        # the log tells whom to aim at.
        storm = Storm(place, ttl_s, notes, shared, chance, (0.2, 1.6), 0.2, 0.8, 0.1)
    with ExitStack() as always:
        always.callback(storm.end)
        for _ in range(PROCESSES):
            storm.start()
        storm.wait_until_it_works()
        if server is not None:
            storm.unrest = Unrest(server, random.Random(seed))
            always.callback(storm.unrest.end)
            storm.unrest.start()
        yield storm

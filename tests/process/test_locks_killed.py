"""Goal: whoever is killed or stopped at whatever moment, no two live holders have a lock, tokens
grow in the order of the grants, and a counter behind a fence loses nothing and takes nothing
stale.

Method: six processes of two threads each work under four locks (`lock_kill_worker`) while
SIGKILL and SIGSTOP strike at random; killed ones are replaced, stopped ones go on after longer
than their session lives, those that stand inside a commit a little sooner. Their notes are
judged by `lock_history`, which is itself tested beside.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from lock_history import Stop, counter_violations, parse, parse_increments, violations
from lock_kill_worker import NAMES
from lock_processes import HERE, committing, in_commit, now_ns, pause, resume, until

import ringhold

PROCESSES = 6
STOPPED_MAX = 2
TTL_S = 1.5
PAUSE_S = (TTL_S * 1.1, TTL_S * 1.8)
IN_COMMIT_PAUSE_S = (0.1, TTL_S * 1.2)


@dataclass
class Victim:
    number: int
    process: subprocess.Popen[bytes]
    stop_ns: int = 0
    cont_ns: int = 0
    in_commit: bool = False


@dataclass
class Storm:
    """The workers, and what strikes them."""

    directory: Path
    notes: Path
    shared: float
    chance: random.Random
    victims: list[Victim] = field(default_factory=list)
    stopped: list[Victim] = field(default_factory=list)
    stops: list[Stop] = field(default_factory=list)
    kills: int = 0
    started: int = 0

    def start(self) -> None:
        number = self.started
        self.started += 1
        argv = [str(self.directory), str(self.notes), str(number), str(TTL_S), str(self.shared)]
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
            if self.chance.random() < 0.07:
                self.kill(self.chance.choice(self.victims))
            else:
                self.stop()
            time.sleep(self.chance.uniform(0.01, 0.2))
        for victim in list(self.stopped):
            until(lambda due=victim.cont_ns: now_ns() >= due, "the end of a pause")
            self.go_on(victim)

    def enough(self, passed_s: float, wanted_s: float) -> bool:
        assert passed_s < wanted_s * 4 + 30, f"some fault never happened: {self.told()}"
        kinds = Counter(stop.in_commit for stop in self.stops)
        return passed_s >= wanted_s and self.kills > 0 and kinds[True] > 0 and kinds[False] > 0

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
        # Every other strike is aimed at whoever commits; where it lands is looked up afterwards.
        aim = committing(self.directory) if self.chance.random() < 0.5 else 0
        aimed = [victim for victim in running if victim.process.pid == aim]
        victim = aimed[0] if aimed else self.chance.choice(running)
        pause(victim.process.pid)
        victim.stop_ns = now_ns()
        victim.in_commit = in_commit(victim.process.pid, self.directory)
        lasts_s = self.chance.uniform(*(IN_COMMIT_PAUSE_S if victim.in_commit else PAUSE_S))
        victim.cont_ns = victim.stop_ns + int(lasts_s * 1e9)
        self.stopped.append(victim)

    def go_on(self, victim: Victim) -> None:
        self.stopped.remove(victim)
        self.stops.append(Stop(victim.number, victim.stop_ns, now_ns(), victim.in_commit))
        resume(victim.process.pid)

    def look_after_workers(self) -> None:
        for victim in self.victims:
            if victim.process.poll() is not None:
                errors = (self.notes / f"errors-{victim.number}").read_text()
                pytest.fail(f"worker {victim.number} ended by itself: {errors}")

    def told(self) -> str:
        inside = sum(stop.in_commit for stop in self.stops)
        return (
            f"{self.kills} kills, {inside} stops inside a commit and "
            f"{len(self.stops) - inside} outside, {self.started} processes"
        )

    def end(self) -> None:
        for victim in self.victims:
            victim.process.kill()
            victim.process.wait()


def storm(tmp_path: Path, seconds: float, shared: float, seed: int) -> None:
    directory, notes = tmp_path / "c", tmp_path / "notes"
    notes.mkdir()
    ringhold.create(str(directory)).close()
    struck = Storm(directory, notes, shared, random.Random(seed))
    with ExitStack() as always:
        always.callback(struck.end)
        for _ in range(PROCESSES):
            struck.start()
        log = notes / "log"

        def worked() -> bool:
            struck.look_after_workers()
            return log.exists() and log.read_bytes().count(b"alive") > 50

        until(worked, "the first grants", 60)
        struck.blow(seconds)
        # Nothing that was struck may be in the way of the rest.
        grants = log.read_bytes().count(b"enter")
        until(lambda: log.read_bytes().count(b"enter") > grants + 50, "grants after the storm")
        struck.look_after_workers()
    judge(struck, seconds)


def judge(struck: Storm, seconds: float) -> None:
    lines = (struck.notes / "log").read_text().splitlines(keepends=True)
    grants = parse(lines)
    words = Counter(line.split()[0] for line in lines)
    late = Counter(line.split()[-1] for line in lines if line.startswith("late"))
    told = f"{struck.told()}; {len(grants)} grants, {dict(words)}, late {dict(late)}"
    print(told)
    assert violations(grants, struck.stops, TTL_S) == [], told
    assert {held.name for held in grants} == set(NAMES)
    assert {held.exclusive for held in grants} == ({True, False} if struck.shared else {True})
    increments = 0
    for name in NAMES:
        path = struck.notes / f"counter-{name}"
        accepted = parse_increments(path.read_text()) if path.exists() else []
        final = accepted[-1].value if accepted else 0
        assert counter_violations(accepted, final) == [], f"counter {name}: {told}"
        increments += final
    assert increments > 0
    if seconds >= 30:
        # In so long a time each fault has met holders, and fences were asked by the late.
        assert struck.kills >= 5, told
        inside = sum(stop.in_commit for stop in struck.stops)
        assert inside >= 3, told
        assert len(struck.stops) - inside >= 3, told
        assert words["lost"] > 0, told
        assert late["refused"] > 0, told


@pytest.mark.parametrize("shared", [0.0, 0.5], ids=["exclusive", "shared-too"])
def test_kills_and_stops_for_a_few_seconds(tmp_path: Path, shared: float) -> None:
    storm(tmp_path, 4, shared, seed=11)


@pytest.mark.long
@pytest.mark.parametrize("shared", [0.0, 0.5], ids=["exclusive", "shared-too"])
def test_kills_and_stops_for_a_minute(tmp_path: Path, shared: float) -> None:
    storm(tmp_path, 60, shared, seed=12)

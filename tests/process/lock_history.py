"""What processes noted about locks, and whether locks can have behaved like that.

A grant's line says when it was certainly held: its ``enter`` is timed after the acquire had
returned, its last ``alive`` before a check that passed. Whatever happened to the process around
those instants, the lock was its own from the one to the other, if checks can be believed. Such
spans of conflicting grants must not meet, and their order must be that of the tokens; nothing
is assumed about the order in which lines were written.

A counter behind a fence is a file of accepted increments, one line each, appended by one write.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

Holder = tuple[int, int]
"""A worker's number and that of its grant."""


@dataclass(slots=True)
class Held:
    """One grant. Times in nanoseconds of CLOCK_BOOTTIME."""

    holder: Holder
    name: str
    token: int
    exclusive: bool
    enter_ns: int
    alive_ns: int = 0
    """0: no check of it ever passed."""
    lost: bool = False

    def __str__(self) -> str:
        kind = "exclusive" if self.exclusive else "shared"
        span = f"{self.enter_ns} to {self.alive_ns}" if self.alive_ns else "never proven"
        return f"{kind} {self.name} token {self.token} of worker {self.holder[0]} ({span})"


@dataclass(frozen=True, slots=True)
class Stop:
    """A worker stood still at least from `stop_ns` to `cont_ns`."""

    worker: int
    stop_ns: int
    cont_ns: int
    in_commit: bool


@dataclass(frozen=True, slots=True)
class Increment:
    token: int
    value: int


def parse(lines: Iterable[str]) -> list[Held]:
    """The grants of a log. A last line that its writer could not end is left out."""
    grants: dict[Holder, Held] = {}
    for line in lines:
        if not line.endswith("\n"):
            continue
        what, worker, number, *rest = line.split()
        holder = int(worker), int(number)
        if what == "enter":
            name, mode, token, enter_ns = rest
            grants[holder] = Held(holder, name, int(token), mode == "exclusive", int(enter_ns))
        elif what == "alive":
            grants[holder].alive_ns = max(grants[holder].alive_ns, int(rest[0]))
        elif what == "lost":
            grants[holder].lost = True
    return list(grants.values())


def parse_increments(text: str) -> list[Increment]:
    return [Increment(*map(int, line.split())) for line in text.splitlines()]


def hand_overs(grants: Iterable[Held]) -> list[Held]:
    """The exclusive grants for which their lock went from one worker to another, in the order of
    their tokens for each lock. Nobody has such a grant at hand: each took a commit."""
    found: list[Held] = []
    last: dict[str, int] = {}
    for held in sorted((each for each in grants if each.exclusive), key=lambda each: each.token):
        worker = held.holder[0]
        if last.setdefault(held.name, worker) != worker:
            found.append(held)
        last[held.name] = worker
    return found


def violations(grants: Sequence[Held], stops: Sequence[Stop] = (), ttl_s: float = 0) -> list[str]:
    """Everything that the promises of locks exclude; empty for a history that keeps them."""
    by_name: dict[str, list[Held]] = defaultdict(list)
    for held in grants:
        by_name[held.name].append(held)
    found: list[str] = []
    for same in by_name.values():
        found.extend(_repeated(same))
        found.extend(_together(same))
        found.extend(_disorder(same))
    found.extend(_undead(grants, stops, ttl_s))
    return found


def _repeated(same: Sequence[Held]) -> Iterator[str]:
    """Tokens of exclusive grants are nobody else's, and a token's lowest bit says exclusive."""
    seen: dict[int, Held] = {}
    for held in same:
        if held.token & 1 != held.exclusive:
            yield f"the lowest bit of the token is wrong: {held}"
        other = seen.setdefault(held.token, held)
        if other is not held and (held.exclusive or other.exclusive):
            yield f"one token twice: {other}; {held}"


def _proven(same: Sequence[Held]) -> list[Held]:
    return sorted((held for held in same if held.alive_ns), key=lambda held: held.enter_ns)


def _together(same: Sequence[Held]) -> Iterator[str]:
    latest_shared: Held | None = None
    latest_exclusive: Held | None = None
    for held in _proven(same):
        for other in (latest_exclusive, latest_shared if held.exclusive else None):
            if other is not None and held.enter_ns <= other.alive_ns:
                yield f"held at the same time: {other}; {held}"
        if held.exclusive:
            latest_exclusive = _later(latest_exclusive, held)
        else:
            latest_shared = _later(latest_shared, held)


def _later(one: Held | None, other: Held) -> Held:
    return other if one is None or other.alive_ns > one.alive_ns else one


def _disorder(same: Sequence[Held]) -> Iterator[str]:
    """A grant's token is larger than that of every conflicting one before it."""
    highest: Held | None = None
    highest_exclusive: Held | None = None
    for held in _proven(same):
        before = highest if held.exclusive else highest_exclusive
        if before is not None and held.token <= before.token:
            yield f"a token that did not grow: after {before} came {held}"
        if highest is None or held.token > highest.token:
            highest = held
        if held.exclusive and (highest_exclusive is None or held.token > highest_exclusive.token):
            highest_exclusive = held


def _undead(grants: Sequence[Held], stops: Sequence[Stop], ttl_s: float) -> Iterator[str]:
    """Whoever stood still for longer than its lease lives lost what it held.

    Time in which some process stood inside a commit does not count: nobody could be given
    anything then, so the store lets leases live on.
    """
    held_up = [(stop.stop_ns, stop.cont_ns) for stop in stops if stop.in_commit]
    by_worker: dict[int, list[Held]] = defaultdict(list)
    for held in grants:
        by_worker[held.holder[0]].append(held)
    for stop in stops:
        lasted_ns = stop.cont_ns - stop.stop_ns - _covered(stop.stop_ns, stop.cont_ns, held_up)
        if lasted_ns <= ttl_s * 1e9:
            continue
        for held in by_worker[stop.worker]:
            if held.enter_ns < stop.stop_ns and held.alive_ns >= stop.cont_ns:
                yield (
                    f"believed to be held after a stop of {lasted_ns / 1e9:.2f} s, "
                    f"{stop.stop_ns} to {stop.cont_ns}: {held}"
                )


def _covered(begin: int, end: int, spans: Iterable[tuple[int, int]]) -> int:
    """How much of begin…end the spans cover together."""
    covered = 0
    for low, high in sorted(spans):
        low, high = max(low, begin), min(high, end)
        if high > low:
            covered += high - low
            begin = high
    return covered


def counter_violations(increments: Sequence[Increment], final: int) -> list[str]:
    """What a counter excludes that only the holders of a lock raise, each under its token.

    `final` is the counter's value in the end.
    """
    found = []
    for number, (before, after) in enumerate(pairwise(increments), 1):
        if after.token < before.token:
            found.append(f"increment {number} was accepted though stale: {before}, then {after}")
        if after.value != before.value + 1:
            found.append(f"increment {number} did not see the one before: {before}, then {after}")
    if final != len(increments):
        found.append(f"the counter is {final} after {len(increments)} accepted increments")
    return found

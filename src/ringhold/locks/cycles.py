"""Who waits for whom among the sessions of a store, and whether they wait in a circle.

A session that waits for a lock stands in its queue, for everybody to see. It waits for every
session that holds the lock in a mode that excludes its own, and for those before it in the queue
that do: nobody overtakes. What else a holder waits for only that session knows, and tells if it
matters: the record w<session> names the locks that it does not give back before it has got
others. A record counts as far as the holder's key and the place in the queue that it names by
their revisions are still there.

Every session in a circle waits for all that stand in its way, so a circle does not open unless
somebody in it gives up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from ringhold.locks.keys import Claim, Holding, LockKeys, LockState, Waiting, lock_at
from ringhold.store.base import Born, Compare, Snapshot, Unchanged, prefix_end
from ringhold.store.keyspace import WAITS, waits_key
from ringhold.types import decode_name

COMPARES_MAX = 96
"""Of the commit that ends a circle; etcd takes 128. What is beyond was asked for, and only
guards against a second victim."""

SHORT = 4
"""Bytes of a session that are told to people."""


class WaitEdge(msgspec.Struct, frozen=True, array_like=True):
    """The lock `held`, had since the revision `since`, is not given back before `awaited` is
    got, for which the session has been in the queue since the revision `queued`."""

    held: bytes
    since: int
    awaited: bytes
    queued: int


class WaitRecord(msgspec.Struct, frozen=True, array_like=True):
    """Value of w<session>."""

    edges: list[WaitEdge]


encode_waits = msgspec.msgpack.Encoder().encode
decode_waits = msgspec.msgpack.Decoder(WaitRecord).decode


class Place(NamedTuple):
    """The place of a session in the queue for `name` since the revision `since`."""

    session: bytes
    name: bytes
    since: int


class Step(NamedTuple):
    """Who waits at `place` waits for `blocker`, who waits at `following`.

    A blocker that holds the lock does so by a wait of its own, told by its session; one that is
    before it in the same queue waits there.
    """

    place: Place
    blocker: Holding | Waiting
    following: Place


@dataclass(frozen=True, slots=True)
class Cycle:
    """A circle of waits that begins and ends with the session that found it."""

    steps: Sequence[Step]
    revisions: dict[bytes, int]
    """Of the records that say so, by session."""

    def claims(self, asker: bytes) -> dict[bytes, Claim]:
        """By session, what has to be true of it for `asker` to be sure."""
        found: dict[bytes, Claim] = {}
        for step in self.steps:
            session = step.blocker.session
            claim = found.get(session)
            if claim is None:
                claim = found[session] = Claim(asker, self.revisions.get(session, 0), [], [])
            if isinstance(step.blocker, Holding):
                claim.pairs.append((step.place.name, step.following.name))
            else:
                claim.places.append((step.place.name, step.blocker.since))
        return found

    @property
    def own(self) -> tuple[bytes, bytes]:
        """What the session that found it holds and awaits in it."""
        return self.steps[-1].place.name, self.steps[-1].following.name

    def compares(self) -> list[Compare]:
        """That everybody in it still stands where he stood."""
        found: dict[Compare, None] = {}
        for step in self.steps:
            if isinstance(step.blocker, Holding):
                session = step.blocker.session
                found[Unchanged(waits_key(session), self.revisions[session])] = None
        for step in self.steps:
            found[Born(step.blocker.key, step.blocker.since)] = None
        return list(found)[:COMPARES_MAX]

    def __str__(self) -> str:
        parts = []
        for step in self.steps[:-1]:
            name, session = _told(step.place.name), step.blocker.session[:SHORT].hex()
            record = step.blocker.record
            who = f"session {session}… (process {record.pid} on {record.host})"
            if isinstance(step.blocker, Holding):
                parts.append(
                    f"{name} is held in {who} until that gets {_told(step.following.name)}"
                )
            else:
                parts.append(f"for {name} {who} is before it")
        parts.append(f"{_told(self.own[0])} is held here")
        return ", ".join(parts)


def _told(name: bytes) -> str:
    return repr(decode_name(name[1:]))


class Waits:
    """The waits of all sessions as one snapshot shows them."""

    def __init__(self, snapshot: Snapshot):
        self._snapshot = snapshot
        self._states: dict[bytes, LockState] = {}
        self._edges: dict[tuple[bytes, bytes], list[WaitEdge]] = {}
        self._revisions: dict[bytes, int] = {}

    async def read(self) -> None:
        for key, entry in await self._snapshot.range(WAITS, prefix_end(WAITS)):
            session = key[len(WAITS) :]
            self._revisions[session] = entry.revision
            for edge in decode_waits(entry.value).edges:
                self._edges.setdefault((session, edge.held), []).append(edge)

    async def cycle_of(self, session: bytes) -> Cycle | None:
        """A shortest circle that leads through the record of `session`."""
        starts = {
            Place(session, edge.awaited, edge.queued): None
            for (teller, _), edges in self._edges.items()
            if teller == session
            for edge in edges
        }
        for start in starts:
            steps = await self._way_back(start)
            if steps:
                return Cycle(steps, self._revisions)
        return None

    async def _way_back(self, start: Place) -> list[Step]:
        """From `start` to it by way of a lock that its session holds; empty if there is none."""
        reached: dict[Place, Step | None] = {start: None}
        for place in (places := [start]):
            for step in await self._steps(place):
                if step.following == start and isinstance(step.blocker, Holding):
                    return _steps_to(reached, step)
                if step.following not in reached:
                    reached[step.following] = step
                    places.append(step.following)
        return []

    async def _steps(self, place: Place) -> list[Step]:
        state = await self._state(place.name)
        own = state.awaited_by(place.session)
        if own is None or own.since != place.since or own.record.impatient:
            return []
        found = []
        for blocker in state.before(own.session, own.mode):
            if isinstance(blocker, Waiting):
                at = Place(blocker.session, place.name, blocker.since)
                found.append(Step(place, blocker, at))
                continue
            for edge in self._edges.get((blocker.session, place.name), ()):
                if edge.since == blocker.since:
                    at = Place(blocker.session, edge.awaited, edge.queued)
                    found.append(Step(place, blocker, at))
        return found

    async def _state(self, name: bytes) -> LockState:
        state = self._states.get(name)
        if state is None:
            state = self._states[name] = await lock_at(self._snapshot, LockKeys.of(name))
        return state


def _steps_to(reached: dict[Place, Step | None], last: Step) -> list[Step]:
    steps = [last]
    while (step := reached[steps[-1].place]) is not None:
        steps.append(step)
    return steps[::-1]

"""Goal: the engines of the store agree with one another and with a model of a few lines.

Method: random histories of commits, leases and passing time run on every engine and on a
dictionary; every outcome and the whole contents are compared after every step.
"""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_engines import CLOCKED, World, everything, lease_id, on

from ringhold.errors import (
    Conflict,
    InvalidInput,
    SessionExpired,
)
from ringhold.store.base import (
    Absent,
    Born,
    Compare,
    Empty,
    NoneBornAfter,
    Put,
    Store,
    Unchanged,
)

# Random histories against a model

KEYS = [b"a", b"a\0", b"b", b"\xff", b"\xff\xff"]
LEASES = [lease_id(1), lease_id(2)]
TTL_S = 2.0

keys = st.sampled_from(KEYS)
bounds = st.sampled_from([b"", *KEYS, b"\xff" * 3])
back = st.integers(0, 6)
compare_plans = st.one_of(
    st.tuples(st.just("absent"), keys),
    st.tuples(st.just("unchanged"), keys, back),
    st.tuples(st.just("born"), keys, back),
    st.tuples(st.just("empty"), bounds, bounds),
    st.tuples(st.just("none_born_after"), bounds, bounds, back),
)
steps = st.one_of(
    st.tuples(
        st.just("commit"),
        st.lists(compare_plans, max_size=2),
        st.dictionaries(
            keys,
            st.tuples(st.binary(max_size=3), st.sampled_from([None, None, *LEASES])) | st.none(),
            max_size=3,
        ),
        st.sampled_from([None, None, b"n1", b"n2"]),
    ),
    st.tuples(st.sampled_from(["grant", "renew", "revoke"]), st.sampled_from(LEASES)),
    st.tuples(st.just("pass"), st.sampled_from([0.5, 1.0, 3.0])),
)


_fresh = itertools.count(100)


class Model:
    """The contract, as a dictionary: key -> (value, revision, created, lease)."""

    def __init__(self, revision: int):
        self.revision = revision
        self.entries: dict[bytes, tuple[bytes, int, int, bytes | None]] = {}
        self.leases: dict[bytes, float] = {}
        self.nonces: dict[bytes, int] = {}
        self.now = 0.0
        self.written = 0.0

    def write(self, changes: dict[bytes, tuple[bytes, bytes | None] | None]) -> None:
        self.revision += 1
        self.written = self.now
        for key, change in changes.items():
            if change is None:
                self.entries.pop(key, None)
            else:
                value, lease = change
                created = self.entries[key][2] if key in self.entries else self.revision
                self.entries[key] = (value, self.revision, created, lease)

    def end(self, lease: bytes) -> None:
        del self.leases[lease]
        self.written = self.now
        bound = [key for key, entry in self.entries.items() if entry[3] == lease]
        if bound:
            self.write(dict.fromkeys(bound))

    def in_gap(self) -> bool:
        """Whether nobody wrote for longer than half the TTL of all leases."""
        return bool(self.leases) and self.now - self.written > TTL_S / 2

    def expire(self) -> None:
        if self.in_gap():
            self.leases = dict.fromkeys(self.leases, self.now + TTL_S)
            self.written = self.now
        for lease in [lease for lease, deadline in self.leases.items() if deadline <= self.now]:
            self.end(lease)

    def holds(self, compare: Compare) -> bool:
        match compare:
            case Absent(key):
                return key not in self.entries
            case Unchanged(key, revision):
                return key in self.entries and self.entries[key][1] == revision
            case Born(key, revision):
                return key in self.entries and self.entries[key][2] == revision
            case Empty(start, end):
                return not any(start <= key < end for key in self.entries)
            case NoneBornAfter(start, end, revision):
                return not any(
                    start <= key < end and entry[2] > revision
                    for key, entry in self.entries.items()
                )

    def commit(
        self,
        compares: list[Compare],
        changes: dict[bytes, tuple[bytes, bytes | None] | None],
        nonce: bytes | None,
    ) -> object:
        self.expire()
        if nonce in self.nonces:
            return self.nonces[nonce]
        for index, compare in enumerate(compares):
            if not self.holds(compare):
                return ("conflict", index)
        for change in changes.values():
            if change is not None and change[1] is not None and change[1] not in self.leases:
                return "session expired"
        if changes:
            self.write(changes)
            if nonce is not None:
                self.nonces[nonce] = self.revision
        return self.revision

    def compare(self, plan: tuple[Any, ...]) -> Compare:
        kind, *rest = plan
        if kind == "absent":
            return Absent(rest[0])
        if kind == "empty":
            return Empty(rest[0], rest[1])
        revision = max(0, self.revision - rest[-1])
        if kind == "none_born_after":
            return NoneBornAfter(rest[0], rest[1], revision)
        # Mostly a revision that fits, so that the compare is often true.
        entry = self.entries.get(rest[0])
        if entry is not None and rest[1] < 4:
            revision = entry[1 if kind == "unchanged" else 2]
        return (Unchanged if kind == "unchanged" else Born)(rest[0], revision)


async def replay(world: World, history: list[Any]) -> list[object]:
    """Runs `history` on the store and the model, comparing after every step."""
    store, model = world.store, Model(await world.store.commit())
    seen: list[object] = []
    ids = dict(zip(LEASES, LEASES, strict=True))
    for planned in history:
        step = with_ids(planned, ids, model)
        if step[0] == "pass":
            world.env.hands.move(step[1])
            model.now += step[1]
            continue
        if step[0] == "commit":
            compares = [model.compare(plan) for plan in step[1]]
            expected = model.commit(compares, step[2], step[3])
            outcome = await outcome_of(store, compares, step[2], step[3])
        else:
            expected = lease_step(model, *step)
            outcome = await lease_outcome(store, *step)
        assert outcome == expected, step
        seen.append(outcome)
        assert [
            (key, entry.value, entry.revision, entry.created)
            for key, entry in await everything(store)
        ] == [(key, *model.entries[key][:3]) for key in sorted(model.entries)]
    return seen


def with_ids(step: Any, ids: dict[bytes, bytes], model: Model) -> Any:
    """The step with the lease ids now in use: an id that ended is never granted again."""
    if step[0] == "commit":
        kind, compares, changes, nonce = step
        bound = {
            key: change and (change[0], change[1] and ids[change[1]])
            for key, change in changes.items()
        }
        return kind, compares, bound, nonce
    if step[0] == "pass":
        return step
    action, lease = step
    ended = not model.in_gap() and model.leases.get(ids[lease], 0.0) <= model.now
    if action == "grant" and (ended or ids[lease] not in model.leases):
        ids[lease] = lease_id(next(_fresh))
    return action, ids[lease]


async def outcome_of(
    store: Store, compares: list[Compare], changes: dict[bytes, Any], nonce: bytes | None
) -> object:
    try:
        return await store.commit(
            compares=compares,
            puts=[Put(key, change[0], change[1]) for key, change in changes.items() if change],
            deletes=[key for key, change in changes.items() if change is None],
            nonce=nonce,
        )
    except Conflict as error:
        return ("conflict", compares.index(error.compare))
    except SessionExpired:
        return "session expired"


def lease_step(model: Model, action: str, lease: bytes) -> object:
    model.expire()
    if action == "revoke":
        model.written = model.now
        if lease in model.leases:
            model.end(lease)
    elif action == "grant":
        if lease in model.leases:
            return "invalid"
        model.leases[lease] = model.now + TTL_S
        model.written = model.now
    else:
        if lease not in model.leases:
            return "session expired"
        model.leases[lease] = model.now + TTL_S
        model.written = model.now
    return None


async def lease_outcome(store: Store, action: str, lease: bytes) -> object:
    try:
        if action == "grant":
            await store.grant_lease(lease, TTL_S)
        elif action == "renew":
            await store.renew_lease(lease)
        else:
            await store.revoke_lease(lease)
    except InvalidInput:
        # A grant may be refused before anything is looked at; the model always looks.
        await store.commit()
        return "invalid"
    except SessionExpired:
        return "session expired"
    return None


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(history=st.lists(steps, min_size=1, max_size=25))
def test_random_histories_go_as_in_the_model_on_every_engine(history: list[Any]) -> None:
    outcomes: dict[str, list[object]] = {}
    for name in CLOCKED:

        async def test(world: World, name: str = name) -> None:
            outcomes[name] = await replay(world, history)

        on(name, test)
    first, *others = outcomes.values()
    assert all(other == first for other in others)

"""What the store keeps about locks that sessions hold: keys, records, letters, tokens.

A lock is held in the store by sessions, not by threads or tasks: within a session the lock table
deals it out (`ringhold.locks.cache`). Under the prefix of a name stand

    x<session>     the session that holds it exclusively
    s<session>     the sessions that hold it together
    q0<session>    a session with s that waits to have x instead
    q1<session>    sessions that wait, in the order in which these keys were created
    d              seconds to wait after the exclusive holder disappeared, if it asked for that

all but the last bound to the lease of the session they name. A letter is an event in the mailbox
of a session, m<session>: ``l<name>`` says "look at that lock again", and nothing else, so that a
letter that is lost or read twice does no harm. ``i`` asks a session who uses a lock, ``c`` whether
what it told of its waits is true (`ringhold.locks.deadlocks`); ``a`` answers.

A token has 63 bits: 42 of the revision at which the session got the lock, 20 of a sequence of
its exclusive grants within the session, and the lowest says exclusive. Revisions only grow, so
every later conflicting grant of a name has a larger token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from ringhold.errors import InvalidInput
from ringhold.locks.records import REVISION_BITS, SEQUENCE_BITS, LockParty
from ringhold.locks.session import SESSION_BYTES
from ringhold.store.base import Empty, Snapshot, Store, prefix_end
from ringhold.store.keyspace import MAILBOX, lock_prefix
from ringhold.types import Entry, Mode

EXCLUSIVE, SHARED = Mode.EXCLUSIVE, Mode.SHARED
REVISION_SHIFT = SEQUENCE_BITS + 1
TOKEN_STEP = 2
"""From one exclusive grant of a session to its next."""

PARTIES_MAX = 30
"""How many other sessions one commit concerns: each takes up to a compare and three changes, of
which a stock etcd takes 128. Those beyond are told by further commits, which compare nothing."""

LOOK, ASK, CLAIM, ANSWER = b"l", b"i", b"c", b"a"


class HolderRecord(msgspec.Struct, frozen=True, array_like=True):
    """Value of x and s: who it is, for people."""

    pid: int
    host: str
    since_s: float


class WaiterRecord(msgspec.Struct, frozen=True, array_like=True):
    """Value of q0 and q1. `impatient`: rather refused than kept waiting."""

    mode: str
    impatient: bool
    pid: int
    host: str
    since_s: float


class DelayRecord(msgspec.Struct, frozen=True, array_like=True):
    """Value of d. `noticed_ns` is when somebody who waits first found the holder gone, on the boot
    clock; 0 until then, and a moment to come if that was before the machine started."""

    delay_s: float
    noticed_ns: int


class Question(msgspec.Struct, frozen=True, array_like=True):
    """Value of an ``i`` letter: `asker` wants to know who uses `name`."""

    asker: bytes
    name: bytes


class Claim(msgspec.Struct, frozen=True, array_like=True):
    """Value of a ``c`` letter: is it still true what a session told, and what its keys say?

    `pairs`: of locks held and awaited, from its record w of `revision`; `places`: in queues, by
    name and revision.
    """

    asker: bytes
    revision: int
    pairs: list[tuple[bytes, bytes]]
    places: list[tuple[bytes, int]]


class Use(msgspec.Struct, frozen=True, array_like=True):
    """Value of an ``a`` letter that answers ``i``: who holds and awaits a lock in a session."""

    holders: list[LockParty]
    waiters: list[LockParty]


encode = msgspec.msgpack.Encoder().encode
decode_holder = msgspec.msgpack.Decoder(HolderRecord).decode
decode_waiter = msgspec.msgpack.Decoder(WaiterRecord).decode
decode_question = msgspec.msgpack.Decoder(Question).decode
decode_use = msgspec.msgpack.Decoder(Use).decode
decode_claim = msgspec.msgpack.Decoder(Claim).decode
decode_bool = msgspec.msgpack.Decoder(bool).decode
decode_delay = msgspec.msgpack.Decoder(DelayRecord).decode


@dataclass(frozen=True, slots=True)
class LockKeys:
    """The keys of one lock name."""

    name: bytes
    prefix: bytes
    end: bytes

    @classmethod
    def of(cls, name: bytes) -> LockKeys:
        prefix = lock_prefix(name)
        return cls(name, prefix, prefix_end(prefix))

    @property
    def delay(self) -> bytes:
        return self.prefix + b"d"

    def holder(self, mode: Mode, session: bytes) -> bytes:
        return self.prefix + (b"x" if mode is EXCLUSIVE else b"s") + session

    def waiter(self, session: bytes, *, upgrade: bool = False) -> bytes:
        return self.prefix + (b"q0" if upgrade else b"q1") + session

    def nobody(self, kind: bytes) -> Empty:
        """No key of `kind`: x, s, q, q0 or q1."""
        start = self.prefix + kind
        return Empty(start, prefix_end(start))

    def no_sharer_but(self, session: bytes) -> list[Empty]:
        """Nobody but `session` has an s."""
        own = self.holder(SHARED, session)
        return [Empty(self.prefix + b"s", own), Empty(own + b"\0", self.prefix + b"t")]


def mailbox(session: bytes) -> bytes:
    return MAILBOX + session


def look_letter(session: bytes, name: bytes) -> bytes:
    return mailbox(session) + LOOK + name


def letter_parts(key: bytes) -> tuple[bytes, bytes]:
    """What kind of letter it is, and what it is about."""
    start = len(MAILBOX) + SESSION_BYTES
    return key[start : start + 1], key[start + 1 :]


@dataclass(frozen=True, slots=True)
class Holding:
    """A session that holds the lock; `since` is the revision at which it got it."""

    session: bytes
    mode: Mode
    key: bytes
    since: int
    record: HolderRecord


@dataclass(frozen=True, slots=True)
class Waiting:
    """A session in the queue; `since` is the revision at which it came."""

    session: bytes
    mode: Mode
    upgrade: bool
    key: bytes
    since: int
    record: WaiterRecord


@dataclass(frozen=True, slots=True)
class LockState:
    """A lock at one revision. The queue is in the order in which sessions will get it."""

    revision: int
    holders: Sequence[Holding]
    queue: Sequence[Waiting]
    delay: Entry | None

    def held_by(self, session: bytes) -> Holding | None:
        return next((holding for holding in self.holders if holding.session == session), None)

    def awaited_by(self, session: bytes) -> Waiting | None:
        return next((waiting for waiting in self.queue if waiting.session == session), None)

    def before(self, session: bytes, mode: Mode) -> list[Holding | Waiting]:
        """Other sessions that have to go before `session` gets the lock in `mode`."""
        found: list[Holding | Waiting] = [
            holding
            for holding in self.holders
            if holding.session != session and EXCLUSIVE in (mode, holding.mode)
        ]
        for waiting in self.queue:
            if waiting.session == session:
                break
            if EXCLUSIVE in (mode, waiting.mode):
                found.append(waiting)
        return found


def served_together(queue: Sequence[Waiting]) -> list[Waiting]:
    """Who gets a lock that is given back: the first, and if that shares all sharers behind it."""
    found = [queue[0]]
    if queue[0].mode is SHARED:
        for waiting in queue[1:]:
            if waiting.mode is not SHARED:
                break
            found.append(waiting)
    return found


async def read_lock(store: Store, keys: LockKeys) -> LockState:
    snapshot = await store.snapshot()
    try:
        return await lock_at(snapshot, keys)
    finally:
        await snapshot.close()


async def lock_at(snapshot: Snapshot, keys: LockKeys) -> LockState:
    found = await snapshot.range(keys.prefix, keys.end)
    holders, queue, delay = [], [], None
    for key, entry in found:
        kind, session = key[len(keys.prefix) :][:1], key[-SESSION_BYTES:]
        if kind == b"d":
            delay = entry
        elif kind == b"q":
            waiter = decode_waiter(entry.value)
            upgrade = key[len(keys.prefix) :][:2] == b"q0"
            queue.append(Waiting(session, Mode(waiter.mode), upgrade, key, entry.created, waiter))
        else:
            mode = EXCLUSIVE if kind == b"x" else SHARED
            holders.append(Holding(session, mode, key, entry.created, decode_holder(entry.value)))
    queue.sort(key=lambda waiting: (not waiting.upgrade, waiting.since))
    return LockState(snapshot.revision, holders, queue, delay)


def first_base(revision: int) -> int:
    """What tokens of a session that got the lock at `revision` are counted from.

    InvalidInput beyond the revisions that tokens can tell apart.
    """
    if revision >= 1 << REVISION_BITS:
        raise InvalidInput(f"revision {revision} does not fit into a fencing token")
    return revision << REVISION_SHIFT


def last_base(base: int) -> int:
    """The base of the last exclusive grant at the same revision."""
    return base | ((1 << REVISION_SHIFT) - TOKEN_STEP)

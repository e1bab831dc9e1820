"""What the store keeps about locks, and what a fencing token is made of.

A token has 63 bits: 42 of the revision of the commit that granted, 20 of a sequence within that
grant, and the lowest says exclusive. Revisions only grow, so every later conflicting grant of a
name has a larger token.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from ringhold.errors import InvalidInput
from ringhold.locks.session import SESSION_BYTES
from ringhold.store.base import prefix_end
from ringhold.store.keyspace import lock_prefix
from ringhold.types import Entry

EXCLUSIVE = "exclusive"
REVISION_BITS = 42
SEQUENCE_BITS = 20
COUNTER_BYTES = 8


class LockRecord(msgspec.Struct, frozen=True, array_like=True):
    """Value of a holder's or waiter's key. `request` (session, counter) is unique for ever."""

    request: bytes
    owner: int
    pid: int
    host: str
    since_s: float


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(LockRecord).decode


@dataclass(frozen=True, slots=True)
class LockKeys:
    """The keys of one lock name. `end` closes the range of all of them."""

    prefix: bytes
    end: bytes
    holder: bytes
    queue: bytes

    @classmethod
    def of(cls, name: bytes) -> LockKeys:
        prefix = lock_prefix(name)
        return cls(prefix, prefix_end(prefix), prefix + b"x", prefix + b"q")

    def waiter(self, request: bytes) -> bytes:
        return self.queue + request


@dataclass(frozen=True, slots=True)
class LockParty:
    """Somebody who holds a lock, or waits for it (`token` 0). `since` in seconds since 1970."""

    session: str
    owner: int
    mode: str
    token: int
    pid: int
    host: str
    since: float


def token_of(revision: int) -> int:
    """The fencing token of an exclusive grant committed at `revision`."""
    if revision >= 1 << REVISION_BITS:
        raise InvalidInput(f"revision {revision} does not fit into a fencing token")
    return (revision << (SEQUENCE_BITS + 1)) | 1


def revision_of(token: int) -> int:
    """The revision of the commit that granted `token`."""
    if isinstance(token, bool) or not isinstance(token, int):
        raise TypeError(f"token must be an int, not {type(token).__name__}")
    if not 0 < token < 1 << 63:
        raise InvalidInput(f"{token} is no fencing token")
    return token >> (SEQUENCE_BITS + 1)


def party_of(entry: Entry, *, holds: bool) -> LockParty:
    record = decode(entry.value)
    return LockParty(
        session=record.request[:SESSION_BYTES].hex(),
        # Numbers given by users are kept negative, apart from those of threads and tasks.
        owner=abs(record.owner),
        mode=EXCLUSIVE,
        token=token_of(entry.created) if holds else 0,
        pid=record.pid,
        host=record.host,
        since=record.since_s,
    )

"""What a commit asks for, checked before an engine sees it.

Guarantees that every engine refuses the same input in the same words: types with TypeError,
sizes and contradictions with InvalidInput, leases and revisions that are gone. Engines may rely
on every field of a checked request.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ringhold.errors import Compacted, InvalidInput, SessionExpired
from ringhold.store.base import (
    COMMIT_BYTES_MAX,
    KEY_BYTES_MAX,
    OPERATIONS_MAX,
    Absent,
    Born,
    Compare,
    Empty,
    NoneBornAfter,
    Put,
    Unchanged,
)
from ringhold.types import VALUE_BYTES_MAX

LEASE_BYTES = 12
OPERATION_COST = 512
"""What an operation without bytes costs to apply, in bytes of a value: measured, roughly."""
NONCE_BYTES_MAX = 64
REVISION_MAX = (1 << 63) - 1
TTL_S_MAX = 1e9

LOG_REVISIONS = 10_000
"""How many revisions an engine keeps for watches."""

NONCE_REVISIONS = 10 * LOG_REVISIONS
"""How long a nonce is remembered: longer than the log, since repeats come from slow callers."""

SNAPSHOT_AGE_MAX_S = 60.0
"""A snapshot older than this is dropped, so that no reader can keep old versions for ever."""


@dataclass(frozen=True, slots=True)
class CommitRequest:
    """One checked commit; the keys of puts and deletes are distinct.

    `size` is what it costs to apply: the bytes of its keys and values, and OPERATION_COST for
    each operation.
    """

    compares: tuple[Compare, ...]
    puts: tuple[Put, ...]
    deletes: tuple[bytes, ...]
    nonce: bytes | None
    size: int

    @property
    def writes(self) -> bool:
        return bool(self.puts or self.deletes)


CLOCK_EPOCH_S = 1_577_836_800
CLOCK_REVISIONS_PER_S = 4000
CLOCK_REVISION_MAX = 1 << 41


def revision_at(wall_s: float) -> int:
    """Quarters of a millisecond since 2020: above every revision that a history of fewer commits a
    second has reached by then. 42 bits of them reach into 2054; from 2037 on it stands still."""
    since_s = wall_s - CLOCK_EPOCH_S
    return min(max(1, int(since_s * CLOCK_REVISIONS_PER_S)), CLOCK_REVISION_MAX)


def check_bytes(value: bytes, what: str) -> None:
    if not isinstance(value, bytes):
        raise TypeError(f"{what} must be bytes, not {type(value).__name__}")


def check_key(key: bytes) -> None:
    check_bytes(key, "a key")
    if not key:
        raise InvalidInput("a key must not be empty")
    if len(key) > KEY_BYTES_MAX:
        raise InvalidInput(f"a key of {len(key)} bytes exceeds {KEY_BYTES_MAX} bytes")


def check_keys(keys: Sequence[bytes]) -> None:
    for key in keys:
        check_key(key)


def check_range(start: bytes, end: bytes) -> None:
    check_bytes(start, "the start of a range")
    check_bytes(end, "the end of a range")


def check_limit(limit: int | None) -> None:
    if limit is None:
        return
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise TypeError(f"limit must be an integer, not {type(limit).__name__}")
    if limit < 0:
        raise InvalidInput(f"limit must not be negative: {limit}")


def check_revision(revision: int) -> None:
    if isinstance(revision, bool) or not isinstance(revision, int):
        raise TypeError(f"a revision must be an integer, not {type(revision).__name__}")
    if not 0 <= revision <= REVISION_MAX:
        raise InvalidInput(f"no such revision can exist: {revision}")


def check_lease(lease: bytes) -> None:
    check_bytes(lease, "a lease")
    if len(lease) != LEASE_BYTES:
        raise InvalidInput(f"a lease has {LEASE_BYTES} bytes, not {len(lease)}")


def ttl_in_ns(ttl_s: float) -> int:
    if isinstance(ttl_s, bool) or not isinstance(ttl_s, (int, float)):
        raise TypeError(f"ttl_s must be a number, not {type(ttl_s).__name__}")
    if not math.isfinite(ttl_s) or not 0 < ttl_s <= TTL_S_MAX:
        raise InvalidInput(f"ttl_s must be above 0 and at most {TTL_S_MAX:g}: {ttl_s!r}")
    return max(1, int(ttl_s * 1e9))


def _check_compare(compare: Compare) -> int:
    """Returns the bytes of its keys."""
    match compare:
        case Absent(key):
            check_key(key)
            return len(key)
        case Unchanged(key, revision) | Born(key, revision):
            check_key(key)
            check_revision(revision)
            return len(key)
        case Empty(start, end):
            check_range(start, end)
            return len(start) + len(end)
        case NoneBornAfter(start, end, revision):
            check_range(start, end)
            check_revision(revision)
            return len(start) + len(end)
        case _:
            raise TypeError(f"not a compare: {compare!r}")


def _check_put(put: Put) -> int:
    """Returns the bytes of its key and value."""
    if not isinstance(put, Put):
        raise TypeError(f"puts must be Put, not {type(put).__name__}")
    check_key(put.key)
    check_bytes(put.value, "a value")
    if len(put.value) > VALUE_BYTES_MAX:
        raise InvalidInput(
            f"the value of {put.key!r} has {len(put.value)} bytes and exceeds {VALUE_BYTES_MAX}"
        )
    if put.lease is not None:
        check_lease(put.lease)
    return len(put.key) + len(put.value)


def checked_commit(
    compares: Iterable[Compare],
    puts: Iterable[Put],
    deletes: Iterable[bytes],
    nonce: bytes | None,
) -> CommitRequest:
    """The request; TypeError or InvalidInput for what no engine may accept."""
    all_compares, all_puts, all_deletes = tuple(compares), tuple(puts), tuple(deletes)
    operations = len(all_compares) + len(all_puts) + len(all_deletes)
    if operations > OPERATIONS_MAX:
        raise InvalidInput(
            f"a commit of {operations} operations exceeds OPERATIONS_MAX, {OPERATIONS_MAX}"
        )
    size = sum(map(_check_compare, all_compares))
    size += _check_changes(all_puts, all_deletes)
    if size > COMMIT_BYTES_MAX:
        raise InvalidInput(
            f"a commit of {size} bytes exceeds COMMIT_BYTES_MAX, {COMMIT_BYTES_MAX} bytes"
        )
    if nonce is not None:
        check_bytes(nonce, "a nonce")
        if not 0 < len(nonce) <= NONCE_BYTES_MAX:
            raise InvalidInput(f"a nonce has 1 to {NONCE_BYTES_MAX} bytes, not {len(nonce)}")
    size += operations * OPERATION_COST
    return CommitRequest(all_compares, all_puts, all_deletes, nonce, size)


def _check_changes(puts: Sequence[Put], deletes: Sequence[bytes]) -> int:
    """Returns the bytes of their keys and values."""
    size = 0
    seen: set[bytes] = set()
    for put in puts:
        size += _check_put(put)
        if put.key in seen:
            raise InvalidInput(f"key {put.key!r} is put twice in one commit")
        seen.add(put.key)
    for key in deletes:
        check_key(key)
        if key in seen:
            raise InvalidInput(f"key {key!r} is changed twice in one commit")
        seen.add(key)
        size += len(key)
    return size


def lease_gone(lease: bytes) -> SessionExpired:
    return SessionExpired(f"lease {lease.hex()} is gone", session=lease)


def no_longer_kept(revision: int, compacted: int) -> Compacted:
    """For a watch from `revision` on; `compacted` is the newest that was removed."""
    return Compacted(
        f"changes after revision {revision - 1} are no longer all kept, only those after "
        f"{compacted}: read afresh and watch from there",
        revision=revision,
    )

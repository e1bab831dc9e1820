"""Checksums of stored rows: a bit that flips in the database file is an error, never data.

SQLite's pages carry no checksums, so every row of `kv`, `log` and of the numbers in `meta` has
one of its own. Verified is what is read: a row of `kv` with its value by snapshots, without its
value by the compares and puts of a commit, a row of `log` by watches, `meta` by all of them.

Not covered: rows that cannot be found any more because a key in an index of SQLite is damaged
(a range finds such a row, under a key that its checksum denies), the `created` that
`NoneBornAfter` looks for within SQLite, and the tables `lease` and `nonce`.

A put onto a key mends a damaged value, a delete mends everything else.

    kv.value_sum  XXH3-64 of the value
    kv.sum        of 'k', created i64, revision i64, value_sum i64, lease length u8, lease, key
    log.sum       of 'l', revision i64, place i64, event u8 (1 put, 0 deletion),
                  XXH3-64 of the value i64 (0 for a deletion), key
    meta.sum      of 'm', value i64, name; of the row 'lineage': 'm', value, name

Big-endian, without padding; sums are stored as signed 64-bit integers.
"""

from __future__ import annotations

import functools
import struct
from typing import Any

import apsw

from ringhold.core import checksum
from ringhold.errors import ChecksumMismatch
from ringhold.store.sqlite.lineage import Lineage

META_NAMES = ("revision", "compacted", "log_bytes")
"""The rows of `meta` with numbers that every store has; `commit_ns` comes with its first commit."""

_KV = struct.Struct(">cqqqB")
_LOG = struct.Struct(">cqqBq")
_META = struct.Struct(">cq")
_SIGN = 1 << 63
_UNREADABLE = (struct.error, TypeError, AttributeError, UnicodeError, ValueError)
"""What encoding a row raises whose columns have lost their types."""


def sum_of(data: bytes) -> int:
    """XXH3-64 as SQLite stores integers: signed."""
    return (checksum(data) ^ _SIGN) - _SIGN


def kv_sum(key: bytes, created: int, revision: int, lease: bytes | None, value_sum: int) -> int:
    bound = lease or b""
    return sum_of(_KV.pack(b"k", created, revision, value_sum, len(bound)) + bound + key)


def log_sum(revision: int, place: int, key: bytes, value_sum: int | None) -> int:
    """`value_sum` is None for a deletion."""
    is_put = value_sum is not None
    return sum_of(_LOG.pack(b"l", revision, place, is_put, value_sum or 0) + key)


def meta_sum(name: str, value: int) -> int:
    return sum_of(_META.pack(b"m", value) + name.encode())


def lineage_sum(packed: bytes) -> int:
    return sum_of(b"m" + packed + b"lineage")


def check_kv(key: bytes, row: tuple[Any, ...], path: str) -> None:
    """`row` is created, revision, lease, value_sum, sum, as stored for `key`."""
    created, revision, lease, value_sum, expected = row
    try:
        if kv_sum(key, created, revision, lease, value_sum) == expected:
            return
    except _UNREADABLE as error:
        raise _mismatch(f"the record of the key {key!r}", path) from error
    raise _mismatch(f"the record of the key {key!r}", path)


def check_value(key: bytes, value: Any, value_sum: int, path: str) -> None:
    """For a row that `check_kv` has passed."""
    if type(value) is not bytes or sum_of(value) != value_sum:
        raise _mismatch(f"the value of the key {key!r}", path)


def check_log(revision: int, place: int, key: bytes, value: Any, expected: int, path: str) -> None:
    what = f"the change of the key {key!r} at revision {revision}"
    try:
        value_sum = None if value is None else sum_of(value)
        if log_sum(revision, place, key, value_sum) == expected:
            return
    except _UNREADABLE as error:
        raise _mismatch(what, path) from error
    raise _mismatch(what, path)


def read_meta(connection: apsw.Connection) -> dict[str, int]:
    """The verified numbers of `META_NAMES`, and of `commit_ns` if there is one."""
    found: dict[str, int] = {}
    query = "SELECT name, value, sum FROM meta WHERE name <> 'time_namespace' AND name <> 'lineage'"
    for name, value, expected in connection.execute(query):
        try:
            intact = meta_sum(name, value) == expected
        except _UNREADABLE as error:
            raise _mismatch(f"the entry {name!r}", connection.filename) from error
        if not intact:
            raise _mismatch(f"the entry {name!r}", connection.filename)
        found[name] = value
    for name in META_NAMES:
        if name not in found:
            raise _mismatch(f"the entry {name!r}", connection.filename)
    return found


def read_lineage(connection: apsw.Connection) -> Lineage | None:
    """None where no commit was made yet, or none by a Ringhold that keeps a lineage."""
    row = connection.execute("SELECT value, sum FROM meta WHERE name = 'lineage'").get
    if row is None:
        return None
    try:
        lineage = _verified_lineage(*row)
    except _UNREADABLE as error:
        raise _mismatch("the entry 'lineage'", connection.filename) from error
    if lineage is None:
        raise _mismatch("the entry 'lineage'", connection.filename)
    return lineage


@functools.lru_cache(maxsize=16)
def _verified_lineage(packed: bytes, expected: int) -> Lineage | None:
    """Nearly every commit reads the same."""
    return Lineage.unpack(packed) if lineage_sum(packed) == expected else None


def _mismatch(what: str, path: str) -> ChecksumMismatch:
    return ChecksumMismatch(
        f"{what} in the store {path} is damaged: its checksum does not match",
        what=f"{path}: {what}",
    )

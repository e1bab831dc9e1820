"""Records out of the store: checked, and named for people.

What does not decode is Corrupt and says which record it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

from ringhold.errors import Conflict, Corrupt
from ringhold.store import keyspace
from ringhold.store.base import Absent, Born, Empty, NoneBornAfter, Unchanged
from ringhold.types import decode_name

T = TypeVar("T")


def describe_key(key: bytes) -> str:
    """A key of the store for people: what it stands for, in hexadecimal if it is unknown.

    >>> describe_key(b"D" + bytes(7) + b"\\x01" + b"f9")
    "directory entry 'f9'"
    """
    letter, rest = key[:1], key[1:]
    number = int.from_bytes(rest[:8], "big")
    match letter:
        case keyspace.DIRECTORY_ENTRY if len(rest) > 8:
            return f"directory entry {decode_name(rest[8:])!r}"
        case keyspace.DIRECTORY_ENTRY if len(rest) == 8:
            return f"the entries of directory {number}"
        case keyspace.INODE if len(rest) == 8:
            return f"inode {number}"
        case keyspace.DIRECTORY_TIME if len(rest) == 8:
            return f"the time of directory {number}"
        case keyspace.EXTENTS if len(rest) == 20:
            return f"block {int.from_bytes(rest[16:], 'big')} of file data {rest[:16].hex()}"
        case keyspace.RUN if rest:
            return f"file data in run {rest.hex()}"
        case keyspace.PARTITION_PAGE if len(rest) == 1:
            first = rest[0] * keyspace.PARTITIONS_PER_PAGE
            return f"partitions {first} … {first + keyspace.PARTITIONS_PER_PAGE - 1}"
        case keyspace.NODE if rest:
            return f"node {decode_name(rest)!r}"
        case keyspace.KEY_VALUE if rest:
            return f"key {decode_name(rest)!r}"
        case keyspace.SESSION if rest:
            return f"session {rest.hex()}"
        case keyspace.FENCE if rest:
            return f"the fence of lock {decode_name(rest[1:])!r}"
        case keyspace.FILE_LOCK if len(rest) >= 10:
            return f"the lock on inode {int.from_bytes(rest[2:10], 'big')}"
        case keyspace.GARBAGE if len(rest) > 8:
            return f"deleted file data {rest[8:].hex()}"
        case keyspace.REPAIR if len(rest) > 1:
            return f"repair record of run {rest[1:].hex()}"
    return f"{letter.decode('ascii', 'replace')}:{rest.hex()}"


def what_changed(conflict: Conflict, path: str | None = None) -> str:
    """What the compare that did not hold was about: `path` if it is given."""
    match conflict.compare:
        case Absent(key=key) | Unchanged(key=key) | Born(key=key):
            return f"{path or describe_key(key)} was changed by others"
        case Empty(start=start) | NoneBornAfter(start=start):
            return f"{path or describe_key(start)} was added to by others"
    return "something was changed by others"


def decoded(decode: Callable[[bytes], T], key: bytes, value: bytes) -> T:
    """`decode(value)`; Corrupt when the record under `key` is not one."""
    try:
        return decode(value)
    except msgspec.MsgspecError as error:
        what = f"store record {describe_key(key)}"
        raise Corrupt(f"{what} cannot be decoded: {error}", what=what) from error


def missing(key: bytes) -> Corrupt:
    """The error for a record that another one promises and that is not there."""
    what = f"store record {describe_key(key)}"
    return Corrupt(f"{what} is missing; fsck tells what else is", what=what)

"""Records out of the store, checked: what does not decode is Corrupt and says which key."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

from ringhold.errors import Corrupt

T = TypeVar("T")


def name_of_key(key: bytes) -> str:
    """A key of the store for people: its letter and the rest in hexadecimal."""
    return f"{key[:1].decode('ascii', 'replace')}:{key[1:].hex()}"


def decoded(decode: Callable[[bytes], T], key: bytes, value: bytes) -> T:
    """`decode(value)`; Corrupt when the record under `key` is not one."""
    try:
        return decode(value)
    except msgspec.MsgspecError as error:
        what = f"store record {name_of_key(key)}"
        raise Corrupt(f"{what} cannot be decoded: {error}", what=what) from error


def missing(key: bytes) -> Corrupt:
    """The error for a record that another one promises and that is not there."""
    what = f"store record {name_of_key(key)}"
    return Corrupt(f"{what} is missing; fsck tells what else is", what=what)

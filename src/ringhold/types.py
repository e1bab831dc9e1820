"""Plain values that cross floors: names, keys, nodes, entries and events."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import NamedTuple

from ringhold.errors import InvalidInput

NAME_BYTES_MAX = 4096
VALUE_BYTES_MAX = 1 << 20


class PlacementWarning(UserWarning):
    """Copies were placed with fewer distinct zones than asked for."""


def encode_name(name: str | bytes, what: str = "name", *, bytes_max: int = NAME_BYTES_MAX) -> bytes:
    """The bytes of a name or key; ``str`` is UTF-8 with surrogateescape, as ``os.fsencode``.

    Raises TypeError for anything but ``str`` and ``bytes``, InvalidInput for an empty name and
    for one longer than `bytes_max` bytes. NUL bytes are ordinary bytes.
    """
    if isinstance(name, str):
        try:
            encoded = name.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise InvalidInput(f"{what} {name!r} cannot be encoded as UTF-8: {error}") from None
    elif isinstance(name, bytes):
        encoded = name
    else:
        raise TypeError(f"{what} must be str or bytes, not {type(name).__name__}")
    if not encoded:
        raise InvalidInput(f"{what} must not be empty")
    if len(encoded) > bytes_max:
        raise InvalidInput(f"{what} of {len(encoded)} bytes exceeds {bytes_max} bytes")
    return encoded


def decode_name(name: bytes) -> str:
    """The inverse of `encode_name`: any bytes round-trip."""
    return name.decode("utf-8", "surrogateescape")


def check_weight(weight: float, what: str) -> float:
    """`weight` as a float; InvalidInput when negative, NaN or infinite."""
    if isinstance(weight, bool) or not isinstance(weight, (int, float)):
        raise TypeError(f"weight of {what} must be a number, not {type(weight).__name__}")
    value = float(weight)
    if not math.isfinite(value) or value < 0:
        raise InvalidInput(f"weight of {what} must be finite and not negative, not {weight!r}")
    return value


@dataclass(frozen=True, slots=True)
class Node:
    """A member of a `Ring`: weight 0 means drained; zone None is a zone of its own."""

    name: str
    weight: float = 1.0
    zone: str | None = None


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """A storage node: a directory of this host (`path`) or a daemon (`address` "host:port").

    With neither, the node is a directory inside the cluster.
    """

    name: str
    path: str | None = None
    address: str | None = None
    weight: float = 1.0
    zone: str | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """A value with the revisions of its last change and of its creation."""

    value: bytes
    revision: int
    created: int


class EventKind(enum.Enum):
    """What happened to a key."""

    PUT = "put"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Event:
    """One change of one key; `value` is None for a deletion."""

    kind: EventKind
    key: bytes
    value: bytes | None
    revision: int


class Mode(enum.Enum):
    """How a name of a `LockTable` is held; the values are taken as strings wherever a mode is."""

    INTENT_SHARED = "intent_shared"
    INTENT_EXCLUSIVE = "intent_exclusive"
    SHARED = "shared"
    UPDATE = "update"
    SHARED_INTENT_EXCLUSIVE = "shared_intent_exclusive"
    EXCLUSIVE = "exclusive"


class TableGrant(NamedTuple):
    """A waiter of a `LockTable` that got the name: `mode` is what it holds now."""

    name: str
    owner: int
    token: int
    mode: Mode

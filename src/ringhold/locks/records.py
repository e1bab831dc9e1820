"""Fencing tokens, and how holders and waiters are told.

A token has 63 bits: 42 of the revision of the commit that granted, 20 of a sequence within that
grant, and the lowest says exclusive. Revisions only grow, so every later conflicting grant of a
name has a larger token.
"""

from __future__ import annotations

from dataclasses import dataclass

from ringhold.errors import InvalidInput

EXCLUSIVE = "exclusive"
REVISION_BITS = 42
SEQUENCE_BITS = 20


@dataclass(frozen=True, slots=True)
class LockParty:
    """Somebody who holds a lock, or waits for it (`token` 0).

    `since` in seconds since 1970: of a semaphore's or election's party when it came, of a lock's
    when its session was opened. `owner` 0: the session did not tell.
    """

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

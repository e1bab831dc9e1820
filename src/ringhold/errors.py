"""Every error that Ringhold raises, in one tree.

    RingholdError
    ├── InvalidInput (ValueError)          an argument has the right type and a wrong value
    ├── NotEnoughNodes                     fewer usable nodes than copies asked for
    ├── EmptyRing (LookupError)            a lookup on a ring without nodes
    ├── Corrupt                            stored bytes are not what was written
    │   └── ChecksumMismatch
    ├── Unavailable (ConnectionError)      nothing was changed; try again later
    │   ├── StoreUnavailable
    │   ├── NoQuorum                       fewer than W copies could be made durable
    │   └── NodeDown
    ├── OutcomeUnknown                     a commit was sent and its answer never came
    ├── Conflict                           a compare of a commit did not hold
    ├── Compacted                          the revision asked for is no longer kept
    ├── LockError
    │   ├── LockTimeout (TimeoutError)
    │   ├── LockLost                       the grant ended before its holder released it
    │   ├── NotOwned (RuntimeError)
    │   ├── DeadlockError
    │   ├── SessionExpired
    │   └── StaleToken
    ├── TransactionAborted                 nothing of the transaction is visible
    │   ├── Wounded
    │   └── TransactionTooLarge
    └── Closed                             the object was closed, or belongs to another process

File errors are the builtin ones (FileNotFoundError, NotADirectoryError, …); wrong types are
TypeError. ``retryable`` says whether the same call can succeed later without being changed.
Attributes carry the data of an error and are given as keywords; every error pickles.
"""

from __future__ import annotations

from typing import Any


class RingholdError(Exception):
    """Root of the tree. ``RingholdError(message, *, retryable=None, **attributes)``."""

    retryable: bool = False

    def __init__(self, message: str = "", *, retryable: bool | None = None, **attributes: Any):
        super().__init__(message)
        if retryable is not None:
            self.retryable = retryable
        for name, value in attributes.items():
            if not hasattr(type(self), name):
                raise TypeError(f"{type(self).__name__} has no attribute {name!r}")
            setattr(self, name, value)


class InvalidInput(RingholdError, ValueError):
    """An argument has the right type and a value that can never be accepted."""


class NotEnoughNodes(RingholdError):
    """Fewer usable nodes than distinct copies asked for."""

    wanted: int = 0
    usable: int = 0


class EmptyRing(RingholdError, LookupError):
    """A lookup on a ring that has no undrained node."""


class Corrupt(RingholdError):
    """Stored bytes are not what was written; ``what`` names the file, chunk or record."""

    what: str = ""


class ChecksumMismatch(Corrupt):
    """A checksum of stored or received bytes does not match."""


class Unavailable(RingholdError, ConnectionError):
    """Something that is needed does not answer. Nothing was changed."""

    retryable = True


class StoreUnavailable(Unavailable):
    """The coordination store cannot be read or written."""


class NoQuorum(Unavailable):
    """Fewer than ``wanted`` durable copies could be made; ``reached`` were."""

    wanted: int = 0
    reached: int = 0


class NodeDown(Unavailable):
    """The storage node ``node`` does not serve."""

    node: str = ""


class OutcomeUnknown(RingholdError):
    """A commit was sent and no answer came: it may or may not have happened."""


class Conflict(RingholdError):
    """A compare did not hold. ``index`` is its place in the commit, ``compare`` itself."""

    retryable = True
    index: int = 0
    compare: Any = None


class Compacted(RingholdError):
    """The revision asked for is older than what the store keeps; read afresh and go on."""

    retryable = True
    revision: int = 0


class LockError(RingholdError):
    """Root of what locks, sessions and fences raise; ``name`` is the lock's."""

    name: str = ""


class LockTimeout(LockError, TimeoutError):
    """The lock was not granted in time; nothing is held."""

    retryable = True


class LockLost(LockError):
    """The grant ended (lease expired, broken, deleted) before it was released."""

    token: int = 0


class NotOwned(LockError, RuntimeError):
    """A release by somebody who does not hold the lock; ``owner`` in a `LockTable`."""

    owner: int = 0


class DeadlockError(LockError):
    """Waiting would never end, since the waiter itself is in the way; ``owner`` as above."""

    owner: int = 0


class SessionExpired(LockError):
    """The session's lease is gone; everything it held is lost. The next operation opens anew."""

    retryable = True
    session: bytes = b""


class StaleToken(LockError):
    """A fencing token older than one already admitted."""

    token: int = 0
    admitted: int = 0


class TransactionAborted(RingholdError):
    """The transaction had no effect; ``reason`` says why."""

    reason: str = ""


class Wounded(TransactionAborted):
    """Aborted in favour of an older transaction."""

    retryable = True


class TransactionTooLarge(TransactionAborted):
    """More compares, operations or bytes than the store takes in one commit."""


class Closed(RingholdError):
    """The object was closed, or was opened by another process (``pid``) before a fork."""

    pid: int = 0

"""What users give to locks and their kin, checked: names, modes, seconds, owners."""

from __future__ import annotations

import math

from ringhold.errors import InvalidInput
from ringhold.locks.keys import EXCLUSIVE, SHARED
from ringhold.owner import user_owner
from ringhold.types import Mode, encode_name

OWNER_MAX = (1 << 63) - 1
USER_NAME_BYTES_MAX = 4095
DELAY_S_MAX = 86_400.0


def user_name(name: str | bytes, what: str = "lock") -> bytes:
    """The name of a user's lock, or `what` it is, in the store, apart from other locks."""
    return b"u" + encode_name(name, f"{what} name", bytes_max=USER_NAME_BYTES_MAX)


def check_timeout(timeout: float | None, what: str = "timeout") -> float | None:
    """Seconds to wait, None for ever (given as None or -1)."""
    if timeout is None or timeout == -1:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"{what} must be a number of seconds, not {type(timeout).__name__}")
    if math.isnan(timeout) or timeout < 0:
        raise InvalidInput(f"{what} must be -1 or not negative, not {timeout!r}")
    return None if math.isinf(timeout) else float(timeout)


def wait_s(default_s: float | None, blocking: bool, timeout: float | None) -> float | None:
    """How many seconds an acquire waits: None for ever, 0 for not at all. ValueError."""
    if not blocking:
        if timeout is not None:
            raise ValueError("a timeout makes no sense without blocking")
        return 0
    return default_s if timeout is None else check_timeout(timeout)


def told_s(timeout_s: float | None) -> str:
    """A number of seconds as people are told of it, to the millisecond."""
    return f"{round(timeout_s or 0, 3):g}"


def check_delay(delay: float, mode: Mode) -> float:
    """Seconds that others are kept waiting after an exclusive holder disappeared."""
    if isinstance(delay, bool) or not isinstance(delay, (int, float)):
        raise TypeError(f"lock_delay must be a number of seconds, not {type(delay).__name__}")
    if not 0 <= delay <= DELAY_S_MAX:
        raise InvalidInput(f"lock_delay must be 0 to {DELAY_S_MAX:g} s, not {delay!r}")
    if delay and mode is not EXCLUSIVE:
        raise InvalidInput("lock_delay is for exclusive locks")
    return float(delay)


def check_owner(owner: int | None) -> int | None:
    """The owner's number in the lock table; None stays None."""
    if owner is None:
        return None
    if isinstance(owner, bool) or not isinstance(owner, int):
        raise TypeError(f"owner must be an int, not {type(owner).__name__}")
    if not 1 <= owner <= OWNER_MAX:
        raise InvalidInput(f"owner must be 1 to {OWNER_MAX}, not {owner}")
    return user_owner(owner)


def check_mode(mode: str) -> Mode:
    """Shared or exclusive."""
    if isinstance(mode, Mode):
        mode = mode.value
    if not isinstance(mode, str):
        raise TypeError(f"mode must be str, not {type(mode).__name__}")
    for known in (EXCLUSIVE, SHARED):
        if mode == known.value:
            return known
    raise InvalidInput(f"lock mode must be 'exclusive' or 'shared', not {mode!r}")

"""One lock as its session holds it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from ringhold.locks.keys import EXCLUSIVE, LockKeys, Waiting
from ringhold.store.base import Born
from ringhold.types import Mode


class Broken(Exception):
    """The session lives, but its key is gone: somebody broke the lock."""


class Refused(Exception):
    """There is somebody to wait for, and somebody here would rather be refused."""


class CachedLock:
    """One lock as its session holds it. `base` is what the next token is counted from."""

    __slots__ = (
        "base",
        "base_end",
        "dead",
        "delay_s",
        "drop",
        "gate",
        "granted_ns",
        "keys",
        "look",
        "mode",
        "name",
        "queued",
        "since",
        "stop",
        "wake",
        "wanted",
    )

    def __init__(self, name: bytes, gate: int):
        self.name = name
        self.keys = LockKeys.of(name)
        self.gate = gate
        self.mode: Mode | None = None
        """As the session holds the lock in the store."""
        self.since = 0
        """The revision at which it got it."""
        self.base = self.base_end = 0
        self.delay_s = 0.0
        self.granted_ns = 0
        self.queued: Born | None = None
        """The session's own place in the queue."""
        self.wanted: Waiting | None = None
        """The first of those who wait in other sessions, as last seen."""
        self.look = False
        """A letter came: see who wants the lock."""
        self.drop = False
        """To be given back even if nobody wants it."""
        self.stop = False
        """Giving it back was called off: somebody upgrades."""
        self.dead = False
        """Not to be used any more; whoever finds it so undoes what he did with it."""
        self.wake = asyncio.Event()

    @property
    def exhausted(self) -> bool:
        """Whether all exclusive tokens of this holding are used up."""
        return self.mode is not None and self.base >= self.base_end

    def held(self, session: bytes) -> Born:
        """The compare that `session` still holds it."""
        return Born(self.keys.holder(self.mode or EXCLUSIVE, session), self.since)


class Wanted(NamedTuple):
    """What is wanted of a lock within this process: the mode, and whether some would wait for it
    and some would rather be refused."""

    mode: Mode
    patient: bool
    trying: bool


Demand = Callable[[], Wanted | None]

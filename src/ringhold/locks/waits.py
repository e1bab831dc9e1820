"""What keeps a session from giving a lock back: waits of its own for locks of other sessions.

Somebody here holds the lock, and waits for another one; or waits for somebody here who does, at
whatever remove. Found by following the lock table from the gate of the lock that is to be given
back (see `cache`) to a lock that the session itself stands in a queue for.

The table is read while threads change it. So what is found is made of episodes: grants and waits,
each an object of its own. What is found twice with the very same episodes was true all the time
in between.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ringhold.core import LockTable
from ringhold.locks.cached_lock import CachedLock
from ringhold.locks.keys import EXCLUSIVE, SHARED
from ringhold.types import Mode


@dataclass(frozen=True, slots=True, eq=False)
class OwnerWait:
    """One wait of one owner for `name`; `episode` is what waits."""

    name: bytes
    since_ns: int
    episode: object


@dataclass(frozen=True, slots=True)
class HeldUp:
    """The session does not give `held` back before it has got `awaited`, or somebody gives up.

    `since` is the revision at which it got the one, `queued` that at which it came for the
    other. `episodes` lead from the one to the other; `owner` is the last of them who wait.
    """

    held: bytes
    since: int
    awaited: bytes
    queued: int
    owner: int
    episodes: tuple[object, ...]

    @property
    def waiter(self) -> object:
        return self.episodes[-1]


class LocalWaits:
    """The owners of one session who wait, at one moment on the monotonic clock.

    Waits that began after `ripe_ns` are left out; `first_unripe_ns` is the earliest such that was
    come across.
    """

    def __init__(
        self,
        table: LockTable,
        locks: Mapping[bytes, CachedLock],
        waits: Mapping[int, OwnerWait],
        grant_of: Callable[[tuple[bytes, int]], object],
        ripe_ns: int,
    ):
        self.first_unripe_ns: int | None = None
        self._table = table
        self._locks = locks
        self._waits = waits
        self._grant_of = grant_of
        self._ripe_ns = ripe_ns

    def holding_up(self, lock: CachedLock) -> list[HeldUp]:
        """For each lock that keeps `lock` from being given back, the shortest way there."""
        found: dict[bytes, HeldUp] = {}
        seen = dict.fromkeys(self._inside(lock))
        ways: list[tuple[int, tuple[object, ...]]] = [
            (owner, (self._grant_of((lock.name, owner)),)) for owner in seen
        ]
        for owner, way in ways:
            wait = self._wait_of(owner)
            awaited = None if wait is None else self._locks.get(wait.name)
            if wait is None or awaited is None:
                continue
            blockers = self._before(awaited, owner)
            if blockers is None:
                continue  # The table has granted it meanwhile.
            way = (*way, wait.episode)
            if awaited.queued is not None and awaited.name not in found:
                queued = awaited.queued.revision
                found[awaited.name] = HeldUp(
                    lock.name, lock.since, awaited.name, queued, owner, way
                )
            for blocker in blockers:
                if blocker not in seen:
                    seen[blocker] = None
                    ways.append((blocker, (*way, self._grant_of((awaited.name, blocker)))))
        return list(found.values())

    def _wait_of(self, owner: int) -> OwnerWait | None:
        wait = self._waits.get(owner)
        if wait is not None and wait.since_ns > self._ripe_ns:
            self.first_unripe_ns = min(wait.since_ns, self.first_unripe_ns or wait.since_ns)
            return None
        return wait

    def _inside(self, lock: CachedLock) -> list[int]:
        """Who has to finish before the session can give the lock back: those who hold it, and those
        whom the gate has to queue behind."""
        queue = self._table.waiters(lock.name)
        place = next((at for at, (owner, _) in enumerate(queue) if owner == lock.gate), None)
        if place is None:
            wanted = lock.wanted
            shares = lock.mode is EXCLUSIVE and wanted is not None and wanted.mode is SHARED
            closing, ahead = SHARED if shares else EXCLUSIVE, []
        else:
            closing, ahead = queue[place][1], queue[:place]
        parties = self._table.holders(lock.name) + ahead
        return [o for o, mode in parties if o != lock.gate and EXCLUSIVE in (mode, closing)]

    def _before(self, lock: CachedLock, owner: int) -> list[int] | None:
        """Whom `owner` waits for within the session; None when it does not wait."""
        queue = self._table.waiters(lock.name)
        place = next((at for at, party in enumerate(queue) if party[0] == owner), None)
        if place is None:
            return None
        ahead = queue[:place]
        # Who waits behind the gate waits for those whom the gate waits for.
        modes = [queue[place][1], *(mode for other, mode in ahead if other == lock.gate)]
        parties = self._table.holders(lock.name) + ahead
        found: dict[int, None] = {}
        for other, mode in parties:
            if other not in (owner, lock.gate) and _conflicts(mode, modes):
                found[other] = None
        return list(found)


def _conflicts(mode: Mode, others: list[Mode]) -> bool:
    return any(EXCLUSIVE in (mode, other) for other in others)

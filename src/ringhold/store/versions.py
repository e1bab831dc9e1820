"""Keys with the versions that open snapshots still need (multi-version concurrency control).

A snapshot costs nothing and a change copies nothing; versions that nobody can see any more go
with `trim`.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterator

from ringhold.types import Entry


class Versions:
    """Sorted keys, each with its versions in order of revision; None is a deletion."""

    def __init__(self) -> None:
        self._keys: list[bytes] = []
        self._versions: dict[bytes, list[tuple[int, Entry | None]]] = {}
        self._superseded: deque[tuple[int, bytes]] = deque()

    def at(self, key: bytes, revision: int) -> Entry | None:
        for since, entry in reversed(self._versions.get(key, ())):
            if since <= revision:
                return entry
        return None

    def newest(self, key: bytes) -> Entry | None:
        versions = self._versions.get(key)
        return versions[-1][1] if versions else None

    def between(
        self, start: bytes, end: bytes, revision: int, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, Entry]]:
        first = bisect_left(self._keys, start)
        last = bisect_left(self._keys, end)
        places = range(last - 1, first - 1, -1) if reverse else range(first, last)
        for place in places:
            key = self._keys[place]
            entry = self.at(key, revision)
            if entry is not None:
                yield key, entry

    def set(self, key: bytes, revision: int, entry: Entry | None) -> None:
        versions = self._versions.get(key)
        if versions is None:
            self._versions[key] = [(revision, entry)]
            insort(self._keys, key)
            return
        versions.append((revision, entry))
        self._superseded.append((revision, key))

    def trim(self, oldest: int) -> None:
        """Forgets the versions that no snapshot at `oldest` or later can see."""
        while self._superseded and self._superseded[0][0] <= oldest:
            _, key = self._superseded.popleft()
            versions = self._versions.get(key)
            if versions is None:
                continue
            visible = max(i for i, (since, _) in enumerate(versions) if since <= oldest)
            del versions[:visible]
            if len(versions) == 1 and versions[0][1] is None:
                del self._versions[key]
                del self._keys[bisect_left(self._keys, key)]

"""How a waiter hears of news in a store that ends leases by itself: by a watch on what it awaits.

Elsewhere whoever waits asks the store to end the leases of who died, many times a second, and
looks again on that occasion; there a watch would make every commit ring the waiter's bell.

Not guaranteed: that a watch tells in time, or at all. Who waits looks every `LOOK_S` as well.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Self

from ringhold.errors import RingholdError
from ringhold.store.base import Changes, Store
from ringhold.types import EventKind

logger = logging.getLogger("ringhold")

LOOK_S = 1.0
"""How often a waiter that follows a watch looks by itself."""


class Following:
    """Within its block, calls `wake` when one of the keys awaited below `prefix` goes.

    Does nothing in a store that does not end leases by itself. Nobody comes nearer to a lock by
    anything but the end of a holder or of a place in the queue, his own included; and those
    behind a waiter are not told to it.
    """

    def __init__(self, store: Store, prefix: bytes, wake: Callable[[], None]):
        self._store = store
        self._prefix = prefix
        self._wake = wake
        self._on = store.leases_end_unasked
        self._awaited: dict[bytes, None] = {}
        self._gone: dict[bytes, int] = {}
        """Keys of which the watch told, maybe before the waiter knew that it awaits them."""
        self._task: asyncio.Task[None] | None = None

    def await_end(self, keys: Iterable[bytes], seen_at: int) -> None:
        """From now on waits for `keys`, which stood at the revision `seen_at`."""
        self._awaited = dict.fromkeys(keys)
        if any(self._gone.get(key, 0) > seen_at for key in self._awaited):
            self._wake()
        self._gone = {key: at for key, at in self._gone.items() if at > seen_at}
        if self._on and (self._task is None or self._task.done()):
            self._task = asyncio.ensure_future(self._follow(seen_at + 1))

    async def _follow(self, from_revision: int) -> None:
        changes = self._store.watch(self._prefix, from_revision)
        try:
            async for change in changes:
                for event in change.events:
                    if event.kind is EventKind.DELETE:
                        self._gone[event.key] = change.revision
                        if event.key in self._awaited:
                            self._wake()
        except RingholdError as error:
            # Compacted, for one. The next look, at a revision of its own, begins anew.
            logger.info("a lock cannot be followed: %s", error)
        finally:
            await end_watch(changes)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


async def end_watch(changes: AsyncIterator[Changes]) -> None:
    """Tells the store that nobody reads `changes` any more."""
    aclose = getattr(changes, "aclose", None)
    if aclose is not None:
        await aclose()

"""Fences: a resource admits a token only if none that excludes it was admitted before.

Guarantees: durable and linearizable. After an exclusive token was admitted no lower token is,
in any process. Shared tokens raise the bar for nobody: what they stand for may go on side by
side. A fence is named as the lock whose tokens it judges; nothing else ties the two together.

Source: the sequencers of M. Burrows, "The Chubby lock service" (OSDI 2006), judged at the resource.
"""

from __future__ import annotations

from collections.abc import Callable

from ringhold.env import Env
from ringhold.errors import StaleToken
from ringhold.home import Bound
from ringhold.locks.arguments import user_name
from ringhold.locks.records import revision_of
from ringhold.store.base import Absent, Born, Snapshot, Store, Unchanged
from ringhold.store.keyspace import fence_key, lock_prefix
from ringhold.store.view import View, transact
from ringhold.types import decode_name

TOKEN_BYTES = 8
EXCLUSIVE_BIT = 1


def check_token(token: int) -> int:
    """TypeError, InvalidInput."""
    revision_of(token)
    return token


async def last_admitted(view: View, name: bytes) -> int:
    """The highest exclusive token that the fence of the lock `name` admitted, 0 for none."""
    entry = await view.get(fence_key(name))
    return 0 if entry is None else int.from_bytes(entry.value, "big")


async def admit(view: View, name: bytes, token: int) -> None:
    """Admits `token` in the commit of `view`, whose compares then include the fence. StaleToken.

    `name` is the lock's in the store, as `user_name` gives it.
    """
    admitted = await last_admitted(view, name)
    if token < admitted:
        label = decode_name(name[1:])
        raise StaleToken(
            f"token {token} of {label!r} is older than {admitted}, which was admitted already",
            name=label,
            token=token,
            admitted=admitted,
        )
    if token & EXCLUSIVE_BIT and token > admitted:
        view.put(fence_key(name), token.to_bytes(TOKEN_BYTES, "big"))


async def holder_born(snapshot: Snapshot, name: bytes, session: bytes) -> Born | None:
    """The compare that `session` still holds the lock `name` as it does at `snapshot`."""
    keys = [lock_prefix(name) + kind + session for kind in (b"x", b"s")]
    for key, entry in zip(keys, await snapshot.get_many(keys), strict=True):
        if entry is not None:
            return Born(key, entry.created)
    return None


class AsyncFence:
    """``await cluster.fence("x").admit(token)``."""

    def __init__(self, store: Store, env: Env, check: Callable[[], None], name: str | bytes):
        self._raw = user_name(name, "fence")
        self.name = decode_name(self._raw[1:])
        self._store = store
        self._env = env
        self._check = check

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    async def admit(self, token: int) -> None:
        """Admits `token`, durably, or raises StaleToken (`name`, `token`, `admitted`).

        An exclusive token (lowest bit 1) must not be lower than any exclusive one admitted
        before, a shared one not lower than the last exclusive one. Admitting one again is no
        error.
        """
        check_token(token)
        self._check()

        async def operation(view: View) -> None:
            await admit(view, self._raw, token)
            if not view.has_writes:
                # A commit all the same: it gives the admission its place among the others.
                key = fence_key(self._raw)
                entry = await view.get(key)
                view.require(Absent(key) if entry is None else Unchanged(key, entry.revision))

        await transact(self._store, self._env, operation)

    async def last(self) -> int:
        """The highest exclusive token admitted, 0 if there was none."""
        self._check()
        snapshot = await self._store.snapshot()
        try:
            return await last_admitted(View(snapshot), self._raw)
        finally:
            await snapshot.close()


class Fence(Bound[AsyncFence]):
    """Judges fencing tokens for a resource: ``cluster.fence("report").admit(grant.token)``."""

    def admit(self, token: int) -> None:
        """Admits `token`, durably, or raises StaleToken (`name`, `token`, `admitted`).

        An exclusive token (lowest bit 1) must not be lower than any exclusive one admitted
        before, a shared one not lower than the last exclusive one. Admitting one again is no
        error.
        """
        self._bridge.run(self._face.admit(token))

    def last(self) -> int:
        """The highest exclusive token admitted, 0 if there was none."""
        return self._bridge.run(self._face.last())

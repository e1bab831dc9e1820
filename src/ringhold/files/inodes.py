"""Inode numbers: leased from the store by the batch, so that creating a file needs no hot key.

A number is given out once. Numbers of a batch that its process never used are never used.
"""

from __future__ import annotations

import asyncio

from ringhold.env import Env
from ringhold.files.records import INODES_PER_LEASE
from ringhold.files.stored import missing
from ringhold.store import keyspace
from ringhold.store.base import Store
from ringhold.store.view import View, transact


class InodeNumbers:
    """The numbers leased by this process."""

    def __init__(self, store: Store, env: Env):
        self._store = store
        self._env = env
        self._free: list[int] = []
        self._leasing = asyncio.Lock()

    async def take(self, count: int) -> list[int]:
        """`count` numbers that are the caller's alone, ascending within a batch."""
        while len(self._free) < count:
            async with self._leasing:
                if len(self._free) < count:
                    first = await transact(self._store, self._env, self._lease)
                    batch = range(first + INODES_PER_LEASE - 1, first - 1, -1)
                    self._free = [*batch, *self._free]
        taken = self._free[-count:][::-1]
        del self._free[-count:]
        return taken

    def give_back(self, numbers: list[int]) -> None:
        """Numbers that no commit, whatever its outcome, can have named."""
        self._free += numbers[::-1]

    @staticmethod
    async def _lease(view: View) -> int:
        found = await view.get(keyspace.NEXT_INODE)
        if found is None:
            raise missing(keyspace.NEXT_INODE)
        first = int.from_bytes(found.value, "big")
        view.put(keyspace.NEXT_INODE, (first + INODES_PER_LEASE).to_bytes(8, "big"))
        return first

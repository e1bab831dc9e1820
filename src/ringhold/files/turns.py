"""The same operation on many paths: one commit, or as many as the store makes necessary.

All at once is tried first, so that what cannot be done is refused before anything was. If that is
more than the store takes in one commit, the paths are dealt with in their order, as many in each
commit as it takes. So it is not atomic, and paths may change between two commits; whoever wants
all or none uses a transaction, which refuses what is too large.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from ringhold.files.metadata import Actor
from ringhold.files.paths import Parts
from ringhold.store.base import Limits
from ringhold.store.view import View

T = TypeVar("T")

Cost = tuple[int, int]
"""At most how many compares and changes an operation adds to a commit."""


def removal_cost(parts: Parts) -> Cost:
    """The names along the path, the inode, a lock on it; entry, inode, time, garbage record."""
    return len(parts) + 4, 4


def rename_cost(pair: tuple[Parts, Parts]) -> Cost:
    """Those of a removal for both paths, and new directories above the target."""
    source, target = pair
    return len(source) + len(target) + 8, 2 * len(target) + 8


class TooMany(Exception):
    """One commit is not enough for all that was asked for."""


class Turns(Generic[T]):
    """Does `one` to `items`; `limits` of a commit, when there may be several."""

    def __init__(
        self,
        items: Sequence[T],
        one: Callable[[View, Actor, T], Awaitable[None]],
        cost: Callable[[T], Cost],
        limits: Limits | None,
    ):
        self.left = items
        self._one = one
        self._cost = cost
        self._limits = limits

    async def all_at_once(self, view: View, actor: Actor) -> None:
        """TooMany when they should be done in turn instead."""
        for item in self.left:
            await self._one(view, actor, item)
        if self._limits is not None and not view.fits(self._limits):
            raise TooMany

    async def next_ones(self, view: View, actor: Actor) -> int:
        """As many of those `left` as one commit takes; how many they are."""
        assert self._limits is not None
        for done, item in enumerate(self.left):
            if done and not view.fits(self._limits, *self._cost(item)):
                return done
            await self._one(view, actor, item)
        return len(self.left)

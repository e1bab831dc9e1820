"""What a ring answers with: plain values that keep nothing of the ring alive."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing_extensions import Buffer

_CIRCLE = 1 << 64


class Placement(NamedTuple):
    """Why a key is where it is.

    `hash` is the key's hash and `point` the point that owns it, both in the bits of the ring's
    profile; `node` is the owner, `zone` the owner's (None: without), and `replicas` the first
    three nodes for the key, or all where there are fewer.
    """

    hash: int
    point: int
    node: str
    zone: str | None
    replicas: tuple[str, ...]


class Move(NamedTuple):
    """An arc of the circle whose keys go from node `source` to node `target`.

    It holds the positions after `start` up to and including `end`, both at least 0 and below
    2**64. The arc round zero has start > end, the whole circle start == end.
    """

    start: int
    end: int
    source: str
    target: str


@dataclass(frozen=True, slots=True)
class RingDiff:
    """What moves when one ring becomes another.

    `moves` are the arcs whose owner changes, in ascending order of `end` and without overlap;
    `profile` is that of both rings. 32-bit profiles have their hashes scaled by 2**32.

    >>> from ringhold.core import Ring
    >>> diff = Ring(["a", "b"]).diff(Ring(["a", "b", "c"]))
    >>> {move.target for move in diff.moves}, 0.2 < diff.fraction < 0.5
    ({'c'}, True)
    """

    moves: tuple[Move, ...]
    profile: str

    @property
    def fraction(self) -> float:
        """The share of the circle that moves, 0 to 1: of many keys, about as many move."""
        return sum((m.end - m.start) % _CIRCLE or _CIRCLE for m in self.moves) / _CIRCLE

    def contains(self, key: str | bytes | Buffer) -> bool:
        """Whether the owner of `key` changes."""
        from ringhold.core._ring_forms import position_of

        position = position_of(key, self.profile)
        if not self.moves:
            return False
        # Behind the last end, only the arc round zero is left, whose end comes first of all.
        found = bisect_left(self.moves, position, key=attrgetter("end"))
        start, end, _, _ = self.moves[found % len(self.moves)]
        if start < end:
            return start < position <= end
        return position > start or position <= end

"""What the figures of placement, lock table and checksums are measured against.

A goal names the figure of a benchmark by its label: a ratio beside a peer is "ours / peer" as
`pairs.report` writes it, the speed of the one over that of the other; a label without a peer is
seconds per operation, or whatever `pairs.figure` noted.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from pairs import Spread


class Kind(Enum):
    """How a figure is compared, and what is shown of it."""

    TIME = "× the time"  # of the peer, at most
    SPEED = "× as fast"  # as the peer, at least
    NANOSECONDS = "ns"  # at most
    SECONDS = "s"  # at most
    COUNT = ""  # at most


@dataclass(frozen=True, slots=True)
class Goal:
    section: str
    measure: str
    label: str
    kind: Kind
    bound: float

    def value(self, noted: Spread) -> Spread:
        """The figure in the goal's own terms."""
        if self.kind is Kind.TIME:
            return {
                "median": 1 / noted["median"],
                "min": 1 / noted["max"],
                "max": 1 / noted["min"],
            }
        scale = 1e9 if self.kind is Kind.NANOSECONDS else 1
        return {name: number * scale for name, number in noted.items()}

    def reached(self, value: Spread) -> bool:
        """Judged by the median."""
        if self.kind is Kind.SPEED:
            return value["median"] >= self.bound
        return value["median"] <= self.bound

    def margin(self, value: Spread) -> Spread:
        """How many times as good as the bound: from 1 on the goal is reached."""
        if self.kind is Kind.SPEED:
            return {name: number / self.bound for name, number in value.items()}
        return {
            "median": self.bound / value["median"],
            "min": self.bound / value["max"],
            "max": self.bound / value["min"],
        }

    def text(self) -> str:
        sign = "≥" if self.kind is Kind.SPEED else "≤"
        return f"{sign} {self.bound:g} {self.kind.value}".rstrip()


PLACEMENT = "Placement"
LOCKS = "Lock table"
CHECKSUMS = "Checksums"

GOALS = (
    Goal(PLACEMENT, "`ring[key]` beside the bare xxhash call", "ring[key] / xxhash", Kind.TIME, 3),
)

"""What the figures of the benchmarks are measured against.

A goal names the figure of a benchmark by its label: a ratio beside a peer is "ours / peer" as
`pairs.report` writes it, the speed of the one over that of the other; a label without a peer is
seconds per operation, or whatever `pairs.figure` noted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from pairs import Spread


class Kind(Enum):
    """How a figure is compared, and what is shown of it."""

    TIME = "× the time"  # of the peer, at most
    SPEED = "× as fast"  # as the peer, at least
    NANOSECONDS = "ns"  # at most
    MILLISECONDS = "ms"  # at most
    SECONDS = "s"  # at most
    COUNT = ""  # at most
    SHARE = "of the largest"  # at least

    @property
    def at_least(self) -> bool:
        return self in (Kind.SPEED, Kind.SHARE)


@dataclass(frozen=True, slots=True)
class Goal:
    section: str
    measure: str
    label: str
    kind: Kind
    bound: float
    tiny: str = ""
    """The label at tiny sizes, where it tells a size."""
    system: bool = False
    """Whether the peer is a system package."""

    def value(self, noted: Spread) -> Spread:
        """The figure in the goal's own terms."""
        if self.kind is Kind.TIME:
            return {
                "median": 1 / noted["median"],
                "min": 1 / noted["max"],
                "max": 1 / noted["min"],
            }
        return noted

    def reached(self, value: Spread) -> bool:
        """Judged by the median."""
        if self.kind.at_least:
            return value["median"] >= self.bound
        return value["median"] <= self.bound

    def margin(self, value: Spread) -> Spread:
        """How many times as good as the bound: from 1 on the goal is reached."""
        if self.kind.at_least:
            return {name: number / self.bound for name, number in value.items()}
        return {
            "median": self.bound / value["median"],
            "min": self.bound / value["max"],
            "max": self.bound / value["min"],
        }

    def text(self) -> str:
        sign = "≥" if self.kind.at_least else "≤"
        return f"{sign} {self.bound:g} {self.kind.value}".rstrip()


def _placement() -> Iterator[Goal]:
    section = "Placement"
    for label, key in (("ring[key]", "bytes"), ("ring[str]", "str")):
        measure = f"`ring[key]`, 100 × 160 points, {key}"
        yield Goal(
            section, f"{measure}, beside a bare xxhash call", f"{label} / xxhash", Kind.TIME, 3
        )
        yield Goal(section, f"{measure}, beside uhashring", f"{label} / uhashring", Kind.SPEED, 20)
    for what, bound in (("bytes", 0.7), ("hashes", 0.3)):
        yield Goal(
            section,
            f"`lookup_many` of {what}, per key, beside a bare xxhash call",
            f"lookup_many of {what} / xxhash",
            Kind.TIME,
            bound,
        )
    yield Goal(
        section,
        "`lookup_many` of hashes, 2²⁰ points beside 2¹⁰",
        "hashes among 1048576 points / hashes among 1024 points",
        Kind.TIME,
        3,
        tiny="hashes among 1024 points / hashes among 128 points",
    )
    yield Goal(section, "build 1000 × 160 points", "build / uhashring build", Kind.SPEED, 15)
    for change in ("add a node", "remove a node"):
        yield Goal(section, f"{change} beside the build", f"{change} / build", Kind.TIME, 0.1)
    for what in ("owners", "replica sets"):
        yield Goal(
            section, f"moved / necessary, {what}", f"moved / necessary of {what}", Kind.COUNT, 1
        )


def _layout() -> Iterator[Goal]:
    section = "Layout"
    for change in ("one added", "one removed", "ten reweighted"):
        yield Goal(
            section,
            f"rebalance 4096 × 100, 3 zones, {change}",
            f"rebalance 4096 x 100, {change}, 3 zones",
            Kind.SECONDS,
            1,
            tiny=f"rebalance 256 x 12, {change}, 3 zones",
        )
    for measure, figure in (
        ("moved / necessary", "moved / necessary"),
        ("copies of the node furthest from its share", "furthest from its share"),
    ):
        yield Goal(
            section,
            f"{measure}, no zones, one added",
            f"rebalance 4096 x 100, one added, no zones: {figure}",
            Kind.COUNT,
            1,
            tiny=f"rebalance 256 x 12, one added, no zones: {figure}",
        )


def _lock_table() -> Iterator[Goal]:
    section = "Lock table"
    for names, figure, bound in (
        ("one hot name", "hot", 60),
        ("1 M names in random order", "cold", 400),
        ("1 M names held at once", "all", 400),
    ):
        yield Goal(
            section,
            f"acquire and release in C, {names}",
            f"C lock table, {figure}",
            Kind.NANOSECONDS,
            bound,
        )
    yield Goal(
        section,
        "acquire and release beside `with threading.Lock()`",
        "try_acquire and release / with threading.Lock()",
        Kind.TIME,
        2,
    )


def _locks() -> Iterator[Goal]:
    section = "Locks"
    for face, label in (("", "cached cluster lock"), (", asyncio", "cached cluster lock, asyncio")):
        yield Goal(
            section,
            f"cached lock, acquire and release{face}",
            f"{label}, ns",
            Kind.NANOSECONDS,
            3000,
        )
    yield Goal(
        section,
        "cached lock, acquire and release, beside redis-py",
        "cached cluster lock / redis-py",
        Kind.SPEED,
        50,
        system=True,
    )
    yield Goal(
        section,
        "store commits per pair of a cached lock",
        "store commits per pair of a cached lock",
        Kind.COUNT,
        0,
    )
    for measure, label, bound in (
        ("hand-over between two processes, p50", "hand-over, p50", 2),
        ("hand-over between two processes, p99", "hand-over, p99", 20),
        ("lock that another process keeps, p50", "kept lock taken by another process, p50", 20),
        ("kill -9 of the holder to the next grant", "kill -9 to the next grant", 100),
    ):
        yield Goal(section, measure, label, Kind.MILLISECONDS, bound)
    yield Goal(
        section,
        "two processes in a loop, larger / smaller count",
        "larger / smaller count of two in a loop",
        Kind.COUNT,
        1.5,
    )


def _store() -> Iterator[Goal]:
    section = "Store (embedded)"
    for what, label, bound in (
        ("by a thread", "blocking", 0.75),
        ("`kv.put`", "kv.put", 0.7),
        ("by a task", "asyncio", 0.55),
    ):
        yield Goal(
            section,
            f"commits one at a time, {what}, beside bare apsw",
            f"{label} / bare apsw",
            Kind.SPEED,
            bound,
        )
    yield Goal(
        section,
        "commits, 32 at once beside one at a time",
        "32 at once / one at a time",
        Kind.SPEED,
        3,
    )
    for kind in ("threads", "tasks"):
        yield Goal(
            section,
            f"fsyncs per commit, 32 {kind} at once",
            f"syncs for each commit, 32 {kind} at once",
            Kind.COUNT,
            0.2,
        )
        yield Goal(
            section,
            f"commits of four processes, {kind}, smallest share",
            f"smallest share of 4 processes, {kind}, of the largest",
            Kind.SHARE,
            0.2,
            tiny=f"smallest share of 2 processes, {kind}, of the largest",
        )


def _checksums() -> Iterator[Goal]:
    section = "Checksums"
    yield Goal(
        section,
        "`checksum` of 64 MiB beside the xxhash package",
        "checksum of 67108864 B / xxhash",
        Kind.SPEED,
        0.95,
        tiny="checksum of 65537 B / xxhash",
    )
    yield Goal(
        section,
        "`checksum_blocks` of 64 MiB beside `checksum`",
        "checksum_blocks / checksum",
        Kind.SPEED,
        0.9,
    )
    yield Goal(
        section,
        "`copy_checksum_blocks` of 64 MiB beside memcpy",
        "copy_checksum_blocks of 67108864 B / memcpy",
        Kind.TIME,
        1.15,
        tiny="copy_checksum_blocks of 65537 B / memcpy",
    )


GOALS = (*_placement(), *_layout(), *_lock_table(), *_locks(), *_store(), *_checksums())

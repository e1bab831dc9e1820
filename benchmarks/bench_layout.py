"""Layouts beside the ring of uhashring: the time of a rebalance, and what moves for it.

A rebalance decides for every copy of every partition where it goes, for ever; the peer builds the
ring that the same decision would be read from. Sizes are tiny unless RINGHOLD_BENCH=full, so that
every test run also runs this file. Spread and movement are checked, not only told.
"""

from __future__ import annotations

import collections
import itertools
import random
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
import uhashring

from pairs import FULL, REPORT, figure, in_turns, report
from ringhold.core import Layout, Ring
from ringhold.types import Node

NODES = 100 if FULL else 12
PARTITIONS = 4096 if FULL else 256
REPLICAS = 3
LARGE = (1 << 20, 1000) if FULL else (1 << 10, 50)

Table = Sequence[Sequence[str]]


def nodes(count: int, zones: int, *, first: int = 0, heavy: int = 0) -> list[Node]:
    return [
        Node(f"n{i:04}", 2.0 if i < heavy else 1.0, f"z{i % zones}" if zones else None)
        for i in range(first, count)
    ]


CHANGES = {
    "one added": lambda zones: nodes(NODES + 1, zones),
    "one removed": lambda zones: nodes(NODES, zones, first=1),
    "ten reweighted": lambda zones: nodes(NODES, zones, heavy=10),
}


def table(layout: Layout) -> Table:
    return [layout.nodes(partition) for partition in range(layout.partitions)]


def moved(before: Iterable[Sequence[str]], after: Iterable[Sequence[str]]) -> int:
    """Copies on nodes that held none of their partition, order ignored."""
    return sum(len(set(new) - set(old)) for old, new in zip(before, after, strict=True))


def distance_from_share(layout: Layout) -> float:
    """How many copies the node has more or fewer than its share that is furthest from it, where
    no zone and no limit of one copy a node bounds the shares."""
    counts = collections.Counter(name for row in table(layout) for name in row)
    weight = sum(layout.weights.values())
    shares = {n: REPLICAS * PARTITIONS * own / weight for n, own in layout.weights.items()}
    return max(abs(counts[name] - share) for name, share in shares.items())


def check(layout: Layout, zones: int) -> None:
    """Every node within one of its share where the share is plain, no zone twice."""
    if not zones:
        assert distance_from_share(layout) < 1
    for row in table(layout):
        assert len({layout.zones[name] or name for name in row}) == REPLICAS


@pytest.mark.parametrize("zones", [0, 3, 5])
@pytest.mark.parametrize("change", CHANGES)
def test_a_rebalance_costs_less_than_building_the_ring_of_uhashring(
    benchmark: Any, change: str, zones: int
) -> None:
    layout = Layout(nodes(NODES, zones), replicas=REPLICAS, partitions=PARTITIONS)
    target = CHANGES[change](zones)
    weights = {node.name: int(node.weight) for node in target}
    label = f"rebalance {PARTITIONS} x {NODES}, {change}, {zones or 'no'} zones"
    ways = {
        label: lambda _: layout.rebalance(target),
        "uhashring build": lambda _: uhashring.HashRing(weights),
    }
    seconds = benchmark.pedantic(in_turns, (ways,), rounds=1)
    plan = layout.rebalance(target)
    check(plan.layout, zones)
    assert plan.moved == moved(table(layout), table(plan.layout)) >= plan.lower_bound
    assert plan.gap == 0
    report(benchmark, seconds, [(label, "uhashring build")], 1, "rebalances")
    figure(benchmark, f"{label}: moved / necessary", [plan.moved / plan.lower_bound], "")
    if not zones:
        furthest = distance_from_share(plan.layout)
        figure(benchmark, f"{label}: furthest from its share", [furthest], "copies")


def maglev(names: Sequence[str]) -> Table:
    """The table of Eisenbud et al., "Maglev", 2016, with the next distinct nodes as replicas."""
    order = {name: list(range(PARTITIONS)) for name in names}
    for name, entries in order.items():
        random.Random(name).shuffle(entries)
    owner: dict[int, str] = {}
    turns = {name: iter(entries) for name, entries in order.items()}
    for name in itertools.cycle(names):
        if len(owner) == PARTITIONS:
            break
        free = next((p for p in turns[name] if p not in owner), None)
        if free is not None:
            owner[free] = name
    rows = []
    for p in range(PARTITIONS):
        following = (owner[(p + i) % PARTITIONS] for i in range(PARTITIONS))
        rows.append(tuple(itertools.islice(dict.fromkeys(following), REPLICAS)))
    return rows


def test_movement_and_balance_beside_ring_and_maglev() -> None:
    """One node of NODES removed: copies moved over those the node held, and the fullest node."""
    before, after = nodes(NODES, 0), nodes(NODES, 0, first=1)
    layout = Layout(before, replicas=REPLICAS, partitions=PARTITIONS)
    rings = [Ring(before), Ring(after)]
    keys = [partition.to_bytes(4, "big") for partition in range(PARTITIONS)]
    tables = {
        "layout": [table(layout), table(layout.rebalance(after).layout)],
        "ring": [[ring.replicas(key, REPLICAS) for key in keys] for ring in rings],
        "maglev": [maglev([node.name for node in each]) for each in (before, after)],
    }
    excess, fullest = {}, {}
    for way, (old, new) in tables.items():
        held = sum(row.count(before[0].name) for row in old)
        excess[way] = moved(old, new) / held
        counts = collections.Counter(name for row in new for name in row)
        fullest[way] = max(counts.values()) * len(after) / (REPLICAS * PARTITIONS)
        if FULL:
            REPORT.append(
                f"{way}: moved / necessary {excess[way]:.2f}, fullest node {fullest[way]:.3f} "
                "of the mean"
            )
    assert excess["layout"] == excess["ring"] == 1.0 < excess["maglev"]
    assert fullest["layout"] < 1 + len(after) / (REPLICAS * PARTITIONS)
    assert fullest["layout"] < fullest["ring"]


def test_rebuild_partners_beside_a_cyclic_table() -> None:
    """How many nodes share a partition with each, and how many partitions two nodes share."""
    names = [node.name for node in nodes(NODES, 0)]
    layout = Layout(names, replicas=REPLICAS, partitions=PARTITIONS)
    cyclic = [tuple(names[(p + i) % NODES] for i in range(REPLICAS)) for p in range(PARTITIONS)]
    found = {}
    for way, rows in {
        "layout": table(layout),
        "layout after ten rebalances": table(renewed(layout)),
        "cyclic": cyclic,
    }.items():
        pairs = collections.Counter(
            frozenset(pair) for row in rows for pair in itertools.combinations(row, 2)
        )
        partners = collections.Counter(name for pair in pairs for name in pair)
        found[way] = (min(partners.values()), max(pairs.values()))
        if FULL:
            REPORT.append(
                f"{way}: fewest partners {found[way][0]} of {NODES - 1}, "
                f"most partitions shared by two nodes {found[way][1]}"
            )
    for way in ("layout", "layout after ten rebalances"):
        assert found[way][0] >= 2 * found["cyclic"][0]
        assert 2 * found[way][1] <= found["cyclic"][1]


def renewed(layout: Layout) -> Layout:
    """Ten nodes replaced, one after the other."""
    names = list(layout.names)
    for i in range(10):
        names = [*names[1:], f"x{i}"]
        layout = layout.rebalance(names).layout
    return layout


@pytest.mark.parametrize("zones", [0, 3])
def test_beyond_2_to_the_22_a_rebalance_ends_in_seconds(benchmark: Any, zones: int) -> None:
    partitions, count = LARGE
    layout = Layout(nodes(count, zones), partitions=partitions)
    label = f"rebalance {partitions} x {count}, one added, {zones or 'no'} zones"
    ways = {label: lambda _: layout.rebalance(nodes(count + 1, zones))}
    seconds = benchmark.pedantic(in_turns, (ways, 1), rounds=1)
    assert layout.rebalance(nodes(count + 1, zones)).gap == 0
    report(benchmark, seconds, [], 1, "rebalances")

"""The ring beside the bare call of its hash function, a dict, and the package uhashring.

Sizes are tiny unless RINGHOLD_BENCH=full, so that every test run also runs this file. What was
timed is compared with what another way gives.
"""

from __future__ import annotations

import array
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
import uhashring
import xxhash

from pairs import FULL, figure, in_turns, report
from ringhold.core import Ring

NODES = 100 if FULL else 5
KEYS = 100_000 if FULL else 300
BUILD_NODES = 1000 if FULL else 20
BUILDS = 5 if FULL else 1
POINTS = [2**10, 2**14, 2**17, 2**20] if FULL else [2**7, 2**10]
POOLS = 20 if FULL else 2

_random = random.Random(1)
BYTES = [_random.randbytes(_random.randint(16, 20)) for _ in range(KEYS)]
TEXTS = [key.hex()[: len(key)] for key in BYTES]
HASHES = array.array("Q", map(xxhash.xxh3_64_intdigest, BYTES))


def names(count: int) -> list[str]:
    return [f"10.0.{i // 256}.{i % 256}:11211" for i in range(count)]


def calling(function: Callable[[Any], object], keys: Sequence[Any]) -> Callable[[int], None]:
    def run(_: int) -> None:
        for key in keys:
            function(key)

    return run


def subscripting(ring: Ring, keys: Sequence[Any]) -> Callable[[int], None]:
    def run(_: int) -> None:
        for key in keys:
            ring[key]

    return run


def named(ring: Ring, indexes: Iterable[int]) -> list[str]:
    return [ring.names[index] for index in indexes]


@pytest.mark.parametrize("kind", ["bytes", "str"])
def test_a_single_lookup(benchmark: Any, kind: str) -> None:
    keys: list[Any] = BYTES if kind == "bytes" else TEXTS
    ring = Ring(names(NODES))
    owners = {key: ring[key] for key in keys}
    peer = uhashring.HashRing(names(NODES))
    label = "ring[key]" if kind == "bytes" else "ring[str]"
    ways = {
        label: subscripting(ring, keys),
        "xxhash": calling(xxhash.xxh3_64_intdigest, BYTES),
        "dict.get": calling(owners.get, keys),
        "uhashring": calling(peer.get_node, TEXTS),
    }
    seconds = benchmark.pedantic(in_turns, (ways,), rounds=1)
    assert named(ring, ring.lookup_many(keys)) == list(map(ring.__getitem__, keys))
    pairs = [(label, other) for other in ways if other != label]
    report(benchmark, seconds, pairs, len(keys), "lookups")


def test_a_batch(benchmark: Any) -> None:
    ring = Ring(names(NODES))
    out = array.array("I", bytes(4 * KEYS))
    ways = {
        "lookup_many of bytes": lambda _: ring.lookup_many(BYTES),
        "lookup_many of str": lambda _: ring.lookup_many(TEXTS),
        "lookup_many of hashes": lambda _: ring.lookup_many(HASHES, out),
        "xxhash": calling(xxhash.xxh3_64_intdigest, BYTES),
        "uhashring": calling(uhashring.HashRing(names(NODES)).get_node, TEXTS),
    }
    seconds = benchmark.pedantic(in_turns, (ways,), rounds=1)
    assert named(ring, out) == [ring[key] for key in BYTES]
    assert ring.lookup_many(BYTES) == out
    assert named(ring, ring.lookup_many(TEXTS)) == [ring[key] for key in TEXTS]
    ours = [label for label in ways if label.startswith("lookup_many")]
    pairs = [(label, peer) for label in ours for peer in ("xxhash", "uhashring")]
    report(benchmark, seconds, pairs, KEYS, "keys")


def test_building_and_changing(benchmark: Any) -> None:
    nodes = names(BUILD_NODES)
    full = Ring(nodes)
    less = Ring(nodes[:-1])
    rings: dict[str, list[Ring]] = {"add a node": [], "remove a node": []}

    def add(_: int) -> None:
        for ring in rings["add a node"]:
            ring.add(nodes[-1])

    def remove(_: int) -> None:
        for ring in rings["remove a node"]:
            ring.remove(nodes[-1])

    def prepare(_: int) -> None:
        rings["add a node"] = [less.copy() for _ in range(BUILDS)]
        rings["remove a node"] = [full.copy() for _ in range(BUILDS)]

    built: list[Ring] = []

    def build(_: int) -> None:
        built[:] = [Ring(nodes) for _ in range(BUILDS)]

    ways: dict[str, Callable[[int], object]] = {
        "build": build,
        "prepare": prepare,
        "add a node": add,
        "remove a node": remove,
        "uhashring build": lambda _: [uhashring.HashRing(nodes) for _ in range(BUILDS)],
    }
    seconds = benchmark.pedantic(in_turns, (ways,), rounds=1)
    assert all(ring == full and ring.points() == full.points() for ring in rings["add a node"])
    assert all(ring.points() == less.points() for ring in rings["remove a node"])
    assert built[0] == full
    del seconds["prepare"]
    pairs = [
        ("build", "uhashring build"),
        ("add a node", "build"),
        ("remove a node", "build"),
    ]
    report(benchmark, seconds, pairs, BUILDS, "rings")


def test_the_cost_of_many_points(benchmark: Any) -> None:
    rings = {points: Ring(names(64), vnodes=points // 64) for points in POINTS}
    out = array.array("I", bytes(4 * KEYS))

    def looking(ring: Ring) -> Callable[[int], object]:
        return lambda _: ring.lookup_many(HASHES, out)

    labels = {points: f"hashes among {points} points" for points in POINTS}
    ways = {labels[points]: looking(ring) for points, ring in rings.items()}
    seconds = benchmark.pedantic(in_turns, (ways,), rounds=1)
    for points, ring in rings.items():
        assert len(ring.points()) == points
        assert named(ring, ring.lookup_many(HASHES[:100])) == [
            ring.lookup_hash(h) for h in HASHES[:100]
        ]
    pairs = [(labels[points], labels[POINTS[0]]) for points in POINTS[1:]]
    report(benchmark, seconds, pairs, KEYS, "keys")


def moved_and_necessary(old: Ring, new: Ring, name: str, replicas: int) -> tuple[int, int]:
    """How many copies change their node, and how many must: those on the node that came or went."""
    moved = necessary = 0
    for key in BYTES[: KEYS // 10]:
        before, after = set(old.replicas(key, replicas)), set(new.replicas(key, replicas))
        moved += len(before - after)
        necessary += name in before ^ after
    return moved, necessary


def test_moved_beside_necessary(benchmark: Any) -> None:
    def measure() -> dict[str, list[float]]:
        found: dict[str, list[float]] = {"owners": [], "replica sets": []}
        for i in range(POOLS):
            small = Ring(names(NODES + i))
            large = small.copy()
            large.add("another")
            pair = (small, large) if i % 2 else (large, small)
            for what, replicas in (("owners", 1), ("replica sets", 3)):
                moved, necessary = moved_and_necessary(*pair, "another", replicas)
                assert necessary
                found[what].append(moved / necessary)
        return found

    for what, ratios in benchmark.pedantic(measure, rounds=1).items():
        assert set(ratios) == {1.0}
        figure(benchmark, f"moved / necessary of {what}", ratios, "")

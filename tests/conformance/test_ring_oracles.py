"""Goal: every profile agrees, point by point and key by key, with programs that are not Ringhold.

Method: random pools are placed by the package uhashring, where it has the profile, and by the
formulas of the originals written down here with hashlib, xxhash, bisect and floats rounded by
struct. The golden vectors, which the C tests read too, are the third witness.
"""

from __future__ import annotations

import bisect
import functools
import hashlib
import itertools
import json
import random
import struct
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import uhashring
import xxhash

from ringhold.core import Ring
from ringhold.types import Node

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "ring.json").read_text("utf-8"))
PROFILES = [
    "ringhold",
    "ketama",
    "libmemcached",
    "libmemcached-unweighted",
    "libmemcached-spy",
    "twemproxy",
    "uhashring",
    "uhashring-ketama",
]
POOLS = 1000
KEYS = [f"key:{i}" for i in range(200)]

Pool = list[tuple[str, int]]


def md5_words(text: str) -> tuple[int, ...]:
    return struct.unpack("<4I", hashlib.md5(text.encode()).digest())


def f32(number: float) -> float:
    return float(struct.unpack("f", struct.pack("f", number))[0])


def address(name: str, profile: str) -> str:
    """What libmemcached hashes for the server "host:port"."""
    host, _, port = name.partition(":")
    if profile == "libmemcached-spy":
        return f"/{host}:{port or 11211}"
    return host if port in ("", "11211") else name


def digests_of(profile: str, weight: int, total: int, nodes: int) -> int:
    """How many MD5 digests, of four points each, a server gets. Products and quotients of two
    floats are exact in a double before they are rounded, so rounding each is float arithmetic."""
    share = f32(f32(weight) / f32(total))
    if profile == "ketama":
        return int(f32(share * 40.0 * nodes))
    per_server = f32(f32(f32(share * 160) / 4) * f32(nodes))
    if profile == "twemproxy":
        return int(f32(per_server + 1e-10))
    return int(f32(per_server + f32(1e-10)))


def points_of(profile: str, pool: Pool) -> list[tuple[int, Any, str]]:
    """(value, what breaks ties, name), sorted."""
    points: list[tuple[int, Any, str]] = []
    total = sum(weight for _, weight in pool)
    for number, (name, weight) in enumerate(pool):
        tie = number if profile.startswith("libmemcached") else name.encode()
        text = address(name, profile) if profile.startswith("libmemcached") else name
        if profile == "ringhold":
            data = name.encode() + b"#"
            values = [
                xxhash.xxh3_64_intdigest(data + struct.pack("<I", i)) for i in range(160 * weight)
            ]
        elif profile == "libmemcached-unweighted":
            values = [md5_words(f"{text}-{i}")[0] for i in range(100)]
        else:
            count = digests_of(profile, weight, total, len(pool))
            values = [word for k in range(count) for word in md5_words(f"{text}-{k}")]
        points += [(value, tie, name) for value in values]
    return sorted(points)


def hash_of(profile: str, key: str) -> int:
    if profile == "ringhold":
        return int(xxhash.xxh3_64_intdigest(key.encode()))
    return md5_words(key)[0]


def formula(profile: str, pool: Pool) -> Callable[[Sequence[str]], list[str]]:
    points = points_of(profile, pool)
    values = [value for value, _, _ in points]
    hashed = functools.partial(hash_of, profile)

    def owners(keys: Sequence[str]) -> list[str]:
        return [points[bisect.bisect_left(values, hashed(k)) % len(points)][2] for k in keys]

    return owners


def package(profile: str, pool: Pool) -> Callable[[Sequence[str]], list[str]]:
    hash_fn = "ketama" if profile == "uhashring-ketama" else None
    peer = uhashring.HashRing(dict(pool), hash_fn=hash_fn)
    return lambda keys: [peer.get_node(key) for key in keys]


def oracle(profile: str, pool: Pool) -> Callable[[Sequence[str]], list[str]]:
    return (package if profile.startswith("uhashring") else formula)(profile, pool)


def pool_of(rng: random.Random, largest: int, heaviest: int) -> Pool:
    nodes = {
        f"10.{rng.randrange(256)}.{rng.randrange(256)}.1:{rng.choice([11211, 80, 6379])}": (
            rng.randint(1, heaviest)
        )
        for _ in range(rng.randint(1, largest))
    }
    return list(nodes.items())


def check_pools(profile: str, pools: int) -> None:
    rng = random.Random(profile)
    for i in range(pools):
        pool = pool_of(rng, 8 if i % 10 else 30, 1 if i % 2 else 5)
        ring = Ring(dict(pool), profile=profile)
        keys = [f"{i}/{key}" for key in KEYS]
        expected = oracle(profile, pool)(keys)
        assert [ring.names[n] for n in ring.lookup_many(keys)] == expected, pool
        assert [ring[key] for key in keys[:5]] == expected[:5]


@pytest.mark.parametrize("profile", PROFILES)
def test_random_pools(profile: str) -> None:
    check_pools(profile, POOLS // len(PROFILES))


@pytest.mark.long
@pytest.mark.parametrize("profile", PROFILES)
def test_many_random_pools(profile: str) -> None:
    check_pools(profile, POOLS)


def check_keys(profile: str, pools: int, count: int) -> None:
    rng = random.Random(profile)
    keys = [f"{rng.getrandbits(64):x}" for _ in range(count)]
    for i in range(pools):
        pool = pool_of(rng, 30, 1 if i % 2 else 5)
        ring = Ring(dict(pool), profile=profile)
        names = ring.names
        assert [names[n] for n in ring.lookup_many(keys)] == oracle(profile, pool)(keys), pool


@pytest.mark.parametrize("profile", PROFILES)
def test_many_keys(profile: str) -> None:
    check_keys(profile, 1, 10**5)


@pytest.mark.long
@pytest.mark.parametrize("profile", PROFILES)
def test_many_keys_in_many_pools(profile: str) -> None:
    check_keys(profile, 10, 10**5)


@pytest.mark.parametrize("profile", PROFILES)
def test_points(profile: str) -> None:
    pool = pool_of(random.Random(profile), 30, 5)
    points = Ring(dict(pool), profile=profile).points()
    if profile.startswith("uhashring"):
        hash_fn = "ketama" if profile == "uhashring-ketama" else None
        expected = sorted(uhashring.HashRing(dict(pool), hash_fn=hash_fn).get_points())
    else:
        expected = [(value, name) for value, _, name in points_of(profile, pool)]
    assert points == expected


@pytest.mark.parametrize("profile", ["ketama", "libmemcached", "twemproxy"])
def test_counts_of_equal_servers_where_floats_round_down(profile: str) -> None:
    short = 0
    for n in (24, 25, 26, 47, 50, 55, 61, 94, 100, 107, 122, 237, 244):
        ring = Ring([f"10.0.0.{i}:80" for i in range(n)], profile=profile)
        expected = 4 * digests_of(profile, 1, n, n)
        assert len(ring.points()) == n * expected
        short += expected == 156
    assert short >= 4


@pytest.mark.parametrize(
    "pool", GOLDEN["pools"], ids=[f"{i}-{p['profile']}" for i, p in enumerate(GOLDEN["pools"])]
)
def test_golden_vectors(pool: dict[str, Any]) -> None:
    nodes = [Node(*node) for node in pool["nodes"]]
    ring = Ring(nodes, vnodes=pool["vnodes"], profile=pool["profile"])
    names = ring.names
    points = ring.points()
    assert len(points) == pool["points"]
    assert points[:3] == [(value, names[n]) for value, n in pool["first_points"]]
    owners = [name for _, name in points]
    assert [owners.count(name) for name in names] == pool["counts"]
    loads = dict(zip(names, pool["loads"], strict=True))
    for vector in pool["keys"]:
        key = bytes.fromhex(vector["key"])
        told = ring.explain(key)
        assert (told.hash, told.node) == (vector["hash"], names[vector["owner"]])
        assert told.point == points[vector["point"]][0]
        expected = tuple(names[n] for n in vector["replicas"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert ring.replicas(key, len(expected)) == expected
        bounded = ring.lookup_bounded(key, loads, bound=GOLDEN["bound"])
        assert bounded == names[vector["bounded"]]
    for h, owner in pool["hashes"]:
        assert ring.lookup_hash(h) == names[owner]
    assert ring.digest().hex() == pool["digest"]
    assert ring.dumps().hex() == pool["dumps"]
    assert Ring.loads(bytes.fromhex(pool["dumps"])) == ring


def test_the_formulas_disagree_where_the_originals_do() -> None:
    """Otherwise agreeing with one would say nothing about another."""
    pools = [[(f"10.0.0.{i}:11211", 1) for i in range(n)] for n in (25, 61)]
    placed = [[oracle(profile, pool)(KEYS) for pool in pools] for profile in PROFILES]
    for one, other in itertools.combinations(range(len(PROFILES)), 2):
        assert placed[one] != placed[other], (PROFILES[one], PROFILES[other])

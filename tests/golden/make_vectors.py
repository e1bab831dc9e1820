"""Golden vectors of rings, computed from first principles with hashlib and xxhash alone.

Nothing of Ringhold is imported: this is the definition of every profile a second time, as plain
as it gets. `python tests/golden/make_vectors.py` writes `ring.json`, for whoever reads JSON, and
the same as lines in `ring.txt`, for the C tests, which bring no parser:

    pool PROFILE VNODES                    starts a pool; PROFILE is the number of the C interface
    node NAME WEIGHT ZONE                  in the order of the list; bytes are hex, "-" is no zone
    points COUNT DIGEST                    XXH3-128 of all points, each as 16 bytes big-endian
                                           followed by the number of its owner, 4 little-endian
    count POINTS                           of each node
    load LOAD                              of each node, for lookup_bounded
    key KEY POSITION POINT OWNER BOUNDED REPLICAS
                                           all nodes with points in order of replicas, by commas;
                                           BOUNDED is the node lookup_bounded gives for 1.25
    hash HASH OWNER                        hashes at and beside points
    digest DIGEST                          what rh_ring_digest gives
    dumps BYTES                            what rh_ring_dumps gives
    equal PROFILE NODES POINTS             points of each of so many nodes of equal weight

Positions are 32 hexadecimal digits on a circle of 128 bits, of which 32- and 64-bit hashes are
the upper part.
"""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from dataclasses import dataclass, field
from hashlib import md5
from itertools import pairwise
from pathlib import Path
from typing import Any

import xxhash

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
BITS = dict.fromkeys(PROFILES, 32) | {"ringhold": 64, "uhashring": 128}
BOUND = 1.25

# Two names with a point in common, found by trying n0, n1, …; the larger comes first.
COLLIDING = {
    "ketama": ("n975", "n81"),
    "libmemcached": ("n975", "n81"),
    "libmemcached-unweighted": ("n561", "n283"),
    "libmemcached-spy": ("n160", "n135"),
    "twemproxy": ("n975", "n81"),
    "uhashring-ketama": ("n975", "n81"),
}

Point = tuple[int, int]  # a position on the circle of 128 bits and the number of the owner


@dataclass
class Pool:
    profile: str
    nodes: list[tuple[str, float, str | None]]
    vnodes: int = 160
    points: list[Point] = field(init=False)

    def __post_init__(self) -> None:
        self.points = sorted(
            ((value << (128 - BITS[self.profile]), i) for i in range(len(self.nodes))
             for value in node_points(self, i)),
            key=lambda point: (point[0], self.tie(point[1])),
        )  # fmt: skip

    def tie(self, i: int) -> Any:
        return i if self.profile.startswith("libmemcached") else self.nodes[i][0].encode()

    def counts(self) -> list[int]:
        owned = Counter(owner for _, owner in self.points)
        return [owned[i] for i in range(len(self.nodes))]


def f32(value: float) -> float:
    """`value` rounded to a float of C."""
    rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return rounded


def digests(profile: str, weight: int, weights: list[int]) -> int:
    """How many MD5s a node has, four points in each."""
    alive = [w for w in weights if w > 0]
    if profile == "uhashring-ketama":
        return 40 * len(weights) * weight // sum(weights)
    share, nodes = f32(f32(weight) / f32(sum(alive))), f32(len(alive))
    if profile == "ketama":
        return math.floor(f32(share * 40.0 * nodes))
    product = f32(f32(f32(share * 160) / 4) * nodes)
    tiny = 0.0000000001 if profile == "twemproxy" else f32(0.0000000001)
    return math.floor(f32(product + tiny))


def base_string(profile: str, name: str) -> str:
    if not profile.startswith("libmemcached"):
        return name
    host, _, port = name.rpartition(":")
    if not port.isdigit() or (":" in host and not host.endswith("]")):
        host, port = name, "11211"
    if profile == "libmemcached-spy":
        return f"/{host}:{port}"
    return host if port == "11211" else f"{host}:{port}"


def node_points(pool: Pool, i: int) -> list[int]:
    """The points of node `i` as values of as many bits as the profile has."""
    name, weight, _ = pool.nodes[i]
    if weight == 0:
        return []
    if pool.profile == "ringhold":
        return [
            xxhash.xxh3_64_intdigest(name.encode() + b"#" + k.to_bytes(4, "little"))
            for k in range(max(1, round(pool.vnodes * weight)))
        ]
    base = base_string(pool.profile, name)
    if pool.profile == "uhashring":
        return [
            int(md5(f"{base}-{k}".encode()).hexdigest(), 16)
            for k in range(pool.vnodes * int(weight))
        ]
    if pool.profile == "libmemcached-unweighted":
        return [md5_words(f"{base}-{k}".encode())[0] for k in range(100)]
    count = digests(pool.profile, int(weight), [int(w) for _, w, _ in pool.nodes])
    return [word for k in range(count) for word in md5_words(f"{base}-{k}".encode())]


def md5_words(data: bytes) -> tuple[int, ...]:
    return struct.unpack("<4I", md5(data).digest())


def hash_key(profile: str, key: bytes) -> int:
    if profile == "ringhold":
        return xxhash.xxh3_64_intdigest(key)
    if profile == "uhashring":
        return int(md5(key).hexdigest(), 16)
    return md5_words(key)[0]


def find_point(pool: Pool, hashed: int) -> int:
    position = hashed << (128 - BITS[pool.profile])
    beyond = pool.profile.startswith("uhashring")
    for index, (point, _) in enumerate(pool.points):
        if point > position or (point == position and not beyond):
            return index
    return 0


def walk(pool: Pool, start: int) -> list[int]:
    return list(dict.fromkeys(owner for _, owner in pool.points[start:] + pool.points[:start]))


def replicas(pool: Pool, start: int) -> list[int]:
    """Each time the first node of the walk not taken yet whose zone was used least."""
    left, chosen = walk(pool, start), list[int]()
    zones = [zone if zone is not None else (i,) for i, (_, _, zone) in enumerate(pool.nodes)]
    while left:
        used = [zones[i] for i in chosen]
        chosen.append(min(left, key=lambda i: used.count(zones[i])))
        left.remove(chosen[-1])
    return chosen


def bounded(pool: Pool, start: int, loads: list[int]) -> int:
    total, weights, counts = float(sum(loads)), 0.0, pool.counts()
    for i in by_name(pool):
        weights += pool.nodes[i][1] if counts[i] else 0
    for i in walk(pool, start):
        if loads[i] < math.ceil(BOUND * (total + 1) * pool.nodes[i][1] / weights):
            return i
    raise AssertionError("some node has room")


def text(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


def name_and_zone(name: str, zone: str | None) -> bytes:
    return text(name.encode()) + (b"\0" if zone is None else b"\1" + text(zone.encode()))


def by_name(pool: Pool) -> list[int]:
    return sorted(range(len(pool.nodes)), key=lambda i: pool.nodes[i][0].encode())


def digest(pool: Pool) -> bytes:
    counts = pool.counts()
    usable = [i for i in by_name(pool) if counts[i]]
    data = b"RHRP" + bytes([PROFILES.index(pool.profile)])
    for i in usable:
        data += name_and_zone(pool.nodes[i][0], pool.nodes[i][2]) + struct.pack("<I", counts[i])
    if pool.profile.startswith("libmemcached"):
        for k in range(1, len(pool.points)):
            (before, a), (point, b) = pool.points[k - 1 : k + 1]
            if before == point:
                data += struct.pack("<3I", k, usable.index(a), usable.index(b))
    return xxhash.xxh3_128_digest(data)


def dumps(pool: Pool) -> bytes:
    order = list(range(len(pool.nodes)))
    if not pool.profile.startswith("libmemcached"):
        order = by_name(pool)
    data = b"RHRG\1" + struct.pack(
        "<BII", PROFILES.index(pool.profile), pool.vnodes, len(pool.nodes)
    )
    for i in order:
        name, weight, zone = pool.nodes[i]
        data += name_and_zone(name, zone) + struct.pack("<d", weight)
    return data + xxhash.xxh3_128_digest(data)


def pools() -> list[Pool]:
    made = []
    fixture = [600, 300, 200, 350, 1000, 800, 950, 100]  # libmemcached's own test
    for profile in PROFILES:
        made += [
            Pool(profile, [("only", 1, None)]),
            Pool(profile, [(f"10.0.0.{i}:11211", 1, None) for i in (3, 1, 2)]),
            Pool(profile, [(f"10.0.1.{i + 1}:11211", w, None) for i, w in enumerate(
                fixture if profile not in ("ringhold", "uhashring") else (6, 3, 2, 4, 1)
            )]),
            Pool(profile, [
                ("b.example", 2, "east"), ("a.example:80", 1, "west"), ("[::1]:11211", 3, "east"),
                ("gone:11211", 0, "north"), ("ü-1:11212", 1, None), ("::1", 4, "west"),
                ("b.example:11211", 1, "east"),
            ]),
            Pool(profile, [(f"cache{i}", 1, f"zone{i % 3}") for i in range(25)]),
        ]  # fmt: skip
        if profile in COLLIDING:
            made.append(Pool(profile, [(name, 1, None) for name in COLLIDING[profile]]))
            assert len({point for point, _ in made[-1].points}) < len(made[-1].points)
    made.append(Pool("ringhold", [("x", 0.5, None), ("y", 2.25, "z"), ("z", 1e-9, None)], 10))
    made.append(Pool("uhashring", [("x", 2, None), ("y", 1, None)], 7))
    return made


def keys() -> list[bytes]:
    return [b"", b"VDEAAAAA", "schlüssel".encode(), b"x" * 300] + [b"key-%d" % i for i in range(12)]


def hashes(pool: Pool) -> list[int]:
    """At and beside a few points, equal ones among them, and the ends of the circle."""
    if BITS[pool.profile] > 64:
        return []
    shift = 128 - BITS[pool.profile]
    values = [point >> shift for point, _ in pool.points]
    chosen = [*values[:2], *values[-2:]]
    chosen += [a for a, b in pairwise(values) if a == b][:3]
    top = 1 << BITS[pool.profile]
    return sorted({(value + step) % top for value in chosen for step in (-1, 0, 1)} | {0, top - 1})


def describe(pool: Pool) -> dict[str, Any]:
    loads = [(7 * i + 3) % 5 for i in range(len(pool.nodes))]
    packed = b"".join(point.to_bytes(16, "big") + struct.pack("<I", i) for point, i in pool.points)
    rows = []
    for key in keys():
        hashed = hash_key(pool.profile, key)
        start = find_point(pool, hashed)
        rows.append({
            "key": key.hex(), "hash": hashed, "point": start, "owner": pool.points[start][1],
            "bounded": bounded(pool, start, loads), "replicas": replicas(pool, start),
        })  # fmt: skip
    return {
        "profile": pool.profile, "vnodes": pool.vnodes,
        "nodes": [list(node) for node in pool.nodes],
        "points": len(pool.points), "points_digest": xxhash.xxh3_128_hexdigest(packed),
        "first_points": [[p >> (128 - BITS[pool.profile]), i] for p, i in pool.points[:3]],
        "counts": pool.counts(), "loads": loads, "keys": rows,
        "hashes": [[h, pool.points[find_point(pool, h)][1]] for h in hashes(pool)],
        "digest": digest(pool).hex(), "dumps": dumps(pool).hex(),
    }  # fmt: skip


def equal_weights() -> list[tuple[str, int, int]]:
    """Where floats give 39 of 40 digests, and where wider arithmetic would (29, 49)."""
    sizes = (24, 25, 26, 29, 49, 50, 61, 100, 122)
    shared = ("ketama", "libmemcached", "libmemcached-spy", "twemproxy", "uhashring-ketama")
    return [(profile, n, 4 * digests(profile, 1, [1] * n)) for profile in shared for n in sizes]


def vectors() -> dict[str, Any]:
    return {
        "bound": BOUND,
        "pools": [describe(pool) for pool in pools()],
        "equal": [list(row) for row in equal_weights()],
    }


def lines(made: dict[str, Any]) -> list[str]:
    out = []
    for pool in made["pools"]:
        shift = 128 - BITS[pool["profile"]]
        out.append(f"pool {PROFILES.index(pool['profile'])} {pool['vnodes']}")
        for name, weight, zone in pool["nodes"]:
            zone_hex = "-" if zone is None else zone.encode().hex()
            out.append(f"node {name.encode().hex()} {weight!r} {zone_hex}")
        out.append(f"points {pool['points']} {pool['points_digest']}")
        out += [f"count {count}" for count in pool["counts"]]
        out += [f"load {load}" for load in pool["loads"]]
        for row in pool["keys"]:
            out.append(
                f"key {row['key'] or '-'} {row['hash'] << shift:032x} {row['point']} {row['owner']}"
                f" {row['bounded']} {','.join(map(str, row['replicas']))}"
            )
        out += [f"hash {hashed} {owner}" for hashed, owner in pool["hashes"]]
        out += [f"digest {pool['digest']}", f"dumps {pool['dumps']}"]
    return out + [f"equal {PROFILES.index(p)} {n} {points}" for p, n, points in made["equal"]]


def files() -> dict[str, str]:
    """The golden files by name, as they must be."""
    made = vectors()
    return {
        "ring.json": json.dumps(made, ensure_ascii=False).replace('{"', '\n{"') + "\n",
        "ring.txt": "\n".join(lines(made)) + "\n",
    }


if __name__ == "__main__":
    for name, content in files().items():
        Path(__file__).with_name(name).write_text(content, encoding="utf-8")

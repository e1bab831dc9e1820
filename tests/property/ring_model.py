"""A ring too plain to be wrong: a dict of nodes, and every answer afresh from all points."""

from math import ceil

import xxhash
from hypothesis import strategies as st

from ringhold.core import Ring
from ringhold.types import Node


class Model:
    def __init__(self, vnodes, nodes=()):
        self.vnodes, self.nodes = vnodes, dict(nodes)

    def walk(self, hashed, exclude=()):
        points = []
        for name, (weight, _) in self.nodes.items():
            count = max(1, round(self.vnodes * weight)) if weight and name not in exclude else 0
            for i in range(count):
                point = xxhash.xxh3_64_intdigest(name + b"#" + i.to_bytes(4, "little"))
                points.append(((point - hashed) % 2**64, name))
        return list(dict.fromkeys(name for _, name in sorted(points)))

    def replicas(self, hashed, n, exclude=()):
        left, chosen = self.walk(hashed, exclude), []
        zone = {name: name if z is None else (z,) for name, (_, z) in self.nodes.items()}
        while len(chosen) < n:
            used = [zone[name] for name in chosen]
            chosen.append(min(left, key=lambda name: used.count(zone[name])))
            left.remove(chosen[-1])
        return chosen, len({zone[name] for name in chosen})

    def owner(self, hashed):
        return next(iter(self.walk(hashed)), None)

    def bounded(self, hashed, loads, bound):
        """In floats, summed in order of names, since rounding may decide who has room."""
        total = sum(float(loads.get(name, 0)) for name in sorted(self.nodes))
        weights = sum(self.nodes[name][0] for name in sorted(self.nodes))
        for name in self.walk(hashed):
            if loads.get(name, 0) < ceil(bound * (total + 1) * self.nodes[name][0] / weights):
                return name
        return self.owner(hashed)

    def ring(self):
        nodes = [
            Node(text(name), weight, text(zone)) for name, (weight, zone) in self.nodes.items()
        ]
        return Ring(nodes, vnodes=self.vnodes)


NAMES = [b"a", b"b", b"c", b"node-1", b"node-11", b"\xff\x00", b"", "ä".encode(), b"h", b"i"]
names = st.sampled_from(NAMES)
weights = st.sampled_from([0.0, 0.01, 0.5, 1.0, 1.0, 1.5, 2.5, 7])
zones = st.sampled_from([None, None, b"", b"x", b"y", b"z"])
pools = st.dictionaries(names, st.tuples(weights, zones), max_size=10)
changes = st.lists(
    st.tuples(st.sampled_from(["add", "add", "remove", "reweight"]), names, weights, zones),
    max_size=25,
)
hashes = st.lists(st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 2**64 - 1])), max_size=4)


def text(name):
    return None if name is None else name.decode("utf-8", "surrogateescape")

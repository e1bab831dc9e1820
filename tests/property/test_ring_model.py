"""The C ring equals a model that is too plain to be wrong.

Method: hypothesis makes nodes, changes and queries; the model keeps a dict of nodes and makes
every answer afresh from all points, with the Python package xxhash as its hash.
"""

import warnings

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from ringhold.core import Ring
from ringhold.errors import EmptyRing, InvalidInput, NotEnoughNodes
from ringhold.types import Node, PlacementWarning


class Model:
    def __init__(self, vnodes):
        self.vnodes, self.nodes = vnodes, {}

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


NAMES = [b"a", b"b", b"c", b"node-1", b"node-11", b"\xff\x00", b"", "ä".encode(), b"h", b"i"]
names = st.sampled_from(NAMES)
weights = st.sampled_from([0.0, 0.01, 0.5, 1.0, 1.0, 1.5, 2.5, 7])
zones = st.sampled_from([None, None, b"", b"x", b"y", b"z"])
changes = st.lists(
    st.tuples(st.sampled_from(["add", "add", "remove"]), names, weights, zones), max_size=25
)
hashes = st.lists(st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 2**64 - 1])), max_size=4)


def text(name):
    return None if name is None else name.decode("utf-8", "surrogateescape")


def apply(ring, model, change):
    kind, name, weight, zone = change
    if kind == "remove" and name not in model.nodes:
        with pytest.raises(KeyError):
            ring.remove(name)
    elif kind == "remove":
        ring.remove(text(name))
        del model.nodes[name]
    elif name in model.nodes:
        with pytest.raises(InvalidInput):
            ring.add(name, weight, zone)
    else:
        ring.add(text(name), weight, zone)
        model.nodes[name] = (weight, zone)


def check_owners(ring, model, queries):
    assert set(ring) == {text(name) for name in model.nodes}
    assert ring.weights == {text(name): weight for name, (weight, _) in model.nodes.items()}
    assert ring.zones == {text(name): text(zone) for name, (_, zone) in model.nodes.items()}
    for hashed in queries:
        walk = model.walk(hashed)
        if walk:
            assert ring.lookup_hash(hashed) == text(walk[0])
        else:
            with pytest.raises(EmptyRing):
                ring.lookup_hash(hashed)


@given(st.integers(1, 12), changes, hashes)
def test_a_changed_ring_equals_the_model_and_a_ring_made_afresh(vnodes, changes, queries):
    ring, model = Ring(vnodes=vnodes), Model(vnodes)
    for change in changes:
        apply(ring, model, change)
        check_owners(ring, model, queries)
    afresh = Ring([Node(text(n), w, text(z)) for n, (w, z) in model.nodes.items()], vnodes=vnodes)
    assert afresh == ring
    assert afresh.points() == ring.points()


@settings(max_examples=200)
@given(
    st.dictionaries(names, st.tuples(weights, zones), max_size=10),
    st.binary(max_size=20),
    st.sets(names, max_size=4),
)
def test_replicas_equal_the_model_for_every_count(nodes, key, exclude):
    model = Model(5)
    model.nodes = nodes
    ring = Ring([Node(text(n), w, text(z)) for n, (w, z) in nodes.items()], vnodes=5)
    hashed = xxhash.xxh3_64_intdigest(key)
    for without in ((), exclude):
        usable = len(model.walk(hashed, without))
        for n in range(usable + 1):
            expected, spread = model.replicas(hashed, n, without)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                assert ring.replicas(key, n, exclude=without) == tuple(map(text, expected))
            assert [w.category for w in caught] == [PlacementWarning] * (spread < n)
        with pytest.raises(NotEnoughNodes):
            ring.replicas(key, usable + 1, exclude=without)


@given(st.lists(st.one_of(st.binary(max_size=300), st.text(max_size=40)), max_size=80))
def test_any_keys_in_a_batch_and_alone(keys):
    ring, model = Ring(["a", "b", "c"], vnodes=9), Model(9)
    model.nodes = dict.fromkeys([b"a", b"b", b"c"], (1.0, None))
    encoded = [k if isinstance(k, bytes) else k.encode("utf-8", "surrogateescape") for k in keys]
    expected = [text(model.walk(xxhash.xxh3_64_intdigest(key))[0]) for key in encoded]
    assert [ring[key] for key in keys] == expected
    assert [ring.names[i] for i in ring.lookup_many(keys)] == expected

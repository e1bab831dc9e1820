"""Goal: bounded lookups put no node above its share, and take exactly the numbers they say.

Method: the rule is computed here from the walk that `replicas` gives, in fractions.
"""

import math
import types
from fractions import Fraction

import pytest

from ringhold.core import Ring
from ringhold.errors import EmptyRing, InvalidInput
from ringhold.types import Node

KEYS = [f"user/{i}" for i in range(300)]


def bounded(ring, key, loads, bound):
    weights = {name: Fraction(w) for name, w in ring.weights.items() if w}
    total = sum(Fraction(loads.get(name, 0)) for name in ring)
    for name in ring.replicas(key, len(weights)):
        share = Fraction(bound) * (total + 1) * weights[name] / sum(weights.values())
        if loads.get(name, 0) < math.ceil(share):
            return name
    raise AssertionError


def test_the_walk_stops_at_the_first_with_room():
    ring = Ring({"a": 1, "b": 2, "c": 0.5, "drained": 0})
    for i, key in enumerate(KEYS):
        loads = {"a": i % 7, "b": 2.5 * (i % 11), "drained": i % 3, "unknown": 10**9}
        for bound in (1, 1.25, 2, 10):
            assert ring.lookup_bounded(key, loads, bound=bound) == bounded(ring, key, loads, bound)


def test_no_node_exceeds_its_share_when_every_answer_counts():
    ring = Ring(f"n{i}" for i in range(10))
    keys = [f"key/{i}" for i in range(5000)]
    most = math.ceil(1.05 * len(keys) / len(ring))
    unbounded = ring.lookup_many(keys)
    assert max(map(unbounded.count, range(10))) > most
    loads = {}
    for key in keys:
        name = ring.lookup_bounded(key, loads, bound=1.05)
        loads[name] = loads.get(name, 0) + 1
    assert max(loads.values()) <= most


def test_without_loads_the_owner_has_room():
    ring = Ring(["a", "b", "c"])
    for key in KEYS:
        assert ring.lookup_bounded(key, {}) == ring[key]
        assert ring.lookup_bounded(key, {"a": 5, "b": 5, "c": 5}, bound=math.inf) == ring[key]


def test_names_are_text_or_bytes_and_loads_any_mapping():
    ring = Ring(["ä", "b"])
    key = next(key for key in KEYS if ring[key] == "ä")
    for loads in ({"ä": 9}, {"ä".encode(): 9.0}, types.MappingProxyType({"ä": 9})):
        assert ring.lookup_bounded(key, loads) == "b"


def test_removed_nodes_do_not_count():
    ring = Ring(["a", "b", "c"])
    ring.remove("c")
    for key in KEYS:
        expected = Ring(["a", "b"]).lookup_bounded(key, {"a": 3, "b": 2}, bound=1)
        assert ring.lookup_bounded(key, {"a": 3, "b": 2, "c": 10**6}, bound=1) == expected


@pytest.mark.parametrize("load", [0, 1e17, 2**53, 1e308, 5e-324])
def test_loads_of_any_size_leave_room_somewhere(load):
    ring = Ring({"a": 1, "b": 1, "c": 3})
    for key in KEYS[:20]:
        assert ring.lookup_bounded(key, dict.fromkeys("abc", load), bound=1) in "abc"


@pytest.mark.parametrize("bound", [0.99, 0, -1, math.nan, -math.inf])
def test_bounds_below_one_are_value_errors(bound):
    with pytest.raises(ValueError, match="bound"):
        Ring(["a"]).lookup_bounded("key", {}, bound=bound)


@pytest.mark.parametrize("bound", ["2", None, 1j, [2]])
def test_bounds_that_are_no_numbers_are_type_errors(bound):
    with pytest.raises(TypeError):
        Ring(["a"]).lookup_bounded("key", {}, bound=bound)


@pytest.mark.parametrize("load", [-1, -0.5, math.nan, math.inf, 10**400])
def test_impossible_loads_are_value_errors(load):
    for name in ("a", "unknown"):
        with pytest.raises(ValueError, match=f"load of '{name}'"):
            Ring(["a"]).lookup_bounded("key", {name: load})


@pytest.mark.parametrize("loads", [None, [("a", 1)], "a", 5, {5: 1}, {"a": "1"}, {"a": None}])
def test_loads_of_wrong_types(loads):
    with pytest.raises(TypeError):
        Ring(["a"]).lookup_bounded("key", loads)


def test_a_name_given_twice_is_a_value_error():
    with pytest.raises(InvalidInput, match="twice"):
        Ring(["a"]).lookup_bounded("key", {"a": 1, b"a": 2})


def test_an_empty_ring_and_wrong_keys():
    for ring in (Ring(), Ring([Node("a", 0)])):
        with pytest.raises(EmptyRing):
            ring.lookup_bounded("key", {})
    with pytest.raises(TypeError):
        Ring(["a"]).lookup_bounded(7, {})

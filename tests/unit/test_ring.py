"""The ring's promises one by one; tests/property/test_ring_model.py holds it against a model.

Method: the oracle for points and owners is built here from the Python package xxhash and bisect.
"""

import array
import bisect
import copy
import ctypes
import doctest
import itertools
import pickle
import sys
import warnings

import pytest
import xxhash

from ringhold.core import Layout, Ring, _ring, ring_results
from ringhold.errors import EmptyRing, InvalidInput, NotEnoughNodes
from ringhold.types import Node, PlacementWarning

KEYS = [f"user/{i}" for i in range(500)]


def hash_of(key):
    return xxhash.xxh3_64_intdigest(key.encode("utf-8", "surrogateescape"))


def points_of(weights, vnodes=160):
    points = []
    for name, weight in weights.items():
        count = max(1, round(vnodes * weight)) if weight else 0
        encoded = name.encode("utf-8", "surrogateescape")
        points += [
            (xxhash.xxh3_64_intdigest(encoded + b"#" + i.to_bytes(4, "little")), encoded, name)
            for i in range(count)
        ]
    return sorted(points)


def owner_of(points, key):
    return points[bisect.bisect_left(points, (hash_of(key),)) % len(points)][2]


def zoned(**zones):
    return Ring([Node(name, 1.0, zone) for zone, names in zones.items() for name in names.split()])


# Placement


@pytest.mark.parametrize("vnodes", [1, 7, 128, 160])
@pytest.mark.parametrize(
    "weights",
    [
        {"a": 1.0},
        {"a": 1.0, "b": 1.0, "c": 1.0},
        {"10.0.0.1:80": 0.5, "10.0.0.2:80": 2.25, "drained": 0.0, "tiny": 1e-9},
        {"zürich": 1.0, "\udcff": 3.0, "nul\0inside": 1.0},
    ],
)
def test_points_and_owners_follow_the_definition(weights, vnodes):
    ring = Ring(weights, vnodes=vnodes)
    points = points_of(weights, vnodes)
    assert ring.points() == [(point, name) for point, _, name in points]
    for key in KEYS:
        assert ring[key] == owner_of(points, key)


def test_the_ways_to_give_nodes_are_the_same():
    ring = Ring(["a", "b"])
    assert ring == Ring({"a": 1, "b": 1.0}) == Ring([Node("a"), Node("b")]) == Ring([b"a", "b"])
    assert ring == Ring(name for name in ("b", "a"))


def test_the_ways_to_look_up_are_the_same():
    ring = Ring(["a", "b", "c"])
    many = ring.lookup_many(KEYS)
    for key, index in zip(KEYS, many, strict=True):
        assert ring[key] == ring.lookup(key) == ring.lookup_hash(hash_of(key))
        assert ring[key] == ring[key.encode()] == ring.names[index]
        assert ring.replicas(key, 1) == (ring[key],)


@pytest.mark.parametrize("key", ["", "ä", "\udcfe", "nul\0", "x" * 65536, b"", b"\xff\0\xfe"])
def test_any_text_and_any_bytes_are_keys(key):
    ring = Ring(["a", "b", "c"])
    if isinstance(key, bytes):
        other = key.decode("utf-8", "surrogateescape")
    else:
        other = key.encode("utf-8", "surrogateescape")
    assert ring[key] == ring[other] == ring.names[ring.lookup_many([key])[0]]
    assert ring.replicas(key, 3) == ring.replicas(other, 3)


@pytest.mark.parametrize("name", ["n" * 65536, "nul\0\0", "ä", b"\xff\xfe", b"\0"])
def test_any_text_and_any_bytes_are_names(name):
    text = name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name
    ring = Ring([name])
    assert ring["key"] == text
    assert ring.names == (text,)
    assert name in ring
    assert text.encode("utf-8", "surrogateescape") in ring
    ring.remove(name)
    assert len(ring) == 0


def test_a_wrapped_hash_belongs_to_the_first_point():
    ring = Ring(["a", "b", "c"])
    points = ring.points()
    assert ring.lookup_hash(2**64 - 1) == points[0][1]
    assert ring.lookup_hash(0) == points[0][1]
    for (point, name), (_, following) in itertools.pairwise(points):
        assert ring.lookup_hash(point) == name
        assert ring.lookup_hash(point + 1) == following


def test_changes_move_keys_only_to_and_from_their_node():
    ring = Ring(f"n{i}" for i in range(20))
    before = {key: ring[key] for key in KEYS}
    ring.add("new", 2.0)
    assert {ring[key] for key in KEYS if ring[key] != before[key]} == {"new"}
    ring.remove("new")
    assert {key: ring[key] for key in KEYS} == before
    ring.remove("n3")
    assert all(before[key] in (ring[key], "n3") for key in KEYS)


# Names and indexes


def test_indexes_are_for_ever():
    ring = Ring(["a", "b"])
    ring.add("c")
    ring.remove("a")
    assert ring.names == ("a", "b", "c")
    assert list(ring) == ["b", "c"]
    assert "a" not in ring
    ring.add("d")
    ring.add("a", 3.0, "z")
    assert ring.names == ("a", "b", "c", "d")
    assert list(ring) == ["a", "b", "c", "d"]
    assert ring.weights == {"a": 3.0, "b": 1.0, "c": 1.0, "d": 1.0}
    assert ring.zones == {"a": "z", "b": None, "c": None, "d": None}
    assert ring == Ring([Node("a", 3.0, "z"), "b", "c", "d"])


def test_text_and_bytes_are_one_name():
    ring = Ring(["ä"])
    with pytest.raises(InvalidInput):
        ring.add("ä".encode())
    ring.remove("ä".encode())
    with pytest.raises(KeyError):
        ring.remove("ä")


def test_membership_of_what_is_no_name_is_false():
    assert 5 not in Ring(["a"])
    assert None not in Ring(["a"])
    assert "\ud800" not in Ring(["a"])


def test_a_new_weight_moves_keys_only_to_or_from_the_node():
    ring = Ring([Node("a", 1, "z"), Node("b"), Node("c")])
    before = {key: ring[key] for key in KEYS}
    ring.reweight("a", 3)
    assert ring.weights == {"a": 3.0, "b": 1.0, "c": 1.0}
    assert ring.zones["a"] == "z"
    assert {ring[key] for key in KEYS if ring[key] != before[key]} == {"a"}
    ring.reweight(b"a", 0)
    assert "a" in ring
    assert "a" not in {ring[key] for key in KEYS}
    ring.reweight("a", 1.0)
    assert ring.names == ("a", "b", "c")
    assert {key: ring[key] for key in KEYS} == before


def test_wrong_reweighting_changes_nothing():
    ring = Ring(["a", "b"])
    ring.remove("b")
    same = ring.copy()
    for name in ("nobody", "b"):
        with pytest.raises(KeyError, match=name):
            ring.reweight(name, 1)
    for name, weight in ((5, 1.0), ("a", "1"), ("a", None)):
        with pytest.raises(TypeError):
            ring.reweight(name, weight)
    for weight in (-1, float("nan"), float("inf"), 1e300, 10**400):
        with pytest.raises(InvalidInput):
            ring.reweight("a", weight)
    assert ring == same
    assert ring.names == same.names


# Replicas


def test_replicas_are_the_walk_when_there_are_no_zones():
    weights = {f"n{i}": 1.0 + i % 3 for i in range(12)}
    ring = Ring(weights)
    points = points_of(weights)
    for key in KEYS[:50]:
        start = bisect.bisect_left(points, (hash_of(key),))
        walk = tuple(dict.fromkeys(name for _, _, name in points[start:] + points[:start]))
        for n in range(13):
            assert ring.replicas(key, n) == walk[:n]


def test_replicas_use_every_zone_before_any_twice():
    ring = zoned(east="a b c d", west="e f", north="g")
    zones = ring.zones
    for key in KEYS[:50]:
        for n in (1, 2, 3):
            assert len({zones[name] for name in ring.replicas(key, n)}) == n
        with pytest.warns(PlacementWarning, match="7 replicas lie in only 3 zones"):
            order = [zones[name] for name in ring.replicas(key, 7)]
        assert set(order[:3]) == {"east", "west", "north"}
        assert set(order[3:5]) == {"east", "west"}
        assert order[5:] == ["east", "east"]


def test_a_node_without_zone_is_a_zone_of_its_own():
    ring = Ring([Node("a", 1, "z"), Node("b", 1, "z"), Node("c"), Node("d")])
    for key in KEYS[:50]:
        assert set(ring.replicas(key, 3)) > {"c", "d"}


def test_drained_nodes_are_never_replicas():
    ring = Ring({"a": 1, "b": 0, "c": 2})
    assert "b" in ring
    assert len(ring) == 3
    for key in KEYS[:50]:
        assert set(ring.replicas(key, 2)) == {"a", "c"}
    with pytest.raises(NotEnoughNodes) as caught:
        ring.replicas("key", 3)
    assert (caught.value.wanted, caught.value.usable) == (3, 2)


def test_excluding_equals_removing():
    ring = zoned(east="a b c", west="d e f", north="g h i")
    without = ring.copy()
    without.remove("a")
    without.remove("e")
    for key in KEYS[:50]:
        for n in range(4):
            expected = without.replicas(key, n)
            assert ring.replicas(key, n, exclude=["a", b"e", "a", "unknown"]) == expected
            assert ring.replicas(key, n, exclude={"e", "a"}) == expected
    with pytest.raises(NotEnoughNodes) as caught:
        ring.replicas("key", 8, exclude=iter("ae"))
    assert (caught.value.wanted, caught.value.usable) == (8, 7)


def test_the_warning_counts_usable_zones_only():
    ring = zoned(east="a b", west="c d")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ring.replicas("key", 2)
        Ring(["a", "b", "c"]).replicas("key", 3)
    with pytest.warns(PlacementWarning) as caught:
        ring.replicas("key", 2, exclude=["c", "d"])
    assert caught[0].filename == __file__


def test_no_replicas_are_an_empty_tuple():
    assert Ring(["a"]).replicas("key", 0) == ()
    assert Ring().replicas("key", 0) == ()
    with pytest.raises(NotEnoughNodes):
        Ring().replicas("key", 1)
    with pytest.raises(NotEnoughNodes):
        Ring(["a"]).replicas("key", 10**30)


# Copies


def test_a_copy_is_independent():
    ring = Ring(["a", "b"])
    other = ring.copy()
    other.add("c")
    ring.remove("a")
    assert list(ring) == ["b"]
    assert list(other) == ["a", "b", "c"]
    assert type(other) is Ring


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_keep_nodes_and_indexes(protocol):
    ring = Ring([Node("a", 2.5, "z"), Node("\udcff", 0.0), Node("c", 1.0, "")], vnodes=10)
    ring.remove("a")
    ring.add("d", 3)
    again = pickle.loads(pickle.dumps(ring, protocol))
    assert again == ring
    assert again.names == ring.names
    assert again.points() == ring.points()
    assert again.vnodes == 10
    assert again.zones == {"\udcff": None, "c": "", "d": None}
    assert copy.copy(ring) == copy.deepcopy(ring) == ring


def test_subclasses_stay_what_they_are():
    class Named(Ring):
        pass

    ring = Named(["a"])
    assert type(ring.copy()) is Named
    assert ring == Ring(["a"])


def test_equality_is_of_what_is_placed_not_of_order():
    ring = Ring({"a": 1, "b": 2})
    assert ring == Ring({"b": 2, "a": 1})
    assert ring != Ring({"a": 1, "b": 3})
    assert ring != Ring({"a": 1})
    assert ring != Ring({"a": 1, "b": 2}, vnodes=16)
    assert ring != Ring([Node("a", 1, "z"), Node("b", 2)])
    assert ring != {"a": 1, "b": 2}
    with pytest.raises(TypeError):
        hash(ring)


def test_repr_tells_the_size():
    assert repr(Ring(["a", "b"])) == "<Ring of 2 nodes, 320 points>"


def test_the_examples_of_the_docstrings():
    for module, examples in ((_ring, 15), (ring_results, 3)):
        failed, attempted = doctest.testmod(module)
        assert failed == 0
        assert attempted >= examples


# Wrong arguments


def test_an_empty_ring_has_no_owner():
    for ring in (Ring(), Ring({"a": 0}), Ring.__new__(Ring)):
        for lookup in (ring.__getitem__, ring.lookup, lambda key, ring=ring: ring.lookup_hash(7)):
            with pytest.raises(EmptyRing):
                lookup("key")
        with pytest.raises(EmptyRing):
            ring.lookup_many(["key"])
        assert ring.lookup_many([]) == array.array("I")
        assert ring.points() == []
    assert issubclass(EmptyRing, LookupError)


@pytest.mark.parametrize("weight", [-1, -0.5, float("nan"), float("inf"), float("-inf"), 10**400])
def test_impossible_weights_are_value_errors(weight):
    with pytest.raises(ValueError, match="weight of node 'a'"):
        Ring({"a": weight})
    ring = Ring(["b"])
    with pytest.raises(ValueError, match="weight of node 'a'"):
        ring.add("a", weight)
    assert ring == Ring(["b"])


@pytest.mark.parametrize("weight", ["1", None, 1j, [1]])
def test_weights_that_are_no_numbers_are_type_errors(weight):
    with pytest.raises(TypeError):
        Ring({"a": weight})


def test_weights_beyond_all_memory_are_refused():
    with pytest.raises(InvalidInput, match="more than 268435456 points"):
        Ring({"a": 1e300})
    with pytest.raises(InvalidInput, match="more than 268435456 points"):
        Ring(["b"]).add("a", 4e12)


def test_duplicates_and_unknown_names():
    with pytest.raises(ValueError, match="'a' is given twice"):
        Ring(["a", "b", b"a"])
    ring = Ring(["a"])
    with pytest.raises(ValueError, match="'a' is in the ring already"):
        ring.add("a", 2.0)
    with pytest.raises(KeyError, match="nobody"):
        ring.remove("nobody")
    assert ring == Ring(["a"])


@pytest.mark.parametrize("nodes", ["abc", b"abc", 5, None, [5], [None], [("a", 1)], [["a"]]])
def test_nodes_of_wrong_types(nodes):
    with pytest.raises(TypeError):
        Ring(nodes)


@pytest.mark.parametrize("key", [5, None, ("a",), 1.5, object()])
def test_keys_of_wrong_types(key):
    ring = Ring(["a"])
    for lookup in (ring.__getitem__, ring.lookup, lambda key: ring.replicas(key, 1)):
        with pytest.raises(TypeError, match="key must be str, bytes or a buffer"):
            lookup(key)


def test_text_that_no_bytes_decode_to_is_a_value_error():
    with pytest.raises(InvalidInput):
        Ring(["a"])["\ud800"]
    with pytest.raises(InvalidInput):
        Ring(["\ud800"])


@pytest.mark.parametrize("h", [-1, 2**64, 10**40])
def test_hashes_out_of_range_are_value_errors(h):
    with pytest.raises(ValueError, match="hash"):
        Ring(["a"]).lookup_hash(h)


@pytest.mark.parametrize("h", [1.5, "1", None])
def test_hashes_of_wrong_types(h):
    with pytest.raises(TypeError):
        Ring(["a"]).lookup_hash(h)


def test_replicas_with_wrong_arguments():
    ring = Ring(["a", "b"])
    with pytest.raises(ValueError, match="negative"):
        ring.replicas("key", -1)
    with pytest.raises(TypeError):
        ring.replicas("key", 1.0)
    with pytest.raises(TypeError):
        ring.replicas("key", 1, exclude="a")
    with pytest.raises(TypeError):
        ring.replicas("key", 1, exclude=[5])


@pytest.mark.parametrize("vnodes", [0, -1, 2**28 + 1, 2**70])
def test_vnodes_out_of_range(vnodes):
    with pytest.raises(ValueError, match="vnodes"):
        Ring(["a"], vnodes=vnodes)


def test_unknown_profiles_are_told_which_there_are():
    with pytest.raises(InvalidInput, match="no ring profile 'chord'; there are: ringhold"):
        Ring(["a"], profile="chord")
    assert Ring(profile="ringhold").profile == "ringhold"
    for profile in (None, 3, b"ringhold"):
        with pytest.raises(TypeError):
            Ring(["a"], profile=profile)


def test_a_ring_of_the_nodes_of_another_has_their_weights_and_zones():
    ring = Ring([Node("a", 2.5, "east"), Node("b", 0), Node("c", 1, "west")])
    assert Ring(ring) == ring
    layout = Layout(ring, replicas=1, partitions=16)
    assert (layout.weights, layout.zones) == (ring.weights, ring.zones)
    assert Ring(layout) == ring


def test_one_node_is_no_iterable_of_nodes():
    with pytest.raises(TypeError, match="not one Node"):
        Ring(Node("a"))


def test_hashes_may_name_their_byte_order():
    ring = Ring(["a", "b", "c"])
    hashes = (ctypes.c_uint64 * 3)(1, 2**63, 2**64 - 1)
    assert ring.lookup_many(hashes) == ring.lookup_many(array.array("Q", hashes))
    swapped = ctypes.c_uint64.__ctype_be__ if sys.byteorder == "little" else ctypes.c_uint64
    with pytest.raises(TypeError):
        ring.lookup_many((swapped * 1)(1))

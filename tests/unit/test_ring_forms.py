"""Goal: rings can be compared, kept and explained: diff, digest, dumps, pickle, explain.

Method: each is held against lookups of single keys, and every damage of the bytes is tried.
"""

import copy
import itertools
import pickle
import random

import pytest

import ringhold
from ringhold import placement
from ringhold.core import Ring, _ring_forms, ring_results
from ringhold.errors import Corrupt, EmptyRing, InvalidInput
from ringhold.types import Node

KEYS = [f"user/{i}" for i in range(2000)]
SERVERS = [f"10.0.0.{i}:11211" for i in range(1, 8)]
WIDE = ["uhashring"]
NARROW = [
    "ketama",
    "libmemcached",
    "libmemcached-unweighted",
    "libmemcached-spy",
    "twemproxy",
    "uhashring-ketama",
]
PROFILES = ["ringhold", *NARROW, *WIDE]
ORDERED = [name for name in NARROW if name.startswith("libmemcached")]


def holds(move, position):
    if move.start < move.end:
        return move.start < position <= move.end
    return position > move.start or position <= move.end


# Differences


@pytest.mark.parametrize("profile", ["ringhold", *NARROW])
def test_a_diff_tells_which_keys_move_and_where(profile):
    old = Ring(SERVERS, profile=profile)
    new = old.copy()
    new.remove(SERVERS[2])
    new.add("10.0.1.1:80", 2)
    diff = old.diff(new)
    moved = {key for key in KEYS if old[key] != new[key]}
    assert moved
    assert {key for key in KEYS if diff.contains(key)} == moved
    assert {key for key in KEYS if diff.contains(key.encode())} == moved
    assert len(moved) / len(KEYS) == pytest.approx(diff.fraction, abs=0.05)
    for key in KEYS[:200]:
        position = old.explain(key).hash << (0 if profile == "ringhold" else 32)
        assert _ring_forms.position_of(key, profile) == position
        found = [(m.source, m.target) for m in diff.moves if holds(m, position)]
        assert found == ([(old[key], new[key])] if key in moved else [])


def test_moves_are_sorted_disjoint_and_as_few_as_can_be():
    old = Ring(SERVERS)
    new = Ring([*SERVERS[1:], "another"])
    moves = old.diff(new).moves
    assert [m.end for m in moves] == sorted({m.end for m in moves})
    for before, after in itertools.pairwise(moves):
        assert before.end <= after.start
        if before.end == after.start:
            assert before[2:] != after[2:]
    assert sum(m.start > m.end for m in moves) <= 1
    assert all(m.source != m.target for m in moves)


def test_the_whole_circle_may_move():
    diff = Ring(["a"]).diff(Ring(["b"]))
    (move,) = diff.moves
    assert move.start == move.end
    assert (move.source, move.target) == ("a", "b")
    assert diff.fraction == 1.0
    assert all(diff.contains(key) for key in KEYS)


def test_the_arc_round_zero_has_keys_at_both_ends():
    old, new = Ring(["a", "b"], vnodes=1), Ring(["a", "c"], vnodes=1)
    first, last = (point for point, _ in old.points())
    sides = set()
    for key in KEYS:
        position = old.explain(key).hash
        assert old.diff(new).contains(key) == (old[key] != new[key])
        if position > last or position <= first:
            sides.add(position > last)
    assert sides == {True, False}


def test_nothing_moves_between_equal_placements():
    ring = Ring(["a", "b"])
    for other in (ring, ring.copy(), Ring(["b", "a"]), Ring({"a": 1, "b": 1, "c": 0})):
        diff = ring.diff(other)
        assert diff.moves == ()
        assert diff.fraction == 0.0
        assert not any(diff.contains(key) for key in KEYS[:50])


def test_only_the_changed_node_gives_and_takes():
    ring = Ring(SERVERS)
    for weight in (0.0, 0.5, 2.0):
        other = ring.copy()
        other.reweight(SERVERS[3], weight)
        there, back = ring.diff(other), other.diff(ring)
        assert {m.source if weight < 1 else m.target for m in there.moves} == {SERVERS[3]}
        assert [(m.start, m.end, m.target, m.source) for m in there.moves] == list(back.moves)


def test_diffs_that_make_no_sense():
    ring = Ring(["a"])
    for left, right in ((ring, Ring()), (Ring(), ring), (Ring({"a": 0}), ring)):
        with pytest.raises(EmptyRing):
            left.diff(right)
    with pytest.raises(InvalidInput, match="'ringhold' and of 'ketama'"):
        ring.diff(Ring(["a"], profile="ketama"))
    with pytest.raises(InvalidInput, match="more than 64 bits"):
        Ring(["a"], profile="uhashring").diff(Ring(["a"], profile="uhashring"))
    for other in (None, "a", ["a"], {"a": 1}):
        with pytest.raises(TypeError):
            ring.diff(other)
    for key in (None, 5, ["a"]):
        with pytest.raises(TypeError):
            ring.diff(ring).contains(key)


def test_results_are_plain_values():
    diff = Ring(["a", "b"]).diff(Ring(["a", "c"]))
    explained = Ring([Node("a", 1, "z")]).explain("key")
    for value in (diff, diff.moves[0], explained):
        assert pickle.loads(pickle.dumps(value)) == value == copy.deepcopy(value)
        hash(value)
        with pytest.raises(AttributeError):
            value.moves = value.start = value.node = ()
        assert getattr(ringhold, type(value).__name__) is type(value)
        assert getattr(placement, type(value).__name__) is type(value)
    assert ring_results.Move._fields == ("start", "end", "source", "target")
    assert explained._fields == ("hash", "point", "node", "zone", "replicas")


# Explanations


@pytest.mark.parametrize("profile", PROFILES)
def test_an_explanation_agrees_with_points_and_lookups(profile):
    ring = Ring([Node(name, 1, "z" + name[-7:-6]) for name in SERVERS], profile=profile)
    points = ring.points()
    after = profile.startswith("uhashring")
    for key in KEYS[:300]:
        told = ring.explain(key)
        assert (told.node, told.zone) == (ring[key], ring.zones[ring[key]])
        assert told.replicas == ring.replicas(key, 3)
        later = [p for p, _ in points if p >= told.hash + after]
        assert told.point == (later[0] if later else points[0][0])
        assert (told.point, told.node) in points
        if profile not in WIDE:
            assert ring.lookup_hash(told.hash) == told.node


def test_an_explanation_of_few_nodes_and_zones_warns_of_nothing():
    ring = Ring([Node("a", 1, "z"), Node("b", 1, "z"), Node("drained", 0, "z")])
    assert sorted(ring.explain("key").replicas) == ["a", "b"]
    assert Ring(["a"]).explain("key")[2:] == ("a", None, ("a",))
    with pytest.raises(EmptyRing):
        Ring().explain("key")
    with pytest.raises(TypeError):
        ring.explain(None)


# Digests


@pytest.mark.parametrize("profile", PROFILES)
def test_a_digest_is_of_the_placement_alone(profile):
    ring = Ring(SERVERS[:3], profile=profile)
    digest = ring.digest()
    assert isinstance(digest, bytes)
    assert len(digest) == 16
    assert Ring(SERVERS[2::-1], profile=profile).digest() == digest
    changed = ring.copy()
    changed.add(SERVERS[3])
    assert changed.digest() != digest
    changed.remove(SERVERS[3])
    assert changed.digest() == digest
    assert Ring([Node(name, 1, "z") for name in SERVERS[:3]], profile=profile).digest() != digest
    others = {Ring(SERVERS[:3], profile=other).digest() for other in PROFILES}
    assert len(others) == len(PROFILES)


def test_drained_nodes_and_equal_points_do_not_change_the_digest():
    digest = Ring({"a": 1, "b": 0.5}).digest()
    assert Ring([Node("a"), Node("b", 0.5), Node("c", 0, "z")]).digest() == digest
    assert Ring({"a": 1.003, "b": 0.4999}).digest() == digest
    assert Ring({"a": 1, "b": 0.51}).digest() != digest
    assert Ring({"a": 0.5, "b": 0.25}, vnodes=320).digest() == digest
    assert Ring().digest() == Ring({"a": 0}).digest() != digest


# Bytes


def rich(profile="ringhold"):
    """A ring with all there is to keep: zones, weights, drained, removed and odd names."""
    ring = Ring(
        [Node(b"b\xff", 2, "z"), Node("a", 3), Node("é:11211", 1, ""), Node("gone"), Node("c", 0)],
        profile=profile,
    )
    ring.remove("gone")
    return ring


@pytest.mark.parametrize("profile", PROFILES)
def test_bytes_make_the_ring_again(profile):
    ring = rich(profile)
    data = ring.dumps()
    assert isinstance(data, bytes)
    for source in (data, bytearray(data), memoryview(data)):
        again = Ring.loads(source)
        assert again == ring
        assert again.profile == profile
        assert again.points() == ring.points()
        assert again.weights == ring.weights
        assert again.zones == ring.zones
        assert again.digest() == ring.digest()
        assert again.dumps() == data
    expected = (
        list(ring)
        if profile in ORDERED
        else sorted(ring, key=lambda n: n.encode("utf-8", "surrogateescape"))
    )
    assert list(again.names) == expected


def test_bytes_do_not_depend_on_the_order_of_insertion():
    nodes = [Node(name, 1 + i, str(i % 2)) for i, name in enumerate(SERVERS)]
    rng = random.Random(3)
    for profile in PROFILES:
        seen = {Ring(rng.sample(nodes, len(nodes)), profile=profile).dumps() for _ in range(10)}
        assert (len(seen) == 1) == (profile not in ORDERED)


def test_vnodes_and_the_empty_ring_are_kept():
    assert Ring.loads(Ring(["a"], vnodes=7).dumps()).vnodes == 7
    assert Ring.loads(Ring().dumps()) == Ring()


class Named(Ring):
    pass


def test_loading_into_a_subclass():
    assert type(Named.loads(Ring(["a"]).dumps())) is Named


@pytest.mark.parametrize("profile", ["ringhold", "libmemcached", "uhashring"])
def test_every_truncation_and_every_flipped_bit_is_refused(profile):
    data = rich(profile).dumps()
    for size in range(len(data)):
        with pytest.raises(Corrupt):
            Ring.loads(data[:size])
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Corrupt):
            Ring.loads(damaged)
    for other in (
        data + b"\0",
        data + data,
        b"",
        b"\0" * len(data),
        random.Random(1).randbytes(99),
    ):
        with pytest.raises(Corrupt):
            Ring.loads(other)


@pytest.mark.parametrize("data", [None, "text", 5, [1, 2], Ring()])
def test_what_is_no_bytes_is_a_type_error(data):
    with pytest.raises(TypeError):
        Ring.loads(data)


@pytest.mark.parametrize("profile", PROFILES)
def test_pickles_and_copies_keep_the_profile_and_the_indexes(profile):
    ring = rich(profile)
    for again in (pickle.loads(pickle.dumps(ring)), copy.copy(ring), copy.deepcopy(ring)):
        assert again == ring
        assert again.profile == profile
        assert again.names == ring.names == ("b\udcff", "a", "é:11211", "gone", "c")
        assert list(again) == list(ring)
        assert again.points() == ring.points()
        assert again.lookup_many(KEYS) == ring.lookup_many(KEYS)


def test_pickled_attributes_of_subclasses_stay():
    ring = Named(["a"])
    ring.note = "kept"
    assert pickle.loads(pickle.dumps(ring)).note == "kept"


@pytest.mark.parametrize("profile", PROFILES)
def test_equality_knows_the_profile_and_the_order_that_breaks_ties(profile):
    ring = Ring(SERVERS, profile=profile)
    assert ring == Ring(SERVERS, profile=profile)
    assert (ring == Ring(SERVERS[::-1], profile=profile)) == (profile not in ORDERED)
    assert sum(ring == Ring(SERVERS, profile=other) for other in PROFILES) == 1

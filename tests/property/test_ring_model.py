"""The C ring equals a model that is too plain to be wrong.

Method: hypothesis makes nodes, changes and queries; the model keeps a dict of nodes and makes
every answer afresh from all points, with the Python package xxhash as its hash.
"""

import itertools
import pickle
import warnings

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from ring_model import Model, changes, hashes, names, pools, text, weights

from ringhold.core import Ring
from ringhold.errors import EmptyRing, InvalidInput, NotEnoughNodes
from ringhold.types import PlacementWarning

CIRCLE = 2**64


def apply(ring, model, change):
    kind, name, weight, zone = change
    arguments = {"add": (weight, zone), "remove": (), "reweight": (weight,)}[kind]
    if (name in model.nodes) == (kind == "add"):
        with pytest.raises(InvalidInput if kind == "add" else KeyError):
            getattr(ring, kind)(name, *arguments)
        return
    getattr(ring, kind)(text(name), *arguments)
    if kind == "remove":
        del model.nodes[name]
    else:
        model.nodes[name] = (weight, zone if kind == "add" else model.nodes[name][1])


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
    given_out = []
    for change in changes:
        apply(ring, model, change)
        check_owners(ring, model, queries)
        given_out += [text(n) for n in model.nodes if text(n) not in given_out]
        assert ring.names == tuple(given_out)
    afresh = model.ring()
    assert afresh == ring
    assert afresh.points() == ring.points()
    for again in (pickle.loads(pickle.dumps(ring)), ring.copy()):
        assert again == ring
        assert again.names == ring.names
        assert again.points() == ring.points()


@settings(max_examples=200)
@given(
    pools,
    st.binary(max_size=20),
    st.sets(names, max_size=4),
)
def test_replicas_equal_the_model_for_every_count(nodes, key, exclude):
    model = Model(5, nodes)
    ring = model.ring()
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
    model = Model(9, dict.fromkeys([b"a", b"b", b"c"], (1.0, None)))
    ring = model.ring()
    encoded = [k if isinstance(k, bytes) else k.encode("utf-8", "surrogateescape") for k in keys]
    expected = [text(model.walk(xxhash.xxh3_64_intdigest(key))[0]) for key in encoded]
    assert [ring[key] for key in keys] == expected
    assert [ring.names[i] for i in ring.lookup_many(keys)] == expected


@given(
    pools,
    st.binary(max_size=20),
    st.dictionaries(names, st.integers(0, 20) | st.floats(0, 20, width=32), max_size=10),
    st.sampled_from([1, 1.125, 1.5, 7]),
)
def test_bounded_lookups_equal_the_model(nodes, key, loads, bound):
    model = Model(5, nodes)
    expected = model.bounded(xxhash.xxh3_64_intdigest(key), loads, bound)
    if expected is None:
        with pytest.raises(EmptyRing):
            model.ring().lookup_bounded(key, loads, bound=bound)
    else:
        assert model.ring().lookup_bounded(key, loads, bound=bound) == text(expected)


def moves_of(old, new):
    """Each stretch between two points of either ring that changes its owner, and from whom."""
    ends = sorted({point for point, _ in old.ring().points() + new.ring().points()})
    owners = {end: (text(old.owner(end)), text(new.owner(end))) for end in ends}
    return {
        (start, end): owners[end]
        for start, end in zip([ends[-1], *ends[:-1]], ends, strict=True)
        if owners[end][0] != owners[end][1]
    }


def length(start, end):
    return (end - start) % CIRCLE or CIRCLE


@settings(max_examples=150, deadline=None)
@given(pools, pools, st.integers(1, 6))
def test_diffs_equal_the_model(before, after, vnodes):
    old, new = Model(vnodes, before), Model(vnodes, after)
    if not (old.walk(0) and new.walk(0)):
        with pytest.raises(EmptyRing):
            old.ring().diff(new.ring())
        return
    diff, expected = old.ring().diff(new.ring()), moves_of(old, new)
    assert diff.fraction == sum(length(*arc) for arc in expected) / CIRCLE
    for (start, end), pair in expected.items():
        for position in (end, (start + (length(start, end) + 1) // 2) % CIRCLE):
            covering = [
                (m.source, m.target)
                for m in diff.moves
                if (position - m.start - 1) % CIRCLE < length(m.start, m.end)
            ]
            assert covering == [pair]
    assert [m.end for m in diff.moves] == sorted(m.end for m in diff.moves)
    for one, other in itertools.pairwise([*diff.moves, *diff.moves[:1]]):
        assert one is other or one.end != other.start or one[2:] != other[2:]


@settings(max_examples=150, deadline=None)
@given(pools.filter(len), st.data())
def test_one_change_moves_what_it_must_and_no_more(nodes, data):
    """Owners: exactly what the node gains or loses. Replica sets: one leaves for it, or none."""
    before = Model(6, nodes)
    name = data.draw(st.sampled_from(sorted(nodes)))
    after = Model(6, {**nodes, name: (data.draw(weights), nodes[name][1])})
    old, new = before.ring(), after.ring()
    if before.walk(0) and after.walk(0):
        shares = [share_of(text(name), ring) for ring in (old, new)]
        assert old.diff(new).fraction == abs(shares[1] - shares[0]) / CIRCLE
        assert all(text(name) in (m.source, m.target) for m in old.diff(new).moves)
    n = data.draw(st.integers(1, 4))
    if min(len(before.walk(0)), len(after.walk(0))) < n:
        return
    for i in range(20):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sets = [set(ring.replicas(f"key/{i}", n)) for ring in (old, new)]
        gone, come = sets[0] - sets[1], sets[1] - sets[0]
        assert len(gone) == len(come) <= 1
        assert not gone or text(name) in gone | come


def share_of(name, ring):
    points = ring.points()
    pairs = zip([points[-1], *points[:-1]], points, strict=True)
    return sum(length(start, end) for (start, _), (end, owner) in pairs if owner == name)


@given(pools, pools, st.integers(1, 4), st.randoms())
def test_digests_and_bytes_tell_what_they_should(nodes, others, vnodes, rng):
    ring = Model(vnodes, nodes).ring()
    shuffled = Model(vnodes, rng.sample(sorted(nodes.items()), len(nodes))).ring()
    assert shuffled.dumps() == ring.dumps()
    assert shuffled.digest() == ring.digest()
    again = Ring.loads(ring.dumps())
    assert again == ring
    assert again.points() == ring.points()
    assert again.names == tuple(text(name) for name in sorted(nodes))
    other = Model(vnodes, others).ring()
    assert (other == ring) == (nodes == others)
    assert (other.dumps() == ring.dumps()) == (nodes == others)
    assert (other.digest() == ring.digest()) == (placement(other) == placement(ring))


def placement(ring):
    """Points with their owners, and the zones of these."""
    zones = ring.zones
    return [(point, name, zones[name]) for point, name in ring.points()]

"""Goal: a profile takes what its original takes, and tells values in its own bits.

Method: facts published with the originals, and every argument they have no notion of.
tests/conformance/test_ring_oracles.py holds whole rings against other programs.
"""

import array
import hashlib

import pytest

from ringhold.core import Ring
from ringhold.errors import InvalidInput, NotEnoughNodes

NARROW = [
    "ketama",
    "libmemcached",
    "libmemcached-unweighted",
    "libmemcached-spy",
    "twemproxy",
    "uhashring-ketama",
]
WEIGHTED = [name for name in NARROW if name != "libmemcached-unweighted"]
ALL = [*NARROW, "uhashring"]
POOL = dict(
    zip(
        [f"10.0.1.{i}:11211" for i in range(1, 9)],
        [600, 300, 200, 350, 1000, 800, 950, 100],
        strict=True,
    )
)


def counts_of(ring):
    owners = [name for _, name in ring.points()]
    return [owners.count(name) for name in ring]


def test_the_pool_that_libmemcached_tests_itself_with():
    ring = Ring(POOL, profile="libmemcached")
    assert counts_of(ring) == [176, 88, 56, 104, 296, 236, 280, 28]
    told = ring.explain("VDEAAAAA")
    assert told.hash == 0xFFFCD1B5
    assert told.point == ring.points()[0][0] == 2148620
    assert ring.lookup_hash(2**32 - 1) == told.node


@pytest.mark.parametrize(
    ("profile", "short"), [("ketama", [61, 122]), ("libmemcached", [25, 50, 61, 100, 122])]
)
def test_equal_weights_have_the_counts_of_float_arithmetic(profile, short):
    for n in (24, 25, 26, 50, 61, 100, 122):
        ring = Ring([f"10.0.0.{i}:11211" for i in range(n)], profile=profile)
        assert counts_of(ring) == [156 if n in short else 160] * n


@pytest.mark.parametrize("profile", ALL)
def test_excluding_equals_a_ring_without(profile):
    ring = Ring(POOL, profile=profile)
    excluded = list(POOL)[1:4]
    without = Ring({n: w for n, w in POOL.items() if n not in excluded}, profile=profile)
    for number in range(300):
        key = f"key/{number}"
        expected = without.replicas(key, 3)
        assert ring.replicas(key, 3, exclude=[*excluded, excluded[0], "unknown"]) == expected


def test_excluding_gives_points_to_nodes_that_had_none():
    ring = Ring({"small": 1, "big": 1000, "bigger": 1000}, profile="ketama")
    assert "small" not in ring.replicas("key", 2)
    with pytest.raises(NotEnoughNodes, match="2 with points"):
        ring.replicas("key", 3)
    assert ring.replicas("key", 1, exclude=["big", "bigger"]) == ("small",)


@pytest.mark.parametrize("profile", NARROW)
def test_values_have_32_bits(profile):
    ring = Ring(["h1:11211", "h2:80", "h3"], profile=profile)
    assert max(point for point, _ in ring.points()) < 2**32
    digest = hashlib.md5(b"key").digest()
    assert ring.explain("key").hash == int.from_bytes(digest[:4], "little")
    hashes = array.array("Q", [0, 2**31, 2**32 - 1])
    assert [ring.names[i] for i in ring.lookup_many(hashes)] == list(map(ring.lookup_hash, hashes))
    for h in (2**32, 2**64 - 1, 2**64, -1):
        with pytest.raises(ValueError, match="hash"):
            ring.lookup_hash(h)
    with pytest.raises(InvalidInput, match=r"below 2\*\*32"):
        ring.lookup_many(array.array("Q", [0] * 200 + [2**32]))


def test_values_have_128_bits():
    ring = Ring(["h1", "h2"], profile="uhashring")
    told = ring.explain("key")
    assert told.hash == int(hashlib.md5(b"key").hexdigest(), 16)
    assert max(point for point, _ in ring.points()) > 2**120
    for refused in (lambda: ring.lookup_hash(1), lambda: ring.lookup_many(array.array("Q", [1]))):
        with pytest.raises(InvalidInput, match="128 bits"):
            refused()


@pytest.mark.parametrize("profile", ALL)
def test_text_and_its_bytes_are_the_same_key(profile):
    ring = Ring([f"h{i}:1" for i in range(20)], profile=profile)
    keys = ["key", "ä", "\udcff", ""]
    encoded = [key.encode("utf-8", "surrogateescape") for key in keys]
    assert [ring[key] for key in keys] == [ring[key] for key in encoded]
    assert ring.lookup_many(keys) == ring.lookup_many(encoded)
    assert [ring.names[i] for i in ring.lookup_many(tuple(keys))] == [ring[key] for key in keys]


@pytest.mark.parametrize("profile", ALL)
@pytest.mark.parametrize("weight", [0.5, 1.5, 2**32, 1e300])
def test_weights_that_the_original_has_not(profile, weight):
    with pytest.raises(InvalidInput, match=r"profile|points"):
        Ring({"a": weight}, profile=profile)
    ring = Ring(["b"], profile=profile)
    for change in (ring.add, lambda _, weight: ring.reweight("b", weight)):
        with pytest.raises(InvalidInput, match=r"profile|points"):
            change("a", weight)
    assert ring == Ring(["b"], profile=profile)


@pytest.mark.parametrize("profile", NARROW)
def test_vnodes_are_those_of_the_original(profile):
    with pytest.raises(InvalidInput, match="vnodes=160"):
        Ring(["a"], vnodes=100, profile=profile)
    assert Ring(["a"], vnodes=160, profile=profile).vnodes == 160
    assert len(Ring(["a", "b"], vnodes=3, profile="uhashring").points()) == 6


@pytest.mark.parametrize("profile", WEIGHTED)
def test_weights_are_relative(profile):
    assert counts_of(Ring({"a": 1, "b": 3}, profile=profile)) == counts_of(
        Ring({"a": 10, "b": 30}, profile=profile)
    )


@pytest.mark.parametrize("profile", ALL)
def test_a_changed_ring_is_the_ring_made_afresh(profile):
    ring = Ring(POOL, profile=profile)
    ring.remove("10.0.1.3:11211")
    ring.add("10.0.2.1:80", 7)
    ring.reweight("10.0.1.1:11211", 100)
    ring.reweight("10.0.1.2:11211", 0)
    weights = {name: weight for name, weight in POOL.items() if name != "10.0.1.3:11211"}
    weights |= {"10.0.2.1:80": 7, "10.0.1.1:11211": 100, "10.0.1.2:11211": 0}
    afresh = Ring(weights, profile=profile)
    assert ring == afresh
    assert ring.points() == afresh.points()
    assert ring.digest() == afresh.digest()


def test_ports_in_the_strings_of_libmemcached():
    def points(name, profile="libmemcached"):
        return [point for point, _ in Ring([name], profile=profile).points()]

    assert points("host") == points("host:11211") != points("host:11212")
    spy = points("host", "libmemcached-spy")
    assert spy == points("host:11211", "libmemcached-spy") == points("/host:11211", "ketama")
    assert points("host:11211", "ketama") != points("host", "ketama")
    assert points("a-name", "twemproxy") == points("a-name", "ketama")

"""Goal: batches give what single lookups give, from one state of the ring, beside other threads.

Method: every kind of key and of batch is compared with ``ring[key]``; threads change the ring and
the list of keys while batches run, a bounded number of times.
"""

import array
import gc
import mmap
import random
import sys
import threading
from contextlib import contextmanager

import pytest
import xxhash

from ringhold.core import Ring
from ringhold.errors import EmptyRing

KEYS = [f"user/{i}" for i in range(500)]
CHUNK = 65536  # keys hashed in one go


def hash_of(key):
    return xxhash.xxh3_64_intdigest(key.encode("utf-8", "surrogateescape"))


@contextmanager
def switching_every(seconds):
    interval = sys.getswitchinterval()
    sys.setswitchinterval(seconds)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


@contextmanager
def beside(work):
    """Runs `work` again and again in another thread."""
    stop = threading.Event()

    def run():
        while not stop.is_set():
            work()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


# Keys


def buffers_of(data):
    with mmap.mmap(-1, max(1, len(data))) as mapped:
        mapped[: len(data)] = data
        yield from (bytearray(data), memoryview(data), memoryview(bytearray(data)))
        yield array.array("B", data)
        yield memoryview(data + b"more")[: len(data)]
        if len(data) == mmap.PAGESIZE:
            yield mapped


@pytest.mark.parametrize("size", [0, 1, 4, 8, 16, 17, 128, 129, 240, 241, mmap.PAGESIZE])
@pytest.mark.parametrize("profile", ["ringhold", "ketama", "uhashring"])
def test_any_contiguous_buffer_is_a_key(size, profile):
    ring = Ring((f"n{i}" for i in range(50)), profile=profile)
    data = random.Random(size).randbytes(size)
    owner = ring[data]
    for key in buffers_of(data):
        assert ring[key] == ring.lookup(key) == owner
        assert ring.names[ring.lookup_many([key])[0]] == owner
        assert ring.replicas(key, 2) == ring.replicas(data, 2)
        assert ring.explain(key) == ring.explain(data)
        assert ring.lookup_bounded(key, {}) == ring.lookup_bounded(data, {})


def test_wider_items_count_by_their_bytes():
    ring = Ring(f"n{i}" for i in range(50))
    for key in (array.array("Q", [7, 8]), array.array("d", [1.5]), memoryview(b"12").cast("H")):
        assert ring[key] == ring[bytes(key)] == ring.names[ring.lookup_many([key])[0]]


def test_a_key_in_pieces_is_a_buffer_error():
    ring = Ring(["a"])
    for lookup in (ring.__getitem__, lambda key: ring.lookup_many([key])):
        with pytest.raises(BufferError):
            lookup(memoryview(b"abcdef")[::2])


def test_a_key_is_free_again_after_its_lookup():
    ring, key = Ring(["a", "b"]), bytearray(b"key")
    ring[key], ring.lookup_many([key]), ring.replicas(key, 1)
    key.append(0)


class Text(str):
    def encode(self, *_):
        raise AssertionError


class Raw(bytes):
    def __bytes__(self):
        raise AssertionError


class Reversed(list):
    def __iter__(self):
        return reversed(list(super().__iter__()))


def test_subclasses_count_by_what_they_hold():
    ring = Ring([Raw(b"n0"), *(Text(f"n{i}") for i in range(1, 50))])
    assert ring.names[0] == "n0"
    assert ring[Text("key")] == ring[Raw(b"key")] == ring["key"]
    assert ring[Text("kéy")] == ring["kéy"]
    assert ring.lookup_many([Text("key"), Raw(b"key")]) == ring.lookup_many(["key", "key"])
    assert ring.lookup_many(Reversed(KEYS)) == ring.lookup_many(KEYS[::-1])


# Batches


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 127, 128, 500])
def test_batches_of_keys_and_of_hashes(count):
    ring = Ring(f"n{i}" for i in range(10))
    expected = [ring[key] for key in KEYS[:count]]
    mixed = [key if i % 2 else key.encode() for i, key in enumerate(KEYS[:count])]
    hashes = array.array("Q", [hash_of(key) for key in KEYS[:count]])
    for keys in (mixed, tuple(mixed), hashes, array.array("L", hashes), memoryview(hashes)):
        indexes = ring.lookup_many(keys)
        assert isinstance(indexes, array.array)
        assert indexes.typecode == "I"
        assert [ring.names[i] for i in indexes] == expected


def test_a_read_only_buffer_of_hashes_will_do():
    ring = Ring(["a", "b"])
    hashes = array.array("Q", range(0, 2**64, 2**56))
    assert ring.lookup_many(memoryview(hashes).toreadonly()) == ring.lookup_many(hashes)


def test_out_is_filled_and_returned():
    ring = Ring(["a", "b", "c"])
    out = array.array("I", [9] * len(KEYS))
    assert ring.lookup_many(KEYS, out) is out
    assert out == ring.lookup_many(KEYS)
    view = memoryview(bytearray(4 * len(KEYS))).cast("I")
    assert ring.lookup_many(KEYS, out=view) is view
    assert view.tolist() == out.tolist()
    ring.lookup_many([], array.array("I"))


@pytest.mark.parametrize("length", [0, 2, 4])
def test_out_of_another_length_is_a_value_error(length):
    ring = Ring(["a"])
    out = array.array("I", [7] * length)
    with pytest.raises(ValueError, match=f"room for {length}"):
        ring.lookup_many(["x", "y", "z"], out)
    assert out.tolist() == [7] * length


@pytest.mark.parametrize(
    "out",
    [
        *(array.array("i", [0]), array.array("Q", [0]), bytes(4), bytearray(4), [0], "x", 5),
        memoryview(array.array("I", range(4)))[::2],
        memoryview(array.array("I", [0])).toreadonly(),
    ],
)
def test_other_outs_are_type_errors(out):
    with pytest.raises(TypeError):
        Ring(["a"]).lookup_many(["x"], out)


@pytest.mark.parametrize(
    "keys",
    [
        *("abc", b"abc", bytearray(8), {"a": 1}, {"a"}, 5, None, iter("ab"), ["a", 5], [None]),
        *(array.array("q", [1]), array.array("I", [1]), array.array("d")),
        memoryview(array.array("Q", range(4)))[::2],
        memoryview(bytes(16)).cast("Q", [1, 2]),
    ],
)
def test_other_keys_are_type_errors(keys):
    with pytest.raises(TypeError):
        Ring(["a"]).lookup_many(keys)


def test_a_refused_batch_releases_its_buffers():
    hashes, out = array.array("Q", [1]), array.array("I", [1, 2])
    with pytest.raises(ValueError, match="room"):
        Ring(["a"]).lookup_many(hashes, out)
    with pytest.raises(EmptyRing):
        Ring().lookup_many(hashes, array.array("I", [1]))
    hashes.append(2)
    out.append(3)


# Threads


def test_a_batch_is_answered_by_one_state_of_the_ring():
    base = Ring(f"n{i}" for i in range(30))
    more = base.copy()
    more.add("x", 3.0)
    ring = base.copy()
    keys = [f"user/{i}" for i in range(3 * CHUNK + 7)]
    states = [base.lookup_many(keys), more.lookup_many(keys)]
    assert states[0] != states[1]
    seen = set()

    def change():
        ring.add("x", 3.0)
        ring.remove("x")

    with switching_every(1e-5), beside(change):
        for _ in range(30):
            seen.add(states.index(ring.lookup_many(keys)))
            one = ring.lookup_many(keys[:50])
            assert one in (states[0][:50], states[1][:50])
    assert seen <= {0, 1}


def test_a_list_that_changes_meanwhile_is_noticed():
    ring = Ring(["a", "b", "c"])
    keys = [b"%d" % i for i in range(2 * CHUNK + 1)]
    expected = ring.lookup_many(keys)

    def change():
        if len(keys) == len(expected):
            keys.append(b"another")
        else:
            keys.pop()

    noticed = 0
    with switching_every(1e-5), beside(change):
        for _ in range(1000):
            try:
                found = ring.lookup_many(keys)
            except RuntimeError as error:
                noticed += "changed its size" in str(error)
            else:
                assert found[: len(expected)] == expected
            if noticed:
                break
    assert noticed


@pytest.mark.parametrize("profile", ["ringhold", "ketama"])
def test_other_threads_run_while_a_batch_is_searched(profile):
    """With a switch interval of ages, a thread runs only when another lets it."""
    ring = Ring((f"n{i}" for i in range(300)), profile=profile)
    hashes = array.array("Q", range(0, 2**32, 2**12))
    keys = KEYS * 200

    def note(go, ran):
        go.wait()
        ran.append(True)

    for batch in (hashes, keys):
        for _ in range(200):
            go, ran = threading.Event(), []
            thread = threading.Thread(target=note, args=(go, ran))
            thread.start()
            with switching_every(1000):
                go.set()
                before = list(ran)
                ring.lookup_many(batch)
                after = list(ran)
            thread.join()
            if not before and after:
                break
        else:
            pytest.fail("no other thread ever ran")


def test_lookups_beside_changes_see_a_ring_from_before_or_after():
    """Owners are always those of one of three rings, and none is torn."""
    base = Ring(f"n{i}" for i in range(30))
    more = base.copy()
    more.add("x", 3.0)
    # A smaller weight takes a part of the same keys.
    allowed = [{base[key], more[key]} for key in KEYS]
    ring = base.copy()
    failures = []

    def read():
        for key, owner in zip(KEYS, ring.lookup_many(KEYS), strict=True):
            if ring.names[owner] not in allowed[int(key[5:])]:
                failures.append((key, owner))
        some = range(0, len(KEYS), 100)
        failures.extend(KEYS[i] for i in some if ring[KEYS[i]] not in allowed[i])

    with switching_every(1e-5), beside(read), beside(read), beside(read):
        for _ in range(300):
            ring.add("x", 3.0)
            ring.reweight("x", 1.0)
            ring.reweight("x", 3.0)
            ring.remove("x")
    assert failures == []


def test_no_change_is_lost_among_threads():
    ring = Ring(vnodes=4)
    threads = [
        threading.Thread(target=lambda k=k: [ring.add(f"{k}-{i}") for i in range(50)])
        for k in range(4)
    ]
    with switching_every(1e-5):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    names = {f"{k}-{i}" for k in range(4) for i in range(50)}
    assert set(ring) == names
    assert set(ring.names) == names
    assert len(ring.names) == 200
    assert ring.points() == Ring(names, vnodes=4).points()


def test_a_change_within_a_change_is_not_lost():
    """Whatever the collector runs while a new ring is made may change the ring as well."""
    ring = Ring(["a"], vnodes=4)
    added = []

    def change(*_):
        if len(added) < 20:
            added.append(f"x{len(added)}")
            ring.add(added[-1])

    threshold = gc.get_threshold()
    gc.callbacks.append(change)
    gc.set_threshold(1)
    try:
        ring.add("b")
        ring.remove("a")
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(change)
    assert added
    assert set(ring) == {"b", *added}

"""Goal: no public operation of the C core keeps memory, however often it is called, failing calls
and errors included.

Method: each is called 100 000 times in this process after a warm-up. What malloc has given out, as
glibc counts it, may grow by less than the smallest block for each call; what tracemalloc sees of
Python's own allocations may not grow with the number of calls at all. Both are first shown to
notice a leak of their own making. (The resident size would not do: a leak may live in memory that
earlier tests gave back.)
"""

from __future__ import annotations

import ctypes
import gc
import pickle
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

import ringhold

Operation = Callable[[], object]

CALLS = 100_000
WARM_UP = 5_000
TRACED_CALLS = 1_000
MALLOC_BYTES_MIN = 24
"""Of a leaked block, however small; on glibc, with its header, 32."""

ALLOCATED_MAX = CALLS * MALLOC_BYTES_MIN // 2
TRACED_MAX = TRACED_CALLS * 8


class MallocInfo(ctypes.Structure):
    """struct mallinfo2 of glibc."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


mallinfo2 = ctypes.CDLL(None).mallinfo2
mallinfo2.restype = MallocInfo


def allocated_bytes() -> int:
    """In blocks that were not given back, mapped ones included."""
    info = mallinfo2()
    return int(info.uordblks + info.hblkhd)


def grown(operation: Operation, calls: int, used: Callable[[], int]) -> int:
    gc.collect()
    before = used()
    for _ in range(calls):
        operation()
    gc.collect()
    return used() - before


def traced_growth(operation: Operation) -> int:
    tracemalloc.start()
    try:
        grown(operation, TRACED_CALLS // 10, lambda: 0)
        return grown(operation, TRACED_CALLS, lambda: tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()


def allocated_growth(operation: Operation) -> int:
    grown(operation, WARM_UP, lambda: 0)
    return grown(operation, CALLS, allocated_bytes)


def fails(operation: Operation, *errors: type[Exception]) -> Operation:
    """The operation, which raises one of the errors each time."""

    def run() -> None:
        with suppress(*errors):
            operation()
            raise AssertionError("it did not fail")

    return run


def damaged(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def ring_operations() -> dict[str, Operation]:
    nodes = [
        ringhold.Node(name, weight, zone)
        for name, weight, zone in (("a", 1.0, "x"), ("b", 2.0, "y"), ("c", 0.5, None))
    ]
    ring = ringhold.Ring(nodes, vnodes=4)
    other = ringhold.Ring(["a", "d"], vnodes=4)
    empty = ringhold.Ring()
    dumped, pickled = ring.dumps(), pickle.dumps(ring)
    difference = ring.diff(other)
    keys: list[str | bytes] = ["one", b"two"]

    def changes() -> None:
        ring.add("d", 2.0, "x")
        ring.reweight("d", 1.0)
        ring.remove("d")

    return {
        "Ring": lambda: ringhold.Ring(nodes, vnodes=4),
        "Ring of names": lambda: ringhold.Ring(["a", "b"], vnodes=4),
        "Ring of weights": lambda: ringhold.Ring({"a": 1, "b": 0.5}, vnodes=4),
        "Ring of one name twice": fails(lambda: ringhold.Ring(["a", "a"]), ValueError),
        "Ring of a bad weight": fails(lambda: ringhold.Ring({"a": -1}), ValueError),
        "Ring of no names": fails(lambda: ringhold.Ring([1]), TypeError),
        "add, reweight, remove": changes,
        "remove of an unknown node": fails(lambda: ring.remove("?"), KeyError),
        "[key]": lambda: ring["key"],
        "[bytes]": lambda: ring[b"key"],
        "[number]": fails(lambda: ring[1], TypeError),
        "[key] of an empty ring": fails(lambda: empty["key"], ringhold.EmptyRing),
        "lookup_hash": lambda: ring.lookup_hash(2**63),
        "lookup_many": lambda: ring.lookup_many(keys),
        "lookup_many of a bad key": fails(lambda: ring.lookup_many(["one", 2]), TypeError),
        "replicas": lambda: ring.replicas("key", 2),
        "replicas without some": lambda: ring.replicas("key", 2, exclude=["a", "?"]),
        "too many replicas": fails(lambda: ring.replicas("key", 4), ringhold.NotEnoughNodes),
        "lookup_bounded": lambda: ring.lookup_bounded("key", {"a": 3.0, "b": 1}),
        "lookup_bounded below 1": fails(
            lambda: ring.lookup_bounded("key", {}, bound=0.5), ValueError
        ),
        "names, weights, zones": lambda: (ring.names, ring.weights, ring.zones),
        "len, in, iter": lambda: (len(ring), "a" in ring, list(ring)),
        "copy, ==": lambda: ring.copy() == ring,
        "digest": ring.digest,
        "dumps": ring.dumps,
        "loads": lambda: ringhold.Ring.loads(dumped),
        "loads of damage": fails(lambda: ringhold.Ring.loads(damaged(dumped)), ringhold.Corrupt),
        "pickle": lambda: pickle.dumps(ring),
        "unpickle": lambda: pickle.loads(pickled),
        "diff": lambda: (ring.diff(other).moves, difference.fraction, difference.contains("key")),
        "explain": lambda: ring.explain("key"),
        "points": ring.points,
    }


def layout_operations() -> dict[str, Operation]:
    layout = ringhold.Layout(["a", "b", "c"], replicas=2, partitions=16)
    dumped = layout.dumps()
    return {
        "Layout": lambda: ringhold.Layout(["a", "b"], replicas=1, partitions=16),
        "Layout of too few nodes": fails(
            lambda: ringhold.Layout(["a"], replicas=2, partitions=16), ringhold.NotEnoughNodes
        ),
        "Layout of odd partitions": fails(
            lambda: ringhold.Layout(["a"], replicas=1, partitions=17), ValueError
        ),
        "partition": lambda: layout.partition("key"),
        "nodes": lambda: layout.nodes(3),
        "layout.lookup": lambda: layout.lookup(b"key"),
        "rebalance": lambda: layout.rebalance({"a": 1, "b": 2, "d": 1}).moves,
        "rebalance onto too few": fails(lambda: layout.rebalance(["a"]), ringhold.NotEnoughNodes),
        "epoch, digest": lambda: (layout.epoch, layout.digest()),
        "layout.dumps": layout.dumps,
        "layout.loads": lambda: ringhold.Layout.loads(dumped),
        "layout.loads of damage": fails(
            lambda: ringhold.Layout.loads(damaged(dumped)), ringhold.Corrupt
        ),
    }


def lock_table_operations() -> dict[str, Operation]:
    table = ringhold.LockTable()
    table.try_acquire("held", 1)

    def waits() -> None:
        table.request("held", 2, "shared")
        table.waiters("held")
        table.cancel("held", 2)

    def handed_over() -> None:
        table.request("held", 2)
        table.release("held", 1)
        table.request("held", 1)
        table.release("held", 2)

    def deadlock() -> None:
        table.try_acquire("second", 2)
        table.request("held", 2)
        fails(lambda: table.request("second", 1), ringhold.DeadlockError)()
        table.release_owner(2)

    def expires() -> None:
        table.renew(3, 10)
        table.try_acquire("brief", 3, "update")
        table.expire(11)

    def downgraded() -> None:
        table.try_acquire("other", 4)
        table.downgrade("other", 4, "shared")
        table.release("other", 4)

    def many() -> None:
        table.acquire_many(["m", b"n"], 5, "shared")
        table.acquire_many(["m", "held"], 5)
        table.release_owner(5)

    return {
        "LockTable": ringhold.LockTable,
        "try_acquire, release": lambda: (table.try_acquire("x", 1), table.release("x", 1)),
        "conflict": lambda: table.try_acquire("held", 2),
        "request, waiters, cancel": waits,
        "a grant of what was released": handed_over,
        "deadlock": deadlock,
        "acquire_many": many,
        "downgrade": downgraded,
        "renew, expire": expires,
        "holders, mode, len": lambda: (table.holders("held"), table.mode("held", 1), len(table)),
        "release of what is not held": fails(lambda: table.release("y", 1), ringhold.NotOwned),
        "owner 0": fails(lambda: table.try_acquire("y", 0), ValueError),
        "no such mode": fails(lambda: table.try_acquire("y", 1, "huge"), ValueError),
    }


def checksum_operations() -> dict[str, Operation]:
    data, room = bytes(300), bytearray(300)

    def streamed() -> bytes:
        digest = ringhold.Digest()
        digest.update(data)
        return digest.copy().digest()

    return {
        "checksum": lambda: ringhold.checksum(data),
        "checksum of no buffer": fails(lambda: ringhold.checksum(1), TypeError),
        "checksum_blocks": lambda: ringhold.checksum_blocks(data, 100),
        "blocks of nothing": fails(lambda: ringhold.checksum_blocks(data, 0), ValueError),
        "digest of bytes": lambda: ringhold.digest(data),
        "Digest": streamed,
        "copy_checksum_blocks": lambda: ringhold.copy_checksum_blocks(room, data, 100),
        "a copy too long": fails(
            lambda: ringhold.copy_checksum_blocks(room, data[1:], 100), ValueError
        ),
    }


OPERATIONS = (
    ring_operations() | layout_operations() | lock_table_operations() | checksum_operations()
)


@pytest.fixture(scope="module", autouse=True)
def earlier_objects_set_aside() -> Iterator[None]:
    """So that looking for garbage does not take longer for each test that ran before."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def test_a_leak_is_noticed() -> None:
    kept: list[bytes] = []
    allocate = ctypes.CDLL(None).malloc
    assert traced_growth(lambda: kept.append(bytes(1))) > TRACED_MAX
    assert allocated_growth(lambda: allocate(1)) > ALLOCATED_MAX


@pytest.mark.parametrize("name", OPERATIONS)
def test_nothing_is_kept(name: str) -> None:
    # A leak is there each time; what another thread of this process allocates meanwhile is not.
    assert any(traced_growth(OPERATIONS[name]) < TRACED_MAX for _ in range(3))
    assert any(allocated_growth(OPERATIONS[name]) < ALLOCATED_MAX for _ in range(3))

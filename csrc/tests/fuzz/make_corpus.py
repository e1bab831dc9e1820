"""Writes the corpora beside this file: inputs that reach deep, from which a fuzzer goes on.

    python make_corpus.py [DIRECTORY]

The bytes of rings and layouts are put together here from the descriptions of their formats, not
by the library; what the other targets read as calls is put together likewise.
"""

from __future__ import annotations

import math
import random
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

Nodes = list[tuple[bytes, bytes | None, float]]

PROFILES = 8
NATIVE, KETAMA = 0, 1


def text(value: bytes) -> bytes:
    return struct.pack("<I", len(value)) + value


def ring(profile: int, vnodes: int, nodes: Nodes) -> bytes:
    """A ring as rh_ring_dumps writes it, without the seal, which the target adds."""
    body = b"RHRG" + struct.pack("<BBII", 1, profile, vnodes, len(nodes))
    for name, zone, weight in nodes:
        body += text(name) + (b"\0" if zone is None else b"\1" + text(zone))
        body += struct.pack("<d", weight)
    return body


def rings() -> Iterator[bytes]:
    yield ring(NATIVE, 160, [])
    yield ring(NATIVE, 1, [(b"", None, 1.0)])
    yield ring(NATIVE, 8, [(b"a", None, 1.0), (b"b", None, 0.5), (b"c", None, 0.0)])
    yield ring(NATIVE, 20, [(b"a", b"x", 1.0), (b"b", b"y", 2.0), (b"c", None, 1.0)])
    yield ring(NATIVE, 3, [(bytes([i]) * i, bytes([i % 3]), 1 + i / 4) for i in range(1, 20)])
    for profile in range(1, PROFILES):
        nodes = [(b"10.0.0.%d:11211" % i, None, 1.0) for i in range(1, 5)]
        yield ring(profile, 160, [(name, zone, 2.0) for name, zone, _ in nodes[:2]] + nodes[2:])
        yield ring(profile, 160, [(b"a\0b", b"x", 1.0), (b"b:1", b"", 3.0)])


def not_quite_rings() -> Iterator[bytes]:
    """One rule broken in each, under a seal that fits."""
    good = ring(NATIVE, 8, [(b"a", b"x", 1.0), (b"b", None, 0.5)])
    yield good + b"\0"
    yield b"RHRL" + good[4:]
    yield good[:4] + b"\2" + good[5:]
    yield good[:5] + bytes([PROFILES]) + good[6:]
    for place in range(0, len(good), 7):
        yield good[:place]
    yield ring(NATIVE, 0, [(b"a", None, 1.0)])
    yield ring(NATIVE, 8, [(b"b", None, 1.0), (b"a", None, 1.0)])
    yield ring(NATIVE, 8, [(b"a", None, 1.0), (b"a", None, 1.0)])
    for weight in (-0.0, -1.0, math.nan, math.inf, 1e300, 1e6):
        yield ring(NATIVE, 8, [(b"a", None, weight)])
    yield ring(NATIVE, 8, [(b"a", b"x", 1.0)]).replace(b"\1\1\0\0\0x", b"\2\1\0\0\0x")
    yield ring(KETAMA, 159, [(b"a", None, 1.0)])
    yield ring(KETAMA, 160, [(b"a", None, 0.5)])


WEIGHT = {1.0: 0, 2.0: 1, 3.0: 2, 0.0: 6, 1e12: 11}
"""Places in the table of weights of fuzz_ring_profiles.c."""

ADD, REMOVE, REWEIGHT = range(3)


def node(name: bytes, zone: bytes | None, weight: float) -> bytes:
    """A node as fuzz_ring_profiles.c reads it."""
    in_zone = b"\0" if zone is None else b"\1" + bytes([len(zone)]) + zone
    return bytes([len(name)]) + name + in_zone + bytes([WEIGHT[weight]])


def profiles() -> Iterator[bytes]:
    draw = random.Random(1)
    changes = {
        "add": [bytes([255, ADD]) + node(b"new", b"y", 2.0)],
        "remove": [bytes([0, REMOVE]) + node(b"", None, 1.0)],
        "drain and add": [
            bytes([1, REWEIGHT]) + node(b"", None, 0.0),
            bytes([255, ADD]) + node(b"new:11211", None, 1.0),
        ],
        "unknown": [bytes([255, REMOVE]) + node(b"?", None, 1.0)],
        "too heavy": [bytes([1, REWEIGHT]) + node(b"", None, 1e12)],
    }
    for profile in range(PROFILES):
        for count, change in ((1, "add"), *((5, change) for change in changes)):
            nodes = [
                node(b"host%d:11211" % i, [None, b"x", b"y"][i % 3], [1.0, 2.0, 3.0][i % 3])
                for i in range(count)
            ]
            head = bytes([profile, count, 16 if profile == NATIVE else 0])
            changed = bytes([len(changes[change])]) + b"".join(changes[change])
            yield head + b"".join(nodes) + changed + draw.randbytes(120)


def layout(
    nodes: Nodes, table: list[int], *, replicas: int, partitions: int = 16, epoch: int = 1
) -> bytes:
    """A layout as rh_layout_dumps writes it, without the seal."""
    body = b"RHLY" + struct.pack("<BQIII", 1, epoch, partitions, replicas, len(nodes))
    for name, zone, weight in nodes:
        body += text(name) + struct.pack("<d", weight)
        body += b"\0" if zone is None else b"\1" + text(zone)
    return body + struct.pack(f"<{len(table)}H", *table)


FOUR: Nodes = [(b"a", b"x", 1.0), (b"b", b"y", 1.0), (b"c", b"x", 1.0), (b"d", b"y", 1.0)]
PAIRS = [number % 4 for i in range(16) for number in (i, i + 1)]


def layouts() -> Iterator[bytes]:
    one = (b"only", None, 1.0)
    yield layout([one], [0] * 16, replicas=1)
    yield layout(FOUR, PAIRS, replicas=2)
    yield layout(FOUR, PAIRS, replicas=2, epoch=2**40)
    yield layout([(name, None, 3.5) for name, _, _ in FOUR], PAIRS, replicas=2)
    yield layout([(b"", None, 0.0), one], [1] * 16, replicas=1)
    yield layout(FOUR[:3], [0, 1, 2] * 16, replicas=3)
    halves = [(b"a", None, 1.0), (b"b", None, 1.0), (b"c", None, 2.0)]
    yield layout(halves, [i % 4 if i % 4 < 3 else 2 for i in range(16)], replicas=1)
    yield layout(FOUR, [i % 4 for i in range(32)], replicas=1, partitions=32)


def not_quite_layouts() -> Iterator[bytes]:
    """One rule broken in each, under a seal that fits."""
    good = layout(FOUR, PAIRS, replicas=2)
    yield good + b"\0"
    yield b"RHRG" + good[4:]
    yield good[:4] + b"\2" + good[5:]
    for place in range(0, len(good), 11):
        yield good[:place]
    yield layout(FOUR, PAIRS, replicas=2, epoch=0)
    yield layout(FOUR, [0, 0, *PAIRS[2:]], replicas=2)
    yield layout(FOUR, [0, 4, *PAIRS[2:]], replicas=2)
    yield layout(FOUR, [0, 2, *PAIRS[2:]], replicas=2)
    yield layout(FOUR, [0, 1] * 16, replicas=2)
    yield layout(FOUR, PAIRS[:-4], replicas=2, partitions=14)
    yield layout(FOUR, PAIRS[:16], replicas=2, partitions=8)
    yield layout(FOUR, [], replicas=0)
    yield layout(FOUR[::-1], PAIRS, replicas=2)
    yield layout([FOUR[0], FOUR[0], *FOUR[2:]], PAIRS, replicas=2)
    for weight in (-0.0, -1.0, math.nan, math.inf, 0.0):
        yield layout([(b"a", b"x", weight), *FOUR[1:]], PAIRS, replicas=2)


def lock_calls() -> Iterator[bytes]:
    """Kind of call, name, owner and mode, four bytes each, as fuzz_lock_table.c reads them."""
    draw = random.Random(2)
    kinds = [0, 1, 1, 1, 2, 3, 4, 5, 6, 7, 7, 8, 9]
    for owners in (2, 3, 6):
        for calls in (20, 200):
            yield b"".join(
                bytes([draw.choice(kinds), draw.randrange(4), draw.randrange(owners)])
                + draw.randbytes(1)
                for _ in range(calls)
            )


CORPORA = {
    "ring_loads": lambda: (*rings(), *not_quite_rings()),
    "ring_profiles": profiles,
    "layout_loads": lambda: (*layouts(), *not_quite_layouts()),
    "lock_table": lock_calls,
}


def main(directory: Path) -> None:
    for name, inputs in CORPORA.items():
        corpus = directory / name
        corpus.mkdir(parents=True, exist_ok=True)
        for old in corpus.glob("made-*"):
            old.unlink()
        for number, data in enumerate(inputs()):
            (corpus / f"made-{number:03}").write_bytes(data)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "corpus")

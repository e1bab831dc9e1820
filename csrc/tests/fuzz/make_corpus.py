"""Writes the corpora beside this file: inputs that reach deep, from which a fuzzer goes on.

    python make_corpus.py [DIRECTORY]

The bytes of rings and layouts are put together here from the descriptions of their formats, not
by the library; the other targets read any bytes, so they get seeded random ones. Files whose
names begin with "found" are a fuzzer's and stay.
"""

from __future__ import annotations

import random
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

PROFILES = 8
NATIVE, LIBMEMCACHED_FIRST, LIBMEMCACHED_LAST, UHASHRING = 0, 2, 4, 6


def text(value: bytes) -> bytes:
    return struct.pack("<I", len(value)) + value


def ring(profile: int, vnodes: int, nodes: list[tuple[bytes, bytes | None, float]]) -> bytes:
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


def seeded(seed: int, count: int, longest: int) -> Iterator[bytes]:
    draw = random.Random(seed)
    for _ in range(count):
        yield draw.randbytes(draw.randint(1, longest))


def profiles() -> Iterator[bytes]:
    draw = random.Random(1)
    for profile in range(PROFILES):
        for count in (1, 8):
            nodes = b""
            for i in range(count):
                name = b"host%d:11211" % i
                zone = b"\1\1" + bytes([i % 3]) if i % 2 else b"\0"
                nodes += bytes([len(name)]) + name + zone + bytes([i % 3])
            head = bytes([profile, count, 16 if profile == NATIVE else 0])
            yield head + nodes + draw.randbytes(200)


CORPORA = {"ring_loads": rings, "ring_profiles": profiles}


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

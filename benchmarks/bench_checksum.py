"""Checksums beside the xxhash package, which computes the same functions, and copies with
checksums beside copies without.

Sizes are tiny unless RINGHOLD_BENCH=full, so that every test run also runs this file. What was
timed is compared with the peer's result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import xxhash

from pairs import FULL, in_turns, report
from ringhold.core import Digest, checksum, checksum_blocks, copy_checksum_blocks, digest

BLOCK = 64 << 10
SIZES = (64, 4 << 10, BLOCK, 1 << 20, 64 << 20) if FULL else (64, BLOCK + 1)
BYTES_PER_ROUND = 256 << 20 if FULL else 1 << 16


def peer_blocks(data: bytes) -> list[int]:
    view = memoryview(data)
    return [xxhash.xxh3_64_intdigest(view[i : i + BLOCK]) for i in range(0, len(data), BLOCK)]


def in_pieces(kind: Callable[[], Any]) -> Callable[[bytes], bytes]:
    """Streams `data` in blocks through a new digest of that kind."""

    def run(data: bytes) -> bytes:
        stream, view = kind(), memoryview(data)
        for i in range(0, len(data), BLOCK):
            stream.update(view[i : i + BLOCK])
        return bytes(stream.digest())

    return run


def repeated(function: Callable[[bytes], Any], data: bytes, times: int) -> Callable[[int], None]:
    def run(_: int) -> None:
        for _ in range(times):
            function(data)

    return run


FUNCTIONS = {
    "checksum": (checksum, xxhash.xxh3_64_intdigest),
    "digest": (digest, xxhash.xxh3_128_digest),
    "checksum_blocks": (checksum_blocks, peer_blocks),
    "Digest": (in_pieces(Digest), in_pieces(xxhash.xxh3_128)),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_as_fast_as_the_xxhash_package(benchmark: Any, name: str, size: int) -> None:
    ours, peer = FUNCTIONS[name]
    data = bytes(range(256)) * (size // 256) + bytes(range(size % 256))
    times = max(1, min(BYTES_PER_ROUND // size, 200_000))
    label = f"{name} of {size} B"
    ways = {label: repeated(ours, data, times), "xxhash": repeated(peer, data, times)}
    seconds = benchmark.pedantic(in_turns, (ways,), rounds=1)
    result = ours(data)
    assert (list(result) if name == "checksum_blocks" else result) == peer(data)
    report(benchmark, seconds, [(label, "xxhash")], times, "calls")


def test_blocks_cost_little_more_than_the_whole(benchmark: Any) -> None:
    data = bytes(SIZES[-1])
    times = max(1, BYTES_PER_ROUND // len(data))
    ways = {
        "checksum_blocks": repeated(checksum_blocks, data, times),
        "checksum": repeated(checksum, data, times),
    }
    seconds = benchmark.pedantic(in_turns, (ways,), rounds=1)
    assert list(checksum_blocks(data)) == peer_blocks(data)
    report(benchmark, seconds, [("checksum_blocks", "checksum")], times, "calls")


@pytest.mark.parametrize("size", [64 << 20, 4 << 20, BLOCK] if FULL else [BLOCK + 1])
def test_a_copy_with_checksums_costs_little_more_than_one_without(
    benchmark: Any, size: int
) -> None:
    source = bytes(range(256)) * (size // 256) + bytes(range(size % 256))
    # Both ways write here: memcpy's speed depends on how its two buffers are aligned.
    target = memoryview(bytearray(size))

    def copy(data: bytes) -> None:
        target[:] = data

    times = max(1, BYTES_PER_ROUND // size)
    label = f"copy_checksum_blocks of {size} B"
    ways = {
        label: repeated(lambda data: copy_checksum_blocks(target, data), source, times),
        "memcpy": repeated(copy, source, times),
    }
    seconds = benchmark.pedantic(in_turns, (ways,), rounds=1)
    target[:] = bytes(size)
    assert list(copy_checksum_blocks(target, source)) == peer_blocks(source)
    assert target == source
    report(benchmark, seconds, [(label, "memcpy")], times, "calls")

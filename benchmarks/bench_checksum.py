"""Checksums beside the xxhash package, which computes the same functions.

Sizes are tiny unless RINGHOLD_BENCH=full, so that every test run also runs this file. What was
timed is compared with the peer's result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import xxhash

from pairs import FULL, in_turns, report
from ringhold.core import checksum, checksum_blocks, digest

BLOCK = 64 << 10
SIZES = (64, 4 << 10, BLOCK, 1 << 20, 64 << 20) if FULL else (64, BLOCK + 1)
BYTES_PER_ROUND = 256 << 20 if FULL else 1 << 16


def peer_blocks(data: bytes) -> list[int]:
    view = memoryview(data)
    return [xxhash.xxh3_64_intdigest(view[i : i + BLOCK]) for i in range(0, len(data), BLOCK)]


def repeated(function: Callable[[bytes], Any], data: bytes, times: int) -> Callable[[int], None]:
    def run(_: int) -> None:
        for _ in range(times):
            function(data)

    return run


FUNCTIONS = {
    "checksum": (checksum, xxhash.xxh3_64_intdigest),
    "digest": (digest, xxhash.xxh3_128_digest),
    "checksum_blocks": (checksum_blocks, peer_blocks),
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

"""Checksums beside the Python package xxhash, on the same buffers in the same run.

Sizes are tiny unless RINGHOLD_BENCH=full, so that every test run also runs this file. Each
benchmark checks the work it timed. `pytest benchmarks --benchmark-enable` prints the times; only
their ratios mean anything.
"""

import os

import pytest
import xxhash

from ringhold.core import checksum, checksum_blocks, digest

FULL = os.environ.get("RINGHOLD_BENCH") == "full"
SIZES = [16, 4096, 65536, 64 << 20] if FULL else [16, 4096, 65536]
BLOCK = 65536


def data_of(size):
    return bytes(range(256)) * (size // 256) + bytes(range(size % 256))


@pytest.fixture(params=SIZES, ids="{}B".format)
def data(request):
    request.node.user_properties.append(("bytes", request.param))
    return data_of(request.param)


@pytest.mark.parametrize("function", [checksum, xxhash.xxh3_64_intdigest], ids=["ringhold", "peer"])
def test_checksum(benchmark, data, function):
    benchmark.group = f"checksum {len(data)} B"
    assert benchmark(function, data) == xxhash.xxh3_64_intdigest(data)


@pytest.mark.parametrize("function", [digest, xxhash.xxh3_128_digest], ids=["ringhold", "peer"])
def test_digest(benchmark, data, function):
    benchmark.group = f"digest {len(data)} B"
    assert benchmark(function, data) == xxhash.xxh3_128_digest(data)


def peer_blocks(data):
    view = memoryview(data)
    return [xxhash.xxh3_64_intdigest(view[i : i + BLOCK]) for i in range(0, len(data), BLOCK)]


@pytest.mark.parametrize("function", [checksum_blocks, peer_blocks], ids=["ringhold", "peer"])
def test_checksum_blocks(benchmark, data, function):
    benchmark.group = f"blocks of {len(data)} B"
    assert list(benchmark(function, data)) == peer_blocks(data)

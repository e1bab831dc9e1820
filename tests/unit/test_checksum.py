"""Checksums are those of the xxHash specification, for every kind of buffer.

Method: the independent Python package xxhash is the oracle; sizes lie round every limit at which
XXH3 changes its method and at which the GIL is released.
"""

import array
import doctest
from concurrent.futures import ThreadPoolExecutor

import pytest
import xxhash

from ringhold.core import _checksum, checksum, checksum_blocks, digest
from ringhold.errors import InvalidInput

SIZES = [0, 1, 3, 4, 8, 9, 16, 17, 128, 129, 240, 241, 1024, 1025, 65535, 65536, 65537, 1 << 20]
DATA = bytes((i * 131 + i // 251) % 256 for i in range(1 << 20))


@pytest.mark.parametrize("size", SIZES)
def test_values_are_those_of_xxh3(size):
    data = DATA[:size]
    assert checksum(data) == xxhash.xxh3_64_intdigest(data)
    assert digest(data) == xxhash.xxh3_128_digest(data)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("block", [1000, 65536, 1 << 30])
def test_blocks_are_the_checksums_of_their_parts(size, block):
    data = DATA[:size]
    expected = [xxhash.xxh3_64_intdigest(data[i : i + block]) for i in range(0, size, block)]
    sums = checksum_blocks(data, block=block)
    assert isinstance(sums, array.array)
    assert sums.typecode == "Q"
    assert sums.tolist() == expected


def test_the_default_block_is_64_kib():
    assert checksum_blocks(DATA) == checksum_blocks(DATA, block=65536)
    assert len(checksum_blocks(DATA)) == len(DATA) // 65536


@pytest.mark.parametrize(
    "same", [bytearray, memoryview, lambda data: array.array("Q", data), lambda data: data]
)
def test_any_contiguous_buffer_is_its_bytes(same):
    data = DATA[:4096]
    assert checksum(same(data)) == checksum(data)
    assert digest(same(data)) == digest(data)
    assert checksum_blocks(same(data), block=100) == checksum_blocks(data, block=100)


@pytest.mark.parametrize("function", [checksum, checksum_blocks, digest])
@pytest.mark.parametrize("data", ["text", None, 7, [1, 2]])
def test_what_is_no_buffer_is_a_type_error(function, data):
    with pytest.raises(TypeError):
        function(data)


@pytest.mark.parametrize("function", [checksum, checksum_blocks, digest])
def test_strided_buffers_are_refused(function):
    with pytest.raises(BufferError, match="contiguous"):
        function(memoryview(DATA)[::2])
    with pytest.raises(BufferError, match="contiguous"):
        function(memoryview(DATA)[::-1])


@pytest.mark.parametrize("block", [0, -1, -(2**40)])
def test_a_block_has_at_least_one_byte(block):
    with pytest.raises(InvalidInput, match="at least 1 byte"):
        checksum_blocks(b"data", block=block)
    with pytest.raises(InvalidInput, match="at least 1 byte"):
        checksum_blocks(b"", block=block)


def test_a_refused_call_releases_the_buffer():
    data = bytearray(10)
    with pytest.raises(InvalidInput):
        checksum_blocks(data, block=0)
    with pytest.raises(BufferError):
        checksum(memoryview(data)[::2])
    data.append(0)
    checksum(data)
    digest(data)
    checksum_blocks(data)
    data.append(0)


def test_threads_share_one_buffer():
    expected = xxhash.xxh3_64_intdigest(DATA)
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(checksum, [DATA] * 32)) == {expected}


def test_the_examples_of_the_docstrings():
    failed, attempted = doctest.testmod(_checksum)
    assert failed == 0
    assert attempted >= 3

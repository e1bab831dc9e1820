"""Checksums are those of the xxHash specification, for every kind of buffer and however the data
comes: at once, in blocks, in pieces, or while it is copied.

Method: the independent Python package xxhash is the oracle; sizes lie round every limit at which
XXH3 changes its method, at which the GIL is released and at which copies pass by the caches.
"""

import array
import doctest
import pickle
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import xxhash

from ringhold.core import (
    Digest,
    _checksum,
    checksum,
    checksum_blocks,
    copy_checksum_blocks,
    digest,
)
from ringhold.errors import InvalidInput

SIZES = [0, 1, 3, 4, 8, 9, 16, 17, 128, 129, 240, 241, 1024, 1025, 65535, 65536, 65537, 1 << 20]
DATA = bytes((i * 131 + i // 251) % 256 for i in range(1 << 20))


@pytest.mark.parametrize("size", SIZES)
def test_values_are_those_of_xxh3(size):
    data = DATA[:size]
    assert checksum(data) == xxhash.xxh3_64_intdigest(data)
    assert digest(data) == xxhash.xxh3_128_digest(data)


def test_every_short_size_at_every_alignment_has_its_value():
    view = memoryview(DATA)
    for size in range(1101):
        data = view[size % 17 : size % 17 + size]
        assert checksum(data) == checksum(bytes(data)) == xxhash.xxh3_64_intdigest(data)
        assert digest(data) == digest(bytes(data)) == xxhash.xxh3_128_digest(data)
        assert Digest(data).digest() == digest(data)


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


@pytest.mark.parametrize("function", [checksum, checksum_blocks, digest, Digest, Digest().update])
@pytest.mark.parametrize("data", ["text", None, 7, [1, 2]])
def test_what_is_no_buffer_is_a_type_error(function, data):
    with pytest.raises(TypeError):
        function(data)


@pytest.mark.parametrize("function", [checksum, checksum_blocks, digest, Digest, Digest().update])
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
    with pytest.raises(InvalidInput, match="at least 1 byte"):
        copy_checksum_blocks(bytearray(4), b"data", block=block)


@pytest.mark.parametrize("block", [1.5, "1", None])
def test_a_block_is_a_whole_number(block):
    with pytest.raises(TypeError):
        checksum_blocks(b"data", block)
    with pytest.raises(TypeError):
        copy_checksum_blocks(bytearray(4), b"data", block)


def test_a_block_may_be_larger_than_any_data():
    assert checksum_blocks(b"data", 2**100).tolist() == [checksum(b"data")]
    assert copy_checksum_blocks(bytearray(4), b"data", 2**100).tolist() == [checksum(b"data")]
    assert checksum_blocks(b"", 2**100).tolist() == []


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


# Copies


@pytest.mark.parametrize("size", [*SIZES, (256 << 10) - 1, 256 << 10, (6 << 20) + 65537])
@pytest.mark.parametrize("block", [1000, 65536])
def test_a_copy_comes_with_the_checksums_of_its_blocks(size, block):
    source = memoryview(DATA * 8)[3 : 3 + size]
    room = bytearray(size + 200)
    sums = copy_checksum_blocks(memoryview(room)[77 : 77 + size], source, block)
    assert room[77 : 77 + size] == source
    assert not any(room[:77])
    assert not any(room[77 + size :])
    assert isinstance(sums, array.array)
    assert sums == checksum_blocks(source, block)


def test_a_copy_goes_into_any_writable_buffer():
    words = array.array("Q", bytes(32))
    copy_checksum_blocks(words, DATA[:32])
    assert words.tobytes() == DATA[:32]
    copy_checksum_blocks(dst=words, src=array.array("d", [1.5] * 4), block=8)
    assert words.tobytes() == array.array("d", [1.5] * 4).tobytes()


def test_a_copy_that_cannot_be_made_changes_nothing():
    kept = bytearray(b"kept")
    with pytest.raises(InvalidInput, match="4 and 5 bytes"):
        copy_checksum_blocks(kept, b"other")
    with pytest.raises(InvalidInput, match="4 and 0 bytes"):
        copy_checksum_blocks(kept, b"")
    with pytest.raises(TypeError):
        copy_checksum_blocks(kept, "text")
    with pytest.raises(TypeError):
        copy_checksum_blocks("text", b"data")
    with pytest.raises(BufferError):
        copy_checksum_blocks(b"fast", b"data")
    with pytest.raises(BufferError, match="contiguous"):
        copy_checksum_blocks(memoryview(kept)[::2], b"da")
    with pytest.raises(BufferError, match="contiguous"):
        copy_checksum_blocks(kept, memoryview(DATA)[:8:2])
    assert kept == b"kept"
    kept.append(0)  # no call has kept its buffer either


def test_a_copy_does_not_overlap_its_source():
    data = bytearray(range(100))
    view = memoryview(data)
    for target in (view[:50], view[49:99], view[1:51]):
        with pytest.raises(InvalidInput, match="overlap"):
            copy_checksum_blocks(target, view[:50])
    assert data == bytes(range(100))
    copy_checksum_blocks(view[50:], view[:50])
    assert data == bytes(range(50)) * 2


# Streams


@pytest.mark.parametrize("seed", range(5))
def test_a_stream_has_the_digest_of_the_whole_however_it_is_cut(seed):
    draw = random.Random(seed)
    stream, peer, at = Digest(), xxhash.xxh3_128(), 0
    while at < 600_000:
        piece = DATA[at : at + draw.choice([0, 1, 63, 64, 255, 256, 257, 1024, 65535, 65536])]
        stream.update(piece)
        peer.update(piece)
        at += len(piece)
        assert stream.digest() == peer.digest()
    assert stream.digest() == digest(DATA[:at])
    assert stream.hexdigest() == peer.hexdigest()


def test_a_stream_looks_like_those_of_hashlib():
    assert Digest().digest() == digest(b"")
    assert Digest(b"ring").digest() == digest(b"ring")
    assert len(Digest().digest()) == Digest.digest_size == Digest().digest_size == 16
    assert Digest().name == "xxh3_128"


def test_a_copy_of_a_stream_goes_its_own_way():
    stream = Digest(b"ring")
    other = stream.copy()
    stream.update(b"hold")
    other.update(b"fence")
    assert stream.digest() == digest(b"ringhold")
    assert other.digest() == digest(b"ringfence")


def test_a_refused_update_changes_nothing():
    stream = Digest(b"ring")
    with pytest.raises(TypeError):
        stream.update("hold")
    with pytest.raises(BufferError):
        stream.update(memoryview(b"hold")[::2])
    assert stream.digest() == digest(b"ring")


def test_a_stream_cannot_be_pickled():
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(Digest())


def test_threads_update_one_stream_one_after_the_other():
    """Equal pieces, so that every order of whole updates gives the same digest."""
    piece, stream = DATA * 8 + b"odd", Digest()
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(stream.update, piece) for _ in range(16)]:
            done.result()
    assert stream.digest() == xxhash.xxh3_128_digest(piece * 16)


def test_the_examples_of_the_docstrings():
    failed, attempted = doctest.testmod(_checksum)
    assert failed == 0
    assert attempted >= 10

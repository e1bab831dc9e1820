"""Goal: a chunk file is accepted exactly when every byte of it is what was written under its id.

Method: files are made by `encode_header`, damaged in every way there is (each bit of the header
page, each field with the page checksum made right again, truncation, another file's content), and
must be refused by an error that names the chunk and the field. Ranges are compared with slices.
"""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringhold.core import checksum, checksum_blocks, digest
from ringhold.errors import ChecksumMismatch, Corrupt, InvalidInput
from ringhold.nodes.base import BLOCK_BYTES, CHUNK_BYTES_MAX, ChunkId, ChunkPart, partition_of
from ringhold.nodes.chunk_file import (
    HEADER_BYTES,
    check_put,
    covering_blocks,
    encode_header,
    parse_header,
    read_range,
    verify_part,
    verify_whole,
)

CHUNK = ChunkId(bytes(range(16)), 7)
OTHER = ChunkId(bytes(range(1, 17)), 7)
DATA = random.Random(1).randbytes(3 * BLOCK_BYTES + 1234)


def header_page(data: bytes = DATA, chunk: ChunkId = CHUNK) -> bytearray:
    return bytearray(encode_header(chunk, data, digest(data)))


def with_checksum(page: bytearray) -> bytes:
    page[80:88] = bytes(8)
    page[80:88] = checksum(page).to_bytes(8, "little")
    return bytes(page)


def part_of(data: bytes, offset: int, length: int | None, page: bytes | None = None) -> ChunkPart:
    start, end = covering_blocks(len(data), offset, length)
    return ChunkPart(bytes(header_page(data)) if page is None else page, start, data[start:end])


def test_layout_is_the_documented_one() -> None:
    page = header_page()
    assert len(page) == HEADER_BYTES
    assert page[0:8] == b"RHchunk\n"
    assert struct.unpack_from("<HHI", page, 8) == (1, 0, 65536)
    assert page[16:32] == CHUNK.run
    assert list(page[32:40]) == [7, 0, 0, 0, 0, 0, 1, 1]
    assert struct.unpack_from("<HHIQQ", page, 40) == (
        partition_of(CHUNK.run),
        0,
        4,
        len(DATA),
        len(DATA),
    )
    assert page[64:80] == digest(DATA)
    assert struct.unpack_from("<4Q", page, 96) == tuple(checksum_blocks(DATA))
    assert not any(page[88:96])
    assert not any(page[128:])
    assert with_checksum(bytearray(page)) == page


def test_every_flipped_bit_of_the_header_is_refused() -> None:
    page = header_page()
    for bit in range(HEADER_BYTES * 8):
        page[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Corrupt, match=str(CHUNK)):
            parse_header(page, CHUNK)
        page[bit // 8] ^= 1 << bit % 8
    parse_header(page, CHUNK)


@pytest.mark.parametrize(
    ("offset", "value", "field"),
    [
        (0, b"X", "magic"),
        (8, b"\0", "format version"),
        (12, b"\1", "block size"),
        (16, b"\xff", "run"),
        (32, b"\x08", "number"),
        (33, b"\1", "codec"),
        (34, b"\1", "cipher"),
        (35, b"\4", "EC k"),
        (36, b"\2", "EC m"),
        (37, b"\1", "EC i"),
        (38, b"\2", "checksum algorithm"),
        (39, b"\2", "digest algorithm"),
        (40, b"\xff\xff", "partition"),
        (44, b"\5", "block count"),
        (48, b"\xff" * 8, "logical length"),
        (56, b"\1", "stored length"),
    ],
)
def test_each_wrong_field_is_named(offset: int, value: bytes, field: str) -> None:
    page = header_page()
    page[offset : offset + len(value)] = value
    with pytest.raises(Corrupt, match=rf"{CHUNK}: {field} is"):
        parse_header(with_checksum(page), CHUNK)


def test_a_newer_format_is_told_with_both_versions() -> None:
    page = header_page()
    page[8:10] = (2).to_bytes(2, "little")
    with pytest.raises(Corrupt, match="format 2, this version reads up to 1"):
        parse_header(with_checksum(page), CHUNK)


def test_a_wrong_digest_in_a_whole_header_is_found() -> None:
    page = header_page()
    page[64] ^= 1
    page = bytearray(with_checksum(page))
    parse_header(page, CHUNK)
    with pytest.raises(ChecksumMismatch, match="does not match the digest in its header"):
        verify_whole(page + DATA, CHUNK)
    with pytest.raises(ChecksumMismatch, match="the manifest says"):
        verify_part(part_of(DATA, 0, 10, bytes(page)), CHUNK, digest(DATA), len(DATA))


@pytest.mark.parametrize("length", [0, 1, HEADER_BYTES - 1])
def test_truncated_header(length: int) -> None:
    with pytest.raises(Corrupt, match=f"header truncated to {length} of 4096"):
        parse_header(header_page()[:length], CHUNK)


@pytest.mark.parametrize("cut", [1, 1234, 1235, BLOCK_BYTES, len(DATA)])
def test_truncated_and_lengthened_data(cut: int) -> None:
    content = bytes(header_page()) + DATA
    with pytest.raises(Corrupt, match="file size"):
        verify_whole(content[:-cut], CHUNK, digest(DATA))
    with pytest.raises(Corrupt, match="file size"):
        verify_whole(content + bytes(cut), CHUNK, digest(DATA))
    whole = part_of(DATA, 0, None)
    with pytest.raises(Corrupt):
        read_range(
            ChunkPart(whole.header, 0, DATA[:-cut]), CHUNK, digest(DATA), len(DATA), 0, len(DATA)
        )


def test_every_flipped_byte_of_the_data_is_found() -> None:
    data = DATA[: BLOCK_BYTES + 40]
    for position in [0, 1, 4095, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 39]:
        for bit in range(8):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            block = position // BLOCK_BYTES
            page = bytes(header_page(data))
            for check in (
                lambda page=page, bad=damaged: verify_whole(page + bad, CHUNK, digest(data)),
                lambda page=page, bad=damaged: verify_part(
                    ChunkPart(page, 0, bad), CHUNK, digest(data), len(data)
                ),
            ):
                with pytest.raises(ChecksumMismatch, match=f"block {block} "):
                    check()


def test_swapped_files_are_found() -> None:
    content = bytes(header_page(DATA, OTHER)) + DATA
    with pytest.raises(Corrupt, match=f"{CHUNK}: run is"):
        verify_whole(content, CHUNK)
    sibling = ChunkId(CHUNK.run, 8)
    with pytest.raises(Corrupt, match="number is 8, should be 7"):
        verify_whole(bytes(header_page(DATA, sibling)) + DATA, CHUNK)


def test_swapped_blocks_are_found() -> None:
    part = part_of(DATA, 0, BLOCK_BYTES)
    with pytest.raises(ChecksumMismatch, match="block 1 "):
        verify_part(ChunkPart(part.header, BLOCK_BYTES, part.data), CHUNK, digest(DATA), len(DATA))


def test_a_part_that_does_not_cover_the_range_is_refused() -> None:
    part = part_of(DATA, BLOCK_BYTES, BLOCK_BYTES)
    for offset, length in [(0, 10), (BLOCK_BYTES - 1, 2), (2 * BLOCK_BYTES, 1), (0, len(DATA))]:
        with pytest.raises(Corrupt, match="were asked for"):
            read_range(part, CHUNK, digest(DATA), len(DATA), offset, length)
    with pytest.raises(Corrupt, match="logical length"):
        verify_part(part, CHUNK, digest(DATA), len(DATA) + 1)
    for offset in (1, len(DATA), 4 * BLOCK_BYTES):
        with pytest.raises(Corrupt, match="range of the data"):
            verify_part(ChunkPart(part.header, offset, part.data), CHUNK, digest(DATA), len(DATA))


@given(
    st.integers(0, 3 * BLOCK_BYTES),
    st.integers(0, 4 * BLOCK_BYTES),
    st.none() | st.integers(0, 4 * BLOCK_BYTES),
)
@settings(max_examples=200, deadline=None)
def test_any_range_equals_the_slice(size: int, offset: int, length: int | None) -> None:
    data = DATA[:size]
    part = part_of(data, offset, length)
    expected = data[offset:] if length is None else data[offset : offset + length]
    found = read_range(part, CHUNK, digest(data), size, min(offset, size), len(expected))
    assert found == expected
    verify_whole(bytes(header_page(data)) + data, CHUNK, digest(data))


def test_the_largest_chunk_fits() -> None:
    data = bytes(CHUNK_BYTES_MAX)
    page = encode_header(CHUNK, data, digest(data))
    assert len(parse_header(page, CHUNK).block_checksums) == 256


def test_no_copy_of_the_data_is_made() -> None:
    data = bytearray(DATA)
    part = ChunkPart(bytes(header_page()), 0, data)
    view = read_range(part, CHUNK, digest(DATA), len(DATA), 5, 10)
    data[5] ^= 0xFF
    assert view[0] == data[5]


def test_what_no_node_can_take() -> None:
    good = digest(DATA)
    with pytest.raises(InvalidInput, match="16 bytes"):
        check_put(ChunkId(b"short", 0), DATA, good)
    for number in (-1, 64):
        with pytest.raises(InvalidInput, match="chunk number"):
            check_put(ChunkId(CHUNK.run, number), DATA, good)
    with pytest.raises(InvalidInput, match="exceeds"):
        check_put(CHUNK, bytes(CHUNK_BYTES_MAX + 1), good)
    with pytest.raises(InvalidInput, match="digest"):
        check_put(CHUNK, DATA, b"")
    with pytest.raises(ChecksumMismatch, match=str(CHUNK)):
        check_put(CHUNK, DATA[:-1], good)
    for offset, length in [(-1, 1), (0, -1)]:
        with pytest.raises(InvalidInput, match="negative"):
            covering_blocks(100, offset, length)

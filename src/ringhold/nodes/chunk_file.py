"""The chunk file: one header page, then the data. The same bytes on every kind of node.

    0    8  magic "RHchunk\\n"          44    4  block count
    8    2  format version             48    8  logical length
    10   2  zero                       56    8  stored length
    12   4  block size                 64   16  digest of the data (XXH3-128)
    16  16  run                        80    8  checksum of the page, this field taken as zero
    32   1  number                     88    8  zero
    33   1  codec          0: none     96  8×n  checksum of every block (XXH3-64)
    34   1  cipher         0: none            the rest of the page is zero
    35   3  EC k, m, i     0: a copy   4096     data, `stored length` bytes, to the end of the file
    38   1  checksum algorithm  1: XXH3-64
    39   1  digest algorithm    1: XXH3-128
    40   2  partition
    42   2  zero

Integers are little-endian. Magic, format version and page checksum keep their places in every
later format, so that a newer file is told from a damaged one.

Guaranteed: what `verify_part` or `read_range` returns is what was put under this id with this
digest. A flipped bit anywhere in a file, a truncated file, a file under another's name are found.
Not guaranteed: protection against somebody who changes data and checksums together and can
find XXH3 collisions.
"""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass

from ringhold.core import checksum, checksum_blocks, digest
from ringhold.env import Buffer
from ringhold.errors import ChecksumMismatch, Corrupt, InvalidInput
from ringhold.nodes.base import (
    BLOCK_BYTES,
    CHUNK_BYTES_MAX,
    CHUNKS_PER_RUN,
    RUN_BYTES,
    ChunkId,
    ChunkPart,
    partition_of,
)

HEADER_BYTES = 4096
DIGEST_BYTES = 16
MAGIC = b"RHchunk\n"
FORMAT = 1
CHECKSUM_XXH3_64 = 1
DIGEST_XXH3_128 = 1

_FIXED = struct.Struct("<8sHHI16s8BHHIQQ16sQQ")
_PAGE_CHECKSUM = slice(80, 88)
_BLOCKS_OFFSET = _FIXED.size
_NO_CHECKSUM = bytes(8)


@dataclass(frozen=True, slots=True)
class Header:
    """A header page that was found to be whole and to belong to its chunk."""

    length: int
    digest: bytes
    block_checksums: array[int]


def check_chunk_id(chunk: ChunkId) -> None:
    """InvalidInput for an id that no chunk can have."""
    if len(chunk.run) != RUN_BYTES:
        raise InvalidInput(f"a run id has {RUN_BYTES} bytes, not {len(chunk.run)}")
    if not 0 <= chunk.number < CHUNKS_PER_RUN:
        raise InvalidInput(
            f"chunk number {chunk.number} of run {chunk.run.hex()} is not in 0 … "
            f"{CHUNKS_PER_RUN - 1}"
        )


def check_put_arguments(chunk: ChunkId, data: Buffer, expected_digest: bytes) -> memoryview:
    """`data` as a flat view; InvalidInput for what no node can take."""
    check_chunk_id(chunk)
    view = memoryview(data).cast("B")
    if len(view) > CHUNK_BYTES_MAX:
        raise InvalidInput(f"chunk {chunk} of {len(view)} bytes exceeds {CHUNK_BYTES_MAX} bytes")
    if len(expected_digest) != DIGEST_BYTES:
        raise InvalidInput(f"a digest has {DIGEST_BYTES} bytes, not {len(expected_digest)}")
    return view


def check_put(chunk: ChunkId, data: Buffer, expected_digest: bytes) -> memoryview:
    """As `check_put_arguments`; ChecksumMismatch when the digest is not that of the data."""
    view = check_put_arguments(chunk, data, expected_digest)
    if digest(view) != expected_digest:
        raise ChecksumMismatch(
            f"the data for chunk {chunk} does not match its digest: it was changed on its way",
            what=str(chunk),
        )
    return view


def _little_endian(values: array[int]) -> array[int]:
    if struct.pack("=H", 1) != struct.pack("<H", 1):
        values = array("Q", values)
        values.byteswap()
    return values


def encode_header(chunk: ChunkId, data: Buffer, data_digest: bytes) -> bytes:
    """The header page for `data`, whose digest is `data_digest`."""
    length = memoryview(data).nbytes
    block_checksums = checksum_blocks(data, BLOCK_BYTES)
    page = bytearray(HEADER_BYTES)
    _FIXED.pack_into(
        page,
        0,
        MAGIC,
        FORMAT,
        0,
        BLOCK_BYTES,
        chunk.run,
        chunk.number,
        *(0, 0, 0, 0, 0),
        CHECKSUM_XXH3_64,
        DIGEST_XXH3_128,
        partition_of(chunk.run),
        0,
        len(block_checksums),
        length,
        length,
        data_digest,
        0,
        0,
    )
    encoded = _little_endian(block_checksums).tobytes()
    page[_BLOCKS_OFFSET : _BLOCKS_OFFSET + len(encoded)] = encoded
    page[_PAGE_CHECKSUM] = checksum(page).to_bytes(8, "little")
    return bytes(page)


def _refuse(chunk: ChunkId, field: str, found: object, expected: object) -> Corrupt:
    return Corrupt(f"chunk file {chunk}: {field} is {found}, should be {expected}", what=str(chunk))


def parse_header(page: Buffer, chunk: ChunkId) -> Header:
    """The header in `page`, which was read under the name of `chunk`.

    ChecksumMismatch when the page is damaged, Corrupt when it is not the header of this chunk
    or of a format this version does not read.
    """
    if len(page) < HEADER_BYTES:
        raise Corrupt(
            f"chunk file {chunk}: header truncated to {len(page)} of {HEADER_BYTES} bytes",
            what=str(chunk),
        )
    raw = bytearray(memoryview(page)[:HEADER_BYTES])
    fields = _FIXED.unpack_from(raw)
    if fields[0] != MAGIC:
        raise _refuse(chunk, "magic", fields[0], MAGIC)
    stored_checksum = bytes(raw[_PAGE_CHECKSUM])
    raw[_PAGE_CHECKSUM] = _NO_CHECKSUM
    if checksum(raw).to_bytes(8, "little") != stored_checksum:
        raise ChecksumMismatch(
            f"chunk file {chunk}: header page does not match its checksum", what=str(chunk)
        )
    if fields[1] > FORMAT:
        raise Corrupt(
            f"chunk file {chunk} has format {fields[1]}, this version reads up to {FORMAT}: "
            "upgrade Ringhold",
            what=str(chunk),
        )
    _check_fields(fields, chunk)
    block_count, length, data_digest = fields[15], fields[16], fields[18]
    block_checksums = array("Q", bytes(raw[_BLOCKS_OFFSET : _BLOCKS_OFFSET + 8 * block_count]))
    return Header(length, data_digest, _little_endian(block_checksums))


def _check_fields(fields: tuple[object, ...], chunk: ChunkId) -> None:
    length = fields[16]
    if not isinstance(length, int) or length > CHUNK_BYTES_MAX:
        raise _refuse(chunk, "logical length", length, f"at most {CHUNK_BYTES_MAX}")
    expected = {
        1: ("format version", FORMAT),
        3: ("block size", BLOCK_BYTES),
        4: ("run", chunk.run),
        5: ("number", chunk.number),
        6: ("codec", 0),
        7: ("cipher", 0),
        8: ("EC k", 0),
        9: ("EC m", 0),
        10: ("EC i", 0),
        11: ("checksum algorithm", CHECKSUM_XXH3_64),
        12: ("digest algorithm", DIGEST_XXH3_128),
        13: ("partition", partition_of(chunk.run)),
        15: ("block count", -(-length // BLOCK_BYTES)),
        17: ("stored length", length),
    }
    for index, (name, value) in expected.items():
        if fields[index] != value:
            raise _refuse(chunk, name, fields[index], value)


def covering_blocks(length: int, offset: int, count: int | None) -> tuple[int, int]:
    """(start, end) of the whole blocks of a chunk of `length` bytes that cover the range.

    A range beyond the end is cut; one that begins there is empty: (length, length).
    """
    if offset < 0 or (count is not None and count < 0):
        raise InvalidInput(f"offset {offset} and length {count} must not be negative")
    end = length if count is None else min(length, offset + count)
    if offset >= end:
        return length, length
    start = offset - offset % BLOCK_BYTES
    return start, min(length, -(-end // BLOCK_BYTES) * BLOCK_BYTES)


def check_blocks(header: Header, chunk: ChunkId, offset: int, data: Buffer) -> memoryview:
    """`data`, whole blocks from `offset` on, as a view, after their checksums were compared and,
    if it is the whole chunk, the digest."""
    view = memoryview(data).cast("B")
    end = offset + len(view)
    if end > header.length or (len(view) and offset % BLOCK_BYTES):
        raise _refuse(chunk, "range of the data", f"{offset} … {end}", f"in 0 … {header.length}")
    if end < header.length and end % BLOCK_BYTES:
        raise Corrupt(
            f"chunk file {chunk}: data ends at {end}, within a block: it was truncated",
            what=str(chunk),
        )
    first = offset // BLOCK_BYTES
    found = checksum_blocks(view, BLOCK_BYTES)
    stored = header.block_checksums[first : first + len(found)]
    if found != stored:
        bad = next(
            i for i, pair in enumerate(zip(found, stored, strict=True)) if pair[0] != pair[1]
        )
        raise ChecksumMismatch(
            f"chunk file {chunk}: block {first + bad} (from byte {(first + bad) * BLOCK_BYTES}) "
            "does not match its checksum",
            what=str(chunk),
        )
    if len(view) == header.length and digest(view) != header.digest:
        raise ChecksumMismatch(
            f"chunk file {chunk}: data does not match the digest in its header", what=str(chunk)
        )
    return view


def verify_part(
    part: ChunkPart, chunk: ChunkId, expected_digest: bytes, expected_length: int
) -> memoryview:
    """The data of `part`, a view from `part.offset` on, after everything about it was checked:
    header, ids, digest and length against the manifest's, block checksums, and the digest
    itself when the whole chunk was delivered.

    Corrupt or ChecksumMismatch name the chunk and what is wrong with it. Which range was
    delivered is not judged here: see `read_range`.
    """
    header = _expected_header(part.header, chunk, expected_digest, expected_length)
    return check_blocks(header, chunk, part.offset, part.data)


def read_range(
    part: ChunkPart,
    chunk: ChunkId,
    expected_digest: bytes,
    expected_length: int,
    offset: int,
    length: int,
) -> memoryview:
    """Exactly the bytes [offset, offset + length) out of `part`, verified as `verify_part` does.

    Corrupt when `part` does not cover them. No bytes are copied.
    """
    view = verify_part(part, chunk, expected_digest, expected_length)
    if not length:
        return view[:0]
    start = offset - part.offset
    if start < 0 or start + length > len(view):
        raise Corrupt(
            f"chunk {chunk}: bytes {offset} … {offset + length} were asked for, "
            f"{part.offset} … {part.offset + len(view)} delivered",
            what=str(chunk),
        )
    return view[start : start + length]


def verify_whole(content: Buffer, chunk: ChunkId, expected_digest: bytes | None = None) -> Header:
    """Checks `content`, all bytes of a chunk file; with `expected_digest` also that it is this
    content and no other. Returns its header; Corrupt or ChecksumMismatch otherwise."""
    view = memoryview(content).cast("B")
    header = parse_header(view, chunk)
    if expected_digest is not None and header.digest != expected_digest:
        raise _other_content(chunk, header, expected_digest)
    if len(view) != HEADER_BYTES + header.length:
        raise _refuse(chunk, "file size", len(view), HEADER_BYTES + header.length)
    check_blocks(header, chunk, 0, view[HEADER_BYTES:])
    return header


def _expected_header(
    page: Buffer, chunk: ChunkId, expected_digest: bytes, expected_length: int
) -> Header:
    header = parse_header(page, chunk)
    if header.digest != expected_digest:
        raise _other_content(chunk, header, expected_digest)
    if header.length != expected_length:
        raise _refuse(chunk, "logical length", header.length, expected_length)
    return header


def _other_content(chunk: ChunkId, header: Header, expected_digest: bytes) -> ChecksumMismatch:
    return ChecksumMismatch(
        f"chunk file {chunk}: its digest is {header.digest.hex()}, the manifest says "
        f"{expected_digest.hex()}",
        what=str(chunk),
    )

"""Goal: frames come out as they went in, however the stream is cut, and nothing else comes out.

Method: encoded frames go through `FrameReader` in random pieces; every bit of a header is flipped;
headers that announce too much must be refused before memory is taken. Errors and lists of chunks
make the round trip. The memory budget is served in order and never exceeded.
"""

from __future__ import annotations

import asyncio
import errno

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringhold.core import checksum
from ringhold.errors import (
    ChecksumMismatch,
    Closed,
    Corrupt,
    InvalidInput,
    NodeDown,
    RingholdError,
)
from ringhold.nodes.base import ChunkId
from ringhold.nodes.connection import Budget
from ringhold.nodes.protocol import (
    BODY_BYTES_MAX,
    HEAD_BYTES,
    META_BYTES_MAX,
    Frame,
    FrameReader,
    Head,
    Operation,
    Status,
    decode_error,
    encode_error,
    encode_frame,
    pack_chunks,
    parse_head,
    unpack_chunks,
)


def feed(reader: FrameReader, data: bytes, pieces: list[int]) -> list[Frame]:
    """Everything `reader` makes of `data`, given to it in pieces of these sizes, repeated."""
    frames = []
    position = turn = 0
    while position < len(data):
        buffer = reader.buffer()
        assert len(buffer)
        count = min(len(buffer), max(1, pieces[turn % len(pieces)]), len(data) - position)
        buffer[:count] = data[position : position + count]
        reader.received(count)
        position += count
        turn += 1
        while (step := reader.advance()) is not None:
            if isinstance(step, Head):
                reader.accept()
            else:
                frames.append(step)
    return frames


@given(
    st.lists(
        st.tuples(
            st.sampled_from(Operation),
            st.sampled_from(Status),
            st.integers(0, 2**64 - 1),
            st.integers(0, 70_000),
            st.integers(0, 200_000),
        ),
        max_size=6,
    ),
    st.lists(st.integers(1, 150_000), min_size=1, max_size=5),
)
@settings(max_examples=150, deadline=None)
def test_frames_survive_any_segmentation(
    wanted: list[tuple[Operation, Status, int, int, int]], pieces: list[int]
) -> None:
    stream = b""
    contents = []
    for operation, status, request, meta_bytes, body_bytes in wanted:
        meta = bytes(i % 251 for i in range(meta_bytes % 300)) + bytes(max(0, meta_bytes - 300))
        body = bytes([request % 256]) * body_bytes
        contents.append((operation, status, request, meta, body))
        stream += encode_frame(operation, status, request, meta, body_bytes) + body
    frames = feed(FrameReader(), stream, pieces)
    assert [
        (f.head.operation, f.head.status, f.head.request, bytes(f.meta), bytes(f.body))
        for f in frames
    ] == contents


def test_every_flipped_bit_of_a_frame_header_is_refused() -> None:
    head = bytearray(encode_frame(Operation.PUT, Status.REQUEST, 77, b"meta", 8192)[:HEAD_BYTES])
    parse_head(head)
    for bit in range(HEAD_BYTES * 8):
        head[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Corrupt, match="frame: "):
            parse_head(head)
        head[bit // 8] ^= 1 << bit % 8


def test_every_flipped_bit_of_the_meta_part_is_refused() -> None:
    frame = bytearray(encode_frame(Operation.DELETE, Status.REQUEST, 1, b"which chunks"))
    for bit in range(HEAD_BYTES * 8, len(frame) * 8):
        frame[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ChecksumMismatch, match="meta part"):
            feed(FrameReader(), bytes(frame), [len(frame)])
        frame[bit // 8] ^= 1 << bit % 8


@pytest.mark.parametrize(
    ("offset", "value", "match"),
    [
        (4, b"\2", "protocol version 2, this one is 1"),
        (5, b"\0", "operation 0"),
        (5, b"\x0a", "operation 10"),
        (6, b"\3", "status 3"),
        (16, (META_BYTES_MAX + 1).to_bytes(4, "little"), "exceed"),
        (20, b"\1", "reserved 1"),
        (24, (BODY_BYTES_MAX + 1).to_bytes(8, "little"), "exceed"),
        (24, b"\xff" * 8, "exceed"),
    ],
)
def test_what_a_checksum_does_not_excuse(offset: int, value: bytes, match: str) -> None:
    head = bytearray(encode_frame(Operation.PUT, Status.REQUEST, 1, b""))
    head[offset : offset + len(value)] = value
    head[40:48] = checksum(head[:40]).to_bytes(8, "little")
    reader = FrameReader()
    reader.buffer()[:HEAD_BYTES] = head
    reader.received(HEAD_BYTES)
    with pytest.raises(Corrupt, match=match):
        reader.advance()


def test_too_much_cannot_be_sent_either() -> None:
    with pytest.raises(InvalidInput, match="exceeds"):
        encode_frame(Operation.PUT, Status.REQUEST, 1, bytes(META_BYTES_MAX + 1))
    with pytest.raises(InvalidInput, match="exceeds"):
        encode_frame(Operation.PUT, Status.REQUEST, 1, b"", BODY_BYTES_MAX + 1)


def test_lists_of_chunks_make_the_round_trip() -> None:
    chunks = [ChunkId(bytes([i]) * 16, i) for i in range(64)]
    assert unpack_chunks(pack_chunks(chunks)) == chunks
    assert unpack_chunks(b"") == []
    with pytest.raises(Corrupt, match="18 bytes are no list"):
        unpack_chunks(bytes(18))
    with pytest.raises(InvalidInput, match="chunk number 64"):
        unpack_chunks(bytes(16) + b"\x40")


@pytest.mark.parametrize(
    "error",
    [
        InvalidInput("wrong"),
        ChecksumMismatch("rotten", what="chunk 1"),
        Corrupt("broken", what="chunk 2"),
        NodeDown("off", node="n1"),
        FileNotFoundError(errno.ENOENT, "no such chunk"),
        FileExistsError(errno.EEXIST, "not empty"),
        PermissionError(errno.EACCES, "closed"),
        OSError(errno.ENOSPC, "full"),
    ],
)
def test_errors_cross_the_wire_as_what_they_are(error: Exception) -> None:
    back = decode_error(encode_error(error), "n1")
    assert type(back) is type(error)
    assert isinstance(back, RingholdError) == isinstance(error, RingholdError)
    assert getattr(back, "errno", None) == getattr(error, "errno", None)
    assert getattr(back, "what", "") == getattr(error, "what", "")
    assert str(error.args[-1]) in str(back)


def test_what_a_client_has_no_use_for_becomes_node_down() -> None:
    for error in (Closed("the node was closed"), ZeroDivisionError("a mistake"), OSError("?")):
        back = decode_error(encode_error(error), "n1")
        assert type(back) is NodeDown
        assert str(error) in str(back)


def test_the_budget_is_served_in_order_and_withdrawn_requests_leave_it() -> None:
    async def scenario() -> None:
        budget = Budget(100)
        await budget.take(60)
        large, small = budget.request(50), budget.request(10)
        assert not large.done()
        # Small ones do not overtake: the large one would starve.
        assert not small.done()
        budget.withdraw(50, large)
        assert small.done()
        budget.withdraw(10, small)
        waiting = asyncio.ensure_future(budget.take(100))
        await asyncio.sleep(0)
        assert not waiting.done()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        budget.give(60)
        await asyncio.wait_for(budget.take(100), 1)

    asyncio.run(scenario())

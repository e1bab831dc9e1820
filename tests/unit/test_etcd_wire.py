"""Goal: messages go over the wire as protocol buffers have them, and nothing that comes over it
does more than raise WireError.

Method: bytes written out by hand from the rules of the encoding; any message must come back from
its bytes, by hypothesis; each of a message's bytes is cut off and changed; unknown fields of every
type are put between the known ones. At last a real etcd answers every call.
"""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from etcd_client import Client, client
from etcd_servers import Etcd, etcd
from hypothesis import given
from hypothesis import strategies as st

from ringhold.store.etcd import wire
from ringhold.store.etcd.wire import Message, WireError

MESSAGES: list[type[Message]] = [
    each
    for each in vars(wire).values()
    if isinstance(each, type) and issubclass(each, Message) and each is not Message
]

GOLDEN: list[tuple[Message, str]] = [
    (wire.StatusRequest(), ""),
    # Field 1, a number (key 1 << 3 | 0).
    (wire.LeaseRequest(0), ""),
    (wire.LeaseRequest(1), "08 01"),
    (wire.LeaseRequest(127), "08 7f"),
    (wire.LeaseRequest(128), "08 80 01"),
    (wire.LeaseRequest(300), "08 ac 02"),
    (wire.LeaseRequest((1 << 63) - 1), "08 ff ff ff ff ff ff ff ff 7f"),
    (wire.LeaseRequest(-1), "08 ff ff ff ff ff ff ff ff ff 01"),
    (wire.LeaseRequest(-(1 << 63)), "08 80 80 80 80 80 80 80 80 80 01"),
    # Bytes (key 1 << 3 | 2), their length, a truth.
    (wire.PutRequest(b"k", b"vw", 300), "0a 01 6b  12 02 76 77  18 ac 02"),
    (wire.PutRequest(b"", b"\0"), "12 01 00"),
    (wire.RangeRequest(b"a", b"\0", keys_only=True), "0a 01 61  12 01 00  40 01"),
    (wire.PutRequest(value=b"v" * 200), "12 c8 01" + " 76" * 200),
    (wire.AuthenticateRequest("ü", ""), "0a 02 c3 bc"),
    # A field beyond 15 has a key of two bytes: 64 << 3 | 2 is 514.
    (wire.Compare(2, 1, b"a", 7, range_end=b"b"), "08 02  10 01  1a 01 61  28 07  82 04 01 62"),
    # Messages within messages, the empty one as well.
    (wire.RequestOp(request_put=wire.PutRequest(b"k")), "12 03  0a 01 6b"),
    (wire.WatchRequest(cancel_request=wire.WatchCancelRequest()), "12 00"),
    (
        wire.TxnRequest(
            compare=(wire.Compare(key=b"k"),),
            success=(
                wire.RequestOp(request_put=wire.PutRequest(b"k")),
                wire.RequestOp(request_delete_range=wire.DeleteRangeRequest(b"l")),
            ),
            failure=(wire.RequestOp(request_range=wire.RangeRequest(b"k")),),
        ),
        "0a 03 1a 01 6b  12 05 12 03 0a 01 6b  12 05 1a 03 0a 01 6c  1a 05 0a 03 0a 01 6b",
    ),
    (
        wire.StatusResponse(wire.Header(9), errors=("a", "", "b")),
        "0a 02 18 09  42 01 61  42 00  42 01 62",
    ),
]

UNKNOWN = {
    "number": "f8 07 80 80 80 80 80 80 80 80 80 01",
    "eight bytes": "f9 07 01 02 03 04 05 06 07 08",
    "bytes": "fa 07 03 08 01 02",
    "no bytes": "fa 07 00",
    "four bytes": "fd 07 ff ff ff ff",
    "a number where bytes are known": "08 05",
    "eight bytes where bytes are known": "09 01 02 03 04 05 06 07 08",
    "bytes where a number is known": "1a 02 08 01",
}


def numbers() -> st.SearchStrategy[int]:
    powers = [1 << bits for bits in range(63)]
    edges = [edge for power in powers for edge in (power - 1, power, -power, -power - 1)]
    return st.integers(-(1 << 63), (1 << 63) - 1) | st.sampled_from(edges)


def messages(kind: type[Message]) -> st.SearchStrategy[Any]:
    """Any message of a kind, by what its annotations say."""
    hints = get_type_hints(kind)
    return st.builds(kind, **{name: values(hints[name]) for name in kind.__struct_fields__})


def values(hint: Any) -> st.SearchStrategy[Any]:
    simple = {int: numbers(), bool: st.booleans(), bytes: st.binary(), str: st.text()}
    if hint in simple:
        return simple[hint]
    if get_origin(hint) is tuple:
        return st.lists(values(get_args(hint)[0]), max_size=4).map(tuple)
    kinds = [each for each in get_args(hint) if each is not type(None)]
    return st.none() | messages(kinds[0]) if kinds else messages(hint)


@pytest.mark.parametrize(("message", "told"), GOLDEN)
def test_the_bytes_are_those_of_the_rules(message: Message, told: str) -> None:
    assert message.encode().hex() == bytes.fromhex(told).hex()
    assert type(message).decode(bytes.fromhex(told)) == message


@pytest.mark.parametrize("kind", MESSAGES)
def test_a_message_comes_back_from_its_bytes(kind: type[Message]) -> None:
    @given(messages(kind))
    def comes_back(message: Message) -> None:
        assert kind.decode(message.encode()) == message

    comes_back()


@pytest.mark.parametrize("kind", MESSAGES)
def test_no_bytes_are_the_defaults(kind: type[Message]) -> None:
    assert kind.decode(b"") == kind()


FULL = wire.KeyValue(b"key", 300, 301, 2, b"value", 1 << 40)


@pytest.mark.parametrize("unknown", UNKNOWN.values(), ids=UNKNOWN)
def test_unknown_fields_are_skipped(unknown: str) -> None:
    # Each field of FULL by itself, with the unknown one before, between and after.
    fields = [
        wire.KeyValue(**{name: getattr(FULL, name)}).encode() for name in FULL.__struct_fields__
    ]
    between = bytes.fromhex(unknown)
    data = between + between.join(fields) + between
    assert wire.KeyValue.decode(data) == FULL
    within = wire.RangeResponse(kvs=(FULL,)).encode()
    inner = bytes([0x12, len(data)]) + data
    assert wire.RangeResponse.decode(inner + within).kvs == (FULL, FULL)


@pytest.mark.parametrize(
    "data",
    [
        # Groups, and types that there are not.
        *("0b", "0c", "0e 00", "0f", "0b 0c", "fb 07"),
        # Lengths below nothing.
        *("0a ff ff ff ff ff ff ff ff ff 01", "fa 07 ff ff ff ff ff ff ff ff ff 01"),
        # Numbers of more than 64 bits.
        *(
            "18" + " 80" * 10 + " 01",
            "08" + " 80" * 10 + " 01",
            "ff" * 10 + "01",
            "18" + " ff" * 20,
        ),
        "fa 07" + " 80" * 1000,
    ],
)
def test_what_is_no_field_is_refused(data: str) -> None:
    for kind in MESSAGES:
        with pytest.raises(WireError):
            kind.decode(bytes.fromhex(data))


def deep() -> wire.TxnResponse:
    answer = wire.RangeResponse(wire.Header(1 << 50), (FULL, FULL), True, 1000)
    return wire.TxnResponse(wire.Header(300), True, (wire.ResponseOp(answer),) * 2)


def test_bytes_cut_off_anywhere_raise_wire_error_or_are_less() -> None:
    message = deep()
    data = message.encode()
    whole = 0
    for length in range(len(data)):
        try:
            found = wire.TxnResponse.decode(data[:length])
        except WireError:
            continue
        # Between two fields: a message that had fewer is none the worse.
        whole += 1
        assert wire.TxnResponse.decode(found.encode()) == found
    assert whole == 4


def test_a_field_does_not_reach_beyond_its_message() -> None:
    """The bytes after a message are there, and belong to the one around it."""
    for inner in ("18", "18 80", "80", "0a 05", "0a", "fa 07 04", "f9 07", "fd 07 00", "f8 07 ff"):
        cut = bytes.fromhex(inner)
        with pytest.raises(WireError):
            wire.HeaderOnly.decode(bytes([0x0A, len(cut)]) + cut + b"\x0a\x00" * 20)


@given(st.binary(max_size=60), st.sampled_from(MESSAGES))
def test_any_bytes_are_a_message_or_raise_wire_error(data: bytes, kind: type[Message]) -> None:
    try:
        message = kind.decode(data)
    except WireError:
        return
    assert kind.decode(message.encode()) == message


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_changed_bytes_are_a_message_or_raise_wire_error(place: int, change: int) -> None:
    data = bytearray(deep().encode())
    data[place % len(data)] ^= change
    try:
        wire.TxnResponse.decode(bytes(data))
    except WireError:
        return


def test_text_that_is_none_is_refused() -> None:
    with pytest.raises(WireError):
        wire.AuthenticateResponse.decode(b"\x12\x02\xff\xfe")
    # What are bytes by their type may be any.
    assert wire.KeyValue.decode(b"\x0a\x02\xff\xfe").key == b"\xff\xfe"


def test_the_last_of_several_counts() -> None:
    assert wire.LeaseRequest.decode(bytes.fromhex("08 01 08 02")).id == 2
    assert wire.KeyValue.decode(bytes.fromhex("0a 01 61 0a 00")).key == b""


def test_truths_are_any_number_but_none() -> None:
    for told, meant in [("18 00", False), ("18 01", True), ("18 80 80 01", True)]:
        found = wire.RangeResponse.decode(bytes.fromhex(told)).more
        assert found is meant


def test_numbers_of_64_bits_without_a_sign_keep_their_bits() -> None:
    """Members and leases of etcd are such, and go back as they came."""
    data = b"\x20" + b"\xff" * 9 + b"\x01"
    status = wire.StatusResponse.decode(data)
    assert status.leader % (1 << 64) == (1 << 64) - 1
    assert status.encode().endswith(data)


def test_many_and_large_fields_come_back() -> None:
    many = wire.RangeResponse(kvs=(FULL,) * 20_000, count=20_000)
    assert wire.RangeResponse.decode(many.encode()) == many
    large = wire.PutRequest(b"k" * 100_000, bytes(5_000_000))
    assert wire.PutRequest.decode(large.encode()) == large


def test_names_of_numbers_and_views_of_bytes_are_sent_as_what_they_are() -> None:
    assert wire.Compare(wire.Result.LESS, wire.Target.MOD).encode() == b"\x08\x02\x10\x02"
    put = wire.PutRequest(bytearray(b"k"), memoryview(b"v"))  # type: ignore[arg-type]
    assert put.encode() == wire.PutRequest(b"k", b"v").encode()


# A real etcd


@pytest.fixture(scope="module", params=["distro", pytest.param("debian", marks=pytest.mark.system)])
def server(request: pytest.FixtureRequest) -> Iterator[Etcd]:
    with etcd(request.param) as server:
        yield server


@pytest.fixture(scope="module")
def real(server: Etcd) -> Iterator[Client]:
    with client(*server.endpoints) as real:
        yield real


def test_etcd_puts_and_ranges(real: Client) -> None:
    value = bytes(range(256))
    first = real.put(b"r/a", value)
    second = real.put(b"r/b")
    third = real.put(b"r/a", b"")
    request = wire.RangeRequest(b"r/", b"r0")
    found = real.call("KV/Range", request, wire.RangeResponse)
    assert found == wire.RangeResponse(
        wire.Header(third),
        (wire.KeyValue(b"r/a", first, third, 2), wire.KeyValue(b"r/b", second, second, 1)),
        count=2,
    )
    assert real.get(b"r/a", first) == wire.KeyValue(b"r/a", first, first, 1, value)
    descending = wire.RangeRequest(
        b"r/", b"r0", limit=1, sort_order=wire.SortOrder.DESCEND, keys_only=True
    )
    found = real.call("KV/Range", descending, wire.RangeResponse)
    assert ([each.key for each in found.kvs], found.more, found.count) == ([b"r/b"], True, 2)
    newer = wire.RangeRequest(b"r/", b"r0", min_create_revision=second, serializable=True)
    found = real.call("KV/Range", newer, wire.RangeResponse)
    assert [each.key for each in found.kvs] == [b"r/b"]


def test_etcd_takes_both_ways_of_a_transaction(real: Client) -> None:
    created = real.put(b"t/a", b"1")
    request = wire.TxnRequest(
        compare=(
            wire.Compare(wire.Result.EQUAL, wire.Target.CREATE, b"t/a", created),
            wire.Compare(wire.Result.LESS, wire.Target.MOD, b"t/", 0, created + 1, b"t0"),
            wire.Compare(target=wire.Target.CREATE, key=b"t/absent"),
        ),
        success=(
            wire.RequestOp(request_put=wire.PutRequest(b"t/b", b"2")),
            wire.RequestOp(request_range=wire.RangeRequest(b"t/", b"t0")),
            wire.RequestOp(request_delete_range=wire.DeleteRangeRequest(b"t/a")),
        ),
        failure=(
            wire.RequestOp(request_range=wire.RangeRequest(b"t/a")),
            wire.RequestOp(request_range=wire.RangeRequest(b"t/b", keys_only=True)),
        ),
    )
    done = real.txn(request)
    assert done.succeeded
    assert done.header.revision == created + 1
    nothing, ranged, deleted = done.responses
    assert nothing == deleted == wire.ResponseOp()
    assert ranged.response_range is not None
    assert [(each.key, each.value) for each in ranged.response_range.kvs] == [
        (b"t/a", b"1"),
        (b"t/b", b"2"),
    ]
    refused = real.txn(request)
    assert not refused.succeeded
    gone, there = (each.response_range for each in refused.responses)
    assert gone == wire.RangeResponse(wire.Header(created + 1))
    assert there is not None
    assert there.kvs == (wire.KeyValue(b"t/b", created + 1, created + 1, 1),)


def test_etcd_grants_keeps_and_revokes_leases(real: Client) -> None:
    lease = (1 << 63) - 2
    request = wire.LeaseGrantRequest(60, lease)
    granted = real.call("Lease/LeaseGrant", request, wire.LeaseGrantResponse)
    assert (granted.id, granted.ttl_s, granted.error) == (lease, 60, "")
    real.put(b"l/a", lease=lease)
    found = real.get(b"l/a")
    assert found is not None
    assert found.lease == lease
    one = wire.LeaseRequest(lease)
    kept = next(real.stream("Lease/LeaseKeepAlive", iter([one]), wire.LeaseKeepAliveResponse))
    assert (kept.id, kept.ttl_s) == (lease, 60)
    left = real.call("Lease/LeaseTimeToLive", one, wire.LeaseKeepAliveResponse)
    assert left.id == lease
    assert 50 < left.ttl_s <= 60
    revoked = real.call("Lease/LeaseRevoke", one, wire.HeaderOnly)
    assert revoked.header.revision == found.mod_revision + 1
    assert real.get(b"l/a") is None
    ended = next(real.stream("Lease/LeaseKeepAlive", iter([one]), wire.LeaseKeepAliveResponse))
    assert (ended.id, ended.ttl_s) == (lease, 0)


def test_etcd_tells_what_is_watched(server: Etcd, real: Client) -> None:
    first = real.put(b"w/a", b"1")
    requests: queue.Queue[wire.WatchRequest | None] = queue.Queue()
    answers = real.stream("Watch/Watch", iter(requests.get, None), wire.WatchResponse)
    try:
        create = wire.WatchCreateRequest(b"w/", b"w0", first, watch_id=7, fragment=True)
        requests.put(wire.WatchRequest(create_request=create))
        created = next(answers)
        assert (created.watch_id, created.created) == (7, True)
        told = next(answers)
        put = wire.KeyValue(b"w/a", first, first, 1, b"1")
        assert told.events == (wire.Event(0, put),)
        deletion = wire.RequestOp(request_delete_range=wire.DeleteRangeRequest(b"w/a"))
        second = real.txn(wire.TxnRequest(success=(deletion,))).header.revision
        gone = wire.KeyValue(b"w/a", mod_revision=second)
        assert next(answers).events == (wire.Event(1, gone),)
        requests.put(wire.WatchRequest(cancel_request=wire.WatchCancelRequest(7)))
        canceled = next(answers)
        assert (canceled.watch_id, canceled.canceled) == (7, True)
        server.compact(second)
        old = wire.WatchCreateRequest(b"w/", start_revision=first, watch_id=8)
        requests.put(wire.WatchRequest(create_request=old))
        compacted = next(each for each in answers if each.canceled)
        assert (compacted.watch_id, compacted.compact_revision) == (8, second)
    finally:
        requests.put(None)
        answers.cancel()


def test_etcd_tells_its_version(server: Etcd, real: Client) -> None:
    status = real.call("Maintenance/Status", wire.StatusRequest(), wire.StatusResponse)
    assert status.version.startswith("{}.{}.".format(*server.version))
    assert status.leader
    assert status.errors == ()

"""The messages of etcd v3 that Ringhold uses.

Guarantees that what is encoded is read by etcd 3.4 and 3.5 as it stands here, and that whatever
they answer is read, but for fields that are not needed.

Source: etcd's `rpc.proto` and `kv.proto`, for the numbers of the fields.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated

from ringhold.store.etcd.protobuf import Message as Message
from ringhold.store.etcd.protobuf import WireError as WireError

# Answers and what they contain


class Header(Message, frozen=True):
    """What else it tells, of the member and its cluster, takes longer to read than most answers."""

    revision: Annotated[int, 3] = 0


NO_HEADER = Header()


class TermHeader(Message, frozen=True):
    """As `Header`, where it matters which election the member knows of."""

    raft_term: Annotated[int, 4] = 0


NO_TERM = TermHeader()


class TermOnly(Message, frozen=True):
    header: Annotated[TermHeader, 1] = NO_TERM


class KeyValue(Message, frozen=True):
    key: Annotated[bytes, 1] = b""
    create_revision: Annotated[int, 2] = 0
    mod_revision: Annotated[int, 3] = 0
    version: Annotated[int, 4] = 0
    value: Annotated[bytes, 5] = b""
    lease: Annotated[int, 6] = 0


NO_KEY = KeyValue()


class HeaderOnly(Message, frozen=True):
    """The answer to a put, a deletion, a revocation: what else it tells is not needed."""

    header: Annotated[Header, 1] = NO_HEADER


# Keys


class SortOrder(IntEnum):
    NONE = 0
    DESCEND = 2


class RangeRequest(Message, frozen=True):
    """Of one key, or with `range_end` of [key, range_end), in key order unless `sort_order` says
    otherwise; of the newest revision when `revision` is 0. `serializable`: from what the member
    has, without asking the others."""

    key: Annotated[bytes, 1] = b""
    range_end: Annotated[bytes, 2] = b""
    limit: Annotated[int, 3] = 0
    revision: Annotated[int, 4] = 0
    sort_order: Annotated[int, 5] = 0
    serializable: Annotated[bool, 7] = False
    keys_only: Annotated[bool, 8] = False
    min_create_revision: Annotated[int, 12] = 0


class RangeResponse(Message, frozen=True):
    header: Annotated[Header, 1] = NO_HEADER
    kvs: Annotated[tuple[KeyValue, ...], 2] = ()
    more: Annotated[bool, 3] = False
    count: Annotated[int, 4] = 0


class PutRequest(Message, frozen=True):
    key: Annotated[bytes, 1] = b""
    value: Annotated[bytes, 2] = b""
    lease: Annotated[int, 3] = 0


class DeleteRangeRequest(Message, frozen=True):
    key: Annotated[bytes, 1] = b""
    range_end: Annotated[bytes, 2] = b""


class Result(IntEnum):
    EQUAL = 0
    LESS = 2


class Target(IntEnum):
    VERSION = 0
    CREATE = 1
    MOD = 2


class Compare(Message, frozen=True):
    """With `range_end` it holds if it does for every key of the range; a key that is missing has
    the revisions 0. Exactly one of the revisions is given, 0 included."""

    result: Annotated[int, 1] = 0
    target: Annotated[int, 2] = 0
    key: Annotated[bytes, 3] = b""
    create_revision: Annotated[int, 5] = 0
    mod_revision: Annotated[int, 6] = 0
    range_end: Annotated[bytes, 64] = b""


class RequestOp(Message, frozen=True):
    """Exactly one of them."""

    request_range: Annotated[RangeRequest | None, 1] = None
    request_put: Annotated[PutRequest | None, 2] = None
    request_delete_range: Annotated[DeleteRangeRequest | None, 3] = None


class ResponseOp(Message, frozen=True):
    response_range: Annotated[RangeResponse | None, 1] = None


class TxnRequest(Message, frozen=True):
    compare: Annotated[tuple[Compare, ...], 1] = ()
    success: Annotated[tuple[RequestOp, ...], 2] = ()
    failure: Annotated[tuple[RequestOp, ...], 3] = ()


class TxnResponse(Message, frozen=True):
    header: Annotated[Header, 1] = NO_HEADER
    succeeded: Annotated[bool, 2] = False
    responses: Annotated[tuple[ResponseOp, ...], 3] = ()


NO_TXN = TxnRequest()
NO_ANSWER = TxnResponse()


class TxnOp(Message, frozen=True):
    """A `RequestOp` that is a transaction itself."""

    request_txn: Annotated[TxnRequest, 4] = NO_TXN


class TogetherRequest(Message, frozen=True):
    """A `TxnRequest` that compares nothing."""

    success: Annotated[tuple[TxnOp, ...], 2] = ()


class TxnOpAnswer(Message, frozen=True):
    """The header within says nothing: that of the whole has the revision."""

    response_txn: Annotated[TxnResponse, 4] = NO_ANSWER


class TogetherResponse(Message, frozen=True):
    header: Annotated[Header, 1] = NO_HEADER
    responses: Annotated[tuple[TxnOpAnswer, ...], 3] = ()


# Leases


class LeaseGrantRequest(Message, frozen=True):
    ttl_s: Annotated[int, 1] = 0
    id: Annotated[int, 2] = 0


class LeaseGrantResponse(Message, frozen=True):
    header: Annotated[Header, 1] = NO_HEADER
    id: Annotated[int, 2] = 0
    ttl_s: Annotated[int, 3] = 0
    error: Annotated[str, 4] = ""


class LeaseRequest(Message, frozen=True):
    """To revoke a lease, or to keep it alive."""

    id: Annotated[int, 1] = 0


class LeaseKeepAliveResponse(Message, frozen=True):
    """`ttl_s` is 0 for a lease that is gone."""

    header: Annotated[TermHeader, 1] = NO_TERM
    id: Annotated[int, 2] = 0
    ttl_s: Annotated[int, 3] = 0


# Watches


class WatchCreateRequest(Message, frozen=True):
    key: Annotated[bytes, 1] = b""
    range_end: Annotated[bytes, 2] = b""
    start_revision: Annotated[int, 3] = 0
    progress_notify: Annotated[bool, 4] = False
    watch_id: Annotated[int, 7] = 0
    fragment: Annotated[bool, 8] = False


class WatchCancelRequest(Message, frozen=True):
    watch_id: Annotated[int, 1] = 0


class WatchRequest(Message, frozen=True):
    """Exactly one of them."""

    create_request: Annotated[WatchCreateRequest | None, 1] = None
    cancel_request: Annotated[WatchCancelRequest | None, 2] = None


class Event(Message, frozen=True):
    """`type` 0 is a put, 1 a deletion, whose `kv` has a key and a `mod_revision` only."""

    type: Annotated[int, 1] = 0
    kv: Annotated[KeyValue, 2] = NO_KEY


class WatchResponse(Message, frozen=True):
    header: Annotated[Header, 1] = NO_HEADER
    watch_id: Annotated[int, 2] = 0
    created: Annotated[bool, 3] = False
    canceled: Annotated[bool, 4] = False
    compact_revision: Annotated[int, 5] = 0
    cancel_reason: Annotated[str, 6] = ""
    fragment: Annotated[bool, 7] = False
    events: Annotated[tuple[Event, ...], 11] = ()


# Servers and users


class AuthenticateRequest(Message, frozen=True):
    name: Annotated[str, 1] = ""
    password: Annotated[str, 2] = ""


class AuthenticateResponse(Message, frozen=True):
    header: Annotated[Header, 1] = NO_HEADER
    token: Annotated[str, 2] = ""


class StatusRequest(Message, frozen=True):
    pass


class StatusResponse(Message, frozen=True):
    header: Annotated[Header, 1] = NO_HEADER
    version: Annotated[str, 2] = ""
    leader: Annotated[int, 4] = 0
    errors: Annotated[tuple[str, ...], 8] = ()

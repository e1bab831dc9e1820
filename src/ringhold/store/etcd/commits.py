"""Commits as transactions of etcd.

One transaction does it all. It compares, and that the nonce is new; then it writes, the nonce as
well. Otherwise it reads, at the same revision, what tells why: the nonce, if it was applied before,
or what the first compare that fails has found. So a request can be sent again, whoever answered
nothing before, and is applied once.

A commit that writes nothing deletes a key that never exists, so that etcd does not take it for a
read: that would be done within the call, and end etcd 3.5 before 3.5.5 when the call is cancelled
or late (etcd's issue 14110). As a proposal it also tells the newest revision for certain.

A try that was not answered may be applied at any later moment, also after another try was refused.
Before that one is believed the nonce is therefore sealed.
"""

from __future__ import annotations

from collections.abc import Sequence

from ringhold.errors import Conflict, InvalidInput
from ringhold.store.base import Absent, Born, Compare, Empty, NoneBornAfter, Unchanged
from ringhold.store.etcd import wire
from ringhold.store.etcd.address import EtcdAddress
from ringhold.store.etcd.names import CHECKSUM_BYTES, Names
from ringhold.store.etcd.wire import RequestOp, Result, Target
from ringhold.store.requests import REVISION_MAX, CommitRequest

SEALED = b"refused"
"""What a nonce has as its value that must not be used any more; one that was applied has none."""

NOTHING = wire.RangeResponse()

OPERATION_BYTES = 64
"""What the encoding of a compare, a put or a deletion adds to its keys and its value, at most."""


def check_size(request: CommitRequest, names: Names, address: EtcdAddress) -> None:
    """InvalidInput, naming the flag of etcd, for more than it takes in one transaction."""
    changes = len(request.puts) + len(request.deletes)
    most = max(len(request.compares), changes) + 1
    if most > address.max_txn_ops:
        raise InvalidInput(
            f"a commit of {len(request.compares)} compares and {changes} changes exceeds what etcd "
            f"takes, {address.max_txn_ops - 1} of each: start etcd with a larger --max-txn-ops and "
            "say so in the URL, ?max_txn_ops=…"
        )
    size = bytes_max(request, names)
    if size > address.max_request_bytes:
        raise InvalidInput(
            f"a commit of about {size} bytes exceeds what etcd takes, {address.max_request_bytes} "
            "bytes: start etcd with a larger --max-request-bytes and say so in the URL, "
            "?max_request_bytes=…"
        )


def bytes_max(request: CommitRequest, names: Names) -> int:
    """What etcd is sent for it has fewer bytes."""
    # Keys of compares go out twice: once more in what is read when they do not hold.
    size = sum(OPERATION_BYTES + len(names.data) + len(key) for key in request.deletes)
    size += sum(2 * (OPERATION_BYTES + 2 * len(names.data)) for _ in request.compares)
    size += sum(2 * compare_bytes(compare) for compare in request.compares)
    size += sum(
        OPERATION_BYTES + CHECKSUM_BYTES + len(names.data) + len(put.key) + len(put.value)
        for put in request.puts
    )
    return size + 1024


def compare_bytes(compare: Compare) -> int:
    match compare:
        case Absent(key) | Unchanged(key) | Born(key):
            return len(key)
        case Empty(start, end) | NoneBornAfter(start, end):
            return len(start) + len(end)


class Sealed(Exception):
    """The commit was refused before; it can be asked for anew with `sealed_at=revision`."""

    def __init__(self, revision: int):
        super().__init__()
        self.revision = revision


class Commit:
    """One commit, ready to be sent as often as it takes.

    nonce_lease: see `nonces`
    sealed_at: the revision at which earlier tries under the nonce were shut out; 0: none were
    """

    def __init__(
        self,
        request: CommitRequest,
        names: Names,
        nonce: bytes,
        nonce_lease: int,
        sealed_at: int = 0,
    ):
        self._names = names
        self._request = request
        self.nonce = nonce
        self.writes = request.writes
        self._nonce_key = names.nonce(nonce)
        self.nonce_lease = nonce_lease
        # A key that does not exist was changed at revision 0.
        self._unused = wire.Compare(target=Target.MOD, key=self._nonce_key, mod_revision=sealed_at)
        self._sealed_at = sealed_at
        # Those of empty ranges etcd cannot say.
        self._compares = [
            (index, compare)
            for index, compare in enumerate(request.compares)
            if not always_holds(compare)
        ]
        compares = [self._compared(compare) for _, compare in self._compares]
        seen = [RequestOp(request_range=self._seen(compare)) for _, compare in self._compares]
        success: list[RequestOp] = []
        self._looks_at_nonce = request.writes or request.nonce is not None
        if self._looks_at_nonce:
            key = self._nonce_key
            compares.append(self._unused)
            seen.append(RequestOp(request_range=wire.RangeRequest(key)))
        if request.writes:
            success = self._writes(request)
            success.append(RequestOp(request_put=wire.PutRequest(key, b"", nonce_lease)))
        else:
            success = [RequestOp(request_delete_range=wire.DeleteRangeRequest(names.nowhere))]
        self.request = wire.TxnRequest(tuple(compares), tuple(success), tuple(seen))

    def bytes_max(self) -> int:
        return bytes_max(self._request, self._names)

    def written_keys(self) -> set[bytes]:
        """As etcd knows them, with that of the nonce."""
        key = self._names.key
        request = self._request
        return {
            self._nonce_key,
            *(key(put.key) for put in request.puts),
            *map(key, request.deletes),
        }

    def _writes(self, request: CommitRequest) -> list[RequestOp]:
        names = self._names
        puts = [
            wire.PutRequest(
                names.key(put.key),
                names.value(put.key, put.value),
                0 if put.lease is None else names.lease(put.lease),
            )
            for put in request.puts
        ]
        deletes = [wire.DeleteRangeRequest(names.key(key)) for key in request.deletes]
        return [
            *(RequestOp(request_put=put) for put in puts),
            *(RequestOp(request_delete_range=delete) for delete in deletes),
        ]

    def _compared(self, compare: Compare) -> wire.Compare:
        names, created = self._names, Target.CREATE
        match compare:
            case Absent(key):
                return wire.Compare(target=created, key=names.key(key))
            case Unchanged(key, 0) | Born(key, 0):
                # No key has the revision 0, and a missing one would compare equal.
                return wire.Compare(Result.LESS, created, names.key(key))
            case Unchanged(key, revision):
                return wire.Compare(target=Target.MOD, key=names.key(key), mod_revision=revision)
            case Born(key, revision):
                return wire.Compare(target=created, key=names.key(key), create_revision=revision)
            case Empty(start, end):
                start, end = names.key(start), names.key(end)
                return wire.Compare(target=created, key=start, range_end=end)
            case NoneBornAfter(start, end, revision):
                start, end = names.key(start), names.key(end)
                return wire.Compare(Result.LESS, created, start, revision + 1, range_end=end)

    def _seen(self, compare: Compare) -> wire.RangeRequest:
        """What decides whether `compare` holds."""
        names = self._names
        match compare:
            case Absent(key) | Unchanged(key) | Born(key):
                return wire.RangeRequest(names.key(key), keys_only=True)
            case Empty(start, end):
                return wire.RangeRequest(names.key(start), names.key(end), 1, keys_only=True)
            case NoneBornAfter(start, end, revision):
                return wire.RangeRequest(
                    names.key(start),
                    names.key(end),
                    1,
                    keys_only=True,
                    min_create_revision=revision + 1,
                )

    def seal(self) -> wire.TxnRequest:
        """Sees to it that no earlier try, which may still be on its way, is applied from now on."""
        key = self._nonce_key
        return wire.TxnRequest(
            (self._unused,),
            (RequestOp(request_put=wire.PutRequest(key, SEALED, self.nonce_lease)),),
            (RequestOp(request_range=wire.RangeRequest(key)),),
        )

    def sealed(self, answer: wire.TxnResponse) -> int | None:
        """None if the nonce is sealed now; the revision of the commit if it was applied before."""
        if answer.succeeded:
            return None
        return self._applied((answer.responses[0].response_range or NOTHING).kvs)

    def _applied(self, nonce: Sequence[wire.KeyValue]) -> int | None:
        """The revision at which the commit was applied. Sealed, by another than was known."""
        if nonce and nonce[0].value != SEALED:
            return nonce[0].mod_revision
        sealed_at = nonce[0].mod_revision if nonce else 0
        if sealed_at != self._sealed_at:
            raise Sealed(sealed_at)
        return None

    def outcome(self, answer: wire.TxnResponse) -> int:
        """The revision of the commit. Conflict, Sealed."""
        if answer.succeeded:
            return answer.header.revision
        found = [
            () if each.response_range is None else each.response_range.kvs
            for each in answer.responses
        ]
        if self._looks_at_nonce:
            revision = self._applied(found[-1])
            if revision is not None:
                return revision
        for (index, compare), kvs in zip(self._compares, found, strict=False):
            if not holds(compare, kvs):
                raise Conflict(f"{compare!r} does not hold", index=index, compare=compare)
        raise RuntimeError("etcd refused a transaction whose compares all hold")


def always_holds(compare: Compare) -> bool:
    match compare:
        case Empty(start, end):
            return start >= end
        case NoneBornAfter(start, end, revision):
            return start >= end or revision == REVISION_MAX
        case _:
            return False


def holds(compare: Compare, found: Sequence[wire.KeyValue]) -> bool:
    """Of what `Commit._seen` asks for."""
    match compare:
        case Unchanged(_, revision):
            return bool(found) and found[0].mod_revision == revision
        case Born(_, revision):
            return bool(found) and found[0].create_revision == revision
        case _:
            return not found

"""How keys, values and leases of a cluster are named within etcd, which others may use as well.

    ringhold/<name>/f             the format of this layout
    ringhold/<name>/d<key>        a key of the store; its value with a checksum of both behind it
    ringhold/<name>/n<nonce>      a commit that was applied; bound to a lease (see `nonces`)

No cluster's keys lie within another's range, since no name has a slash. The order of keys is kept.
etcd knows leases by 63 bits, which are drawn from the cluster's name and the lease: two of a
million leases meet with a probability of 10^-7, and then the second cannot be granted.
"""

from __future__ import annotations

from ringhold.core import checksum
from ringhold.errors import ChecksumMismatch
from ringhold.store.base import prefix_end
from ringhold.store.etcd import wire
from ringhold.types import Entry

FORMAT = b"1"
CHECKSUM_BYTES = 8


class Names:
    """Of the cluster `name`."""

    def __init__(self, name: str):
        self._name = name.encode()
        root = b"ringhold/%s/" % self._name
        self.format_key = root + b"f"
        self.data = root + b"d"
        self.data_end = prefix_end(self.data)
        self._nonces = root + b"n"
        self.nowhere = self._nonces
        """A key that is never written: no nonce is empty."""

    def key(self, key: bytes) -> bytes:
        return self.data + key

    def nonce(self, nonce: bytes) -> bytes:
        return self._nonces + nonce

    def range(self, start: bytes, end: bytes) -> tuple[bytes, bytes] | None:
        """None for an empty range, which etcd would read as something else."""
        if start >= end:
            return None
        return self.data + start, self.data + end

    def lease(self, lease: bytes) -> int:
        return checksum(self._name + b"/" + lease) >> 1 or 1

    def value(self, key: bytes, value: bytes) -> bytes:
        """What is stored for `key`, as `Store` knows it."""
        return value + _checksum(key, value)

    def entry(self, found: wire.KeyValue) -> tuple[bytes, Entry]:
        """ChecksumMismatch naming the key."""
        key = found.key[len(self.data) :]
        value = found.value[:-CHECKSUM_BYTES]
        if found.value[-CHECKSUM_BYTES:] != _checksum(key, value):
            what = f"key {key!r} in etcd"
            raise ChecksumMismatch(f"{what} is not what was written", what=what)
        return key, Entry(value, found.mod_revision, found.create_revision)


def _checksum(key: bytes, value: bytes) -> bytes:
    return checksum(b"%d/%b%b" % (len(key), key, value)).to_bytes(CHECKSUM_BYTES, "big")

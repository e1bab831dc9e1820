"""What the store keeps about nodes and about who holds which partition."""

from __future__ import annotations

import msgspec


class ClusterRecord(msgspec.Struct, frozen=True, array_like=True):
    """Key M. `identity` is 16 random bytes; `replicas` copies of every chunk."""

    identity: bytes
    replicas: int
    chunk_bytes: int
    created_s: float


class NodeRecord(msgspec.Struct, frozen=True, array_like=True):
    """Key N<name>. `path` is a directory of this host, `address` a daemon's "host:port".

    A relative `path` starts at the cluster's directory, so that a cluster can be moved.
    """

    name: str
    incarnation: int
    path: str | None = None
    address: str | None = None
    weight: float = 1.0
    zone: str | None = None


class Holder(msgspec.Struct, frozen=True, array_like=True):
    """A node as a member of a partition; an older incarnation's copies do not count."""

    name: str
    incarnation: int


class PartitionRecord(msgspec.Struct, frozen=True, array_like=True):
    """Key P<partition>. Chunk n of a run lies on holders n, n+1, … (modulo their count)."""

    holders: tuple[Holder, ...]

    def for_chunk(self, number: int, replicas: int) -> tuple[Holder, ...]:
        count = len(self.holders)
        return tuple(self.holders[(number + i) % count] for i in range(min(replicas, count)))


encode = msgspec.msgpack.Encoder().encode
decode_cluster = msgspec.msgpack.Decoder(ClusterRecord).decode
decode_node = msgspec.msgpack.Decoder(NodeRecord).decode
decode_partition = msgspec.msgpack.Decoder(PartitionRecord).decode

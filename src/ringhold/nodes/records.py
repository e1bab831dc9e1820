"""What the store keeps about nodes and about who holds which partition."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ringhold.store.keyspace import PARTITIONS_PER_PAGE

FORMAT = 2
"""Of everything below the keys of the store. In format 1 each partition had a key of its own."""


class ClusterRecord(msgspec.Struct, frozen=True, array_like=True):
    """Key M. `identity` is 16 random bytes; `replicas` copies of every chunk."""

    identity: bytes
    replicas: int
    chunk_bytes: int
    created_s: float
    format: int = 1


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


class Partition(msgspec.Struct, frozen=True):
    """Who holds it. Chunk n of a run lies on holders n, n+1, … (modulo their count)."""

    holders: tuple[Holder, ...]

    def for_chunk(self, number: int, replicas: int) -> tuple[Holder, ...]:
        count = len(self.holders)
        return tuple(self.holders[(number + i) % count] for i in range(min(replicas, count)))


class PartitionPage(msgspec.Struct, frozen=True, array_like=True):
    """Key P<page>: PARTITIONS_PER_PAGE partitions, their holders by their places in `nodes`.

    A key for each of the 4096 partitions would be too many for a transaction of etcd whenever a
    node is replaced. A page has at most 420 KB: 1024 nodes with the longest names, each of which
    holds every partition.
    """

    nodes: tuple[Holder, ...]
    partitions: tuple[tuple[int, ...], ...]


encode = msgspec.msgpack.Encoder().encode
decode_cluster = msgspec.msgpack.Decoder(ClusterRecord).decode
decode_node = msgspec.msgpack.Decoder(NodeRecord).decode
_decode_page = msgspec.msgpack.Decoder(PartitionPage).decode


def encode_page(partitions: Sequence[Partition]) -> bytes:
    """The record of PARTITIONS_PER_PAGE partitions that follow each other."""
    places: dict[Holder, int] = {}
    for partition in partitions:
        for holder in partition.holders:
            places.setdefault(holder, len(places))
    return encode(
        PartitionPage(
            tuple(places),
            tuple(tuple(places[holder] for holder in each.holders) for each in partitions),
        )
    )


def decode_page(value: bytes) -> tuple[Partition, ...]:
    """The partitions of a page, in order. MsgspecError for what is no page."""
    page = _decode_page(value)
    if len(page.partitions) != PARTITIONS_PER_PAGE:
        raise msgspec.ValidationError(
            f"{len(page.partitions)} partitions in a page instead of {PARTITIONS_PER_PAGE}"
        )
    for places in page.partitions:
        if not all(0 <= place < len(page.nodes) for place in places):
            raise msgspec.ValidationError(f"a holder beyond the page's {len(page.nodes)} nodes")
    return tuple(
        Partition(tuple(page.nodes[place] for place in places)) for places in page.partitions
    )

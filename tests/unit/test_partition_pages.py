"""Pages of the partition table: what they say, what is refused, how large they get.

A replacement of a node rewrites all 64 pages; for usual names that is one commit of etcd.
"""

from __future__ import annotations

import msgspec
import pytest

from ringhold import Layout
from ringhold.assembly.plan import NODE_NAME_BYTES_MAX, NODES_MAX
from ringhold.nodes.base import PARTITIONS
from ringhold.nodes.records import (
    Holder,
    Partition,
    PartitionPage,
    decode_page,
    encode,
    encode_page,
)
from ringhold.store.batches import BYTES_MAX, CHANGES_MAX, COMPARES_MAX
from ringhold.store.keyspace import PARTITIONS_PER_PAGE, partition_page_key
from ringhold.types import VALUE_BYTES_MAX

PAGES = PARTITIONS // PARTITIONS_PER_PAGE


def pages(nodes: int, replicas: int, name_bytes: int) -> list[bytes]:
    names = [f"{number:04d}".ljust(name_bytes, "x") for number in range(nodes)]
    layout = Layout(names, replicas=replicas, partitions=PARTITIONS)
    tables = [
        Partition(tuple(Holder(name, 60_000) for name in layout.nodes(number)))
        for number in range(PARTITIONS)
    ]
    size = PARTITIONS_PER_PAGE
    found = [encode_page(tables[at : at + size]) for at in range(0, PARTITIONS, size)]
    assert [table for page in found for table in decode_page(page)] == tables
    return found


def test_the_pages_are_fewer_than_a_commit_takes_changes() -> None:
    keys = {partition_page_key(partition) for partition in range(PARTITIONS)}
    assert len(keys) == PAGES
    # The node's own record is compared and put, too.
    assert min(COMPARES_MAX, CHANGES_MAX) >= PAGES + 1


@pytest.mark.parametrize(
    ("nodes", "replicas", "name_bytes"),
    [(3, 3, 200), (64, 5, 200), (1024, 3, 64), (1024, 5, 32), (16, 16, 200)],
)
def test_the_pages_of_usual_clusters_fit_into_one_commit(
    nodes: int, replicas: int, name_bytes: int
) -> None:
    assert sum(len(page) for page in pages(nodes, replicas, name_bytes)) <= BYTES_MAX


def test_the_largest_page_fits_into_one_commit_and_one_value() -> None:
    names = [f"{number:04d}".ljust(NODE_NAME_BYTES_MAX, "x") for number in range(NODES_MAX)]
    everybody = Partition(tuple(Holder(name, 1 << 63) for name in names))
    page = encode_page([everybody] * PARTITIONS_PER_PAGE)
    assert len(page) < 430_000 < min(BYTES_MAX, VALUE_BYTES_MAX) // 2
    assert decode_page(page) == (everybody,) * PARTITIONS_PER_PAGE


def test_what_is_no_page_is_refused() -> None:
    holder = Holder("n1", 1)
    for page in (
        PartitionPage((holder,), ((0,),) * 63),
        PartitionPage((holder,), ((0,),) * 63 + ((1,),)),
        PartitionPage((holder,), ((0,),) * 63 + ((-1,),)),
        # A partition of format 1.
        [[["n1", 1]]],
    ):
        with pytest.raises(msgspec.ValidationError):
            decode_page(encode(page))

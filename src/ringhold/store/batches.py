"""How much Ringhold puts into a commit that nobody asked to be one.

A stock etcd takes 128 compares, 128 puts and deletes, and 1.5 MiB in a transaction. What Ringhold
does by itself stays below that on every engine, with room for what a commit is completed by (a
nonce, the framing of its keys). What users ask for in one transaction may be larger, as far as
the engine takes it (`Store.limits`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ringhold.store.base import Put

COMPARES_MAX = CHANGES_MAX = 100
BYTES_MAX = 1 << 20

Change = Put | bytes
"""A put, or a key to delete."""


def change_bytes(change: Change) -> int:
    return len(change) if isinstance(change, bytes) else len(change.key) + len(change.value)


def in_batches(
    changes: Iterable[Change], *, count_max: int = CHANGES_MAX, bytes_max: int = BYTES_MAX
) -> Iterator[tuple[list[Put], list[bytes]]]:
    """Puts and deletes for one commit after the other, in the order of `changes`."""
    puts: list[Put] = []
    deletes: list[bytes] = []
    size = 0
    for change in changes:
        more = change_bytes(change)
        if (puts or deletes) and (len(puts) + len(deletes) >= count_max or size + more > bytes_max):
            yield puts, deletes
            puts, deletes, size = [], [], 0
        size += more
        if isinstance(change, bytes):
            deletes.append(change)
        else:
            puts.append(change)
    if puts or deletes:
        yield puts, deletes

"""Placement, locks, transactions and files that keep working while machines fail.

    with ringhold.open("data/") as cluster:
        cluster.fs.pipe_file("/hello.txt", b"hello")

Names are loaded when first used, so that importing the package costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ringhold.errors import (
    ChecksumMismatch,
    Closed,
    Compacted,
    Conflict,
    Corrupt,
    DeadlockError,
    EmptyRing,
    InvalidInput,
    LockError,
    LockLost,
    LockTimeout,
    NodeDown,
    NoQuorum,
    NotEnoughNodes,
    NotOwned,
    OutcomeUnknown,
    RingholdError,
    SessionExpired,
    StaleToken,
    StoreUnavailable,
    TransactionAborted,
    TransactionTooLarge,
    Unavailable,
    Wounded,
)
from ringhold.types import (
    Entry,
    EventKind,
    Mode,
    Node,
    NodeSpec,
    PlacementWarning,
    TableGrant,
)

if TYPE_CHECKING:
    from ringhold import aio
    from ringhold.assembly.administration import ClusterStatus, NodeStatus
    from ringhold.cluster import Cluster
    from ringhold.cluster import create as create
    from ringhold.cluster import open as open
    from ringhold.config import get_cmake_dir, get_include, get_pkgconfig_dir
    from ringhold.core import (
        Digest,
        Layout,
        LayoutPlan,
        LockTable,
        Ring,
        checksum,
        checksum_blocks,
        copy_checksum_blocks,
        digest,
    )
    from ringhold.core.ring_results import Move, Placement, RingDiff
    from ringhold.locks.election import Election, Leader
    from ringhold.locks.fence import Fence
    from ringhold.locks.grant import Grant
    from ringhold.locks.handles import Lock
    from ringhold.locks.multi import Grants, LockMany
    from ringhold.locks.records import LockParty
    from ringhold.locks.semaphore import Semaphore
    from ringhold.locks.slot_grants import BlockingSlotGrant as SlotGrant
    from ringhold.store.kv import KeyEvent as Event
    from ringhold.transactions.blocking import Transaction
    from ringhold.transactions.transaction import TransactionStatus

    __version__: str

_HOMES = {
    "Cluster": "ringhold.cluster",
    "ClusterStatus": "ringhold.assembly.administration",
    "Digest": "ringhold.core",
    "Election": "ringhold.locks.election",
    "Event": "ringhold.store.kv:KeyEvent",
    "Fence": "ringhold.locks.fence",
    "Grant": "ringhold.locks.grant",
    "Grants": "ringhold.locks.multi",
    "Layout": "ringhold.core",
    "LayoutPlan": "ringhold.core",
    "Leader": "ringhold.locks.election",
    "Lock": "ringhold.locks.handles",
    "LockMany": "ringhold.locks.multi",
    "LockParty": "ringhold.locks.records",
    "LockTable": "ringhold.core",
    "Move": "ringhold.core.ring_results",
    "NodeStatus": "ringhold.assembly.administration",
    "Placement": "ringhold.core.ring_results",
    "Ring": "ringhold.core",
    "RingDiff": "ringhold.core.ring_results",
    "Semaphore": "ringhold.locks.semaphore",
    "SlotGrant": "ringhold.locks.slot_grants:BlockingSlotGrant",
    "Transaction": "ringhold.transactions.blocking",
    "TransactionStatus": "ringhold.transactions.transaction",
    "checksum": "ringhold.core",
    "checksum_blocks": "ringhold.core",
    "copy_checksum_blocks": "ringhold.core",
    "create": "ringhold.cluster",
    "digest": "ringhold.core",
    "get_cmake_dir": "ringhold.config",
    "get_include": "ringhold.config",
    "get_pkgconfig_dir": "ringhold.config",
    "open": "ringhold.cluster",
}

# `open` and `create` are left out: a star import must not hide the builtin.
__all__ = [
    "ChecksumMismatch",
    "Closed",
    "Cluster",
    "ClusterStatus",
    "Compacted",
    "Conflict",
    "Corrupt",
    "DeadlockError",
    "Digest",
    "Election",
    "EmptyRing",
    "Entry",
    "Event",
    "EventKind",
    "Fence",
    "Grant",
    "Grants",
    "InvalidInput",
    "Layout",
    "LayoutPlan",
    "Leader",
    "Lock",
    "LockError",
    "LockLost",
    "LockMany",
    "LockParty",
    "LockTable",
    "LockTimeout",
    "Mode",
    "Move",
    "NoQuorum",
    "Node",
    "NodeDown",
    "NodeSpec",
    "NodeStatus",
    "NotEnoughNodes",
    "NotOwned",
    "OutcomeUnknown",
    "Placement",
    "PlacementWarning",
    "Ring",
    "RingDiff",
    "RingholdError",
    "Semaphore",
    "SessionExpired",
    "SlotGrant",
    "StaleToken",
    "StoreUnavailable",
    "TableGrant",
    "Transaction",
    "TransactionAborted",
    "TransactionStatus",
    "TransactionTooLarge",
    "Unavailable",
    "Wounded",
    "aio",
    "checksum",
    "checksum_blocks",
    "copy_checksum_blocks",
    "digest",
    "get_cmake_dir",
    "get_include",
    "get_pkgconfig_dir",
]


def __getattr__(name: str) -> Any:
    if name == "aio":
        return importlib.import_module("ringhold.aio")
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("ringhold")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'ringhold' has no attribute {name!r}")
    module, _, attribute = home.partition(":")
    value = getattr(importlib.import_module(module), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, "aio"})

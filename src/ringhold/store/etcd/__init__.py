"""The engine on etcd v3. To read its URLs needs no grpcio: the store is loaded when it is used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ringhold.store.etcd.address import EtcdAddress, parse_etcd_url

if TYPE_CHECKING:
    from ringhold.store.etcd.store import EtcdStore, open_etcd_store

__all__ = ["EtcdAddress", "EtcdStore", "open_etcd_store", "parse_etcd_url"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.store"), name)

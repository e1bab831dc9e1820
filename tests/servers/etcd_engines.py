"""The store on etcd as an engine of the suites that run on every engine.

One server of each kind is shared by all tests of the process. The build that needs a system
package carries the mark `system`; what would be the same again, `long`.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from etcd_servers import shared_etcd

from ringhold import NodeSpec
from ringhold.env import Env
from ringhold.store.base import Store
from ringhold.store.etcd import open_etcd_store, parse_etcd_url

ETCD_SERVERS = {
    "etcd-3.5": ("distro", 1),
    "etcd-3.5-of-three": ("distro", 3),
    "etcd-3.4": ("debian", 1),
    "etcd-3.4-of-three": ("debian", 3),
}


def _marked(marks: dict[str, list[pytest.MarkDecorator]]) -> list[Any]:
    return [
        pytest.param(engine, marks=marks.get(engine, [pytest.mark.long])) for engine in ETCD_SERVERS
    ]


ETCD = _marked(
    {"etcd-3.5": [], "etcd-3.4": [pytest.mark.system], "etcd-3.4-of-three": [pytest.mark.system]}
)
"""For what a store and locks do."""

ETCD_OF_THREE = _marked({"etcd-3.5": [], "etcd-3.4-of-three": [pytest.mark.system]})
"""The same, where a suite takes a minute for each: one member alone, and three."""

ETCD_ABOVE = _marked({"etcd-3.5": []})
"""For what is built on them, and asks of the store what the suites of the store have asked."""

ETCD_LONG = _marked({})
"""For more of the same, which shows nothing new of a store."""


def undisturbed(url: str, scenario: Callable[[], bool]) -> bool:
    """Whether it turns out as wanted; on a server that others use in one of a few tries, as its
    revision also moves when the leases of stores end that were closed long ago."""
    tries = 5 if url.startswith("etcd") else 1
    return any(scenario() for _ in range(tries))


def etcd_url(engine: str, name: str) -> str:
    return shared_etcd(*ETCD_SERVERS[engine]).url(name)


def cluster_at(
    engine: str, name: str, directory: Path, nodes: int = 1
) -> tuple[str, dict[str, Any]]:
    """Where to create the cluster `name`, and how, on memory, sqlite or an engine of ETCD."""
    if engine == "memory":
        return f"memory://{name}", {"nodes": nodes}
    if engine == "sqlite":
        return str(directory / name), {"nodes": nodes}
    names = [f"n{number}" for number in range(1, nodes + 1)]
    specs = [NodeSpec(node, path=str(directory / f"{name}-{node}")) for node in names]
    return etcd_url(engine, name), {"nodes": specs}


def etcd_opener(engine: str) -> Callable[..., Coroutine[Any, Any, Store]]:
    async def open_store(name: str, env: Env, *, create: bool) -> Store:
        return await open_etcd_store(parse_etcd_url(etcd_url(engine, name)), env, create=create)

    return open_store

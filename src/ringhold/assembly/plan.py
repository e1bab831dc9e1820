"""What `create` was asked for, checked before anything is touched."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ringhold.assembly.location import Location
from ringhold.errors import InvalidInput, NotEnoughNodes
from ringhold.nodes.address import node_address
from ringhold.nodes.base import CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, PARTITIONS
from ringhold.nodes.records import Holder, NodeRecord, Partition
from ringhold.placement import Layout
from ringhold.types import Node, NodeSpec, check_weight

FIRST_INCARNATION = 1
NODES_MAX = 1024
NODE_NAME_BYTES_MAX = 200
DEFAULT_CHUNK_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Plan:
    """A cluster to be made: its nodes, and who holds which partition; nobody if there are none."""

    nodes: tuple[NodeRecord, ...]
    replicas: int
    chunk_bytes: int
    partitions: tuple[Partition, ...]


def plan_cluster(
    location: Location,
    nodes: int | Iterable[NodeSpec] | None,
    replicas: int,
    zones: Iterable[str] | None,
    chunk_size: int,
    path: str | os.PathLike[str] | None = None,
) -> Plan:
    """Checks the arguments of `create`. TypeError, InvalidInput, NotEnoughNodes."""
    _check_int(replicas, "replicas")
    if replicas < 1:
        raise InvalidInput(f"replicas must be at least 1, not {replicas}")
    _check_int(chunk_size, "chunk_size")
    if not CHUNK_BYTES_MIN <= chunk_size <= CHUNK_BYTES_MAX or chunk_size & (chunk_size - 1):
        raise InvalidInput(
            f"chunk_size must be a power of two from {CHUNK_BYTES_MIN} to {CHUNK_BYTES_MAX} "
            f"bytes, not {chunk_size}"
        )
    if nodes is None and path is None and location.etcd is not None:
        nodes = 0
    if nodes is None or isinstance(nodes, int):
        specs = _numbered(location, 1 if nodes is None else nodes, zones, path)
    else:
        specs = _given(location, nodes, zones, path)
    usable = sum(spec.weight > 0 for spec in specs)
    # Without any, no file is kept that needs a copy.
    if replicas > max(usable, not specs):
        raise NotEnoughNodes(
            f"{replicas} copies need as many nodes that are not drained; there are {usable}",
            wanted=replicas,
            usable=usable,
        )
    records = tuple(
        node_record(location, spec, FIRST_INCARNATION)
        for spec in sorted(specs, key=lambda spec: spec.name)
    )
    return Plan(records, replicas, chunk_size, _place(records, replicas))


def _check_int(value: int, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} must be an int, not {type(value).__name__}")


def _numbered(
    location: Location,
    count: int,
    zones: Iterable[str] | None,
    path: str | os.PathLike[str] | None,
) -> list[NodeSpec]:
    _check_int(count, "nodes")
    _check_count(location, count)
    if count and path is None and location.etcd is not None:
        raise InvalidInput(
            f"a cluster in etcd has no directory for {count} nodes: give path= (--path), a "
            "directory of this host for all of them; or a NodeSpec (--node) for each, with the "
            "address of its `ringhold node` or an absolute path on this host"
        )
    names: list[str | None] = [None]
    if zones is not None:
        if isinstance(zones, (str, bytes)):
            raise TypeError("zones must be several names, not one text")
        names = [_check_name(zone, "zone") for zone in zones]
        if not names:
            raise InvalidInput("zones must not be empty; leave them out for a cluster without")
        if not count:
            raise InvalidInput("zones are dealt out to a count of nodes, and there are none")
    specs = [NodeSpec(f"n{i + 1}", zone=names[i % len(names)]) for i in range(count)]
    if path is None:
        return specs
    directory = _check_path(location, path, "path")
    return [replace(spec, path=os.path.join(directory, spec.name)) for spec in specs]


def _given(
    location: Location,
    nodes: Iterable[NodeSpec],
    zones: Iterable[str] | None,
    path: str | os.PathLike[str] | None,
) -> list[NodeSpec]:
    if zones is not None:
        raise InvalidInput("zones go with a count of nodes; a NodeSpec names its own zone")
    if path is not None:
        raise InvalidInput("path goes with a count of nodes; a NodeSpec names its own path")
    specs = []
    for spec in nodes:
        if not isinstance(spec, NodeSpec):
            raise TypeError(f"nodes must be NodeSpec, not {type(spec).__name__}")
        specs.append(check_spec(location, spec))
    _check_count(location, len(specs))
    seen: set[str] = set()
    for spec in specs:
        if spec.name in seen:
            raise InvalidInput(f"two nodes are named {spec.name!r}")
        seen.add(spec.name)
    return specs


def _check_count(location: Location, count: int) -> None:
    least = 1 if location.etcd is None else 0
    if not least <= count <= NODES_MAX:
        raise InvalidInput(f"a cluster has {least} to {NODES_MAX} nodes, not {count}")


def check_spec(location: Location, spec: NodeSpec) -> NodeSpec:
    """`spec` with an absolute path; TypeError or InvalidInput naming the node."""
    name = _check_name(spec.name, "node name")
    path, address = spec.path, spec.address
    if spec.zone is not None:
        _check_name(spec.zone, f"zone of node {name!r}")
    if path is not None:
        path = _check_path(location, path, f"path of node {name!r}")
    if address is not None:
        check_address(name, address)
        if path is not None:
            raise InvalidInput(f"node {name!r} has both a path and an address")
    weight = check_weight(spec.weight, f"node {name!r}")
    return NodeSpec(name, path, address, weight, spec.zone)


def _check_path(location: Location, path: str | os.PathLike[str], what: str) -> str:
    path = os.fspath(path)
    if not isinstance(path, str):
        raise TypeError(f"{what} must be str, not {type(path).__name__}")
    if not path or "\0" in path:
        raise InvalidInput(f"{what} must not be empty or contain NUL")
    if location.etcd is not None and not os.path.isabs(path):
        raise InvalidInput(
            f"{what} must be absolute, not {path!r}: those who open a cluster in etcd have no "
            "directory in common"
        )
    return os.path.abspath(path)


def check_address(name: str, address: str) -> None:
    if not isinstance(address, str):
        raise TypeError(f"address of node {name!r} must be str, not {type(address).__name__}")
    node_address(address, name)


def _check_name(name: str, what: str) -> str:
    if not isinstance(name, str):
        raise TypeError(f"{what} must be str, not {type(name).__name__}")
    try:
        size = len(name.encode())
    except UnicodeEncodeError as error:
        raise InvalidInput(f"{what} {name!r} is no valid text: {error}") from None
    if not 1 <= size <= NODE_NAME_BYTES_MAX:
        raise InvalidInput(f"{what} must have 1 to {NODE_NAME_BYTES_MAX} bytes, not {size}")
    if "/" in name or not name.isprintable() or name in (".", ".."):
        raise InvalidInput(f"{what} {name!r} must be printable and must not contain '/'")
    return name


def node_record(location: Location, spec: NodeSpec, incarnation: int) -> NodeRecord:
    """The record of a node; without path and address it lies inside the cluster."""
    path = spec.path
    if path is None and spec.address is None:
        path = location.node_inside(spec.name)
    return NodeRecord(spec.name, incarnation, path, spec.address, spec.weight, spec.zone)


def _place(records: tuple[NodeRecord, ...], replicas: int) -> tuple[Partition, ...]:
    if not records:
        return (Partition(()),) * PARTITIONS
    nodes = [Node(record.name, record.weight, record.zone) for record in records]
    layout = Layout(nodes, replicas=replicas, partitions=PARTITIONS)
    holders = {record.name: Holder(record.name, record.incarnation) for record in records}
    return tuple(
        Partition(tuple(holders[name] for name in layout.nodes(partition)))
        for partition in range(PARTITIONS)
    )

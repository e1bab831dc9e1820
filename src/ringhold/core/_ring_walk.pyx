# cython: language_level=3, boundscheck=False, wraparound=False
"""Walks round a ring from one key: its replicas, its owner under load, and why it is the owner."""

import array
import math
import warnings
from collections.abc import Mapping
from operator import index as _as_index

from cpython cimport array
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.float cimport DBL_MAX
from libc.stdint cimport uint32_t, uint64_t

from ringhold.core._nodes cimport decode_text, encode_text, view_key
from ringhold.core._ring_batch cimport raise_lookup
from ringhold.core._snapshot cimport Snapshot, get_member, info_of
from ringhold.core._status cimport raise_status
from ringhold.core.c_ringhold cimport (
    RH_NOT_ENOUGH_NODES, RH_OK, rh_ring, rh_ring_find, rh_ring_find_point, rh_ring_get_points,
    rh_ring_info, rh_ring_locate, rh_ring_lookup_bounded, rh_ring_member, rh_ring_points,
    rh_ring_position, rh_ring_replicas, rh_ring_replicas_options, rh_status,
)

from ringhold.core.ring_results import Placement
from ringhold.errors import InvalidInput, NotEnoughNodes
from ringhold.types import PlacementWarning, check_number

# As many replicas as `Placement` tells.
cdef enum:
    EXPLAINED_REPLICAS = 3

cdef array.array _no_indexes = array.array("I")
cdef array.array _no_loads = array.array("d")


cdef int _locate(rh_ring *ring, object key, rh_ring_position *position) except -1:
    cdef const void *data = NULL
    cdef size_t size = 0
    _alive = view_key(key, &data, &size)
    status = rh_ring_locate(ring, data, size, position)
    return 0 if status == RH_OK else raise_status(status, "the key has no address")


cdef tuple walk_replicas(Snapshot snapshot, object key, object n, object exclude):
    cdef rh_ring_position position
    cdef size_t zones = 0
    wanted = _as_index(n)
    if wanted < 0:
        raise InvalidInput(f"n must not be negative, but is {wanted}")
    if isinstance(exclude, (str, bytes)):
        raise TypeError("exclude must be an iterable of names, not one name")
    excluded = _indexes(snapshot, [encode_text(name, "excluded name") for name in exclude])
    _locate(snapshot.ring, key, &position)
    found = _replicas(snapshot, position, wanted, excluded, &zones)
    if zones < <size_t>wanted:
        warnings.warn(
            f"{wanted} replicas lie in only {zones} zones: no more have a usable node",
            PlacementWarning,
            stacklevel=1,
        )
    return found


cdef array.array _indexes(Snapshot snapshot, list names):
    cdef array.array indexes = array.clone(_no_indexes, 0, zero=False)
    cdef uint32_t index = 0
    for name in names:
        if _find(snapshot, name, &index):
            indexes.append(index)
    return indexes


cdef bint _find(Snapshot snapshot, bytes name, uint32_t *index) noexcept:
    return rh_ring_find(snapshot.ring, PyBytes_AS_STRING(name), <size_t>PyBytes_GET_SIZE(name),
                        index) == RH_OK


cdef tuple _replicas(Snapshot snapshot, rh_ring_position position, object wanted,
                     array.array excluded, size_t *zones):
    cdef rh_ring_replicas_options options
    cdef array.array out
    cdef rh_status status = RH_NOT_ENOUGH_NODES
    cdef size_t i
    options.exclude = <const uint32_t *>excluded.data.as_uints
    options.exclude_count = <size_t>len(excluded)
    if wanted <= info_of(snapshot).nodes:
        out = array.clone(_no_indexes, wanted, zero=False)
        status = rh_ring_replicas(snapshot.ring, position, <size_t>len(out), &options,
                                  <uint32_t *>out.data.as_uints, zones)
    if status == RH_NOT_ENOUGH_NODES:
        raise _not_enough(snapshot, wanted, set(excluded))
    if status != RH_OK:
        raise_status(status, "replicas")
    return tuple([snapshot.names[out.data.as_uints[i]] for i in range(<size_t>wanted)])


cdef object _not_enough(Snapshot snapshot, object wanted, set excluded):
    cdef rh_ring_member member
    cdef size_t i
    cdef size_t usable = 0
    for i in range(<size_t>len(snapshot.names)):
        get_member(snapshot.ring, i, &member)
        usable += member.points > 0 and i not in excluded
    return NotEnoughNodes(
        f"{wanted} replicas need as many nodes, and {usable} with points can be used",
        wanted=wanted,
        usable=usable,
    )


cdef str find_bounded(Snapshot snapshot, object key, object loads, object bound):
    cdef rh_ring_position position
    cdef array.array by_index
    cdef uint32_t index = 0
    cdef rh_status status
    factor = check_number(bound, "bound")
    if not factor >= 1:
        raise InvalidInput(f"bound must be at least 1, not {bound!r}")
    if not isinstance(loads, Mapping):
        raise TypeError(f"loads must map names to numbers, not be {type(loads).__name__}")
    _locate(snapshot.ring, key, &position)
    by_index = array.clone(_no_loads, len(snapshot.names), zero=True)
    given = set()
    for name, load in loads.items():
        encoded = encode_text(name, "name in loads")
        value = check_number(load, f"load of {name!r}")
        if not math.isfinite(value) or value < 0:
            raise InvalidInput(f"load of {name!r} must be finite and not negative, not {load!r}")
        if encoded in given:
            raise InvalidInput(f"the load of {name!r} is given twice, as str and as bytes")
        given.add(encoded)
        if _find(snapshot, encoded, &index):
            by_index.data.as_doubles[index] = value
    status = rh_ring_lookup_bounded(snapshot.ring, position, by_index.data.as_doubles,
                                    min(factor, DBL_MAX), &index)
    if status != RH_OK:
        raise_lookup(status, snapshot)
    return <str>snapshot.names[index]


cdef object _value(uint64_t high, uint64_t low, unsigned bits):
    """A position on the circle as the profile writes it, in as many bits as it has."""
    if bits == 32:
        return high >> 32
    return high if bits == 64 else (<object>high << 64) | low


cdef object explain_key(Snapshot snapshot, object key):
    cdef rh_ring_info info = info_of(snapshot)
    cdef rh_ring_points points
    cdef rh_ring_position position
    cdef rh_status status
    cdef size_t at = 0
    cdef size_t zones = 0
    _locate(snapshot.ring, key, &position)
    status = rh_ring_find_point(snapshot.ring, position, &at)
    if status != RH_OK:
        raise_lookup(status, snapshot)
    rh_ring_get_points(snapshot.ring, &points)
    wanted = min(EXPLAINED_REPLICAS, info.usable)
    return Placement(
        hash=_value(position.high, position.low, info.hash_bits),
        point=_point(&points, at, info.hash_bits),
        node=snapshot.names[points.owners[at]],
        zone=_zone(snapshot, points.owners[at]),
        replicas=_replicas(snapshot, position, wanted, _no_indexes, &zones),
    )


cdef object _zone(Snapshot snapshot, size_t index):
    cdef rh_ring_member member
    get_member(snapshot.ring, index, &member)
    if member.node.zone == NULL:
        return None
    return decode_text(member.node.zone, member.node.zone_bytes)


cdef object _point(rh_ring_points *points, size_t at, unsigned bits):
    return _value(points.high[at], points.low[at] if points.low != NULL else 0, bits)


cdef list list_points(Snapshot snapshot):
    cdef rh_ring_points points
    cdef size_t i
    cdef unsigned bits = info_of(snapshot).hash_bits
    rh_ring_get_points(snapshot.ring, &points)
    return [
        (_point(&points, i, bits), snapshot.names[points.owners[i]]) for i in range(points.count)
    ]

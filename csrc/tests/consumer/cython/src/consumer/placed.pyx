# cython: language_level=3
"""Looks keys up in a ``ringhold.Ring`` without going through Python for each of them."""

from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport uint32_t, uint64_t

from ringhold.core.c_ringhold cimport (
    RH_API_VERSION, RH_OK, RH_RING_CAPSULE, rh_api_version, rh_checksum, rh_ring, rh_ring_lookup,
)


def owners(ring, list keys):
    capsule = ring.__ringhold_ring__()
    cdef const rh_ring *handle = <const rh_ring *>PyCapsule_GetPointer(capsule, RH_RING_CAPSULE)
    cdef uint32_t owner = 0
    found = []
    for key in keys:
        if rh_ring_lookup(handle, <const char *><bytes>key, <size_t>len(key), &owner) != RH_OK:
            raise LookupError(key)
        found.append(ring.names[owner])
    return found


def checksum(bytes data):
    cdef uint64_t value = 0
    if rh_checksum(<const char *>data, <size_t>len(data), &value) != RH_OK:
        raise ValueError(data)
    return value


def versions():
    return RH_API_VERSION, rh_api_version()

# cython: language_level=3, boundscheck=False, wraparound=False
"""What is made of whole rings: differences, digests, and the bytes they are kept as."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.buffer cimport (
    PyBUF_SIMPLE, PyBuffer_Release, PyObject_CheckBuffer, PyObject_GetBuffer,
)
from libc.stdint cimport uint8_t

from ringhold.core._nodes cimport view_key
from ringhold.core._ring_batch cimport raise_lookup
from ringhold.core._snapshot cimport Snapshot, info_of, make_snapshot, names_from, profile_of
from ringhold.core._status cimport raise_status
from ringhold.core.c_ringhold cimport (
    RH_INVALID_ARGUMENT, RH_NOT_SUPPORTED, RH_OK, RH_RING_DIGEST_BYTES, RH_RING_VNODES_DEFAULT,
    rh_free, rh_ring_diff, rh_ring_digest, rh_ring_dumps, rh_ring_loads, rh_ring_locate,
    rh_ring_move, rh_ring_position, rh_status,
)

from ringhold.core.ring_results import Move, RingDiff
from ringhold.errors import InvalidInput


cdef object diff_snapshots(Snapshot old, Snapshot new):
    cdef rh_ring_move *moves = NULL
    cdef size_t count = 0
    cdef size_t i
    cdef rh_status status = rh_ring_diff(old.ring, new.ring, &moves, &count)
    if status != RH_OK:
        _raise_diff(status, old, new)
    try:
        return RingDiff(
            moves=tuple([
                Move(moves[i].start, moves[i].end, old.names[moves[i].source],
                     new.names[moves[i].target])
                for i in range(count)
            ]),
            profile=profile_of(old),
        )
    finally:
        rh_free(moves)


cdef int _raise_diff(rh_status status, Snapshot old, Snapshot new) except -1:
    if status == RH_INVALID_ARGUMENT:
        raise InvalidInput(
            f"keys of profile {profile_of(old)!r} and of {profile_of(new)!r} lie on different "
            "circles: look up each key in both rings"
        )
    if status == RH_NOT_SUPPORTED:
        raise InvalidInput(f"points of profile {profile_of(old)!r} have more than 64 bits")
    return raise_lookup(status, old if info_of(old).points == 0 else new)


def position_of(key, profile, /):
    """Where `key` lies on the circle of 64 bits that the arcs of a `RingDiff` are on."""
    cdef const void *data = NULL
    cdef size_t size = 0
    cdef rh_ring_position position
    cdef Snapshot snapshot = make_snapshot([], RH_RING_VNODES_DEFAULT, profile)
    _alive = view_key(key, &data, &size)
    status = rh_ring_locate(snapshot.ring, data, size, &position)
    if status != RH_OK:
        raise_status(status, "the key has no address")
    return position.high


cdef bytes digest_snapshot(Snapshot snapshot):
    cdef uint8_t[RH_RING_DIGEST_BYTES] digest
    status = rh_ring_digest(snapshot.ring, digest)
    if status != RH_OK:
        raise_status(status, "digest")
    return PyBytes_FromStringAndSize(<char *>digest, RH_RING_DIGEST_BYTES)


cdef bytes dump_snapshot(Snapshot snapshot):
    cdef void *data = NULL
    cdef size_t size = 0
    status = rh_ring_dumps(snapshot.ring, &data, &size)
    if status != RH_OK:
        raise_status(status, "dumps")
    try:
        return PyBytes_FromStringAndSize(<char *>data, <Py_ssize_t>size)
    finally:
        rh_free(data)


cdef Snapshot load_snapshot(object data):
    cdef Py_buffer view
    cdef Snapshot snapshot = Snapshot.__new__(Snapshot)
    if not PyObject_CheckBuffer(data):
        raise TypeError(f"a ring is loaded from bytes, not from {type(data).__name__}")
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        status = rh_ring_loads(view.buf, <size_t>view.len, &snapshot.ring)
    finally:
        PyBuffer_Release(&view)
    if status != RH_OK:
        raise_status(status, f"these {len(data)} bytes are no ring, or a damaged one")
    snapshot.names = names_from(snapshot.ring, 0)
    return snapshot

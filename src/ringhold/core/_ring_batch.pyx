# cython: language_level=3, boundscheck=False, wraparound=False
"""Owners of many keys at once: the batches of `Ring`.

Guarantees that a batch is answered by one snapshot of the ring. The GIL is held while keys are
hashed where they lie and released while owners are searched.
"""

import array
import sys

from cpython cimport array
from cpython.buffer cimport (
    PyBUF_FORMAT, PyBUF_STRIDED_RO, PyBUF_WRITABLE, PyBuffer_IsContiguous, PyBuffer_Release,
    PyObject_CheckBuffer, PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from cpython.sequence cimport PySequence_Check
from libc.stdint cimport uint32_t, uint64_t

from ringhold.core._nodes cimport view_key
from ringhold.core._snapshot cimport Snapshot, info_of
from ringhold.core._status cimport raise_status
from ringhold.core.c_ringhold cimport (
    RH_EMPTY_RING, RH_NOT_SUPPORTED, RH_NO_MEMORY, RH_OK, RH_RING_RINGHOLD, rh_ring,
    rh_ring_locate, rh_ring_lookup_hashes, rh_ring_lookup_keys, rh_ring_position, rh_status,
)

from ringhold.errors import EmptyRing, InvalidInput

cdef extern from *:
    """
    #if defined(__GNUC__)
    #  define ringhold_prefetch(address) __builtin_prefetch(address)
    #else
    #  define ringhold_prefetch(address) ((void)(address))
    #endif
    """
    void ringhold_prefetch(const void *address) noexcept nogil

cdef extern from "Python.h":
    PyObject **PySequence_Fast_ITEMS(object sequence)
    Py_ssize_t PySequence_Fast_GET_SIZE(object sequence)

cdef enum:
    # From this many keys on, letting other threads run is worth more than the two switches cost.
    NOGIL_KEYS = 128
    # Hashed in one go: about a millisecond for which other threads wait, half a MiB of hashes.
    CHUNK_KEYS = 65536
    # So many keys ahead their memory is asked for: keys lie wherever they were allocated.
    AHEAD = 8

cdef array.array _no_indexes = array.array("I")


cdef int raise_lookup(rh_status status, Snapshot snapshot) except -1:
    """Raises what a status of a search means."""
    if status == RH_EMPTY_RING:
        raise EmptyRing("no key has an owner: the ring has no node, or none of weight above 0")
    bits = info_of(snapshot).hash_bits
    if status == RH_NOT_SUPPORTED:
        raise_status(status, f"hashes of {bits} bits cannot be given: look up the key instead")
    return raise_status(status, f"a hash is at least 0 and below 2**{bits} in this ring's profile")


cdef object lookup_batch(Snapshot snapshot, object keys, object out):
    if isinstance(keys, (str, bytes)):
        raise TypeError(f"keys must be a sequence of keys, not one {type(keys).__name__}")
    if PyObject_CheckBuffer(keys):
        return _lookup_hashes(snapshot, keys, out)
    if not PySequence_Check(keys):
        raise TypeError(
            f"keys must be a sequence of str, bytes and buffers or a buffer of 64-bit hashes, "
            f"not {type(keys).__name__}"
        )
    if info_of(snapshot).profile != RH_RING_RINGHOLD:
        return _lookup_collected(snapshot, tuple(keys), out)
    return _lookup_keys(snapshot, keys if type(keys) is list else tuple(keys), out)


cdef object _new_out(object out, Py_ssize_t count):
    return array.clone(_no_indexes, count, zero=False) if out is None else out


cdef uint32_t *_open_out(object out, Py_ssize_t count, Py_buffer *view) except NULL:
    """Takes the buffer of `out`, which the caller releases."""
    try:
        PyObject_GetBuffer(out, view, PyBUF_STRIDED_RO | PyBUF_FORMAT | PyBUF_WRITABLE)
    except (BufferError, ValueError, TypeError) as error:
        raise TypeError(
            f"out must be a writable buffer of format I, not {type(out).__name__}"
        ) from error
    if not _is_native(view, b"I", b"I", sizeof(uint32_t)):
        PyBuffer_Release(view)
        raise TypeError("out must be a contiguous one-dimensional buffer of native format I")
    if view.shape[0] != count:
        length = view.shape[0]
        PyBuffer_Release(view)
        raise InvalidInput(f"out has room for {length} indexes, and there are {count} keys")
    return <uint32_t *>view.buf if view.buf != NULL else &_nowhere


# What an empty buffer without an address points to: never read, never written.
cdef uint32_t _nowhere = 0


cdef bytes _ENDIAN = b"<" if sys.byteorder == "little" else b">"


cdef bint _is_native(Py_buffer *view, bytes code, bytes other, size_t size) noexcept:
    cdef bytes text = view.format if view.format != NULL else b"B"
    if text[:1] in (b"@", b"=", _ENDIAN):
        text = text[1:]
    return (
        view.ndim == 1
        and <size_t>view.itemsize == size
        and text in (code, other)
        and PyBuffer_IsContiguous(view, b"C")
    )


cdef rh_status _search(rh_ring *ring, const uint64_t *hashes, size_t count,
                       uint32_t *indexes) noexcept:
    cdef rh_status status
    if count < NOGIL_KEYS:
        return rh_ring_lookup_hashes(ring, hashes, count, indexes)
    with nogil:
        status = rh_ring_lookup_hashes(ring, hashes, count, indexes)
    return status


cdef object _lookup_hashes(Snapshot snapshot, object hashes, object out):
    cdef Py_buffer view
    cdef Py_buffer out_view
    cdef uint32_t *indexes
    cdef rh_status status
    try:
        PyObject_GetBuffer(hashes, &view, PyBUF_STRIDED_RO | PyBUF_FORMAT)
    except (BufferError, ValueError) as error:
        raise TypeError("keys must be a contiguous buffer of 64-bit hashes") from error
    try:
        if not _is_native(&view, b"Q", b"L", sizeof(uint64_t)):
            raise TypeError(
                "a buffer of keys must hold 64-bit hashes: one-dimensional, contiguous, native "
                "format Q or L"
            )
        out = _new_out(out, view.shape[0])
        indexes = _open_out(out, view.shape[0], &out_view)
        try:
            status = _search(snapshot.ring, <uint64_t *>view.buf, <size_t>view.shape[0], indexes)
        finally:
            PyBuffer_Release(&out_view)
    finally:
        PyBuffer_Release(&view)
    if status != RH_OK:
        raise_lookup(status, snapshot)
    return out


cdef int _hash_other(Snapshot snapshot, object keys, Py_ssize_t i, Py_ssize_t count,
                     rh_ring_position *position) except -1:
    """A key that is not plain bytes. A buffer may run any code, which may change the list."""
    cdef const void *data = NULL
    cdef size_t size = 0
    key = <object>PySequence_Fast_ITEMS(keys)[i]
    _alive = view_key(key, &data, &size)
    status = rh_ring_locate(snapshot.ring, data, size, position)
    if status != RH_OK:
        raise_status(status, "the key has no address")
    return _check_size(keys, count)


cdef inline int _check_size(object keys, Py_ssize_t count) except -1:
    if PySequence_Fast_GET_SIZE(keys) != count:
        raise RuntimeError("the list of keys changed its size while it was looked up")
    return 0


cdef int _hash_chunk(Snapshot snapshot, object keys, Py_ssize_t first, Py_ssize_t count,
                     uint64_t *hashes) except -1:
    """Hashes `count` of the keys from `first` on, borrowing each only while it is looked at."""
    cdef Py_ssize_t size = PySequence_Fast_GET_SIZE(keys)
    cdef Py_ssize_t i
    cdef PyObject *key
    cdef rh_ring_position position
    cdef rh_ring *ring = snapshot.ring
    cdef rh_status status
    for i in range(first, first + count):
        if i + AHEAD < size:
            ringhold_prefetch(PySequence_Fast_ITEMS(keys)[i + AHEAD])
        key = PySequence_Fast_ITEMS(keys)[i]
        if PyBytes_CheckExact(<object>key):
            status = rh_ring_locate(ring, PyBytes_AS_STRING(<object>key),
                                    <size_t>PyBytes_GET_SIZE(<object>key), &position)
            if status != RH_OK:
                raise_status(status, "a key has no address")
        else:
            _hash_other(snapshot, keys, i, size, &position)
        hashes[i - first] = position.high
    return 0


cdef object _lookup_keys(Snapshot snapshot, object keys, object out):
    """Of a list or tuple, chunk by chunk: nothing is copied but the hashes."""
    cdef Py_buffer out_view
    cdef uint32_t *indexes
    cdef rh_status status = RH_OK
    cdef Py_ssize_t count = PySequence_Fast_GET_SIZE(keys)
    cdef Py_ssize_t first, chunk
    cdef uint64_t *hashes
    out = _new_out(out, count)
    indexes = _open_out(out, count, &out_view)
    hashes = <uint64_t *>PyMem_Malloc(<size_t>(min(count, CHUNK_KEYS) + 1) * sizeof(uint64_t))
    try:
        if hashes == NULL:
            raise MemoryError
        for first in range(0, count, CHUNK_KEYS):
            chunk = min(count - first, CHUNK_KEYS)
            _check_size(keys, count)
            _hash_chunk(snapshot, keys, first, chunk, hashes)
            status = _search(snapshot.ring, hashes, <size_t>chunk, indexes + first)
            if status != RH_OK:
                break
    finally:
        PyMem_Free(hashes)
        PyBuffer_Release(&out_view)
    if status != RH_OK:
        raise_lookup(status, snapshot)
    return out


cdef object _lookup_collected(Snapshot snapshot, tuple keys, object out):
    """For profiles that hash by MD5, which takes so long that it must be without the GIL."""
    cdef Py_buffer out_view
    cdef uint32_t *indexes
    cdef rh_status status = RH_NO_MEMORY
    cdef size_t count = <size_t>len(keys)
    cdef size_t i
    cdef const void **data = <const void **>PyMem_Malloc((count + 1) * sizeof(void *))
    cdef size_t *sizes = <size_t *>PyMem_Malloc((count + 1) * sizeof(size_t))
    cdef list encoded = []  # keys that became other objects, kept alive for the search
    try:
        if data == NULL or sizes == NULL:
            raise MemoryError
        for i in range(count):
            key = keys[i]
            view = view_key(key, &data[i], &sizes[i])
            if view is not key:
                encoded.append(view)
        out = _new_out(out, <Py_ssize_t>count)
        indexes = _open_out(out, <Py_ssize_t>count, &out_view)
        try:
            with nogil:
                status = rh_ring_lookup_keys(snapshot.ring, data, sizes, count, indexes)
        finally:
            PyBuffer_Release(&out_view)
    finally:
        PyMem_Free(sizes)
        PyMem_Free(data)
    if status != RH_OK:
        raise_lookup(status, snapshot)
    return out

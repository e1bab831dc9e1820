# cython: language_level=3, boundscheck=False, wraparound=False
"""XXH3 checksums of buffers. They find damage; they do not withstand an adversary."""

from cpython cimport array
from cpython.buffer cimport (
    PyBUF_FULL_RO, PyBuffer_IsContiguous, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint64_t

from ringhold.core._status cimport raise_status
from ringhold.core.c_ringhold cimport (
    RH_DIGEST_BYTES, RH_OK, rh_checksum, rh_checksum_blocks, rh_checksum_blocks_count, rh_digest,
    rh_status,
)

import array

# From this size on, letting other threads run is worth more than the two switches cost.
cdef enum:
    NOGIL_BYTES = 65536

cdef array.array _no_words = array.array("Q")


cdef int _get_buffer(object data, Py_buffer *view) except -1:
    # Not PyBUF_SIMPLE: exporters refuse strided buffers with errors of their own choosing.
    PyObject_GetBuffer(data, view, PyBUF_FULL_RO)
    if not PyBuffer_IsContiguous(view, b"C"):
        PyBuffer_Release(view)
        raise BufferError("a C-contiguous buffer is needed: pass a contiguous copy of the data")
    return 0


def checksum(data, /):
    """XXH3-64 of a bytes-like object, as an int.

    `data` is anything with a C-contiguous buffer, of any format, taken as its bytes; ``str`` is
    a TypeError, other layouts a BufferError. From 64 KiB on the GIL is released. Source: the
    xxHash specification, XXH3 with seed 0.

    >>> hex(checksum(b"ringhold"))
    '0x5b3028cffda9371c'
    """
    cdef Py_buffer view
    cdef uint64_t value = 0
    cdef rh_status status
    _get_buffer(data, &view)
    if view.len < NOGIL_BYTES:
        status = rh_checksum(view.buf, <size_t>view.len, &value)
    else:
        with nogil:
            status = rh_checksum(view.buf, <size_t>view.len, &value)
    PyBuffer_Release(&view)
    if status != RH_OK:
        raise_status(status, "the data has no address")
    return value


def checksum_blocks(data, /, block=65536):
    """XXH3-64 of each block of `block` bytes, the last possibly shorter.

    Returns an ``array.array('Q')`` with one value per started block, none for no data. Buffers
    as for `checksum`; a `block` below 1 is InvalidInput.

    >>> list(checksum_blocks(b"abcd", block=2)) == [checksum(b"ab"), checksum(b"cd")]
    True
    """
    cdef Py_buffer view
    cdef Py_ssize_t block_bytes = block
    cdef size_t count = 0
    cdef rh_status status
    cdef array.array out
    _get_buffer(data, &view)
    try:
        status = rh_checksum_blocks_count(<size_t>view.len, <size_t>max(block_bytes, 0), &count)
        if status != RH_OK:
            raise_status(status, f"block must be at least 1 byte, not {block}")
        out = array.clone(_no_words, <Py_ssize_t>count, zero=False)
        if view.len < NOGIL_BYTES:
            status = rh_checksum_blocks(view.buf, <size_t>view.len, <size_t>block_bytes,
                                        <uint64_t *>out.data.as_ulonglongs)
        else:
            with nogil:
                status = rh_checksum_blocks(view.buf, <size_t>view.len, <size_t>block_bytes,
                                            <uint64_t *>out.data.as_ulonglongs)
    finally:
        PyBuffer_Release(&view)
    if status != RH_OK:
        raise_status(status, "the data has no address")
    return out


def digest(data, /):
    """XXH3-128 of a bytes-like object: 16 bytes, canonical (big-endian).

    Buffers as for `checksum`. Source: the xxHash specification, XXH3 with seed 0.

    >>> len(digest(b"ringhold"))
    16
    """
    cdef Py_buffer view
    cdef bytes out = PyBytes_FromStringAndSize(NULL, RH_DIGEST_BYTES)
    cdef uint8_t *at = <uint8_t *>PyBytes_AS_STRING(out)
    cdef rh_status status
    _get_buffer(data, &view)
    if view.len < NOGIL_BYTES:
        status = rh_digest(view.buf, <size_t>view.len, at)
    else:
        with nogil:
            status = rh_digest(view.buf, <size_t>view.len, at)
    PyBuffer_Release(&view)
    if status != RH_OK:
        raise_status(status, "the data has no address")
    return out

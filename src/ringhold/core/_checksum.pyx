# cython: language_level=3, boundscheck=False, wraparound=False
# cython: embedsignature=True, embedsignature.format=clinic
"""XXH3 checksums of buffers. They find damage; they do not withstand an adversary.

Functions of one argument are plain built-in ones (``binding=False``), because the interpreter
calls those without a detour, and for short data the call is what costs.
"""

cimport cython
from cpython cimport array
from cpython.buffer cimport (
    PyBUF_FULL_RO, PyBUF_WRITABLE, PyBuffer_IsContiguous, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.bytes cimport (
    PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE,
)
from libc.stdint cimport uint8_t, uint64_t

from ringhold.core._status cimport raise_status
from ringhold.core.c_ringhold cimport (
    RH_DIGEST_BYTES, RH_OK, rh_checksum, rh_checksum_blocks, rh_checksum_blocks_count,
    rh_copy_checksum_blocks, rh_digest, rh_digest_stream, rh_digest_stream_copy,
    rh_digest_stream_free, rh_digest_stream_new, rh_digest_stream_update, rh_digest_stream_value,
    rh_status,
)

import array
from operator import index as _as_index

from ringhold.errors import InvalidInput

# From this size on, letting other threads run is worth more than the two switches cost.
cdef enum:
    NOGIL_BYTES = 65536

cdef array.array _no_words = array.array("Q")


cdef int _get_buffer(object data, Py_buffer *view, int flags) except -1:
    # Not PyBUF_SIMPLE: exporters refuse strided buffers with errors of their own choosing.
    PyObject_GetBuffer(data, view, flags)
    if not PyBuffer_IsContiguous(view, b"C"):
        PyBuffer_Release(view)
        raise BufferError("a C-contiguous buffer is needed: pass a contiguous copy of the data")
    return 0


cdef inline bint _is_small(object data) noexcept:
    """Whether `data` needs neither a view that keeps it nor the GIL released: half of a call."""
    return PyBytes_CheckExact(data) and PyBytes_GET_SIZE(data) < NOGIL_BYTES


cdef array.array _words_for(size_t size, object block, size_t *block_bytes):
    """Room for the checksums of the blocks that `size` bytes start."""
    cdef size_t count = 0
    block = _as_index(block)
    if block < 1:
        raise InvalidInput(f"block must be at least 1 byte, not {block}")
    # A block of all the bytes does what a larger one would, of any size.
    block_bytes[0] = min(block, max(size, 1))
    status = rh_checksum_blocks_count(size, block_bytes[0], &count)
    if status != RH_OK:
        raise_status(status, "block")
    return array.clone(_no_words, <Py_ssize_t>count, zero=False)


@cython.binding(False)
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
    if _is_small(data):
        status = rh_checksum(PyBytes_AS_STRING(data), <size_t>PyBytes_GET_SIZE(data), &value)
    else:
        _get_buffer(data, &view, PyBUF_FULL_RO)
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
    cdef size_t block_bytes = 0
    cdef rh_status status
    cdef array.array out
    _get_buffer(data, &view, PyBUF_FULL_RO)
    try:
        out = _words_for(<size_t>view.len, block, &block_bytes)
        if view.len < NOGIL_BYTES:
            status = rh_checksum_blocks(view.buf, <size_t>view.len, block_bytes,
                                        <uint64_t *>out.data.as_ulonglongs)
        else:
            with nogil:
                status = rh_checksum_blocks(view.buf, <size_t>view.len, block_bytes,
                                            <uint64_t *>out.data.as_ulonglongs)
    finally:
        PyBuffer_Release(&view)
    if status != RH_OK:
        raise_status(status, "the data has no address")
    return out


def copy_checksum_blocks(dst, src, block=65536):
    """Copies `src` to `dst` and returns what ``checksum_blocks(src, block)`` would, in one pass.

    `dst` is a writable C-contiguous buffer with as many bytes as `src`: InvalidInput when it is
    longer or shorter or when the two overlap, BufferError when it is read-only or of another
    layout, TypeError when it is no buffer; then nothing was copied. `src` and `block` as for
    `checksum_blocks`. From 64 KiB on the GIL is released; neither buffer may be written to by
    another thread meanwhile.

    >>> copy = bytearray(4)
    >>> copy_checksum_blocks(copy, b"abcd") == checksum_blocks(b"abcd"), copy
    (True, bytearray(b'abcd'))
    """
    cdef Py_buffer source
    cdef Py_buffer target
    _get_buffer(src, &source, PyBUF_FULL_RO)
    try:
        _get_buffer(dst, &target, PyBUF_FULL_RO | PyBUF_WRITABLE)
        try:
            return _copy_blocks(&target, &source, block)
        finally:
            PyBuffer_Release(&target)
    finally:
        PyBuffer_Release(&source)


cdef array.array _copy_blocks(Py_buffer *target, Py_buffer *source, object block):
    cdef size_t block_bytes = 0
    cdef size_t size = <size_t>source.len
    cdef rh_status status
    cdef array.array out = _words_for(size, block, &block_bytes)
    if target.len != source.len:
        raise InvalidInput(
            f"dst must be as long as src, but they have {target.len} and {source.len} bytes"
        )
    if size < NOGIL_BYTES:
        status = rh_copy_checksum_blocks(target.buf, source.buf, size, block_bytes,
                                         <uint64_t *>out.data.as_ulonglongs)
    else:
        with nogil:
            status = rh_copy_checksum_blocks(target.buf, source.buf, size, block_bytes,
                                             <uint64_t *>out.data.as_ulonglongs)
    if status != RH_OK:
        raise_status(status, "dst and src must not overlap")
    return out


@cython.binding(False)
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
    if _is_small(data):
        status = rh_digest(PyBytes_AS_STRING(data), <size_t>PyBytes_GET_SIZE(data), at)
    else:
        _get_buffer(data, &view, PyBUF_FULL_RO)
        if view.len < NOGIL_BYTES:
            status = rh_digest(view.buf, <size_t>view.len, at)
        else:
            with nogil:
                status = rh_digest(view.buf, <size_t>view.len, at)
        PyBuffer_Release(&view)
    if status != RH_OK:
        raise_status(status, "the data has no address")
    return out


@cython.final
cdef class Digest:
    """`digest` of data that comes in pieces, in the manner of hashlib.

    Digest(data=b"", /)

    The value is that of all pieces in the order of the updates, however they were cut. Threads
    may share one: each call happens as a whole, and updates of several threads come in some
    order. Digests cannot be pickled. Source: the xxHash specification, XXH3 with seed 0.

    >>> stream = Digest(b"ring")
    >>> stream.update(b"hold")
    >>> stream.digest() == digest(b"ringhold")
    True
    """

    cdef rh_digest_stream *_stream
    # Updates of large data release the GIL, so it does not keep two of them apart.
    cdef cython.pymutex _lock

    name = "xxh3_128"
    digest_size = RH_DIGEST_BYTES

    def __cinit__(self, data=b"", /):
        status = rh_digest_stream_new(&self._stream)
        if status != RH_OK:
            raise_status(status, "a digest")
        self.update(data)

    def __dealloc__(self):
        rh_digest_stream_free(self._stream)

    def update(self, data, /):
        """Appends a bytes-like object; buffers as for `checksum`."""
        cdef Py_buffer view
        cdef rh_status status
        _get_buffer(data, &view, PyBUF_FULL_RO)
        if view.len < NOGIL_BYTES:
            with self._lock:
                status = rh_digest_stream_update(self._stream, view.buf, <size_t>view.len)
        else:
            with nogil:
                with self._lock:
                    status = rh_digest_stream_update(self._stream, view.buf, <size_t>view.len)
        PyBuffer_Release(&view)
        if status != RH_OK:
            raise_status(status, "the data has no address")

    def digest(self):
        """The digest of everything so far, 16 bytes, canonical; more may follow."""
        cdef bytes out = PyBytes_FromStringAndSize(NULL, RH_DIGEST_BYTES)
        with self._lock:
            rh_digest_stream_value(self._stream, <uint8_t *>PyBytes_AS_STRING(out))
        return out

    def hexdigest(self):
        """The digest in hexadecimal digits."""
        return self.digest().hex()

    def copy(self):
        """An independent digest that has seen the same data."""
        cdef Digest other = Digest.__new__(Digest)
        cdef rh_digest_stream *stream = NULL
        with self._lock:
            status = rh_digest_stream_copy(self._stream, &stream)
        if status != RH_OK:
            raise_status(status, "a copy of a digest")
        rh_digest_stream_free(other._stream)
        other._stream = stream
        return other

    def __reduce__(self):
        raise TypeError("a Digest cannot be pickled: its state is that of this machine's library")

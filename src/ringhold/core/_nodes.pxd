from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_Clear

from ringhold.core.c_ringhold cimport rh_node

cdef extern from "Python.h":
    # Declared here for its NULL, which is no error yet: lone surrogates take the slow way.
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size)
    bint PyUnicode_IS_COMPACT_ASCII(object text)
    void *PyUnicode_DATA(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)


cdef bytes encode_text(object text, str what)
cdef bytes encode_key(object key)
cdef tuple node_spec(object name, object weight, object zone)
cdef list node_specs(object nodes)
cdef int fill_node(rh_node *node, tuple spec) except -1


cdef inline str decode_text(const void *data, size_t size):
    return (<const char *>data)[:size].decode("utf-8", "surrogateescape")


cdef inline object view_text(object text, const void **data, size_t *size, str what):
    """The bytes of a ``str`` or ``bytes``; valid as long as the object returned lives."""
    cdef Py_ssize_t length = 0
    if isinstance(text, str):
        if PyUnicode_IS_COMPACT_ASCII(text):
            data[0] = PyUnicode_DATA(text)
            size[0] = <size_t>PyUnicode_GET_LENGTH(text)
            return text
        data[0] = PyUnicode_AsUTF8AndSize(text, &length)
        if data[0] != NULL:
            size[0] = <size_t>length
            return text
        PyErr_Clear()
        text = encode_text(text, what)
    elif not isinstance(text, bytes):
        text = encode_text(text, what)
    data[0] = PyBytes_AS_STRING(text)
    size[0] = <size_t>PyBytes_GET_SIZE(text)
    return text


cdef inline object view_key(object key, const void **data, size_t *size):
    """The same of a key, which may be any contiguous buffer as well."""
    if not isinstance(key, (str, bytes)):
        key = encode_key(key)
    return view_text(key, data, size, "key")

# cython: language_level=3
"""Names, keys and nodes on their way into the C core: what may be given, and as which bytes."""

from collections.abc import Mapping

from cpython.buffer cimport (
    PyBUF_SIMPLE, PyBuffer_Release, PyObject_CheckBuffer, PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE

from ringhold.core.c_ringhold cimport rh_node

from ringhold.errors import InvalidInput
from ringhold.types import Node, check_weight


cdef bytes encode_text(object text, str what):
    if isinstance(text, bytes):
        # Its own bytes, whatever the __bytes__ of a subclass would say.
        return PyBytes_FromStringAndSize(PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text))
    if not isinstance(text, str):
        raise TypeError(f"{what} must be str or bytes, not {type(text).__name__}")
    try:
        return (<str>text).encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise InvalidInput(f"{what} {text!r} has no UTF-8 form: {error}") from error


cdef bytes encode_key(object key):
    """A key that is no text, as bytes of its own."""
    cdef Py_buffer view
    if not PyObject_CheckBuffer(key):
        raise TypeError(f"key must be str, bytes or a buffer, not {type(key).__name__}")
    PyObject_GetBuffer(key, &view, PyBUF_SIMPLE)
    try:
        return PyBytes_FromStringAndSize(<const char *>view.buf, view.len)
    finally:
        PyBuffer_Release(&view)


cdef tuple node_spec(object name, object weight, object zone):
    """A node as (name, weight, zone) in bytes, checked."""
    encoded = encode_text(name, "node name")
    return (
        encoded,
        check_weight(weight, f"node {name!r}"),
        None if zone is None else encode_text(zone, f"zone of node {name!r}"),
    )


cdef list node_specs(object nodes):
    if isinstance(nodes, (str, bytes)):
        raise TypeError("nodes must be an iterable of names, a mapping or Nodes, not one name")
    if isinstance(nodes, Node):
        raise TypeError("nodes must be an iterable of Nodes, not one Node")
    if isinstance(nodes, Mapping):
        return [node_spec(name, weight, None) for name, weight in nodes.items()]
    if hasattr(nodes, "weights") and hasattr(nodes, "zones"):
        # A Ring or a Layout: iterating over its names alone would lose both.
        zones = nodes.zones
        return [node_spec(name, weight, zones[name]) for name, weight in nodes.weights.items()]
    specs = []
    for node in nodes:
        if isinstance(node, Node):
            specs.append(node_spec(node.name, node.weight, node.zone))
        else:
            specs.append(node_spec(node, 1.0, None))
    return specs


cdef int fill_node(rh_node *node, tuple spec) except -1:
    """Lends the bytes of `spec`, which must outlive the call that `node` is for."""
    name = <bytes>spec[0]
    node.name = PyBytes_AS_STRING(name)
    node.name_bytes = <size_t>PyBytes_GET_SIZE(name)
    node.weight = spec[1]
    node.zone = NULL
    node.zone_bytes = 0
    if spec[2] is not None:
        zone = <bytes>spec[2]
        node.zone = PyBytes_AS_STRING(zone)
        node.zone_bytes = <size_t>PyBytes_GET_SIZE(zone)
    return 0

# cython: language_level=3, boundscheck=False, wraparound=False
"""`Ring`: consistent hashing with virtual nodes, weights and zones, over ``rh_ring``.

Guarantees that a key moves only to or from the node that was changed, that a lookup running
beside a change sees the ring as it was before or as it is after, and that the index of a name
never changes. Does not balance exactly: at 160 points per node shares vary by about 8 %.
"""

import array
import warnings
from operator import index as _as_index

from cpython cimport array
from cpython.buffer cimport (
    PyBUF_FORMAT, PyBUF_STRIDED_RO, PyBUF_WRITABLE, PyBuffer_IsContiguous, PyBuffer_Release,
    PyObject_CheckBuffer, PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.sequence cimport PySequence_Check
from libc.stdint cimport uint32_t, uint64_t

from ringhold.core._capsule cimport new_capsule
from ringhold.core._nodes cimport (
    decode_text, encode_text, fill_node, node_spec, node_specs, view_key,
)
from ringhold.core._status cimport raise_status
from ringhold.core.c_ringhold cimport (
    RH_DUPLICATE_NODE, RH_EMPTY_RING, RH_NOT_ENOUGH_NODES, RH_NO_MEMORY, RH_OK, RH_RING_ADD,
    RH_RING_CAPSULE, RH_RING_POINTS_MAX, RH_RING_REMOVE, RH_RING_RINGHOLD, RH_UNKNOWN_NODE,
    rh_node, rh_ring,
    rh_ring_change, rh_ring_change_kind, rh_ring_edit, rh_ring_find, rh_ring_free,
    rh_ring_get_info, rh_ring_get_member, rh_ring_get_points, rh_ring_info, rh_ring_locate,
    rh_ring_lookup, rh_ring_lookup_hash, rh_ring_lookup_hashes, rh_ring_lookup_keys,
    rh_ring_member, rh_ring_new, rh_ring_options, rh_ring_points, rh_ring_position,
    rh_ring_replicas, rh_ring_replicas_options, rh_status,
)

from ringhold.errors import EmptyRing, InvalidInput, NotEnoughNodes
from ringhold.types import PlacementWarning

# From this many keys on, letting other threads run is worth more than the two switches cost.
cdef enum:
    NOGIL_KEYS = 128

cdef array.array _no_indexes = array.array("I")

_PROFILES = ("ringhold",)


cdef class Snapshot:
    """One immutable ``rh_ring`` and the names of its nodes, shared by whoever reads it."""

    def __cinit__(self):
        self.ring = NULL
        self.names = ()

    def __dealloc__(self):
        rh_ring_free(self.ring)


cdef int _raise_lookup(rh_status status) except -1:
    if status == RH_EMPTY_RING:
        raise EmptyRing("no key has an owner: the ring has no node, or none of weight above 0")
    return raise_status(status, "lookup")


cdef str _too_large(object vnodes):
    return (
        f"the nodes would have more than {RH_RING_POINTS_MAX} points: weights are multiples of "
        f"vnodes={vnodes} points, so give them as small numbers"
    )


cdef int _check_unique(list specs) except -1:
    seen = set()
    for name, _, _ in specs:
        if name in seen:
            raise InvalidInput(f"node {name.decode('utf-8', 'surrogateescape')!r} is given twice")
        seen.add(name)
    return 0


cdef Snapshot _snapshot_of(list specs, object vnodes):
    cdef Snapshot snapshot = Snapshot.__new__(Snapshot)
    cdef rh_ring_options options
    cdef rh_node *nodes
    cdef rh_status status
    cdef size_t count = <size_t>len(specs)
    cdef size_t i
    options.vnodes = vnodes
    options.profile = RH_RING_RINGHOLD
    nodes = <rh_node *>PyMem_Malloc((count + 1) * sizeof(rh_node))
    if nodes == NULL:
        raise MemoryError
    try:
        for i in range(count):
            fill_node(&nodes[i], <tuple>specs[i])
        status = rh_ring_new(nodes, count, &options, &snapshot.ring)
    finally:
        PyMem_Free(nodes)
    if status == RH_DUPLICATE_NODE:
        _check_unique(specs)
    if status != RH_OK:
        raise_status(status, _too_large(vnodes))
    snapshot.names = tuple([spec[0].decode("utf-8", "surrogateescape") for spec in specs])
    return snapshot


cdef int _check_vnodes(object vnodes) except -1:
    if not 1 <= vnodes <= RH_RING_POINTS_MAX:
        raise InvalidInput(f"vnodes must be 1 to {RH_RING_POINTS_MAX}, not {vnodes}")
    return 0


cdef Snapshot _EMPTY = _snapshot_of([], 160)


cdef class Ring:
    """A consistent hash ring: every key has an owner, and changes move as few keys as possible.

    Ring(nodes=(), *, vnodes=160, profile="ringhold")

    `nodes` is an iterable of names, a mapping of names to weights, or an iterable of
    ``Node(name, weight, zone)``. A node of weight w has max(1, round(vnodes * w)) points, one of
    weight 0 is present and owns nothing. Names, zones and keys are ``str`` or ``bytes``, the same
    text being the same in both; they come back as ``str`` (UTF-8 with surrogateescape).

    Raises TypeError for wrong types; InvalidInput (a ValueError) for a name given twice, a weight
    that is negative or not finite, and an unknown profile.

    Any number of threads may use one ring, also while another changes it. Points are
    XXH3_64(name + '#' + LE32(i)), keys are placed by XXH3_64; the owner is the node of the first
    point at or after the key's hash. Source: Karger et al., "Consistent Hashing and Random
    Trees", STOC 1997.

    >>> ring = Ring(["a", "b", "c"])
    >>> ring["user/7"] == ring[b"user/7"] == ring.replicas("user/7", 2)[0]
    True
    """

    def __cinit__(self):
        self._snapshot = _EMPTY

    def __init__(self, nodes=(), *, vnodes=160, profile="ringhold"):
        if profile not in _PROFILES:
            raise InvalidInput(
                f"there is no ring profile {profile!r}; there is: {', '.join(_PROFILES)}"
            )
        vnodes = _as_index(vnodes)
        _check_vnodes(vnodes)
        self._snapshot = _snapshot_of(node_specs(nodes), vnodes)

    # Looking up

    def __getitem__(self, key):
        """The name of the node that owns `key`; EmptyRing when no node has a point."""
        cdef Snapshot snapshot
        cdef const void *data = NULL
        cdef size_t size = 0
        cdef uint32_t index = 0
        cdef rh_status status
        _alive = view_key(key, &data, &size)
        snapshot = self._snapshot
        status = rh_ring_lookup(snapshot.ring, data, size, &index)
        if status != RH_OK:
            _raise_lookup(status)
        return <str>snapshot.names[index]

    def lookup(self, key, /):
        """The same as ``ring[key]``."""
        return self[key]

    def lookup_hash(self, h, /):
        """The owner of a key whose hash is `h`, 0 <= h < 2**64; InvalidInput outside."""
        cdef Snapshot snapshot = self._snapshot
        cdef uint64_t hashed
        cdef uint32_t index = 0
        cdef rh_status status
        if not isinstance(h, int):
            h = _as_index(h)
        try:
            hashed = h
        except OverflowError as error:
            raise InvalidInput(f"a hash is at least 0 and below 2**64, not {h}") from error
        status = rh_ring_lookup_hash(snapshot.ring, hashed, &index)
        if status != RH_OK:
            _raise_lookup(status)
        return <str>snapshot.names[index]

    def lookup_many(self, keys, out=None):
        """The owners of many keys, as indexes into `names`.

        `keys` is a sequence of str and bytes, or a contiguous one-dimensional buffer of native
        64-bit unsigned hashes (format Q or L). The result is a new ``array.array('I')``, or
        `out`, a writable buffer of format I and of the same length. The GIL is released while
        owners are searched.

        Raises TypeError for other keys and buffers, among them one str or bytes object;
        ValueError for an `out` of another length; EmptyRing when no node has a point.
        """
        if isinstance(keys, (str, bytes)):
            raise TypeError(f"keys must be a sequence of keys, not one {type(keys).__name__}")
        if PyObject_CheckBuffer(keys):
            return _lookup_hashes(self._snapshot, keys, out)
        if not PySequence_Check(keys):
            raise TypeError(
                f"keys must be a sequence of str and bytes or a buffer of 64-bit hashes, "
                f"not {type(keys).__name__}"
            )
        return _lookup_keys(self, tuple(keys), out)

    def replicas(self, key, n, *, exclude=()):
        """`n` distinct nodes for `key` as a tuple of names, the owner first.

        They come in walk order from the key's point; with zones, no zone is used twice before
        every zone was used once, none a third time before every second, and so on. A node
        without a zone is a zone of its own; nodes of weight 0 are never used. `exclude` is an
        iterable of names to leave out, the result being that of a ring without them; unknown
        names in it are ignored.

        Raises NotEnoughNodes when fewer than `n` nodes are usable, InvalidInput for n < 0. Warns
        with PlacementWarning when nodes have zones and fewer than `n` of them are usable.
        """
        cdef Snapshot snapshot
        cdef const void *data = NULL
        cdef size_t size = 0
        cdef rh_ring_position position
        cdef rh_status status
        wanted = _as_index(n)
        if wanted < 0:
            raise InvalidInput(f"n must not be negative, but is {wanted}")
        _alive = view_key(key, &data, &size)
        if isinstance(exclude, (str, bytes)):
            raise TypeError("exclude must be an iterable of names, not one name")
        excluded = [encode_text(name, "excluded name") for name in exclude]
        snapshot = self._snapshot
        status = rh_ring_locate(snapshot.ring, data, size, &position)
        if status != RH_OK:
            raise_status(status, "the key has no address")
        return _replicas(snapshot, position, wanted, _indexes(snapshot, excluded))

    # Changing

    def add(self, name, weight=1.0, zone=None):
        """Adds a node; InvalidInput when the name is present or the weight no weight.

        A name that was removed before gets its old index back.
        """
        spec = node_spec(name, weight, zone)
        status = _edit(self, RH_RING_ADD, [spec])
        if status == RH_DUPLICATE_NODE:
            raise InvalidInput(f"node {name!r} is in the ring already")
        if status != RH_OK:
            raise_status(status, _too_large(self.vnodes))

    def remove(self, name):
        """Removes a node; KeyError when there is none of that name."""
        status = _edit(self, RH_RING_REMOVE, [(encode_text(name, "node name"), 0.0, None)])
        if status == RH_UNKNOWN_NODE:
            raise KeyError(name)
        if status != RH_OK:
            raise_status(status, "remove")

    # Reading

    @property
    def names(self):
        """Every name the ring ever had, in order of insertion; removed ones keep their index."""
        return self._snapshot.names

    @property
    def vnodes(self):
        """Points of a node of weight 1."""
        return _info(self._snapshot).vnodes

    @property
    def profile(self):
        """The name of the rules by which points are formed and keys hashed."""
        return _PROFILES[0]

    @property
    def weights(self):
        """The nodes present and their weights, a new dict in order of insertion."""
        return {name: weight for name, weight, _ in _members(self._snapshot)}

    @property
    def zones(self):
        """The nodes present and their zones (None: without), a new dict."""
        return {name: zone for name, _, zone in _members(self._snapshot)}

    def points(self):
        """All points in ascending order, as a list of (64-bit value, name of the node)."""
        cdef Snapshot snapshot = self._snapshot
        cdef rh_ring_points points
        cdef size_t i
        rh_ring_get_points(snapshot.ring, &points)
        return [(points.high[i], snapshot.names[points.owners[i]]) for i in range(points.count)]

    def copy(self):
        """An independent ring with the same nodes and indexes; costs nothing until one changes."""
        cdef Ring other = type(self).__new__(type(self))
        other._snapshot = self._snapshot
        return other

    def __len__(self):
        return _info(self._snapshot).nodes

    def __iter__(self):
        return iter([name for name, _, _ in _members(self._snapshot)])

    def __contains__(self, name):
        cdef const void *data = NULL
        cdef size_t size = 0
        cdef uint32_t index = 0
        if not isinstance(name, (str, bytes)):
            return False
        _alive = view_key(name, &data, &size)
        return rh_ring_find(self._snapshot.ring, data, size, &index) == RH_OK

    def __eq__(self, other):
        """Equal: the same nodes, weights, zones and vnodes, whatever the order of insertion."""
        if not isinstance(other, Ring):
            return NotImplemented
        return (
            self.vnodes == other.vnodes
            and self.weights == other.weights
            and self.zones == other.zones
        )

    __hash__ = None

    def __ringhold_ring__(self):
        """The ring as it is now for another extension module; see ``ringhold/capsule.h``."""
        cdef Snapshot snapshot = self._snapshot
        return new_capsule(snapshot.ring, RH_RING_CAPSULE, snapshot)

    def __repr__(self):
        info = _info(self._snapshot)
        return f"<{type(self).__name__} of {info.nodes} nodes, {info.points} points>"

    def __reduce__(self):
        present = {name: (weight, zone) for name, weight, zone in _members(self._snapshot)}
        return (
            _restore,
            (type(self), self.vnodes, self._snapshot.names, present),
            getattr(self, "__dict__", None),
        )


def _restore(kind, vnodes, names, present):
    """A pickled ring: its names in their old places, then without the removed ones."""
    cdef Ring ring = kind.__new__(kind)
    _check_vnodes(vnodes)
    specs = []
    for name in names:
        weight, zone = present.get(name, (0.0, None))
        specs.append(node_spec(name, weight, zone))
    ring._snapshot = _snapshot_of(specs, vnodes)
    removed = [node_spec(name, 0.0, None) for name in names if name not in present]
    status = _edit(ring, RH_RING_REMOVE, removed)
    if status != RH_OK:
        raise_status(status, "the pickled ring")
    return ring


cdef rh_ring_info _info(Snapshot snapshot) noexcept:
    cdef rh_ring_info info
    rh_ring_get_info(snapshot.ring, &info)
    return info


cdef int _get_member(rh_ring *ring, size_t index, rh_ring_member *member) except -1:
    status = rh_ring_get_member(ring, index, member)
    return 0 if status == RH_OK else raise_status(status, f"node number {index}")


cdef list _members(Snapshot snapshot):
    """(name, weight, zone) of the nodes present, by index."""
    cdef rh_ring_member member
    cdef size_t i
    members = []
    for i in range(<size_t>len(snapshot.names)):
        _get_member(snapshot.ring, i, &member)
        if member.present:
            zone = None
            if member.node.zone != NULL:
                zone = decode_text(member.node.zone, member.node.zone_bytes)
            members.append((snapshot.names[i], member.node.weight, zone))
    return members


cdef rh_status _edit(Ring ring, rh_ring_change_kind kind, list specs) except *:
    """Swaps in a changed snapshot, unless another thread was first: then starts over."""
    cdef size_t count = <size_t>len(specs)
    cdef size_t i
    cdef rh_ring_change *changes
    cdef Snapshot old, new
    cdef rh_status status
    changes = <rh_ring_change *>PyMem_Malloc((count + 1) * sizeof(rh_ring_change))
    if changes == NULL:
        return RH_NO_MEMORY
    try:
        for i in range(count):
            changes[i].kind = kind
            fill_node(&changes[i].node, <tuple>specs[i])
        while True:
            old = ring._snapshot
            new = Snapshot.__new__(Snapshot)
            status = rh_ring_edit(old.ring, changes, count, &new.ring)
            if status != RH_OK:
                return status
            new.names = old.names + _names_from(new.ring, <size_t>len(old.names))
            if ring._snapshot is old:
                ring._snapshot = new
                return RH_OK
    finally:
        PyMem_Free(changes)


cdef tuple _names_from(rh_ring *ring, size_t first):
    """The names from number `first` on."""
    cdef rh_ring_info info
    cdef rh_ring_member member
    cdef size_t i
    names = []
    rh_ring_get_info(ring, &info)
    for i in range(first, info.names):
        _get_member(ring, i, &member)
        names.append(decode_text(member.node.name, member.node.name_bytes))
    return tuple(names)


cdef array.array _indexes(Snapshot snapshot, list names):
    cdef array.array indexes = array.clone(_no_indexes, 0, zero=False)
    cdef uint32_t index = 0
    for name in names:
        if rh_ring_find(snapshot.ring, PyBytes_AS_STRING(name), <size_t>PyBytes_GET_SIZE(name),
                        &index) == RH_OK:
            indexes.append(index)
    return indexes


cdef tuple _replicas(Snapshot snapshot, rh_ring_position position, object wanted,
                     array.array excluded):
    cdef rh_ring_replicas_options options
    cdef rh_ring_info info = _info(snapshot)
    cdef array.array out
    cdef rh_status status = RH_NOT_ENOUGH_NODES
    cdef size_t zones = 0
    cdef size_t i
    options.exclude = <const uint32_t *>excluded.data.as_uints
    options.exclude_count = <size_t>len(excluded)
    if wanted <= info.usable:
        out = array.clone(_no_indexes, wanted, zero=False)
        status = rh_ring_replicas(snapshot.ring, position, <size_t>len(out), &options,
                                  <uint32_t *>out.data.as_uints, &zones)
    if status == RH_NOT_ENOUGH_NODES:
        raise _not_enough(snapshot, wanted, set(excluded))
    if status != RH_OK:
        raise_status(status, "replicas")
    if zones < <size_t>wanted:
        warnings.warn(
            f"{wanted} replicas lie in only {zones} zones: no more have a usable node",
            PlacementWarning,
            stacklevel=1,
        )
    return tuple([snapshot.names[out.data.as_uints[i]] for i in range(<size_t>wanted)])


cdef object _not_enough(Snapshot snapshot, object wanted, set excluded):
    cdef rh_ring_member member
    cdef size_t i
    cdef size_t usable = 0
    for i in range(<size_t>len(snapshot.names)):
        _get_member(snapshot.ring, i, &member)
        usable += member.points > 0 and i not in excluded
    return NotEnoughNodes(
        f"{wanted} replicas need as many nodes, and {usable} of weight above 0 can be used",
        wanted=wanted,
        usable=usable,
    )


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


cdef bint _is_native(Py_buffer *view, bytes code, bytes other, size_t size) noexcept:
    cdef bytes text = view.format if view.format != NULL else b"B"
    return (
        view.ndim == 1
        and <size_t>view.itemsize == size
        and text in (code, other, b"@" + code, b"@" + other, b"=" + code, b"=" + other)
        and PyBuffer_IsContiguous(view, b"C")
    )


cdef object _lookup_hashes(Snapshot snapshot, object hashes, object out):
    cdef Py_buffer view
    cdef Py_buffer out_view
    cdef uint32_t *indexes
    cdef rh_status status
    cdef size_t count
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
        count = <size_t>view.shape[0]
        if out is None:
            out = array.clone(_no_indexes, <Py_ssize_t>count, zero=False)
        indexes = _open_out(out, <Py_ssize_t>count, &out_view)
        try:
            if count < NOGIL_KEYS:
                status = rh_ring_lookup_hashes(snapshot.ring, <uint64_t *>view.buf, count, indexes)
            else:
                with nogil:
                    status = rh_ring_lookup_hashes(snapshot.ring, <uint64_t *>view.buf, count,
                                                   indexes)
        finally:
            PyBuffer_Release(&out_view)
    finally:
        PyBuffer_Release(&view)
    if status != RH_OK:
        _raise_lookup(status)
    return out


cdef object _lookup_keys(Ring ring, tuple keys, object out):
    cdef Snapshot snapshot
    cdef Py_buffer out_view
    cdef uint32_t *indexes
    cdef rh_status status = RH_NO_MEMORY
    cdef size_t count = <size_t>len(keys)
    cdef size_t i
    cdef const void **data = <const void **>PyMem_Malloc((count + 1) * sizeof(void *))
    cdef size_t *sizes = <size_t *>PyMem_Malloc((count + 1) * sizeof(size_t))
    cdef list encoded = []  # what keys with lone surrogates became, kept alive for the search
    try:
        if data == NULL or sizes == NULL:
            raise MemoryError
        for i in range(count):
            key = keys[i]
            view = view_key(key, &data[i], &sizes[i])
            if view is not key:
                encoded.append(view)
        if out is None:
            out = array.clone(_no_indexes, <Py_ssize_t>count, zero=False)
        indexes = _open_out(out, <Py_ssize_t>count, &out_view)
        snapshot = ring._snapshot
        try:
            if count < NOGIL_KEYS:
                status = rh_ring_lookup_keys(snapshot.ring, data, sizes, count, indexes)
            else:
                with nogil:
                    status = rh_ring_lookup_keys(snapshot.ring, data, sizes, count, indexes)
        finally:
            PyBuffer_Release(&out_view)
    finally:
        PyMem_Free(sizes)
        PyMem_Free(data)
    if status != RH_OK:
        _raise_lookup(status)
    return out

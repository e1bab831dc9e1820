# cython: language_level=3, boundscheck=False, wraparound=False
"""`Snapshot`: one immutable ``rh_ring`` with the names of its nodes, and how one is made.

Guarantees that a snapshot never changes, so that whoever holds one reads a whole ring whatever
becomes of the `Ring` it was taken from.
"""

from cpython.mem cimport PyMem_Free, PyMem_Malloc

from ringhold.core._nodes cimport decode_text, fill_node
from ringhold.core._status cimport raise_status
from ringhold.core.c_ringhold cimport (
    RH_DUPLICATE_NODE, RH_INVALID_ARGUMENT, RH_NO_MEMORY, RH_OK, RH_RING_POINTS_MAX,
    RH_RING_VNODES_DEFAULT, RH_TOO_LARGE, rh_node, rh_ring_change, rh_ring_change_kind,
    rh_ring_edit, rh_ring_free, rh_ring_get_info, rh_ring_get_member, rh_ring_info,
    rh_ring_member, rh_ring_new, rh_ring_options, rh_ring_profile, rh_status,
)

from ringhold.errors import InvalidInput

# In the order of rh_ring_profile.
_PROFILES = (
    "ringhold", "ketama", "libmemcached", "libmemcached-unweighted", "libmemcached-spy",
    "twemproxy", "uhashring", "uhashring-ketama",
)


cdef class Snapshot:
    def __cinit__(self):
        self.ring = NULL
        self.names = ()

    def __dealloc__(self):
        rh_ring_free(self.ring)


cdef int raise_refused(rh_status status, object vnodes, str profile) except -1:
    """Raises what a status of making or changing a ring means."""
    what = "the ring was not made"
    if status == RH_TOO_LARGE:
        what = (
            f"the nodes would have more than {RH_RING_POINTS_MAX} points: weights are multiples "
            f"of vnodes={vnodes} points, so give them as small numbers"
        )
    elif status == RH_INVALID_ARGUMENT:
        what = (
            f"profile {profile!r} takes what its original takes: weights that are whole numbers "
            f"below 2**32, of twemproxy all together, and, 'uhashring' excepted, "
            f"vnodes={RH_RING_VNODES_DEFAULT}"
        )
    return raise_status(status, what)


cdef int _check_unique(list specs) except -1:
    seen = set()
    for name, _, _ in specs:
        if name in seen:
            raise InvalidInput(f"node {name.decode('utf-8', 'surrogateescape')!r} is given twice")
        seen.add(name)
    return 0


cdef rh_ring_options _options(object vnodes, object profile) except *:
    cdef rh_ring_options options
    if not isinstance(profile, str):
        raise TypeError(f"profile must be a str, not {type(profile).__name__}")
    if profile not in _PROFILES:
        raise InvalidInput(
            f"there is no ring profile {profile!r}; there are: {', '.join(_PROFILES)}"
        )
    if not 1 <= vnodes <= RH_RING_POINTS_MAX:
        raise InvalidInput(f"vnodes must be 1 to {RH_RING_POINTS_MAX}, not {vnodes}")
    options.vnodes = vnodes
    options.profile = <rh_ring_profile><int>_PROFILES.index(profile)
    return options


cdef Snapshot make_snapshot(list specs, object vnodes, object profile):
    """A ring of nodes as `node_spec` makes them, numbered in their order."""
    cdef Snapshot snapshot = Snapshot.__new__(Snapshot)
    cdef rh_ring_options options = _options(vnodes, profile)
    cdef rh_node *nodes
    cdef rh_status status
    cdef size_t count = <size_t>len(specs)
    cdef size_t i
    nodes = <rh_node *>PyMem_Malloc((count + 1) * sizeof(rh_node))
    if nodes == NULL:
        raise MemoryError
    try:
        for i in range(count):
            fill_node(&nodes[i], <tuple>specs[i])
        with nogil:
            status = rh_ring_new(nodes, count, &options, &snapshot.ring)
    finally:
        PyMem_Free(nodes)
    if status == RH_DUPLICATE_NODE:
        _check_unique(specs)
    if status != RH_OK:
        raise_refused(status, vnodes, profile)
    snapshot.names = names_from(snapshot.ring, 0)
    return snapshot


cdef rh_status edit_snapshot(
    Snapshot old, rh_ring_change_kind kind, list specs, Snapshot new
) except *:
    """Makes `new`, which is fresh, `old` with one kind of change made to each of `specs`."""
    cdef size_t count = <size_t>len(specs)
    cdef size_t i
    cdef rh_ring_change *changes
    cdef rh_status status
    changes = <rh_ring_change *>PyMem_Malloc((count + 1) * sizeof(rh_ring_change))
    if changes == NULL:
        return RH_NO_MEMORY
    try:
        for i in range(count):
            changes[i].kind = kind
            fill_node(&changes[i].node, <tuple>specs[i])
        with nogil:
            status = rh_ring_edit(old.ring, changes, count, &new.ring)
    finally:
        PyMem_Free(changes)
    if status == RH_OK:
        new.names = old.names + names_from(new.ring, <size_t>len(old.names))
    return status


cdef tuple names_from(rh_ring *ring, size_t first):
    """The names from number `first` on."""
    cdef rh_ring_info info
    cdef rh_ring_member member
    cdef size_t i
    names = []
    rh_ring_get_info(ring, &info)
    for i in range(first, info.names):
        get_member(ring, i, &member)
        names.append(decode_text(member.node.name, member.node.name_bytes))
    return tuple(names)


cdef rh_ring_info info_of(Snapshot snapshot) noexcept:
    cdef rh_ring_info info
    rh_ring_get_info(snapshot.ring, &info)
    return info


cdef str profile_of(Snapshot snapshot):
    return <str>_PROFILES[<int>info_of(snapshot).profile]


cdef int get_member(rh_ring *ring, size_t index, rh_ring_member *member) except -1:
    status = rh_ring_get_member(ring, index, member)
    return 0 if status == RH_OK else raise_status(status, f"node number {index}")


cdef list members_of(Snapshot snapshot):
    """(name, weight, zone) of the nodes present, by number."""
    cdef rh_ring_member member
    cdef size_t i
    members = []
    for i in range(<size_t>len(snapshot.names)):
        get_member(snapshot.ring, i, &member)
        if member.present:
            zone = None
            if member.node.zone != NULL:
                zone = decode_text(member.node.zone, member.node.zone_bytes)
            members.append((snapshot.names[i], member.node.weight, zone))
    return members

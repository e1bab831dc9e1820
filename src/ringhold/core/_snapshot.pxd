from ringhold.core.c_ringhold cimport (
    rh_ring, rh_ring_change_kind, rh_ring_info, rh_ring_member, rh_status,
)


cdef class Snapshot:
    cdef rh_ring *ring
    cdef tuple names


cdef Snapshot make_snapshot(list specs, object vnodes, object profile)
cdef rh_status edit_snapshot(
    Snapshot old, rh_ring_change_kind kind, list specs, Snapshot new
) except *
cdef tuple names_from(rh_ring *ring, size_t first)
cdef list members_of(Snapshot snapshot)
cdef int get_member(rh_ring *ring, size_t index, rh_ring_member *member) except -1
cdef rh_ring_info info_of(Snapshot snapshot) noexcept
cdef str profile_of(Snapshot snapshot)
cdef int raise_refused(rh_status status, object vnodes, str profile) except -1

from ringhold.core._snapshot cimport Snapshot


cdef tuple walk_replicas(Snapshot snapshot, object key, object n, object exclude)
cdef str find_bounded(Snapshot snapshot, object key, object loads, object bound)
cdef object explain_key(Snapshot snapshot, object key)
cdef list list_points(Snapshot snapshot)

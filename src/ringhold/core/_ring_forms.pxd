from ringhold.core._snapshot cimport Snapshot


cdef object diff_snapshots(Snapshot old, Snapshot new)
cdef bytes digest_snapshot(Snapshot snapshot)
cdef bytes dump_snapshot(Snapshot snapshot)
cdef Snapshot load_snapshot(object data)

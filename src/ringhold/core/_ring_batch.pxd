from ringhold.core.c_ringhold cimport rh_status
from ringhold.core._snapshot cimport Snapshot


cdef object lookup_batch(Snapshot snapshot, object keys, object out)
cdef int raise_lookup(rh_status status, Snapshot snapshot) except -1

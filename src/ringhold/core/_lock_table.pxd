from ringhold.core.c_ringhold cimport rh_lock_grants, rh_lock_table


cdef class LockTable:
    cdef rh_lock_table *table
    cdef rh_lock_grants *grants

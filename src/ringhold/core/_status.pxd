from ringhold.core.c_ringhold cimport rh_status


cdef int raise_status(rh_status status, str what) except -1

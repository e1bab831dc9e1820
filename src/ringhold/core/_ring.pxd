from ringhold.core.c_ringhold cimport rh_ring


cdef class Snapshot:
    cdef rh_ring *ring
    cdef tuple names


cdef class Ring:
    cdef Snapshot _snapshot
    cdef object __weakref__

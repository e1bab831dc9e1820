from ringhold.core._snapshot cimport Snapshot


cdef class Ring:
    cdef Snapshot _snapshot
    cdef object __weakref__

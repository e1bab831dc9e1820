from ringhold.core.c_ringhold cimport rh_layout, rh_layout_move


cdef class Layout:
    cdef rh_layout *_layout
    cdef readonly tuple names
    cdef readonly int partitions
    cdef readonly Py_ssize_t replicas
    cdef object __weakref__


cdef class LayoutPlan:
    cdef readonly Layout layout
    cdef readonly Py_ssize_t moved
    cdef readonly Py_ssize_t lower_bound
    cdef Layout _before
    cdef rh_layout_move *_moves
    cdef tuple _listed

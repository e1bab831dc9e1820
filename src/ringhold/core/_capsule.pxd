"""Handles of the C core on their way to other extension modules; see ``ringhold/capsule.h``."""

from cpython.pycapsule cimport (
    PyCapsule_GetContext, PyCapsule_New, PyCapsule_SetContext, PyCapsule_SetDestructor,
)
from cpython.ref cimport Py_DECREF, Py_INCREF


cdef inline void _release_owner(object capsule) noexcept:
    Py_DECREF(<object>PyCapsule_GetContext(capsule))


cdef inline object new_capsule(void *handle, const char *name, object owner):
    """A capsule of `handle`, which `owner` frees and which therefore keeps `owner` alive."""
    capsule = PyCapsule_New(handle, name, NULL)
    PyCapsule_SetContext(capsule, <void *>owner)
    Py_INCREF(owner)
    PyCapsule_SetDestructor(capsule, _release_owner)
    return capsule

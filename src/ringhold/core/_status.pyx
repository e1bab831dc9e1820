# cython: language_level=3
"""The one place where a status of the C core becomes an exception."""

from ringhold.core.c_ringhold cimport rh_status, rh_status_name

from ringhold.errors import (
    Conflict, Corrupt, DeadlockError, EmptyRing, InvalidInput, NotEnoughNodes, NotOwned,
)

_EXCEPTIONS = {
    "RH_NO_MEMORY": MemoryError,
    "RH_INVALID_ARGUMENT": InvalidInput,
    "RH_TOO_LARGE": InvalidInput,
    "RH_DUPLICATE_NODE": InvalidInput,
    "RH_UNKNOWN_NODE": KeyError,
    "RH_EMPTY_RING": EmptyRing,
    "RH_NOT_ENOUGH_NODES": NotEnoughNodes,
    "RH_CORRUPT": Corrupt,
    "RH_NOT_SUPPORTED": InvalidInput,
    "RH_CONFLICT": Conflict,
    "RH_NOT_OWNED": NotOwned,
    "RH_DEADLOCK": DeadlockError,
}


cdef int raise_status(rh_status status, str what) except -1:
    """Raises what `status`, which is not RH_OK, means; `what` is the message."""
    raise _EXCEPTIONS[rh_status_name(status).decode("ascii")](what)

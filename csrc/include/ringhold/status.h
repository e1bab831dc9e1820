/*
 * Status codes. Every function of the library that can fail returns one, and writes its
 * outputs only when it returns RH_OK.
 */
#ifndef RINGHOLD_STATUS_H
#define RINGHOLD_STATUS_H

#include <ringhold/export.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Values are part of the ABI: they are never renumbered, new ones go below the last. */
typedef enum rh_status {
    RH_OK = 0,
    RH_NO_MEMORY = -1,
    RH_INVALID_ARGUMENT = -2,
    RH_TOO_LARGE = -3,        /* more points, nodes or bytes than the type can count */
    RH_DUPLICATE_NODE = -4,   /* a name given twice, or one that is already present */
    RH_UNKNOWN_NODE = -5,     /* no node of that name or index is present */
    RH_EMPTY_RING = -6,       /* no node has a point, so no key has an owner */
    RH_NOT_ENOUGH_NODES = -7, /* fewer usable nodes than replicas asked for */
    RH_CORRUPT = -8,          /* bytes that are not, or no longer, what was written */
    RH_NOT_SUPPORTED = -9,    /* not possible with this profile */
    RH_CONFLICT = -10,        /* a lock is held, or waited for, in a mode that excludes this one */
    RH_NOT_OWNED = -11,       /* the owner holds nothing of that name */
    RH_DEADLOCK = -12         /* waiting would close a cycle of owners that wait for each other */
} rh_status;

/*
 * The name of a status as it stands above, "RH_OK" for instance; "RH_UNKNOWN_STATUS" for a
 * value that is none. Static text, never NULL.
 */
RH_API const char *rh_status_name(rh_status status);

/* Releases memory that a function of the library allocated for its caller; NULL is fine. */
RH_API void rh_free(void *memory);

#ifdef __cplusplus
}
#endif

#endif

/*
 * Ringhold's C core: placement, lock table and checksums. No globals, no clock, no randomness,
 * no I/O, no locale, no threads: what a function needs comes in as an argument, so several
 * copies of the library may live in one process.
 *
 * Conventions: functions return rh_status, outputs come last and options before them; options
 * set to zero, or a NULL pointer to them, mean the defaults. Objects are opaque, made by
 * rh_…_new and released by rh_…_free, which takes NULL.
 */
#ifndef RINGHOLD_RINGHOLD_H
#define RINGHOLD_RINGHOLD_H

#define RH_VERSION_MAJOR 0
#define RH_VERSION_MINOR 1
#define RH_VERSION_PATCH 0

/*
 * The version of this interface, apart from the project's. MAJOR rises when a program may have
 * to be changed or compiled again: a name, a signature, the layout or the size of a struct, a
 * promise was changed or taken away. MINOR rises when something was added. A program compiled
 * with M.m runs with a library of M.n, n >= m.
 */
#define RH_API_VERSION_MAJOR 1
#define RH_API_VERSION_MINOR 0
#define RH_API_VERSION (RH_API_VERSION_MAJOR * 0x10000 + RH_API_VERSION_MINOR)

#include <ringhold/checksum.h>
#include <ringhold/export.h>
#include <ringhold/layout.h>
#include <ringhold/lock_table.h>
#include <ringhold/node.h>
#include <ringhold/ring.h>
#include <ringhold/status.h>

#ifdef __cplusplus
extern "C" {
#endif

/* RH_API_VERSION of the library itself, to be compared with that of the headers. */
RH_API int rh_api_version(void);

#ifdef __cplusplus
}
#endif

#endif

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

#include <ringhold/checksum.h>
#include <ringhold/export.h>
#include <ringhold/lock_table.h>
#include <ringhold/node.h>
#include <ringhold/ring.h>
#include <ringhold/status.h>

#endif

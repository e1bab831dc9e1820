/*
 * MD5 (RFC 1321) of data in memory: what other programs' rings are made of. Not for anything that
 * must withstand an adversary.
 */
#ifndef RINGHOLD_SRC_MD5_H
#define RINGHOLD_SRC_MD5_H

#include <stddef.h>
#include <stdint.h>

#define MD5_BYTES 16

/* `data` may be NULL when `size` is 0. */
void rh_md5_digest(const void *data, size_t size, uint8_t out[MD5_BYTES]);

#endif

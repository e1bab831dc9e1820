/*
 * Checksums: XXH3 in 64 and 128 bits, seed 0, unkeyed.
 *
 * They find damage, they do not withstand an adversary. Values are those of the xxHash
 * specification, hence the same on every machine and for every other implementation of it.
 *
 * Pure functions of their arguments: any number of threads may call them at once. `data` may be
 * NULL when `size` is 0.
 */
#ifndef RINGHOLD_CHECKSUM_H
#define RINGHOLD_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>

#include <ringhold/export.h>
#include <ringhold/status.h>

#ifdef __cplusplus
extern "C" {
#endif

#define RH_DIGEST_BYTES 16

/* XXH3-64 of `size` bytes. */
RH_API RH_NODISCARD rh_status rh_checksum(const void *data, size_t size, uint64_t *out);

/* How many blocks of `block_bytes` (> 0) `size` bytes start: none for no data. */
RH_API RH_NODISCARD rh_status rh_checksum_blocks_count(size_t size, size_t block_bytes,
                                                       size_t *out);

/*
 * XXH3-64 of each block of `block_bytes` (> 0), the last one possibly shorter. `out` has room
 * for rh_checksum_blocks_count() values.
 */
RH_API RH_NODISCARD rh_status rh_checksum_blocks(const void *data, size_t size, size_t block_bytes,
                                                 uint64_t *out);

/* XXH3-128 of `size` bytes in the canonical form: big-endian, high half first. */
RH_API RH_NODISCARD rh_status rh_digest(const void *data, size_t size,
                                        uint8_t out[RH_DIGEST_BYTES]);

#ifdef __cplusplus
}
#endif

#endif

/*
 * Checksums: XXH3 in 64 and 128 bits, seed 0, unkeyed.
 *
 * They find damage, they do not withstand an adversary. Values are those of the xxHash
 * specification, hence the same on every machine and for every other implementation of it.
 *
 * Pure functions of their arguments, streams excepted: any number of threads may call them at
 * once. Pointers to data may be NULL when `size` is 0, and any other NULL where a pointer is needed
 * is RH_INVALID_ARGUMENT. The caller owns every buffer.
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

/*
 * Copies `size` bytes from `src` to `dst` and checksums them on the way, as rh_checksum_blocks
 * would, reading them once. Long copies, from some hundred KiB on, are written past the caches and are not
 * in them afterwards. RH_INVALID_ARGUMENT when the two overlap.
 */
RH_API RH_NODISCARD rh_status rh_copy_checksum_blocks(void *dst, const void *src, size_t size,
                                                      size_t block_bytes, uint64_t *out);

/* XXH3-128 of `size` bytes in the canonical form: big-endian, high half first. */
RH_API RH_NODISCARD rh_status rh_digest(const void *data, size_t size,
                                        uint8_t out[RH_DIGEST_BYTES]);

/*
 * A digest of data that comes in pieces: the value is that of rh_digest over all of them, however
 * they were cut. One thread at a time may use a stream.
 */
typedef struct rh_digest_stream rh_digest_stream;

/* A stream of no data so far; RH_NO_MEMORY. */
RH_API RH_NODISCARD rh_status rh_digest_stream_new(rh_digest_stream **out);

/* An independent stream that has seen the same data; RH_NO_MEMORY. */
RH_API RH_NODISCARD rh_status rh_digest_stream_copy(const rh_digest_stream *stream,
                                                    rh_digest_stream **out);

RH_API void rh_digest_stream_free(rh_digest_stream *stream);

/* Appends `size` bytes, which are not needed afterwards. Cannot fail but for a NULL `data`. */
RH_API RH_NODISCARD rh_status rh_digest_stream_update(rh_digest_stream *stream, const void *data,
                                                      size_t size);

/* The digest of everything so far; more may follow. Cannot fail. */
RH_API rh_status rh_digest_stream_value(const rh_digest_stream *stream,
                                        uint8_t out[RH_DIGEST_BYTES]);

#ifdef __cplusplus
}
#endif

#endif

#include <ringhold/checksum.h>

#include <stdbool.h>
#include <string.h>

#include "checksum_isa.h"
#include "xxh3.h"

/* Up to here XXH3 uses no vectors: hashing in place costs less than choosing how to. */
#define SHORT_MAX 240

/*
 * Copies shorter than this lie in the caches before and after, where two passes cost no more
 * than one past them (on Zen 3 with 512 KiB of second-level cache).
 */
#define PAST_CACHES_MIN ((size_t)256 << 10)

static uint64_t checksum64(const void *data, size_t size)
{
    return size <= SHORT_MAX ? XXH3_64bits(data, size) : rh_isa_best()->checksum64(data, size);
}

rh_status rh_checksum(const void *data, size_t size, uint64_t *out)
{
    if (out == NULL || (data == NULL && size > 0)) {
        return RH_INVALID_ARGUMENT;
    }
    *out = checksum64(data, size);
    return RH_OK;
}

rh_status rh_checksum_blocks_count(size_t size, size_t block_bytes, size_t *out)
{
    if (block_bytes == 0 || out == NULL) {
        return RH_INVALID_ARGUMENT;
    }
    *out = size / block_bytes + (size % block_bytes != 0);
    return RH_OK;
}

rh_status rh_checksum_blocks(const void *data, size_t size, size_t block_bytes, uint64_t *out)
{
    const uint8_t *bytes = data;

    if (block_bytes == 0 || (size > 0 && (data == NULL || out == NULL))) {
        return RH_INVALID_ARGUMENT;
    }
    while (size > 0) {
        size_t part = size < block_bytes ? size : block_bytes;

        *out++ = checksum64(bytes, part);
        bytes += part;
        size -= part;
    }
    return RH_OK;
}

static bool overlap(const void *a, const void *b, size_t size)
{
    uintptr_t x = (uintptr_t)a, y = (uintptr_t)b;

    return x < y ? y - x < size : x - y < size;
}

rh_status rh_copy_checksum_blocks(void *dst, const void *src, size_t size, size_t block_bytes,
                                  uint64_t *out)
{
    if (block_bytes == 0) {
        return RH_INVALID_ARGUMENT;
    }
    if (size == 0) {
        return RH_OK;
    }
    if (dst == NULL || src == NULL || out == NULL || overlap(dst, src, size)) {
        return RH_INVALID_ARGUMENT;
    }
    if (size >= PAST_CACHES_MIN) {
        rh_isa_best()->copy_blocks(dst, src, size, block_bytes, out);
        return RH_OK;
    }
    memcpy(dst, src, size);
    return rh_checksum_blocks(src, size, block_bytes, out);
}

rh_status rh_digest(const void *data, size_t size, uint8_t out[RH_DIGEST_BYTES])
{
    struct digest_halves halves;

    if (out == NULL || (data == NULL && size > 0)) {
        return RH_INVALID_ARGUMENT;
    }
    halves = size <= SHORT_MAX ? rh_isa_base.checksum128(data, size)
                               : rh_isa_best()->checksum128(data, size);
    for (int i = 0; i < 8; i++) {
        out[i] = (uint8_t)(halves.high >> (56 - 8 * i));
        out[8 + i] = (uint8_t)(halves.low >> (56 - 8 * i));
    }
    return RH_OK;
}

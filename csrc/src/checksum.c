#include <ringhold/checksum.h>

#include "checksum_isa.h"
#include "xxh3.h"

/* Up to here XXH3 uses no vectors: hashing in place costs less than choosing how to. */
#define SHORT_MAX 240

/*
 * The compiler's runtime asked the processor and the system before main, so that this reads a
 * word: the only state that the library depends on, and none of its own.
 */
#if defined(RINGHOLD_X86_DISPATCH)
#  define HAS(set) __builtin_cpu_supports(set)
#endif

static uint64_t checksum64(const void *data, size_t size)
{
    if (size <= SHORT_MAX) {
        return XXH3_64bits(data, size);
    }
#if defined(RINGHOLD_X86_DISPATCH)
    if (HAS("avx512f")) {
        return checksum64_avx512(data, size);
    }
    if (HAS("avx2")) {
        return checksum64_avx2(data, size);
    }
#endif
    return checksum64_base(data, size);
}

static struct digest_halves checksum128(const void *data, size_t size)
{
#if defined(RINGHOLD_X86_DISPATCH)
    if (size > SHORT_MAX && HAS("avx512f")) {
        return checksum128_avx512(data, size);
    }
    if (size > SHORT_MAX && HAS("avx2")) {
        return checksum128_avx2(data, size);
    }
#endif
    return checksum128_base(data, size);
}

rh_status rh_checksum(const void *data, size_t size, uint64_t *out)
{
    if (data == NULL && size > 0) {
        return RH_INVALID_ARGUMENT;
    }
    *out = checksum64(data, size);
    return RH_OK;
}

rh_status rh_checksum_blocks_count(size_t size, size_t block_bytes, size_t *out)
{
    if (block_bytes == 0) {
        return RH_INVALID_ARGUMENT;
    }
    *out = size / block_bytes + (size % block_bytes != 0);
    return RH_OK;
}

rh_status rh_checksum_blocks(const void *data, size_t size, size_t block_bytes, uint64_t *out)
{
    const uint8_t *bytes = data;

    if (block_bytes == 0 || (data == NULL && size > 0)) {
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

rh_status rh_digest(const void *data, size_t size, uint8_t out[RH_DIGEST_BYTES])
{
    struct digest_halves halves;

    if (data == NULL && size > 0) {
        return RH_INVALID_ARGUMENT;
    }
    halves = checksum128(data, size);
    for (int i = 0; i < 8; i++) {
        out[i] = (uint8_t)(halves.high >> (56 - 8 * i));
        out[8 + i] = (uint8_t)(halves.low >> (56 - 8 * i));
    }
    return RH_OK;
}

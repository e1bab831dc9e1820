/* Compiled once per instruction set: RINGHOLD_ISA is its name, the compiler's flags choose it. */
#include "checksum_isa.h"
#include "xxh3.h"

#define JOIN_NAMES(a, b) a##_##b
#define JOIN(a, b) JOIN_NAMES(a, b)

uint64_t JOIN(checksum64, RINGHOLD_ISA)(const void *data, size_t size)
{
    return XXH3_64bits(data, size);
}

struct digest_halves JOIN(checksum128, RINGHOLD_ISA)(const void *data, size_t size)
{
    XXH128_hash_t hash = XXH3_128bits(data, size);
    struct digest_halves halves = {hash.high64, hash.low64};

    return halves;
}

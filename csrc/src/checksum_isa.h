/*
 * XXH3 of long data, compiled once per instruction set from checksum_isa.c. The values are the
 * same; a caller may only take a set that the processor has.
 */
#ifndef RINGHOLD_SRC_CHECKSUM_ISA_H
#define RINGHOLD_SRC_CHECKSUM_ISA_H

#include <stddef.h>
#include <stdint.h>

struct digest_halves {
    uint64_t high;
    uint64_t low;
};

struct rh_isa {
    uint64_t (*checksum64)(const void *data, size_t size);
    struct digest_halves (*checksum128)(const void *data, size_t size);

    /* `state` is an XXH3_state_t, which is the same for all sets: an update may follow another's */
    void (*update)(void *state, const void *data, size_t size);

    /* As rh_copy_checksum_blocks of valid arguments, storing past the caches. */
    void (*copy_blocks)(uint8_t *dst, const uint8_t *src, size_t size, size_t block_bytes,
                        uint64_t *out);
};

extern const struct rh_isa rh_isa_base;
#if defined(RINGHOLD_X86_DISPATCH)
extern const struct rh_isa rh_isa_avx2;
extern const struct rh_isa rh_isa_avx512;
#endif

/*
 * The best set of this processor. The compiler's runtime asked it and the system before main, so
 * this reads a word: the only state that the library depends on, and none of its own.
 */
static inline const struct rh_isa *rh_isa_best(void)
{
#if defined(RINGHOLD_X86_DISPATCH)
    if (__builtin_cpu_supports("avx512f")) {
        return &rh_isa_avx512;
    }
    if (__builtin_cpu_supports("avx2")) {
        return &rh_isa_avx2;
    }
#endif
    return &rh_isa_base;
}

#endif

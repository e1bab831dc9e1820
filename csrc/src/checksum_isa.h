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

uint64_t checksum64_base(const void *data, size_t size);
struct digest_halves checksum128_base(const void *data, size_t size);

#if defined(RINGHOLD_X86_DISPATCH)
uint64_t checksum64_avx2(const void *data, size_t size);
struct digest_halves checksum128_avx2(const void *data, size_t size);
uint64_t checksum64_avx512(const void *data, size_t size);
struct digest_halves checksum128_avx512(const void *data, size_t size);
#endif

#endif

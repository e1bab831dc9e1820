/*
 * What fuzz targets share. A target is one LLVMFuzzerTestOneInput: libFuzzer calls it where clang
 * builds it (RINGHOLD_FUZZ), replay.c calls it with a corpus under every other compiler.
 */
#ifndef RINGHOLD_TESTS_FUZZ_H
#define RINGHOLD_TESTS_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <ringhold/ringhold.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What must hold for every input; what does not hold ends the process, as fuzzers expect. */
#define PROMISE(condition)                                                                         \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: broken: %s\n", __FILE__, __LINE__, #condition);                \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

/* An input as a row of numbers and texts; past its end there are zeros and empty texts. */
struct fuzz_input {
    const uint8_t *at;
    size_t left;
};

static inline uint8_t fuzz_u8(struct fuzz_input *input)
{
    if (input->left == 0) {
        return 0;
    }
    input->left--;
    return *input->at++;
}

static inline uint32_t fuzz_u16(struct fuzz_input *input)
{
    uint32_t high = fuzz_u8(input);

    return high << 8 | fuzz_u8(input);
}

/* At most `most` bytes, borrowed from the input. */
static inline const uint8_t *fuzz_text(struct fuzz_input *input, size_t most, size_t *size)
{
    const uint8_t *at = input->at;

    *size = fuzz_u8(input) % (most + 1);
    at = input->at;
    *size = *size < input->left ? *size : input->left;
    input->at += *size;
    input->left -= *size;
    return at;
}

#endif

/*
 * Goal: values are those of the xxHash specification, whatever the size, and every limit of the
 * arguments is kept. Method: published vectors, and blocks against one-shot calls.
 */
#include <ringhold/checksum.h>

#include "checksum_isa.h"
#include "rh_test.h"

static void empty_data_has_the_specified_value(void)
{
    uint64_t sum = 0;
    uint8_t digest[RH_DIGEST_BYTES] = {0};
    const uint8_t expected[RH_DIGEST_BYTES] = {0x99, 0xaa, 0x06, 0xd3, 0x01, 0x47, 0x98, 0xd8,
                                               0x60, 0x01, 0xc3, 0x24, 0x46, 0x8d, 0x49, 0x7f};

    CHECK_STATUS(rh_checksum(NULL, 0, &sum), RH_OK);
    CHECK_EQUAL(sum, 0x2d06800538d394c2u);
    CHECK_STATUS(rh_digest(NULL, 0, digest), RH_OK);
    CHECK(memcmp(digest, expected, sizeof expected) == 0);
}

static void short_data_has_the_value_of_other_implementations(void)
{
    uint64_t sum = 0;

    CHECK_STATUS(rh_checksum("ringhold", 8, &sum), RH_OK);
    CHECK_EQUAL(sum, 0x5b3028cffda9371cu);
}

static void blocks_are_the_checksums_of_their_parts(void)
{
    enum { SIZE = 5000, BLOCK = 1024 };
    uint8_t *data = malloc(SIZE); /* on the heap, where a sanitizer sees a read too far */
    uint64_t sums[5] = {0};
    size_t count = 0;

    if (data == NULL) {
        exit(99);
    }
    for (size_t i = 0; i < SIZE; i++) {
        data[i] = (uint8_t)(i * 31 + i / 256);
    }
    CHECK_STATUS(rh_checksum_blocks_count(SIZE, BLOCK, &count), RH_OK);
    CHECK_EQUAL(count, 5);
    CHECK_STATUS(rh_checksum_blocks(data, SIZE, BLOCK, sums), RH_OK);
    for (size_t i = 0; i < count; i++) {
        uint64_t sum = 0;
        size_t size = i < 4 ? BLOCK : SIZE - 4 * BLOCK;

        CHECK_STATUS(rh_checksum(data + i * BLOCK, size, &sum), RH_OK);
        CHECK_EQUAL(sums[i], sum);
    }
    free(data);
}

static void no_data_has_no_blocks(void)
{
    size_t count = 7;

    CHECK_STATUS(rh_checksum_blocks_count(0, 64, &count), RH_OK);
    CHECK_EQUAL(count, 0);
    CHECK_STATUS(rh_checksum_blocks(NULL, 0, 64, NULL), RH_OK);
    CHECK_STATUS(rh_checksum_blocks_count(SIZE_MAX, SIZE_MAX, &count), RH_OK);
    CHECK_EQUAL(count, 1);
}

static void impossible_arguments_are_refused(void)
{
    uint64_t sum = 42;
    size_t count = 42;
    uint8_t digest[RH_DIGEST_BYTES];

    CHECK_STATUS(rh_checksum(NULL, 1, &sum), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_checksum_blocks("x", 1, 0, &sum), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_checksum_blocks(NULL, 1, 1, &sum), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_checksum_blocks_count(1, 0, &count), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_digest(NULL, 1, digest), RH_INVALID_ARGUMENT);
    CHECK_EQUAL(sum, 42);
    CHECK_EQUAL(count, 42);
}

/* Sizes round every limit at which XXH3 changes its method, at any alignment. */
static void every_instruction_set_gives_the_same(void)
{
    static const size_t sizes[] = {0, 1, 16, 128, 240, 241, 256, 1023, 1024, 1025, 4096, 8000};
    static uint8_t data[8008];

    for (size_t i = 0; i < sizeof data; i++) {
        data[i] = (uint8_t)(i * 131 + i / 251);
    }
    for (size_t i = 0; i < 8 * sizeof sizes / sizeof *sizes; i++) {
        const uint8_t *at = data + i % 8;
        size_t size = sizes[i / 8];
        uint64_t sum = 0;

        CHECK_STATUS(rh_checksum(at, size, &sum), RH_OK);
        CHECK_EQUAL(checksum64_base(at, size), sum);
#if defined(RINGHOLD_X86_DISPATCH)
        if (__builtin_cpu_supports("avx2")) {
            CHECK_EQUAL(checksum64_avx2(at, size), sum);
            CHECK_EQUAL(checksum128_avx2(at, size).high, checksum128_base(at, size).high);
            CHECK_EQUAL(checksum128_avx2(at, size).low, checksum128_base(at, size).low);
        }
        if (__builtin_cpu_supports("avx512f")) {
            CHECK_EQUAL(checksum64_avx512(at, size), sum);
            CHECK_EQUAL(checksum128_avx512(at, size).high, checksum128_base(at, size).high);
            CHECK_EQUAL(checksum128_avx512(at, size).low, checksum128_base(at, size).low);
        }
#endif
    }
}

int main(void)
{
    RUN(empty_data_has_the_specified_value);
    RUN(short_data_has_the_value_of_other_implementations);
    RUN(every_instruction_set_gives_the_same);
    RUN(blocks_are_the_checksums_of_their_parts);
    RUN(no_data_has_no_blocks);
    RUN(impossible_arguments_are_refused);
    return rh_test_result();
}

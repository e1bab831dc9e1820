/*
 * Goal: values are those of the xxHash specification, whatever the size, the instruction set and
 * the way there, and every limit of the arguments is kept. Method: published vectors; streams,
 * blocks and copies against one-shot calls; each set that the processor has by itself.
 */
#include <ringhold/checksum.h>

#include "checksum_isa.h"
#include "rh_test.h"

static const struct rh_isa *sets[3];
static size_t set_count;

static void find_sets(void)
{
    sets[set_count++] = &rh_isa_base;
#if defined(RINGHOLD_X86_DISPATCH)
    if (__builtin_cpu_supports("avx2")) {
        sets[set_count++] = &rh_isa_avx2;
    }
    if (__builtin_cpu_supports("avx512f")) {
        sets[set_count++] = &rh_isa_avx512;
    }
#endif
}

static uint8_t *patterned(size_t size)
{
    uint8_t *data = malloc(size + 1); /* on the heap, where a sanitizer sees a read too far */

    if (data == NULL) {
        exit(99);
    }
    for (size_t i = 0; i < size; i++) {
        data[i] = (uint8_t)(i * 131 + i / 251);
    }
    return data;
}

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
    uint8_t *data = patterned(SIZE);
    uint64_t sums[5] = {0};
    size_t count = 0;

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

/* Every size up to beyond the last limit at which XXH3 changes its method, at any alignment. */
static void every_instruction_set_gives_the_same(void)
{
    uint8_t *data = patterned(8008);

    for (size_t size = 0; size <= 8000; size += size < 1100 ? 1 : 575) {
        const uint8_t *at = data + size % 8;
        uint64_t sum = 0;
        uint8_t digest[RH_DIGEST_BYTES];

        CHECK_STATUS(rh_checksum(at, size, &sum), RH_OK);
        CHECK_STATUS(rh_digest(at, size, digest), RH_OK);
        for (size_t i = 0; i < set_count; i++) {
            struct digest_halves halves = sets[i]->checksum128(at, size);

            CHECK_EQUAL(sets[i]->checksum64(at, size), sum);
            for (int b = 0; b < 8; b++) {
                CHECK_EQUAL(digest[b], halves.high >> (56 - 8 * b) & 255);
                CHECK_EQUAL(digest[8 + b], halves.low >> (56 - 8 * b) & 255);
            }
        }
    }
    free(data);
}

static void check_value(const rh_digest_stream *stream, const void *data, size_t size)
{
    uint8_t value[RH_DIGEST_BYTES], expected[RH_DIGEST_BYTES];

    CHECK_STATUS(rh_digest_stream_value(stream, value), RH_OK);
    CHECK_STATUS(rh_digest(data, size, expected), RH_OK);
    CHECK(memcmp(value, expected, sizeof value) == 0);
}

static void a_stream_has_the_digest_of_the_whole_however_it_is_cut(void)
{
    enum { SIZE = 9000 };
    static const size_t pieces[] = {1, 7, 63, 64, 65, 255, 256, 257, 1023, 1024, 1025, 4096, SIZE};
    uint8_t *data = patterned(SIZE);

    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
        rh_digest_stream *stream = NULL;

        REQUIRE_OK(rh_digest_stream_new(&stream));
        check_value(stream, NULL, 0);
        for (size_t at = 0; at < SIZE;) {
            size_t part = SIZE - at < pieces[i] ? SIZE - at : pieces[i];

            CHECK_STATUS(rh_digest_stream_update(stream, data + at, part), RH_OK);
            at += part;
            if (at % 5 == 0 || at == SIZE) {
                check_value(stream, data, at);
            }
        }
        rh_digest_stream_free(stream);
    }
    free(data);
}

static void instruction_sets_may_take_turns_at_one_stream(void)
{
    enum { SIZE = 9000, PIECE = 700 };
    uint8_t *data = patterned(SIZE);
    rh_digest_stream *stream = NULL;

    REQUIRE_OK(rh_digest_stream_new(&stream));
    for (size_t at = 0, turn = 0; at < SIZE; at += PIECE, turn++) {
        size_t part = SIZE - at < PIECE ? SIZE - at : PIECE;

        sets[turn % set_count]->update(stream, data + at, part);
    }
    check_value(stream, data, SIZE);
    rh_digest_stream_free(stream);
    free(data);
}

static void a_copied_stream_goes_its_own_way(void)
{
    rh_digest_stream *stream = NULL, *other = NULL;

    REQUIRE_OK(rh_digest_stream_new(&stream));
    REQUIRE_OK(rh_digest_stream_update(stream, "ring", 4));
    REQUIRE_OK(rh_digest_stream_copy(stream, &other));
    REQUIRE_OK(rh_digest_stream_update(stream, "hold", 4));
    REQUIRE_OK(rh_digest_stream_update(other, "fence", 5));
    check_value(stream, "ringhold", 8);
    check_value(other, "ringfence", 9);
    rh_digest_stream_free(stream);
    check_value(other, "ringfence", 9);
    rh_digest_stream_free(other);
}

static void a_refused_update_changes_nothing(void)
{
    rh_digest_stream *stream = NULL;

    REQUIRE_OK(rh_digest_stream_new(&stream));
    REQUIRE_OK(rh_digest_stream_update(stream, "ring", 4));
    CHECK_STATUS(rh_digest_stream_update(stream, NULL, 1), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_digest_stream_update(stream, NULL, 0), RH_OK);
    check_value(stream, "ring", 4);
    rh_digest_stream_free(stream);
    rh_digest_stream_free(NULL);
}

enum { GUARD = 64, GUARD_BYTE = 0xa5 };

/* The copy is right, its sums are, and no byte beside `dst` was written. */
static void check_copy(const struct rh_isa *set, const uint8_t *src, size_t size, size_t block)
{
    uint8_t *room = malloc(size + 3 * GUARD);
    uint8_t *dst;
    uint64_t *sums = malloc((size / block + 1) * sizeof *sums);
    uint64_t *expected = malloc((size / block + 1) * sizeof *expected);
    size_t count = 0, intact = 0;

    if (room == NULL || sums == NULL || expected == NULL) {
        exit(99);
    }
    dst = room + GUARD + size % 61;
    memset(room, GUARD_BYTE, size + 3 * GUARD);
    set->copy_blocks(dst, src, size, block, sums);
    CHECK(memcmp(dst, src, size) == 0);
    for (size_t i = 0; i < size + 3 * GUARD; i++) {
        intact += (room + i < dst || room + i >= dst + size) && room[i] == GUARD_BYTE;
    }
    CHECK_EQUAL(intact, 3 * GUARD);
    CHECK_STATUS(rh_checksum_blocks_count(size, block, &count), RH_OK);
    CHECK_STATUS(rh_checksum_blocks(src, size, block, expected), RH_OK);
    CHECK(memcmp(sums, expected, count * sizeof *sums) == 0);
    free(room);
    free(sums);
    free(expected);
}

static void every_instruction_set_copies_and_checksums(void)
{
    static const size_t blocks[] = {1, 100, 1024, 4095, 4096, 4097, 10000, 65536};
    uint8_t *data = patterned(70008);

    for (size_t i = 0; i < set_count; i++) {
        for (size_t b = 0; b < sizeof blocks / sizeof *blocks; b++) {
            for (size_t size = 1; size <= 70000; size += size < 200 ? 1 : 4967) {
                check_copy(sets[i], data + size % 8, size, blocks[b]);
            }
        }
    }
    free(data);
}

static void long_and_short_copies_are_those_of_rh_checksum_blocks(void)
{
    static const size_t sizes[] = {1, 65536, 100000, ((size_t)9 << 20) + 5};
    enum { BLOCK = 65536 };

    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        uint8_t *src = patterned(sizes[i]), *dst = patterned(sizes[i]);
        uint64_t sums[150], expected[150];
        size_t count = 0;

        memset(dst, 0, sizes[i]);
        CHECK_STATUS(rh_copy_checksum_blocks(dst, src, sizes[i], BLOCK, sums), RH_OK);
        CHECK(memcmp(dst, src, sizes[i]) == 0);
        CHECK_STATUS(rh_checksum_blocks_count(sizes[i], BLOCK, &count), RH_OK);
        CHECK_STATUS(rh_checksum_blocks(src, sizes[i], BLOCK, expected), RH_OK);
        CHECK(memcmp(sums, expected, count * sizeof *sums) == 0);
        free(src);
        free(dst);
    }
}

static void a_copy_onto_itself_is_refused(void)
{
    uint8_t data[100] = {1, 2, 3};
    uint64_t sums[2] = {42, 42};

    CHECK_STATUS(rh_copy_checksum_blocks(data, data, 50, 50, sums), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_copy_checksum_blocks(data + 49, data, 50, 50, sums), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_copy_checksum_blocks(data, data + 49, 50, 50, sums), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_copy_checksum_blocks(NULL, data, 50, 50, sums), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_copy_checksum_blocks(data, NULL, 50, 50, sums), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_copy_checksum_blocks(data + 50, data, 50, 0, sums), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_copy_checksum_blocks(NULL, NULL, 0, 0, sums), RH_INVALID_ARGUMENT);
    CHECK_EQUAL(sums[0], 42);
    CHECK_STATUS(rh_copy_checksum_blocks(NULL, NULL, 0, 50, NULL), RH_OK);
    CHECK_STATUS(rh_copy_checksum_blocks(data + 50, data, 50, 50, sums), RH_OK);
    CHECK_EQUAL(data[52], 3);
}

static void null_is_refused(void)
{
    uint64_t out[2];
    uint8_t digest[RH_DIGEST_BYTES];
    char copy[2];
    rh_digest_stream *stream = NULL, *other = NULL;
    size_t count;

    CHECK_STATUS(rh_checksum("a", 1, NULL), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_checksum_blocks_count(1, 1, NULL), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_checksum_blocks_count(1, 0, &count), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_checksum_blocks("a", 1, 1, NULL), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_checksum_blocks(NULL, 0, 1, NULL), RH_OK);
    CHECK_STATUS(rh_copy_checksum_blocks(copy, "a", 1, 1, NULL), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_copy_checksum_blocks(NULL, "a", 1, 1, out), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_copy_checksum_blocks(copy, NULL, 1, 1, out), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_digest("a", 1, NULL), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_digest_stream_new(NULL), RH_INVALID_ARGUMENT);
    REQUIRE_OK(rh_digest_stream_new(&stream));
    CHECK_STATUS(rh_digest_stream_copy(NULL, &other), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_digest_stream_copy(stream, NULL), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_digest_stream_update(NULL, "a", 1), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_digest_stream_value(NULL, digest), RH_INVALID_ARGUMENT);
    CHECK_STATUS(rh_digest_stream_value(stream, NULL), RH_INVALID_ARGUMENT);
    rh_digest_stream_free(stream);
}

int main(void)
{
    find_sets();
    RUN(empty_data_has_the_specified_value);
    RUN(short_data_has_the_value_of_other_implementations);
    RUN(every_instruction_set_gives_the_same);
    RUN(blocks_are_the_checksums_of_their_parts);
    RUN(no_data_has_no_blocks);
    RUN(impossible_arguments_are_refused);
    RUN(a_stream_has_the_digest_of_the_whole_however_it_is_cut);
    RUN(instruction_sets_may_take_turns_at_one_stream);
    RUN(a_copied_stream_goes_its_own_way);
    RUN(a_refused_update_changes_nothing);
    RUN(every_instruction_set_copies_and_checksums);
    RUN(long_and_short_copies_are_those_of_rh_checksum_blocks);
    RUN(a_copy_onto_itself_is_refused);
    RUN(null_is_refused);
    return rh_test_result();
}

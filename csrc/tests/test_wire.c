/*
 * Goal: canonical bytes come back as they were written, damaged ones are refused, and neither
 * reading past the end nor writing too much goes unnoticed. Method: every kind of field once, at
 * its extremes; every truncation, every bit flipped.
 */
#include <math.h>

#include "rh_test.h"
#include "wire.h"

static void *written(size_t *size)
{
    struct wire_writer writer = {0};
    void *data = NULL;

    rh_wire_put_bytes(&writer, "RH", 2);
    rh_wire_put_u8(&writer, 0xfe);
    rh_wire_put_u32(&writer, 0x12345678);
    rh_wire_put_u64(&writer, UINT64_MAX - 1);
    rh_wire_put_double(&writer, -1.5);
    rh_wire_put_double(&writer, (double)INFINITY);
    rh_wire_put_text(&writer, "zone\0a", 6);
    rh_wire_put_text(&writer, NULL, 0);
    REQUIRE_OK(rh_wire_finish(&writer, &data, size));
    return data;
}

static void fields_come_back(void)
{
    size_t size = 0, count = 9;
    uint8_t *data = written(&size);
    struct wire_reader reader;
    const void *text;

    CHECK_EQUAL(size, 2 + 1 + 4 + 8 + 8 + 8 + (4 + 6) + 4 + 16);
    CHECK(memcmp(data, "RH\xfe\x78\x56\x34\x12\xfe\xff", 9) == 0);
    REQUIRE_OK(rh_wire_open(&reader, data, size));
    CHECK(memcmp(rh_wire_get_bytes(&reader, 2), "RH", 2) == 0);
    CHECK_EQUAL(rh_wire_get_u8(&reader), 0xfe);
    CHECK_EQUAL(rh_wire_get_u32(&reader), 0x12345678);
    CHECK_EQUAL(rh_wire_get_u64(&reader), UINT64_MAX - 1);
    CHECK(rh_wire_get_double(&reader) == -1.5);
    CHECK(isinf(rh_wire_get_double(&reader)));
    text = rh_wire_get_text(&reader, &count);
    CHECK_EQUAL(count, 6);
    CHECK(text && memcmp(text, "zone\0a", 6) == 0);
    CHECK(!rh_wire_at_end(&reader));
    CHECK(rh_wire_get_text(&reader, &count) != NULL);
    CHECK_EQUAL(count, 0);
    CHECK(rh_wire_at_end(&reader));
    rh_free(data);
}

static void reading_past_the_end_is_remembered(void)
{
    size_t size = 0, count = 9;
    struct wire_reader reader;
    uint8_t *data = written(&size);

    REQUIRE_OK(rh_wire_open(&reader, data, size));
    CHECK(rh_wire_get_bytes(&reader, size) == NULL);
    CHECK_EQUAL(rh_wire_get_u8(&reader), 0);
    CHECK_EQUAL(rh_wire_get_u64(&reader), 0);
    CHECK(rh_wire_get_double(&reader) == 0);
    CHECK(rh_wire_get_text(&reader, &count) == NULL);
    CHECK(!rh_wire_at_end(&reader));
    REQUIRE_OK(rh_wire_open(&reader, data, size));
    CHECK(rh_wire_get_bytes(&reader, size - 16) != NULL);
    CHECK(rh_wire_at_end(&reader));
    CHECK_EQUAL(rh_wire_get_u8(&reader), 0);
    CHECK(!rh_wire_at_end(&reader));
    rh_free(data);
}

static void damage_is_refused(void)
{
    size_t size = 0;
    uint8_t *data = written(&size);
    struct wire_reader reader;

    for (size_t shorter = 0; shorter < size; shorter++) {
        CHECK_STATUS(rh_wire_open(&reader, data, shorter), RH_CORRUPT);
    }
    for (size_t bit = 0; bit < 8 * size; bit++) {
        data[bit / 8] ^= (uint8_t)(1u << bit % 8);
        CHECK_STATUS(rh_wire_open(&reader, data, size), RH_CORRUPT);
        data[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    CHECK_STATUS(rh_wire_open(&reader, data, size), RH_OK);
    CHECK_STATUS(rh_wire_open(&reader, NULL, 0), RH_CORRUPT);
    CHECK_STATUS(rh_wire_open(&reader, NULL, 20), RH_INVALID_ARGUMENT);
    rh_free(data);
}

static void nothing_written_is_a_seal_alone(void)
{
    struct wire_writer writer = {0};
    struct wire_reader reader;
    void *data = NULL;
    size_t size = 0;

    REQUIRE_OK(rh_wire_finish(&writer, &data, &size));
    CHECK_EQUAL(size, 16);
    REQUIRE_OK(rh_wire_open(&reader, data, size));
    CHECK(rh_wire_at_end(&reader));
    rh_free(data);
}

static void too_much_is_told_at_the_end(void)
{
    void *data = NULL;
    size_t size = 0;

    for (unsigned kind = 0; kind < 2; kind++) {
        struct wire_writer writer = {0};

        rh_wire_put_u32(&writer, 7);
        if (kind == 0) {
            rh_wire_put_bytes(&writer, "", SIZE_MAX / 2);
        } else {
            rh_wire_put_text(&writer, "", (size_t)UINT32_MAX + 1);
        }
        rh_wire_put_u32(&writer, 7);
        CHECK_STATUS(rh_wire_finish(&writer, &data, &size), RH_TOO_LARGE);
        CHECK(data == NULL && size == 0);
    }
}

static void much_comes_back_in_one_piece(void)
{
    struct wire_writer writer = {0};
    struct wire_reader reader;
    void *data = NULL;
    size_t size = 0;

    for (uint32_t i = 0; i < 10000; i++) {
        rh_wire_put_u32(&writer, i);
    }
    REQUIRE_OK(rh_wire_finish(&writer, &data, &size));
    REQUIRE_OK(rh_wire_open(&reader, data, size));
    for (uint32_t i = 0; i < 10000; i++) {
        CHECK_EQUAL(rh_wire_get_u32(&reader), i);
    }
    CHECK(rh_wire_at_end(&reader));
    rh_free(data);
}

int main(void)
{
    RUN(fields_come_back);
    RUN(reading_past_the_end_is_remembered);
    RUN(damage_is_refused);
    RUN(nothing_written_is_a_seal_alone);
    RUN(too_much_is_told_at_the_end);
    RUN(much_comes_back_in_one_piece);
    return rh_test_result();
}

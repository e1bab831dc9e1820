/*
 * Canonical bytes: what rings and layouts are written to and read from. Integers are
 * little-endian, doubles IEEE 754 as such; the last 16 bytes are the XXH3-128 of all before.
 */
#ifndef RINGHOLD_SRC_WIRE_H
#define RINGHOLD_SRC_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <ringhold/status.h>

/* Starts at {0}. A failed allocation is remembered and told by rh_wire_finish. */
struct wire_writer {
    uint8_t *data;
    size_t size;
    size_t room;
    rh_status status;
};

void rh_wire_put_bytes(struct wire_writer *writer, const void *bytes, size_t count);
void rh_wire_put_u8(struct wire_writer *writer, uint8_t value);
void rh_wire_put_u32(struct wire_writer *writer, uint32_t value);
void rh_wire_put_u64(struct wire_writer *writer, uint64_t value);
void rh_wire_put_double(struct wire_writer *writer, double value);

/* The length as 32 bits, then the bytes. */
void rh_wire_put_text(struct wire_writer *writer, const void *bytes, size_t count);

/* Seals and hands over what was written, or frees it; *data is for rh_free. */
rh_status rh_wire_finish(struct wire_writer *writer, void **data, size_t *size);

/* Reading past the end gives zeros and is remembered. */
struct wire_reader {
    const uint8_t *at;
    size_t left;
    bool failed;
};

/* Checks the seal; the reader stands at the first byte, its end before the seal. RH_CORRUPT. */
rh_status rh_wire_open(struct wire_reader *reader, const void *data, size_t size);

/* Whether exactly everything was read. */
bool rh_wire_at_end(const struct wire_reader *reader);

/* Borrowed from the data; NULL past the end. */
const uint8_t *rh_wire_get_bytes(struct wire_reader *reader, size_t count);
uint8_t rh_wire_get_u8(struct wire_reader *reader);
uint32_t rh_wire_get_u32(struct wire_reader *reader);
uint64_t rh_wire_get_u64(struct wire_reader *reader);
double rh_wire_get_double(struct wire_reader *reader);
const void *rh_wire_get_text(struct wire_reader *reader, size_t *count);

#endif

#include <stdlib.h>
#include <string.h>

#include <ringhold/checksum.h>

#include "wire.h"

static void put_little_endian(struct wire_writer *writer, uint64_t value, size_t bytes)
{
    uint8_t text[8];

    for (size_t i = 0; i < bytes; i++) {
        text[i] = (uint8_t)(value >> (8 * i));
    }
    rh_wire_put_bytes(writer, text, bytes);
}

static uint64_t get_little_endian(struct wire_reader *reader, size_t bytes)
{
    const uint8_t *text = rh_wire_get_bytes(reader, bytes);
    uint64_t value = 0;

    for (size_t i = 0; text && i < bytes; i++) {
        value |= (uint64_t)text[i] << (8 * i);
    }
    return value;
}

static bool make_room(struct wire_writer *writer, size_t count)
{
    size_t room = writer->room > 0 ? writer->room : 256;
    uint8_t *data;

    if (writer->status != RH_OK) {
        return false;
    }
    if (count > SIZE_MAX / 2 - writer->size) {
        writer->status = RH_TOO_LARGE;
        return false;
    }
    while (room < writer->size + count) {
        room *= 2;
    }
    if (room == writer->room) {
        return true;
    }
    data = malloc(room);
    if (data == NULL) {
        writer->status = RH_NO_MEMORY;
        return false;
    }
    if (writer->size > 0) {
        memcpy(data, writer->data, writer->size);
    }
    free(writer->data);
    writer->data = data;
    writer->room = room;
    return true;
}

void rh_wire_put_bytes(struct wire_writer *writer, const void *bytes, size_t count)
{
    if (count > 0 && make_room(writer, count)) {
        memcpy(writer->data + writer->size, bytes, count);
        writer->size += count;
    }
}

void rh_wire_put_u8(struct wire_writer *writer, uint8_t value)
{
    put_little_endian(writer, value, 1);
}

void rh_wire_put_u32(struct wire_writer *writer, uint32_t value)
{
    put_little_endian(writer, value, 4);
}

void rh_wire_put_u64(struct wire_writer *writer, uint64_t value)
{
    put_little_endian(writer, value, 8);
}

void rh_wire_put_double(struct wire_writer *writer, double value)
{
    uint64_t bits;

    memcpy(&bits, &value, sizeof bits);
    rh_wire_put_u64(writer, bits);
}

void rh_wire_put_text(struct wire_writer *writer, const void *bytes, size_t count)
{
    if (count > UINT32_MAX) {
        writer->status = writer->status == RH_OK ? RH_TOO_LARGE : writer->status;
        return;
    }
    rh_wire_put_u32(writer, (uint32_t)count);
    rh_wire_put_bytes(writer, bytes, count);
}

rh_status rh_wire_finish(struct wire_writer *writer, void **data, size_t *size)
{
    uint8_t seal[RH_DIGEST_BYTES];
    rh_status status = writer->status;

    if (status == RH_OK) {
        status = rh_digest(writer->data, writer->size, seal);
    }
    if (status == RH_OK) {
        rh_wire_put_bytes(writer, seal, sizeof seal);
        status = writer->status;
    }
    if (status != RH_OK) {
        free(writer->data);
        return status;
    }
    *data = writer->data;
    *size = writer->size;
    return RH_OK;
}

rh_status rh_wire_open(struct wire_reader *reader, const void *data, size_t size)
{
    uint8_t seal[RH_DIGEST_BYTES];
    rh_status status;

    if (data == NULL && size > 0) {
        return RH_INVALID_ARGUMENT;
    }
    if (size < sizeof seal) {
        return RH_CORRUPT;
    }
    size -= sizeof seal;
    status = rh_digest(data, size, seal);
    if (status != RH_OK) {
        return status;
    }
    if (memcmp((const uint8_t *)data + size, seal, sizeof seal) != 0) {
        return RH_CORRUPT;
    }
    reader->at = data;
    reader->left = size;
    reader->failed = false;
    return RH_OK;
}

bool rh_wire_at_end(const struct wire_reader *reader)
{
    return !reader->failed && reader->left == 0;
}

const uint8_t *rh_wire_get_bytes(struct wire_reader *reader, size_t count)
{
    const uint8_t *at = reader->at;

    if (reader->failed || count > reader->left) {
        reader->failed = true;
        return NULL;
    }
    reader->at += count;
    reader->left -= count;
    return at;
}

uint8_t rh_wire_get_u8(struct wire_reader *reader)
{
    return (uint8_t)get_little_endian(reader, 1);
}

uint32_t rh_wire_get_u32(struct wire_reader *reader)
{
    return (uint32_t)get_little_endian(reader, 4);
}

uint64_t rh_wire_get_u64(struct wire_reader *reader)
{
    return get_little_endian(reader, 8);
}

double rh_wire_get_double(struct wire_reader *reader)
{
    uint64_t bits = get_little_endian(reader, 8);
    double value;

    memcpy(&value, &bits, sizeof value);
    return value;
}

const void *rh_wire_get_text(struct wire_reader *reader, size_t *count)
{
    *count = rh_wire_get_u32(reader);
    return rh_wire_get_bytes(reader, *count);
}

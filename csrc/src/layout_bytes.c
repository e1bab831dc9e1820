/*
 * Layouts as canonical bytes, and their digest.
 *
 *   magic       "RHLY"
 *   version     u8, 1
 *   epoch       u64
 *   partitions  u32
 *   replicas    u32
 *   nodes       u32, then of each, in order of names: name, weight as a double, whether it has a
 *               zone (u8), and the zone
 *   table       partitions * replicas numbers of nodes, u16
 *   seal        XXH3-128 of all before
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <ringhold/checksum.h>

#include "layout_internal.h"
#include "node.h"
#include "wire.h"

static const char MAGIC[4] = {'R', 'H', 'L', 'Y'};

enum { VERSION = 1, NODE_BYTES_MIN = 4 + 8 + 1 };

/* The table with its nodes numbered by `numbers`; NULL: as they are. */
static rh_status put_table(struct wire_writer *writer, const rh_layout *layout,
                           const uint16_t *numbers)
{
    size_t copies = (size_t)layout->partitions * layout->replicas;
    uint8_t *bytes = malloc(2 * copies);

    if (bytes == NULL) {
        return RH_NO_MEMORY;
    }
    for (size_t i = 0; i < copies; i++) {
        uint16_t node = numbers ? numbers[layout->table[i]] : layout->table[i];

        bytes[2 * i] = (uint8_t)node;
        bytes[2 * i + 1] = (uint8_t)(node >> 8);
    }
    rh_wire_put_bytes(writer, bytes, 2 * copies);
    free(bytes);
    return RH_OK;
}

rh_status rh_layout_dumps(const rh_layout *layout, void **data, size_t *size)
{
    struct wire_writer writer = {0};
    rh_status status;

    if (layout == NULL || data == NULL || size == NULL) {
        return RH_INVALID_ARGUMENT;
    }
    rh_wire_put_bytes(&writer, MAGIC, sizeof MAGIC);
    rh_wire_put_u8(&writer, VERSION);
    rh_wire_put_u64(&writer, layout->epoch);
    rh_wire_put_u32(&writer, layout->partitions);
    rh_wire_put_u32(&writer, layout->replicas);
    rh_wire_put_u32(&writer, (uint32_t)layout->node_count);
    for (size_t i = 0; i < layout->node_count; i++) {
        const struct layout_node *node = &layout->nodes[i];

        rh_wire_put_text(&writer, node->name, node->name_bytes);
        rh_wire_put_double(&writer, node->weight);
        rh_wire_put_u8(&writer, node->zone != NULL);
        if (node->zone) {
            rh_wire_put_text(&writer, node->zone, node->zone_bytes);
        }
    }
    status = put_table(&writer, layout, NULL);
    if (status != RH_OK) {
        writer.status = writer.status == RH_OK ? status : writer.status;
    }
    return rh_wire_finish(&writer, data, size);
}

/* Nodes that hold nothing are not in it: whether they are in the layout is no matter. */
rh_status rh_layout_digest(const rh_layout *layout, uint8_t out[RH_LAYOUT_DIGEST_BYTES])
{
    struct wire_writer writer = {0};
    uint16_t *numbers, count = 0;
    rh_status status;

    if (layout == NULL || out == NULL) {
        return RH_INVALID_ARGUMENT;
    }
    numbers = malloc(layout->node_count * sizeof *numbers);
    if (numbers == NULL) {
        return RH_NO_MEMORY;
    }
    rh_wire_put_u32(&writer, layout->partitions);
    rh_wire_put_u32(&writer, layout->replicas);
    for (size_t i = 0; i < layout->node_count; i++) {
        if (layout->nodes[i].copies > 0) {
            rh_wire_put_text(&writer, layout->nodes[i].name, layout->nodes[i].name_bytes);
            numbers[i] = count++;
        }
    }
    status = put_table(&writer, layout, numbers);
    if (status == RH_OK) {
        status = writer.status;
    }
    if (status == RH_OK) {
        status = rh_digest(writer.data, writer.size, out);
    }
    free(writer.data);
    free(numbers);
    return status;
}

/* The nodes, borrowing their texts from the data. RH_CORRUPT leaves `*out` for free(), too. */
static rh_status get_nodes(struct wire_reader *reader, size_t count, rh_node **out)
{
    rh_node *nodes;

    if (count > reader->left / NODE_BYTES_MIN) {
        return RH_CORRUPT; /* before memory is taken for what cannot be there */
    }
    *out = nodes = calloc(count + 1, sizeof *nodes);
    if (nodes == NULL) {
        return RH_NO_MEMORY;
    }
    for (size_t i = 0; i < count; i++) {
        uint8_t zoned;

        nodes[i].name = rh_wire_get_text(reader, &nodes[i].name_bytes);
        nodes[i].weight = rh_wire_get_double(reader);
        zoned = rh_wire_get_u8(reader);
        if (zoned == 1) {
            nodes[i].zone = rh_wire_get_text(reader, &nodes[i].zone_bytes);
        }
        if (reader->failed || zoned > 1 || signbit(nodes[i].weight)) {
            return RH_CORRUPT;
        }
    }
    return rh_nodes_ascend(nodes, count) ? RH_OK : RH_CORRUPT;
}

static bool get_table(struct wire_reader *reader, rh_layout *layout)
{
    size_t copies = (size_t)layout->partitions * layout->replicas;
    const uint8_t *bytes = rh_wire_get_bytes(reader, 2 * copies);

    if (bytes == NULL || !rh_wire_at_end(reader)) {
        return false;
    }
    for (size_t i = 0; i < copies; i++) {
        layout->table[i] = (uint16_t)(bytes[2 * i] | bytes[2 * i + 1] << 8);
        if (layout->table[i] >= layout->node_count) {
            return false;
        }
    }
    return true;
}

static rh_status check_table(rh_layout *layout)
{
    struct layout_limits limits = {0};
    rh_status status = rh_layout_limits_make(layout, &limits);
    bool right = false;

    if (status == RH_OK) {
        rh_layout_count(layout);
        status = rh_layout_check(layout, &limits, &right);
    }
    rh_layout_limits_free(&limits);
    return status == RH_OK && !right ? RH_CORRUPT : status;
}

rh_status rh_layout_loads(const void *data, size_t size, rh_layout **out)
{
    struct wire_reader reader;
    rh_node *nodes = NULL;
    rh_layout *layout = NULL;
    const uint8_t *magic;
    uint32_t partitions, replicas, count;
    uint8_t version;
    uint64_t epoch;
    rh_status status = out ? rh_wire_open(&reader, data, size) : RH_INVALID_ARGUMENT;

    if (status != RH_OK) {
        return status;
    }
    magic = rh_wire_get_bytes(&reader, sizeof MAGIC);
    version = rh_wire_get_u8(&reader);
    epoch = rh_wire_get_u64(&reader);
    partitions = rh_wire_get_u32(&reader);
    replicas = rh_wire_get_u32(&reader);
    count = rh_wire_get_u32(&reader);
    if (reader.failed || memcmp(magic, MAGIC, sizeof MAGIC) != 0 || version != VERSION ||
        epoch == 0 || replicas == 0) {
        return RH_CORRUPT;
    }
    status = get_nodes(&reader, count, &nodes);
    if (status == RH_OK) {
        status = rh_layout_make(nodes, count, replicas, partitions, &layout);
        /* what rh_layout_new would refuse, rh_layout_dumps never wrote */
        status = status == RH_OK || status == RH_NO_MEMORY ? status : RH_CORRUPT;
    }
    if (status == RH_OK) {
        layout->epoch = epoch;
        status = get_table(&reader, layout) ? check_table(layout) : RH_CORRUPT;
    }
    if (status == RH_OK) {
        *out = layout;
        layout = NULL;
    }
    free(nodes);
    rh_layout_free(layout);
    return status;
}

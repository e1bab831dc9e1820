/*
 * Rings as bytes. What rh_ring_dumps writes, sealed as wire.h says:
 *
 *   "RHRG"  u8 version (1)  u8 profile  u32 vnodes  u32 nodes, then for each node
 *   text name   u8 has a zone (0 or 1)   text zone, if it has one   double weight
 *
 * with the nodes in order of their names, or of their numbers where those break ties. The points
 * follow from that and are not written.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "node.h"
#include "ring_internal.h"
#include "wire.h"

enum { VERSION = 1, NODE_BYTES_MIN = 4 + 1 + 8 };

static const char magic[4] = {'R', 'H', 'R', 'G'};
static const char digest_magic[4] = {'R', 'H', 'R', 'P'};

static void put_name_and_zone(struct wire_writer *writer, const struct ring_slot *slot)
{
    rh_wire_put_text(writer, slot->name, slot->name_bytes);
    rh_wire_put_u8(writer, slot->zone != NULL);
    if (slot->zone) {
        rh_wire_put_text(writer, slot->zone, slot->zone_bytes);
    }
}

rh_status rh_ring_dumps(const rh_ring *ring, void **data, size_t *size)
{
    struct wire_writer writer = {0};
    bool by_number;

    if (ring == NULL || data == NULL || size == NULL) {
        return RH_INVALID_ARGUMENT;
    }
    by_number = rh_ring_profile_rules(ring->profile)->by_number;
    rh_wire_put_bytes(&writer, magic, sizeof magic);
    rh_wire_put_u8(&writer, VERSION);
    rh_wire_put_u8(&writer, (uint8_t)ring->profile);
    rh_wire_put_u32(&writer, ring->vnodes);
    rh_wire_put_u32(&writer, (uint32_t)ring->nodes);
    for (size_t i = 0; i < ring->slot_count; i++) {
        const struct ring_slot *slot = &ring->slots[by_number ? i : ring->by_name[i]];

        if (slot->present) {
            put_name_and_zone(&writer, slot);
            rh_wire_put_double(&writer, slot->weight);
        }
    }
    return rh_wire_finish(&writer, data, size);
}

/* Reads the nodes, which borrow their texts; false for what rh_ring_dumps would not write. */
static bool read_nodes(struct wire_reader *reader, rh_ring_profile profile, rh_node *nodes,
                       size_t count)
{
    for (size_t i = 0; i < count; i++) {
        rh_node *node = &nodes[i];
        uint8_t has_zone;

        node->name = rh_wire_get_text(reader, &node->name_bytes);
        has_zone = rh_wire_get_u8(reader);
        if (has_zone > 1) {
            return false;
        }
        if (has_zone) {
            node->zone = rh_wire_get_text(reader, &node->zone_bytes);
        }
        node->weight = rh_wire_get_double(reader);
        if (reader->failed || signbit(node->weight)) {
            return false;
        }
    }
    return rh_wire_at_end(reader) &&
           (rh_ring_profile_rules(profile)->by_number || rh_nodes_ascend(nodes, count));
}

rh_status rh_ring_loads(const void *data, size_t size, rh_ring **out)
{
    rh_ring_options options = {0};
    struct wire_reader reader;
    const uint8_t *start;
    rh_node *nodes;
    size_t count;
    rh_status status;

    if (out == NULL) {
        return RH_INVALID_ARGUMENT;
    }
    status = rh_wire_open(&reader, data, size);
    if (status != RH_OK) {
        return status;
    }
    start = rh_wire_get_bytes(&reader, sizeof magic);
    if (start == NULL || memcmp(start, magic, sizeof magic) != 0 ||
        rh_wire_get_u8(&reader) != VERSION) {
        return RH_CORRUPT;
    }
    options.profile = (rh_ring_profile)rh_wire_get_u8(&reader);
    options.vnodes = rh_wire_get_u32(&reader);
    count = rh_wire_get_u32(&reader);
    if (reader.failed || rh_ring_profile_rules(options.profile) == NULL || options.vnodes == 0 ||
        count > reader.left / NODE_BYTES_MIN) {
        return RH_CORRUPT;
    }
    nodes = calloc(count + 1, sizeof *nodes);
    if (nodes == NULL) {
        return RH_NO_MEMORY;
    }
    status = RH_CORRUPT;
    if (read_nodes(&reader, options.profile, nodes, count)) {
        status = rh_ring_new(nodes, count, &options, out);
        /* No ring has such nodes, so none was ever written with them. */
        status = status == RH_OK || status == RH_NO_MEMORY ? status : RH_CORRUPT;
    }
    free(nodes);
    return status;
}

/*
 * Where numbers break ties, the order of the list shows in equal points alone: those are written
 * with the names of their owners, told by their rank among all that have points.
 */
static rh_status put_ties(struct wire_writer *writer, const rh_ring *ring)
{
    uint32_t *rank = malloc((ring->slot_count + 1) * sizeof *rank);
    uint32_t next = 0;

    if (rank == NULL) {
        return RH_NO_MEMORY;
    }
    for (size_t i = 0; i < ring->slot_count; i++) {
        rank[ring->by_name[i]] = next;
        next += ring->slots[ring->by_name[i]].points > 0;
    }
    for (size_t i = 1; i < ring->point_count; i++) {
        if (ring->points[i] == ring->points[i - 1]) {
            rh_wire_put_u32(writer, (uint32_t)i);
            rh_wire_put_u32(writer, rank[ring->owners[i - 1]]);
            rh_wire_put_u32(writer, rank[ring->owners[i]]);
        }
    }
    free(rank);
    return RH_OK;
}

/* The seal of the names, zones and numbers of points, from which all points follow. */
rh_status rh_ring_digest(const rh_ring *ring, uint8_t out[RH_RING_DIGEST_BYTES])
{
    struct wire_writer writer = {0};
    void *data = NULL;
    size_t size = 0;
    rh_status status = RH_OK;

    if (ring == NULL || out == NULL) {
        return RH_INVALID_ARGUMENT;
    }
    rh_wire_put_bytes(&writer, digest_magic, sizeof digest_magic);
    rh_wire_put_u8(&writer, (uint8_t)ring->profile);
    for (size_t i = 0; i < ring->slot_count; i++) {
        const struct ring_slot *slot = &ring->slots[ring->by_name[i]];

        if (slot->points > 0) {
            put_name_and_zone(&writer, slot);
            rh_wire_put_u32(&writer, slot->points);
        }
    }
    if (rh_ring_profile_rules(ring->profile)->by_number) {
        status = put_ties(&writer, ring);
    }
    if (status == RH_OK) {
        status = rh_wire_finish(&writer, &data, &size);
    } else {
        free(writer.data);
    }
    if (status == RH_OK) {
        memcpy(out, (const uint8_t *)data + size - RH_RING_DIGEST_BYTES, RH_RING_DIGEST_BYTES);
    }
    free(data);
    return status;
}

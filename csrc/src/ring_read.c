/* What a ring tells about itself and its nodes. */
#include "node.h"
#include "ring_internal.h"

bool rh_ring_find_slot(const rh_ring *ring, const void *name, size_t name_bytes, uint32_t *out)
{
    size_t low = 0, high = ring->slot_count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const struct ring_slot *slot = &ring->slots[ring->by_name[middle]];
        int order = rh_compare_bytes(slot->name, slot->name_bytes, name, name_bytes);

        if (order == 0) {
            *out = ring->by_name[middle];
            return true;
        }
        if (order < 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return false;
}

rh_status rh_ring_get_info(const rh_ring *ring, rh_ring_info *out)
{
    if (ring == NULL || out == NULL) {
        return RH_INVALID_ARGUMENT;
    }
    out->names = ring->slot_count;
    out->nodes = ring->nodes;
    out->usable = ring->usable;
    out->zones = ring->zones_in_use;
    out->points = ring->point_count;
    out->vnodes = ring->vnodes;
    out->profile = ring->profile;
    out->hash_bits = rh_ring_profile_rules(ring->profile)->hash_bits;
    return RH_OK;
}

rh_status rh_ring_get_member(const rh_ring *ring, size_t index, rh_ring_member *out)
{
    const struct ring_slot *slot;

    if (ring == NULL || out == NULL) {
        return RH_INVALID_ARGUMENT;
    }
    if (index >= ring->slot_count) {
        return RH_UNKNOWN_NODE;
    }
    slot = &ring->slots[index];
    out->node.name = slot->name;
    out->node.name_bytes = slot->name_bytes;
    out->node.zone = slot->zone;
    out->node.zone_bytes = slot->zone_bytes;
    out->node.weight = slot->weight;
    out->points = slot->points;
    out->present = slot->present;
    return RH_OK;
}

rh_status rh_ring_find(const rh_ring *ring, const void *name, size_t name_bytes, uint32_t *out)
{
    uint32_t index;

    if (ring == NULL || out == NULL || (name == NULL && name_bytes > 0)) {
        return RH_INVALID_ARGUMENT;
    }
    if (!rh_ring_find_slot(ring, name, name_bytes, &index) || !ring->slots[index].present) {
        return RH_UNKNOWN_NODE;
    }
    *out = index;
    return RH_OK;
}

rh_status rh_ring_get_points(const rh_ring *ring, rh_ring_points *out)
{
    if (ring == NULL || out == NULL) {
        return RH_INVALID_ARGUMENT;
    }
    out->high = ring->points;
    out->low = ring->low;
    out->owners = ring->owners;
    out->count = ring->point_count;
    return RH_OK;
}

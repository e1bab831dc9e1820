/* Making rings from nodes and from other rings, and reading them. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ring_internal.h"

static int compare_bytes(const void *a, size_t a_bytes, const void *b, size_t b_bytes)
{
    size_t common = a_bytes < b_bytes ? a_bytes : b_bytes;
    int order = common > 0 ? memcmp(a, b, common) : 0;

    return order != 0 ? order : (a_bytes > b_bytes) - (a_bytes < b_bytes);
}

int ring_compare_names(const struct ring_slot *a, const struct ring_slot *b)
{
    return compare_bytes(a->name, a->name_bytes, b->name, b->name_bytes);
}

static int by_slot_name(const void *a, const void *b)
{
    return ring_compare_names(*(const struct ring_slot *const *)a,
                              *(const struct ring_slot *const *)b);
}

static int by_slot_zone(const void *a, const void *b)
{
    const struct ring_slot *x = *(const struct ring_slot *const *)a;
    const struct ring_slot *y = *(const struct ring_slot *const *)b;

    return compare_bytes(x->zone, x->zone_bytes, y->zone, y->zone_bytes);
}

static int by_change_name(const void *a, const void *b)
{
    const rh_node *x = &(*(const rh_ring_change *const *)a)->node;
    const rh_node *y = &(*(const rh_ring_change *const *)b)->node;

    return compare_bytes(x->name, x->name_bytes, y->name, y->name_bytes);
}

/* max(1, round half to even(vnodes * weight)), independent of the rounding mode in force. */
static rh_status points_of(double weight, uint32_t vnodes, uint32_t *out)
{
    double exact = weight * (double)vnodes;
    uint32_t whole;
    double rest;

    if (!isfinite(weight) || weight < 0) {
        return RH_INVALID_ARGUMENT;
    }
    if (weight == 0) {
        *out = 0;
        return RH_OK;
    }
    if (exact > (double)RH_RING_POINTS_MAX) {
        return RH_TOO_LARGE;
    }
    whole = (uint32_t)exact;
    rest = exact - (double)whole;
    whole += rest > 0.5 || (rest == 0.5 && whole % 2 == 1);
    *out = whole > 0 ? whole : 1;
    return RH_OK;
}

/* Fills a slot whose name and zone still lie in the caller's memory; own_text() copies them. */
static rh_status fill_slot(struct ring_slot *slot, const rh_node *node, uint32_t vnodes)
{
    if ((node->name == NULL && node->name_bytes > 0) ||
        (node->zone == NULL && node->zone_bytes > 0)) {
        return RH_INVALID_ARGUMENT;
    }
    slot->name = node->name ? node->name : "";
    slot->name_bytes = node->name_bytes;
    slot->zone = node->zone;
    slot->zone_bytes = node->zone_bytes;
    slot->weight = node->weight;
    slot->present = true;
    return points_of(node->weight, vnodes, &slot->points);
}

/* Moves all names and zones into one block that the ring owns. */
static rh_status own_text(rh_ring *ring)
{
    size_t total = 0;
    char *at;

    for (size_t i = 0; i < ring->slot_count; i++) {
        const struct ring_slot *slot = &ring->slots[i];

        if (slot->name_bytes > SIZE_MAX - total ||
            slot->zone_bytes > SIZE_MAX - total - slot->name_bytes) {
            return RH_TOO_LARGE;
        }
        total += slot->name_bytes + slot->zone_bytes;
    }
    ring->text = at = malloc(total > 0 ? total : 1);
    if (at == NULL) {
        return RH_NO_MEMORY;
    }
    ring->text_bytes = total;
    for (size_t i = 0; i < ring->slot_count; i++) {
        struct ring_slot *slot = &ring->slots[i];

        memcpy(at, slot->name, slot->name_bytes);
        slot->name = at;
        at += slot->name_bytes;
        if (slot->zone) {
            if (slot->zone_bytes > 0) {
                memcpy(at, slot->zone, slot->zone_bytes);
            }
            slot->zone = at;
            at += slot->zone_bytes;
        }
    }
    return RH_OK;
}

/* Numbers the zones from 0, a slot without one getting a number to itself, and counts them. */
static rh_status assign_zones(rh_ring *ring)
{
    struct ring_slot **zoned = malloc((ring->slot_count + 1) * sizeof *zoned);
    size_t count = 0;
    uint32_t next = 0;

    if (zoned == NULL) {
        return RH_NO_MEMORY;
    }
    for (size_t i = 0; i < ring->slot_count; i++) {
        if (ring->slots[i].zone) {
            zoned[count++] = &ring->slots[i];
        } else {
            ring->slots[i].zone_id = next++;
        }
    }
    qsort(zoned, count, sizeof *zoned, by_slot_zone);
    for (size_t i = 0; i < count; i++) {
        next += i > 0 && by_slot_zone(&zoned[i - 1], &zoned[i]) != 0;
        zoned[i]->zone_id = next;
    }
    free(zoned);
    ring->zone_count = (size_t)next + (count > 0);
    ring->zone_usable = calloc(ring->zone_count + 1, sizeof *ring->zone_usable);
    if (ring->zone_usable == NULL) {
        return RH_NO_MEMORY;
    }
    for (size_t i = 0; i < ring->slot_count; i++) {
        const struct ring_slot *slot = &ring->slots[i];

        ring->nodes += slot->present;
        if (slot->points > 0) {
            ring->usable++;
            ring->zones_in_use += ring->zone_usable[slot->zone_id]++ == 0;
        }
    }
    return RH_OK;
}

/*
 * Merges the numbers of appended slots into the old order of names. `fresh` is sorted by name;
 * slots below old_count among it were there before and keep their place.
 */
static rh_status merge_names(rh_ring *ring, const rh_ring *old, struct ring_slot *const *fresh,
                             size_t fresh_count)
{
    size_t old_count = old ? old->slot_count : 0;
    size_t made = 0, from = 0;

    ring->by_name = malloc((ring->slot_count + 1) * sizeof *ring->by_name);
    if (ring->by_name == NULL) {
        return RH_NO_MEMORY;
    }
    for (size_t i = 0; i < fresh_count; i++) {
        uint32_t slot = (uint32_t)(fresh[i] - ring->slots);

        if (slot < old_count) {
            continue;
        }
        while (from < old_count &&
               ring_compare_names(&ring->slots[old->by_name[from]], fresh[i]) < 0) {
            ring->by_name[made++] = old->by_name[from++];
        }
        ring->by_name[made++] = slot;
    }
    while (from < old_count) {
        ring->by_name[made++] = old->by_name[from++];
    }
    return RH_OK;
}

/* Everything that follows from filled slots; `fresh` are those whose points are not in `old`. */
static rh_status finish(rh_ring *ring, const rh_ring *old, struct ring_slot **fresh,
                        size_t fresh_count)
{
    rh_status status = own_text(ring);

    if (status != RH_OK) {
        return status;
    }
    qsort(fresh, fresh_count, sizeof *fresh, by_slot_name);
    for (size_t i = 1; i < fresh_count; i++) {
        if (ring_compare_names(fresh[i - 1], fresh[i]) == 0) {
            return RH_DUPLICATE_NODE;
        }
    }
    status = merge_names(ring, old, fresh, fresh_count);
    if (status != RH_OK || (status = assign_zones(ring)) != RH_OK) {
        return status;
    }
    return ring_place_points(ring, old, fresh, fresh_count);
}

static rh_status allocate(size_t slot_count, uint32_t vnodes, rh_ring **ring,
                          struct ring_slot ***fresh, size_t fresh_count)
{
    if (slot_count >= UINT32_MAX) {
        return RH_TOO_LARGE;
    }
    *ring = calloc(1, sizeof **ring);
    *fresh = malloc((fresh_count + 1) * sizeof **fresh);
    if (*ring == NULL || *fresh == NULL) {
        return RH_NO_MEMORY;
    }
    (*ring)->vnodes = vnodes;
    (*ring)->slots = calloc(slot_count + 1, sizeof *(*ring)->slots);
    return (*ring)->slots ? RH_OK : RH_NO_MEMORY;
}

rh_status rh_ring_new(const rh_node *nodes, size_t count, const rh_ring_options *options,
                      rh_ring **out)
{
    uint32_t vnodes = options && options->vnodes > 0 ? options->vnodes : RH_RING_VNODES_DEFAULT;
    struct ring_slot **fresh = NULL;
    rh_ring *ring = NULL;
    rh_status status;

    if (nodes == NULL && count > 0) {
        return RH_INVALID_ARGUMENT;
    }
    status = allocate(count, vnodes, &ring, &fresh, count);
    if (status != RH_OK) {
        goto out;
    }
    ring->slot_count = count;
    for (size_t i = 0; i < count; i++) {
        status = fill_slot(&ring->slots[i], &nodes[i], vnodes);
        if (status != RH_OK) {
            goto out;
        }
        fresh[i] = &ring->slots[i];
    }
    status = finish(ring, NULL, fresh, count);
    if (status == RH_OK) {
        *out = ring;
        ring = NULL;
    }
out:
    free(fresh);
    rh_ring_free(ring);
    return status;
}

/* Whether the slot of that name exists, present or removed, and its number. */
static bool find_slot(const rh_ring *ring, const void *name, size_t name_bytes, uint32_t *out)
{
    size_t low = 0, high = ring->slot_count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const struct ring_slot *slot = &ring->slots[ring->by_name[middle]];
        int order = compare_bytes(slot->name, slot->name_bytes, name, name_bytes);

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

static rh_status check_names_once(const rh_ring_change *changes, size_t count)
{
    rh_status status = RH_OK;
    const rh_ring_change **sorted = malloc((count + 1) * sizeof *sorted);

    if (sorted == NULL) {
        return RH_NO_MEMORY;
    }
    for (size_t i = 0; i < count; i++) {
        sorted[i] = &changes[i];
        if (changes[i].node.name == NULL && changes[i].node.name_bytes > 0) {
            status = RH_INVALID_ARGUMENT;
            goto out;
        }
    }
    qsort(sorted, count, sizeof *sorted, by_change_name);
    for (size_t i = 1; i < count; i++) {
        if (by_change_name(&sorted[i - 1], &sorted[i]) == 0) {
            status = RH_DUPLICATE_NODE;
            goto out;
        }
    }
out:
    free(sorted);
    return status;
}

/* Applies one change to the copied slots; a filled slot is appended to `fresh`. */
static rh_status apply(rh_ring *ring, const rh_ring *old, const rh_ring_change *change,
                       struct ring_slot **fresh, size_t *fresh_count)
{
    uint32_t index = 0;
    bool known = find_slot(old, change->node.name, change->node.name_bytes, &index);
    bool present = known && old->slots[index].present;
    struct ring_slot *slot;

    switch (change->kind) {
    case RH_RING_ADD:
        if (present) {
            return RH_DUPLICATE_NODE;
        }
        slot = &ring->slots[known ? index : ring->slot_count++];
        fresh[(*fresh_count)++] = slot;
        return fill_slot(slot, &change->node, ring->vnodes);
    case RH_RING_REMOVE:
        if (!present) {
            return RH_UNKNOWN_NODE;
        }
        slot = &ring->slots[index];
        slot->present = false;
        slot->points = 0;
        slot->weight = 0;
        slot->zone = NULL;
        slot->zone_bytes = 0;
        return RH_OK;
    case RH_RING_REWEIGHT:
        break;
    }
    return RH_INVALID_ARGUMENT;
}

rh_status rh_ring_edit(const rh_ring *old, const rh_ring_change *changes, size_t count,
                       rh_ring **out)
{
    struct ring_slot **fresh = NULL;
    size_t fresh_count = 0;
    rh_ring *ring = NULL;
    rh_status status;

    if ((changes == NULL && count > 0) || count > SIZE_MAX - old->slot_count) {
        return RH_INVALID_ARGUMENT;
    }
    status = allocate(old->slot_count + count, old->vnodes, &ring, &fresh, count);
    if (status != RH_OK || (status = check_names_once(changes, count)) != RH_OK) {
        goto out;
    }
    memcpy(ring->slots, old->slots, old->slot_count * sizeof *ring->slots);
    ring->slot_count = old->slot_count;
    for (size_t i = 0; i < count; i++) {
        status = apply(ring, old, &changes[i], fresh, &fresh_count);
        if (status != RH_OK) {
            goto out;
        }
    }
    status = finish(ring, old, fresh, fresh_count);
    if (status == RH_OK) {
        *out = ring;
        ring = NULL;
    }
out:
    free(fresh);
    rh_ring_free(ring);
    return status;
}

void rh_ring_free(rh_ring *ring)
{
    if (ring) {
        free(ring->zone_usable);
        free(ring->directory);
        free(ring->owners);
        free(ring->points);
        free(ring->text);
        free(ring->by_name);
        free(ring->slots);
        free(ring);
    }
}

rh_status rh_ring_get_info(const rh_ring *ring, rh_ring_info *out)
{
    out->names = ring->slot_count;
    out->nodes = ring->nodes;
    out->usable = ring->usable;
    out->zones = ring->zones_in_use;
    out->points = ring->point_count;
    out->vnodes = ring->vnodes;
    out->profile = RH_RING_RINGHOLD;
    out->hash_bits = 64;
    return RH_OK;
}

rh_status rh_ring_get_member(const rh_ring *ring, size_t index, rh_ring_member *out)
{
    const struct ring_slot *slot;

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

    if (name == NULL && name_bytes > 0) {
        return RH_INVALID_ARGUMENT;
    }
    if (!find_slot(ring, name, name_bytes, &index) || !ring->slots[index].present) {
        return RH_UNKNOWN_NODE;
    }
    *out = index;
    return RH_OK;
}

rh_status rh_ring_get_points(const rh_ring *ring, rh_ring_points *out)
{
    out->high = ring->points;
    out->low = NULL;
    out->owners = ring->owners;
    out->count = ring->point_count;
    return RH_OK;
}

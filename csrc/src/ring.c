/* Making rings from nodes and from other rings. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "node.h"
#include "ring_internal.h"

int rh_ring_compare_names(const struct ring_slot *a, const struct ring_slot *b)
{
    return rh_compare_bytes(a->name, a->name_bytes, b->name, b->name_bytes);
}

static int by_slot_name(const void *a, const void *b)
{
    const struct ring_slot *const *x = a, *const *y = b;

    return rh_ring_compare_names(*x, *y);
}

static int by_slot_zone(const void *a, const void *b)
{
    const struct ring_slot *x = *(const struct ring_slot *const *)a;
    const struct ring_slot *y = *(const struct ring_slot *const *)b;

    return rh_compare_bytes(x->zone, x->zone_bytes, y->zone, y->zone_bytes);
}

static int by_change_name(const void *a, const void *b)
{
    const rh_node *x = &(*(const rh_ring_change *const *)a)->node;
    const rh_node *y = &(*(const rh_ring_change *const *)b)->node;

    return rh_compare_bytes(x->name, x->name_bytes, y->name, y->name_bytes);
}

/* Zero is stored without its sign, so that equal rings are written as equal bytes. */
/* -0.0 is written as other bytes than 0.0, and means the same. */
static double positive(double weight)
{
    return weight == 0 ? 0 : weight;
}

/* Fills a slot whose name and zone still lie in the caller's memory; own_text() copies them. */
static rh_status fill_slot(struct ring_slot *slot, const rh_node *node)
{
    if (!rh_node_is_sound(node)) {
        return RH_INVALID_ARGUMENT;
    }
    slot->name = node->name ? node->name : "";
    slot->name_bytes = node->name_bytes;
    slot->zone = node->zone;
    slot->zone_bytes = node->zone_bytes;
    slot->present = true;
    slot->weight = positive(node->weight);
    return RH_OK;
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

/* Sorts the slots that `old` does not have by name and merges them into its order of names. */
static rh_status merge_names(rh_ring *ring, const rh_ring *old)
{
    rh_status status = RH_NO_MEMORY;
    size_t old_count = old ? old->slot_count : 0;
    size_t count = ring->slot_count - old_count;
    size_t made = 0, from = 0;
    struct ring_slot **added = malloc((count + 1) * sizeof *added);

    ring->by_name = malloc((ring->slot_count + 1) * sizeof *ring->by_name);
    if (added == NULL || ring->by_name == NULL) {
        goto out;
    }
    for (size_t i = 0; i < count; i++) {
        added[i] = &ring->slots[old_count + i];
    }
    qsort(added, count, sizeof *added, by_slot_name);
    for (size_t i = 0; i < count; i++) {
        if (i > 0 && rh_ring_compare_names(added[i - 1], added[i]) == 0) {
            status = RH_DUPLICATE_NODE;
            goto out;
        }
        while (from < old_count &&
               rh_ring_compare_names(&ring->slots[old->by_name[from]], added[i]) < 0) {
            ring->by_name[made++] = old->by_name[from++];
        }
        ring->by_name[made++] = (uint32_t)(added[i] - ring->slots);
    }
    while (from < old_count) {
        ring->by_name[made++] = old->by_name[from++];
    }
    status = RH_OK;
out:
    free(added);
    return status;
}

/* Everything that follows from filled slots, the first of which are those of `old` (or NULL). */
static rh_status finish(rh_ring *ring, const rh_ring *old)
{
    rh_status status;

    if ((status = own_text(ring)) != RH_OK || (status = merge_names(ring, old)) != RH_OK ||
        (status = rh_ring_count_points(ring)) != RH_OK || (status = assign_zones(ring)) != RH_OK) {
        return status;
    }
    return rh_ring_place_points(ring, old);
}

static rh_status allocate(size_t slot_count, uint32_t vnodes, rh_ring_profile profile,
                          rh_ring **ring)
{
    const struct ring_profile *about = rh_ring_profile_rules(profile);

    if (about == NULL || (vnodes != RH_RING_VNODES_DEFAULT && !about->any_vnodes)) {
        return RH_INVALID_ARGUMENT;
    }
    if (slot_count >= UINT32_MAX) {
        return RH_TOO_LARGE;
    }
    *ring = calloc(1, sizeof **ring);
    if (*ring == NULL) {
        return RH_NO_MEMORY;
    }
    (*ring)->vnodes = vnodes;
    (*ring)->profile = profile;
    (*ring)->after = about->after;
    (*ring)->slots = calloc(slot_count + 1, sizeof *(*ring)->slots);
    return (*ring)->slots ? RH_OK : RH_NO_MEMORY;
}

rh_status rh_ring_new(const rh_node *nodes, size_t count, const rh_ring_options *options,
                      rh_ring **out)
{
    uint32_t vnodes = options && options->vnodes > 0 ? options->vnodes : RH_RING_VNODES_DEFAULT;
    rh_ring *ring = NULL;
    rh_status status;

    if ((nodes == NULL && count > 0) || out == NULL) {
        return RH_INVALID_ARGUMENT;
    }
    status = allocate(count, vnodes, options ? options->profile : RH_RING_RINGHOLD, &ring);
    if (status != RH_OK) {
        goto out;
    }
    ring->slot_count = count;
    for (size_t i = 0; i < count; i++) {
        status = fill_slot(&ring->slots[i], &nodes[i]);
        if (status != RH_OK) {
            goto out;
        }
    }
    status = finish(ring, NULL);
    if (status == RH_OK) {
        *out = ring;
        ring = NULL;
    }
out:
    rh_ring_free(ring);
    return status;
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

/* Applies one change to the copied slots; what follows for the points is told by their counts. */
static rh_status apply(rh_ring *ring, const rh_ring *old, const rh_ring_change *change)
{
    uint32_t index = 0;
    bool known = rh_ring_find_slot(old, change->node.name, change->node.name_bytes, &index);
    bool present = known && old->slots[index].present;
    struct ring_slot *slot = &ring->slots[index];

    switch (change->kind) {
    case RH_RING_ADD:
        if (present) {
            return RH_DUPLICATE_NODE;
        }
        return fill_slot(known ? slot : &ring->slots[ring->slot_count++], &change->node);
    case RH_RING_REMOVE:
        if (!present) {
            return RH_UNKNOWN_NODE;
        }
        slot->present = false;
        slot->weight = 0;
        slot->zone = NULL;
        slot->zone_bytes = 0;
        return RH_OK;
    case RH_RING_REWEIGHT:
        if (!present || !rh_node_is_sound(&change->node)) {
            return present ? RH_INVALID_ARGUMENT : RH_UNKNOWN_NODE;
        }
        slot->weight = positive(change->node.weight);
        return RH_OK;
    }
    return RH_INVALID_ARGUMENT;
}

rh_status rh_ring_edit(const rh_ring *old, const rh_ring_change *changes, size_t count,
                       rh_ring **out)
{
    rh_ring *ring = NULL;
    rh_status status;

    if (old == NULL || (changes == NULL && count > 0) || out == NULL) {
        return RH_INVALID_ARGUMENT;
    }
    if (count > UINT32_MAX - old->slot_count) {
        return RH_TOO_LARGE;
    }
    status = allocate(old->slot_count + count, old->vnodes, old->profile, &ring);
    if (status != RH_OK || (status = check_names_once(changes, count)) != RH_OK) {
        goto out;
    }
    memcpy(ring->slots, old->slots, old->slot_count * sizeof *ring->slots);
    ring->slot_count = old->slot_count;
    for (size_t i = 0; i < count; i++) {
        status = apply(ring, old, &changes[i]);
        if (status != RH_OK) {
            goto out;
        }
    }
    status = finish(ring, old);
    if (status == RH_OK) {
        *out = ring;
        ring = NULL;
    }
out:
    rh_ring_free(ring);
    return status;
}

void rh_ring_free(rh_ring *ring)
{
    if (ring) {
        free(ring->zone_usable);
        free(ring->directory);
        free(ring->owners);
        free(ring->low);
        free(ring->points);
        free(ring->text);
        free(ring->by_name);
        free(ring->slots);
        free(ring);
    }
}

/* Walks round a ring: the nodes for the copies of a key, and the first with room for one more. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ring_internal.h"

/* Up to this many replicas, looking through those already found is the fastest way. */
#define PAIRS_MAX 32

/* The index of the point that owns a position; the ring has points. */
static size_t first_point(const rh_ring *ring, rh_ring_position position)
{
    size_t found = rh_ring_search_position(ring, position);

    return found < ring->point_count ? found : 0;
}

/*
 * The first nodes of `count` different zones, count <= the zones in use: as long as no zone need
 * be used twice, a zone seen in the output is all there is to remember.
 */
static void first_of_each_zone(const rh_ring *ring, size_t start, size_t count, uint32_t *out)
{
    size_t position = start;
    size_t found = 0;

    while (found < count) {
        uint32_t owner = ring->owners[position];
        uint32_t zone = ring->slots[owner].zone_id;
        size_t i = 0;

        while (i < found && ring->slots[out[i]].zone_id != zone) {
            i++;
        }
        if (i == found) {
            out[found++] = owner;
        }
        position = position + 1 < ring->point_count ? position + 1 : 0;
    }
}

/* A walk round the ring that yields each usable node once, and remembers what it yielded. */
struct walk {
    const rh_ring *ring;
    size_t position;
    size_t steps;
    uint32_t *nodes;
    size_t count;
    bool *seen; /* by slot; excluded slots are marked before the walk starts */
};

static bool walk_next(struct walk *walk)
{
    const rh_ring *ring = walk->ring;

    while (walk->steps < ring->point_count) {
        uint32_t owner = ring->owners[walk->position];

        walk->steps++;
        walk->position = walk->position + 1 < ring->point_count ? walk->position + 1 : 0;
        if (!walk->seen[owner]) {
            walk->seen[owner] = true;
            walk->nodes[walk->count++] = owner;
            return true;
        }
    }
    return false;
}

/*
 * Round r takes, in walk order, the next node of every zone that was used r times and has one
 * left. Nodes walked past in an earlier round are looked at again from the front.
 */
static size_t spread(struct walk *walk, const uint32_t *left_in_zone, uint32_t *used, bool *taken,
                     size_t count, uint32_t *out)
{
    const struct ring_slot *slots = walk->ring->slots;
    size_t found = 0;

    for (uint32_t round = 0; found < count; round++) {
        size_t zones = 0;

        for (size_t zone = 0; zone < walk->ring->zone_count; zone++) {
            zones += left_in_zone[zone] > round;
        }
        for (size_t i = 0; zones > 0 && found < count; i++) {
            uint32_t node, zone;

            if (i == walk->count && !walk_next(walk)) {
                break;
            }
            node = walk->nodes[i];
            zone = slots[node].zone_id;
            if (!taken[i] && used[zone] == round) {
                taken[i] = true;
                used[zone]++;
                zones--;
                out[found++] = node;
            }
        }
    }
    return found;
}

static rh_status replicas_in_rounds(const rh_ring *ring, size_t start, size_t count,
                                    const rh_ring_replicas_options *options, uint32_t *out,
                                    size_t *zones)
{
    rh_status status = RH_NO_MEMORY;
    struct walk walk = {.ring = ring, .position = start};
    size_t usable = ring->usable;
    uint32_t *left_in_zone = calloc(ring->zone_count, sizeof *left_in_zone);
    uint32_t *used = calloc(ring->zone_count, sizeof *used);
    bool *taken = calloc(ring->slot_count, sizeof *taken);

    walk.nodes = calloc(ring->slot_count, sizeof *walk.nodes);
    walk.seen = calloc(ring->slot_count, sizeof *walk.seen);
    if (!left_in_zone || !used || !taken || !walk.nodes || !walk.seen) {
        goto out;
    }
    memcpy(left_in_zone, ring->zone_usable, ring->zone_count * sizeof *left_in_zone);
    for (size_t i = 0; i < options->exclude_count; i++) {
        uint32_t slot = options->exclude[i];

        if (slot < ring->slot_count && !walk.seen[slot]) {
            walk.seen[slot] = true;
            if (ring->slots[slot].points > 0) {
                left_in_zone[ring->slots[slot].zone_id]--;
                usable--;
            }
        }
    }
    if (count > usable) {
        status = RH_NOT_ENOUGH_NODES;
        goto out;
    }
    spread(&walk, left_in_zone, used, taken, count, out);
    *zones = 0;
    for (size_t zone = 0; zone < ring->zone_count; zone++) {
        *zones += used[zone] > 0;
    }
    status = RH_OK;
out:
    free(walk.seen);
    free(walk.nodes);
    free(taken);
    free(used);
    free(left_in_zone);
    return status;
}

/* The ring with every excluded node taken out, for profiles where the others' points change. */
static rh_status edit_out(const rh_ring *ring, const rh_ring_replicas_options *options,
                          rh_ring **out)
{
    rh_ring_change *changes = malloc((ring->slot_count + 1) * sizeof *changes);
    bool *listed = calloc(ring->slot_count + 1, sizeof *listed);
    rh_status status = RH_NO_MEMORY;
    size_t count = 0;

    if (changes == NULL || listed == NULL) {
        goto out;
    }
    for (size_t i = 0; i < options->exclude_count; i++) {
        uint32_t number = options->exclude[i];

        if (number < ring->slot_count && ring->slots[number].present && !listed[number]) {
            listed[number] = true;
            changes[count++] = (rh_ring_change){
                RH_RING_REMOVE,
                {.name = ring->slots[number].name, .name_bytes = ring->slots[number].name_bytes}};
        }
    }
    status = rh_ring_edit(ring, changes, count, out);
out:
    free(listed);
    free(changes);
    return status;
}

rh_status rh_ring_replicas(const rh_ring *ring, rh_ring_position position, size_t count,
                           const rh_ring_replicas_options *options, uint32_t *out, size_t *zones)
{
    static const rh_ring_replicas_options none = {0};
    size_t used = count;
    size_t start = 0;
    rh_status status = RH_OK;

    options = options ? options : &none;
    if (ring == NULL || (out == NULL && count > 0) ||
        (options->exclude == NULL && options->exclude_count > 0)) {
        return RH_INVALID_ARGUMENT;
    }
    if (options->exclude_count > 0 && rh_ring_profile_rules(ring->profile)->shared) {
        rh_ring *without = NULL;

        status = edit_out(ring, options, &without);
        if (status == RH_OK) {
            status = rh_ring_replicas(without, position, count, NULL, out, zones);
        }
        rh_ring_free(without);
        return status;
    }
    if (count > ring->usable) {
        return RH_NOT_ENOUGH_NODES;
    }
    if (count > 0) {
        start = first_point(ring, position);
    }
    /* The short way compares pairs of the output, which would not do for long ones. */
    if (options->exclude_count == 0 && count <= ring->zones_in_use && count <= PAIRS_MAX) {
        first_of_each_zone(ring, start, count, out);
    } else if (count > 0) {
        status = replicas_in_rounds(ring, start, count, options, out, &used);
    }
    if (status == RH_OK && zones) {
        *zones = used;
    }
    return status;
}

/* ceil() for numbers >= 0, without the mathematical library. */
static double round_up(double value)
{
    double whole;

    if (value >= 9007199254740992.0) { /* 2^53: every number from there on is whole */
        return value;
    }
    whole = (double)(uint64_t)value;
    return whole < value ? whole + 1 : whole;
}

rh_status rh_ring_lookup_bounded(const rh_ring *ring, rh_ring_position position,
                                 const double *loads, double bound, uint32_t *out)
{
    double total = 0, weights = 0;
    size_t start;

    if (ring == NULL || (loads == NULL && ring->slot_count > 0) || out == NULL ||
        !isfinite(bound) || bound < 1) {
        return RH_INVALID_ARGUMENT;
    }
    /* In order of names: sums of doubles depend on their order, and all clients must agree. */
    for (size_t i = 0; i < ring->slot_count; i++) {
        const struct ring_slot *slot = &ring->slots[ring->by_name[i]];
        double load = loads[ring->by_name[i]];

        if (!isfinite(load) || load < 0) {
            return RH_INVALID_ARGUMENT;
        }
        total += slot->present ? load : 0;
        weights += slot->points > 0 ? slot->weight : 0;
    }
    if (ring->point_count == 0) {
        return RH_EMPTY_RING;
    }
    start = first_point(ring, position);
    for (size_t i = 0; i < ring->point_count; i++) {
        size_t at = start + i < ring->point_count ? start + i : start + i - ring->point_count;
        uint32_t owner = ring->owners[at];

        if (loads[owner] < round_up(bound * (total + 1) * ring->slots[owner].weight / weights)) {
            *out = owner;
            return RH_OK;
        }
    }
    *out = ring->owners[start];
    return RH_OK;
}

/* Searching a ring: owners of keys and hashes, one by one and in batches, and replica sets. */
#include <stdlib.h>
#include <string.h>

#include "ring_internal.h"
#include "xxh3.h"

/* Beyond this many points in one directory entry, which uniform hashes never reach, halve. */
#define SCAN_MAX 16

/* Keys hashed before they are searched, so that the searches' cache misses overlap. */
#define BATCH 32

size_t ring_search_plain(const rh_ring *ring, size_t low, size_t high, uint64_t hash)
{
    while (low < high) {
        size_t middle = low + (high - low) / 2;

        if (ring->points[middle] < hash) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

static inline size_t count_below(const uint64_t *points, uint64_t hash)
{
    size_t below = 0;

    for (size_t i = 0; i < RING_LANES; i++) {
        below += points[i] < hash;
    }
    return below;
}

static inline size_t search_between(const rh_ring *ring, size_t low, size_t high, uint64_t hash)
{
    size_t below;

    if (high - low > SCAN_MAX) {
        return ring_search_plain(ring, low, high, hash);
    }
    do {
        below = count_below(ring->points + low, hash);
        low += below;
    } while (below == RING_LANES);
    return low;
}

static inline size_t search(const rh_ring *ring, uint64_t hash)
{
    const uint32_t *entry = ring->directory + (hash >> ring->shift);

    return search_between(ring, entry[0], entry[1], hash);
}

size_t ring_search(const rh_ring *ring, uint64_t hash)
{
    return search(ring, hash);
}

rh_status rh_ring_locate(const rh_ring *ring, const void *key, size_t key_bytes,
                         rh_ring_position *out)
{
    (void)ring;
    if (key == NULL && key_bytes > 0) {
        return RH_INVALID_ARGUMENT;
    }
    out->high = XXH3_64bits(key, key_bytes);
    out->low = 0;
    return RH_OK;
}

rh_status rh_ring_locate_hash(const rh_ring *ring, uint64_t hash, rh_ring_position *out)
{
    (void)ring;
    out->high = hash;
    out->low = 0;
    return RH_OK;
}

rh_status rh_ring_find_point(const rh_ring *ring, rh_ring_position position, size_t *out)
{
    size_t found;

    if (ring->point_count == 0) {
        return RH_EMPTY_RING;
    }
    found = search(ring, position.high);
    *out = found < ring->point_count ? found : 0;
    return RH_OK;
}

rh_status rh_ring_lookup_hash(const rh_ring *ring, uint64_t hash, uint32_t *out)
{
    if (ring->point_count == 0) {
        return RH_EMPTY_RING;
    }
    *out = ring->owners[search(ring, hash)];
    return RH_OK;
}

rh_status rh_ring_lookup(const rh_ring *ring, const void *key, size_t key_bytes, uint32_t *out)
{
    if (key == NULL && key_bytes > 0) {
        return RH_INVALID_ARGUMENT;
    }
    return rh_ring_lookup_hash(ring, XXH3_64bits(key, key_bytes), out);
}

static inline void prefetch(const void *address)
{
#if defined(__GNUC__)
    __builtin_prefetch(address);
#else
    (void)address;
#endif
}

/* Up to BATCH hashes: all directory entries, then all points, then all owners. */
static void lookup_block(const rh_ring *ring, const uint64_t *hashes, size_t count, uint32_t *out)
{
    size_t low[BATCH];

    for (size_t i = 0; i < count; i++) {
        prefetch(ring->directory + (hashes[i] >> ring->shift));
    }
    for (size_t i = 0; i < count; i++) {
        low[i] = ring->directory[hashes[i] >> ring->shift];
        prefetch(ring->points + low[i]);
        prefetch(ring->owners + low[i]);
    }
    for (size_t i = 0; i < count; i++) {
        size_t high = ring->directory[(hashes[i] >> ring->shift) + 1];

        out[i] = ring->owners[search_between(ring, low[i], high, hashes[i])];
    }
}

rh_status rh_ring_lookup_hashes(const rh_ring *ring, const uint64_t *hashes, size_t count,
                                uint32_t *out)
{
    if (count > 0 && ring->point_count == 0) {
        return RH_EMPTY_RING;
    }
    for (size_t done = 0; done < count; done += BATCH) {
        size_t block = count - done < BATCH ? count - done : BATCH;

        lookup_block(ring, hashes + done, block, out + done);
    }
    return RH_OK;
}

rh_status rh_ring_lookup_keys(const rh_ring *ring, const void *const *keys, const size_t *key_bytes,
                              size_t count, uint32_t *out)
{
    uint64_t hashes[BATCH];

    if (count > 0 && ring->point_count == 0) {
        return RH_EMPTY_RING;
    }
    for (size_t done = 0; done < count; done += BATCH) {
        size_t block = count - done < BATCH ? count - done : BATCH;

        for (size_t i = 0; i < block; i++) {
            hashes[i] = XXH3_64bits(keys[done + i], key_bytes[done + i]);
        }
        lookup_block(ring, hashes, block, out + done);
    }
    return RH_OK;
}

/*
 * The first nodes of `count` different zones, count <= the zones in use: as long as no zone need
 * be used twice, a zone seen in the output is all there is to remember.
 */
static void first_of_each_zone(const rh_ring *ring, uint64_t hash, size_t count, uint32_t *out)
{
    size_t position = search(ring, hash);
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

static rh_status replicas_in_rounds(const rh_ring *ring, uint64_t hash, size_t count,
                                    const rh_ring_replicas_options *options, uint32_t *out,
                                    size_t *zones)
{
    rh_status status = RH_NO_MEMORY;
    struct walk walk = {.ring = ring};
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
    walk.position = search(ring, hash);
    if (walk.position == ring->point_count) {
        walk.position = 0;
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

rh_status rh_ring_replicas(const rh_ring *ring, rh_ring_position position, size_t count,
                           const rh_ring_replicas_options *options, uint32_t *out, size_t *zones)
{
    static const rh_ring_replicas_options none = {0};
    size_t used = count;
    rh_status status = RH_OK;

    options = options ? options : &none;
    if (options->exclude == NULL && options->exclude_count > 0) {
        return RH_INVALID_ARGUMENT;
    }
    if (count > ring->usable) {
        return RH_NOT_ENOUGH_NODES;
    }
    /* The short way compares pairs of the output, which would not do for long ones. */
    if (options->exclude_count == 0 && count <= ring->zones_in_use && count <= BATCH) {
        first_of_each_zone(ring, position.high, count, out);
    } else if (count > 0) {
        status = replicas_in_rounds(ring, position.high, count, options, out, &used);
    }
    if (status == RH_OK && zones) {
        *zones = used;
    }
    return status;
}

/* Searching a ring: owners of keys and hashes, one by one and in batches. */
#include "ring_internal.h"
#include "xxh3.h"

/* Beyond this many points in one directory entry, which uniform hashes never reach, halve. */
#define SCAN_MAX 16

/* Keys hashed before they are searched, so that the searches' cache misses overlap. */
#define BATCH 32

size_t rh_ring_search_plain(const rh_ring *ring, size_t low, size_t high, uint64_t hash)
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
        return rh_ring_search_plain(ring, low, high, hash);
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

size_t rh_ring_search(const rh_ring *ring, uint64_t hash)
{
    return search(ring, hash);
}

size_t rh_ring_search_position(const rh_ring *ring, rh_ring_position position)
{
    size_t found;

    /* An overflow means that no point lies behind, which makes the first one the owner. */
    if (ring->low == NULL) {
        return search(ring, position.high + ring->after);
    }
    found = search(ring, position.high);
    while (found < ring->point_count && ring->points[found] == position.high &&
           ring->low[found] <= position.low) {
        found++;
    }
    return found;
}

static inline rh_ring_position locate(const rh_ring *ring, const void *key, size_t key_bytes)
{
    rh_ring_position position = {0};

    if (ring->profile != RH_RING_RINGHOLD) {
        return rh_ring_hash_key(ring->profile, key, key_bytes);
    }
    position.high = XXH3_64bits(key, key_bytes);
    return position;
}

rh_status rh_ring_locate(const rh_ring *ring, const void *key, size_t key_bytes,
                         rh_ring_position *out)
{
    if (ring == NULL || out == NULL || (key == NULL && key_bytes > 0)) {
        return RH_INVALID_ARGUMENT;
    }
    *out = locate(ring, key, key_bytes);
    return RH_OK;
}

rh_status rh_ring_locate_hash(const rh_ring *ring, uint64_t hash, rh_ring_position *out)
{
    unsigned bits;

    if (ring == NULL || out == NULL) {
        return RH_INVALID_ARGUMENT;
    }
    bits = rh_ring_profile_rules(ring->profile)->hash_bits;
    if (bits > 64) {
        return RH_NOT_SUPPORTED;
    }
    if (bits == 32 && hash > UINT32_MAX) {
        return RH_INVALID_ARGUMENT;
    }
    out->high = hash << (64 - bits);
    out->low = 0;
    return RH_OK;
}

rh_status rh_ring_find_point(const rh_ring *ring, rh_ring_position position, size_t *out)
{
    size_t found;

    if (ring == NULL || out == NULL) {
        return RH_INVALID_ARGUMENT;
    }
    if (ring->point_count == 0) {
        return RH_EMPTY_RING;
    }
    found = rh_ring_search_position(ring, position);
    *out = found < ring->point_count ? found : 0;
    return RH_OK;
}

rh_status rh_ring_lookup_hash(const rh_ring *ring, uint64_t hash, uint32_t *out)
{
    rh_ring_position position = {.high = hash};

    if (ring == NULL || out == NULL) {
        return RH_INVALID_ARGUMENT;
    }
    if (ring->profile != RH_RING_RINGHOLD) {
        rh_status status = rh_ring_locate_hash(ring, hash, &position);

        if (status != RH_OK) {
            return status;
        }
    }
    if (ring->point_count == 0) {
        return RH_EMPTY_RING;
    }
    *out = ring->owners[search(ring, position.high + ring->after)];
    return RH_OK;
}

rh_status rh_ring_lookup(const rh_ring *ring, const void *key, size_t key_bytes, uint32_t *out)
{
    if (ring == NULL || out == NULL || (key == NULL && key_bytes > 0)) {
        return RH_INVALID_ARGUMENT;
    }
    if (ring->point_count == 0) {
        return RH_EMPTY_RING;
    }
    if (ring->profile == RH_RING_RINGHOLD) {
        *out = ring->owners[search(ring, XXH3_64bits(key, key_bytes))];
    } else {
        *out = ring->owners[rh_ring_search_position(ring, locate(ring, key, key_bytes))];
    }
    return RH_OK;
}

static inline void prefetch(const void *address)
{
#if defined(__GNUC__)
    __builtin_prefetch(address);
#else
    (void)address;
#endif
}

/* Up to BATCH hashes of at most 64 bits: all directory entries, then all points, then all owners. */
static void lookup_block(const rh_ring *ring, const uint64_t *hashes, size_t count, uint32_t *out)
{
    size_t low[BATCH];

    for (size_t i = 0; i < count; i++) {
        prefetch(ring->directory + (hashes[i] >> ring->shift));
    }
    for (size_t i = 0; i < count; i++) {
        low[i] = ring->directory[hashes[i] >> ring->shift];
        /* The points compared may begin in one cache line and end in the next. */
        prefetch(ring->points + low[i]);
        prefetch(ring->points + low[i] + RING_LANES - 1);
        prefetch(ring->owners + low[i]);
    }
    for (size_t i = 0; i < count; i++) {
        size_t high = ring->directory[(hashes[i] >> ring->shift) + 1];

        out[i] = ring->owners[search_between(ring, low[i], high, hashes[i])];
    }
}

/* RH_OK when every hash is one of the profile's, which for 64 bits costs nothing. */
static rh_status check_hashes(const rh_ring *ring, const uint64_t *hashes, size_t count)
{
    unsigned bits = rh_ring_profile_rules(ring->profile)->hash_bits;
    uint64_t all = 0;

    if (bits > 64) {
        return RH_NOT_SUPPORTED;
    }
    for (size_t i = 0; bits < 64 && i < count; i++) {
        all |= hashes[i];
    }
    return bits < 64 && all >> bits != 0 ? RH_INVALID_ARGUMENT : RH_OK;
}

rh_status rh_ring_lookup_hashes(const rh_ring *ring, const uint64_t *hashes, size_t count,
                                uint32_t *out)
{
    uint64_t positions[BATCH];
    unsigned shift;
    rh_status status;

    if (ring == NULL || (count > 0 && (hashes == NULL || out == NULL))) {
        return RH_INVALID_ARGUMENT;
    }
    status = check_hashes(ring, hashes, count);
    if (status != RH_OK) {
        return status;
    }
    if (count > 0 && ring->point_count == 0) {
        return RH_EMPTY_RING;
    }
    shift = 64 - rh_ring_profile_rules(ring->profile)->hash_bits;
    for (size_t done = 0; done < count; done += BATCH) {
        size_t block = count - done < BATCH ? count - done : BATCH;
        const uint64_t *from = hashes + done;

        if (ring->profile != RH_RING_RINGHOLD) {
            for (size_t i = 0; i < block; i++) {
                positions[i] = (from[i] << shift) + ring->after;
            }
            from = positions;
        }
        lookup_block(ring, from, block, out + done);
    }
    return RH_OK;
}

/* Whether each key has memory; all are looked at first, so that a refused call writes nothing. */
static bool keys_are_there(const void *const *keys, const size_t *key_bytes, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (keys[i] == NULL && key_bytes[i] > 0) {
            return false;
        }
    }
    return true;
}

/* Keys of the other profiles, whose hashes cost so much that searches need not overlap. */
static void lookup_others(const rh_ring *ring, const void *const *keys, const size_t *key_bytes,
                          size_t count, uint32_t *out)
{
    for (size_t i = 0; i < count; i++) {
        out[i] = ring->owners[rh_ring_search_position(ring, locate(ring, keys[i], key_bytes[i]))];
    }
}

rh_status rh_ring_lookup_keys(const rh_ring *ring, const void *const *keys, const size_t *key_bytes,
                              size_t count, uint32_t *out)
{
    uint64_t hashes[BATCH];

    if (ring == NULL || (count > 0 && (keys == NULL || key_bytes == NULL || out == NULL)) ||
        !keys_are_there(keys, key_bytes, count)) {
        return RH_INVALID_ARGUMENT;
    }
    if (count > 0 && ring->point_count == 0) {
        return RH_EMPTY_RING;
    }
    if (ring->profile != RH_RING_RINGHOLD) {
        lookup_others(ring, keys, key_bytes, count, out);
        return RH_OK;
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

/* The points of a ring: made, sorted, merged with those of another ring, and indexed. */
#include <stdlib.h>
#include <string.h>

#include "ring_internal.h"
#include "xxh3.h"

struct point {
    uint64_t hash;
    uint32_t owner;
};

/*
 * Least significant digit first and stable: points that are equal keep the order they came in,
 * which is that of their nodes' names.
 */
static void radix_sort(struct point *points, struct point *scratch, size_t count)
{
    enum { DIGITS = 8, VALUES = 256 };
    size_t starts[DIGITS][VALUES] = {{0}};

    for (size_t i = 0; i < count; i++) {
        for (unsigned digit = 0; digit < DIGITS; digit++) {
            starts[digit][(points[i].hash >> (8 * digit)) & 0xff]++;
        }
    }
    for (unsigned digit = 0; digit < DIGITS; digit++) {
        struct point *from = digit % 2 == 0 ? points : scratch;
        struct point *to = digit % 2 == 0 ? scratch : points;
        size_t position = 0;

        for (size_t value = 0; value < VALUES; value++) {
            size_t occurs = starts[digit][value];

            starts[digit][value] = position;
            position += occurs;
        }
        for (size_t i = 0; i < count; i++) {
            to[starts[digit][(from[i].hash >> (8 * digit)) & 0xff]++] = from[i];
        }
    }
}

/* The points of `slots`, which come in order of their names, sorted. `out` is for free(). */
static rh_status make_points(const rh_ring *ring, struct ring_slot *const *slots, size_t count,
                             struct point **out, size_t *out_count)
{
    rh_status status = RH_NO_MEMORY;
    size_t total = 0, longest = 0, made = 0;
    unsigned char *text = NULL;
    struct point *points = NULL;

    for (size_t i = 0; i < count; i++) {
        total += slots[i]->points;
        longest = slots[i]->name_bytes > longest ? slots[i]->name_bytes : longest;
        if (total > RH_RING_POINTS_MAX || longest > SIZE_MAX - 5) {
            return RH_TOO_LARGE;
        }
    }
    text = malloc(longest + 5);
    points = malloc((2 * total + 1) * sizeof *points); /* the second half is the sort's scratch */
    if (text == NULL || points == NULL) {
        goto out;
    }
    for (size_t i = 0; i < count; i++) {
        size_t end = slots[i]->name_bytes;

        memcpy(text, slots[i]->name, end);
        text[end] = '#';
        for (uint32_t k = 0; k < slots[i]->points; k++) {
            text[end + 1] = (unsigned char)k;
            text[end + 2] = (unsigned char)(k >> 8);
            text[end + 3] = (unsigned char)(k >> 16);
            text[end + 4] = (unsigned char)(k >> 24);
            points[made].hash = XXH3_64bits(text, end + 5);
            points[made++].owner = (uint32_t)(slots[i] - ring->slots);
        }
    }
    radix_sort(points, points + total, total);
    *out = points;
    *out_count = total;
    points = NULL;
    status = RH_OK;
out:
    free(points);
    free(text);
    return status;
}

/*
 * By slot of `old`, whether its points stay; NULL in `out` when all do. One byte each, so that
 * the table of even a large ring stays in the first-level cache while the points pass by.
 */
static rh_status points_kept(const rh_ring *ring, const rh_ring *old, bool **out)
{
    bool all = true;
    bool *kept;

    *out = NULL;
    for (size_t i = 0; i < old->slot_count; i++) {
        all = all && (ring->slots[i].present || old->slots[i].points == 0);
    }
    if (all) {
        return RH_OK;
    }
    *out = kept = malloc(old->slot_count * sizeof *kept);
    if (kept == NULL) {
        return RH_NO_MEMORY;
    }
    for (size_t i = 0; i < old->slot_count; i++) {
        kept[i] = ring->slots[i].present;
    }
    return RH_OK;
}

/* Appends the points of `old` in [from, to) whose slots are kept; NULL keeps all. */
static void append_kept(rh_ring *ring, const rh_ring *old, const bool *kept, size_t from, size_t to)
{
    size_t count = ring->point_count;

    if (kept == NULL) {
        memcpy(ring->points + count, old->points + from, (to - from) * sizeof *ring->points);
        memcpy(ring->owners + count, old->owners + from, (to - from) * sizeof *ring->owners);
        ring->point_count += to - from;
        return;
    }
    for (size_t i = from; i < to; i++) {
        ring->points[count] = old->points[i];
        ring->owners[count] = old->owners[i];
        count += kept[old->owners[i]];
    }
    ring->point_count = count;
}

/* Where a fresh point goes among the old ones: behind equal ones of smaller names. */
static size_t place_of(const rh_ring *ring, const rh_ring *old, size_t from, struct point fresh)
{
    size_t place = old->point_count > 0 ? ring_search(old, fresh.hash) : 0;

    place = place < from ? from : place;
    while (place < old->point_count && old->points[place] == fresh.hash &&
           ring_compare_names(&ring->slots[old->owners[place]], &ring->slots[fresh.owner]) < 0) {
        place++;
    }
    return place;
}

static rh_status build_directory(rh_ring *ring)
{
    unsigned bits = 1;
    size_t entries;
    uint32_t first;

    while (((size_t)2 << bits) < ring->point_count) {
        bits++;
    }
    entries = (size_t)1 << bits;
    ring->shift = 64 - bits;
    ring->directory = malloc((entries + 1) * sizeof *ring->directory);
    if (ring->directory == NULL) {
        return RH_NO_MEMORY;
    }
    /* No entry is written by a branch: whether one is empty cannot be predicted. */
    memset(ring->directory, 0xff, (entries + 1) * sizeof *ring->directory);
    for (size_t i = ring->point_count; i-- > 0;) {
        ring->directory[ring->points[i] >> ring->shift] = (uint32_t)i;
    }
    first = (uint32_t)ring->point_count;
    for (size_t entry = entries + 1; entry-- > 0;) {
        first = ring->directory[entry] == UINT32_MAX ? first : ring->directory[entry];
        ring->directory[entry] = first;
    }
    return RH_OK;
}

/* The points of `old` (NULL: none) less those of absent nodes, merged with the fresh ones. */
static rh_status merge_points(rh_ring *ring, const rh_ring *old, const struct point *fresh,
                              size_t fresh_count)
{
    size_t old_count = old ? old->point_count : 0;
    size_t room = old_count + fresh_count + RING_LANES;
    size_t from = 0;
    bool *kept = NULL;

    ring->points = malloc(room * sizeof *ring->points);
    ring->owners = malloc(room * sizeof *ring->owners);
    if (ring->points == NULL || ring->owners == NULL ||
        (old && points_kept(ring, old, &kept) != RH_OK)) {
        return RH_NO_MEMORY;
    }
    for (size_t i = 0; i < fresh_count; i++) {
        if (old) {
            size_t place = place_of(ring, old, from, fresh[i]);

            append_kept(ring, old, kept, from, place);
            from = place;
        }
        ring->points[ring->point_count] = fresh[i].hash;
        ring->owners[ring->point_count++] = fresh[i].owner;
    }
    if (old) {
        append_kept(ring, old, kept, from, old_count);
    }
    free(kept);
    if (ring->point_count > RH_RING_POINTS_MAX) {
        return RH_TOO_LARGE;
    }
    for (size_t i = 0; i < RING_LANES; i++) {
        ring->points[ring->point_count + i] = UINT64_MAX;
        ring->owners[ring->point_count + i] = ring->point_count > 0 ? ring->owners[0] : 0;
    }
    return build_directory(ring);
}

rh_status ring_place_points(rh_ring *ring, const rh_ring *old, struct ring_slot *const *fresh,
                            size_t fresh_count)
{
    struct point *points = NULL;
    size_t count = 0;
    rh_status status = make_points(ring, fresh, fresh_count, &points, &count);

    if (status == RH_OK) {
        status = merge_points(ring, old, points, count);
    }
    free(points);
    return status;
}

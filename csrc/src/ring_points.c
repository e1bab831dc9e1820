/* The points of a ring: made, sorted, merged with those of another ring, and indexed. */
#include <stdlib.h>
#include <string.h>

#include "ring_internal.h"

/*
 * Least significant digit first and stable: points that are equal keep the order they came in,
 * which is that of ties. Returns which of the two arrays ended up sorted; digits that all points
 * share, as the lower half of points of 32 bits, cost nothing.
 */
static struct ring_point *radix_sort(struct ring_point *points, struct ring_point *scratch,
                                     size_t count)
{
    enum { DIGITS = 8, VALUES = 256 };
    size_t starts[DIGITS][VALUES] = {{0}};

    for (size_t i = 0; i < count; i++) {
        for (unsigned digit = 0; digit < DIGITS; digit++) {
            starts[digit][(points[i].high >> (8 * digit)) & 0xff]++;
        }
    }
    for (unsigned digit = 0; count > 0 && digit < DIGITS; digit++) {
        struct ring_point *sorted = scratch;
        size_t position = 0;

        if (starts[digit][(points[0].high >> (8 * digit)) & 0xff] == count) {
            continue;
        }
        for (size_t value = 0; value < VALUES; value++) {
            size_t occurs = starts[digit][value];

            starts[digit][value] = position;
            position += occurs;
        }
        for (size_t i = 0; i < count; i++) {
            sorted[starts[digit][(points[i].high >> (8 * digit)) & 0xff]++] = points[i];
        }
        scratch = points;
        points = sorted;
    }
    return points;
}

/* Puts points of equal upper halves, which chance hardly ever makes, in order of the lower. */
static void sort_by_low(struct ring_point *points, size_t count, const uint64_t *low)
{
    for (size_t i = 1; i < count; i++) {
        struct ring_point moved = points[i];
        size_t to = i;

        while (to > 0 && points[to - 1].high == moved.high &&
               low[points[to - 1].made] > low[moved.made]) {
            points[to] = points[to - 1];
            to--;
        }
        points[to] = moved;
    }
}

struct ring_point *rh_ring_sort_points(struct ring_point *points, struct ring_point *scratch,
                                       size_t count, const uint64_t *low)
{
    struct ring_point *sorted = radix_sort(points, scratch, count);

    if (low) {
        sort_by_low(sorted, count, low);
    }
    return sorted;
}

/* Points to be merged into a ring: sorted, in `memory` with the scratch of the sort. */
struct fresh {
    struct ring_point *memory;
    struct ring_point *points;
    uint64_t *low; /* by ring_point.made; NULL unless points have 128 bits */
    size_t count;
};

static bool is_kept(const rh_ring *ring, const rh_ring *old, size_t slot)
{
    return old && slot < old->slot_count && ring->slots[slot].points == old->slots[slot].points;
}

/* The slot that comes `i`-th when points are equal. */
static uint32_t tie_order(const rh_ring *ring, size_t i)
{
    return rh_ring_profile_rules(ring->profile)->by_number ? (uint32_t)i : ring->by_name[i];
}

/* The points of the slots that do not keep those in `old`. */
static rh_status make_points(const rh_ring *ring, const rh_ring *old, struct fresh *fresh)
{
    bool has_low = rh_ring_profile_rules(ring->profile)->hash_bits > 64;
    size_t all = 0, total = 0, longest = 0, made = 0;
    rh_status status = RH_NO_MEMORY;
    char *text;

    for (size_t i = 0; i < ring->slot_count; i++) {
        const struct ring_slot *slot = &ring->slots[i];

        all += slot->points;
        if (!is_kept(ring, old, i)) {
            total += slot->points;
            longest = slot->name_bytes > longest ? slot->name_bytes : longest;
        }
        if (all > RH_RING_POINTS_MAX || longest > SIZE_MAX - RING_TEXT_EXTRA) {
            return RH_TOO_LARGE;
        }
    }
    text = malloc(longest + RING_TEXT_EXTRA);
    fresh->memory = malloc((2 * total + 1) * sizeof *fresh->memory);
    fresh->low = has_low ? malloc((total + 1) * sizeof *fresh->low) : NULL;
    if (text == NULL || fresh->memory == NULL || (has_low && fresh->low == NULL)) {
        goto out;
    }
    for (size_t i = 0; i < ring->slot_count; i++) {
        uint32_t number = tie_order(ring, i);
        const struct ring_slot *slot = &ring->slots[number];

        if (is_kept(ring, old, number)) {
            continue;
        }
        rh_ring_form_points(ring->profile, slot, text, fresh->memory + made,
                            has_low ? fresh->low + made : NULL);
        for (size_t end = made + slot->points; made < end; made++) {
            fresh->memory[made].owner = number;
            fresh->memory[made].made = (uint32_t)made;
        }
    }
    fresh->points = rh_ring_sort_points(fresh->memory, fresh->memory + total, total, fresh->low);
    fresh->count = total;
    status = RH_OK;
out:
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
        all = all && is_kept(ring, old, i);
    }
    if (all) {
        return RH_OK;
    }
    *out = kept = malloc(old->slot_count * sizeof *kept);
    if (kept == NULL) {
        return RH_NO_MEMORY;
    }
    for (size_t i = 0; i < old->slot_count; i++) {
        kept[i] = is_kept(ring, old, i);
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
        if (ring->low) {
            memcpy(ring->low + count, old->low + from, (to - from) * sizeof *ring->low);
        }
        ring->point_count += to - from;
        return;
    }
    for (size_t i = from; ring->low && i < to; i++) {
        ring->low[count] = old->low[i];
        count += kept[old->owners[i]];
    }
    count = ring->point_count;
    for (size_t i = from; i < to; i++) {
        ring->points[count] = old->points[i];
        ring->owners[count] = old->owners[i];
        count += kept[old->owners[i]];
    }
    ring->point_count = count;
}

/* Whether a point of `old` comes before a fresh one with the same upper half. */
static bool comes_before(const rh_ring *ring, const rh_ring *old, size_t place,
                         const struct ring_point *point, const uint64_t *low)
{
    uint32_t owner = old->owners[place];

    if (low && old->low[place] != low[point->made]) {
        return old->low[place] < low[point->made];
    }
    if (rh_ring_profile_rules(ring->profile)->by_number) {
        return owner < point->owner;
    }
    return rh_ring_compare_names(&ring->slots[owner], &ring->slots[point->owner]) < 0;
}

/* Where a fresh point goes among the old ones: behind equal ones that come before it. */
static size_t place_of(const rh_ring *ring, const rh_ring *old, size_t from,
                       const struct ring_point *point, const uint64_t *low)
{
    size_t place = old->point_count > 0 ? rh_ring_search(old, point->high) : 0;

    place = place < from ? from : place;
    while (place < old->point_count && old->points[place] == point->high &&
           comes_before(ring, old, place, point, low)) {
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

/* The points of `old` (NULL: none) that are kept, merged with the fresh ones. */
static rh_status merge_points(rh_ring *ring, const rh_ring *old, const struct fresh *fresh)
{
    size_t old_count = old ? old->point_count : 0;
    size_t room = old_count + fresh->count + RING_LANES;
    size_t from = 0;
    bool *kept = NULL;

    ring->points = malloc(room * sizeof *ring->points);
    ring->owners = malloc(room * sizeof *ring->owners);
    ring->low = fresh->low ? malloc(room * sizeof *ring->low) : NULL;
    if (ring->points == NULL || ring->owners == NULL || (fresh->low && ring->low == NULL) ||
        (old && points_kept(ring, old, &kept) != RH_OK)) {
        return RH_NO_MEMORY;
    }
    for (size_t i = 0; i < fresh->count; i++) {
        const struct ring_point *point = &fresh->points[i];

        if (old) {
            size_t place = place_of(ring, old, from, point, fresh->low);

            append_kept(ring, old, kept, from, place);
            from = place;
        }
        if (ring->low) {
            ring->low[ring->point_count] = fresh->low[point->made];
        }
        ring->points[ring->point_count] = point->high;
        ring->owners[ring->point_count++] = point->owner;
    }
    if (old) {
        append_kept(ring, old, kept, from, old_count);
    }
    free(kept);
    for (size_t i = 0; i < RING_LANES; i++) {
        ring->points[ring->point_count + i] = UINT64_MAX;
        ring->owners[ring->point_count + i] = ring->point_count > 0 ? ring->owners[0] : 0;
    }
    return build_directory(ring);
}

rh_status rh_ring_place_points(rh_ring *ring, const rh_ring *old)
{
    struct fresh fresh = {0};
    rh_status status = make_points(ring, old, &fresh);

    if (status == RH_OK) {
        status = merge_points(ring, old, &fresh);
    }
    free(fresh.low);
    free(fresh.memory);
    return status;
}

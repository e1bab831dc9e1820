/*
 * The inside of a ring, shared by the file that builds rings and the one that searches them.
 */
#ifndef RINGHOLD_SRC_RING_INTERNAL_H
#define RINGHOLD_SRC_RING_INTERNAL_H

#include <ringhold/ring.h>

/* Points compared at once; the arrays are padded by as many so that no compare leaves them. */
#define RING_LANES 8

struct ring_slot {
    const char *name; /* in the ring's text, as is the zone */
    const char *zone; /* NULL: none */
    size_t name_bytes;
    size_t zone_bytes;
    double weight;
    uint32_t points;
    uint32_t zone_id; /* below zone_count; a slot without a zone has one to itself */
    bool present;
};

/*
 * points[0 … count) ascend and owners[] tell their slots; of equal points the smaller name comes
 * first. Behind them points[] is padded with UINT64_MAX and owners[] with owners[0], so that a
 * search past the last point wraps without a branch.
 *
 * directory[i] is the position of the first point whose top bits are >= i: a search starts there
 * and, hashes being uniform, ends a compare or two later.
 */
struct rh_ring {
    struct ring_slot *slots;
    uint32_t *by_name; /* every slot, removed ones too, in order of the names' bytes */
    char *text;
    size_t slot_count;
    size_t text_bytes;

    uint64_t *points;
    uint32_t *owners;
    size_t point_count;
    uint32_t *directory;
    unsigned shift;

    uint32_t *zone_usable; /* usable slots of each zone */
    size_t zone_count;
    size_t zones_in_use; /* zones with a usable slot */
    size_t nodes;
    size_t usable;
    uint32_t vnodes;
};

int ring_compare_names(const struct ring_slot *a, const struct ring_slot *b);

/*
 * Fills in points, owners and directory: the points of `old` (NULL: none) whose nodes are still
 * present in `ring`, merged with those of the `fresh` slots, which come in order of their names
 * and have no points in `old`.
 */
rh_status ring_place_points(rh_ring *ring, const rh_ring *old, struct ring_slot *const *fresh,
                            size_t fresh_count);

/*
 * Position of the first point >= hash in [low, high), high when there is none. The plain binary
 * search: what the directory is held against, and what serves where points crowd.
 */
size_t ring_search_plain(const rh_ring *ring, size_t low, size_t high, uint64_t hash);

/* The same over all points by way of the directory. */
size_t ring_search(const rh_ring *ring, uint64_t hash);

#endif

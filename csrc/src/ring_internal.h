/*
 * The inside of a ring, shared by the files that build rings, search them and write them down.
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
 * points[0 … count) ascend and owners[] tell their slots; equal points stand in the profile's
 * order of ties. Behind them points[] is padded with UINT64_MAX and owners[] with owners[0], so
 * that a search past the last point wraps without a branch.
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
    uint64_t *low; /* the lower halves of points of 128 bits, otherwise NULL */
    uint32_t *owners;
    size_t point_count;
    uint32_t *directory;
    unsigned shift;
    rh_ring_profile profile;
    uint64_t after; /* 1 where a hash equal to a point is owned by the next one, otherwise 0 */

    uint32_t *zone_usable; /* usable slots of each zone */
    size_t zone_count;
    size_t zones_in_use; /* zones with a usable slot */
    size_t nodes;
    size_t usable;
    uint32_t vnodes;
};

int rh_ring_compare_names(const struct ring_slot *a, const struct ring_slot *b);

/* Whether the slot of that name exists, present or removed, and its number. */
bool rh_ring_find_slot(const rh_ring *ring, const void *name, size_t name_bytes, uint32_t *out);

/*
 * Fills in points, owners and directory. Slots that `old` (NULL: none) knows with as many points
 * keep the ones they have there; the points of all others are made and merged with them.
 */
rh_status rh_ring_place_points(rh_ring *ring, const rh_ring *old);

/* What sets one profile apart from another, besides its strings and its counts. */
struct ring_profile {
    unsigned hash_bits;
    bool after;      /* the owner of a hash is the first point > it, not the first >= it */
    bool by_number;  /* equal points are owned by the lower number, not by the smaller name */
    bool shared;     /* the points of a node depend on the weights of all */
    bool any_vnodes; /* RH_RING_VNODES_DEFAULT alone otherwise */
};

/* NULL: there is no such profile. */
const struct ring_profile *rh_ring_profile_rules(rh_ring_profile profile);

/*
 * Sets the number of points of every slot. RH_INVALID_ARGUMENT for a weight that the profile
 * has no notion of, RH_TOO_LARGE.
 */
rh_status rh_ring_count_points(rh_ring *ring);

struct ring_point {
    uint64_t high;
    uint32_t owner;
    uint32_t made; /* where its lower half is, in order of making */
};

/*
 * Sorts by position; points that are equal keep the order they came in, which is that of ties.
 * `low` is NULL unless they have 128 bits. Returns which of the two arrays ended up sorted.
 */
struct ring_point *rh_ring_sort_points(struct ring_point *points, struct ring_point *scratch,
                                       size_t count, const uint64_t *low);

/* What rh_ring_form_points() needs of `text` besides the name: '/', ':', a port, '-', an index. */
#define RING_TEXT_EXTRA 32

/* Forms the points of a slot; `low` is NULL unless they have 128 bits. `text` is scratch. */
void rh_ring_form_points(rh_ring_profile profile, const struct ring_slot *slot, char *text,
                         struct ring_point *points, uint64_t *low);

/* Where a key lies, for every profile but the first, whose hash is inlined where it is used. */
rh_ring_position rh_ring_hash_key(rh_ring_profile profile, const void *key, size_t key_bytes);

/*
 * Position of the first point >= hash in [low, high), high when there is none. The plain binary
 * search: what the directory is held against, and what serves where points crowd.
 */
size_t rh_ring_search_plain(const rh_ring *ring, size_t low, size_t high, uint64_t hash);

/* The same over all points by way of the directory. */
size_t rh_ring_search(const rh_ring *ring, uint64_t hash);

/* The point that owns a position, for every profile; the count of points stands for the first. */
size_t rh_ring_search_position(const rh_ring *ring, rh_ring_position position);

#endif

/*
 * The inside of a layout, shared by the files that make, move, write and read layouts.
 */
#ifndef RINGHOLD_SRC_LAYOUT_INTERNAL_H
#define RINGHOLD_SRC_LAYOUT_INTERNAL_H

#include <ringhold/layout.h>

#define LAYOUT_NONE UINT32_MAX

struct layout_node {
    const char *name; /* in the layout's text, as is the zone */
    const char *zone; /* NULL: none */
    size_t name_bytes;
    size_t zone_bytes;
    double weight;
    uint32_t zone_id; /* below zone_count; a node without a zone has one to itself */
    uint32_t copies;
};

/* table[partition * replicas + i] is the node of copy i. */
struct rh_layout {
    struct layout_node *nodes; /* in order of their names */
    size_t node_count;
    char *text;
    uint16_t *table;
    uint32_t partitions;
    uint32_t replicas;
    unsigned shift;
    uint64_t epoch;
    size_t usable;
    size_t zone_count;   /* those of drained nodes too */
    size_t zones_in_use; /* those with a usable node */
    bool zoned;
};

/*
 * What every table of a layout's nodes keeps to. By zone: how often at least and at most a
 * partition lies in it (high is low or low + 1; a partition goes to `extras` zones beyond low).
 * By node: its share rounded down and up, and the rest in units of 1e-9.
 */
struct layout_limits {
    uint32_t *low;
    uint32_t *high;
    uint32_t *floor;
    uint32_t *ceil;
    uint32_t *remainder;
    uint32_t extras;
};

/* Spreads what would else go in order. Every bit of the result depends on every bit of x. */
static inline uint64_t layout_mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* hash scaled to 0 ... count - 1 by its upper half; count < 2^32. */
static inline size_t layout_pick(uint64_t hash, size_t count)
{
    return (size_t)(((hash >> 32) * (uint64_t)count) >> 32);
}

/*
 * A layout of these nodes with an empty table, everything else checked and filled in. Replicas
 * and partitions are at least 1 and not the defaults' 0.
 */
rh_status rh_layout_make(const rh_node *nodes, size_t count, uint32_t replicas, uint32_t partitions,
                         rh_layout **out);

/* The zone of that name, LAYOUT_NONE when no node is in it. `zone` is not NULL. */
uint32_t rh_layout_find_zone(const rh_layout *layout, const char *zone, size_t zone_bytes,
                             const uint32_t *zone_nodes);

/* By zone, one node of it. `out` has room for zone_count numbers. */
void rh_layout_zone_nodes(const rh_layout *layout, uint32_t *out);

/* Counts the copies of every node from the table. */
void rh_layout_count(rh_layout *layout);

/* Allocates what `limits` points to; rh_layout_limits_free() is fine after a failure too. */
rh_status rh_layout_limits_make(const rh_layout *layout, struct layout_limits *limits);
void rh_layout_limits_free(struct layout_limits *limits);

/* Makes floor and ceil the same: shares rounded by largest remainder, zones kept to. */
rh_status rh_layout_limits_round(const rh_layout *layout, struct layout_limits *limits);

/* Whether the table keeps to the limits and names no node twice in a partition. */
rh_status rh_layout_check(const rh_layout *layout, const struct layout_limits *limits, bool *out);

/* Fills the table from nothing; the limits are rounded. */
rh_status rh_layout_deal(rh_layout *layout, const struct layout_limits *limits);

/*
 * Of all tables that keep to the limits, one with the most pairs of partition and node in common
 * with `old`, which numbers nodes as `layout` does and says LAYOUT_NONE for those not in it.
 * Writes it to `rows` in no particular order within a partition. Both have room for all copies.
 */
rh_status rh_layout_solve(const rh_layout *layout, const struct layout_limits *limits,
                          const uint32_t *old, uint32_t *rows);

#endif

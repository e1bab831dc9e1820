/*
 * Nodes grouped by a key and within it by zone, from which nodes are taken out one by one. What
 * is reached in a search is never looked at again, so that a partition whose neighbours are
 * nearly all nodes costs no more than the few that are new.
 */
#ifndef RINGHOLD_SRC_LAYOUT_POOL_H
#define RINGHOLD_SRC_LAYOUT_POOL_H

#include <ringhold/status.h>

#include "layout_internal.h"

struct pool_entry {
    uint64_t key;
    uint32_t zone;
    uint32_t node;
};

struct pool_segment {
    uint32_t zone;
    uint32_t start;
    uint32_t count;
    uint32_t group;
    uint32_t place; /* in `live` */
};

struct pool_group {
    uint64_t key;
    uint32_t start; /* in `nodes`, */
    uint32_t size;  /* those taken out included */
    uint32_t first; /* its segments, ascending by zone, and as many places in `live` */
    uint32_t segments;
    uint32_t live;
};

struct pool {
    struct pool_entry *entries; /* filled in by the caller */
    uint32_t *nodes;
    uint32_t *place;      /* by node: where in `nodes`; LAYOUT_NONE: not in the pool */
    uint32_t *segment_of; /* by node */
    struct pool_segment *segments;
    struct pool_group *groups;
    uint32_t *live; /* by group: its segments that are not empty */
    size_t group_count;
};

rh_status rh_pool_allocate(struct pool *pool, size_t nodes);
void rh_pool_free(struct pool *pool);

/* Takes in the first `count` entries and nothing else; `nodes` is the number of all nodes. */
void rh_pool_fill(struct pool *pool, size_t count, size_t nodes);

/* NULL when there was none. */
const struct pool_group *rh_pool_group(const struct pool *pool, uint64_t key);
const struct pool_segment *rh_pool_segment(const struct pool *pool, const struct pool_group *group,
                                           uint32_t zone);

/* Takes a node out; the last of its segment comes to its place, and so with empty segments. */
void rh_pool_remove(struct pool *pool, uint32_t node);

static inline bool pool_has(const struct pool *pool, uint32_t node)
{
    return pool->place[node] != LAYOUT_NONE;
}

#endif

/*
 * The layout: an explicit table that says which nodes hold each partition of the keys.
 *
 *   partition of a key   XXH3_64(key) >> (64 - log2(partitions))
 *   copies of it         `replicas` distinct nodes, the first of them the primary
 *
 * Zones: the copies of a partition are dealt to zones in rounds, as rh_ring_replicas does. No
 * zone gets a second one before every zone has one, and so on; a zone whose usable nodes are all
 * in use is passed over. A node without a zone is a zone of its own.
 *
 * Shares: a node's share of the partitions * replicas copies is in proportion to its weight,
 * except that no node can hold a partition twice and no zone more or less than the rounds give
 * it. What such a bound takes from one node goes to all others by weight ("water-filling"). A
 * node holds its share rounded down or up, so every one is within one copy of it.
 *
 * A NULL where a pointer is needed is RH_INVALID_ARGUMENT.
 *
 * A layout is immutable: rh_layout_rebalance makes the next one beside it. Any number of threads
 * may use one layout at once.
 *
 * Nodes are numbered from 0 in the order of their names' bytes, so that the same nodes make the
 * same layout in whatever order they were given.
 */
#ifndef RINGHOLD_LAYOUT_H
#define RINGHOLD_LAYOUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <ringhold/export.h>
#include <ringhold/node.h>
#include <ringhold/status.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct rh_layout rh_layout;

#define RH_LAYOUT_REPLICAS_DEFAULT 3
#define RH_LAYOUT_PARTITIONS_DEFAULT 4096
#define RH_LAYOUT_PARTITIONS_MIN ((uint32_t)1 << 4)
#define RH_LAYOUT_PARTITIONS_MAX ((uint32_t)1 << 20)
#define RH_LAYOUT_NODES_MAX ((size_t)65535)
#define RH_LAYOUT_COPIES_MAX ((size_t)1 << 28) /* partitions * replicas */

typedef struct rh_layout_options {
    uint32_t replicas;   /* 0: RH_LAYOUT_REPLICAS_DEFAULT */
    uint32_t partitions; /* a power of two; 0: RH_LAYOUT_PARTITIONS_DEFAULT */
} rh_layout_options;

typedef struct rh_layout_info {
    uint64_t epoch; /* 1 for a first layout; every rebalance adds one */
    uint32_t partitions;
    uint32_t replicas;
    size_t nodes;
    size_t usable; /* nodes of weight above 0 */
    size_t zones;  /* zones with a usable node, each node without a zone counted as one */
    bool zoned;    /* whether any usable node has a zone */
} rh_layout_info;

typedef struct rh_layout_member {
    rh_node node; /* borrowed from the layout */
    uint32_t copies;
} rh_layout_member;

/* Partition `partition` leaves node `source` of the old layout for node `target` of the new. */
typedef struct rh_layout_move {
    uint32_t partition;
    uint32_t source;
    uint32_t target;
} rh_layout_move;

/*
 * `moves` are sorted by partition. `lower_bound` is what any layout of the same nodes would have
 * to move if zones and distinctness were no matter: the least sum of max(0, have - quota) over
 * the ways to round the shares. The plan itself is minimal whether it reaches that or not.
 */
typedef struct rh_layout_plan {
    rh_layout *layout;     /* for rh_layout_free */
    rh_layout_move *moves; /* for rh_free; never NULL */
    size_t moved;
    size_t lower_bound;
} rh_layout_plan;

/*
 * The first layout of `count` nodes, shares rounded by largest remainder (of equal ones the
 * smaller name). Which nodes meet in a partition is spread evenly, so that many take part in
 * replacing one that fails.
 *
 * RH_INVALID_ARGUMENT: a weight, or partitions that are no power of two in the bounds above.
 * RH_NOT_ENOUGH_NODES: fewer usable nodes than replicas. RH_DUPLICATE_NODE, RH_TOO_LARGE,
 * RH_NO_MEMORY.
 */
RH_API RH_NODISCARD rh_status rh_layout_new(const rh_node *nodes, size_t count,
                                            const rh_layout_options *options, rh_layout **out);

RH_API void rh_layout_free(rh_layout *layout);

/*
 * The layout of other nodes that moves the fewest copies from `layout`, replicas and partitions
 * staying the same: nodes that are not among `nodes` leave, those of weight 0 are emptied,
 * weights and zones may change. Kept copies keep their place within the partition, and a new one
 * takes the place of the one it replaces.
 *
 * Exact for every size, by a minimum-cost flow. Memory is in proportion to partitions * replicas +
 * nodes, the time of one search to partitions * replicas^2 + nodes. Errors as rh_layout_new.
 *
 * Sources: the primal-dual algorithm for minimum-cost flow (Ahuja, Magnanti, Orlin, "Network
 * Flows", 1993, chapter 9); the network follows Garage's report on its optimal layout, with zones
 * dealt in rounds and shares bounded from both sides.
 */
RH_API RH_NODISCARD rh_status rh_layout_rebalance(const rh_layout *layout, const rh_node *nodes,
                                                  size_t count, rh_layout_plan *out);

RH_API rh_status rh_layout_get_info(const rh_layout *layout, rh_layout_info *out);

/* The node numbered `index`; RH_UNKNOWN_NODE beyond the last. */
RH_API RH_NODISCARD rh_status rh_layout_get_member(const rh_layout *layout, size_t index,
                                                   rh_layout_member *out);

/* The number of the node of that name; RH_UNKNOWN_NODE. */
RH_API RH_NODISCARD rh_status rh_layout_find(const rh_layout *layout, const void *name,
                                             size_t name_bytes, uint32_t *out);

/* The partition of a key. */
RH_API RH_NODISCARD rh_status rh_layout_partition(const rh_layout *layout, const void *key,
                                                  size_t key_bytes, uint32_t *out);

/*
 * The nodes of a partition, the primary first; `out` has room for as many numbers as there are
 * replicas. RH_INVALID_ARGUMENT for a partition that there is not.
 */
RH_API RH_NODISCARD rh_status rh_layout_nodes(const rh_layout *layout, uint32_t partition,
                                              uint32_t *out);

/* The nodes of the partition of a key. */
RH_API RH_NODISCARD rh_status rh_layout_lookup(const rh_layout *layout, const void *key,
                                               size_t key_bytes, uint32_t *out);

#define RH_LAYOUT_DIGEST_BYTES 16

/*
 * Equal if and only if every partition lies on nodes of the same names in the same order. Covers
 * neither the epoch nor weights and zones.
 */
RH_API RH_NODISCARD rh_status rh_layout_digest(const rh_layout *layout,
                                               uint8_t out[RH_LAYOUT_DIGEST_BYTES]);

/* The layout as canonical bytes; `data` is allocated by the function and given to rh_free. */
RH_API RH_NODISCARD rh_status rh_layout_dumps(const rh_layout *layout, void **data, size_t *size);

/*
 * The layout in bytes written by rh_layout_dumps. RH_CORRUPT for any others, among them a table
 * that breaks the rules of shares or zones.
 */
RH_API RH_NODISCARD rh_status rh_layout_loads(const void *data, size_t size, rh_layout **out);

#ifdef __cplusplus
}
#endif

#endif

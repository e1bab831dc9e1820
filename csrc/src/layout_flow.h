/*
 * The network that a rebalance is a minimum-cost flow of.
 *
 *   source → partition p          as many as go to zones beyond their lower bound
 *   source → p's zone z           low(z)
 *   p → p's zone z                high(z) - low(z)
 *   p's zone z → node of z        1; costs 0 when p lay there before, 1 when it did not
 *   node → sink                   first its share rounded down, then rounded up
 *
 * Successive shortest paths from a flow that is cheapest for its value keep it so. The copies
 * kept at first cost nothing, hence are cheapest. Once every node has its share rounded down,
 * those arcs to the sink are taken out of the network as they are, and arcs for the rest of the
 * share rounded up put in, empty: no residual arc leaves the sink then, so none of the cycles
 * that would show a cheaper flow goes through it, and there were none before. And no shortest
 * path leaves the sink, so a node never falls below its share rounded down again.
 *
 * Which path is shortest is told by prices, distances from the source. Only those of nodes are
 * kept; those of a partition and of its zones follow from the nodes it lies on. A residual arc
 * is tight when the prices of its ends differ by its cost. If tight arcs lead to the sink, all
 * paths along them are shortest; those with fewest nodes are used up before the next search.
 * If not, the price of everything that was not reached rises by one.
 */
#ifndef RINGHOLD_SRC_LAYOUT_FLOW_H
#define RINGHOLD_SRC_LAYOUT_FLOW_H

#include "layout_pool.h"

/* An entry of a row: the node, and whether the partition did not lie there before. */
#define FLOW_FRESH ((uint32_t)1 << 31)
#define FLOW_NODE(entry) ((entry) & ~FLOW_FRESH)

#define FLOW_FAR (INT32_MAX / 2)

/* What one partition looks like from a zone's side; valid while `serial` is the flow's. */
struct flow_zone {
    uint64_t serial;
    uint32_t count;
    int32_t nearest; /* the price at which it is reached from its own nodes */
};

/* One step of a path: partition `partition` gives up `from` (LAYOUT_NONE: has room) for `to`. */
struct flow_step {
    uint32_t partition;
    uint32_t from;
    uint32_t to;
    bool through_hub;
};

struct flow {
    const rh_layout *layout;
    const struct layout_limits *limits;
    const uint32_t *old;
    uint32_t *rows;   /* by partition `filled` entries, then room */
    uint32_t *filled; /* by partition */
    uint32_t *open;   /* partitions with room */
    size_t open_count;
    uint32_t *deep; /* zones whose lower bound is not 0 */
    size_t deep_count;

    uint32_t *load; /* by node */
    const uint32_t *limit;
    uint64_t placed;
    int32_t *price; /* by node */
    int32_t sink_price;

    uint32_t *level; /* by node: how many nodes the shortest path to it has; 0: not reached */
    uint32_t found;  /* the level at which the sink was reached; 0: it was not */
    uint32_t *queue;
    size_t queued;
    uint32_t *hub_seen; /* by partition: the number of the search that came through */
    uint32_t searches;

    uint32_t *held; /* the partitions on each node, */
    size_t *first;  /* which start here, one more than there are nodes, */
    size_t *cursor; /* and are used up to here */

    struct flow_zone *zones; /* by zone */
    uint64_t serial;
    uint32_t used; /* zones beyond their lower bound, in the partition last looked at */
    int32_t hub;   /* and its own price */

    uint64_t salt;
    struct pool pool;
    uint32_t room_max; /* the most that a node at the end of a path has room for */
    struct flow_step *path;
};

static inline uint32_t *flow_row(const struct flow *flow, uint32_t partition)
{
    return flow->rows + (size_t)partition * flow->layout->replicas;
}

static inline uint32_t flow_zone_of(const struct flow *flow, uint32_t node)
{
    return flow->layout->nodes[node].zone_id;
}

/*
 * The partitions in an order of its own for every epoch, a permutation of the numbers' bits:
 * those that come first change most, and must not be the same ones every time.
 */
static inline uint32_t flow_nth(const struct flow *flow, uint32_t index)
{
    uint32_t mask = flow->layout->partitions - 1;
    uint32_t number = (index ^ (uint32_t)flow->salt) * 0x9e3779b1u & mask;

    number ^= number >> (64 - flow->layout->shift + 1) / 2;
    return (number * 0x85ebca6bu ^ (uint32_t)(flow->salt >> 32)) & mask;
}

/* Computes the prices of a partition and of its zones. */
void rh_flow_look(struct flow *flow, uint32_t partition);

/* Copies of the partition last looked at in a zone, and the price of that. */
uint32_t rh_flow_zone_count(const struct flow *flow, uint32_t zone);
int32_t rh_flow_zone_price(const struct flow *flow, uint32_t zone);

/* Whether a tight arc leads from the partition last looked at into a zone. */
bool rh_flow_is_open(const struct flow *flow, uint32_t zone);

bool rh_flow_holds(const struct flow *flow, uint32_t partition, uint32_t node);
bool rh_flow_held_before(const struct flow *flow, uint32_t partition, uint32_t node);

/* Levels of everything that tight arcs reach; whether the sink is among it. */
bool rh_flow_search(struct flow *flow);

/* Uses up the paths that the search found. */
void rh_flow_augment(struct flow *flow);

#endif

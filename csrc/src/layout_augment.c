/* Using up the shortest paths that a search found, in depth. */
#include <string.h>

#include "layout_flow.h"

/*
 * Arcs within a partition have room for one, so no path may use one twice. Those of nodes it
 * cannot, since it goes from level to level; those into and out of the partition itself it does
 * not when it comes there once.
 */
static bool is_hub_on_path(const struct flow *flow, uint32_t partition, size_t depth)
{
    for (size_t i = 0; i < depth; i++) {
        if (flow->path[i].partition == partition && flow->path[i].through_hub) {
            return true;
        }
    }
    return false;
}

/* Nodes are in the pool by their level and price; those that lead nowhere have left it. */
static uint64_t pool_key(size_t level, int32_t price)
{
    return (uint64_t)level << 32 | (uint32_t)price;
}

/* Draws before the pool is gone through in order. */
enum { DRAWS = 32 };

/*
 * Draws a node that the partition could get anew from a stretch of the pool, those at the end of
 * a path by their room: were all drawn alike, those with much room would be left to each other
 * at last, and meet in far too many partitions. LAYOUT_NONE when luck gave none.
 */
static uint32_t draw(const struct flow *flow, uint32_t partition, size_t start, size_t size,
                     bool from_hub, uint64_t hash)
{
    for (unsigned i = 0; i < DRAWS && size > 0; i++) {
        size_t place = start + layout_pick(hash = layout_mix(hash), size);
        uint32_t node = flow->pool.nodes[place];

        if (flow->pool.place[node] == place &&
            (flow->level[node] < flow->found ||
             layout_pick(hash << 32, flow->room_max) < flow->limit[node] - flow->load[node]) &&
            (!from_hub || rh_flow_is_open(flow, flow_zone_of(flow, node))) &&
            !rh_flow_holds(flow, partition, node) && !rh_flow_held_before(flow, partition, node)) {
            return node;
        }
    }
    return LAYOUT_NONE;
}

/* The first node of a zone that the partition could get anew. */
static uint32_t first_in_segment(const struct flow *flow, uint32_t partition,
                                 const struct pool_segment *segment)
{
    for (uint32_t i = 0; i < segment->count; i++) {
        uint32_t node = flow->pool.nodes[segment->start + i];

        if (!rh_flow_holds(flow, partition, node) && !rh_flow_held_before(flow, partition, node)) {
            return node;
        }
    }
    return LAYOUT_NONE;
}

static uint32_t pick_from_zone(const struct flow *flow, uint32_t partition, uint32_t zone,
                               size_t level, uint64_t hash)
{
    const uint32_t *old = flow->old + (size_t)partition * flow->layout->replicas;
    int32_t price = rh_flow_zone_price(flow, zone);
    const struct pool_group *group = rh_pool_group(&flow->pool, pool_key(level, price + 1));
    const struct pool_segment *segment = group ? rh_pool_segment(&flow->pool, group, zone) : NULL;

    for (uint32_t i = 0; i < flow->layout->replicas; i++) {
        if (old[i] != LAYOUT_NONE && pool_has(&flow->pool, old[i]) &&
            flow->level[old[i]] == level && flow_zone_of(flow, old[i]) == zone &&
            flow->price[old[i]] == price && !rh_flow_holds(flow, partition, old[i])) {
            return old[i];
        }
    }
    if (segment) {
        uint32_t node = draw(flow, partition, segment->start, segment->count, false, hash);

        return node != LAYOUT_NONE ? node : first_in_segment(flow, partition, segment);
    }
    return LAYOUT_NONE;
}

static uint32_t pick_from_hub(const struct flow *flow, uint32_t partition, size_t level,
                              uint64_t hash)
{
    const uint32_t *old = flow->old + (size_t)partition * flow->layout->replicas;
    const struct pool_group *group = rh_pool_group(&flow->pool, pool_key(level, flow->hub + 1));
    uint32_t drawn;

    for (uint32_t i = 0; i < flow->layout->replicas; i++) {
        uint32_t node = old[i];

        if (node != LAYOUT_NONE && pool_has(&flow->pool, node) && flow->level[node] == level &&
            flow->price[node] == flow->hub && rh_flow_is_open(flow, flow_zone_of(flow, node)) &&
            !rh_flow_holds(flow, partition, node)) {
            return node;
        }
    }
    drawn = group ? draw(flow, partition, group->start, group->size, true, hash) : LAYOUT_NONE;
    for (uint32_t i = 0; group && drawn == LAYOUT_NONE && i < group->live; i++) {
        const struct pool_segment *segment =
            &flow->pool.segments[flow->pool.live[group->first + i]];

        if (rh_flow_is_open(flow, segment->zone)) {
            drawn = first_in_segment(flow, partition, segment);
        }
    }
    return drawn;
}

/* Fills in where the step at `depth` may lead to; false when nowhere any more. */
static bool choose(struct flow *flow, size_t depth)
{
    struct flow_step *step = &flow->path[depth];
    uint32_t partition = step->partition, entry;
    uint64_t hash = layout_mix(((uint64_t)partition << 32) + flow->placed);
    bool from_hub;

    rh_flow_look(flow, partition);
    step->to = LAYOUT_NONE;
    step->through_hub = false;
    if (step->from == LAYOUT_NONE) {
        from_hub = flow->used < flow->limits->extras && flow->hub == 0;
        for (size_t i = 0; i < flow->deep_count && step->to == LAYOUT_NONE; i++) {
            uint32_t zone = flow->deep[i];

            if (rh_flow_zone_count(flow, zone) < flow->limits->low[zone] &&
                rh_flow_zone_price(flow, zone) == 0) {
                step->to = pick_from_zone(flow, partition, zone, depth + 1, hash);
            }
        }
    } else {
        entry = flow_zone_of(flow, step->from);
        from_hub = rh_flow_zone_count(flow, entry) > flow->limits->low[entry] &&
                   flow->hub == rh_flow_zone_price(flow, entry) &&
                   !is_hub_on_path(flow, partition, depth);
        step->to = pick_from_zone(flow, partition, entry, depth + 1, hash);
    }
    if (step->to == LAYOUT_NONE && from_hub) {
        step->to = pick_from_hub(flow, partition, depth + 1, hash);
        step->through_hub = step->to != LAYOUT_NONE;
    }
    return step->to != LAYOUT_NONE;
}

/* Sets the step at `depth` to the next partition that `node` can give up; false without one. */
static bool enter(struct flow *flow, uint32_t node, size_t depth)
{
    uint32_t zone = flow_zone_of(flow, node);

    for (; flow->cursor[node] < flow->first[node + 1]; flow->cursor[node]++) {
        uint32_t partition = flow->held[flow->cursor[node]];
        int32_t cost = !rh_flow_held_before(flow, partition, node);

        if (!rh_flow_holds(flow, partition, node)) {
            continue;
        }
        rh_flow_look(flow, partition);
        if (flow->price[node] - cost == rh_flow_zone_price(flow, zone)) {
            flow->path[depth] = (struct flow_step){.partition = partition, .from = node};
            return true;
        }
    }
    return false;
}

static void apply(struct flow *flow, size_t steps)
{
    for (size_t i = 0; i < steps; i++) {
        const struct flow_step *step = &flow->path[i];
        uint32_t *row = flow_row(flow, step->partition), place = 0;
        bool before = rh_flow_held_before(flow, step->partition, step->to);

        if (step->from == LAYOUT_NONE) {
            place = flow->filled[step->partition]++;
        }
        while (step->from != LAYOUT_NONE && FLOW_NODE(row[place]) != step->from) {
            place++;
        }
        row[place] = before ? step->to : step->to | FLOW_FRESH;
    }
    flow->placed++;
}

/* One more copy of a partition with room, along the shortest path; false when there is none. */
static bool augment_one(struct flow *flow, uint32_t partition)
{
    size_t depth = 0;

    flow->path[0] = (struct flow_step){.partition = partition, .from = LAYOUT_NONE};
    for (;;) {
        uint32_t node;

        if (choose(flow, depth)) {
            node = flow->path[depth].to;
            if (depth + 1 == flow->found) {
                apply(flow, depth + 1);
                if (++flow->load[node] == flow->limit[node]) {
                    rh_pool_remove(&flow->pool, node);
                }
                return true;
            }
        } else if (depth > 0) {
            node = flow->path[depth--].from;
            flow->cursor[node]++;
        } else {
            return false;
        }
        if (enter(flow, node, depth + 1)) {
            depth++;
        } else {
            rh_pool_remove(&flow->pool, node);
        }
    }
}

void rh_flow_augment(struct flow *flow)
{
    size_t entries = 0, open = 0;

    flow->room_max = 0;
    for (uint32_t node = 0; node < flow->layout->node_count; node++) {
        bool last = flow->level[node] == flow->found;

        if (flow->level[node] == 0 || flow->level[node] > flow->found ||
            (last &&
             (flow->load[node] == flow->limit[node] || flow->price[node] != flow->sink_price))) {
            continue;
        }
        if (last && flow->limit[node] - flow->load[node] > flow->room_max) {
            flow->room_max = flow->limit[node] - flow->load[node];
        }
        flow->pool.entries[entries++] = (struct pool_entry){
            pool_key(flow->level[node], flow->price[node]), flow_zone_of(flow, node), node};
    }
    rh_pool_fill(&flow->pool, entries, flow->layout->node_count);
    for (size_t i = 0; i < flow->open_count; i++) {
        uint32_t partition = flow->open[i];

        while (flow->filled[partition] < flow->layout->replicas && augment_one(flow, partition)) {
        }
        if (flow->filled[partition] < flow->layout->replicas) {
            flow->open[open++] = partition;
        }
    }
    flow->open_count = open;
}

/* Prices, and the search along tight arcs, in breadth. */
#include <string.h>

#include "layout_flow.h"

bool rh_flow_holds(const struct flow *flow, uint32_t partition, uint32_t node)
{
    const uint32_t *row = flow_row(flow, partition);

    for (uint32_t i = 0; i < flow->filled[partition]; i++) {
        if (FLOW_NODE(row[i]) == node) {
            return true;
        }
    }
    return false;
}

bool rh_flow_held_before(const struct flow *flow, uint32_t partition, uint32_t node)
{
    const uint32_t *old = flow->old + (size_t)partition * flow->layout->replicas;

    for (uint32_t i = 0; i < flow->layout->replicas; i++) {
        if (old[i] == node) {
            return true;
        }
    }
    return false;
}

/*
 * The lower bound of a zone is filled before its last copy, so the zones beyond it are those
 * with more copies than that: a residual arc leads from such a zone back to the partition, and
 * from the partition to every other zone whose bounds differ.
 */
void rh_flow_look(struct flow *flow, uint32_t partition)
{
    const uint32_t *row = flow_row(flow, partition), *low = flow->limits->low;

    flow->serial++;
    flow->used = 0;
    for (uint32_t i = 0; i < flow->filled[partition]; i++) {
        uint32_t node = FLOW_NODE(row[i]), zone = flow_zone_of(flow, node);
        struct flow_zone *seen = &flow->zones[zone];
        int32_t price = flow->price[node] - (row[i] != node);

        if (seen->serial != flow->serial) {
            *seen = (struct flow_zone){flow->serial, 0, FLOW_FAR};
        }
        flow->used += ++seen->count > low[zone];
        seen->nearest = price < seen->nearest ? price : seen->nearest;
    }
    flow->hub = flow->used < flow->limits->extras ? 0 : FLOW_FAR;
    for (uint32_t i = 0; i < flow->filled[partition]; i++) {
        uint32_t zone = flow_zone_of(flow, FLOW_NODE(row[i]));
        const struct flow_zone *seen = &flow->zones[zone];

        if (seen->count > low[zone] && seen->nearest < flow->hub) {
            flow->hub = seen->nearest;
        }
    }
}

uint32_t rh_flow_zone_count(const struct flow *flow, uint32_t zone)
{
    return flow->zones[zone].serial == flow->serial ? flow->zones[zone].count : 0;
}

int32_t rh_flow_zone_price(const struct flow *flow, uint32_t zone)
{
    const struct flow_zone *seen = &flow->zones[zone];
    int32_t price = seen->serial == flow->serial ? seen->nearest : FLOW_FAR;
    uint32_t count = rh_flow_zone_count(flow, zone), low = flow->limits->low[zone];

    if (count < low && price > 0) {
        price = 0; /* straight from the source */
    }
    if (count <= low && flow->limits->high[zone] > low && price > flow->hub) {
        price = flow->hub;
    }
    return price;
}

bool rh_flow_is_open(const struct flow *flow, uint32_t zone)
{
    uint32_t low = flow->limits->low[zone];

    return flow->limits->high[zone] > low && rh_flow_zone_count(flow, zone) <= low &&
           rh_flow_zone_price(flow, zone) == flow->hub;
}

static void reach(struct flow *flow, uint32_t node, uint32_t level)
{
    flow->level[node] = level;
    flow->queue[flow->queued++] = node;
    rh_pool_remove(&flow->pool, node);
    if (flow->load[node] < flow->limit[node] && flow->price[node] == flow->sink_price) {
        flow->found = level;
    }
}

static void reach_segment(struct flow *flow, uint32_t partition, const struct pool_segment *segment,
                          uint32_t level)
{
    for (uint32_t i = 0; i < segment->count;) {
        uint32_t node = flow->pool.nodes[segment->start + i];

        if (rh_flow_holds(flow, partition, node) || rh_flow_held_before(flow, partition, node)) {
            i++;
        } else {
            reach(flow, node, level);
        }
    }
}

/* From the partition last looked at: the tight arcs out of one of its zones. */
static void leave_zone(struct flow *flow, uint32_t partition, uint32_t zone, uint32_t level)
{
    const uint32_t *old = flow->old + (size_t)partition * flow->layout->replicas;
    int32_t price = rh_flow_zone_price(flow, zone);
    const struct pool_group *group = rh_pool_group(&flow->pool, (uint64_t)(price + 1));
    const struct pool_segment *segment = group ? rh_pool_segment(&flow->pool, group, zone) : NULL;

    for (uint32_t i = 0; i < flow->layout->replicas; i++) {
        if (old[i] != LAYOUT_NONE && pool_has(&flow->pool, old[i]) &&
            flow_zone_of(flow, old[i]) == zone && flow->price[old[i]] == price &&
            !rh_flow_holds(flow, partition, old[i])) {
            reach(flow, old[i], level);
        }
    }
    if (segment) {
        reach_segment(flow, partition, segment, level);
    }
}

/* From the partition last looked at: the tight arcs through its zones that are not used up. */
static void leave_hub(struct flow *flow, uint32_t partition, uint32_t level)
{
    const uint32_t *old = flow->old + (size_t)partition * flow->layout->replicas;
    const struct pool_group *group;

    if (flow->hub_seen[partition] == flow->searches) {
        return;
    }
    flow->hub_seen[partition] = flow->searches;
    group = rh_pool_group(&flow->pool, (uint64_t)(flow->hub + 1));
    for (uint32_t i = 0; i < flow->layout->replicas; i++) {
        if (old[i] != LAYOUT_NONE && pool_has(&flow->pool, old[i]) &&
            flow->price[old[i]] == flow->hub && rh_flow_is_open(flow, flow_zone_of(flow, old[i])) &&
            !rh_flow_holds(flow, partition, old[i])) {
            reach(flow, old[i], level);
        }
    }
    for (uint32_t i = 0; group && i < group->live;) {
        const struct pool_segment *segment =
            &flow->pool.segments[flow->pool.live[group->first + i]];

        if (rh_flow_is_open(flow, segment->zone)) {
            reach_segment(flow, partition, segment, level);
        }
        i += segment->count > 0; /* an empty one has left, another come to its place */
    }
}

static void leave_source(struct flow *flow, uint32_t partition)
{
    rh_flow_look(flow, partition);
    if (flow->used < flow->limits->extras && flow->hub == 0) {
        leave_hub(flow, partition, 1);
    }
    for (size_t i = 0; i < flow->deep_count; i++) {
        uint32_t zone = flow->deep[i];

        if (rh_flow_zone_count(flow, zone) < flow->limits->low[zone] &&
            rh_flow_zone_price(flow, zone) == 0) {
            leave_zone(flow, partition, zone, 1);
        }
    }
}

/* Whether a partition lies where it lay before: no arc that costs nothing leads out of it. */
static bool is_as_before(const struct flow *flow, uint32_t partition)
{
    const uint32_t *row = flow_row(flow, partition);
    uint32_t marks = 0;

    for (uint32_t i = 0; i < flow->filled[partition]; i++) {
        marks |= row[i];
    }
    return flow->filled[partition] == flow->layout->replicas && marks < FLOW_FRESH;
}

static void leave_node(struct flow *flow, uint32_t node)
{
    uint32_t zone = flow_zone_of(flow, node), level = flow->level[node] + 1;
    const struct pool_group *group = rh_pool_group(&flow->pool, (uint64_t)(flow->price[node] + 1));

    for (size_t i = flow->first[node]; i < flow->first[node + 1]; i++) {
        uint32_t partition = flow->held[i];
        int32_t cost, price;

        if ((group == NULL || group->live == 0) && is_as_before(flow, partition)) {
            continue;
        }
        cost = !rh_flow_held_before(flow, partition, node);
        rh_flow_look(flow, partition);
        price = rh_flow_zone_price(flow, zone);
        if (flow->price[node] - cost != price) {
            continue;
        }
        leave_zone(flow, partition, zone, level);
        if (rh_flow_zone_count(flow, zone) > flow->limits->low[zone] && flow->hub == price) {
            leave_hub(flow, partition, level);
        }
    }
}

/* Who holds what, by node. */
static void list_held(struct flow *flow)
{
    uint32_t partitions = flow->layout->partitions;
    size_t nodes = flow->layout->node_count;

    memset(flow->first, 0, (nodes + 1) * sizeof *flow->first);
    for (uint32_t p = 0; p < partitions; p++) {
        for (uint32_t i = 0; i < flow->filled[p]; i++) {
            flow->first[FLOW_NODE(flow_row(flow, p)[i]) + 1]++;
        }
    }
    for (size_t node = 0; node < nodes; node++) {
        flow->first[node + 1] += flow->first[node];
        flow->cursor[node] = flow->first[node];
    }
    for (uint32_t index = 0; index < partitions; index++) {
        uint32_t p = flow_nth(flow, index);

        for (uint32_t i = 0; i < flow->filled[p]; i++) {
            flow->held[flow->cursor[FLOW_NODE(flow_row(flow, p)[i])]++] = p;
        }
    }
    memcpy(flow->cursor, flow->first, nodes * sizeof *flow->cursor);
}

bool rh_flow_search(struct flow *flow)
{
    size_t entries = 0, head = 0;

    for (uint32_t node = 0; node < flow->layout->node_count; node++) {
        if (flow->limits->ceil[node] > 0) {
            flow->pool.entries[entries++] =
                (struct pool_entry){(uint64_t)flow->price[node], flow_zone_of(flow, node), node};
        }
    }
    rh_pool_fill(&flow->pool, entries, flow->layout->node_count);
    memset(flow->level, 0, flow->layout->node_count * sizeof *flow->level);
    flow->searches++;
    flow->queued = 0;
    flow->found = 0;
    for (size_t i = 0; i < flow->open_count; i++) {
        leave_source(flow, flow->open[i]);
    }
    if (flow->found == 0 && flow->queued > 0) {
        list_held(flow);
    }
    while (head < flow->queued) {
        uint32_t node = flow->queue[head++];

        if (flow->found > 0 && flow->level[node] >= flow->found) {
            break;
        }
        leave_node(flow, node);
    }
    return flow->found > 0;
}

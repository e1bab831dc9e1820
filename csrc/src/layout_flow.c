/* The flow from its start, the copies that can stay, to its end. */
#include <stdlib.h>
#include <string.h>

#include "layout_flow.h"

static rh_status allocate(struct flow *flow)
{
    size_t partitions = flow->layout->partitions, nodes = flow->layout->node_count;
    size_t copies = partitions * flow->layout->replicas, zones = flow->layout->zone_count;

    flow->filled = calloc(partitions, sizeof *flow->filled);
    flow->open = malloc(partitions * sizeof *flow->open);
    flow->deep = malloc(zones * sizeof *flow->deep);
    flow->load = calloc(nodes, sizeof *flow->load);
    flow->price = calloc(nodes, sizeof *flow->price);
    flow->level = malloc(nodes * sizeof *flow->level);
    flow->queue = malloc(nodes * sizeof *flow->queue);
    flow->hub_seen = calloc(partitions, sizeof *flow->hub_seen);
    flow->held = malloc(copies * sizeof *flow->held);
    flow->first = calloc(nodes + 1, sizeof *flow->first);
    flow->cursor = malloc(nodes * sizeof *flow->cursor);
    flow->zones = calloc(zones, sizeof *flow->zones);
    flow->path = malloc((nodes + 1) * sizeof *flow->path);
    if (!flow->filled || !flow->open || !flow->deep || !flow->load || !flow->price ||
        !flow->level || !flow->queue || !flow->hub_seen || !flow->held || !flow->first ||
        !flow->cursor || !flow->zones || !flow->path) {
        return RH_NO_MEMORY;
    }
    return rh_pool_allocate(&flow->pool, nodes);
}

static void release(struct flow *flow)
{
    rh_pool_free(&flow->pool);
    free(flow->path);
    free(flow->zones);
    free(flow->cursor);
    free(flow->first);
    free(flow->held);
    free(flow->hub_seen);
    free(flow->queue);
    free(flow->level);
    free(flow->price);
    free(flow->load);
    free(flow->deep);
    free(flow->open);
    free(flow->filled);
}

static bool zone_has_room(const struct flow *flow, uint32_t zone)
{
    uint32_t low = flow->limits->low[zone], count = rh_flow_zone_count(flow, zone);

    return count < low ||
           (count == low && flow->limits->high[zone] > low && flow->used < flow->limits->extras);
}

/*
 * Copies that stay where they are: up to its share rounded down for each node, drawn by chance
 * among all it has (Knuth, "The Art of Computer Programming" 3.4.2, algorithm S), so that what
 * it gives up shares its partitions with all other nodes.
 */
static void keep(struct flow *flow, uint32_t *have)
{
    const rh_layout *layout = flow->layout;
    size_t copies = (size_t)layout->partitions * layout->replicas;

    for (size_t i = 0; i < copies; i++) {
        if (flow->old[i] != LAYOUT_NONE) {
            have[flow->old[i]]++;
        }
    }
    for (uint32_t index = 0; index < layout->partitions; index++) {
        uint32_t p = flow_nth(flow, index);
        const uint32_t *old = flow->old + (size_t)p * layout->replicas;

        for (uint32_t i = 0; i < layout->replicas; i++) {
            uint32_t node = old[i];
            uint64_t hash = layout_mix(flow->salt + (uint64_t)p * layout->replicas + i);

            if (node == LAYOUT_NONE ||
                layout_pick(hash, have[node]--) >= flow->limits->floor[node] - flow->load[node]) {
                continue;
            }
            rh_flow_look(flow, p);
            if (zone_has_room(flow, flow_zone_of(flow, node))) {
                flow_row(flow, p)[flow->filled[p]++] = node;
                flow->load[node]++;
                flow->placed++;
            }
        }
        if (flow->filled[p] < layout->replicas) {
            flow->open[flow->open_count++] = p;
        }
    }
}

/* Everything not reached is at least one farther than it seemed: the rest of the old rule. */
static void raise_prices(struct flow *flow)
{
    for (size_t node = 0; node < flow->layout->node_count; node++) {
        flow->price[node] += flow->level[node] == 0;
    }
    flow->sink_price++;
}

/* Places copies until there are `goal`, no node getting more than its limit. */
static void fill(struct flow *flow, const uint32_t *limit, uint64_t goal)
{
    flow->limit = limit;
    flow->sink_price = FLOW_FAR;
    for (size_t node = 0; node < flow->layout->node_count; node++) {
        if (flow->load[node] < limit[node] && flow->price[node] < flow->sink_price) {
            flow->sink_price = flow->price[node];
        }
    }
    while (flow->placed < goal) {
        if (rh_flow_search(flow)) {
            rh_flow_augment(flow);
        } else {
            raise_prices(flow);
        }
    }
}

rh_status rh_layout_solve(const rh_layout *layout, const struct layout_limits *limits,
                          const uint32_t *old, uint32_t *rows)
{
    struct flow flow = {.layout = layout,
                        .limits = limits,
                        .old = old,
                        .rows = rows,
                        .salt = layout_mix(layout->epoch)};
    uint32_t *have = calloc(layout->node_count, sizeof *have);
    size_t copies = (size_t)layout->partitions * layout->replicas;
    rh_status status = allocate(&flow);
    uint64_t floors = 0;

    if (status != RH_OK || have == NULL) {
        status = RH_NO_MEMORY;
        goto out;
    }
    for (uint32_t zone = 0; zone < layout->zone_count; zone++) {
        if (limits->low[zone] > 0) {
            flow.deep[flow.deep_count++] = zone;
        }
    }
    for (size_t node = 0; node < layout->node_count; node++) {
        floors += limits->floor[node];
    }
    keep(&flow, have);
    fill(&flow, limits->floor, floors);
    fill(&flow, limits->ceil, copies);
    for (size_t i = 0; i < copies; i++) {
        rows[i] = FLOW_NODE(rows[i]);
    }
out:
    free(have);
    release(&flow);
    return status;
}

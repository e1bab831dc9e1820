/*
 * How many copies belong to each zone and node. Compiled without contraction of a * b + c, and
 * in the order of names: every machine gets the same numbers.
 *
 * The shares s divided by the number of partitions are a fractional table that keeps to all
 * limits of zones and nodes, in every partition alike. All limits are whole numbers, so by the
 * integrality of flows there is a whole table too, with every node at its share rounded down or
 * up: neither dealing nor rebalancing can fail.
 */
#include <stdlib.h>
#include <string.h>

#include "layout_internal.h"

/* Shares this close to a whole number are meant to be it: 0.1 * 3 is. */
#define SNAP 1e-9
#define SNAP_RELATIVE 1e-12

/* A weight this much below the largest counts as that: shares of it are nothing either way. */
#define WEIGHT_RATIO_MIN 1e-200

#define REMAINDER_UNITS 1e9

enum { FREE, LOWER, UPPER };

struct pour {
    const rh_layout *layout;
    const struct layout_limits *limits;
    double partitions;
    double *weights;  /* by node, the largest 1; 0: drained */
    double *shares;   /* by node */
    double *in_zone;  /* scratch by zone */
    uint8_t *bound;   /* by zone: whether its total is free, at its lower or at its upper bound */
    uint32_t *sorted; /* the nodes in order of their zones */
    uint32_t *pool;   /* the nodes of free zones */
};

static double share_at(const struct pour *pour, double level, uint32_t node)
{
    double share = level * pour->weights[node];

    return share < pour->partitions ? share : pour->partitions;
}

/* What some nodes take at a level. */
static double total_of(const struct pour *pour, double level, const uint32_t *nodes, size_t count)
{
    double total = 0;

    for (size_t i = 0; i < count; i++) {
        total += share_at(pour, level, nodes[i]);
    }
    return total;
}

static void sum_zones(const struct pour *pour, double level)
{
    memset(pour->in_zone, 0, pour->layout->zone_count * sizeof *pour->in_zone);
    for (uint32_t i = 0; i < pour->layout->node_count; i++) {
        pour->in_zone[pour->layout->nodes[i].zone_id] += share_at(pour, level, i);
    }
}

/* What all zones take at a level, each within its bounds. */
static double total_bounded(const struct pour *pour, double level, const uint32_t *nodes,
                            size_t count)
{
    double total = 0;

    (void)nodes, (void)count;
    sum_zones(pour, level);
    for (size_t zone = 0; zone < pour->layout->zone_count; zone++) {
        double low = (double)pour->limits->low[zone] * pour->partitions;
        double high = (double)pour->limits->high[zone] * pour->partitions;
        double wanted = pour->in_zone[zone];

        total += wanted < low ? low : wanted > high ? high : wanted;
    }
    return total;
}

/*
 * The smallest level for which total(level) reaches `goal`, found on the bits of positive
 * doubles, whose order is that of their values: 64 steps for any weights.
 */
static double find_level(const struct pour *pour, double goal,
                         double (*total)(const struct pour *, double, const uint32_t *, size_t),
                         const uint32_t *nodes, size_t count)
{
    double top = 2 * pour->partitions / WEIGHT_RATIO_MIN, level;
    uint64_t low = 0, high;

    memcpy(&high, &top, sizeof high);
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;

        memcpy(&level, &middle, sizeof level);
        if (total(pour, level, nodes, count) >= goal) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    memcpy(&level, &low, sizeof level);
    return level;
}

/*
 * Shares out `goal` copies among some nodes. The level found tells who is full; the rest is then
 * divided by weight, which is exact but for roundings of the last place.
 */
static void pour_out(struct pour *pour, double goal, const uint32_t *nodes, size_t count)
{
    double level = find_level(pour, goal, total_of, nodes, count), weight = 0;

    for (size_t i = 0; i < count; i++) {
        if (level * pour->weights[nodes[i]] >= pour->partitions) {
            pour->shares[nodes[i]] = pour->partitions;
            goal -= pour->partitions;
        } else {
            weight += pour->weights[nodes[i]];
        }
    }
    for (size_t i = 0; i < count; i++) {
        if (level * pour->weights[nodes[i]] < pour->partitions && weight > 0) {
            pour->shares[nodes[i]] = share_at(pour, goal / weight, nodes[i]);
        }
    }
}

/* Sorts out which zones are bound at a level; returns what is left for the others. */
static double bind_zones(struct pour *pour, double level)
{
    double left = pour->partitions * (double)pour->layout->replicas;

    sum_zones(pour, level);
    for (uint32_t zone = 0; zone < pour->layout->zone_count; zone++) {
        double low = (double)pour->limits->low[zone] * pour->partitions;
        double high = (double)pour->limits->high[zone] * pour->partitions;

        if (pour->in_zone[zone] >= high) {
            pour->bound[zone] = UPPER;
            left -= high;
        } else if (pour->in_zone[zone] <= low) {
            pour->bound[zone] = LOWER;
            left -= low;
        }
    }
    return left;
}

static void find_shares(struct pour *pour)
{
    const rh_layout *layout = pour->layout;
    double all = pour->partitions * (double)layout->replicas;
    double left = bind_zones(pour, find_level(pour, all, total_bounded, NULL, 0));
    size_t pooled = 0, start = 0;

    while (start < layout->node_count) {
        uint32_t zone = layout->nodes[pour->sorted[start]].zone_id;
        size_t end = start;

        while (end < layout->node_count && layout->nodes[pour->sorted[end]].zone_id == zone) {
            end++;
        }
        if (pour->bound[zone] == FREE) {
            memcpy(pour->pool + pooled, pour->sorted + start, (end - start) * sizeof *pour->pool);
            pooled += end - start;
        } else {
            uint32_t *rounds = pour->bound[zone] == UPPER ? pour->limits->high : pour->limits->low;

            pour_out(pour, (double)rounds[zone] * pour->partitions, pour->sorted + start,
                     end - start);
        }
        start = end;
    }
    pour_out(pour, left, pour->pool, pooled);
}

/* Nodes in order of their zones, and within a zone of their names: a counting sort. */
static void sort_by_zone(const rh_layout *layout, uint32_t *sorted, uint32_t *starts)
{
    uint32_t position = 0;

    memset(starts, 0, layout->zone_count * sizeof *starts);
    for (size_t i = 0; i < layout->node_count; i++) {
        starts[layout->nodes[i].zone_id]++;
    }
    for (size_t zone = 0; zone < layout->zone_count; zone++) {
        uint32_t count = starts[zone];

        starts[zone] = position;
        position += count;
    }
    for (uint32_t i = 0; i < layout->node_count; i++) {
        sorted[starts[layout->nodes[i].zone_id]++] = i;
    }
}

static void weigh(const rh_layout *layout, double *weights)
{
    double largest = 0;

    for (size_t i = 0; i < layout->node_count; i++) {
        largest = layout->nodes[i].weight > largest ? layout->nodes[i].weight : largest;
    }
    for (size_t i = 0; i < layout->node_count; i++) {
        if (layout->nodes[i].weight > 0) {
            double ratio = layout->nodes[i].weight / largest;

            weights[i] = ratio > WEIGHT_RATIO_MIN ? ratio : WEIGHT_RATIO_MIN;
        }
    }
}

/* floor, ceil and remainder from the shares. */
static void bracket(const struct pour *pour, struct layout_limits *limits)
{
    for (size_t i = 0; i < pour->layout->node_count; i++) {
        double share = pour->shares[i];
        uint32_t whole = (uint32_t)share;
        double rest = share - (double)whole, snap = SNAP + share * SNAP_RELATIVE;

        if (rest >= 1 - snap) {
            whole++;
            rest = 0;
        } else if (rest <= snap) {
            rest = 0;
        }
        limits->floor[i] = whole;
        limits->ceil[i] = whole + (rest > 0);
        limits->remainder[i] = (uint32_t)(rest * REMAINDER_UNITS + 0.5);
    }
}

/* As many rounds as fit go to every zone that has a node left; the next one to some of them. */
static rh_status deal_rounds(const rh_layout *layout, struct layout_limits *limits)
{
    uint32_t *usable = calloc(layout->zone_count, sizeof *usable);
    uint32_t dealt = 0, in_round = 0;

    if (usable == NULL) {
        return RH_NO_MEMORY;
    }
    for (size_t i = 0; i < layout->node_count; i++) {
        usable[layout->nodes[i].zone_id] += layout->nodes[i].weight > 0;
    }
    for (uint32_t round = 0; dealt + in_round <= layout->replicas; round++) {
        dealt += in_round;
        in_round = 0;
        for (size_t zone = 0; zone < layout->zone_count; zone++) {
            limits->low[zone] = limits->high[zone];
            if (dealt < layout->replicas && usable[zone] > round) {
                limits->high[zone]++;
                in_round++;
            }
        }
        if (in_round == 0) {
            break;
        }
    }
    limits->extras = layout->replicas - dealt;
    free(usable);
    return RH_OK;
}

rh_status rh_layout_limits_make(const rh_layout *layout, struct layout_limits *limits)
{
    size_t nodes = layout->node_count, zones = layout->zone_count;
    struct pour pour = {
        .layout = layout, .limits = limits, .partitions = (double)layout->partitions};
    uint32_t *starts = calloc(zones, sizeof *starts);
    rh_status status = RH_NO_MEMORY;

    limits->low = calloc(zones, sizeof *limits->low);
    limits->high = calloc(zones, sizeof *limits->high);
    limits->floor = calloc(nodes, sizeof *limits->floor);
    limits->ceil = calloc(nodes, sizeof *limits->ceil);
    limits->remainder = calloc(nodes, sizeof *limits->remainder);
    pour.weights = calloc(nodes, sizeof *pour.weights);
    pour.shares = calloc(nodes, sizeof *pour.shares);
    pour.in_zone = calloc(zones, sizeof *pour.in_zone);
    pour.bound = calloc(zones, sizeof *pour.bound);
    pour.sorted = calloc(nodes, sizeof *pour.sorted);
    pour.pool = calloc(nodes, sizeof *pour.pool);
    if (starts && limits->low && limits->high && limits->floor && limits->ceil &&
        limits->remainder && pour.weights && pour.shares && pour.in_zone && pour.bound &&
        pour.sorted && pour.pool) {
        status = deal_rounds(layout, limits);
    }
    if (status == RH_OK) {
        weigh(layout, pour.weights);
        sort_by_zone(layout, pour.sorted, starts);
        find_shares(&pour);
        bracket(&pour, limits);
    }
    free(pour.pool);
    free(pour.sorted);
    free(pour.bound);
    free(pour.in_zone);
    free(pour.shares);
    free(pour.weights);
    free(starts);
    return status;
}

void rh_layout_limits_free(struct layout_limits *limits)
{
    free(limits->remainder);
    free(limits->ceil);
    free(limits->floor);
    free(limits->high);
    free(limits->low);
}

rh_status rh_layout_check(const rh_layout *layout, const struct layout_limits *limits, bool *out)
{
    uint32_t *last_seen = calloc(layout->node_count, sizeof *last_seen);
    uint32_t *in_zone = calloc(layout->zone_count, sizeof *in_zone);
    rh_status status = last_seen && in_zone ? RH_OK : RH_NO_MEMORY;
    bool right = status == RH_OK;

    for (size_t i = 0; right && i < layout->node_count; i++) {
        uint32_t copies = layout->nodes[i].copies;

        right = copies >= limits->floor[i] && copies <= limits->ceil[i];
    }
    for (uint32_t p = 0; right && p < layout->partitions; p++) {
        const uint16_t *row = layout->table + (size_t)p * layout->replicas;
        uint32_t extras = 0;

        for (uint32_t i = 0; i < layout->replicas; i++) {
            in_zone[layout->nodes[row[i]].zone_id]++;
            right = right && last_seen[row[i]] != p + 1;
            last_seen[row[i]] = p + 1;
        }
        for (uint32_t i = 0; i < layout->replicas; i++) {
            uint32_t zone = layout->nodes[row[i]].zone_id;

            right = right && in_zone[zone] <= limits->high[zone];
            extras += in_zone[zone] > limits->low[zone];
            in_zone[zone] = 0;
        }
        /* with no more than these beyond their lower bounds, no zone is below its own */
        right = right && extras <= limits->extras;
    }
    *out = right;
    free(in_zone);
    free(last_seen);
    return status;
}

/* The first table: whole numbers of copies by largest remainder, and who gets which partition. */
#include <stdlib.h>
#include <string.h>

#include "layout_internal.h"

struct candidate {
    uint32_t node;
    uint32_t remainder;
};

/* The largest remainder first, of equal ones the smaller name. */
static int by_remainder(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;

    if (x->remainder != y->remainder) {
        return x->remainder < y->remainder ? 1 : -1;
    }
    return (x->node > y->node) - (x->node < y->node);
}

/*
 * Zones that would stay below their lower bound come first, then everybody whose zone stays
 * below its upper one: both by largest remainder, which maximises the sum of the remainders
 * rounded up.
 */
rh_status rh_layout_limits_round(const rh_layout *layout, struct layout_limits *limits)
{
    struct candidate *candidates = malloc(layout->node_count * sizeof *candidates);
    int64_t *in_zone = calloc(layout->zone_count, sizeof *in_zone);
    int64_t left = (int64_t)layout->partitions * layout->replicas;
    rh_status status = RH_NO_MEMORY;
    size_t count = 0;

    if (candidates == NULL || in_zone == NULL) {
        goto out;
    }
    for (uint32_t i = 0; i < layout->node_count; i++) {
        left -= limits->floor[i];
        in_zone[layout->nodes[i].zone_id] += limits->floor[i];
        if (limits->ceil[i] > limits->floor[i]) {
            candidates[count++] = (struct candidate){i, limits->remainder[i]};
        }
    }
    qsort(candidates, count, sizeof *candidates, by_remainder);
    for (unsigned pass = 0; pass < 2; pass++) {
        const uint32_t *bound = pass == 0 ? limits->low : limits->high;

        for (size_t i = 0; i < count && left > 0; i++) {
            uint32_t node = candidates[i].node, zone = layout->nodes[node].zone_id;

            if (limits->floor[node] < limits->ceil[node] &&
                in_zone[zone] < (int64_t)bound[zone] * layout->partitions) {
                limits->floor[node]++;
                in_zone[zone]++;
                left--;
            }
        }
    }
    memcpy(limits->ceil, limits->floor, layout->node_count * sizeof *limits->ceil);
    status = RH_OK;
out:
    free(in_zone);
    free(candidates);
    return status;
}

/*
 * Systematic sampling. Nodes stand in a row, each as long as the copies it still has to get,
 * those of a zone side by side. While `left` partitions are to be dealt, the row is replicas *
 * left long; one partition takes the nodes under the marks at start + i * left. A node is never
 * longer than `left`, so it gets none or one mark, and surely one when it is as long; a zone
 * whose length is between low * left and high * left gets between low and high marks. Hence the
 * same holds when the next partition is dealt, to the last.
 *
 * The row is a Fenwick tree of lengths, so that a mark costs a logarithm, and is shuffled again
 * and again, so that all nodes meet all.
 */
struct row {
    const rh_layout *layout;
    size_t zone_count; /* only those of them, */
    size_t node_count; /* and of nodes, that get anything */
    uint32_t *zones;   /* in their present order */
    uint32_t *starts;  /* by zone: where its nodes start in `nodes` */
    uint32_t *counts;  /* by zone */
    uint32_t *nodes;   /* by zone, shuffled within */
    uint32_t *order;   /* the row: nodes by position */
    uint64_t *tree;    /* from 1 */
    uint32_t *rest;    /* by node: copies still to get */
    uint64_t state;
};

static uint64_t next_hash(struct row *row)
{
    return layout_mix(row->state++);
}

static void shuffle(struct row *row, uint32_t *items, size_t count)
{
    for (size_t i = count; i > 1; i--) {
        size_t other = layout_pick(next_hash(row), i);
        uint32_t item = items[other];

        items[other] = items[i - 1];
        items[i - 1] = item;
    }
}

static void arrange(struct row *row)
{
    size_t position = 0, count = row->node_count;

    shuffle(row, row->zones, row->zone_count);
    for (size_t i = 0; i < row->zone_count; i++) {
        uint32_t zone = row->zones[i];

        shuffle(row, row->nodes + row->starts[zone], row->counts[zone]);
        memcpy(row->order + position, row->nodes + row->starts[zone],
               row->counts[zone] * sizeof *row->order);
        position += row->counts[zone];
    }
    memset(row->tree, 0, (count + 1) * sizeof *row->tree);
    for (size_t i = 1; i <= count; i++) {
        size_t above = i + (i & (~i + 1));

        row->tree[i] += row->rest[row->order[i - 1]];
        if (above <= count) {
            row->tree[above] += row->tree[i];
        }
    }
}

/* The position of the node under a mark. */
static size_t find_mark(const struct row *row, uint64_t mark)
{
    size_t position = 0, step = 1;

    while (step * 2 <= row->node_count) {
        step *= 2;
    }
    for (; step > 0; step /= 2) {
        if (position + step <= row->node_count && row->tree[position + step] <= mark) {
            position += step;
            mark -= row->tree[position];
        }
    }
    return position;
}

static void shorten(struct row *row, size_t position)
{
    row->rest[row->order[position]]--;
    for (size_t i = position + 1; i <= row->node_count; i += i & (~i + 1)) {
        row->tree[i]--;
    }
}

/* Puts first the node that is primary most rarely for the copies it is to have. */
static void choose_primary(uint16_t *copies, uint32_t replicas, uint32_t *primaries,
                           const uint32_t *quota)
{
    uint32_t best = 0;
    uint16_t node;

    for (uint32_t i = 1; i < replicas; i++) {
        if ((uint64_t)primaries[copies[i]] * quota[copies[best]] <
            (uint64_t)primaries[copies[best]] * quota[copies[i]]) {
            best = i;
        }
    }
    node = copies[best];
    copies[best] = copies[0];
    copies[0] = node;
    primaries[node]++;
}

static void deal_all(struct row *row, uint32_t *positions, uint32_t *primaries,
                     const uint32_t *quota)
{
    const rh_layout *layout = row->layout;
    size_t lasts = row->node_count / 16 + 1;

    for (uint32_t partition = 0; partition < layout->partitions; partition++) {
        uint16_t *copies = layout->table + (size_t)partition * layout->replicas;
        uint32_t left = layout->partitions - partition;
        uint64_t mark;

        if (partition % lasts == 0) {
            arrange(row);
        }
        mark = layout_pick(next_hash(row), left);
        for (uint32_t i = 0; i < layout->replicas; i++, mark += left) {
            positions[i] = (uint32_t)find_mark(row, mark);
            copies[i] = (uint16_t)row->order[positions[i]];
        }
        for (uint32_t i = 0; i < layout->replicas; i++) {
            shorten(row, positions[i]);
        }
        choose_primary(copies, layout->replicas, primaries, quota);
    }
}

static void line_up(struct row *row, const struct layout_limits *limits)
{
    const rh_layout *layout = row->layout;
    uint32_t position = 0;

    for (uint32_t i = 0; i < layout->node_count; i++) {
        row->counts[layout->nodes[i].zone_id] += limits->floor[i] > 0;
        row->node_count += limits->floor[i] > 0;
        row->rest[i] = limits->floor[i];
    }
    for (uint32_t zone = 0; zone < layout->zone_count; zone++) {
        if (row->counts[zone] > 0) {
            row->zones[row->zone_count++] = zone;
        }
        row->starts[zone] = position;
        position += row->counts[zone];
        row->counts[zone] = 0;
    }
    for (uint32_t i = 0; i < layout->node_count; i++) {
        uint32_t zone = layout->nodes[i].zone_id;

        if (row->rest[i] > 0) {
            row->nodes[row->starts[zone] + row->counts[zone]++] = i;
        }
    }
}

rh_status rh_layout_deal(rh_layout *layout, const struct layout_limits *limits)
{
    size_t nodes = layout->node_count, zones = layout->zone_count;
    struct row row = {.layout = layout};
    uint32_t *positions = malloc(layout->replicas * sizeof *positions);
    uint32_t *primaries = calloc(nodes, sizeof *primaries);
    rh_status status = RH_NO_MEMORY;

    row.zones = malloc(zones * sizeof *row.zones);
    row.starts = malloc(zones * sizeof *row.starts);
    row.counts = calloc(zones, sizeof *row.counts);
    row.nodes = malloc(nodes * sizeof *row.nodes);
    row.order = malloc(nodes * sizeof *row.order);
    row.tree = malloc((nodes + 1) * sizeof *row.tree);
    row.rest = malloc(nodes * sizeof *row.rest);
    if (positions && primaries && row.zones && row.starts && row.counts && row.nodes && row.order &&
        row.tree && row.rest) {
        line_up(&row, limits);
        deal_all(&row, positions, primaries, limits->floor);
        status = RH_OK;
    }
    free(row.rest);
    free(row.tree);
    free(row.order);
    free(row.nodes);
    free(row.counts);
    free(row.starts);
    free(row.zones);
    free(primaries);
    free(positions);
    return status;
}

/* From one layout to the next: the same nodes by other numbers, the new table, and the moves. */
#include <stdlib.h>
#include <string.h>

#include "layout_internal.h"
#include "node.h"

struct rebalance {
    const rh_layout *from;
    rh_layout *to;
    struct layout_limits limits;
    uint32_t *number;   /* by node of `from`: its number in `to`; LAYOUT_NONE: gone or drained */
    uint32_t *zone;     /* by node of `from`: the zone in `to` of the same name, or LAYOUT_NONE */
    uint32_t *zone_rep; /* by zone of `to`: a node of it */
    uint32_t *old;      /* the table of `from` in numbers of `to` */
    uint32_t *rows;
    uint8_t *settled; /* by place in a partition: whether it keeps its node or has a new one */
    rh_layout_move *moves;
    size_t moved;
};

static void renumber(struct rebalance *run)
{
    const rh_layout *from = run->from, *to = run->to;
    size_t at = 0;

    rh_layout_zone_nodes(to, run->zone_rep);
    for (size_t i = 0; i < from->node_count; i++) {
        const struct layout_node *node = &from->nodes[i];
        int order = 1;

        while (at < to->node_count &&
               (order = rh_compare_bytes(to->nodes[at].name, to->nodes[at].name_bytes, node->name,
                                         node->name_bytes)) < 0) {
            at++;
        }
        run->number[i] = at < to->node_count && order == 0 && to->nodes[at].weight > 0
                             ? (uint32_t)at
                             : LAYOUT_NONE;
        run->zone[i] = node->zone
                           ? rh_layout_find_zone(to, node->zone, node->zone_bytes, run->zone_rep)
                           : LAYOUT_NONE;
    }
    for (size_t i = 0; i < (size_t)to->partitions * to->replicas; i++) {
        run->old[i] = run->number[from->table[i]];
    }
}

/*
 * No plan keeps more than min(have, quota) of a node's copies; of the shares rounded up, those of
 * nodes that have as many do most.
 */
static size_t lower_bound(const struct rebalance *run)
{
    const rh_layout *from = run->from;
    size_t copies = (size_t)from->partitions * from->replicas, kept = 0, up = 0, useful = 0;

    up = copies;
    for (size_t i = 0; i < run->to->node_count; i++) {
        up -= run->limits.floor[i];
    }
    for (size_t i = 0; i < from->node_count; i++) {
        uint32_t have = from->nodes[i].copies, to = run->number[i];

        if (to != LAYOUT_NONE) {
            uint32_t floor = run->limits.floor[to];

            kept += have < floor ? have : floor;
            useful += run->limits.ceil[to] > floor && have > floor;
        }
    }
    return copies - kept - (useful < up ? useful : up);
}

static bool is_in(const uint32_t *row, uint32_t replicas, uint32_t node)
{
    for (uint32_t i = 0; i < replicas; i++) {
        if (row[i] == node) {
            return true;
        }
    }
    return false;
}

/*
 * Writes one partition's row: what stays keeps its place; a new node takes one that became free,
 * if it can that of a node of its own zone, so that what is copied stays near.
 */
static void settle(struct rebalance *run, uint32_t partition)
{
    uint32_t replicas = run->to->replicas;
    size_t start = (size_t)partition * replicas;
    const uint32_t *old = run->old + start, *row = run->rows + start;
    uint16_t *table = run->to->table + start;

    for (uint32_t i = 0; i < replicas; i++) {
        run->settled[i] = old[i] != LAYOUT_NONE && is_in(row, replicas, old[i]);
        if (run->settled[i]) {
            table[i] = (uint16_t)old[i];
        }
    }
    for (unsigned pass = 0; pass < 2; pass++) {
        for (uint32_t k = 0; k < replicas; k++) {
            uint32_t node = row[k], place = 0;

            /* LAYOUT_NONE: found its place in the first pass */
            if (node == LAYOUT_NONE || is_in(old, replicas, node)) {
                continue;
            }
            while (place < replicas && (run->settled[place] ||
                                        (pass == 0 && run->zone[run->from->table[start + place]] !=
                                                          run->to->nodes[node].zone_id))) {
                place++;
            }
            if (place < replicas) {
                run->settled[place] = true;
                table[place] = (uint16_t)node;
                run->rows[start + k] = LAYOUT_NONE;
            }
        }
    }
}

static rh_status list_moves(struct rebalance *run)
{
    size_t copies = (size_t)run->to->partitions * run->to->replicas;

    for (size_t i = 0; i < copies; i++) {
        run->moved += run->old[i] != run->to->table[i];
    }
    run->moves = malloc((run->moved + 1) * sizeof *run->moves);
    if (run->moves == NULL) {
        return RH_NO_MEMORY;
    }
    run->moved = 0;
    for (size_t i = 0; i < copies; i++) {
        if (run->old[i] != run->to->table[i]) {
            run->moves[run->moved++] = (rh_layout_move){(uint32_t)(i / run->to->replicas),
                                                        run->from->table[i], run->to->table[i]};
        }
    }
    return RH_OK;
}

static rh_status allocate(struct rebalance *run)
{
    size_t copies = (size_t)run->to->partitions * run->to->replicas;

    run->number = malloc((run->from->node_count) * sizeof *run->number);
    run->zone = malloc((run->from->node_count) * sizeof *run->zone);
    run->zone_rep = malloc(run->to->zone_count * sizeof *run->zone_rep);
    run->old = malloc(copies * sizeof *run->old);
    run->rows = malloc(copies * sizeof *run->rows);
    run->settled = malloc(run->to->replicas);
    return run->number && run->zone && run->zone_rep && run->old && run->rows && run->settled
               ? RH_OK
               : RH_NO_MEMORY;
}

static rh_status plan(struct rebalance *run)
{
    rh_status status = rh_layout_limits_make(run->to, &run->limits);

    if (status != RH_OK || (status = allocate(run)) != RH_OK) {
        return status;
    }
    renumber(run);
    status = rh_layout_solve(run->to, &run->limits, run->old, run->rows);
    if (status != RH_OK) {
        return status;
    }
    for (uint32_t partition = 0; partition < run->to->partitions; partition++) {
        settle(run, partition);
    }
    rh_layout_count(run->to);
    return list_moves(run);
}

rh_status rh_layout_rebalance(const rh_layout *layout, const rh_node *nodes, size_t count,
                              rh_layout_plan *out)
{
    struct rebalance run = {.from = layout};
    rh_status status;

    if (layout == NULL || out == NULL) {
        return RH_INVALID_ARGUMENT;
    }
    if (layout->epoch == UINT64_MAX) {
        return RH_TOO_LARGE;
    }
    status = rh_layout_make(nodes, count, layout->replicas, layout->partitions, &run.to);
    if (status == RH_OK) {
        run.to->epoch = layout->epoch + 1;
        status = plan(&run);
    }
    if (status == RH_OK) {
        *out = (rh_layout_plan){run.to, run.moves, run.moved, lower_bound(&run)};
        run.to = NULL;
        run.moves = NULL;
    }
    free(run.moves);
    free(run.settled);
    free(run.rows);
    free(run.old);
    free(run.zone_rep);
    free(run.zone);
    free(run.number);
    rh_layout_limits_free(&run.limits);
    rh_layout_free(run.to);
    return status;
}

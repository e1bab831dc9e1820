/* What moves between two rings: one merge of their points. */
#include <stdlib.h>
#include <string.h>

#include "ring_internal.h"

#define NOWHERE UINT32_MAX

/* By number of `from`, the number of the same name in `to`, NOWHERE when it has none. */
static uint32_t *match_names(const rh_ring *from, const rh_ring *to)
{
    uint32_t *match = malloc(from->slot_count * sizeof *match);
    size_t k = 0;

    for (size_t i = 0; match && i < from->slot_count; i++) {
        uint32_t number = from->by_name[i];
        int order = 1;

        while (k < to->slot_count && order > 0) {
            order = rh_ring_compare_names(&from->slots[number], &to->slots[to->by_name[k]]);
            k += order > 0;
        }
        match[number] = order == 0 ? to->by_name[k] : NOWHERE;
    }
    return match;
}

/* Where arcs go; `moves` is NULL while they are only counted. */
struct moves {
    rh_ring_move *moves;
    rh_ring_move last;
    size_t count;
};

static void add_move(struct moves *moves, rh_ring_move move)
{
    if (moves->count > 0 && moves->last.end == move.start && moves->last.source == move.source &&
        moves->last.target == move.target) {
        move.start = moves->last.start;
        moves->count--;
    }
    moves->last = move;
    if (moves->moves) {
        moves->moves[moves->count] = move;
    }
    moves->count++;
}

static uint64_t smaller(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/*
 * The boundaries of all arcs are the points of both rings. The padding of owners[] makes the first
 * node own what lies behind the last point.
 */
static void merge_arcs(const rh_ring *from, const rh_ring *to, const uint32_t *match,
                       struct moves *moves)
{
    uint64_t last_from = from->points[from->point_count - 1];
    uint64_t last_to = to->points[to->point_count - 1];
    uint64_t start = last_from > last_to ? last_from : last_to;
    size_t i = 0, k = 0;

    while (i < from->point_count || k < to->point_count) {
        rh_ring_move move = {.start = start, .source = from->owners[i], .target = to->owners[k]};

        move.end = i == from->point_count ? to->points[k]
                   : k == to->point_count ? from->points[i]
                                          : smaller(from->points[i], to->points[k]);
        if (match[move.source] != move.target) {
            add_move(moves, move);
        }
        while (i < from->point_count && from->points[i] == move.end) {
            i++;
        }
        while (k < to->point_count && to->points[k] == move.end) {
            k++;
        }
        start = move.end;
    }
}

/*
 * The first arc goes on where the last ended: one move if it is of the same two nodes. Where a
 * hash equal to a point is owned by the next, a point p ends the arc of the hash before p.
 */
static size_t close_circle(const rh_ring *ring, rh_ring_move *moves, size_t count)
{
    const uint64_t unit = (uint64_t)1 << (64 - rh_ring_profile_rules(ring->profile)->hash_bits);
    rh_ring_move first;

    if (count > 1 && moves[count - 1].end == moves[0].start &&
        moves[count - 1].source == moves[0].source && moves[count - 1].target == moves[0].target) {
        moves[0].start = moves[count - 1].start;
        count--;
    }
    if (!ring->after) {
        return count;
    }
    for (size_t i = 0; i < count; i++) {
        moves[i].start -= unit;
        moves[i].end -= unit;
    }
    if (moves[0].end > moves[count - 1].end) { /* it ended at point 0 */
        first = moves[0];
        memmove(moves, moves + 1, (count - 1) * sizeof *moves);
        moves[count - 1] = first;
    }
    return count;
}

rh_status rh_ring_diff(const rh_ring *from, const rh_ring *to, rh_ring_move **moves, size_t *count)
{
    rh_status status = RH_NO_MEMORY;
    struct moves found = {0};
    uint32_t *match;

    if (from == NULL || to == NULL || moves == NULL || count == NULL ||
        from->profile != to->profile) {
        return RH_INVALID_ARGUMENT;
    }
    if (rh_ring_profile_rules(from->profile)->hash_bits > 64) {
        return RH_NOT_SUPPORTED;
    }
    if (from->point_count == 0 || to->point_count == 0) {
        return RH_EMPTY_RING;
    }
    match = match_names(from, to);
    if (match == NULL) {
        goto out;
    }
    merge_arcs(from, to, match, &found);
    if (found.count > 0) {
        found.moves = malloc(found.count * sizeof *found.moves);
        if (found.moves == NULL) {
            goto out;
        }
        found.count = 0;
        merge_arcs(from, to, match, &found);
        found.count = close_circle(from, found.moves, found.count);
    }
    *moves = found.moves;
    *count = found.count;
    status = RH_OK;
out:
    free(match);
    return status;
}

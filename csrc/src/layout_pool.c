#include <stdlib.h>
#include <string.h>

#include "layout_pool.h"

rh_status rh_pool_allocate(struct pool *pool, size_t nodes)
{
    pool->entries = malloc(nodes * sizeof *pool->entries);
    pool->nodes = malloc(nodes * sizeof *pool->nodes);
    pool->place = malloc(nodes * sizeof *pool->place);
    pool->segment_of = malloc(nodes * sizeof *pool->segment_of);
    pool->segments = malloc(nodes * sizeof *pool->segments);
    pool->groups = malloc(nodes * sizeof *pool->groups);
    pool->live = malloc(nodes * sizeof *pool->live);
    return pool->entries && pool->nodes && pool->place && pool->segment_of && pool->segments &&
                   pool->groups && pool->live
               ? RH_OK
               : RH_NO_MEMORY;
}

void rh_pool_free(struct pool *pool)
{
    free(pool->live);
    free(pool->groups);
    free(pool->segments);
    free(pool->segment_of);
    free(pool->place);
    free(pool->nodes);
    free(pool->entries);
}

static int by_key(const void *a, const void *b)
{
    const struct pool_entry *x = a, *y = b;

    if (x->key != y->key) {
        return x->key < y->key ? -1 : 1;
    }
    if (x->zone != y->zone) {
        return x->zone < y->zone ? -1 : 1;
    }
    return (x->node > y->node) - (x->node < y->node);
}

void rh_pool_fill(struct pool *pool, size_t count, size_t nodes)
{
    struct pool_group *group = pool->groups;
    uint32_t segments = 0;

    memset(pool->place, 0xff, nodes * sizeof *pool->place);
    qsort(pool->entries, count, sizeof *pool->entries, by_key);
    pool->group_count = 0;
    for (uint32_t i = 0; i < count; i++) {
        const struct pool_entry *entry = &pool->entries[i];
        bool fresh = i == 0 || entry->key != entry[-1].key;

        if (fresh) {
            group = &pool->groups[pool->group_count++];
            *group = (struct pool_group){.key = entry->key, .start = i, .first = segments};
        }
        if (fresh || entry->zone != entry[-1].zone) {
            pool->live[segments] = segments;
            pool->segments[segments] =
                (struct pool_segment){.zone = entry->zone,
                                      .start = i,
                                      .group = (uint32_t)(group - pool->groups),
                                      .place = segments};
            segments++;
            group->segments++;
            group->live++;
        }
        group->size++;
        pool->segments[segments - 1].count++;
        pool->nodes[i] = entry->node;
        pool->place[entry->node] = i;
        pool->segment_of[entry->node] = segments - 1;
    }
}

const struct pool_group *rh_pool_group(const struct pool *pool, uint64_t key)
{
    size_t low = 0, high = pool->group_count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;

        if (pool->groups[middle].key < key) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < pool->group_count && pool->groups[low].key == key ? &pool->groups[low] : NULL;
}

const struct pool_segment *rh_pool_segment(const struct pool *pool, const struct pool_group *group,
                                           uint32_t zone)
{
    const struct pool_segment *segments = pool->segments + group->first;
    size_t low = 0, high = group->segments;

    while (low < high) {
        size_t middle = low + (high - low) / 2;

        if (segments[middle].zone < zone) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < group->segments && segments[low].zone == zone ? &segments[low] : NULL;
}

void rh_pool_remove(struct pool *pool, uint32_t node)
{
    struct pool_segment *segment = &pool->segments[pool->segment_of[node]];
    struct pool_group *group = &pool->groups[segment->group];
    uint32_t last = pool->nodes[segment->start + --segment->count];

    pool->nodes[pool->place[node]] = last;
    pool->place[last] = pool->place[node];
    pool->place[node] = LAYOUT_NONE;
    if (segment->count == 0) {
        uint32_t moved = pool->live[group->first + --group->live];

        pool->live[segment->place] = moved;
        pool->segments[moved].place = segment->place;
    }
}

/*
 * Who waits for whom, searched for cycles.
 *
 * A waiter waits for every holder whose mode excludes the one it asked for, and for every earlier
 * waiter of the same queue whose mode does: such a request is granted only when all of them are
 * gone, so a chain of waits that leads back to its beginning never ends, and any other one does.
 * All edges that a new wait adds start or end at its owner; hence the search begins there, and
 * whoever does not wait is no more than the end of a chain.
 */
#include "lock_table_shard.h"

struct search {
    rh_lock_table *table;
    const struct lock_waiter *start;
    struct lock_waiter *stack;
    uint64_t number;
};

/* Forgets what an earlier search left in the waiter. */
static void meet(const struct search *search, struct lock_waiter *waiter)
{
    if (waiter->search != search->number) {
        waiter->search = search->number;
        waiter->walked = 0;
        waiter->reached = false;
    }
}

static void reach(struct search *search, struct lock_waiter *waiter)
{
    meet(search, waiter);
    if (!waiter->reached) {
        waiter->reached = true;
        waiter->below = search->stack;
        search->stack = waiter;
    }
}

static void reach_holder(struct search *search, uint64_t owner)
{
    rh_lock_table *table = search->table;

    if (lock_owner_tracked(table, owner)) {
        struct lock_wait wait = rh_lock_find_wait(table, owner);

        if (wait.waiter != 0) {
            reach(search, lock_waiter_at(&table->shards[wait.shard], wait.waiter));
        }
    }
}

/*
 * Follows the edges to holders. Those of a queue are gone through once for each mode: a second
 * waiter of the same mode finds the same ones, and the first was reached already. The search's
 * own start does not count as the first, since it leaves itself out.
 */
static bool follow_holders(struct search *search, const struct lock_waiter *waiter,
                           const struct lock_shard *shard, struct lock_queue *queue)
{
    unsigned excluded = rh_lock_excluded[waiter->mode];
    const struct lock_entry *entry = lock_entry_at(shard, waiter->entry);

    if (queue->search != search->number) {
        queue->search = search->number;
        queue->walked = 0;
    }
    if (!(entry->held & excluded) || queue->walked & LOCK_BIT(waiter->mode)) {
        return false;
    }
    if (waiter != search->start) {
        queue->walked |= (uint8_t)LOCK_BIT(waiter->mode);
    }
    for (uint32_t at = entry->first; at != 0; at = lock_hold_at(shard, at)->next) {
        const struct lock_hold *hold = lock_hold_at(shard, at);

        if (!(LOCK_BIT(hold->mode) & excluded) || hold->owner == waiter->owner) {
            continue;
        }
        if (hold->owner == search->start->owner) {
            return true;
        }
        reach_holder(search, hold->owner);
    }
    return false;
}

/* Follows the edges to earlier waiters, as far as none of the same mode has gone before. */
static bool follow_queue(struct search *search, const struct lock_waiter *waiter,
                         const struct lock_shard *shard)
{
    unsigned excluded = rh_lock_excluded[waiter->mode];

    for (uint32_t at = waiter->previous; at != 0;) {
        struct lock_waiter *earlier = lock_waiter_at(shard, at);

        meet(search, earlier);
        if (earlier->walked & LOCK_BIT(waiter->mode)) {
            return false;
        }
        earlier->walked |= (uint8_t)LOCK_BIT(waiter->mode);
        if (excluded & LOCK_BIT(earlier->mode)) {
            if (earlier == search->start) {
                return true;
            }
            reach(search, earlier);
        }
        at = earlier->previous;
    }
    return false;
}

bool rh_lock_closes_cycle(rh_lock_table *table, struct lock_waiter *start)
{
    struct search search = {table, start, NULL, ++table->searches};

    reach(&search, start);
    while (search.stack) {
        struct lock_waiter *waiter = search.stack;
        struct lock_shard *shard = &table->shards[waiter->shard];
        uint32_t queue = lock_entry_at(shard, waiter->entry)->queue;

        search.stack = waiter->below;
        if (follow_holders(&search, waiter, shard, lock_queue_at(shard, queue)) ||
            follow_queue(&search, waiter, shard)) {
            return true;
        }
    }
    return false;
}

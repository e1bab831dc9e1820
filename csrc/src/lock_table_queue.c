/* Waiters and grants of the lock table. */
#include <stdlib.h>
#include <string.h>

#include "lock_table_shard.h"

/* Whether the owner is in the queue of this very entry. */
static bool waits_here(rh_lock_table *table, const struct lock_shard *shard, uint32_t entry,
                       uint64_t owner)
{
    struct lock_wait wait;

    if (!lock_owner_tracked(table, owner)) {
        return false;
    }
    wait = rh_lock_find_wait(table, owner);
    return wait.waiter != 0 && wait.shard == shard->number &&
           lock_waiter_at(shard, wait.waiter)->entry == entry;
}

/*
 * An upgrade that is granted past waiters makes them wait for its owner. As long as the owner
 * waits for nothing, no cycle can run through it. A wait may begin unchecked because its owner
 * seems to hold nothing, while that owner is here, in another thread: both add to the counter of
 * waits, so that the one who comes later sees what the other one did before.
 */
static bool may_upgrade(rh_lock_table *table, uint64_t owner)
{
    (void)atomic_fetch_add(&table->waiting, 0);
    return !lock_owner_tracked(table, owner) || rh_lock_find_wait(table, owner).waiter == 0;
}

bool rh_lock_can_pass(rh_lock_table *table, const struct lock_shard *shard, uint32_t entry,
                      const struct lock_hold *hold, uint64_t owner, unsigned mode)
{
    const struct lock_queue *queue = lock_queue_at(shard, lock_entry_at(shard, entry)->queue);

    if (rh_lock_excluded[mode] & queue->modes[LOCK_UPGRADE]) {
        return false;
    }
    if (hold) {
        return hold->waiter == 0 &&
               (!(rh_lock_excluded[mode] & queue->modes[LOCK_NORMAL]) || may_upgrade(table, owner));
    }
    return !(rh_lock_excluded[mode] & queue->modes[LOCK_NORMAL]) &&
           !waits_here(table, shard, entry, owner);
}

static void count_waiter(struct lock_queue *queue, const struct lock_waiter *waiter, int change)
{
    int kind = waiter->upgrade ? LOCK_UPGRADE : LOCK_NORMAL;

    queue->count += (uint32_t)change;
    queue->counts[kind][waiter->mode] += (uint32_t)change;
    if (queue->counts[kind][waiter->mode] > 0) {
        queue->modes[kind] |= (uint8_t)LOCK_BIT(waiter->mode);
    } else {
        queue->modes[kind] &= (uint8_t)~LOCK_BIT(waiter->mode);
    }
}

/* Behind the last upgrade, or the last waiter of all. */
static void link_waiter(struct lock_shard *shard, struct lock_queue *queue, uint32_t number)
{
    struct lock_waiter *waiter = lock_waiter_at(shard, number);

    waiter->previous = waiter->upgrade ? queue->last_upgrade : queue->last;
    waiter->next =
        waiter->previous != 0 ? lock_waiter_at(shard, waiter->previous)->next : queue->first;
    if (waiter->previous != 0) {
        lock_waiter_at(shard, waiter->previous)->next = number;
    } else {
        queue->first = number;
    }
    if (waiter->next != 0) {
        lock_waiter_at(shard, waiter->next)->previous = number;
    } else {
        queue->last = number;
    }
    if (waiter->upgrade) {
        queue->last_upgrade = number;
    }
    count_waiter(queue, waiter, 1);
}

static struct lock_queue *make_queue(struct lock_shard *shard, uint32_t number)
{
    struct lock_entry *entry = lock_entry_at(shard, number);
    struct lock_queue *queue;

    if (entry->queue == 0) {
        entry->queue = lock_pool_take(&shard->queues, sizeof *queue);
        queue = lock_queue_at(shard, entry->queue);
        *queue = (struct lock_queue){.entry = number};
    }
    return lock_queue_at(shard, entry->queue);
}

rh_status rh_lock_add_waiter(rh_lock_table *table, struct lock_shard *shard, uint32_t entry,
                             uint32_t hold, uint64_t owner, unsigned mode, uint32_t *out)
{
    struct lock_waiter *waiter;
    rh_status status;

    if (lock_pool_reserve(&shard->waiters, sizeof *waiter, 1) != RH_OK ||
        lock_pool_reserve(&shard->queues, sizeof(struct lock_queue), 1) != RH_OK ||
        lock_reserve_holds(shard, 1) != RH_OK) {
        return RH_NO_MEMORY;
    }
    *out = lock_pool_take(&shard->waiters, sizeof *waiter);
    status = rh_lock_begin_wait(table, owner, (struct lock_wait){shard->number, *out});
    if (status != RH_OK) {
        lock_pool_give(&shard->waiters, sizeof *waiter, *out);
        return status;
    }
    waiter = lock_waiter_at(shard, *out);
    *waiter = (struct lock_waiter){.entry = entry,
                                   .hold = hold,
                                   .mode = (uint8_t)mode,
                                   .upgrade = hold != 0,
                                   .shard = (uint8_t)shard->number,
                                   .owner = owner};
    if (hold != 0) {
        lock_hold_at(shard, hold)->waiter = *out;
    }
    link_waiter(shard, make_queue(shard, entry), *out);
    return RH_OK;
}

void rh_lock_remove_waiter(struct lock_shard *shard, uint32_t number)
{
    struct lock_waiter *waiter = lock_waiter_at(shard, number);
    struct lock_queue *queue = lock_queue_at(shard, lock_entry_at(shard, waiter->entry)->queue);

    if (waiter->previous != 0) {
        lock_waiter_at(shard, waiter->previous)->next = waiter->next;
    } else {
        queue->first = waiter->next;
    }
    if (waiter->next != 0) {
        lock_waiter_at(shard, waiter->next)->previous = waiter->previous;
    } else {
        queue->last = waiter->previous;
    }
    if (queue->last_upgrade == number) {
        queue->last_upgrade = waiter->previous;
    }
    if (waiter->hold != 0) {
        lock_hold_at(shard, waiter->hold)->waiter = 0;
    }
    count_waiter(queue, waiter, -1);
    lock_pool_give(&shard->waiters, sizeof *waiter, number);
}

void rh_lock_drop_queue(struct lock_shard *shard, uint32_t number)
{
    struct lock_entry *entry = lock_entry_at(shard, number);

    if (lock_queue_at(shard, entry->queue)->count == 0) {
        lock_pool_give(&shard->queues, sizeof(struct lock_queue), entry->queue);
        entry->queue = 0;
    }
}

void rh_lock_count_room(const struct lock_shard *shard, uint32_t number, struct lock_room *room)
{
    const struct lock_entry *entry = lock_entry_at(shard, number);

    if (entry->queue != 0) {
        room->grants += lock_queue_at(shard, entry->queue)->count;
        room->text_bytes += entry->name_bytes;
    }
}

rh_status rh_lock_reserve_grants(rh_lock_grants *grants, struct lock_room room)
{
    rh_lock_grant *items = NULL;
    char *text = NULL;

    if (room.grants > grants->capacity) {
        items = room.grants > SIZE_MAX / 2 / sizeof *items
                    ? NULL
                    : malloc(room.grants * 2 * sizeof *items);
        if (items == NULL) {
            return RH_NO_MEMORY;
        }
    }
    if (room.text_bytes > grants->text_capacity) {
        text = room.text_bytes > SIZE_MAX / 2 ? NULL : malloc(room.text_bytes * 2);
        if (text == NULL) {
            free(items);
            return RH_NO_MEMORY;
        }
    }
    if (items) {
        free(grants->items);
        grants->items = items;
        grants->capacity = room.grants * 2;
    }
    if (text) {
        free(grants->text);
        grants->text = text;
        grants->text_capacity = room.text_bytes * 2;
    }
    grants->count = 0;
    grants->text_bytes = 0;
    return RH_OK;
}

static void grant(rh_lock_table *table, struct lock_shard *shard, uint32_t number,
                  rh_lock_grants *grants, const char *name)
{
    struct lock_waiter waiter = *lock_waiter_at(shard, number);
    uint64_t token;

    rh_lock_remove_waiter(shard, number);
    token = lock_add_hold(table, shard, waiter.entry, waiter.hold, waiter.owner, waiter.mode);
    rh_lock_end_wait(table, waiter.owner);
    grants->items[grants->count++] =
        (rh_lock_grant){name, lock_entry_at(shard, waiter.entry)->name_bytes, waiter.owner, token,
                        (rh_lock_mode)waiter.mode};
}

void rh_lock_serve(rh_lock_table *table, struct lock_shard *shard, uint32_t number,
                   rh_lock_grants *grants)
{
    struct lock_entry *entry = lock_entry_at(shard, number);
    struct lock_queue *queue = lock_queue_at(shard, entry->queue);
    unsigned skipped = 0;
    uint32_t next;
    char *name = NULL;

    /* Behind somebody who waits for X nobody can be granted. */
    for (uint32_t at = queue->first; at != 0 && !(skipped & LOCK_BIT(RH_LOCK_EXCLUSIVE));
         at = next) {
        const struct lock_waiter *waiter = lock_waiter_at(shard, at);
        const struct lock_hold *hold = waiter->hold ? lock_hold_at(shard, waiter->hold) : NULL;

        next = waiter->next;
        if (rh_lock_excluded[waiter->mode] & (skipped | lock_held_by_others(entry, hold))) {
            skipped |= LOCK_BIT(waiter->mode);
            continue;
        }
        if (name == NULL) {
            name = grants->text + grants->text_bytes;
            memcpy(name, lock_entry_name(entry), entry->name_bytes);
            grants->text_bytes += entry->name_bytes;
        }
        grant(table, shard, at, grants, name);
    }
    rh_lock_drop_queue(shard, number);
    lock_settle_entry(shard, number);
}

/* The register of owners: what each waits for, and deadlines. */
#include <stdlib.h>
#include <string.h>

#include "lock_table_shard.h"

struct record {
    uint32_t place; /* in the heap; 0: no deadline */
    struct lock_wait wait;
    uint64_t owner;
    uint64_t shards; /* of an owner with a deadline: where it holds something */
    int64_t deadline;
};

static struct lock_stripe *stripe_of(rh_lock_table *table, uint64_t owner)
{
    return &table->stripes[lock_owner_hash(owner) >> 52 & (LOCK_STRIPES - 1)];
}

static struct record *record_at(const struct lock_stripe *stripe, uint32_t number)
{
    return LOCK_POOL_AT(record, stripe->records, number);
}

static uint32_t find(const struct lock_stripe *stripe, uint64_t owner)
{
    uint32_t hash = (uint32_t)lock_owner_hash(owner), at = hash, number;

    while ((number = lock_index_next(&stripe->index, hash, &at)) != 0 &&
           record_at(stripe, number)->owner != owner) {
    }
    return number;
}

static rh_status reserve_heap(struct lock_stripe *stripe)
{
    uint32_t *heap;

    if (stripe->heap_capacity >= stripe->records.capacity) {
        return RH_OK;
    }
    heap = malloc(stripe->records.capacity * sizeof *heap);
    if (heap == NULL) {
        return RH_NO_MEMORY;
    }
    if (stripe->heap) {
        memcpy(heap, stripe->heap, (stripe->heap_count + 1) * sizeof *heap);
        free(stripe->heap);
    }
    stripe->heap = heap;
    stripe->heap_capacity = stripe->records.capacity;
    return RH_OK;
}

static rh_status find_or_make(rh_lock_table *table, struct lock_stripe *stripe, uint64_t owner,
                              uint32_t *out)
{
    *out = find(stripe, owner);
    if (*out != 0) {
        return RH_OK;
    }
    if (lock_pool_reserve(&stripe->records, sizeof(struct record), 1) != RH_OK ||
        lock_index_reserve(&stripe->index, 1) != RH_OK || reserve_heap(stripe) != RH_OK) {
        return RH_NO_MEMORY;
    }
    *out = lock_pool_take(&stripe->records, sizeof(struct record));
    *record_at(stripe, *out) = (struct record){.owner = owner};
    lock_index_add(&stripe->index, (uint32_t)lock_owner_hash(owner), *out);
    atomic_fetch_add(&table->tracked[lock_owner_row(owner)], 1);
    return RH_OK;
}

static void clear_stripe(struct lock_stripe *stripe)
{
    rh_lock_pool_clear(&stripe->records);
    rh_lock_index_clear(&stripe->index);
    free(stripe->heap);
    stripe->heap = NULL;
    stripe->heap_capacity = 0;
}

/* Takes the record away when it says nothing. */
static void settle(rh_lock_table *table, struct lock_stripe *stripe, uint32_t number)
{
    uint64_t owner = record_at(stripe, number)->owner;

    if (record_at(stripe, number)->place != 0 || record_at(stripe, number)->wait.waiter != 0) {
        return;
    }
    lock_index_remove(&stripe->index, (uint32_t)lock_owner_hash(owner), number);
    lock_pool_give(&stripe->records, sizeof(struct record), number);
    atomic_fetch_sub(&table->tracked[lock_owner_row(owner)], 1);
    if (stripe->records.live == 0 && stripe->records.capacity > LOCK_CAPACITY_KEPT) {
        clear_stripe(stripe);
    }
}

/* The heap: no deadline is before that of the place above, which is half as far. */

static void put(struct lock_stripe *stripe, uint32_t place, uint32_t number)
{
    stripe->heap[place] = number;
    record_at(stripe, number)->place = place;
}

static int64_t deadline_at(const struct lock_stripe *stripe, uint32_t place)
{
    return record_at(stripe, stripe->heap[place])->deadline;
}

/* Moves the record, whose deadline may have changed, from `place` to where it belongs. */
static void sift(struct lock_stripe *stripe, uint32_t place, uint32_t number)
{
    int64_t deadline = record_at(stripe, number)->deadline;
    uint32_t below;

    while (place > 1 && deadline_at(stripe, place / 2) > deadline) {
        put(stripe, place, stripe->heap[place / 2]);
        place /= 2;
    }
    while ((below = 2 * place) <= stripe->heap_count) {
        below += below < stripe->heap_count &&
                 deadline_at(stripe, below + 1) < deadline_at(stripe, below);
        if (deadline_at(stripe, below) >= deadline) {
            break;
        }
        put(stripe, place, stripe->heap[below]);
        place = below;
    }
    put(stripe, place, number);
}

static void forget_deadline(struct lock_stripe *stripe, uint32_t number)
{
    uint32_t place = record_at(stripe, number)->place;
    uint32_t last;

    if (place == 0) {
        return;
    }
    last = stripe->heap[stripe->heap_count--];
    record_at(stripe, number)->place = 0;
    if (last != number) {
        sift(stripe, place, last);
    }
}

rh_status rh_lock_open_register(rh_lock_table *table, size_t *opened)
{
    for (*opened = 0; *opened < LOCK_STRIPES; ++*opened) {
        if (!lock_mutex_init(&table->stripes[*opened].mutex)) {
            return RH_NO_MEMORY;
        }
    }
    return RH_OK;
}

void rh_lock_close_register(rh_lock_table *table, size_t opened)
{
    for (size_t i = 0; i < opened; i++) {
        clear_stripe(&table->stripes[i]);
        lock_mutex_destroy(&table->stripes[i].mutex);
    }
}

rh_status rh_lock_begin_wait(rh_lock_table *table, uint64_t owner, struct lock_wait wait)
{
    struct lock_stripe *stripe = stripe_of(table, owner);
    uint32_t number;
    rh_status status;

    lock_mutex_lock(&stripe->mutex);
    status = find_or_make(table, stripe, owner, &number);
    if (status == RH_OK && record_at(stripe, number)->wait.waiter != 0) {
        status = RH_INVALID_ARGUMENT;
    }
    if (status == RH_OK) {
        record_at(stripe, number)->wait = wait;
        atomic_fetch_add(&table->waiting, 1);
    }
    lock_mutex_unlock(&stripe->mutex);
    return status;
}

static void stop_waiting(rh_lock_table *table, uint64_t owner, bool forget)
{
    struct lock_stripe *stripe = stripe_of(table, owner);
    uint32_t number;

    lock_mutex_lock(&stripe->mutex);
    number = find(stripe, owner);
    record_at(stripe, number)->wait = (struct lock_wait){0, 0};
    if (forget && record_at(stripe, number)->shards == 0) {
        forget_deadline(stripe, number);
    }
    settle(table, stripe, number);
    atomic_fetch_sub(&table->waiting, 1);
    lock_mutex_unlock(&stripe->mutex);
}

void rh_lock_end_wait(rh_lock_table *table, uint64_t owner)
{
    stop_waiting(table, owner, true);
}

void rh_lock_undo_wait(rh_lock_table *table, uint64_t owner)
{
    stop_waiting(table, owner, false);
}

struct lock_wait rh_lock_find_wait(rh_lock_table *table, uint64_t owner)
{
    struct lock_stripe *stripe = stripe_of(table, owner);
    struct lock_wait wait = {0, 0};
    uint32_t number;

    lock_mutex_lock(&stripe->mutex);
    number = find(stripe, owner);
    if (number != 0) {
        wait = record_at(stripe, number)->wait;
    }
    lock_mutex_unlock(&stripe->mutex);
    return wait;
}

void rh_lock_note_presence(rh_lock_table *table, uint32_t shard, uint64_t owner, bool present)
{
    struct lock_stripe *stripe = stripe_of(table, owner);
    uint64_t bit = (uint64_t)1 << shard;
    struct record *record;
    uint32_t number;

    lock_mutex_lock(&stripe->mutex);
    number = find(stripe, owner);
    if (number != 0 && record_at(stripe, number)->place != 0) {
        record = record_at(stripe, number);
        record->shards = present ? record->shards | bit : record->shards & ~bit;
        if (record->shards == 0 && record->wait.waiter == 0) {
            forget_deadline(stripe, number);
            settle(table, stripe, number);
        }
    }
    lock_mutex_unlock(&stripe->mutex);
}

void rh_lock_forget_deadline(rh_lock_table *table, uint64_t owner)
{
    struct lock_stripe *stripe = stripe_of(table, owner);
    uint32_t number;

    lock_mutex_lock(&stripe->mutex);
    number = find(stripe, owner);
    if (number != 0) {
        forget_deadline(stripe, number);
        settle(table, stripe, number);
    }
    lock_mutex_unlock(&stripe->mutex);
}

/* Gives a new deadline to an owner that has one already. */
static bool renew(rh_lock_table *table, uint64_t owner, int64_t deadline)
{
    struct lock_stripe *stripe = stripe_of(table, owner);
    uint32_t number;
    bool found;

    lock_mutex_lock(&stripe->mutex);
    number = find(stripe, owner);
    found = number != 0 && record_at(stripe, number)->place != 0;
    if (found) {
        record_at(stripe, number)->deadline = deadline;
        sift(stripe, record_at(stripe, number)->place, number);
    }
    lock_mutex_unlock(&stripe->mutex);
    return found;
}

/* The same for any owner; all shards are locked, so that what it holds stands still. */
static rh_status begin_deadline(rh_lock_table *table, uint64_t owner, int64_t deadline)
{
    struct lock_stripe *stripe = stripe_of(table, owner);
    uint32_t number;
    rh_status status;

    if (renew(table, owner, deadline)) {
        return RH_OK;
    }
    lock_mutex_lock(&stripe->mutex);
    status = find_or_make(table, stripe, owner, &number);
    if (status == RH_OK) {
        struct record *record = record_at(stripe, number);

        record->deadline = deadline;
        record->shards = 0;
        for (uint32_t i = 0; i < LOCK_SHARDS; i++) {
            if (lock_first_hold(&table->shards[i], owner) != 0) {
                record->shards |= (uint64_t)1 << i;
            }
        }
        sift(stripe, ++stripe->heap_count, number);
    }
    lock_mutex_unlock(&stripe->mutex);
    return status;
}

rh_status rh_lock_renew(rh_lock_table *table, uint64_t owner, int64_t deadline_ns)
{
    rh_status status;

    if (table == NULL || owner == 0 || owner > RH_LOCK_OWNER_MAX) {
        return RH_INVALID_ARGUMENT;
    }
    if (renew(table, owner, deadline_ns)) {
        return RH_OK;
    }
    rh_lock_lock_shards(table, LOCK_SHARDS_ALL);
    status = begin_deadline(table, owner, deadline_ns);
    rh_lock_unlock_shards(table, LOCK_SHARDS_ALL);
    return status;
}

/* Counts for the expired at `place` of the heap and below. */
static void count_expired(rh_lock_table *table, const struct lock_stripe *stripe, uint32_t place,
                          int64_t now, struct lock_room *room)
{
    const struct record *record;

    if (place > stripe->heap_count || deadline_at(stripe, place) >= now) {
        return;
    }
    record = record_at(stripe, stripe->heap[place]);
    rh_lock_count_owner(table, record->owner, record->shards, record->wait, room);
    count_expired(table, stripe, 2 * place, now, room);
    count_expired(table, stripe, 2 * place + 1, now, room);
}

void rh_lock_count_expired(rh_lock_table *table, int64_t now, struct lock_room *room)
{
    for (size_t i = 0; i < LOCK_STRIPES; i++) {
        struct lock_stripe *stripe = &table->stripes[i];

        lock_mutex_lock(&stripe->mutex);
        count_expired(table, stripe, 1, now, room);
        lock_mutex_unlock(&stripe->mutex);
    }
}

bool rh_lock_take_expired(rh_lock_table *table, size_t number, int64_t now,
                          struct lock_expired *out)
{
    struct lock_stripe *stripe = &table->stripes[number];
    bool found;

    lock_mutex_lock(&stripe->mutex);
    found = stripe->heap_count > 0 && deadline_at(stripe, 1) < now;
    if (found) {
        uint32_t top = stripe->heap[1];
        const struct record *record = record_at(stripe, top);

        *out = (struct lock_expired){record->owner, record->shards, record->wait};
        forget_deadline(stripe, top);
        settle(table, stripe, top);
    }
    lock_mutex_unlock(&stripe->mutex);
    return found;
}

/* Making a lock table, reading it, and locking parts of it. */
#include <stdlib.h>
#include <string.h>

#include "lock_table_shard.h"

static void free_table(rh_lock_table *table, size_t shards, size_t stripes)
{
    rh_lock_close_register(table, stripes);
    for (size_t i = 0; i < shards; i++) {
        rh_lock_clear_shard(&table->shards[i]);
        lock_mutex_destroy(&table->shards[i].mutex);
    }
    free(table);
}

rh_status rh_lock_table_new(const rh_lock_table_options *options, rh_lock_table **out)
{
    size_t shards = 0, stripes = 0;
    rh_lock_table *table;

    if (out == NULL) {
        return RH_INVALID_ARGUMENT;
    }
    table = aligned_alloc(alignof(rh_lock_table), sizeof *table);
    if (table == NULL) {
        return RH_NO_MEMORY;
    }
    memset(table, 0, sizeof *table);
    table->hash_seed = options ? options->hash_seed : 0;
    for (; shards < LOCK_SHARDS; shards++) {
        if (!lock_mutex_init(&table->shards[shards].mutex)) {
            goto out;
        }
        table->shards[shards].number = (uint32_t)shards;
    }
    if (rh_lock_open_register(table, &stripes) != RH_OK) {
        goto out;
    }
    *out = table;
    return RH_OK;
out:
    free_table(table, shards, stripes);
    return RH_NO_MEMORY;
}

void rh_lock_table_free(rh_lock_table *table)
{
    if (table) {
        free_table(table, LOCK_SHARDS, LOCK_STRIPES);
    }
}

rh_status rh_lock_grants_new(rh_lock_grants **out)
{
    rh_lock_grants *grants;

    if (out == NULL) {
        return RH_INVALID_ARGUMENT;
    }
    grants = calloc(1, sizeof *grants);
    if (grants == NULL) {
        return RH_NO_MEMORY;
    }
    *out = grants;
    return RH_OK;
}

void rh_lock_grants_free(rh_lock_grants *grants)
{
    if (grants) {
        free(grants->items);
        free(grants->text);
        free(grants);
    }
}

rh_status rh_lock_grants_read(const rh_lock_grants *grants, const rh_lock_grant **out,
                              size_t *count)
{
    if (grants == NULL || out == NULL || count == NULL) {
        return RH_INVALID_ARGUMENT;
    }
    *out = grants->items;
    *count = grants->count;
    return RH_OK;
}

void rh_lock_lock_shards(rh_lock_table *table, uint64_t mask)
{
    for (size_t i = 0; i < LOCK_SHARDS; i++) {
        if (mask >> i & 1) {
            lock_mutex_lock(&table->shards[i].mutex);
        }
    }
}

void rh_lock_unlock_shards(rh_lock_table *table, uint64_t mask)
{
    for (size_t i = 0; i < LOCK_SHARDS; i++) {
        if (mask >> i & 1) {
            lock_mutex_unlock(&table->shards[i].mutex);
        }
    }
}

uint64_t rh_lock_shards_of(const rh_lock_table *table, uint64_t owner)
{
    const _Atomic uint8_t *row = table->present[lock_owner_row(owner)];
    uint64_t mask = 0;

    for (size_t i = 0; i < LOCK_SHARDS; i++) {
        mask |= (uint64_t)(atomic_load_explicit(&row[i], memory_order_relaxed) != 0) << i;
    }
    return mask;
}

rh_status rh_lock_table_size(rh_lock_table *table, size_t *out)
{
    size_t size = 0;

    if (table == NULL || out == NULL) {
        return RH_INVALID_ARGUMENT;
    }
    rh_lock_lock_shards(table, LOCK_SHARDS_ALL);
    for (size_t i = 0; i < LOCK_SHARDS; i++) {
        size += lock_count_names(&table->shards[i]);
    }
    rh_lock_unlock_shards(table, LOCK_SHARDS_ALL);
    *out = size;
    return RH_OK;
}

rh_status rh_lock_get_mode(rh_lock_table *table, const void *name, size_t name_bytes,
                           uint64_t owner, rh_lock_mode *out)
{
    struct lock_shard *shard;
    struct lock_key key;
    uint32_t entry, hold = 0;

    if (out == NULL || !lock_make_key(table, name, name_bytes, owner, &key)) {
        return RH_INVALID_ARGUMENT;
    }
    shard = &table->shards[key.shard];
    lock_mutex_lock(&shard->mutex);
    entry = lock_find_entry(shard, &key);
    if (entry != 0) {
        hold = lock_find_hold(shard, entry, owner);
    }
    *out = hold != 0 ? (rh_lock_mode)lock_hold_at(shard, hold)->mode : RH_LOCK_NONE;
    lock_mutex_unlock(&shard->mutex);
    return RH_OK;
}

static void copy_holders(const struct lock_shard *shard, const struct lock_entry *entry,
                         rh_lock_party *out)
{
    for (uint32_t at = entry->first; at != 0; at = lock_hold_at(shard, at)->next) {
        const struct lock_hold *hold = lock_hold_at(shard, at);

        *out++ = (rh_lock_party){hold->owner, (rh_lock_mode)hold->mode};
    }
}

static void copy_waiters(const struct lock_shard *shard, const struct lock_queue *queue,
                         rh_lock_party *out)
{
    for (uint32_t at = queue->first; at != 0; at = lock_waiter_at(shard, at)->next) {
        const struct lock_waiter *waiter = lock_waiter_at(shard, at);

        *out++ = (rh_lock_party){waiter->owner, (rh_lock_mode)waiter->mode};
    }
}

static rh_status read_parties(rh_lock_table *table, const void *name, size_t name_bytes,
                              bool waiters, rh_lock_party **parties, size_t *count)
{
    const struct lock_entry *entry = NULL;
    struct lock_shard *shard;
    struct lock_key key;
    rh_lock_party *made;
    uint32_t number;
    size_t found = 0;

    if (parties == NULL || count == NULL || !lock_make_key(table, name, name_bytes, 1, &key)) {
        return RH_INVALID_ARGUMENT;
    }
    shard = &table->shards[key.shard];
    lock_mutex_lock(&shard->mutex);
    number = lock_find_entry(shard, &key);
    if (number != 0) {
        entry = lock_entry_at(shard, number);
        if (!waiters) {
            found = entry->holders;
        } else if (entry->queue != 0) {
            found = lock_queue_at(shard, entry->queue)->count;
        }
    }
    made = malloc((found > 0 ? found : 1) * sizeof *made);
    if (made && found > 0 && waiters) {
        copy_waiters(shard, lock_queue_at(shard, entry->queue), made);
    } else if (made && found > 0) {
        copy_holders(shard, entry, made);
    }
    lock_mutex_unlock(&shard->mutex);
    if (made == NULL) {
        return RH_NO_MEMORY;
    }
    *parties = made;
    *count = found;
    return RH_OK;
}

rh_status rh_lock_get_holders(rh_lock_table *table, const void *name, size_t name_bytes,
                              rh_lock_party **parties, size_t *count)
{
    return read_parties(table, name, name_bytes, false, parties, count);
}

rh_status rh_lock_get_waiters(rh_lock_table *table, const void *name, size_t name_bytes,
                              rh_lock_party **parties, size_t *count)
{
    return read_parties(table, name, name_bytes, true, parties, count);
}

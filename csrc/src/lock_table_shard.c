/* What is seldom needed of the names and holds of a shard. */
#include <stdlib.h>
#include <string.h>

#include "lock_table_shard.h"

#define IS LOCK_BIT(RH_LOCK_INTENT_SHARED)
#define IX LOCK_BIT(RH_LOCK_INTENT_EXCLUSIVE)
#define S LOCK_BIT(RH_LOCK_SHARED)
#define U LOCK_BIT(RH_LOCK_UPDATE)
#define SIX LOCK_BIT(RH_LOCK_SHARED_INTENT_EXCLUSIVE)
#define X LOCK_BIT(RH_LOCK_EXCLUSIVE)

const uint8_t lock_excluded[RH_LOCK_EXCLUSIVE + 1] = {0,
                                                      X,
                                                      S | U | SIX | X,
                                                      IX | SIX | X,
                                                      IX | U | SIX | X,
                                                      IX | S | U | SIX | X,
                                                      IS | IX | S | U | SIX | X};

const uint8_t lock_covering[RH_LOCK_EXCLUSIVE + 1][RH_LOCK_EXCLUSIVE + 1] = {
    {0, 1, 2, 3, 4, 5, 6}, {1, 1, 2, 3, 4, 5, 6}, {2, 2, 2, 5, 5, 5, 6}, {3, 3, 5, 3, 4, 5, 6},
    {4, 4, 5, 4, 4, 5, 6}, {5, 5, 5, 5, 5, 5, 6}, {6, 6, 6, 6, 6, 6, 6}};

static unsigned name_size(size_t bytes)
{
    unsigned size = 0;

    while (((size_t)64 << size) < bytes) {
        size++;
    }
    return size;
}

char *lock_take_name(struct lock_shard *shard, size_t bytes)
{
    unsigned size = name_size(bytes);
    struct lock_name_pool *pool = &shard->far[size];
    char *name = pool->free;

    if (name == NULL) {
        return malloc((size_t)64 << size);
    }
    memcpy(&pool->free, name, sizeof pool->free);
    pool->count--;
    return name;
}

void lock_give_name(struct lock_shard *shard, char *name, size_t bytes)
{
    unsigned size = name_size(bytes);
    struct lock_name_pool *pool = &shard->far[size];

    if (pool->count >= LOCK_NAME_BYTES_KEPT / 64u >> size) {
        free(name);
        return;
    }
    memcpy(name, &pool->free, sizeof pool->free);
    pool->free = name;
    pool->count++;
}

void lock_clear_shard(struct lock_shard *shard)
{
    for (uint32_t i = 1; shard->names.count > 0 && i <= shard->names.mask + 1; i++) {
        uint32_t number = shard->names.slots[i - 1].item;

        if (number != 0 && lock_entry_at(shard, number)->name_bytes > LOCK_NAME_INLINE) {
            free(lock_entry_at(shard, number)->name.far);
        }
    }
    for (size_t size = 0; size < LOCK_NAME_SIZES; size++) {
        struct lock_name_pool *pool = &shard->far[size];

        while (pool->free) {
            char *name = pool->free;

            memcpy(&pool->free, name, sizeof pool->free);
            free(name);
        }
        pool->count = 0;
    }
    shard->idle = 0;
    lock_index_clear(&shard->names);
    lock_index_clear(&shard->owners);
    lock_index_clear(&shard->crowd);
    lock_pool_clear(&shard->records);
    lock_pool_clear(&shard->holders);
    lock_pool_clear(&shard->waiters);
    lock_pool_clear(&shard->queues);
}

void lock_rest_shard(struct lock_shard *shard)
{
    if (shard->records.used <= LOCK_CAPACITY_KEPT && shard->waiters.used <= LOCK_CAPACITY_KEPT) {
        lock_clear_shard(shard);
        return;
    }
    if (shard->idle != 0) {
        lock_remove_entry(shard, shard->idle);
        shard->idle = 0;
    }
    lock_pool_reset(&shard->records);
    lock_pool_reset(&shard->waiters);
}

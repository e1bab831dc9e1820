/* How the pools and indexes of the lock table grow. */
#include <stdlib.h>
#include <string.h>

#include "lock_table_pool.h"

#define POOL_CAPACITY_MIN 16
#define ALIGNMENT 64 /* so that a record of as many bytes is one cache miss and not two */
#define INDEX_SLOTS_MIN 16
#define CAPACITY_MAX ((size_t)1 << 31)

rh_status rh_lock_pool_grow(struct lock_pool *pool, size_t item_bytes, size_t count)
{
    size_t capacity = pool->capacity > 0 ? pool->capacity : POOL_CAPACITY_MIN;
    uint32_t offset;
    char *block;

    if (count >= CAPACITY_MAX) {
        return RH_NO_MEMORY;
    }
    while (capacity <= pool->live + count) {
        capacity *= 2;
    }
    if (capacity > CAPACITY_MAX || capacity > SIZE_MAX / item_bytes - ALIGNMENT) {
        return RH_NO_MEMORY;
    }
    /* realloc() moves large blocks by their pages, without a copy. */
    block =
        realloc(pool->items ? pool->items - pool->offset : NULL, capacity * item_bytes + ALIGNMENT);
    if (block == NULL) {
        return RH_NO_MEMORY;
    }
    offset = ALIGNMENT - (uint32_t)((uintptr_t)block % ALIGNMENT);
    if (pool->items == NULL) {
        pool->used = 1;
    } else if (offset != pool->offset) {
        memmove(block + offset, block + pool->offset, pool->used * item_bytes);
    }
    pool->items = block + offset;
    pool->offset = offset;
    pool->capacity = (uint32_t)capacity;
    return RH_OK;
}

void rh_lock_pool_clear(struct lock_pool *pool)
{
    free(pool->items ? pool->items - pool->offset : NULL);
    *pool = (struct lock_pool){0};
}

rh_status rh_lock_index_grow(struct lock_index *index, size_t count)
{
    size_t slots = index->slots ? (size_t)index->mask + 1 : INDEX_SLOTS_MIN;
    struct lock_index grown = {NULL, 0, 0};

    if (count >= CAPACITY_MAX) {
        return RH_NO_MEMORY;
    }
    while (slots <= (index->count + count) * 2) {
        slots *= 2;
    }
    if (slots > CAPACITY_MAX) {
        return RH_NO_MEMORY;
    }
    grown.slots = calloc(slots, sizeof *grown.slots);
    if (grown.slots == NULL) {
        return RH_NO_MEMORY;
    }
    grown.mask = (uint32_t)(slots - 1);
    for (size_t i = 0; index->slots && i <= index->mask; i++) {
        if (index->slots[i].item != 0) {
            lock_index_add(&grown, index->slots[i].hash, index->slots[i].item);
        }
    }
    free(index->slots);
    *index = grown;
    return RH_OK;
}

void rh_lock_index_clear(struct lock_index *index)
{
    free(index->slots);
    *index = (struct lock_index){NULL, 0, 0};
}

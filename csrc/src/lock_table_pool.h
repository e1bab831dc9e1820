/*
 * What a part of the lock table is made of: records of one type in an array, and an index that
 * finds them. Both are reserved first and then used without being able to fail.
 */
#ifndef RINGHOLD_SRC_LOCK_TABLE_POOL_H
#define RINGHOLD_SRC_LOCK_TABLE_POOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <ringhold/status.h>

/*
 * Records are named by numbers from 1, so that the array may move when it grows; 0 means none.
 * Free ones are chained through their first four bytes.
 */
struct lock_pool {
    char *items;       /* at a multiple of 64, */
    uint32_t offset;   /* this far into the memory allocated */
    uint32_t capacity; /* numbers there is room for, 0 included */
    uint32_t used;     /* numbers below this one were given out before */
    uint32_t free;     /* the first one to give out again */
    uint32_t live;
};

#define LOCK_POOL_AT(type, pool, number) ((struct type *)(void *)(pool).items + (number))

rh_status rh_lock_pool_grow(struct lock_pool *pool, size_t item_bytes, size_t count);
void rh_lock_pool_clear(struct lock_pool *pool);

/* Afterwards lock_pool_take() succeeds `count` times. */
static inline rh_status lock_pool_reserve(struct lock_pool *pool, size_t item_bytes, size_t count)
{
    if ((size_t)pool->capacity > (size_t)pool->live + count) {
        return RH_OK;
    }
    return rh_lock_pool_grow(pool, item_bytes, count);
}

static inline uint32_t lock_pool_take(struct lock_pool *pool, size_t item_bytes)
{
    uint32_t number = pool->free;

    pool->live++;
    if (number == 0) {
        return pool->used++;
    }
    pool->free = *(uint32_t *)(void *)(pool->items + number * item_bytes);
    return number;
}

static inline void lock_pool_give(struct lock_pool *pool, size_t item_bytes, uint32_t number)
{
    *(uint32_t *)(void *)(pool->items + number * item_bytes) = pool->free;
    pool->free = number;
    pool->live--;
}

/* Of a pool without live records: they are given out in order again, from the first one. */
static inline void lock_pool_reset(struct lock_pool *pool)
{
    pool->used = pool->used > 0;
    pool->free = 0;
}

/*
 * Open addressing with linear probing, at most half full. A slot keeps the hash, whose low bits
 * are its home, so that most of what does not match is passed by without looking at a record.
 */
struct lock_slot {
    uint32_t hash;
    uint32_t item; /* 0: empty */
};

struct lock_index {
    struct lock_slot *slots; /* NULL before anything was reserved */
    uint32_t mask;
    uint32_t count;
};

rh_status rh_lock_index_grow(struct lock_index *index, size_t count);
void rh_lock_index_clear(struct lock_index *index);

/* Afterwards lock_index_add() succeeds `count` times. */
static inline rh_status lock_index_reserve(struct lock_index *index, size_t count)
{
    if (((size_t)index->count + count) * 2 <= index->mask) {
        return RH_OK;
    }
    return rh_lock_index_grow(index, count);
}

/*
 * The items under a hash, one by one, 0 at the end:
 *
 *     for (at = hash; (item = lock_index_next(index, hash, &at)) != 0;)
 */
static inline uint32_t lock_index_next(const struct lock_index *index, uint32_t hash, uint32_t *at)
{
    if (index->count == 0) {
        return 0;
    }
    for (;;) {
        struct lock_slot slot = index->slots[*at & index->mask];

        ++*at;
        if (slot.item == 0 || slot.hash == hash) {
            return slot.item;
        }
    }
}

static inline void lock_index_add(struct lock_index *index, uint32_t hash, uint32_t item)
{
    uint32_t at = hash & index->mask;

    while (index->slots[at].item != 0) {
        at = (at + 1) & index->mask;
    }
    index->slots[at] = (struct lock_slot){hash, item};
    index->count++;
}

/*
 * Takes out an item that is there, and moves up those behind it that would no longer be found.
 * (Knuth, "The Art of Computer Programming", vol. 3, algorithm 6.4R.)
 */
static inline void lock_index_remove(struct lock_index *index, uint32_t hash, uint32_t item)
{
    uint32_t mask = index->mask, hole = hash & mask;

    while (index->slots[hole].item != item) {
        hole = (hole + 1) & mask;
    }
    for (uint32_t at = (hole + 1) & mask; index->slots[at].item != 0; at = (at + 1) & mask) {
        if (((at - index->slots[at].hash) & mask) >= ((at - hole) & mask)) {
            index->slots[hole] = index->slots[at];
            hole = at;
        }
    }
    index->slots[hole].item = 0;
    index->count--;
}

#endif

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

const uint8_t rh_lock_excluded[RH_LOCK_EXCLUSIVE + 1] = {0,
                                                         X,
                                                         S | U | SIX | X,
                                                         IX | SIX | X,
                                                         IX | U | SIX | X,
                                                         IX | S | U | SIX | X,
                                                         IS | IX | S | U | SIX | X};

const uint8_t rh_lock_covering[RH_LOCK_EXCLUSIVE + 1][RH_LOCK_EXCLUSIVE + 1] = {
    {0, 1, 2, 3, 4, 5, 6}, {1, 1, 2, 3, 4, 5, 6}, {2, 2, 2, 5, 5, 5, 6}, {3, 3, 5, 3, 4, 5, 6},
    {4, 4, 5, 4, 4, 5, 6}, {5, 5, 5, 5, 5, 5, 6}, {6, 6, 6, 6, 6, 6, 6}};

uint64_t rh_lock_hash_long(const char *name, size_t name_bytes, uint64_t seed)
{
    return XXH3_64bits_withSeed(name, name_bytes, seed);
}

static unsigned name_size(size_t bytes)
{
    unsigned size = 0;

    while (((size_t)64 << size) < bytes) {
        size++;
    }
    return size;
}

/* A block for a name too long for its entry; NULL when there is no memory. */
static char *take_name(struct lock_shard *shard, size_t bytes)
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

static void give_name(struct lock_shard *shard, char *name, size_t bytes)
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

uint32_t rh_lock_take_hold(struct lock_shard *shard)
{
    uint32_t number = lock_pool_take(&shard->records, sizeof(struct lock_record));
    struct lock_hold *hold = lock_hold_at(shard, number);

    hold->owner = 0;
    hold->count = 0;
    return number;
}

rh_status rh_lock_make_entry(struct lock_shard *shard, const struct lock_key *key, uint32_t *out)
{
    struct lock_entry *entry;
    char *far = NULL;

    if (lock_index_reserve(&shard->names, 1) != RH_OK) {
        return RH_NO_MEMORY;
    }
    if (key->bytes > LOCK_NAME_INLINE) {
        far = take_name(shard, key->bytes);
        if (far == NULL) {
            return RH_NO_MEMORY;
        }
    }
    *out = rh_lock_take_hold(shard);
    entry = lock_entry_at(shard, *out);
    *entry = (struct lock_entry){.tag = key->tag, .name_bytes = (uint16_t)key->bytes};
    if (far) {
        entry->name.far = far;
    }
    memcpy(far ? far : entry->name.near, key->name, key->bytes);
    lock_index_add(&shard->names, key->tag, *out);
    return RH_OK;
}

void rh_lock_unlink_from_owner(struct lock_shard *shard, struct lock_hold *hold)
{
    struct lock_holder *holder = LOCK_POOL_AT(lock_holder, shard->holders, hold->party);

    if (hold->owner_next != 0) {
        lock_hold_at(shard, hold->owner_next)->owner_previous = hold->owner_previous;
    }
    if (hold->owner_previous != 0) {
        lock_hold_at(shard, hold->owner_previous)->owner_next = hold->owner_next;
    } else {
        holder->first = hold->owner_next;
    }
    if (holder->first == 0) {
        lock_index_remove(&shard->owners, (uint32_t)lock_owner_hash(hold->owner), hold->party);
        lock_pool_give(&shard->holders, sizeof *holder, hold->party);
    }
    hold->owner = 0;
}

void rh_lock_link_to_owner(struct lock_shard *shard, uint32_t number, uint64_t owner)
{
    struct lock_hold *hold = lock_hold_at(shard, number);
    struct lock_holder *holder;
    uint32_t found;

    if (hold->owner != 0) {
        rh_lock_unlink_from_owner(shard, hold);
    }
    found = lock_find_holder(shard, owner);
    if (found == 0) {
        found = lock_pool_take(&shard->holders, sizeof *holder);
        *LOCK_POOL_AT(lock_holder, shard->holders, found) = (struct lock_holder){.owner = owner};
        lock_index_add(&shard->owners, (uint32_t)lock_owner_hash(owner), found);
    }
    holder = LOCK_POOL_AT(lock_holder, shard->holders, found);
    hold->owner = owner;
    hold->party = found;
    hold->owner_next = holder->first;
    hold->owner_previous = 0;
    if (holder->first != 0) {
        lock_hold_at(shard, holder->first)->owner_previous = number;
    }
    holder->first = number;
}

void rh_lock_remove_entry(struct lock_shard *shard, uint32_t number)
{
    struct lock_entry *entry = lock_entry_at(shard, number);
    struct lock_hold *resting = lock_hold_at(shard, number);

    lock_index_remove(&shard->names, entry->tag, number);
    if (entry->name_bytes > LOCK_NAME_INLINE) {
        give_name(shard, entry->name.far, entry->name_bytes);
    }
    if (resting->owner != 0) {
        rh_lock_unlink_from_owner(shard, resting);
    }
    lock_pool_give(&shard->records, sizeof(struct lock_record), number);
}

uint32_t rh_lock_find_in_crowd(const struct lock_shard *shard, uint32_t entry, uint64_t owner)
{
    uint32_t hash = lock_hold_hash(entry, owner), at = hash, number;

    while ((number = lock_index_next(&shard->crowd, hash, &at)) != 0) {
        const struct lock_hold *hold = lock_hold_at(shard, number);

        if (hold->owner == owner && hold->entry == entry) {
            break;
        }
    }
    return number;
}

void rh_lock_clear_shard(struct lock_shard *shard)
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
    rh_lock_index_clear(&shard->names);
    rh_lock_index_clear(&shard->owners);
    rh_lock_index_clear(&shard->crowd);
    rh_lock_pool_clear(&shard->records);
    rh_lock_pool_clear(&shard->holders);
    rh_lock_pool_clear(&shard->waiters);
    rh_lock_pool_clear(&shard->queues);
}

void rh_lock_shrink_shard(struct lock_shard *shard)
{
    if (shard->records.used <= LOCK_CAPACITY_KEPT && shard->waiters.used <= LOCK_CAPACITY_KEPT) {
        rh_lock_clear_shard(shard);
        return;
    }
    if (shard->idle != 0) {
        rh_lock_remove_entry(shard, shard->idle);
        shard->idle = 0;
    }
    lock_pool_reset(&shard->records);
    lock_pool_reset(&shard->waiters);
}

/* Names and holds of one shard of the lock table. */
#include <stdlib.h>
#include <string.h>

#include "lock_table_internal.h"

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

static uint32_t hold_hash(uint32_t entry, uint64_t owner)
{
    return (uint32_t)lock_owner_hash(owner + entry * (uint64_t)0x85ebca6b);
}

uint32_t lock_find_entry(const struct lock_shard *shard, const struct lock_key *key)
{
    uint32_t at = key->tag, number;

    while ((number = lock_index_next(&shard->names, key->tag, &at)) != 0) {
        const struct lock_entry *entry = lock_entry_at(shard, number);

        if (entry->name_bytes == key->bytes &&
            memcmp(lock_entry_name(entry), key->name, key->bytes) == 0) {
            break;
        }
    }
    return number;
}

static unsigned name_size(size_t bytes)
{
    unsigned size = 0;

    while (((size_t)64 << size) < bytes) {
        size++;
    }
    return size;
}

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

rh_status lock_make_entry(struct lock_shard *shard, const struct lock_key *key, uint32_t *out)
{
    struct lock_entry *entry;
    char *far = NULL;

    if (lock_pool_reserve(&shard->entries, sizeof *entry, 1) != RH_OK ||
        lock_index_reserve(&shard->names, 1) != RH_OK) {
        return RH_NO_MEMORY;
    }
    if (key->bytes > LOCK_NAME_INLINE) {
        far = take_name(shard, key->bytes);
        if (far == NULL) {
            return RH_NO_MEMORY;
        }
    }
    *out = lock_pool_take(&shard->entries, sizeof *entry);
    entry = lock_entry_at(shard, *out);
    *entry = (struct lock_entry){.tag = key->tag, .name_bytes = (uint16_t)key->bytes};
    if (far) {
        entry->name.far = far;
    }
    memcpy(far ? far : entry->name.near, key->name, key->bytes);
    lock_index_add(&shard->names, key->tag, *out);
    return RH_OK;
}

void lock_settle_entry(struct lock_shard *shard, uint32_t number)
{
    struct lock_entry *entry = lock_entry_at(shard, number);

    if (entry->first != 0 || entry->queue != 0) {
        return;
    }
    lock_index_remove(&shard->names, entry->tag, number);
    if (entry->name_bytes > LOCK_NAME_INLINE) {
        give_name(shard, entry->name.far, entry->name_bytes);
    }
    lock_pool_give(&shard->entries, sizeof *entry, number);
}

rh_status lock_reserve_holds(struct lock_shard *shard, size_t count)
{
    size_t all = shard->waiters.live + count;

    if (lock_pool_reserve(&shard->holds, sizeof(struct lock_hold), all) != RH_OK ||
        lock_pool_reserve(&shard->holders, sizeof(struct lock_holder), all) != RH_OK ||
        lock_index_reserve(&shard->owners, all) != RH_OK ||
        lock_index_reserve(&shard->crowd, all) != RH_OK) {
        return RH_NO_MEMORY;
    }
    return RH_OK;
}

uint32_t lock_find_hold(const struct lock_shard *shard, const struct lock_entry *entry,
                        uint64_t owner)
{
    uint32_t number = entry->first, hash, at;

    for (int i = 0; i < LOCK_HOLDS_WALKED; i++) {
        if (number == 0 || lock_hold_at(shard, number)->owner == owner) {
            return number;
        }
        number = lock_hold_at(shard, number)->next;
    }
    if (number == 0) {
        return 0;
    }
    at = hash = hold_hash(lock_hold_at(shard, number)->entry, owner);
    while ((number = lock_index_next(&shard->crowd, hash, &at)) != 0) {
        const struct lock_hold *hold = lock_hold_at(shard, number);

        if (hold->owner == owner && lock_entry_at(shard, hold->entry) == entry) {
            break;
        }
    }
    return number;
}

uint32_t lock_find_holder(const struct lock_shard *shard, uint64_t owner)
{
    uint32_t hash = (uint32_t)lock_owner_hash(owner), at = hash, number;

    while ((number = lock_index_next(&shard->owners, hash, &at)) != 0 &&
           LOCK_POOL_AT(lock_holder, shard->holders, number)->owner != owner) {
    }
    return number;
}

/* A count that reached its largest value stays there: it has become a lasting "perhaps". */
static void count_presence(rh_lock_table *table, const struct lock_shard *shard, uint64_t owner,
                           int change)
{
    _Atomic uint8_t *cell = &table->present[lock_owner_row(owner)][shard->number];
    unsigned count = atomic_load_explicit(cell, memory_order_relaxed);

    if (count < UINT8_MAX) {
        atomic_store_explicit(cell, (uint8_t)((int)count + change), memory_order_relaxed);
    }
    if (lock_owner_tracked(table, owner)) {
        lock_note_presence(table, shard->number, owner, change > 0);
    }
}

static void link_to_owner(rh_lock_table *table, struct lock_shard *shard, uint32_t number)
{
    struct lock_hold *hold = lock_hold_at(shard, number);
    struct lock_holder *holder;
    uint32_t found = lock_find_holder(shard, hold->owner);

    if (found == 0) {
        found = lock_pool_take(&shard->holders, sizeof *holder);
        holder = LOCK_POOL_AT(lock_holder, shard->holders, found);
        *holder = (struct lock_holder){0, hold->owner};
        lock_index_add(&shard->owners, (uint32_t)lock_owner_hash(hold->owner), found);
        count_presence(table, shard, hold->owner, 1);
    }
    holder = LOCK_POOL_AT(lock_holder, shard->holders, found);
    hold->party = found;
    hold->owner_next = holder->first;
    if (holder->first != 0) {
        lock_hold_at(shard, holder->first)->owner_previous = number;
    }
    holder->first = number;
}

static void unlink_from_owner(rh_lock_table *table, struct lock_shard *shard,
                              const struct lock_hold *hold)
{
    struct lock_holder *holder = LOCK_POOL_AT(lock_holder, shard->holders, hold->party);

    if (hold->owner_next != 0) {
        lock_hold_at(shard, hold->owner_next)->owner_previous = hold->owner_previous;
    }
    if (hold->owner_previous != 0) {
        lock_hold_at(shard, hold->owner_previous)->owner_next = hold->owner_next;
        return;
    }
    holder->first = hold->owner_next;
    if (holder->first == 0) {
        lock_index_remove(&shard->owners, (uint32_t)lock_owner_hash(hold->owner), hold->party);
        lock_pool_give(&shard->holders, sizeof *holder, hold->party);
        count_presence(table, shard, hold->owner, -1);
    }
}

static void count_mode(struct lock_entry *entry, unsigned mode, int change)
{
    uint32_t left = change > 0;

    if (mode <= RH_LOCK_SHARED) {
        left = entry->shared[mode - 1] += (uint32_t)change;
    }
    if (left > 0) {
        entry->held |= (uint8_t)LOCK_BIT(mode);
    } else {
        entry->held &= (uint8_t)~LOCK_BIT(mode);
    }
}

void lock_change_mode(struct lock_entry *entry, struct lock_hold *hold, unsigned mode)
{
    count_mode(entry, hold->mode, -1);
    hold->mode = (uint8_t)mode;
    count_mode(entry, mode, 1);
}

static uint32_t new_hold(rh_lock_table *table, struct lock_shard *shard, uint32_t number,
                         uint64_t owner, unsigned mode)
{
    struct lock_entry *entry = lock_entry_at(shard, number);
    uint32_t made = lock_pool_take(&shard->holds, sizeof(struct lock_hold));
    struct lock_hold *hold = lock_hold_at(shard, made);

    *hold = (struct lock_hold){.entry = number,
                               .previous = entry->last,
                               .mode = (uint8_t)mode,
                               .indexed = entry->holders >= LOCK_HOLDS_WALKED,
                               .owner = owner};
    if (entry->last != 0) {
        lock_hold_at(shard, entry->last)->next = made;
    } else {
        entry->first = made;
    }
    entry->last = made;
    entry->holders++;
    count_mode(entry, mode, 1);
    if (hold->indexed) {
        lock_index_add(&shard->crowd, hold_hash(number, owner), made);
    }
    link_to_owner(table, shard, made);
    return made;
}

uint64_t lock_add_hold(rh_lock_table *table, struct lock_shard *shard, uint32_t number,
                       uint32_t held, uint64_t owner, unsigned mode)
{
    struct lock_hold *hold;

    if (held == 0) {
        held = new_hold(table, shard, number, owner, mode);
        hold = lock_hold_at(shard, held);
    } else {
        hold = lock_hold_at(shard, held);
        lock_change_mode(lock_entry_at(shard, number), hold, mode);
    }
    hold->count++;
    hold->token = atomic_fetch_add_explicit(&table->tokens, 1, memory_order_relaxed) + 1;
    return hold->token;
}

void lock_remove_hold(rh_lock_table *table, struct lock_shard *shard, uint32_t number)
{
    struct lock_hold *hold = lock_hold_at(shard, number);
    struct lock_entry *entry = lock_entry_at(shard, hold->entry);

    if (hold->next != 0) {
        lock_hold_at(shard, hold->next)->previous = hold->previous;
    } else {
        entry->last = hold->previous;
    }
    if (hold->previous != 0) {
        lock_hold_at(shard, hold->previous)->next = hold->next;
    } else {
        entry->first = hold->next;
    }
    entry->holders--;
    count_mode(entry, hold->mode, -1);
    if (hold->indexed) {
        lock_index_remove(&shard->crowd, hold_hash(hold->entry, hold->owner), number);
    }
    if (hold->waiter != 0) {
        lock_waiter_at(shard, hold->waiter)->hold = 0;
    }
    unlink_from_owner(table, shard, hold);
    lock_pool_give(&shard->holds, sizeof *hold, number);
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
    lock_index_clear(&shard->names);
    lock_index_clear(&shard->owners);
    lock_index_clear(&shard->crowd);
    lock_pool_clear(&shard->entries);
    lock_pool_clear(&shard->holds);
    lock_pool_clear(&shard->holders);
    lock_pool_clear(&shard->waiters);
    lock_pool_clear(&shard->queues);
}

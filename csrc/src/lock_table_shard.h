/*
 * Names and holds of one shard of the lock table, whose mutex is held. Numbers are of the shard.
 * Inline, since together they are the way of every acquire and release.
 */
#ifndef RINGHOLD_SRC_LOCK_TABLE_SHARD_H
#define RINGHOLD_SRC_LOCK_TABLE_SHARD_H

#include <string.h>

#include "lock_table_internal.h"

/* A block for a name too long for its entry; NULL when there is no memory. */
char *lock_take_name(struct lock_shard *shard, size_t bytes);
void lock_give_name(struct lock_shard *shard, char *name, size_t bytes);

void lock_clear_shard(struct lock_shard *shard);

/* Gives back memory, if nothing is left in the shard. What was reserved is no longer. */
static inline void lock_trim_shard(struct lock_shard *shard)
{
    if (shard->entries.live == (shard->idle_entry != 0) &&
        (shard->entries.capacity > LOCK_CAPACITY_KEPT ||
         shard->holds.capacity > LOCK_CAPACITY_KEPT ||
         shard->waiters.capacity > LOCK_CAPACITY_KEPT)) {
        lock_clear_shard(shard);
    }
}

static inline uint32_t lock_hold_hash(uint32_t entry, uint64_t owner)
{
    return (uint32_t)lock_owner_hash(owner + entry * (uint64_t)0x85ebca6b);
}

/* memcmp() without a call for what most names are. */
static inline bool lock_same_bytes(const char *a, const char *b, size_t bytes)
{
    uint64_t x, y, different = 0;

    if (bytes < 8 || bytes > LOCK_NAME_INLINE) {
        return memcmp(a, b, bytes) == 0;
    }
    for (size_t i = 0; i < bytes; i += 8) {
        size_t at = i + 8 <= bytes ? i : bytes - 8;

        memcpy(&x, a + at, 8);
        memcpy(&y, b + at, 8);
        different |= x ^ y;
    }
    return different == 0;
}

static inline uint32_t lock_find_entry(const struct lock_shard *shard, const struct lock_key *key)
{
    uint32_t at = key->tag, number;

    while ((number = lock_index_next(&shard->names, key->tag, &at)) != 0) {
        const struct lock_entry *entry = lock_entry_at(shard, number);

        if (entry->name_bytes == key->bytes &&
            lock_same_bytes(lock_entry_name(entry), key->name, key->bytes)) {
            break;
        }
    }
    return number;
}

/* An empty entry; lock_settle_entry() takes it away again unless something was put into it. */
static inline rh_status lock_make_entry(struct lock_shard *shard, const struct lock_key *key,
                                        uint32_t *out)
{
    struct lock_entry *entry;
    char *far = NULL;

    if (lock_pool_reserve(&shard->entries, sizeof *entry, 1) != RH_OK ||
        lock_index_reserve(&shard->names, 1) != RH_OK) {
        return RH_NO_MEMORY;
    }
    if (key->bytes > LOCK_NAME_INLINE) {
        far = lock_take_name(shard, key->bytes);
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

static inline void lock_remove_entry(struct lock_shard *shard, uint32_t number)
{
    struct lock_entry *entry = lock_entry_at(shard, number);

    lock_index_remove(&shard->names, entry->tag, number);
    if (entry->name_bytes > LOCK_NAME_INLINE) {
        lock_give_name(shard, entry->name.far, entry->name_bytes);
    }
    lock_pool_give(&shard->entries, sizeof *entry, number);
}

/* What became empty is taken away when the next one does: it may be asked for again at once. */
static inline void lock_settle_entry(struct lock_shard *shard, uint32_t number)
{
    const struct lock_entry *entry = lock_entry_at(shard, number);

    if (entry->first == 0 && entry->queue == 0 && shard->idle_entry != number) {
        if (shard->idle_entry != 0) {
            lock_remove_entry(shard, shard->idle_entry);
        }
        shard->idle_entry = number;
    }
}

/* Room for `count` more holds, besides one for every waiter. */
static inline rh_status lock_reserve_holds(struct lock_shard *shard, size_t count)
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

static inline uint32_t lock_find_hold(const struct lock_shard *shard,
                                      const struct lock_entry *entry, uint64_t owner)
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
    at = hash = lock_hold_hash(lock_hold_at(shard, number)->entry, owner);
    while ((number = lock_index_next(&shard->crowd, hash, &at)) != 0) {
        const struct lock_hold *hold = lock_hold_at(shard, number);

        if (hold->owner == owner && lock_entry_at(shard, hold->entry) == entry) {
            break;
        }
    }
    return number;
}

static inline uint32_t lock_find_holder(const struct lock_shard *shard, uint64_t owner)
{
    uint32_t hash = (uint32_t)lock_owner_hash(owner), at = hash, number;

    while ((number = lock_index_next(&shard->owners, hash, &at)) != 0 &&
           LOCK_POOL_AT(lock_holder, shard->holders, number)->owner != owner) {
    }
    return number;
}

/* The first hold of an owner in the shard. */
static inline uint32_t lock_first_hold(const struct lock_shard *shard, uint64_t owner)
{
    uint32_t holder = lock_find_holder(shard, owner);

    return holder != 0 ? LOCK_POOL_AT(lock_holder, shard->holders, holder)->first : 0;
}

/* A count that reached its largest value stays there: it has become a lasting "perhaps". */
static inline void lock_count_presence(rh_lock_table *table, const struct lock_shard *shard,
                                       uint64_t owner, int change)
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

static inline void lock_link_to_owner(rh_lock_table *table, struct lock_shard *shard,
                                      uint32_t number)
{
    struct lock_hold *hold = lock_hold_at(shard, number);
    struct lock_holder *holder;
    uint32_t found = lock_find_holder(shard, hold->owner);

    if (found == 0) {
        found = lock_pool_take(&shard->holders, sizeof *holder);
        holder = LOCK_POOL_AT(lock_holder, shard->holders, found);
        *holder = (struct lock_holder){0, hold->owner};
        lock_index_add(&shard->owners, (uint32_t)lock_owner_hash(hold->owner), found);
    }
    holder = LOCK_POOL_AT(lock_holder, shard->holders, found);
    hold->party = found;
    hold->owner_next = holder->first;
    hold->owner_previous = 0;
    if (holder->first != 0) {
        lock_hold_at(shard, holder->first)->owner_previous = number;
    } else {
        shard->idle_holder = shard->idle_holder == found ? 0 : shard->idle_holder;
        lock_count_presence(table, shard, hold->owner, 1);
    }
    holder->first = number;
}

static inline void lock_remove_holder(struct lock_shard *shard, uint32_t number)
{
    uint64_t owner = LOCK_POOL_AT(lock_holder, shard->holders, number)->owner;

    lock_index_remove(&shard->owners, (uint32_t)lock_owner_hash(owner), number);
    lock_pool_give(&shard->holders, sizeof(struct lock_holder), number);
}

/* What became empty is taken away when the next one does, as with names. */
static inline void lock_unlink_from_owner(rh_lock_table *table, struct lock_shard *shard,
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
        if (shard->idle_holder != 0) {
            lock_remove_holder(shard, shard->idle_holder);
        }
        shard->idle_holder = hold->party;
        lock_count_presence(table, shard, hold->owner, -1);
    }
}

static inline void lock_count_mode(struct lock_entry *entry, unsigned mode, int change)
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

static inline void lock_change_mode(struct lock_entry *entry, struct lock_hold *hold, unsigned mode)
{
    lock_count_mode(entry, hold->mode, -1);
    hold->mode = (uint8_t)mode;
    lock_count_mode(entry, mode, 1);
}

static inline uint32_t lock_new_hold(rh_lock_table *table, struct lock_shard *shard,
                                     uint32_t number, uint64_t owner, unsigned mode)
{
    struct lock_entry *entry = lock_entry_at(shard, number);
    uint32_t made = lock_pool_take(&shard->holds, sizeof(struct lock_hold));
    struct lock_hold *hold = lock_hold_at(shard, made);

    hold->entry = number;
    hold->next = 0;
    hold->previous = entry->last;
    hold->waiter = 0;
    hold->mode = (uint8_t)mode;
    hold->indexed = entry->holders >= LOCK_HOLDS_WALKED;
    hold->owner = owner;
    hold->count = 0;
    if (entry->last != 0) {
        lock_hold_at(shard, entry->last)->next = made;
    } else {
        entry->first = made;
        shard->idle_entry = shard->idle_entry == number ? 0 : shard->idle_entry;
    }
    entry->last = made;
    entry->holders++;
    lock_count_mode(entry, mode, 1);
    if (hold->indexed) {
        lock_index_add(&shard->crowd, lock_hold_hash(number, owner), made);
    }
    lock_link_to_owner(table, shard, made);
    return made;
}

/* A hold in `mode`, or a raised one (`held` not 0), counted and with a new token. */
static inline uint64_t lock_add_hold(rh_lock_table *table, struct lock_shard *shard,
                                     uint32_t number, uint32_t held, uint64_t owner, unsigned mode)
{
    struct lock_hold *hold;

    if (held == 0) {
        held = lock_new_hold(table, shard, number, owner, mode);
        hold = lock_hold_at(shard, held);
    } else {
        hold = lock_hold_at(shard, held);
        lock_change_mode(lock_entry_at(shard, number), hold, mode);
    }
    hold->count++;
    hold->token = atomic_fetch_add_explicit(&table->tokens, 1, memory_order_relaxed) + 1;
    return hold->token;
}

/* An entry left empty is for lock_settle_entry(). */
static inline void lock_remove_hold(rh_lock_table *table, struct lock_shard *shard, uint32_t number)
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
    lock_count_mode(entry, hold->mode, -1);
    if (hold->indexed) {
        lock_index_remove(&shard->crowd, lock_hold_hash(hold->entry, hold->owner), number);
    }
    if (hold->waiter != 0) {
        lock_waiter_at(shard, hold->waiter)->hold = 0;
    }
    lock_unlink_from_owner(table, shard, hold);
    lock_pool_give(&shard->holds, sizeof *hold, number);
}

#endif
